"""The scores of one cell on the victim's test split: utility for honest users, accuracy and fidelity of the theft."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import nn

from mad import schema, simplex
from mad.api import BATCH
from mad.datasets import Images, Split, batch_limit, batches, to_unit_range
from mad.deployment import Deployment
from mad.errors import MadError
from mad.quality import outlier_auroc, quality
from mad.training import answering, logits_of
from mad.victim import Victim

HONEST = 100  # images of one request of an honest client
OTHERS = 1000  # of the thief's images, for auroc_pool


def utility(
    deployment: Deployment,
    test: Split,
    undefended: nn.Module | None,
    device: torch.device,
    others: tuple[Images, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Return the utility for honest users: the accuracies, in [0, 1], with and without the defense, and its L1 cost.

    ``l1_mean`` and ``l1_max``, in [0, 2], are over the distances between each answer and the served model's clean
    posterior. ``answer_entropy`` is the mean entropy of the answers in bits. ``auroc_pool`` says how well an honest
    user can tell from an answer's confidence that an image is none of the victim's kind. Further scores are those of
    ``quality``, and the columns of ``Defense.honest_columns`` come along.

    Args:
        deployment: the defended API as it is before any query; each honest client of a ``stateful`` defense makes
            its ``honest_queries``, in a session of its own and in requests of up to ``HONEST`` images.
        test: the victim's test split.
        undefended: the victim, if a defense that acts at training time serves another model; else None.
        device: the device of the victim.
        others: images of another kind, the thief's pool, and the rows of which the first ``OTHERS`` are asked about;
            None for none.

    Raises:
        MadError: if ``undefended`` answers with NaN or infinite logits.
    """
    defense, sessions, both = deployment.defense, [], []
    size = HONEST if defense.stateful else batch_limit(BATCH, deployment.victim.dataset.shape)
    clients = parts(len(test.images), defense.honest_queries) if defense.stateful else [len(test.images)]
    requests = [parts(count, size) for count in clients]
    images = batches(test.images, None, [count for own in requests for count in own], torch.device("cpu"))
    for own in requests:
        sessions.append(deployment.session())
        both += [sessions[-1].answer(to_unit_range(some)) for some in islice(images, len(own))]
    honest = defense.honest_columns([each.defense for each in sessions])
    schema.check(honest, f"defense {defense.name}", defense.schema)
    clean, defended = (torch.cat(part) for part in zip(*both, strict=True))
    distance = simplex.l1(clean, defended)
    asked = [] if others is None else batches(others[0], others[1][:OTHERS], size, torch.device("cpu"))
    unlike = [deployment.session().answer(to_unit_range(some))[1] for some in asked]
    before = clean.argmax(dim=1) if undefended is None else top(undefended, "the victim", test.images, device)
    return {
        "victim_accuracy": accuracy(before, test.labels),
        "defended_accuracy": accuracy(defended.argmax(dim=1), test.labels),
        "l1_mean": distance.mean().item(),
        "l1_max": distance.max().item(),
        "answer_entropy": simplex.entropy_in_bits(defended).mean().item(),
        **quality(defended, clean, test.labels),
        "auroc_pool": outlier_auroc(defended, torch.cat([defended[:0], *unlike])),
    } | {**by_class(deployment.victim, "defended_by_class", defended.argmax(dim=1), test.labels), **honest}


def parts(count: int, most: int) -> list[int]:
    """Return the sizes of the parts of ``count`` things, ``most`` in each but the last."""
    return [min(most, count - start) for start in range(0, count, most)]


def theft(stolen: nn.Module, model: nn.Module, test: Split, device: torch.device, victim: Victim) -> dict[str, Any]:
    """Return the accuracy of the stolen model, and its fidelity (``agreement``), both in [0, 1].

    Fidelity is the share of test images on which the stolen model and the undefended victim have the same top class.

    Raises:
        MadError: if either network answers with NaN or infinities. Its top class would then be class 0, and the share
            of that class would look like an accuracy.
    """
    theirs = top(stolen, "the stolen network", test.images, device)
    ours = top(model, "the victim", test.images, device)
    found = {"stolen_accuracy": accuracy(theirs, test.labels), "agreement": accuracy(theirs, ours)}
    return found | by_class(victim, "stolen_by_class", theirs, test.labels)


def top(network: nn.Module, name: str, images: Images, device: torch.device) -> torch.Tensor:
    """Return a network's top class for each image, int64 (N,).

    Args:
        network: images in [0, 1] to logits (N, K), in eval mode.
        name: names the network in the error.
        images: uint8 or float in [0, 1], (N, C, H, W).
        device: the device of the network.

    Raises:
        MadError: if a logit is NaN or +inf.
    """
    logits = logits_of(network, images, device)
    if not answering(logits):
        raise MadError(f"{name} answers with NaN or infinities: its training diverged; lower its learning_rate")
    return logits.argmax(dim=1)


def by_class(victim: Victim, column: str, predictions: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Return a column: the share of each class's images that are right; nothing if the classes have no names.

    The share is None for a class without images.
    """
    if not hasattr(victim.dataset, "names"):
        return {}
    count = labels.bincount(minlength=victim.dataset.classes)
    right = labels[predictions == labels].bincount(minlength=victim.dataset.classes)
    return {column: [r / n if n else None for r, n in zip(right.tolist(), count.tolist(), strict=True)]}


def accuracy(predictions: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of equal entries of two (N,) tensors."""
    return (predictions == labels).double().mean().item()
