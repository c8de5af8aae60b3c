"""MAD's solver against its definition, one backward pass a class."""

import functools

import pytest
import torch
from torch import nn

from mad import simplex, solvers
from mad.architectures.lenet import LeNet

CLASSES, IMAGES = 10, 4


def gradients(model: nn.Module, image):
    """Return G (K, D): of each class's log-likelihood with respect to the last layer's weights."""
    scores = torch.log_softmax(model(image.unsqueeze(0)), dim=1)[0]
    rows = [torch.autograd.grad(score, model.head.weight, retain_graph=True)[0].flatten() for score in scores]
    return torch.stack(rows)


def deviation(rows, q, y):
    ours, clean = rows.T @ q, rows.T @ y
    return (ours / ours.norm() - clean / clean.norm()).square().sum()


def slow_vertex(rows, y, epsilon):
    corners = torch.eye(len(y), dtype=y.dtype)
    scores = torch.stack([deviation(rows, corner, y) for corner in corners])
    best = corners[scores.argmax()]
    step = (epsilon / (y - best).abs().sum()).clamp(max=1)
    return (1 - step) * y + step * best


def published_growth(rows, y, epsilon):
    """The published code's greedy search, candidate by candidate, from gradients (K, D); ends when no class is left."""
    top, best, highest, judged = int(y.argmax()), None, -1.0, 0
    mended = (y + 1e-8) / (y + 1e-8).sum()
    chosen = [top]
    while judged < 1024 and len(chosen) < len(y):
        candidates = {}
        for added in sorted(set(range(len(y))) - set(chosen)):
            corner = torch.zeros_like(y)
            corner[[*chosen, added]] = 1
            corner[top] += 1e-5
            candidates[added] = corner / corner.sum()
        values = {added: deviation(rows, corner, mended).item() for added, corner in candidates.items()}
        judged += len(values)
        chosen.append(max(values, key=values.get))
        if values[chosen[-1]] > highest:
            highest, best = values[chosen[-1]], candidates[chosen[-1]]
    step = (epsilon / (y - best).abs().sum()).clamp(max=1)
    return (1 - step) * y + step * best


