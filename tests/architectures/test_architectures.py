"""What the networks for photographs are made of."""

import sys
from functools import partial

import pytest
import torch
from torch import nn
from toys import CPU, trainer

from mad.architectures import vgg
from mad.architectures.fast_resnet import FastResNet
from mad.architectures.lenet import LeNet
from mad.architectures.library import Timm, Torchvision
from mad.architectures.pixels import CIFAR_MEAN, IMAGENET_MEAN, Standardize
from mad.architectures.resnet import ResNet18, ResNet34, ResNet50
from mad.architectures.vgg import VGG16BN
from mad.errors import MadError
from mad.seeds import seeded
from mad.storage.fingerprint import describe, name_of

PHOTOGRAPHS = [VGG16BN, ResNet18, ResNet34, ResNet50, FastResNet]
BY_NAME = [partial(Torchvision, name="resnet18"), partial(Torchvision, name="mobilenet_v3_small")]


@pytest.fixture
def narrow(monkeypatch):
    """The hidden layers of the large VGG16 take half a gigabyte: here they take little."""
    monkeypatch.setattr(vgg, "HIDDEN", 16)


@pytest.mark.parametrize(
    ("architecture", "side", "parameters"),
    [
        (VGG16BN, 32, 14_728_266),
        (ResNet18, 32, 11_173_962),
        (ResNet18, 224, 11_181_642),
        (ResNet34, 224, 21_289_802),
        (ResNet50, 224, 23_528_522),
        (FastResNet, 32, 1_161_296),
    ],
)
def test_parameters_of_the_usual_network(architecture, side, parameters):
    with torch.device("meta"):
        assert sum(value.numel() for value in architecture((3, side, side), 10).parameters()) == parameters


def test_lenet_is_the_published_one():
    """Conv 5x5x20, ReLU, pool; conv 5x5x50, ReLU, pool; 800 to 500, ReLU; 500 to 10: the same logits and gradients."""
    own = LeNet((1, 28, 28), 10).double()
    convolutions = [layer for layer in own.trunk if isinstance(layer, nn.Conv2d)]
    hidden = next(layer for layer in own.trunk if isinstance(layer, nn.Linear))
    images, weights = torch.rand(8, 1, 28, 28, dtype=torch.double), list(own.parameters())
    at = (images - 0.1307) / 0.3081
    for convolution in convolutions:
        at = torch.max_pool2d(torch.relu(convolution(at)), 2)
    published = own.head(torch.relu(hidden(at.flatten(1))))
    torch.testing.assert_close(own(images), published)
    ours, theirs = (torch.autograd.grad(out.square().sum(), weights) for out in (own(images), published))
    torch.testing.assert_close(ours, theirs)
    assert sum(value.numel() for value in weights) == 431_080
    assert [tuple(layer.weight.shape) for layer in (*convolutions, hidden)] == [
        (20, 1, 5, 5),
        (50, 20, 5, 5),
        (500, 800),
    ]


