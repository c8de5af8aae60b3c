"""MAD-argmax's published search against its definition."""

import itertools

import pytest
import torch
from posteriors import queries

from mad import simplex, solvers
from mad.solvers.argmax import ENUMERATED, enumerate_sets, grow_sets
from mad.solvers.metric import cosine


def slow_corner(y, p, theta):
    """Return the best uniform corner over all sets that hold the top class, one set at a time."""
    classes, top = len(y), y.argmax().item()
    best, lowest = None, 2.0
    for size in range(classes):
        for others in itertools.combinations([k for k in range(classes) if k != top], size):
            corner = torch.zeros_like(y)
            corner[list(others)] = 1
            corner[top] = 1 + 1e-5
            corner /= corner.sum()
            angle = cosine((corner - p)[None], (y - p)[None], None if theta is None else theta[None]).item()
            if angle < lowest:
                best, lowest = corner, angle
    return best


@pytest.mark.parametrize("inner", [False, True])
def test_the_published_argmax_search_is_its_definition(inner):
    y, p, theta = queries(6, 0.5, 12, inner)
    slow = torch.stack([slow_corner(y[row], p[row], None if theta is None else theta[row]) for row in range(12)])
    assert torch.allclose(enumerate_sets(y, p, theta), slow)


@pytest.mark.parametrize("inner", [False, True])
def test_the_published_greedy_search_is_its_definition(inner):
    y, p, theta = queries(ENUMERATED + 3, 0.5, 5, inner)
    found = grow_sets(y, p, theta)
    for row in range(5):
        part = None if theta is None else theta[row : row + 1]
        chosen, best, lowest = [y[row].argmax().item()], None, 2.0
        while len(chosen) < y.shape[1]:
            trials = []
            for added in set(range(y.shape[1])) - set(chosen):
                corner = torch.zeros(1, y.shape[1]).double()
                corner[0, [*chosen, added]] = 1
                corner[0, chosen[0]] += 1e-5
                corner /= corner.sum()
                trials.append((cosine(corner - p[row], (y - p)[row : row + 1], part).item(), added, corner))
            angle, added, corner = min(trials, key=lambda trial: trial[0])
            chosen.append(added)
            if angle < lowest:
                best, lowest = corner, angle
        alone = torch.zeros_like(y[row]).index_fill_(0, y[row].argmax(), 1.0)
        if cosine((alone - p[row])[None], (y - p)[row : row + 1], part).item() < lowest:
            best = alone
        assert torch.allclose(found[row], best, atol=1e-9)


@pytest.mark.parametrize("classes", [4, 11, 40])
@pytest.mark.parametrize("epsilon", [0.2, 1.0, 2.0])
def test_the_published_argmax_answers_keep_budget_and_top_class(classes, epsilon):
    y, p, _ = queries(classes, 0.3)
    q = solvers.argmax_vertex(y, p, epsilon)
    assert torch.equal(q.argmax(dim=1), y.argmax(dim=1))
    assert simplex.l1(q, y).max() <= epsilon + 1e-9
    assert simplex.l1(q, y).mean() > 0.5 * min(epsilon, 1)
