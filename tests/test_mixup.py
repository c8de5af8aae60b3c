"""Mixup: sums of two images, and the same sums of their targets."""

import pytest
import torch
import torch.nn.functional as F
from fitting import EXACT, SPLIT, fitted, weights
from toys import trainer, victim

from mad import augmentation
from mad.augmentation import mixed, share_of
from mad.seeds import generator, seeded
from mad.storage.fingerprint import describe


@pytest.mark.parametrize("alpha", [0.001, 0.2, 1.0, 50.0])
def test_images_and_targets_are_the_same_sums(alpha):
    """Each image is one number, and its target tells it, too."""
    images = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 3, 2, 2)
    targets = torch.eye(12)
    with seeded(0, f"mixup {alpha}"):
        found, wished = mixed(images, targets, alpha)
    assert torch.allclose(wished.sum(dim=1), torch.ones(12))
    assert torch.allclose(found * 255, (wished @ torch.arange(12.0)).view(12, 1, 1, 1).expand(12, 3, 2, 2), atol=1e-4)
    shares = wished.diagonal()
    assert (wished > 0).sum(dim=1).max() <= 2
    assert len(shares[shares < 1].unique()) <= 1  # one share for the whole batch


def test_shares_are_as_likely_as_beta_says():
    def shares(alpha):
        with seeded(1, "shares"):
            return torch.stack([mixed(torch.zeros(2, 1, 1, 1), torch.eye(2), alpha)[1][0, 0] for _ in range(400)])

    for alpha in (0.2, 4.0):
        assert shares(alpha).mean().item() > 0.5  # at 1 where an image is its own partner
        own = shares(alpha)
        own = own[own < 1]
        assert own.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.25)


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 0.01, 0.5, 3.0])
def test_a_share_has_the_variance_of_beta_for_any_alpha(alpha, monkeypatch):
    for small in (augmentation.SMALL, 10.0):  # either way of drawing
        monkeypatch.setattr(augmentation, "SMALL", small)
        with seeded(0, "variance"):
            shares = torch.tensor([share_of(alpha) for _ in range(2000)])
        assert ((shares >= 0) & (shares <= 1)).all()
        assert shares.mean().item() == pytest.approx(0.5, abs=0.05)
        assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


def test_usual_shares_are_torchs_own():
    with seeded(0, "share"):
        found = share_of(0.2)
    with seeded(0, "share"):
        assert found == torch.distributions.Beta(0.2, 0.2).sample().item()


@pytest.mark.parametrize("soft", [False, True])
def test_the_loop_is_the_plain_one(soft):
    model = victim().untrained(seed=0, purpose="victim").double()
    answers = F.one_hot(SPLIT.labels, 4).double()
    answers = 0.8 * answers + 0.05 if soft else answers
    plain, order = torch.optim.SGD(model.parameters(), 0.02), generator(3, "order of test")
    for epoch in (1, 2, 3):
        turn = torch.randperm(200, generator=order)
        with seeded(3, f"dropout of test, epoch {epoch}"):
            for rows in turn.split(30):
                share = torch.distributions.Beta(0.4, 0.4).sample().item()
                other = rows[torch.randperm(len(rows))]
                log = model(share * EXACT[rows] + (1 - share) * EXACT[other]).log_softmax(dim=1)
                loss = -(share * answers[rows] * log + (1 - share) * answers[other] * log).sum(dim=1).mean()
                plain.zero_grad()
                loss.backward()
                plain.step()
    recipe = trainer(epochs=3, batch_size=30, optimizer="sgd", learning_rate=0.02, schedule="step", mixup=0.4)
    found = fitted(recipe, answers if soft else SPLIT.labels, seed=3, images=EXACT)
    assert torch.allclose(weights(found), weights(model), rtol=1e-9, atol=1e-9)


def test_none_is_the_recipe_as_before():
    assert describe(trainer(mixup=0)) == describe(trainer())
    assert describe(trainer(mixup=0.1)) != describe(trainer())
    assert torch.equal(weights(fitted(trainer(mixup=0.0))), weights(fitted(trainer())))
    assert "amended" not in describe(trainer(mixup=0.01))
    assert describe(trainer(mixup=0.001))["amended"] == "small shares of mixup"


def test_seeds_decide_the_sums():
    before = torch.get_rng_state()
    one, again, other = (weights(fitted(trainer(epochs=2, mixup=0.3), seed=seed)) for seed in (5, 5, 6))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, weights(fitted(trainer(epochs=2), seed=5)))
    assert torch.isfinite(weights(fitted(trainer(epochs=1, mixup=0.3, batch_size=199)))).all()  # a last batch of one
