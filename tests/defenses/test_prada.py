"""PRADA: the fast batched detector beside algorithm 3 as it is written, one query at a time."""

import json
import math
import threading

import numpy as np
import pytest
import torch
from scipy import stats
from toys import CPU, cell, victim

from mad.defenses import Prada, Rounding
from mad.defenses.prada import GrowingSet, nearest, shapiro_wilk, without_outliers
from mad.deployment import deploy
from mad.errors import MadError
from mad.pipeline import run, utility
from mad.storage.store import Store


def draw(seed):
    return torch.Generator().manual_seed(seed)


def images(count, seed=0):
    return torch.rand(count, 1, 8, 8, generator=draw(seed))


def answers(count, classes=4, seed=0):
    return torch.softmax(3 * torch.randn(count, classes, generator=draw(seed)), dim=1)


def session(**settings):
    ready = Prada(**settings)
    ready._key = 7
    return ready.session()


def algorithm(queries, classes, delta, least, every):
    """Return the distances, the sizes of the growing sets, the query that raises the alarm, and the least W."""
    sets, joined, threshold, distances, lowest = {}, {}, {}, [], None
    for number, (query, label) in enumerate(zip(queries.double().flatten(1), classes.tolist(), strict=True), 1):
        if label not in sets:
            sets[label], joined[label], threshold[label] = [query], [0.0], 0.0
            continue
        distance = min(torch.dist(query, each).item() for each in sets[label])
        distances.append(distance)
        if distance > threshold[label]:
            sets[label].append(query)
            joined[label].append(distance)
            threshold[label] = max(threshold[label], np.mean(joined[label]) - np.std(joined[label]))
        if len(distances) > least and len(distances) % every == 0:
            values = np.array(distances)
            kept = values[np.abs(values - values.mean()) <= 3 * values.std()]
            w = stats.shapiro(kept).statistic
            lowest = w if lowest is None else min(lowest, w)
            if w < delta:
                return distances, sum(map(len, sets.values())), number, lowest
    return distances, sum(map(len, sets.values())), None, lowest


@pytest.mark.parametrize("size", [1, 7, 64, 300])
@pytest.mark.parametrize("kind", ["honest", "alike"])
def test_it_is_the_papers_algorithm(kind, size):
    queries, posteriors = images(300), answers(300)
    if kind == "alike":  # later queries are small steps from a few earlier ones, as those of JBDA are
        queries[100:] = queries[torch.arange(200) % 20] + 0.01 * torch.rand(200, 1, 8, 8, generator=draw(5))
    if kind == "honest":  # on a plane, so that some queries are near others
        queries = (torch.rand(300, 2, generator=draw(3)) @ torch.rand(2, 64, generator=draw(4)) / 2).view(300, 1, 8, 8)
    delta = 0.9 if kind == "alike" else 0.5
    distances, stored, flagged, lowest = algorithm(queries, posteriors.argmax(dim=1), delta, 50, 10)
    assert (flagged is None) == (kind == "honest")
    found = session(delta=delta, least=50)
    for part in zip(queries.split(size), posteriors.split(size), strict=True):
        assert torch.equal(found(*part), part[1])
    assert found._flagged_at == flagged
    assert found._lowest == pytest.approx(lowest, abs=1e-5)
    if flagged is None:
        assert found._distances == pytest.approx(distances, abs=1e-4)
        assert found._stored == stored < 290
    else:
        assert not found._distances  # nothing is looked at any more


def test_w_of_many_distances_warns_of_no_p_value(recwarn):
    values = torch.from_numpy(np.random.default_rng(0).exponential(size=6000))
    assert 0.7 < shapiro_wilk(values) < 0.9
    assert not recwarn.list


def test_w_of_equal_values_flags_nobody():
    assert shapiro_wilk(torch.full((50,), 0.3, dtype=torch.float64)) == 1
    assert shapiro_wilk(torch.zeros(50, dtype=torch.float64)) == 1
    found = session(least=10)
    found(images(1).expand(40, 1, 8, 8), answers(1).expand(40, 4))
    assert found._flagged_at is None
    assert found._stored == 1


