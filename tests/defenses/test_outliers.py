"""Trainings that see outliers: which, in which order, and what their losses are."""

from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar

import pytest
import torch
from toys import CPU, Blobs, Others, Streamed, Tiny, cell, trainer, victim

from mad import pipeline
from mad.cache import Cache
from mad.datasets import cached
from mad.datasets.checked import say
from mad.defenses import Undefended
from mad.defenses.adaptive_misinformation import AdaptiveMisinformation
from mad.defenses.chain import Chain
from mad.defenses.distilled import DistilledSurrogate
from mad.defenses.mad import Mad
from mad.defenses.outliers import ExposureTrainer, OutlierTrainer, joined, uniform_cross_entropy
from mad.errors import MadError
from mad.storage.fingerprint import describe
from mad.training import Trainer, logits_of

SPLIT = Blobs().train()
OUTLIERS = Others(size=210).images((1, 8, 8))


def fitted(recipe, seed=0, images=SPLIT.images, **how):
    model = victim().untrained(seed=0, purpose="victim")
    recipe.fit(model, images, SPLIT.labels, seed=seed, device=CPU, task="test", **how)
    return model


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def drawn(recipe, count, outliers=OUTLIERS, labels=None, seed=0):
    return list(islice(recipe.endless(outliers, labels, seed, CPU, "test"), count))


def test_each_pass_shows_each_outlier_at_most_once_in_another_order():
    recipe, labels = ExposureTrainer.like(trainer(batch_size=20)), torch.arange(len(OUTLIERS))
    found = drawn(recipe, 12, labels=labels)
    assert all(torch.equal(images, OUTLIERS[rows]) for images, rows in found)
    passes = [torch.cat([rows for _, rows in found[at : at + 4]]) for at in (0, 4, 8)]
    assert all(len(rows.unique()) == 80 for rows in passes)  # 90 are four batches of 20, and a rest that is left out
    assert not torch.equal(passes[0], passes[1])
    assert len(torch.cat(passes).unique()) == len(OUTLIERS)


def test_outliers_follow_the_seed_and_may_be_few_or_a_stream():
    recipe = ExposureTrainer.like(trainer(batch_size=20))
    first, again, other = ([rows for _, rows in drawn(recipe, 3, labels=torch.arange(90), seed=s)] for s in (0, 0, 1))
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert not torch.equal(torch.cat(first), torch.cat(other))
    assert [len(images) for images, _ in drawn(recipe, 3, OUTLIERS[:7])] == [7, 7, 7]
    streamed = drawn(recipe, 5, Streamed(OUTLIERS))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(streamed, drawn(recipe, 5), strict=True))


def test_outliers_are_augmented_as_the_images_are():
    moved = drawn(ExposureTrainer.like(trainer(augment="crop")), 1)[0][0]
    assert not torch.equal(moved, drawn(ExposureTrainer.like(trainer()), 1)[0][0])


def test_the_loss_is_its_formula():
    recipe, model = ExposureTrainer.like(trainer(), weight=0.7), victim().untrained(seed=0, purpose="victim")
    object.__setattr__(recipe, "_drawn", iter([(OUTLIERS[:9], None)]))
    found = recipe.loss(model, SPLIT.images[:6], SPLIT.labels[:6]).item()
    total = 0.0
    for image, label in zip(SPLIT.images[:6], SPLIT.labels[:6], strict=True):
        total -= torch.softmax(model(image[None] / 255)[0].double(), dim=0)[label].log().item() / 6
    for image in OUTLIERS[:9]:
        total -= 0.7 * torch.softmax(model(image[None] / 255)[0].double(), dim=0).log().mean().item() / 9
    assert found == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_uniform_cross_entropy_is_least_where_posteriors_are_uniform(classes):
    flat, sure = torch.zeros(1, classes), 1e4 * torch.eye(classes)[:1]
    assert uniform_cross_entropy(flat).item() == pytest.approx(torch.tensor(float(classes)).log().item(), rel=1e-6)
    assert uniform_cross_entropy(sure).isfinite().all()
    assert uniform_cross_entropy(sure) > uniform_cross_entropy(torch.randn(1, classes)) > uniform_cross_entropy(flat)


def test_images_of_both_types_join():
    both = joined(SPLIT.images[:2], OUTLIERS[:3] / 255)
    assert both.dtype == torch.float32
    assert torch.equal(both, torch.cat([SPLIT.images[:2], OUTLIERS[:3]]) / 255)


