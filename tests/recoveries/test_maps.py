"""Recoveries that look at one answer at a time."""

import pytest
import torch

from mad.errors import MadError
from mad.recoveries.confidence import Confidence
from mad.recoveries.sharpen import Sharpen
from mad.simplex import are_posteriors
from mad.testing import KINDS, posteriors


def answers(classes):
    return torch.cat([posteriors(kind, classes) for kind in KINDS])


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("power", [0.5, 1, 2, 7.5])
def test_sharpened_is_the_power_rescaled(classes, power):
    given = answers(classes)
    found = Sharpen(power)(given)
    for row, answer in zip(found.tolist(), given.tolist(), strict=True):
        raised = [each**power for each in answer]
        assert row == pytest.approx([each / sum(raised) for each in raised], abs=1e-6)
    assert found.dtype == given.dtype


def test_no_power_underflows():
    tiny = torch.tensor([[1e-30, 1 - 1e-7, 1e-7], [1 / 3, 1 / 3, 1 / 3]])
    found = Sharpen(1000)(tiny)
    assert are_posteriors(found)
    assert found[0].tolist() == pytest.approx([0, 1, 0])
    assert are_posteriors(Sharpen(0.001)(tiny))


@pytest.mark.parametrize("power", [0, -1, float("nan"), "much", True])
def test_a_power_that_is_none_is_refused(power):
    with pytest.raises(MadError, match=r"recovery\.power"):
        Sharpen(power)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_confidence_keeps_the_top_class_and_shares_the_rest(classes):
    given = answers(classes)
    for row, answer in zip(Confidence()(given).tolist(), given.tolist(), strict=True):
        top = answer.index(max(answer))
        rest = (1 - max(answer)) / (classes - 1)
        assert row == pytest.approx([max(answer) if k == top else rest for k in range(classes)], abs=1e-6)


def test_confidence_of_an_answer_that_rounding_made_too_large():
    assert are_posteriors(Confidence()(torch.tensor([[1.00001, 0.0, 0.0]])))