def test_outliers_are_three_deviations_from_the_mean():
    values = torch.cat([torch.linspace(0, 1, 100, dtype=torch.float64), torch.tensor([50.0], dtype=torch.float64)])
    assert torch.equal(without_outliers(values), values[:100])


def test_near_points_are_measured_exactly():
    far = 100 + torch.rand(50, 3000, generator=draw(1))
    near = far[:20] + 1e-3
    assert torch.allclose(nearest(near, far), torch.full((20,), 1e-3 * math.sqrt(3000)), rtol=0.02)
    assert torch.equal(nearest(far, far), torch.zeros(50))


def test_a_growing_set_grows_by_what_is_far():
    growing = GrowingSet()
    points = torch.tensor([[0.0], [10.0], [10.5], [20.0], [20.1]])
    assert growing.look(points[:1], 10) == [None]
    assert growing.look(points[1:], 10) == pytest.approx([10.0, 0.5, 9.5, 0.1], abs=1e-4)
    joined = np.array([0, 10, 0.5, 9.5])  # 0.1 is below the mean less the standard deviation
    assert len(growing) == 4
    assert growing.threshold == pytest.approx(joined.mean() - joined.std(), abs=1e-4)


def test_memory_bounds_what_is_stored():
    room = 12
    found = session(memory=room * 4 * 64 / 1e6)
    for part in zip(images(300).split(50), answers(300).split(50), strict=True):
        found(*part)
    assert room <= found._stored <= room + 3  # the first of each class in any case
    assert len(found._distances) == 300 - len(found._sets)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("size", [1, 33, 256])
def test_what_a_flagged_client_gets(classes, size):
    queries, clean = images(200), answers(200, classes)
    queries[60:] = queries[torch.arange(140) % 20] + 0.001
    got = {}
    for action in ("report", "shuffle", "label"):
        found = session(action=action, least=50)
        parts = zip(queries.split(size), clean.split(size), strict=True)
        got[action] = torch.cat([found(*part) for part in parts])
        first = found.session_columns()["prada_flagged_at"]
        assert 60 < first < 200
        assert torch.equal(got[action][:first], clean[:first])
    assert torch.equal(got["report"], clean)
    assert torch.equal(got["label"][first:], torch.eye(classes)[clean[first:].argmax(dim=1)])
    mixed, before = got["shuffle"][first:], clean[first:]
    assert torch.equal(mixed.sort(dim=1).values, before.sort(dim=1).values)
    moved = (mixed != before).sum(dim=1)
    assert 0 < (moved > 0).float().mean() < 1
    assert moved.max() <= 3
    assert torch.equal(
        mixed.topk(min(3, classes)).indices.sort().values, before.topk(min(3, classes)).indices.sort().values
    )


def test_a_flagged_client_stays_flagged_in_another_session():
    queries, clean = images(200), answers(200)
    queries[60:] = queries[torch.arange(140) % 20] + 0.001
    one, other = (session(action="label", least=50) for _ in range(2))
    assert one.remembered() is None
    one(queries, clean)
    assert one.suspect
    assert not other.suspect
    other.recall(json.loads(json.dumps(one.remembered())))
    assert other.suspect
    assert torch.equal(other(images(5), clean[:5]), torch.eye(4)[clean[:5].argmax(dim=1)])
    assert other.session_columns()["prada_flagged_at"] == one.session_columns()["prada_flagged_at"]
    with pytest.raises(MadError, match=r"prada cannot go on from \[1\]: it is no memory of a client"):
        other.recall([1])


def test_a_budget_limits_the_action():
    queries, clean = images(1).expand(60, 1, 8, 8), answers(60)
    found = session(epsilon=0.2, action="label")
    found._flagged_at = 10
    answered = found(queries, clean)
    assert torch.equal(answered[:10], clean[:10])
    assert (answered - clean).abs().sum(dim=1).max() <= 0.2 + 1e-5


