"""Isolation and Induction: its losses and their merged gradients are the formulas."""

import pytest
import torch
import torch.nn.functional as F
from toys import SmallNet, Tiny, trainer, victim

from mad.architectures.mlp import MLP
from mad.defenses.ini import IsolatingTrainer, merged, pull
from mad.seeds import seeded


def networks(architecture=MLP, classes=4):
    """A victim and a proxy, in float64, where rounding does not show."""
    recipe = victim(classes, architecture=architecture)
    return tuple(recipe.untrained(seed=0, purpose=purpose).double() for purpose in ("victim", "proxy"))


def batch(classes=4, size=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(2, size, 1, 8, 8, generator=draw).double()
    return images[0], torch.randint(classes, (size,), generator=draw), images[1]


def recipe(proxy, outliers, **changes):
    return IsolatingTrainer.like(trainer(), proxy=proxy, outliers=outliers, **changes)


def thief_loss(guess, answers, as_published):
    """The mean loss by which a thief learns a victim's answers, of which its gradient is taken."""
    p, y = torch.softmax(guess, dim=1), torch.softmax(answers, dim=1)
    each = p * (p.log() - y.log()) if as_published else -y * p.log()
    return each.sum(dim=1).mean()


def slow_gradient(proxy, loss):
    found = torch.autograd.grad(loss, list(proxy.parameters()), create_graph=True)
    return torch.cat([part.flatten() for part in found])


def slow_losses(model, proxy, images, labels, queries, as_published):
    """The four losses, by their definition."""
    answers, guess = model(images), proxy(images)
    learned = slow_gradient(proxy, thief_loss(guess, answers, as_published))
    right = slow_gradient(proxy, F.cross_entropy(guess, labels)).detach()
    found = [F.cross_entropy(answers, labels), learned @ right / learned.norm() / right.norm()]
    answers, guess = model(queries), proxy(queries)
    centered = [logits - logits.mean(dim=1, keepdim=True) for logits in (answers, guess.detach())]
    found.append((centered[0] - centered[1]).abs().mean())
    return [*found, slow_gradient(proxy, thief_loss(guess, answers, as_published)).square().sum().sqrt()]


def gradient(model, loss):
    found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
    return torch.cat([part.flatten() for part in found])


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("classes", [2, 4, 100])
def test_losses_and_their_gradients_are_the_formulas(classes, as_published):
    model, proxy = networks(classes=classes)
    images, labels, queries = batch(classes)
    made = recipe(proxy, queries, isolation=0.5, induction=0.3, silence=20.0, as_published=as_published)
    with seeded(0, "draw"):
        losses = made.losses(model, images, labels)
    with seeded(0, "draw"):
        drawn = queries[torch.randint(len(queries), (len(images),))]
    right = slow_losses(model, proxy, images, labels, drawn, as_published)
    for found, expected, weight in zip(losses, right, (1, 0.5, 0.3, 20.0), strict=True):
        assert torch.allclose(found, weight * expected, rtol=1e-5)
        assert torch.allclose(gradient(model, found), weight * gradient(model, expected), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_pull_is_the_gradient_of_the_thiefs_loss(classes, as_published):
    guess, answers = torch.randn(2, 5, classes).double()
    guess = guess.requires_grad_()
    (expected,) = torch.autograd.grad(thief_loss(guess, answers, as_published), guess)
    assert torch.allclose(pull(guess, answers, as_published), expected, atol=1e-9)
    assert torch.allclose(pull(answers, answers + 3, as_published), torch.zeros(5, classes).double(), atol=1e-12)


def slow_merge(gradients, orders):
    """PCGrad's algorithm 1, number by number."""
    total = [0.0] * len(gradients[0])
    for row, own in enumerate(gradients):
        left = list(own)
        for other in orders[row]:
            against = sum(a * b for a, b in zip(left, gradients[other], strict=True))
            if other != row and against < 0:
                size = sum(b * b for b in gradients[other])
                left = [a - against / size * b for a, b in zip(left, gradients[other], strict=True)]
        total = [a + b for a, b in zip(total, left, strict=True)]
    return total


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_gradients_are_merged_by_the_algorithm(count):
    gradients = list(torch.randn(count, 5, generator=torch.Generator().manual_seed(count)).double())
    with seeded(1, "merge"):
        orders = [torch.randperm(count).tolist() for _ in range(count)]
    with seeded(1, "merge"):
        found = merged(gradients)
    assert torch.allclose(found, torch.tensor(slow_merge([each.tolist() for each in gradients], orders)).double())


def test_merging_changes_only_gradients_that_conflict():
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 2.0])
    assert torch.equal(merged([first, second]), first + second)
    opposed = torch.tensor([-1.0, 1.0])
    found = merged([first, opposed])  # (1/2, 1/2) + (0, 1)
    assert torch.allclose(found, torch.tensor([0.5, 1.5]))
    assert min(found @ first, found @ opposed) >= 0
    assert torch.equal(merged([first, torch.zeros(2)]), first)
    assert torch.equal(merged([first, -first]), torch.zeros(2))


