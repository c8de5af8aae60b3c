"""The exact solver against every extreme point, a general solver, and random answers."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from posteriors import dirichlet, queries
from scipy.optimize import minimize

from mad import simplex, solvers
from mad.solvers.exact import mirror
from mad.solvers.level import TopStays
from mad.solvers.metric import cosine, times
from mad.solvers.problem import Problem, project


def extreme_points(y, epsilon):
    """Return all extreme points of simplex and L1 ball (B, V, K), and which of them are real (B, V).

    Each moves min(epsilon / 2, 1 - y_r) to a receiver r, all of what some donors hold and a rest from one more.
    """
    classes = y.shape[1]
    sets = torch.tensor(list(itertools.product((0, 1), repeat=classes)), dtype=y.dtype)
    points, real = [], []
    for receiver, last in itertools.permutations(range(classes), 2):
        mass = (1 - y[:, receiver]).clamp(max=epsilon / 2).unsqueeze(1)
        whole = y.unsqueeze(1) * sets[(sets[:, receiver] == 0) & (sets[:, last] == 0)]
        rest = mass - whole.sum(dim=2)
        q = y.unsqueeze(1) - whole
        q[:, :, receiver] += mass
        q[:, :, last] -= rest
        points.append(q)
        real.append((rest > -1e-12) & (rest < y[:, last : last + 1] + 1e-12))
    return torch.cat(points, dim=1), torch.cat(real, dim=1)


def best_extreme(y, p, epsilon, theta):
    points, real = extreme_points(y, epsilon)
    inner = torch.eye(y.shape[1], dtype=y.dtype).expand(len(y), -1, -1) if theta is None else theta
    v, u = points - p.unsqueeze(1), (y - p).unsqueeze(2)
    along = (v @ inner @ u).squeeze(2)
    lengths = ((v @ inner) * v).sum(dim=2).clamp(min=1e-20).sqrt() * (u.mT @ inner @ u).squeeze(2).sqrt()
    return 2 - 2 * torch.where(real, along / lengths, torch.inf).amin(dim=1)


def slsqp(y, p, epsilon, theta, starts, top=None):
    """Return the largest H a general solver finds from several starts, in mass given and taken."""
    classes = len(y)
    inner = np.eye(classes) if theta is None else theta.numpy()
    y, p = y.numpy(), p.numpy()
    along, length = inner @ (y - p), np.sqrt((y - p) @ inner @ (y - p))

    def point(z):
        return y + z[:classes] - z[classes:]

    def cos(z):
        v = point(z) - p
        return v @ along / (np.sqrt(max(v @ inner @ v, 1e-18)) * length)

    rules = [
        {"type": "eq", "fun": lambda z: z[:classes].sum() - z[classes:].sum()},
        {"type": "ineq", "fun": lambda z: epsilon / 2 - z[:classes].sum()},
    ]
    if top is not None:
        rules.append({"type": "ineq", "fun": lambda z: point(z)[top] - point(z)})
    bounds = [(0, 1)] * classes + [(0, value) for value in y]
    best = 1.0
    for start in starts:
        moved = start.numpy() - y
        z = np.concatenate([np.maximum(moved, 0), np.maximum(-moved, 0)])
        z = minimize(cos, z, bounds=bounds, constraints=rules, method="SLSQP", options={"ftol": 1e-12}).x
        q = point(z)
        allowed = abs(q.sum() - 1) < 1e-8 and q.min() > -1e-8 and np.abs(q - y).sum() < epsilon + 1e-7
        if allowed and (top is None or q[top] > q.max() - 1e-8):
            best = min(best, cos(z))
    return 2 - 2 * best


def allowed(y, epsilon, count, seed):
    """Return random posteriors within the budget, (B, count, K): many on its border, some inside."""
    random = np.random.default_rng(seed)
    classes = y.shape[1]
    ends = torch.from_numpy(random.dirichlet(np.full(classes, 0.2), size=(len(y), count)))
    distance = (ends - y.unsqueeze(1)).abs().sum(dim=2, keepdim=True).clamp(min=1e-12)
    reach = torch.from_numpy(random.uniform(0, 1.5, size=(len(y), count, 1))).clamp(max=1)
    return torch.lerp(y.unsqueeze(1).expand_as(ends), ends, (reach * epsilon / distance).clamp(max=1))


@pytest.mark.parametrize("inner", [False, True], ids=["last_layer", "all"])
@pytest.mark.parametrize("classes", [2, 3, 4, 6])
@pytest.mark.parametrize(("concentration", "epsilon"), [(0.1, 0.5), (0.1, 1.3), (0.4, 0.95), (1.0, 0.3), (4.0, 0.1)])
def test_no_extreme_point_is_better(classes, concentration, epsilon, inner):
    y, p, theta = queries(classes, concentration, 20 if inner else 100, inner)
    q = solvers.exact(y, p, epsilon, theta)
    gap = best_extreme(y, p, epsilon, theta) - solvers.objective(q, y, p, theta)
    assert gap.max() < 1e-5
    single = None if theta is None else theta.float()
    q = solvers.exact(y.float(), p.float(), epsilon, single).double()
    assert (best_extreme(y, p, epsilon, theta) - solvers.objective(q, y, p, theta)).max() < 1e-4


def kinds(y, p, epsilon, theta, top=None):
    """Return masks of the mirrored and of the obtuse rows, and the points that show the latter."""
    problem = Problem(y, p, torch.full_like(y[:, 0], epsilon / 2), theta, top)
    lowest = problem.lowest(times(theta, y - p))
    mirrored = mirror(problem)[1]
    return mirrored, ~mirrored & (cosine(lowest - p, y - p, theta) < 0), lowest


@pytest.mark.parametrize("inner", [False, True], ids=["last_layer", "all"])
@pytest.mark.parametrize(("classes", "concentration", "epsilon"), [(5, 0.3, 0.95), (8, 1.0, 0.6)])
def test_a_general_solver_finds_nothing_better_where_the_angle_is_obtuse(classes, concentration, epsilon, inner):
    y, p, theta = queries(classes, concentration, inner=inner)
    q = solvers.exact(y, p, epsilon, theta)
    ours = solvers.objective(q, y, p, theta)
    _, obtuse, lowest = kinds(y, p, epsilon, theta)
    rows = obtuse.nonzero().squeeze(1)[:5]
    assert len(rows) == 5
    starts = torch.cat([lowest.unsqueeze(1), allowed(y, epsilon, 2, 3)], dim=1)
    for row in rows.tolist():
        found = slsqp(y[row], p[row], epsilon, None if theta is None else theta[row], starts[row])
        assert found - ours[row] < 1e-6


@pytest.mark.parametrize("inner", [False, True], ids=["last_layer", "all"])
@pytest.mark.parametrize(("classes", "concentration", "epsilon"), [(3, 1.0, 0.8), (5, 0.5, 0.6)])
def test_a_general_solver_finds_nothing_better_that_keeps_the_top_class(classes, concentration, epsilon, inner):
    y, p, theta = queries(classes, concentration, 8, inner)
    top = y.argmax(dim=1)
    q = solvers.exact(y, p, epsilon, theta, keep_top=True)
    assert torch.equal(q.argmax(dim=1), top)
    ours = solvers.objective(q, y, p, theta)
    starts = torch.cat([q.unsqueeze(1), allowed(y, epsilon, 4, 3)], dim=1)
    problem = Problem(y, p, torch.full_like(y[:, 0], epsilon / 2), theta, top)
    for row in range(len(y)):
        mine = problem.rows(torch.full((5,), row)).feasible(starts[row])
        found = slsqp(y[row], p[row], epsilon, None if theta is None else theta[row], mine, top[row].item())
        assert found - ours[row] < 1e-3  # the top class is kept a margin above the others


@pytest.mark.parametrize("keep_top", [False, True])
@settings(max_examples=25)
@given(
    classes=st.sampled_from([3, 5, 10, 30]),
    concentration=st.sampled_from([0.05, 0.3, 1.0]),
    epsilon=st.floats(0.05, 2.0),
    inner=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_no_allowed_posterior_is_better(classes, concentration, epsilon, inner, seed, keep_top):
    inner = inner and classes <= 5
    y, p, theta = queries(classes, concentration, 3, inner, seed)
    q = solvers.exact(y, p, epsilon, theta, keep_top=keep_top)
    assert (q >= 0).all()
    assert torch.allclose(q.sum(dim=1), torch.ones(3).double(), atol=1e-6)
    assert simplex.l1(q, y).max() <= epsilon + 3e-5
    ours = solvers.objective(q, y, p, theta)
    others = allowed(y, epsilon, 300, seed)
    if keep_top:
        others = torch.where(
            (others.argmax(dim=2) == y.argmax(dim=1, keepdim=True)).unsqueeze(2), others, y.unsqueeze(1)
        )
    for other in others.unbind(dim=1):
        assert (solvers.objective(other, y, p, theta) - ours).max() < (1e-3 if keep_top else 1e-5)
    published = (solvers.argmax_vertex if keep_top else solvers.vertex)(y, p, epsilon, theta)
    assert (solvers.objective(published, y, p, theta) - ours).max() < (1e-3 if keep_top else 1e-6)


def test_the_mirror_turns_the_gradient_right_round():
    y, p, theta = queries(6, 1.0, 200, inner=True)
    near = (y - p).abs().sum(dim=1) < 0.85
    q = solvers.exact(y, p, 0.95)
    mirrored, _, _ = kinds(y, p, 0.95, None)
    assert mirrored[near & (p > 0.05).all(dim=1)].any()
    assert torch.allclose(solvers.objective(q, y, p)[mirrored], torch.tensor(4.0).double(), atol=1e-6)
    # Whatever the weights, the mirrored answer is opposite in every inner product.
    assert torch.allclose(solvers.objective(q, y, p, theta)[mirrored], torch.tensor(4.0).double(), atol=1e-6)
    assert not mirrored[(y - p).abs().sum(dim=1) > 0.95].any()


def test_more_budget_and_fewer_constraints_are_never_worse():
    y, p, _ = queries(10, 0.3, 50)
    values = [solvers.objective(solvers.exact(y, p, epsilon), y, p) for epsilon in (0.1, 0.5, 0.95, 1.5, 2.0)]
    for less, more in itertools.pairwise(values):
        assert (less - more).max() < 1e-6
    kept = solvers.objective(solvers.exact(y, p, 0.5, keep_top=True), y, p)
    assert (kept - values[1]).max() < 1e-6


def test_answers_do_not_depend_on_the_batch():
    y, p, _ = queries(10, 0.3, 40)
    whole = solvers.objective(solvers.exact(y, p, 0.7), y, p)
    alone = torch.cat(
        [solvers.objective(solvers.exact(*pair, 0.7), *pair) for pair in zip(y.split(1), p.split(1), strict=True)]
    )
    assert torch.allclose(whole, alone, atol=1e-6)


@pytest.mark.parametrize("budget", [0.05, 0.5, 0.99])
def test_projection_is_the_nearest_allowed_point(budget):
    y = dirichlet(0.5, 20, 6, 0)
    points = y + torch.from_numpy(np.random.default_rng(1).normal(scale=0.5, size=(20, 6)))
    q = project(points, y, torch.full((20,), budget, dtype=torch.double))
    assert torch.allclose(q.sum(dim=1), torch.ones(20).double())
    assert (q >= 0).all()
    assert simplex.l1(q, y).max() <= 2 * budget + 1e-9
    # Nearest: no allowed point makes an acute angle with what is left.
    for other in allowed(y, 2 * budget, 200, 2).unbind(dim=1):
        assert ((points - q) * (other - q)).sum(dim=1).max() < 1e-9


def test_answers_without_a_proof_are_counted(monkeypatch):
    y, p, theta = queries(5, 1.0, 30, inner=True)
    tally = Counter()
    best = solvers.exact(y, p, 0.9, theta, keep_top=True, tally=tally)
    monkeypatch.setattr(TopStays, "limit", 20_000)
    longer = solvers.exact(y, p, 0.9, theta, keep_top=True)
    gain = solvers.objective(longer, y, p, theta) - solvers.objective(best, y, p, theta)
    assert gain.min() > -1e-6
    assert (gain > 1e-6).sum() <= tally["unproven"]
    monkeypatch.setattr(TopStays, "limit", 1)
    few = Counter()
    solvers.exact(y, p, 0.9, theta, keep_top=True, tally=few)
    assert few["unproven"] > tally["unproven"]
    assert "unproven" not in few or few["unproven"] <= 30


def test_two_classes_are_not_chosen_between_by_rounding():
    y, p, _ = (each if each is None else each.float() for each in queries(2, 1.0, 300))
    one_by_one = [solvers.argmax_vertex(*pair, 0.5) for pair in zip(y.split(1), p.split(1), strict=True)]
    for order in (torch.arange(300), torch.arange(300).flip(0)):
        found = torch.empty_like(y)
        found[order] = solvers.argmax_vertex(y[order], p[order], 0.5)
        assert torch.allclose(found, torch.cat(one_by_one), atol=1e-5)
    noisy = y * (1 + 1e-7 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(solvers.argmax_vertex(noisy, p, 0.5), torch.cat(one_by_one), atol=1e-3)