def test_with_a_budget_of_zero_it_looks_all_the_same():
    queries, clean = images(600), answers(600)
    for epsilon in (0.5, 0.0):
        found = session(epsilon=epsilon, delta=1.0)
        told = found(queries, clean)
        assert found.suspect
    assert torch.equal(told, clean)
    assert cell(defense=Prada(epsilon=0.0)).defense.name == "prada"
    assert cell(defense=Rounding(epsilon=0.0)).defense.name == "none"


def test_a_session_is_not_anothers_and_threads_lose_nothing():
    deployment = deploy(victim(), Prada(least=10_000))
    shared, some = deployment.session(), images(64 * 8).split(4)
    other = deployment.session()
    threads = [
        threading.Thread(target=lambda n: [shared(p) for p in some[2 * n : 2 * n + 2]], args=(n,)) for n in range(64)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    seen = shared.defense
    assert seen._asked == shared.queries == 512
    assert len(seen._distances) + len(seen._sets) == 512
    assert seen._stored == sum(map(len, seen._sets.values()))
    assert other.defense._asked == 0
    first, again = (deployment.session() for _ in range(2))
    for api in (first, again):
        for part in some:
            api(part)
    assert first.defense._distances == again.defense._distances


def test_the_record_says_when_and_how_often_in_vain(tmp_path):
    record = run(cell(defense=Prada(least=20, delta=1.0), budget=50), Store(tmp_path), CPU)[0]
    assert 20 < record["prada_flagged_at"] <= 50
    assert record["prada_false_alarms"] == 1
    assert (record["prada_honest_clients"], record["prada_honest_queries"]) == (1, 200)
    assert 0 < record["prada_lowest_w"] < 1
    assert (record["strength_parameter"], record["strength"], record["l1_max"]) == ("delta", 1.0, 0)
    quiet = run(cell(defense=Prada(least=20, delta=0), budget=50), Store(tmp_path), CPU)[0]
    assert quiet["prada_flagged_at"] is None
    assert quiet["prada_false_alarms"] == 0


@pytest.mark.parametrize("size", [1, 7, 60])
def test_the_columns_are_about_all_accounts_and_not_about_requests(size):
    some = images(120)
    api = deploy(victim(), Prada(least=20, every=1, delta=1.0)).session(120, accounts=2)
    alone = deploy(victim(), Prada(least=20, every=1, delta=1.0)).session()
    few = deploy(victim(), Prada(least=20, every=1, delta=1.0)).session(120, accounts=4)
    for part in some.split(size):
        for each in (api, few):
            each(part)
    alone(some)
    told = api.defense.session_columns()
    assert told["prada_flagged"] == 1
    assert 20 < told["prada_flagged_at"] <= 60
    assert told["prada_stored"] == alone.defense.session_columns()["prada_stored"] == 0
    assert told["prada_lowest_w"] < 1
    assert few.defense.session_columns()["prada_flagged"] <= 1
    quiet = deploy(victim(), Prada(delta=0)).session(120, accounts=3)
    for part in some.split(size):
        quiet(part)
    told = quiet.defense.session_columns()
    assert (told["prada_flagged"], told["prada_flagged_at"]) == (0, None)
    assert told["prada_stored"] == sum(each._stored for each in quiet.defense._sessions) > 3


@pytest.mark.parametrize(("queries", "clients"), [(120, 2), (50, 4), (200, 1)])
def test_honest_clients_make_a_thousand_queries_each(queries, clients):
    class Short(Prada):
        honest_queries = queries

    found = utility(deploy(victim(), Short(least=20, delta=1.0)), victim().dataset.test(), None, CPU)
    assert (found["prada_honest_clients"], found["prada_honest_queries"]) == (clients, queries)
    assert Prada.honest_queries == 1000


@pytest.mark.parametrize(
    "settings", [{"delta": 1.1}, {"delta": -1}, {"action": "ban"}, {"least": 2}, {"every": 0}, {"memory": -1}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(MadError, match=f"defense.{next(iter(settings))}"):
        Prada(**settings)
