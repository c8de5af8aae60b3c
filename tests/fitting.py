"""Blobs that a linear layer can tell apart, and networks that are trained on them."""

import torch
from toys import CPU, Blobs, victim

SPLIT = Blobs().train()
EXACT = SPLIT.images.double() / 255  # in float64 rounding is the same to 1e-12 whatever the CPU's kernels are


def fitted(recipe, targets=SPLIT.labels, seed=0, images=SPLIT.images, **further):
    model = victim().untrained(seed=0, purpose="victim").to(EXACT.dtype if images is EXACT else torch.float32)
    recipe.fit(model, images, targets, seed=seed, device=CPU, task="test", **further)
    return model


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])
