"""How a gate's detector learns: moments of training images, tails and calibration of held-out ones."""

from __future__ import annotations

import torch
from torch import Tensor

from mad.context import Context
from mad.datasets import Images, batch_limit, batches, to_unit_range
from mad.gate.conformal import learned_weights, surprises, tails
from mad.gate.detector import Detector
from mad.gate.shifts import shifts
from mad.gate.taps import Taps
from mad.seeds import generator
from mad.training import EVALUATION_BATCH

FITTED = 30_000  # training images whose moments are taken
SHIFTED = 500  # training images that are shifted, each in every way
TAILS = 1 / 3  # share of the held-out images for the tails and weights; the others calibrate
BANK = 5_000  # honest posteriors that decoys are drawn from
KEPT = 50_000  # calibration images at most


def taken(taps: Taps, images: Images, rows: Tensor | None, device: torch.device) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the network's features, its logits, and the images as floats, of rows of images."""
    size = batch_limit(EVALUATION_BATCH, images.shape[1:])
    found, logits, floats = [], [], []
    for batch in batches(images, rows, size, device):
        each = to_unit_range(batch)
        features, some = taps(each)
        found.append(features)
        logits.append(some)
        floats.append(each)
    return [torch.cat(part) for part in zip(*found, strict=True)], torch.cat(logits), torch.cat(floats)


@torch.no_grad()
def learn(detector: Detector, taps: Taps, context: Context, seed: int) -> None:
    """Fit a detector in place.

    Moments come from the training images; tails, weights and calibration from held-out ones, which the victim has not
    learned from: a third for the tails and weights, two thirds, which nothing else looks at, for the calibration.

    Args:
        detector: the detector, whose buffers are filled.
        taps: the taps of the network that is served.
        context: as in ``Defense.prepare``.
        seed: of what is drawn.
    """
    device, classes = context.device, detector.classes
    split, held = context.victim.training_split(), context.victim.validation_split()
    detector.to(device)
    rows = torch.randperm(len(split.labels), generator=generator(seed, "gate's training images"))[:FITTED]
    known, logits, floats = taken(taps, split.images, rows, device)
    labels = split.labels[rows].to(device)
    detector.learn(floats, known, labels, seed)
    shares = logits.argmax(dim=1).bincount(minlength=classes) / len(logits)

    order = torch.randperm(len(held.labels), generator=generator(seed, "gate's held-out images"))
    for_tails = max(2, round(TAILS * len(order)))
    known, logits, floats = taken(taps, held.images, order[:for_tails], device)
    honest = detector.scores(floats, known, logits)
    ordered, start, length = tails(honest)
    detector.hold(ordered=ordered, start=start, length=length)
    source = to_unit_range(next(iter(batches(split.images, rows[:SHIFTED], min(SHIFTED, len(rows)), device))))
    found = []
    for each in shifts(source.cpu(), generator(seed, "gate's shifts")).values():
        known, some, floats = taken(taps, each, None, device)
        found.append(detector(floats, known, some))
    weights = learned_weights(surprises(honest, ordered, start, length).T, torch.cat(found))

    known, some, floats = taken(taps, held.images, order[for_tails:][:KEPT], device)
    posteriors = torch.softmax(torch.cat([logits, some]), dim=1)[-BANK:]
    detector.hold(
        weights=weights,
        surprises=detector(floats, known, some),
        predicted=some.argmax(dim=1),
        shares=shares,
        bank=posteriors,
    )