def test_without_outliers_or_weight_it_is_the_plain_training():
    plain = weights(fitted(trainer()))
    assert torch.equal(weights(fitted(ExposureTrainer.like(trainer()))), plain)
    unseen = weights(fitted(ExposureTrainer.like(trainer(), weight=0.0), outliers=OUTLIERS))
    assert torch.allclose(unseen, plain, atol=1e-5)


def test_exposed_networks_are_unsure_about_outliers_only():
    sure = {}
    for name, recipe, how in (("plain", trainer(), {}), ("exposed", ExposureTrainer.like(trainer()), "outliers")):
        model = fitted(recipe, **({how: OUTLIERS} if how else {}))
        tops = [logits_of(model, images, CPU).softmax(dim=1).amax(dim=1).mean() for images in (SPLIT.images, OUTLIERS)]
        sure[name] = tops
        assert (logits_of(model, SPLIT.images, CPU).argmax(dim=1) == SPLIT.labels).float().mean() > 0.95
    assert sure["exposed"][1] < sure["plain"][1] - 0.1
    assert sure["exposed"][0] > sure["exposed"][1] + 0.1


def test_same_seed_same_weights():
    recipe = ExposureTrainer.like(trainer(epochs=2))
    first, again, other = (weights(fitted(recipe, seed, outliers=OUTLIERS)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not hasattr(recipe, "_drawn")


def test_a_recipe_is_like_the_other_one_and_named_by_its_weight():
    own = replace(trainer(epochs=3, augment="crop"), knockoff={"epochs": 9})
    made = ExposureTrainer.like(own, weight=2.0)
    told = describe(made)
    assert {name: value for name, value in told.items() if name not in ("class", "weight")} == {
        name: value for name, value in describe(own).items() if name != "class"
    }
    assert told["weight"] == 2
    assert isinstance(made, OutlierTrainer | Trainer)
    with pytest.raises(MadError, match="weight of the outliers' loss"):
        ExposureTrainer.like(own, weight=-1)


def test_an_outlier_that_cannot_be_read_is_one_line():
    with pytest.raises(MadError, match=r"^row 5 cannot be read$"):
        fitted(ExposureTrainer.like(trainer()), outliers=Streamed(OUTLIERS, broken=5))


def test_a_network_need_not_be_of_one_layer():
    class Normed(Tiny):
        def __init__(self, shape, classes):
            super().__init__(shape, classes)
            self.norm = torch.nn.BatchNorm2d(shape[0])

        def forward(self, images):
            return super().forward(self.norm(images))

    model = victim(architecture=Normed).untrained(seed=0, purpose="victim")
    recipe = ExposureTrainer.like(trainer(epochs=2))
    recipe.fit(model, SPLIT.images, SPLIT.labels, seed=0, device=CPU, task="test", outliers=OUTLIERS)
    assert not model.training
    assert weights(model).isfinite().all()


def test_a_defense_that_owns_the_adversarys_pool_is_told(capsys):
    owns = AdaptiveMisinformation(outliers=Blobs())
    pipeline.warn_of_shared_pools(cell(defense=owns))
    assert "trains on images of blobs, the adversary's pool" in " ".join(capsys.readouterr().err.split())
    say.cache_clear()
    pipeline.warn_of_shared_pools(cell(defense=Chain(parts=[Undefended(), owns])))
    assert "defense chain trains on images of blobs" in " ".join(capsys.readouterr().err.split())
    pipeline.warn_of_shared_pools(cell(defense=AdaptiveMisinformation(outliers=Others())))
    pipeline.warn_of_shared_pools(cell(defense=AdaptiveMisinformation()))
    assert not capsys.readouterr().err


@dataclass(frozen=True)
class Held(Blobs):
    """A pool whose fields do not say which images it has."""

    name: str = "held"
    images_held: ClassVar[torch.Tensor] = Others(size=210).images((1, 8, 8))

    def images(self, shape):
        return self.images_held


@pytest.mark.parametrize(
    "owner", [lambda pool: AdaptiveMisinformation(outliers=pool), lambda pool: Mad(0.5, DistilledSurrogate(pool))]
)
def test_other_images_of_a_defenses_pool_are_another_cell_of_the_same_comparison(monkeypatch, owner):
    first = cell(defense=owner(Held()))
    assert first.fingerprint == cell(defense=owner(Held())).fingerprint
    before = first.fingerprint, first.comparison_group
    monkeypatch.setattr(Held, "images_held", Held.images_held.flip(0))
    monkeypatch.setattr(cached, "KEPT", Cache())  # as in another process
    second = cell(defense=owner(Held()))
    assert second.fingerprint != before[0]
    assert second.comparison_group == before[1] == second.reference.comparison_group
    assert cell(defense=AdaptiveMisinformation()).owned_contents() == []
