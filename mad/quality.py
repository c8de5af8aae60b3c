"""What answers are worth to honest users beyond their top class: calibration, likelihood, ranking, selection.

The scores are those of scikit-learn.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

BINS = 15  # of the calibration error
MANY = 10  # more classes than these have a top-5 accuracy
KEPT = 0.5  # share of the images, the most confident ones, in selective_accuracy
LEAST = 1e-7  # a probability below it counts as this in the likelihood


def quality(answers: Tensor, clean: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Return scores of answers to the test images, in the columns of a record.

    Args:
        answers: the API's answers, posteriors (N, K).
        clean: the posteriors without a defense (N, K).
        labels: the true classes, int64 (N,).

    Returns:
        ``nll``, the mean negative log-likelihood in nats, with probabilities of at least 1e-7; ``brier``, the mean
        squared distance to the one-hot label, in [0, 2]; ``ece``, the expected calibration error of the top class, in
        [0, 1], over 15 equal bins; ``top5_accuracy``, None for ten classes or fewer; ``selective_accuracy``, the
        accuracy on the half with the largest top probabilities; ``ranking``, the mean rank correlation (Spearman) of
        the classes between answer and clean posterior, in [-1, 1], over answers that rank at all. Where equal
        probabilities leave open which classes or images count, the expectation over a fair draw among them is taken.
    """
    from sklearn.metrics import brier_score_loss, log_loss

    shares, truth, classes = normalized(answers), labels.numpy(), np.arange(answers.shape[1])
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == truth
    return {
        "nll": float(log_loss(truth, normalized(answers.clamp(min=LEAST)), labels=classes)),
        "brier": float(brier_score_loss(truth, shares, labels=classes, scale_by_half=False)),
        "ece": calibration_error(confidence, right),
        "top5_accuracy": top_accuracy(shares, truth, 5) if len(classes) > MANY else None,
        "selective_accuracy": selective_accuracy(confidence, right),
        "ranking": ranking(answers, clean),
    }


def normalized(posteriors: Tensor) -> np.ndarray:
    """Return posteriors (N, K) as float64 rows that sum to one."""
    rows = posteriors.double()
    return np.asarray(rows / rows.sum(dim=1, keepdim=True))


def top_accuracy(shares: np.ndarray, truth: np.ndarray, count: int) -> float:
    """Return how often the label is among the ``count`` largest probabilities.

    If only some of the classes with the label's probability are among them, the label is with a chance of their share.
    """
    own = shares[np.arange(len(truth)), truth][:, None]
    above, tied = (shares > own).sum(axis=1), (shares == own).sum(axis=1)
    return float(((count - above) / tied).clip(0, 1).mean())


def selective_accuracy(confidence: np.ndarray, right: np.ndarray) -> float:
    """Return the accuracy on the share ``KEPT`` of the images that has the largest top probabilities.

    If only some of the images with the least of these are among them, these count with the mean accuracy of all such.
    """
    kept = max(1, round(KEPT * len(right)))
    least = np.partition(confidence, -kept)[-kept]
    above, tied = confidence > least, confidence == least
    return float((right[above].sum() + (kept - above.sum()) * right[tied].sum() / tied.sum()) / kept)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error: the mean distance of accuracy and confidence, bin by bin."""
    from sklearn.calibration import calibration_curve

    accuracy, mean = calibration_curve(right, confidence, n_bins=BINS)
    edges = np.linspace(0, 1, BINS + 1)
    counts = np.bincount(np.searchsorted(edges[1:-1], confidence), minlength=BINS)
    return float(np.average(np.abs(accuracy - mean), weights=counts[counts > 0]))


def ranking(answers: Tensor, clean: Tensor) -> float | None:
    """Return the mean Spearman correlation between the rows of two (N, K) tensors; None if no pair of rows has one.

    Equal probabilities share their mean rank. A row whose entries are all equal ranks nothing and is left out.
    """
    from scipy.stats import rankdata

    first, second = (rankdata(each.numpy(), axis=1) for each in (answers, clean))
    first, second = (each - each.mean(axis=1, keepdims=True) for each in (first, second))
    length = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    told = length > 0
    return float(((first * second).sum(axis=1)[told] / length[told]).mean()) if told.any() else None


def outlier_auroc(own: Tensor, outliers: Tensor) -> float | None:
    """Return how well an answer's top probability tells the victim's test images from others, as an AUROC in [0, 1].

    Args:
        own: answers to test images (N, K).
        outliers: answers to other images (M, K); without any there is no AUROC, and None is returned.
    """
    from sklearn.metrics import roc_auc_score

    if not len(outliers):
        return None
    confidence = torch.cat([own, outliers]).amax(dim=1).numpy()
    with warnings.catch_warnings():
        return float(roc_auc_score(np.repeat([1, 0], [len(own), len(outliers)]), confidence))
