"""The scores of one cell, on the victim's own test split."""

from __future__ import annotations

import torch
from torch import nn

from mad import simplex
from mad.api import BATCH, BlackBox
from mad.datasets import Images, Split, batch_limit, batches, to_unit_range
from mad.errors import MadError
from mad.training import answering, logits_of


def utility(api: BlackBox, test: Split, undefended: nn.Module | None, device: torch.device) -> dict[str, float]:
    """Return what honest users get: accuracies in [0, 1], with and without the defense, and L1 in [0, 2].

    The L1 distance is that of each answer from the served model's posterior; ``answer_entropy`` is the answers' mean
    entropy in bits.

    Args:
        api: the defended API.
        test: the victim's test split.
        undefended: the victim, where a defense that acts at training time serves another model; else None.
        device: where the victim lies.
    """
    size = batch_limit(BATCH, api.shape)
    both = [api.answer(to_unit_range(some)) for some in batches(test.images, None, size, torch.device("cpu"))]
    clean, defended = (torch.cat(part) for part in zip(*both, strict=True))
    distance = simplex.l1(clean, defended)
    before = clean.argmax(dim=1) if undefended is None else top(undefended, "the victim", test.images, device)
    return {
        "victim_accuracy": accuracy(before, test.labels),
        "defended_accuracy": accuracy(defended.argmax(dim=1), test.labels),
        "l1_mean": distance.mean().item(),
        "l1_max": distance.max().item(),
        "answer_entropy": simplex.entropy_in_bits(defended).mean().item(),
    }


def theft(stolen: nn.Module, model: nn.Module, test: Split, device: torch.device) -> dict[str, float]:
    """Return the stolen accuracy, and the fidelity: how often it agrees with the undefended victim; in [0, 1].

    Raises:
        MadError: if either answers with no posterior: the share of class 0 would pass for an accuracy.
    """
    theirs = top(stolen, "the stolen network", test.images, device)
    ours = top(model, "the victim", test.images, device)
    return {"stolen_accuracy": accuracy(theirs, test.labels), "agreement": accuracy(theirs, ours)}


def top(network: nn.Module, name: str, images: Images, device: torch.device) -> torch.Tensor:
    """Return the class (N,) that a network answers each image with.

    Raises:
        MadError: if a logit is NaN or +inf.
    """
    logits = logits_of(network, images, device)
    if not answering(logits):
        raise MadError(f"{name} answers with NaN or infinities: its training diverged; lower its learning_rate")
    return logits.argmax(dim=1)


def accuracy(predictions: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of equal entries of two (N,) tensors."""
    return (predictions == labels).double().mean().item()
