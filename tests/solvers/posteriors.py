"""Posteriors of a victim and a surrogate, drawn at random."""

import numpy as np
import torch


def dirichlet(concentration, batch, classes, seed):
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.dirichlet(np.full(classes, concentration), size=batch))


def queries(classes, concentration, batch=60, inner=False, seed=0):
    """Return clean posteriors, the surrogate's posteriors and Theta, float64."""
    y = dirichlet(concentration, batch, classes, seed)
    p = dirichlet(5.0, batch, classes, seed + 1)
    random = torch.Generator().manual_seed(seed)
    factors = torch.randn(batch, classes, 2 * classes, generator=random, dtype=torch.double)
    return y, p, factors @ factors.mT if inner else None
