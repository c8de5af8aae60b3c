"""Networks, and Theta by its definition, for the tests of what computes it."""

import pytest
import torch
from torch import nn

from mad import gradients
from mad.gradients import theta


def slow_theta(model, images):
    model = model.requires_grad_()
    products = []
    for image in images:
        logits = model(image.unsqueeze(0))[0]
        rows = [
            torch.autograd.grad(logit, list(model.parameters()), retain_graph=True, materialize_grads=True)
            for logit in logits
        ]
        matrix = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
        products.append(matrix @ matrix.T)
    return torch.stack(products)


def drawn(model, seed=0):
    """Return the model in float64 and eval mode, its batch norms as if trained."""
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.3)
            layer.running_var.uniform_(0.5, 2)
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, std=0.3)
    return model.double().eval()


def draw(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def agree(fast, slow):
    return (fast - slow).abs().max() <= 1e-8 * slow.abs().max()


def check(model, images, without_closed_form=()):
    """Compare with the definition; the names are the parameters that must, and alone may, go to the Jacobian."""
    model = drawn(model)
    taken = []
    rest = gradients._rest

    def noting(model, parameters, images):
        taken.append(set(parameters))
        return rest(model, parameters, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "_rest", noting)
        logits, products = theta(model, images)
    assert set().union(*taken) == set(without_closed_form)
    assert torch.allclose(logits, model(images), rtol=1e-12, atol=1e-12)
    assert agree(products, slow_theta(model, images))


class Net(nn.Module):
    """Layers as attributes, and a forward pass of the test's own."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, images):
        return self.run(self, images)


def conv(*arguments, **named):
    return nn.Conv2d(3, 3, *arguments, **named)


def sequence(*layers):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 4))
