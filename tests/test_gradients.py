"""Theta of all layers against its definition: one backward pass an image and class, in float64."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from theta_nets import Net, agree, check, conv, draw, drawn, sequence, slow_theta
from torch import nn

from mad import gradients
from mad.architectures import vgg
from mad.architectures.fast_resnet import FastResNet
from mad.architectures.lenet import LeNet
from mad.architectures.library import Torchvision
from mad.architectures.resnet import ResNet18, ResNet50
from mad.architectures.vgg import VGG16BN
from mad.errors import MadError
from mad.gradients import theta


@pytest.mark.parametrize(
    ("architecture", "shape", "classes", "images"),
    [
        (LeNet, (1, 28, 28), 10, 3),
        (VGG16BN, (3, 32, 32), 3, 1),
        (VGG16BN, (3, 64, 64), 3, 1),
        (ResNet18, (3, 32, 32), 3, 1),
        (ResNet18, (3, 64, 64), 3, 1),
        (ResNet50, (3, 16, 16), 2, 1),
        (FastResNet, (3, 32, 32), 3, 2),
        (partial(Torchvision, name="mobilenet_v3_small"), (3, 32, 32), 3, 2),
    ],
)
def test_theta_of_an_architecture(monkeypatch, architecture, shape, classes, images):
    monkeypatch.setattr(vgg, "HIDDEN", 16)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        check(architecture(shape, classes), draw(images, *shape))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=40)
@given(data=st.data())
def test_theta_of_any_convolution(data):
    def whole(low, high):
        return data.draw(st.integers(low, high))

    groups, padding = whole(1, 3), data.draw(st.sampled_from([(0, 0), (1, 0), (0, 2), "same", "valid"]))
    layer = nn.Conv2d(
        groups * whole(1, 3),
        groups * whole(1, 3),
        kernel_size=(whole(1, 3), whole(1, 4)),
        stride=1 if padding == "same" else (whole(1, 2), whole(1, 3)),
        padding=padding,
        dilation=(whole(1, 2), whole(1, 2)),
        groups=groups,
        bias=data.draw(st.booleans()),
        padding_mode=data.draw(st.sampled_from(["zeros", "circular", "reflect"])),
    )
    pooled = nn.Sequential(layer, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    check(nn.Sequential(*pooled, nn.Linear(4 * layer.out_channels, whole(2, 5))), draw(2, layer.in_channels, 9, 10))


def test_the_cheaper_side_is_taken():
    convolutions = [layer for layer in LeNet((1, 28, 28), 10).trunk if isinstance(layer, nn.Conv2d)]
    first = gradients._conv2d(convolutions[0], torch.rand(2, 1, 28, 28), 10)
    second = gradients._conv2d(convolutions[1], torch.rand(2, 20, 12, 12), 10)
    assert first.gram is None
    assert second.gram.shape == (2, 1, 64, 64)


@pytest.mark.parametrize(("floats", "sizes"), [(1, [1] * 11), (600, [1, 4, 4, 2]), (10**9, [1, 10])])
@pytest.mark.parametrize("layer", [nn.PReLU, nn.Tanh])
def test_chunks_change_nothing(monkeypatch, layer, floats, sizes):
    model, images = drawn(sequence(conv(3, padding=1), layer())), draw(11, 3, 2, 2)
    together = theta(model, images)
    chunk, seen = gradients._chunk, []
    monkeypatch.setattr(gradients, "FLOATS", floats)
    monkeypatch.setattr(gradients, "_chunk", lambda *given: seen.append(len(given[1])) or chunk(*given))
    apart = theta(model, images)
    assert seen == sizes
    for one, other in zip(apart, together, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_a_jacobian_counts_as_memory():
    shape, few = (3, 2, 2), nn.Sequential(nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 4))
    many = nn.Sequential(nn.Flatten(), nn.LayerNorm(12, elementwise_affine=False), nn.Linear(12, 4))
    floats = [gradients._chunk(drawn(model), draw(1, *shape), set())[2] for model in (few, many)]
    assert floats[0] - floats[1] == 4 * 24


def test_channels_last_and_float32():
    model, images = drawn(ResNet18((3, 8, 8), 4)), draw(2, 3, 8, 8)
    logits, products = theta(model, images)
    model.float().to(memory_format=torch.channels_last)
    fast = theta(model, images.float().contiguous(memory_format=torch.channels_last))
    assert [part.dtype for part in fast] == [torch.float32] * 2
    assert torch.allclose(fast[0].double(), logits, rtol=1e-4, atol=1e-5)
    assert (fast[1] - products).abs().max() <= 1e-4 * products.abs().max()


class Sorting(nn.Module):
    """Sends each image to one of two networks, by its pixels."""

    def __init__(self):
        super().__init__()
        self.bright, self.dark = (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)) for _ in "ab"
        )

    def forward(self, images):
        bright = images[:, 0, 0, 0] > 0.5
        order = bright.int().argsort(stable=True)
        dark, light = images[order].split([int((~bright).sum()), int(bright.sum())])
        return torch.cat([self.dark(dark), self.bright(light)])[order.argsort()]


def test_theta_of_a_network_that_sends_images_different_ways():
    model, images = drawn(Sorting()), draw(7, 1, 5, 5)
    assert 0 < (images[:, 0, 0, 0] > 0.5).sum() < 7
    assert agree(theta(model, images)[1], slow_theta(model, images))


def test_theta_is_symmetric_and_positive():
    products = theta(drawn(LeNet((1, 16, 16), 6)), draw(3, 1, 16, 16))[1]
    assert torch.allclose(products, products.mT, rtol=1e-10)
    assert torch.linalg.eigvalsh(products).min() > 0


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_the_model_and_its_surroundings_stay_as_they_are(frozen, grad):
    model, images = drawn(sequence(conv(3, padding=1), nn.BatchNorm2d(3), nn.PReLU())), draw(3, 3, 2, 2)
    slow = slow_theta(model, images)
    model.requires_grad_(not frozen)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objects = dict(model.named_parameters())
    with torch.set_grad_enabled(grad):
        logits, products = theta(model, images)
        assert torch.is_grad_enabled() is grad
    assert agree(products, slow)
    assert not logits.requires_grad
    assert not products.requires_grad
    assert not images.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, value in model.named_parameters():
        assert value is objects[name]
        assert value.grad is None
        assert value.requires_grad is not frozen
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_go_when_the_model_fails():
    def fail(self, images):
        self.head(images.flatten(1))
        raise ValueError("on purpose")

    model = drawn(Net(fail, head=nn.Linear(12, 4)))
    with pytest.raises(ValueError, match="on purpose"):
        theta(model, draw(1, 3, 2, 2))
    assert not model.head._forward_hooks


@pytest.mark.parametrize(
    ("model", "images", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).train(), 2, "eval mode"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval()).eval().append(nn.Dropout()), 2, "eval mode"),
        (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)).eval(), 2, "running statistics"),
        (nn.Sequential(nn.Linear(2, 2)).eval(), 2, r"logits \(1, K\), got \(1, 3, 2, 2\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval(), 0, "at least one image"),
    ],
    ids=["train", "part_in_train", "batch_statistics", "no_logits", "no_images"],
)
def test_refusals(model, images, message):
    with pytest.raises(MadError, match=message):
        theta(model, torch.rand(images, 3, 2, 2))


class Parts(nn.Module):
    """A forward pass that lets other threads in, with a scale that has no closed form if ``scaled``."""

    def __init__(self, scaled):
        super().__init__()
        self.body, self.head = nn.Linear(12, 6), nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.rand(4)) if scaled else 1

    def forward(self, images):
        hidden = torch.relu(self.body(images.flatten(1)))
        time.sleep(0.001)
        return self.head(hidden) * self.scale


@pytest.mark.parametrize("scaled", [False, True])
def test_threads_that_share_a_network_get_the_serial_answers(scaled):
    model = drawn(Parts(scaled))
    images = [draw(24, 3, 2, 2)[place : place + 2] for place in range(16)]
    serial = [theta(model, some) for some in images]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda some: theta(model, some), images))
    for mine, theirs in zip(found, serial, strict=True):
        assert all(map(torch.equal, mine, theirs))
    assert not any(module._forward_hooks for module in model.modules())


def test_another_threads_forward_pass_is_not_recorded(monkeypatch):
    """One that runs while the layers are watched, as the API's own does: no layer then looks used twice."""
    model, first, rest = drawn(Parts(scaled=False)), draw(2, 3, 2, 2), []
    want = theta(model, first)
    call = gradients.functional_call

    def beside(*arguments):
        other = threading.Thread(target=model, args=(first,))
        other.start()
        other.join()
        return call(*arguments)

    monkeypatch.setattr(gradients, "functional_call", beside)
    monkeypatch.setattr(gradients, "_rest", lambda *_: rest.append(1) or 0)
    assert all(map(torch.equal, theta(model, first), want))
    assert rest == []
