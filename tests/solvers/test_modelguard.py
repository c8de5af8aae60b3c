"""ModelGuard-W's linear program against a general solver."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from mad import simplex, solvers
from mad.solvers.modelguard import MARGIN, OFFSET

EPSILONS = (0.1, 0.5, 1.0, 1.5, 2.0)


def program(y, epsilon, margin=MARGIN):
    """The least sum_i log(y_i + 1e-6) q_i, by HiGHS, with one variable for each |q_i - y_i|."""
    classes, top = len(y), int(np.argmax(y))
    one, none = np.eye(classes), np.zeros((classes, classes))
    lead = np.delete(one - one[top], top, axis=0)  # q_j - q_top
    above = np.block([[one, -one], [-one, -one], [np.zeros(classes), np.ones(classes)], [lead, none[1:]]])
    margin = min(margin, epsilon / (2 * classes))
    below = np.concatenate([y, -y, [epsilon], np.full(classes - 1, -margin)])
    total = np.concatenate([np.ones(classes), np.zeros(classes)])
    cost = np.concatenate([np.log(y + OFFSET), np.zeros(classes)])
    exact = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    found = linprog(cost, above, below, total[None], [y.sum()], [(0, None)] * (2 * classes), "highs", options=exact)
    assert found.status == 0, found.message
    return found.fun


def drawn(classes, each, seed=0):
    """Random posteriors from sure to flat, and degenerate ones: zeros, ties, near ties, one-hot, uniform."""
    random, one = np.random.default_rng(seed), np.eye(classes)
    rows = [random.dirichlet(np.full(classes, flat), each) for flat in (0.05, 0.3, 1, 5, 100)]
    rows += [one[:1], one[-1:], np.full((1, classes), 1 / classes), one[:1] / 2 + one[1:2] / 2]
    counts = random.integers(0, 4, (each, classes)).astype(float)
    counts[np.arange(each), random.integers(classes, size=each)] += 1
    tied = random.dirichlet(np.ones(classes), each)
    tied[np.arange(each), random.integers(classes, size=each)] = tied.max(axis=1) * (1 - 1e-5)
    sparse = random.dirichlet(np.full(classes, 0.3), each)
    sparse[sparse < 0.05] = 0
    sparse[:, 0] += 0.01
    rows += [counts, tied, sparse, 1 + random.uniform(0, 1e-4, (each, classes))]
    rows = np.concatenate(rows)
    return rows / rows.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize(("classes", "each"), [(2, 3), (3, 5), (10, 5), (100, 1)])
def test_it_is_the_optimum_of_the_linear_program(classes, each, epsilon):
    clean = drawn(classes, each)
    y = torch.from_numpy(clean)
    q = solvers.modelguard(y, epsilon)
    found = ((y + OFFSET).log() * q).sum(dim=1).tolist()
    assert found == pytest.approx([program(row, epsilon) for row in clean], abs=1e-9)
    promised(q, y, epsilon)


def promised(q, y, epsilon, off=1e-12):
    assert (q >= -off).all()
    assert torch.allclose(q.sum(dim=1), y.sum(dim=1), rtol=0, atol=off)
    assert (simplex.l1(q, y) <= epsilon + off).all()
    top = y.argmax(dim=1, keepdim=True)
    lead = q.gather(1, top).squeeze(1) - q.scatter(1, top, -1).amax(dim=1)
    assert (lead >= min(MARGIN, epsilon / (2 * y.shape[1])) - off).all()


@pytest.mark.parametrize(("classes", "epsilon"), [(9, 1.5), (11, 1.0)])
def test_a_wide_margin_is_kept_by_classes_that_almost_tie(classes, epsilon):
    """Where the margin is above y's own lead, classes are pressed down although the top class rises."""
    random = np.random.default_rng(1)
    clean = 1 + random.uniform(0, 1, (60, classes)) * random.choice([0.2, 2.0], (60, 1))
    clean /= clean.sum(axis=1, keepdims=True)
    y = torch.from_numpy(clean)
    found = ((y + OFFSET).log() * solvers.modelguard(y, epsilon, 0.2)).sum(dim=1).tolist()
    assert found == pytest.approx([program(row, epsilon, 0.2) for row in clean], abs=1e-9)


MASSES = st.lists(st.sampled_from([0, 1e-30, 1e-9, 1e-4, 0.3, 0.3 + 1e-7, 0.30004, 0.5, 1, 2]), min_size=2, max_size=12)


@given(MASSES.filter(any), st.sampled_from([1e-9, 1e-4, *EPSILONS]))
def test_it_keeps_the_top_class_and_the_budget(masses, epsilon):
    y = torch.tensor([masses], dtype=torch.float64)
    promised(solvers.modelguard(y / y.sum(), epsilon), y / y.sum(), epsilon)


def test_in_single_precision_the_top_class_stays():
    for classes in (2, 10, 100):
        y = torch.from_numpy(drawn(classes, 20)).float()
        q = solvers.modelguard(y, 1.0)
        assert q.dtype == torch.float32
        assert torch.equal(q.argmax(dim=1), y.argmax(dim=1))
        assert simplex.are_posteriors(q, 1e-6)


def test_of_a_sure_answer_the_least_likely_class_gets_as_much_as_the_top_class_keeps():
    y = torch.tensor([[0.97, 0.02, 0.01]], dtype=torch.float64)
    expected = torch.tensor([[0.47, 0.06 + MARGIN, 0.47 - MARGIN]], dtype=torch.float64)
    assert torch.allclose(solvers.modelguard(y, 1.0), expected)


def test_no_answer_depends_on_the_others_of_its_batch():
    y = torch.from_numpy(drawn(10, 20)).float()
    alone = torch.cat([solvers.modelguard(row, 1.0) for row in y.split(1)])
    assert torch.allclose(solvers.modelguard(y, 1.0), alone, rtol=0, atol=1e-6)
