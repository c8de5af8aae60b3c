"""What the networks for photographs are made of."""

import pytest
import torch
from torch import nn

from mad.architectures.pixels import Standardize
from mad.architectures.resnet import ResNet18
from mad.architectures.vgg import VGG16BN


@pytest.mark.parametrize(("architecture", "parameters"), [(VGG16BN, 14_728_266), (ResNet18, 11_173_962)])
def test_parameters_of_the_usual_network(architecture, parameters):
    assert sum(value.numel() for value in architecture((3, 32, 32), 10).parameters()) == parameters


@pytest.mark.parametrize("architecture", [VGG16BN, ResNet18])
@pytest.mark.parametrize("size", [28, 40])
def test_any_size_of_image(architecture, size):
    model = architecture((3, size, size), 7).eval()
    with torch.no_grad():
        assert model(torch.rand(2, 3, size, size)).shape == (2, 7)
    assert model.head.in_features == 512


def test_vgg_starts_as_the_paper_says():
    torch.manual_seed(0)
    model = VGG16BN((3, 32, 32), 10)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.std().item() == pytest.approx((2 / (9 * layer.out_channels)) ** 0.5, rel=0.05)
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not any(layer.bias.any() for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))


def test_standardize():
    pixels = torch.tensor([0.5, 1.0, 0.0]).view(1, 3, 1, 1)
    expected = torch.tensor([1.5, 2.0, -0.4]).view(1, 3, 1, 1)
    assert torch.allclose(Standardize(3, (0.2, 0.2, 0.2), (0.2, 0.4, 0.5))(pixels), expected)
    gray = Standardize(1, (0.1, 0.2, 0.6), (0.2, 0.4, 0.6))(torch.tensor([[[[0.7]]]]))
    assert gray.item() == pytest.approx(1.0)


def test_standardize_is_no_weight():
    layer = Standardize(3, (0.2, 0.2, 0.2), (0.2, 0.4, 0.5))
    assert not list(layer.parameters())
    assert not layer.state_dict()
