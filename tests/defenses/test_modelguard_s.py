"""ModelGuard-S against its definition, one query after another; and what clients share."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import CPU, Blobs, cell, victim

import mad
from mad import simplex
from mad.defenses.modelguard_s import ModelGuardS
from mad.deployment import deploy
from mad.errors import MadError
from mad.pipeline import run
from mad.recoveries.argmax import Argmax
from mad.storage.store import Store


def posteriors(rows=200, classes=4, seed=0, scale=1.5):
    """Posteriors around 50 centers, some of which have the same top class."""
    draw = torch.Generator().manual_seed(seed)
    centers = torch.randn(50, classes, generator=draw)
    centers[:, 3:] -= 1
    logits = centers[torch.randint(50, (rows,), generator=draw)] + 0.1 * torch.randn(rows, classes, generator=draw)
    return torch.softmax(scale * logits, dim=1)


def ready(epsilon=0.5, classes=4, **changes):
    return deploy(victim(classes), ModelGuardS(epsilon, **changes)).defense


def asked(defense, clean):
    return defense.session()(torch.zeros(len(clean), 1, 8, 8), clean)


def one_by_one(clean, epsilon, most=1000, held=None, frozen=False):
    """Answers and centroids by the definition: a list a class, one row after another."""
    held = {} if held is None else held
    answers = []
    for row in clean:
        kind = int(row.argmax())
        stored = held.setdefault(kind, [])
        distance = [float((row - each).abs().sum()) for each in stored]
        near = [place for place, far in enumerate(distance) if far <= epsilon]
        if near:
            answers.append(stored[near[0]])
        elif len(stored) < most and not frozen:
            stored.append(row)
            answers.append(row)
        elif stored:
            nearest = stored[distance.index(min(distance))]
            step = epsilon / min(distance)
            answers.append(row + step * (nearest - row))
        else:
            answers.append(row)
    return torch.stack(answers), held


@pytest.mark.parametrize("most", [1, 2, 1000])
@pytest.mark.parametrize("classes", [2, 4, 100])
@pytest.mark.parametrize("size", [1, 7, 200])
def test_batches_are_answered_as_one_query_after_another(classes, most, size):
    clean = posteriors(classes=classes)
    epsilon = 0.3 if classes < 100 else 0.5
    expected, held = one_by_one(clean, epsilon, most)
    defense = ready(epsilon, classes, most=most)
    answers = torch.cat([asked(defense, part) for part in clean.split(size)])
    assert torch.allclose(answers, expected, rtol=0, atol=1e-6)
    stored = defense.state()["centroids"]
    assert torch.equal(stored, torch.cat([torch.stack(held[kind]) for kind in sorted(held)]))
    counts = [len(each) for each in held.values()]
    assert defense.session_columns() == {"centroids": sum(counts), "centroids_most": max(counts)}
    assert max(counts) <= most
    if most == 1000:
        assert len(clean) > 1.5 * sum(counts)


@given(st.lists(st.integers(0, 9999), min_size=1, max_size=30), st.sampled_from([0.05, 0.4, 1, 2]), st.integers(1, 5))
def test_answers_keep_top_class_and_budget(seeds, epsilon, most):
    clean = torch.cat([posteriors(1, 3, seed, 4) for seed in seeds])
    answers = asked(ready(epsilon, 3, most=most), clean)
    assert torch.equal(answers.argmax(dim=1), clean.argmax(dim=1))
    assert simplex.l1(answers, clean).max() <= epsilon + 1e-5


def test_what_an_image_was_answered_with_stays():
    """The nearest centroid would be another one once a nearer one is stored."""
    clean = torch.tensor([[0.6, 0.4], [0.75, 0.25], [0.85, 0.15]])
    defense = ready(0.3 + 1e-6, 2)
    assert asked(defense, clean[1:2]).equal(clean[1:2])
    defense = ready(0.4, 2)
    first = asked(defense, clean)  # stores the first and the last
    assert torch.allclose(first, clean[[0, 0, 2]])
    assert torch.equal(asked(defense, clean), first)


def test_one_hot_and_tied_answers():
    clean = torch.cat([torch.eye(3), torch.full((2, 3), 1 / 3), torch.tensor([[0.5, 0.5, 0.0]])])
    expected, _ = one_by_one(clean, 0.5)
    assert torch.allclose(asked(ready(0.5, 3), clean), expected)


def test_answers_depend_on_the_order():
    clean = posteriors()
    there, back = asked(ready(1.0), clean), asked(ready(1.0), clean.flip(0)).flip(0)
    assert not torch.allclose(there, back, atol=1e-2)


def test_all_clients_share_the_centroids_and_a_fresh_deployment_has_none():
    deployment, clean = deploy(victim(), ModelGuardS(1.0)), posteriors()
    first = asked(deployment.defense, clean)
    stored = deployment.defense.session_columns()["centroids"]
    assert 0 < stored < 40
    assert torch.equal(asked(deployment.defense, clean), first)
    assert deployment.defense.session_columns()["centroids"] == stored
    assert deployment.fresh().defense.session_columns()["centroids"] == 0


def test_many_threads_are_answered_as_one_client():
    deployment = deploy(victim(), ModelGuardS(0.02))
    images = Blobs().test().images / 255
    apis = [deployment.session() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda at: apis[at % 4].answer(images[10 * (at % 20) :][:10]), range(80)))
    clean, defended = (torch.cat(part) for part in zip(*answers, strict=True))
    stored = deployment.defense.state()["centroids"]
    within = (stored.unsqueeze(1) - stored).abs().sum(dim=2) + 9 * torch.eye(len(stored))
    same = stored.argmax(dim=1, keepdim=True) == stored.argmax(dim=1)
    assert len(stored) > 4
    assert (within[same] > 0.02).all()  # no two that one would do for
    assert simplex.l1(clean, defended).max() <= 0.02 + 1e-5
    assert all((row == stored).all(dim=1).any() for row in defended)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_state_goes_on_elsewhere(frozen):
    clean, more = posteriors(), posteriors(seed=1, scale=4)
    before, after = ready(0.4), ready(0.4)
    asked(before, clean[clean.argmax(dim=1) > 0])
    after.restore(before.state(), frozen)
    _, held = one_by_one(clean[clean.argmax(dim=1) > 0], 0.4)
    expected, held = one_by_one(more, 0.4, held=held, frozen=frozen)
    assert torch.allclose(asked(after, more), expected, rtol=0, atol=1e-6)
    assert after.session_columns()["centroids"] == sum(map(len, held.values()))
    if not frozen:
        assert torch.equal(asked(before, more), asked(after, more))


def test_a_state_that_does_not_fit_is_refused():
    defense, other = ready(), ready(0.05, most=2)
    asked(defense, posteriors(classes=4))
    with pytest.raises(MadError, match=r"centroids \(n, 3\), posteriors, got \(2, 4\)"):
        ready(classes=3).restore({"centroids": torch.full((2, 4), 0.25)})
    with pytest.raises(MadError, match=r"most=2 is less than the \d+ centroids of a class: raise it"):
        other.restore(defense.state())
    other.restore({"centroids": torch.zeros(0, 4)})
    assert other.session_columns() == {"centroids": 0, "centroids_most": 0}


def test_the_record_says_how_many_centroids_the_thief_left(tmp_path):
    whole = cell(defense=ModelGuardS(0.1))
    record = run(whole, Store(tmp_path), CPU)[0]
    assert 1 <= record["centroids_most"] <= record["centroids"] <= record["queries"]
    assert record["defended_accuracy"] == record["victim_accuracy"]
    again = run(whole, Store(tmp_path), CPU, force=True)[0]
    assert again["centroids"] == record["centroids"]
    kept = run(cell(defense=ModelGuardS(0.1), recovery=Argmax()), Store(tmp_path), CPU)[0]
    assert kept["centroids"] == record["centroids"]  # of the transfer set that was kept


def test_an_export_starts_without_centroids(tmp_path):
    deployment = deploy(victim(), ModelGuardS(0.5))
    deployment.session()(Blobs().test().images / 255)
    deployment.export(tmp_path / "away")
    opened = mad.open_deployment(tmp_path / "away")
    assert opened.defense.session_columns()["centroids"] == 0
    opened.defense.restore(deployment.defense.state())
    images = Blobs().images(None) / 255
    assert torch.allclose(opened.session()(images), deployment.session()(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("most", [0, 1.5, "many"])
def test_a_bad_setting_is_refused(most):
    with pytest.raises(MadError, match=r"defense\.most"):
        ModelGuardS(1.0, most)
