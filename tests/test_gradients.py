"""Theta of all layers against its definition: one backward pass an image and class, in float64."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
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


def twice(self, x):
    return self.head(torch.tanh(self.middle(torch.tanh(self.middle(x.flatten(1))))))


def tied(self, x):
    h = torch.tanh(self.first(x.flatten(1)))
    return self.head(F.linear(h, self.first.weight.T))


def residual(self, x):
    out = self.norm(self.first(x))
    out += x
    out.relu_()
    return self.head(self.second(out).relu_().flatten(1))


def dead_branch(self, x):
    self.middle(x.flatten(1))
    return self.head(torch.tanh(self.middle(x.flatten(1))))


def changed_after(self, x):
    x = x * 2
    out = self.first(x)
    x.mul_(3)
    return self.head((out + x).flatten(1))


def rows_first(self, x):
    """Hand the layer (T, B, I), T as many as the second chunk's images."""
    return self.head(torch.tanh(self.first(x.flatten(2).transpose(0, 1))).transpose(0, 1).flatten(1))


def all_rows(self, x):
    return self.head(torch.tanh(self.first(x.reshape(-1, 2))).reshape(len(x), -1))


def called_in_vain(self, x):
    self.first(x.flatten(1))
    return self.head(torch.tanh(F.linear(x.flatten(1), self.first.weight)))


def scaled(self, x):
    return self.head(x.flatten(1)) * self.scale


def scaled_by_layer(self, x):
    return self.head(x.flatten(1)) * self.head.scale


def by_name(self, x):
    return self.head(self.first(input=x).flatten(1))


def shared():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4))
    net[3].weight = net[1].weight
    return net


def weight_normed():
    return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(12, 6)), nn.Linear(6, 4))


def scaling():
    net = Net(scaled, head=nn.Linear(12, 4))
    net.scale = nn.Parameter(torch.rand(4))
    return net


def scaling_layer():
    net = Net(scaled_by_layer, head=nn.Linear(12, 4))
    net.head.scale = nn.Parameter(torch.rand(4))
    return net


def hooked():
    net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 4))
    net[0].register_forward_pre_hook(lambda layer, taken: (taken[0] + 1,))
    net[0].register_forward_hook(lambda layer, taken, output: torch.tanh(output))
    return net


class Halving(nn.Linear):
    """A layer that is no linear layer, whatever it inherits."""

    def forward(self, taken):
        return super().forward(taken) / 2


def conv(*arguments, **named):
    return nn.Conv2d(3, 3, *arguments, **named)


def sequence(*layers):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 4))


EVEN = {"kernel_size": 2, "padding": "same"}
NETS = {
    "linear_without_bias": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False)), ()),
    "linear_of_rows": (lambda: sequence(nn.Linear(2, 2), nn.Tanh()), ()),
    "wide_linear_of_rows": (lambda: nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Flatten(), nn.Linear(300, 4)), ()),
    "groups_of_few_places": (
        lambda: sequence(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 2, padding=(0, 1), groups=2), nn.Tanh()),
        (),
    ),
    "inplace_relu": (lambda: sequence(conv(3, padding=1), nn.ReLU(inplace=True)), ()),
    "batch_norm_without_weights": (lambda: sequence(conv(1), nn.BatchNorm2d(3, affine=False), nn.Tanh()), ()),
    "batch_norm_before_any_weight": (lambda: sequence(nn.BatchNorm2d(3, affine=False)), ()),
    "batch_norm_of_vectors": (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 4)), ()),
    "batch_norm_of_rows": (lambda: sequence(nn.Flatten(2), nn.BatchNorm1d(3), nn.Tanh()), ()),
    "residual_inplace": (
        lambda: Net(residual, first=conv(3, padding=1), norm=nn.BatchNorm2d(3), second=conv(1), head=nn.Linear(12, 4)),
        (),
    ),
    "hooks_of_its_own": (hooked, ()),
    "unused": (lambda: Net(lambda self, x: self.head(x.flatten(1)), idle=conv(1), head=nn.Linear(12, 4)), ()),
    "shared_weight": (shared, {"1.weight", "1.bias", "3.bias"}),
    "weight_used_outside": (
        lambda: Net(tied, first=nn.Linear(12, 5), head=nn.Linear(12, 4)),
        {"first.weight", "first.bias"},
    ),
    "called_twice": (
        lambda: Net(twice, middle=nn.Linear(12, 12), head=nn.Linear(12, 4)),
        {"middle.weight", "middle.bias"},
    ),
    "called_twice_used_once": (
        lambda: Net(dead_branch, middle=nn.Linear(12, 12), head=nn.Linear(12, 4)),
        {"middle.weight", "middle.bias"},
    ),
    "called_by_name": (lambda: Net(by_name, first=conv(1), head=nn.Linear(12, 4)), {"first.weight", "first.bias"}),
    "input_changed_after": (
        lambda: Net(changed_after, first=conv(**EVEN), head=nn.Linear(12, 4)),
        {"first.weight", "first.bias"},
    ),
    "layer_norm": (lambda: sequence(conv(1), nn.LayerNorm([2, 2])), {"1.weight", "1.bias"}),
    "prelu": (lambda: sequence(conv(1), nn.PReLU()), {"1.weight"}),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 2, 2), nn.Flatten(), nn.Linear(18, 4)),
        {"0.weight", "0.bias"},
    ),
    "images_on_the_second_axis": (
        lambda: Net(rows_first, first=nn.Linear(4, 5), head=nn.Linear(15, 4)),
        {"first.weight", "first.bias"},
    ),
    "images_in_one_axis_with_rows": (
        lambda: Net(all_rows, first=nn.Linear(2, 5), head=nn.Linear(30, 4)),
        {"first.weight", "first.bias"},
    ),
    "called_in_vain": (
        lambda: Net(called_in_vain, first=nn.Linear(12, 5, bias=False), head=nn.Linear(5, 4)),
        {"first.weight"},
    ),
    "parameter_of_a_net": (scaling, {"scale"}),
    "further_parameter_of_a_layer": (scaling_layer, {"head.weight", "head.bias", "head.scale"}),
    "weight_norm": (
        weight_normed,
        {f"1.{name}" for name in ("bias", "parametrizations.weight.original0", "parametrizations.weight.original1")},
    ),
    "subclass": (lambda: nn.Sequential(nn.Flatten(), Halving(12, 4)), {"1.weight", "1.bias"}),
    "one_class": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 1)), ()),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'", "ignore:There is a performance drop")
@pytest.mark.parametrize("name", NETS)
def test_theta_of_any_net(name):
    make, without_closed_form = NETS[name]
    check(make(), draw(4, 3, 2, 2), without_closed_form)


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
