"""Posteriors, and defenses that are ready for them."""

import torch
from hypothesis import strategies as st
from torch import nn
from toys import CPU, Blobs, victim

from mad.defenses import Context

IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def posteriors(classes=10, rows=40):
    """From nearly one-hot to nearly uniform."""
    logits = torch.randn(rows, classes, generator=torch.Generator().manual_seed(1))
    return torch.softmax(logits * torch.linspace(0.1, 12, rows).unsqueeze(1), dim=1)


def ready(defense, dataset="blobs", seed=0):
    return defense.prepared(Context(victim(dataset=Blobs(10, name=dataset)), nn.Identity(), seed, CPU))


def rows_of(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@st.composite
def rows(draw):
    """A posterior of 2 to 12 classes, with zeros, ties and near ties."""
    masses = draw(
        st.lists(st.sampled_from([0, 1e-9, 1e-4, 0.3, 0.3 + 1e-7, 0.5, 1, 1 - 1e-7]), min_size=2, max_size=12)
    )
    masses[draw(st.integers(0, len(masses) - 1))] += draw(st.floats(1e-3, 100))
    total = torch.tensor(masses)
    return (total / total.sum()).unsqueeze(0)
