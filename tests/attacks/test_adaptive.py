"""The adaptive policy: a bandit over the pool's classes."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from toys import CPU, Blobs, Streamed, cell

from mad.adversary import Adversary
from mad.api import BlackBox
from mad.attacks.adaptive import REWARDS, WINDOW, Bandit, KnockoffAdaptive, Scale, certainty, diversity
from mad.datasets import digits
from mad.datasets.folder import ImageFolder
from mad.datasets.idx import IdxImages
from mad.defenses import Undefended
from mad.errors import MadError, UnfitError
from mad.pipeline import run
from mad.recoveries.argmax import Argmax
from mad.storage.store import Store

KINDS = ("all", *REWARDS)


@dataclass(frozen=True)
class Sorted(Blobs):
    """A pool with labels."""

    def labels(self):
        return self.split("pool").labels


@dataclass(frozen=True)
class Short(Sorted):
    """One label too few."""

    def labels(self):
        return super().labels()[1:]


@dataclass(frozen=True)
class Single(Sorted):
    """One class."""

    def labels(self):
        return super().labels() * 0


def steal(budget=100, reward="all", seed=0, images=None, **how):
    whole = cell(attack=KnockoffAdaptive(budget, reward, **how), pool=Sorted(), seed=seed)
    model = whole.victim.untrained(seed=0, purpose="victim")
    api = BlackBox(model, Undefended(), (1, 8, 8), budget, CPU)
    pool = Sorted().images((1, 8, 8)) if images is None else images
    found = whole.attack.spend(api, pool, whole.adversary(CPU))
    return found.transfer, api, pool, found.columns


@pytest.mark.parametrize("reward", KINDS)
@pytest.mark.parametrize(("budget", "batch_size"), [(1, 64), (63, 64), (100, 7), (200, 64)])
def test_spends_exactly_the_budget_on_distinct_images(reward, budget, batch_size):
    transfer, api, pool, columns = steal(budget, reward, batch_size=batch_size)
    assert api.queries == budget == len(transfer.rows.unique()) == len(transfer.answers)
    assert transfer.images is pool
    assert torch.allclose(transfer.answers, api.answer(pool[transfer.rows] / 255)[1], atol=1e-6)
    assert columns["actions"] == torch.bincount(Sorted().labels()[transfer.rows], minlength=4).tolist()


def test_same_seed_same_bits():
    (first, *_, columns), (again, *_, same), (other, *_) = (steal(seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.rows, again.rows)
    assert torch.equal(first.answers, again.answers)
    assert columns == same
    assert not torch.equal(first.rows, other.rows)


def test_a_stream_is_asked_about_alike():
    plain = steal(20, batch_size=10)[0]
    assert torch.equal(steal(20, batch_size=10, images=Streamed(plain.images))[0].rows, plain.rows)


def answers(count=30, classes=5):
    return torch.softmax(3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(4)), dim=1)


def test_certainty_is_the_margin():
    for row, found in zip(answers().tolist(), certainty(answers()).tolist(), strict=True):
        second, first = sorted(row)[-2:]
        assert found == pytest.approx(first - second, abs=1e-6)


@pytest.mark.parametrize("past", [0, 1, 12])
def test_diversity_is_what_stands_above_the_mean_so_far(past):
    rows = answers().tolist()
    found = diversity(answers()[past:], answers()[:past].sum(dim=0), past).tolist()
    for place, reward in enumerate(found, start=past):
        mean = [sum(row[k] for row in rows[:place]) / max(1, place) for k in range(5)]
        assert reward == pytest.approx(sum(max(0, rows[place][k] - mean[k]) for k in range(5)), abs=1e-5)


def test_the_loss_is_that_of_the_network_before_its_step(monkeypatch):
    """With one request the network is still the untrained one; with two it has taken a step on the first."""
    taken = []
    monkeypatch.setattr(Bandit, "learn", lambda self, rewards: taken.append(rewards))
    monkeypatch.setattr(Bandit, "columns", lambda self: {})  # of what it did not learn
    monkeypatch.setattr(Scale, "__call__", lambda self, rewards: rewards)
    transfer, _, pool, _ = steal(40, "loss", batch_size=20, learning_rate=0.1)
    slow = cell(pool=Sorted()).adversary(CPU).untrained("policy")
    images = pool[transfer.rows] / 255
    for some, found in zip(torch.arange(40).split(20), taken, strict=True):
        loss = -(transfer.answers[some] * slow(images[some]).log_softmax(dim=1)).sum(dim=1)
        assert found.tolist() == pytest.approx(loss.tolist(), abs=1e-5)
        loss.mean().backward()
        with torch.no_grad():
            for value in slow.parameters():
                value -= 0.1 * value.grad


def test_rewards_are_scaled_by_what_was_seen_so_far():
    given = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()
    scale = Scale()
    found = torch.cat([scale(some) for some in given.split(7)])
    assert found[0].tolist() == [0, 0, 0]
    for place in range(1, 40):
        seen = given[: place + 1]
        low, high = seen.min(dim=0).values, seen.max(dim=0).values
        assert torch.allclose(found[place], (given[place] - low) / (high - low))


def test_the_policy_follows_the_gradient_of_the_reward():
    """A slow twin in plain numbers, over requests of several images."""
    bandit = Bandit(torch.arange(300) % 3, seed=0)
    preferences, times, past = [0.0] * 3, [0] * 3, []
    draw = torch.Generator().manual_seed(0)
    for _ in range(10):
        classes = (bandit.draw(8) % 3).tolist()
        rewards = torch.rand(8, generator=draw)
        bandit.learn(rewards)
        for z, reward in zip(classes, rewards.tolist(), strict=True):
            times[z] += 1
            better = reward - sum(past[-WINDOW:]) / len(past[-WINDOW:]) if past else 0
            total = sum(map(math.exp, preferences))
            policy = [math.exp(value) / total for value in preferences]
            for k in range(3):
                preferences[k] += better / times[z] * ((k == z) - policy[k])
            past.append(reward)
    assert bandit.preferences.tolist() == pytest.approx(preferences, abs=1e-9)
    assert bandit.counts.tolist() == times


def test_a_class_that_pays_is_asked_about_more():
    labels = torch.arange(4000) % 4
    bandit = Bandit(labels, seed=0)
    for _ in range(50):
        rows = bandit.draw(16)
        bandit.learn((labels[rows] == 2).double())
    assert bandit.counts.argmax() == 2
    assert bandit.counts[2] > 0.5 * bandit.counts.sum()
    assert bandit.columns()["action_entropy"] < 1.9


@pytest.mark.parametrize("reward", ["certainty", "loss", "all"])
def test_the_attack_prefers_the_class_of_planted_answers(reward):
    """The victim is sure of class 3's images alone: of the class that the adversary's network expects least."""

    class Planted(BlackBox):
        def __call__(self, images):
            super().__call__(images)
            nearest = torch.stack([(images * 255 - other).abs().sum(dim=(1, 2, 3)) for other in centres]).argmin(dim=0)
            sure = torch.eye(4)[unexpecting(images).argmin(dim=1)]
            return torch.where((nearest == 3).unsqueeze(1), sure, torch.full((len(images), 4), 0.25))

    whole = cell(attack=KnockoffAdaptive(400, reward, learning_rate=1e-4, batch_size=16), pool=Sorted(size=4000))
    pool, labels = whole.pool.images((1, 8, 8)), whole.pool.labels()
    centres = [pool[labels == z].float().mean(dim=0) for z in range(4)]
    model, unexpecting = whole.victim.untrained(seed=0, purpose="victim"), whole.adversary(CPU).untrained("policy")
    api = Planted(model, Undefended(), (1, 8, 8), 400, CPU)
    found = whole.attack.spend(api, pool, whole.adversary(CPU)).columns["actions"]
    assert found[3] > 1.4 * 100
    assert found[3] == max(found)


def test_a_class_that_runs_out_is_left_to_the_others():
    labels = torch.tensor([5] * 3 + [9] * 97)
    bandit = Bandit(labels, seed=0)
    rows = []
    for _ in range(10):
        rows += bandit.draw(10).tolist()
        bandit.learn((labels[rows[-10:]] == 5).double())
        assert bandit.preferences.isfinite().all()
    assert sorted(rows) == list(range(100))
    assert bandit.counts.tolist() == [3, 97]


def test_nothing_overflows_at_extreme_rewards():
    bandit = Bandit(torch.arange(2000) % 2, seed=0)
    for turn in range(20):
        bandit.draw(100)
        bandit.learn(torch.full((100,), (-1.0) ** turn * 1e6))
        assert bandit.preferences.isfinite().all()
        policy = bandit.policy(torch.tensor([True, True]))
        assert policy.sum() == pytest.approx(1)


def test_the_entropy_is_that_of_the_classes_asked_about():
    columns = steal(200)[3]  # the whole pool: 50 of each class
    assert columns == {"action_entropy": pytest.approx(2.0), "actions": [50, 50, 50, 50]}


def test_a_label_only_adversary_weighs_labels():
    whole = cell(attack=KnockoffAdaptive(50, "certainty"), pool=Sorted(), recovery=Argmax())
    api = BlackBox(whole.victim.untrained(seed=0, purpose="victim"), Undefended(), (1, 8, 8), 50, CPU)
    found = whole.attack.spend(api, Sorted().images(None), whole.adversary(CPU))
    assert len(found.transfer.answers) == 50


def test_a_record(tmp_path, fits):
    record = run(cell(attack=KnockoffAdaptive(60), pool=Sorted()), Store(tmp_path), CPU)[0]
    assert fits == ["victim toy", "knockoff"]
    assert (record["attack"], record["attack_settings"], record["queries"]) == ("adaptive", "", 60)
    assert sum(record["actions"]) == 60
    assert 0 < record["action_entropy"] <= 2


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        (Blobs(), "attack adaptive chooses among classes, pool blobs has none: take another pool"),
        (Single(), "attack adaptive chooses among classes, pool blobs has none: take another pool"),
        (Short(), "pool blobs has 200 images and 199 labels: give it one an image"),
    ],
)
def test_a_pool_without_classes_is_refused_before_training(pool, words, tmp_path, fits):
    with pytest.raises(MadError, match=rf"^{words}$"):
        run(cell(attack=KnockoffAdaptive(50), pool=pool), Store(tmp_path), CPU)
    assert fits == []


def test_other_attacks_know_no_labels():
    assert cell(pool=Sorted()).adversary(CPU).labels is None
    assert Adversary.__dataclass_fields__["labels"].default is None


@pytest.mark.parametrize("wrong", [{"reward": "luck"}, {"batch_size": 0}, {"learning_rate": -1}, {"budget": 0}])
def test_wrong_settings(wrong):
    with pytest.raises(MadError, match=rf"attack\.{next(iter(wrong))}"):
        KnockoffAdaptive(**wrong)


def test_letters_know_what_they_are(monkeypatch):
    glyphs = torch.zeros(3 * 52, 1, digits.CANVAS, digits.CANVAS)
    glyphs[7::52] = 1  # in every font, only the letter h has any ink
    monkeypatch.setattr(digits, "render_glyphs", lambda alphabet, fonts: glyphs)
    pool = digits.Letters(size=500, seed=3)
    inked = pool.images((1, 28, 28)).flatten(1).amax(dim=1) > 0
    assert torch.equal(pool.labels() == 7, inked)
    assert inked.any()


def test_digits_know_what_they_are():
    assert torch.equal(digits.Digits().labels(), digits.Digits().train().labels)


def test_a_folders_classes_are_its_subfolders(tmp_path):
    for place in ("b/deep/1.png", "a/1.png", "b/2.png", "0.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 9).save(tmp_path / place)
    pool = ImageFolder(str(tmp_path))
    names = ["".join(file.relative_to(tmp_path).parts[:-1][:1]) for file in pool.files]
    assert [["", "a", "b"][z] for z in pool.labels()] == names
    assert set(names) == {"", "a", "b"}


def idx(magic, *shape, values):
    return np.array([magic, *shape], dtype=">u4").tobytes() + bytes(values)


def test_idx_labels_lie_beside_the_images(tmp_path):
    images = [tmp_path / f"{name}-images-idx3-ubyte" for name in ("one", "two")]
    for file, labels in zip(images, ([3, 1], [2]), strict=True):
        file.write_bytes(idx(0x0803, len(labels), 2, 2, values=range(4 * len(labels))))
        beside = file.with_name(file.name.replace("images-idx3", "labels-idx1"))
        beside.write_bytes(idx(0x0801, len(labels), values=labels))
    pool = IdxImages([str(file) for file in images])
    assert pool.labels().tolist() == [3, 1, 2]
    assert len(pool.images((1, 2, 2))) == 3
    beside.write_bytes(idx(0x0801, 2, values=[1]))
    with pytest.raises(MadError, match="no whole IDX file of labels"):
        pool.labels()
    beside.unlink()
    with pytest.raises(UnfitError, match="no labels beside it"):
        pool.labels()
    (tmp_path / "plain").write_bytes(images[0].read_bytes())
    with pytest.raises(UnfitError, match="no labels beside it"):
        IdxImages(str(tmp_path / "plain")).labels()