@pytest.fixture(scope="module", params=[1.0, 40.0], ids=["fresh", "confident"])
def group(request):
    """The gradients (B, K, D) and posteriors p (B, K) of a surrogate."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LeNet((1, 28, 28), CLASSES).double().eval()
        model.head.weight.data *= request.param
        images = torch.rand(IMAGES, 1, 28, 28).double()
        rows = torch.stack([gradients(model, image) for image in images])
        return rows, torch.softmax(model(images), dim=1).detach()


def draw(sharpness, batch=IMAGES, classes=CLASSES, seed=5):
    noise = torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.softmax(sharpness * noise, dim=1)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 0.95, 1.3, 2.0])
@pytest.mark.parametrize("sharpness", [0.5, 3.0, 12.0])
def test_vertex_is_its_definition(group, sharpness, epsilon):
    rows, p = group
    y = draw(sharpness)
    slow = torch.stack([slow_vertex(*each, epsilon) for each in zip(rows, y, strict=True)])
    assert torch.allclose(solvers.vertex(y, p, epsilon), slow, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.1, 0.95, 2.0])
@pytest.mark.parametrize("sharpness", [0.5, 12.0])
def test_theta_is_the_same_as_the_gradients_it_stands_for(group, sharpness, epsilon):
    rows, p = group
    mixed = torch.randn(IMAGES, rows.shape[2], 40, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    rows = rows @ mixed  # no longer a multiple of the last layer's
    rows = rows - (p.unsqueeze(2) * rows).sum(dim=1, keepdim=True)  # sum_k p_k grad log p_k = 0, as for any network
    y = draw(sharpness)
    slow = torch.stack([slow_vertex(*each, epsilon) for each in zip(rows, y, strict=True)])
    inner = rows @ rows.mT
    assert torch.allclose(solvers.vertex(y, p, epsilon, inner), slow, atol=1e-6)
    values = torch.stack([deviation(*each) for each in zip(rows, slow, y, strict=True)])
    assert torch.allclose(solvers.objective(slow, y, p, inner), values, atol=1e-6)


@pytest.mark.parametrize("classes", [11, 46, 99, 100])
@pytest.mark.parametrize(("sharpness", "of_p"), [(0.5, 5.0), (12.0, 0.1), (12.0, 5.0)])
def test_the_published_growth_is_its_definition(classes, sharpness, of_p):
    y, p = draw(sharpness, 12, classes), draw(of_p, 12, classes, seed=6)
    y, p = (0.99 * each + 0.01 * draw(1.0, 12, classes, seed=7) for each in (y, p))  # no two classes alike to rounding
    rows = p.unsqueeze(1) - torch.eye(classes, dtype=torch.double)  # of -log p_k in the logits: features cancel
    slow = torch.stack([published_growth(*each, 0.95) for each in zip(rows, y, strict=True)])
    found = solvers.argmax_vertex(y, p, 0.95, as_published=True)
    assert torch.allclose(found, slow, atol=1e-7)
    assert torch.equal(found.argmax(dim=1), y.argmax(dim=1))


@pytest.mark.parametrize(("classes", "sharpness", "of_p"), [(11, 0.5, 5.0), (99, 0.5, 0.1)])
def test_the_published_growth_is_not_quite_the_default(classes, sharpness, of_p):
    """It never tries the top class by itself; at 99 classes that one candidate more ends our search a class earlier."""
    y, p = draw(sharpness, 60, classes), draw(of_p, 60, classes, seed=6)
    own, published = (solvers.argmax_vertex(y, p, 2.0, as_published=flag) for flag in (False, True))
    assert not torch.allclose(own, published, atol=1e-2)
    assert classes == 99 or (solvers.objective(own, y, p) >= solvers.objective(published, y, p) - 1e-9).all()


@pytest.mark.parametrize("classes", [2, 10])
def test_up_to_ten_classes_the_published_search_is_the_default(classes):
    y, p = draw(3.0, 20, classes), draw(1.0, 20, classes, seed=6)
    assert torch.equal(solvers.argmax_vertex(y, p, 0.9, as_published=True), solvers.argmax_vertex(y, p, 0.9))


def test_objective_is_its_definition(group):
    rows, p = group
    y, q = draw(3.0), draw(1.0, seed=6)
    slow = torch.stack([deviation(*each) for each in zip(rows, q, y, strict=True)])
    assert torch.allclose(solvers.objective(q, y, p), slow, atol=1e-6)


def test_no_corner_scores_higher():
    y, p = draw(3.0, 50), draw(1.0, 50, seed=6)
    corners = torch.eye(CLASSES, dtype=torch.double)
    scores = torch.stack([solvers.objective(corner.expand_as(y), y, p) for corner in corners], dim=1)
    assert torch.equal((solvers.vertex(y, p, 1.0) - y).argmax(dim=1), scores.argmax(dim=1))


def test_without_a_direction_the_least_likely_class_gains():
    y = draw(3.0, 50)
    assert torch.equal((solvers.vertex(y, y, 0.5) - y).argmax(dim=1), y.argmin(dim=1))


def test_objective_bounds():
    y, p = draw(3.0, 200), draw(1.0, 200, seed=6)
    values = solvers.objective(draw(2.0, 200, seed=8), y, p)
    assert values.min() >= 0
    assert values.max() <= 4
    assert torch.allclose(solvers.objective(y, y, p), torch.zeros(200).double(), atol=1e-9)
    opposite = p - 0.01 * (y - p)
    assert torch.allclose(solvers.objective(opposite, y, p), torch.full((200,), 4.0).double(), atol=1e-9)


def test_solving_raises_the_objective():
    y, p = draw(3.0, 50), draw(1.0, 50, seed=6)
    values = [solvers.objective(solvers.vertex(y, p, epsilon), y, p).mean() for epsilon in (0.1, 0.5, 1.0)]
    assert 0 < values[0] < values[1] < values[2]


SOLVERS = {
    "vertex": solvers.vertex,
    "exact": solvers.exact,
    "argmax": solvers.argmax_vertex,
    "published_argmax": functools.partial(solvers.argmax_vertex, as_published=True),
    "exact_argmax": functools.partial(solvers.exact, keep_top=True),
}


@functools.cache
def edges(classes):
    """Return pairs (y, p), four of each case: one-hot, the same, uniform, and both of these."""
    y, p, corners = draw(3.0, 4, classes), draw(1.0, 4, classes, seed=6), torch.eye(classes, dtype=torch.double)
    one_hot, next_one = corners[torch.arange(4) % classes], corners[torch.arange(1, 5) % classes]
    uniform = torch.full_like(y, 1 / classes)
    pairs = [(one_hot, p), (y, y), (one_hot, next_one), (one_hot, one_hot), (uniform, p), (uniform, uniform)]
    return [torch.cat(side) for side in zip(*pairs, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_edges(solver, classes, epsilon, dtype):
    y, p = (each.to(dtype) for each in edges(classes))
    q = SOLVERS[solver](y, p, epsilon)
    assert q.isfinite().all()
    assert (q >= 0).all()
    assert torch.allclose(q.sum(dim=1), torch.ones(len(y), dtype=dtype), atol=1e-5)
    assert simplex.l1(q, y).max() <= epsilon + 3e-5
    if solver.endswith("argmax"):
        assert torch.equal(q.argmax(dim=1), y.argmax(dim=1))
    values = solvers.objective(q, y, p)
    assert ((values >= -1e-5) & (values <= 4 + 1e-5)).all()
