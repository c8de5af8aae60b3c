"""The search over all extreme points that keep the top class, against every vertex of the polytope, one by one."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from test_exact import kinds, queries

from mad import simplex, solvers
from mad.solvers import corners, levels
from mad.solvers.corners import best_corner
from mad.solvers.metric import dot
from mad.solvers.problem import Problem


def halfspaces(y, top, epsilon):
    """Return A and b with A q <= b for all that an answer must keep but that it sums to one; one row a sign pattern."""
    classes = len(y)
    signs = np.array(list(itertools.product((-1, 1), repeat=classes)))
    above = np.eye(classes)[[k for k in range(classes) if k != top]] - np.eye(classes)[top]
    rows = np.concatenate([-np.eye(classes), above, signs])
    return rows, np.concatenate([np.zeros(2 * classes - 1), epsilon + signs @ y])


def vertices(y, top, epsilon):
    """Return every vertex (V, K): the points where K - 1 of the inequalities and the sum hold with equality."""
    classes = len(y)
    rows, bounds = halfspaces(y, top, epsilon)
    chosen = np.array(list(itertools.combinations(range(len(rows)), classes - 1)))
    matrices = np.concatenate([rows[chosen], np.ones((len(chosen), 1, classes))], axis=1)
    values = np.concatenate([bounds[chosen], np.ones((len(chosen), 1))], axis=1)
    real = np.abs(np.linalg.det(matrices)) > 1e-9
    points = np.linalg.solve(matrices[real], values[real][..., None])[..., 0]
    return points[(points @ rows.T <= bounds + 1e-9).all(axis=1)]


def problem_of(y, p, epsilon):
    return Problem(y, p, torch.full_like(y[:, 0], epsilon / 2), None, y.argmax(dim=1))


def acute(y, p, epsilon):
    """Return the rows of which no allowed answer has an obtuse angle."""
    mirrored, obtuse, _ = kinds(y, p, epsilon, None, y.argmax(dim=1))
    return (~mirrored & ~obtuse).nonzero().squeeze(1)


def score(q, y, p):
    v, u = q - p, y - p
    return dot(v, u).clamp(min=0) ** 2 / dot(v, v)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 0.95, 1.5])
@pytest.mark.parametrize(("classes", "concentration", "batch"), [(3, 1.0, 40), (4, 0.5, 30), (4, 3.0, 30), (5, 1.0, 8)])
def test_no_vertex_is_better(classes, concentration, batch, epsilon):
    y, p, _ = queries(classes, concentration, batch)
    rows = acute(y, p, epsilon)
    y, p = y[rows], p[rows]
    q = best_corner(problem_of(y, p, epsilon), y)
    for row in range(len(rows)):
        points = torch.from_numpy(vertices(y[row].numpy(), y[row].argmax().item(), epsilon))
        best = score(points, y[row].expand_as(points), p[row].expand_as(points)).min()
        assert score(q[row : row + 1], y[row : row + 1], p[row : row + 1]).item() <= best + 1e-9
    assert (q >= 0).all()
    assert torch.allclose(q.sum(dim=1), torch.ones(len(q)).double(), atol=1e-6)
    assert (simplex.l1(q, y) <= epsilon + 1e-5).all()
    assert (q.gather(1, y.argmax(dim=1, keepdim=True)).squeeze(1) >= q.amax(dim=1) - 1e-6).all()


SPECIAL = {
    "tied": torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.25, 0.25, 0.25, 0.25], [0.4, 0.4, 0.2, 0.0]]),
    "one_hot": torch.eye(4)[:3],
    "two": torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.6, 0.4, 0.0, 0.0], [0.5, 0.25, 0.25, 0.0]]),
}


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 2.0])
@pytest.mark.parametrize("kind", SPECIAL)
def test_no_vertex_is_better_for_special_answers(kind, epsilon):
    y, p = SPECIAL[kind].double(), queries(4, 3.0, 3)[1]
    q = solvers.exact(y, p, epsilon, keep_top=True)
    for row in acute(y, p, epsilon).tolist():
        points = torch.from_numpy(vertices(y[row].numpy(), y[row].argmax().item(), epsilon))
        others = solvers.objective(points, y[row].expand_as(points), p[row].expand_as(points))
        assert others.max() - solvers.objective(q, y, p)[row] < 2e-4  # the top class is kept a margin above the others


@pytest.mark.parametrize("classes", [6, 10])
def test_it_agrees_with_branch_and_bound_and_does_not_depend_on_the_batch(classes, monkeypatch):
    y, p, _ = queries(classes, 0.3, 12)
    found = solvers.exact(y, p, 0.7, keep_top=True)
    alone = torch.cat([solvers.exact(*pair, 0.7, keep_top=True) for pair in zip(y.split(1), p.split(1), strict=True)])
    h = solvers.objective(found, y, p)
    assert torch.allclose(solvers.objective(alone, y, p), h, atol=1e-6)
    single = solvers.exact(y.float(), p.float(), 0.7, keep_top=True).double()
    assert torch.allclose(solvers.objective(single, y, p), h, atol=1e-4)
    monkeypatch.setattr(corners, "MOST", 2)
    monkeypatch.setattr("mad.solvers.level.TopStays.limit", 5000)
    bounded = solvers.objective(solvers.exact(y, p, 0.7, keep_top=True), y, p)
    assert (bounded - h).max() < 1e-4
    assert (bounded - h).abs().median() < 1e-6


def lowest(cost, y, top, epsilon):
    """Return the lowest <cost, q> of a general solver."""
    classes = len(y)
    above = np.eye(classes)[[k for k in range(classes) if k != top]] - np.eye(classes)[top]
    found = linprog(
        np.concatenate([cost, -cost]),
        A_ub=np.vstack([np.hstack([above, -above]), np.r_[np.ones(classes), np.zeros(classes)]]),
        b_ub=np.concatenate([-above @ y, [epsilon / 2]]),
        A_eq=np.r_[np.ones(classes), -np.ones(classes)][None],
        b_eq=[0.0],
        bounds=[(0, None)] * classes + [(0, value) for value in y],
    )
    return float(cost @ y + found.fun)


@pytest.mark.parametrize("epsilon", [0.1, 0.6, 1.3, 2.0])
@pytest.mark.parametrize(("classes", "concentration"), [(2, 1.0), (3, 0.3), (5, 10.0), (10, 0.1), (16, 1.0)])
def test_the_linear_program_is_a_general_solvers(classes, concentration, epsilon):
    y, _, _ = queries(classes, concentration, 10)
    cost = torch.from_numpy(np.random.default_rng(3).normal(size=(10, classes)))
    problem = problem_of(y, y, epsilon)
    q = levels.lowest_with_top(problem, cost)
    assert torch.allclose(q.sum(dim=1), torch.ones(10).double())
    assert (q >= 0).all()
    assert (simplex.l1(q, y) <= epsilon + 1e-6).all()
    for row in range(10):
        best = lowest(cost[row].numpy(), y[row].numpy(), problem.top[row].item(), epsilon)
        assert -2e-6 < (cost[row] @ q[row]).item() - best < 2e-5
        assert q[row, problem.top[row]] >= q[row].max() - 1e-6
