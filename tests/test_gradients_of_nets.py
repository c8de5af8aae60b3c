"""Theta of networks that use their layers in unusual ways, against its definition."""

import pytest
import torch
import torch.nn.functional as F
from theta_nets import Net, check, conv, draw, sequence
from torch import nn


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