def test_parameters_of_the_large_vgg():
    from torchvision import models

    with torch.device("meta"):
        usual = models.vgg16_bn(num_classes=256).state_dict()
        own = VGG16BN((3, 224, 224), 256).state_dict()
    assert [value.shape for value in own.values()] == [value.shape for value in usual.values()]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_large_resnet_is_torchvisions(name):
    from torchvision import models

    own = {"resnet18": ResNet18, "resnet50": ResNet50}[name]((3, 64, 64), 5, mean=(0, 0, 0), std=(1, 1, 1)).eval()
    usual = models.get_model(name, num_classes=5).eval()
    usual.load_state_dict(dict(zip(usual.state_dict(), own.state_dict().values(), strict=True)))
    images = torch.rand(2, 3, 64, 64).double()
    with torch.no_grad():
        assert torch.allclose(own.double()(images), usual.double()(images), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("narrow")
def test_large_vgg_is_torchvisions():
    from torchvision import models

    with torch.device("meta"):
        usual = models.vgg16_bn(num_classes=5)
    usual.classifier = nn.Sequential(
        nn.Linear(25088, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5)
    )
    own = VGG16BN((3, 64, 64), 5, mean=(0, 0, 0), std=(1, 1, 1)).eval()
    usual.load_state_dict(dict(zip(usual.state_dict(), own.state_dict().values(), strict=True)), assign=True)
    images = torch.rand(2, 3, 64, 64).double()
    with torch.no_grad():
        assert torch.allclose(own.double()(images), usual.eval().double()(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", [VGG16BN, ResNet18])
@pytest.mark.parametrize("size", [28, 40])
def test_any_size_of_image(architecture, size):
    model = architecture((3, size, size), 7).eval()
    with torch.no_grad():
        assert model(torch.rand(2, 3, size, size)).shape == (2, 7)
    assert model.head.in_features == 512


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("architecture", [*PHOTOGRAPHS, *BY_NAME])
@pytest.mark.parametrize("side", [32, 64])
def test_logits(architecture, side):
    shape, images = (3, side, side), torch.rand(2, 3, side, side)
    with seeded(0, "test"):
        model = architecture(shape=shape, classes=7)
    assert all(part.training for part in model.modules())
    model.eval()
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (2, 7)
        assert torch.equal(logits, model(images))
    with seeded(0, "test"):
        again = architecture(shape=shape, classes=7)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("architecture", [*PHOTOGRAPHS, *BY_NAME])
@pytest.mark.parametrize("side", [32, 64])
def test_pixels_are_normalised_inside(architecture, side):
    model = architecture(shape=(3, side, side), classes=4)
    layer = next(part for part in model.modules() if isinstance(part, Standardize))
    taken = []
    layer.register_forward_hook(lambda _, given, made: taken.append((given[0], made)))
    images = torch.rand(2, 3, side, side)
    model.eval()(images)
    given, made = taken[0]
    assert torch.equal(given, images)
    usual = IMAGENET_MEAN if side >= 64 or isinstance(model, Torchvision) else CIFAR_MEAN
    assert layer.mean.flatten().tolist() == pytest.approx(usual)
    assert torch.allclose(made * layer.std + layer.mean, images, atol=1e-6)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("architecture", [*PHOTOGRAPHS, *BY_NAME])
def test_the_last_layer_is_as_the_closed_form_takes_it(architecture):
    """The gradients of the logits with respect to its weights are orthogonal, and of one length."""
    model = architecture(shape=(3, 32, 32), classes=4).eval()
    logits = model(torch.rand(1, 3, 32, 32))[0]
    rows = [torch.autograd.grad(z, model.head.weight, retain_graph=True)[0].flatten() for z in logits]
    inner = torch.stack(rows) @ torch.stack(rows).T
    assert inner[0, 0] > 0
    assert torch.allclose(inner, inner[0, 0] * torch.eye(4), rtol=1e-4)


def test_fast_resnet_takes_few_multiply_adds():
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = FastResNet((3, 32, 32), 10).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 32, 32))
    assert counter.get_total_flops() / 2 <= 1e8


def test_fast_resnet_takes_no_image_too_small():
    assert FastResNet((1, 9, 9), 3).eval()(torch.rand(2, 1, 9, 9)).shape == (2, 3)
    with pytest.raises(MadError, match=r"^fast_resnet takes images of at least 9 x 9, got 9 x 8$"):
        FastResNet((1, 9, 8), 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VGG16BN((3, 32, 32), 5, weights="cifar"), r"^weights must be one of imagenet, got 'cifar'$"),
        (lambda: ResNet18((1, 32, 32), 5, weights="imagenet"), r"^weights=imagenet takes images of 3 channels, got 1"),
        (
            lambda: Torchvision((3, 32, 32), 5, "resnet81"),
            r"^architecture=torchvision architecture.name=resnet81: no such model \(did you mean resnet18.*list_models",
        ),
        (
            lambda: Torchvision((3, 32, 32), 5, None),
            r"architecture.name=None: no such model, as there are alexnet, .*list_models",
        ),
        (
            lambda: Torchvision((1, 32, 32), 5, "resnet18"),
            r"^architecture=torchvision architecture.name=resnet18 takes no images of \(1, 32, 32\) \(.*\)",
        ),
        (lambda: Torchvision((3, 32, 32), 5, "alexnet"), r"alexnet takes no images of \(3, 32, 32\) \(.*\)"),
    ],
)
def test_what_cannot_be_built_is_one_line(fetched, make, message):
    with pytest.raises(MadError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert not fetched


def test_timm_by_name():
    pytest.importorskip("timm")
    model = Timm((1, 32, 32), 5, "resnet10t").eval()
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 5)
    assert model.head.out_features == 5
    with pytest.raises(MadError, match=r"no such model \(did you mean resnet18 or .*\); timm.list_models"):
        Timm((3, 32, 32), 5, "resnet188")
    with pytest.raises(MadError, match=r"^architecture=timm .*resnet18.odd cannot be built: "):
        Timm((3, 32, 32), 5, "resnet18.odd")
    with pytest.raises(MadError, match=r"takes no images of \(3, 32, 32\) \(.*224.*\)"):
        Timm((3, 32, 32), 5, "vit_tiny_patch16_224")


def test_a_missing_timm_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MadError, match=r"^architecture=timm needs timm: pip install 'mad\[timm\]'$"):
        Timm((3, 32, 32), 5, "resnet18")


def test_an_architecture_without_weights_is_named_as_ever():
    assert describe(partial(VGG16BN, weights=None)) == describe(partial(VGG16BN))
    assert describe(partial(VGG16BN, weights="imagenet")) != describe(partial(VGG16BN))
    assert name_of(partial(VGG16BN, weights="imagenet")) == "vgg16bn"
    assert name_of(partial(Torchvision, name="resnet18")) == "torchvision resnet18"


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


@pytest.mark.parametrize("make", [VGG16BN, ResNet18, FastResNet])
def test_a_few_steps_learn_a_few_images(make):
    torch.manual_seed(0)
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8) % 4
    model = make((3, 32, 32), 4)
    before = [weight.clone() for weight in model.parameters()]
    recipe = trainer(epochs=12, batch_size=8, learning_rate=0.02)
    recipe.fit(model, images, labels, seed=0, device=CPU, task="few")
    assert all((weight != old).any() for weight, old in zip(model.parameters(), before, strict=True))
    model.train()
    assert torch.equal(model(images).argmax(dim=1), labels)
