"""What DP-SGD refuses, in one line."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import Tiny, cell, victim

from mad.defenses import Undefended
from mad.defenses.dp_sgd import DpSgd
from mad.errors import MadError


class OddNorm(nn.BatchNorm2d):
    """Not one that Opacus knows."""


class Odd(Tiny):
    """One linear layer, behind a norm."""

    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.norm = OddNorm(shape[0])

    def forward(self, images):
        return super().forward(self.norm(images))


class Untouched(Tiny):
    """A layer whose weights are used behind its back."""

    def forward(self, images):
        return images.flatten(1) @ self.head.weight.T


class Overwritten(Tiny):
    """What a layer gave is added to in place."""

    def forward(self, images):
        logits = super().forward(images)
        logits += 1
        return logits


@pytest.mark.parametrize(
    ("architecture", "why"), [(Odd, "no group norm"), (Untouched, "_norm_sample"), (Overwritten, "modified inplace")]
)
def test_what_opacus_cannot_train_is_refused_in_one_line(architecture, why):
    with pytest.raises(MadError, match=rf"^defense=dp_sgd cannot train {architecture.__name__.lower()} \(.*{why}.*18$"):
        cell(defense=DpSgd(), victim=victim(architecture=architecture))


class Dropping(Tiny):
    """Some pixels are left out at random."""

    def forward(self, images):
        return super().forward(F.dropout(images, training=self.training))


def test_a_check_leaves_the_global_generator():
    before = torch.get_rng_state()
    DpSgd().check(victim(architecture=Dropping))
    assert torch.equal(before, torch.get_rng_state())


def test_a_missing_opacus_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(MadError, match=r"^defense=dp_sgd needs Opacus: pip install 'mad\[dp\]'$"):
        cell(defense=DpSgd())


def test_there_is_no_l1_budget():
    with pytest.raises(MadError, match=r"no L1 budget.*noise_multiplier"):
        DpSgd(0.5)
    assert cell(defense=DpSgd(0)).defense == Undefended()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_multiplier", 0),
        ("noise_multiplier", -1),
        ("max_grad_norm", 0),
        ("delta", 0),
        ("delta", 1),
        ("batch_size", 0),
        ("epochs", 0.5),
        ("min_steps", -1),
        ("learning_rate", 0),
    ],
)
def test_a_bad_setting_is_refused_by_name(name, value):
    with pytest.raises(MadError, match=name):
        DpSgd(**{name: value})
