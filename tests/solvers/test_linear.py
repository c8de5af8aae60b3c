"""The greedy answer to a linear objective, beside a linear program."""

import numpy as np
import pytest
import torch
from toys import program

from mad import simplex, solvers


def posteriors(count=6, classes=4, seed=1):
    return torch.softmax(3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)), dim=1)


KINDS = ("dirichlet", "one_hot", "uniform", "tied")


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 2.0])
def test_the_greedy_answer_is_a_linear_programs(classes, kind, epsilon):
    draw = np.random.default_rng(classes)
    y = draw.dirichlet(np.full(classes, 0.3), size=4)
    y = {"one_hot": np.eye(classes)[[0, 1, 1, 0]], "uniform": np.full((4, classes), 1 / classes)}.get(kind, y)
    scores = np.round(draw.normal(size=(4, classes)), 0 if kind == "tied" else 9)
    q = solvers.linear(torch.from_numpy(y), torch.from_numpy(scores), epsilon)
    assert (q >= 0).all()
    assert torch.allclose(q.sum(dim=1), torch.ones(4).double())
    assert simplex.l1(q, torch.from_numpy(y)).max() <= epsilon + 1e-9
    for row in range(4):
        assert abs(float(scores[row] @ q[row].numpy()) - program(scores[row], y[row], epsilon)) < 3e-6  # HiGHS's own


def test_the_greedy_answer_does_not_change_its_arguments():
    y, scores = posteriors(), torch.randn(6, 4)
    before = y.clone(), scores.clone()
    solvers.linear(y, scores, 0.7)
    assert torch.equal(y, before[0])
    assert torch.equal(scores, before[1])