def test_the_loss_is_the_sum_and_its_gradient_the_merged_one():
    model, proxy = networks(SmallNet)
    images, labels, queries = batch()
    made = recipe(proxy, queries, silence=10.0)
    with seeded(2, "draw"):
        losses = made.losses(model, images, labels)
        expected = merged([gradient(model, each) for each in losses])
    model_again, _ = networks(SmallNet)
    with seeded(2, "draw"):
        loss = made.loss(model_again, images, labels)
    loss.backward()
    assert loss.item() == pytest.approx(sum(losses).item())
    assert torch.allclose(torch.cat([each.grad.flatten() for each in model_again.parameters()]), expected)
    assert all(each.grad is None for each in proxy.parameters())


def test_without_weights_it_is_the_cross_entropy():
    model, proxy = networks()
    images, labels, queries = batch()
    loss = recipe(proxy, queries, isolation=0.0, induction=0.0, silence=0.0).loss(model, images, labels)
    right = F.cross_entropy(model(images), labels)
    assert loss.item() == pytest.approx(right.item())
    assert torch.allclose(gradient(model, loss), gradient(model, right))


@pytest.mark.parametrize(("weights", "count"), [((1, 0, 0), 2), ((0, 1, 0), 2), ((0, 0, 1), 2), ((1, 1, 0), 3)])
def test_a_loss_of_weight_zero_is_left_out(weights, count):
    model, proxy = networks()
    images, labels, queries = batch()
    names = ("isolation", "induction", "silence")
    made = recipe(proxy, queries, **dict(zip(names, map(float, weights), strict=True)))
    assert len(made.losses(model, images, labels)) == count


@pytest.mark.parametrize("kind", ["one_hot", "equal", "black"])
def test_degenerate_batches_have_finite_gradients(kind):
    model, proxy = networks(Tiny)
    images, labels, queries = batch()
    if kind == "one_hot":
        model.head.weight.data *= 1e3
    if kind == "equal":
        model.load_state_dict(proxy.state_dict())
    images, queries = (0 * images, 0 * queries) if kind == "black" else (images, queries)
    loss = recipe(proxy, queries).loss(model, images, labels)
    assert loss.isfinite()
    assert gradient(model, loss).isfinite().all()


def test_a_gradient_too_small_to_be_squared_is_no_direction():
    tiny, large = torch.tensor([-1e-200, 0.0], dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    for seed in range(4):
        torch.manual_seed(seed)
        assert torch.allclose(merged([tiny, large]), large)


def test_labels_may_be_mixed():
    model, proxy = networks()
    images, labels, queries = batch()
    how = recipe(proxy, queries)
    with seeded(0, "losses"):
        found = how.losses(model, images, labels)
    with seeded(0, "losses"):
        same = how.losses(model, images, F.one_hot(labels, 4).double())
    assert torch.allclose(torch.stack(found), torch.stack(same))
    mixed = (F.one_hot(labels, 4) + F.one_hot(labels.flip(0), 4)).double() / 2
    isolation = [how.losses(model, images, each)[1].item() for each in (labels, mixed)]
    assert isolation[0] != isolation[1]
