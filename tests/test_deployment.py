"""A deployed victim: who asks it, and what the defense may know of them."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from toys import CPU, Blobs, cell, victim

from mad.attacks.knockoff_nets import KnockoffNets
from mad.defenses import Defense
from mad.defenses.mad import Mad
from mad.deployment import deploy
from mad.errors import BudgetExceededError, MadError
from mad.pipeline import run
from mad.recoveries import AsAnswered
from mad.recoveries.argmax import Argmax
from mad.schema import Column
from mad.storage.store import Store


@dataclass
class Quota(Defense):
    """Answer a client's first images as they are, and all further ones with nothing."""

    name = "quota"
    stateful = True
    epsilon: float | None = None
    quota: int = 60

    def prepare(self, context):
        self.asked_by_all = []

    def begin(self):
        self._asked = 0

    def perturb(self, images, clean):
        left = max(0, self.quota - self._asked)
        self._asked += len(clean)
        self.asked_by_all.append(len(clean))
        return torch.where((torch.arange(len(clean)) < left).unsqueeze(1), clean, 1 / clean.shape[1])


def images(count):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))


def changed(api, count):
    """Return which of some images are not answered as they are."""
    some = images(count)
    clean = torch.softmax(deploy(victim()).served(some), dim=1)
    return (api(some) - clean).abs().sum(dim=1) > 1e-3


def test_two_sessions_know_nothing_of_each_other():
    deployment = deploy(victim(), Quota())
    first = deployment.session()
    assert changed(first, 70).tolist() == [False] * 60 + [True] * 10
    second = deployment.session()
    assert not changed(second, 50).any()
    assert changed(second, 15).tolist() == [False] * 10 + [True] * 5
    assert changed(first, 5).all()
    assert (first.queries, second.queries) == (75, 65)
    assert deployment.defense.asked_by_all == [70, 50, 15, 5]  # what is made in prepare is shared


def test_honest_users_are_scored_in_a_session_of_their_own(tmp_path):
    spent = cell(defense=Quota(quota=200), attack=KnockoffNets(200))
    record = run(spent, Store(tmp_path), CPU)[0]
    assert record["defended_accuracy"] == record["victim_accuracy"] > 0.9  # on 200 images of their own
    assert record["l1_mean_queries"] < 1e-6
    short = run(cell(defense=Quota(quota=50), attack=KnockoffNets(200)), Store(tmp_path), CPU)[0]
    assert short["l1_mean_queries"] > 0.1
    assert 0.5 < short["defended_accuracy"] < 0.8


def together(defense, sessions, threads=8, requests=24):
    deployment = deploy(victim(), defense)
    apis = [deployment.session() for _ in range(sessions)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda place: apis[place % sessions](images(3)), range(requests)))
    return deployment.defense, apis


@dataclass
class Crowd(Quota):
    """Notes how many are inside at once."""

    name = "crowd"
    inside: list = field(default_factory=list, compare=False)
    most: list = field(default_factory=list, compare=False)

    def perturb(self, images, clean):
        self.inside.append(1)
        self.most.append(len(self.inside))
        time.sleep(0.002)
        self.inside.pop()
        return super().perturb(images, clean)


@pytest.mark.parametrize("sessions", [1, 3])
def test_a_stateful_defense_answers_one_at_a_time(sessions):
    defense, apis = together(Crowd(quota=36), sessions)
    assert set(defense.most) == {1}
    assert [api._defense._asked for api in apis] == [72 / sessions] * sessions
    assert defense.asked_by_all == [3] * 24


@dataclass
class Meeting(Defense):
    """Answers only once two are inside."""

    name = "meeting"
    epsilon: float | None = None
    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=30), compare=False)

    def perturb(self, images, clean):
        self.meeting.wait()
        return clean


def test_another_defense_answers_many_at_once():
    deployment = deploy(victim(), Meeting())
    api = deployment.session()
    with ThreadPoolExecutor(2) as pool:
        assert len(list(pool.map(api, [images(3)] * 2))) == 2
    assert deployment.session()._defense is deployment.defense


def test_a_session_has_a_budget_and_a_ledger_of_its_own():
    deployment = deploy(victim(), Mad(0.5))
    api, other = deployment.session(10), deployment.session()
    api(images(10))
    with pytest.raises(BudgetExceededError):
        api(images(1))
    assert other.queries == other.l1_mean == 0
    assert torch.equal(other(images(10)), deployment.session()(images(10)))


@pytest.mark.parametrize("accounts", [0, -1, 1.5, "2", True, None])
def test_a_number_of_accounts_that_is_none_is_refused(accounts):
    with pytest.raises(MadError, match="accounts must be a whole number of at least 1"):
        deploy(victim(), Quota()).session(10, accounts=accounts)


def test_a_deployment_is_what_a_cell_attacks(tmp_path):
    whole = cell(0.9, seed=3)
    record = run(whole, Store(tmp_path), CPU)[0]
    deployment = deploy(whole.victim, whole.defense, seed=3, store=Store(tmp_path), device="cpu")
    assert deployment.seconds == record["seconds_victim"]
    clean, defended = deployment.session().answer(Blobs().test().images / 255)
    assert (defended - clean).abs().sum(dim=1).mean().item() == pytest.approx(record["l1_mean"], abs=1e-6)
    other = deploy(whole.victim, whole.defense, seed=4, store=Store(tmp_path)).session()
    assert not torch.allclose(other.answer(Blobs().test().images / 255)[1], defended, atol=1e-3)


def test_a_defense_is_checked_before_a_victim_is_trained(fits):
    @dataclass
    class Refusing(Quota):
        def check(self, victim):
            raise MadError(f"not for {victim.name}")

    with pytest.raises(MadError, match="not for toy"):
        deploy(victim(), Refusing())
    assert fits == []


@dataclass
class Telling(Mad):
    """Writes a column."""

    schema = (Column("spent", "number", "", "what it cost"),)

    def columns(self, context):
        return {"spent": context.seed + 0.5}


def test_what_a_defense_says_of_itself_is_in_the_deployment():
    assert deploy(victim(), Telling(0.5), seed=2).columns == {"spent": 2.5}


@dataclass
class Live(Defense):
    """Keeps what it was given to read the adversary by."""

    name = "live"
    epsilon: float | None = None

    def prepare(self, context):
        self.live = context.live

    def perturb(self, images, clean):
        return clean


def test_the_live_network_is_handed_to_the_defense_alone():
    assert deploy(victim(), Live()).defense.live is None
    network = victim().untrained(seed=1, purpose="knockoff")
    assert deploy(victim(), Live(), live=lambda: network).defense.live() is network


@dataclass
class Wearing(Quota):
    """Answer the first images of all clients together as they are, and all further ones with a wrong class."""

    name = "wearing"
    quota: int = 120

    def prepare(self, context):
        self._all = [0]

    def begin(self):
        self._own = 0

    def perturb(self, images, clean):
        left = max(0, self.quota - self._all[0])
        self._all[0] += len(clean)
        return torch.where((torch.arange(len(clean)) < left).unsqueeze(1), clean, clean.roll(1, dims=1))


def test_honest_users_do_not_see_what_the_thief_left_of_a_shared_state(tmp_path):
    asking, loading = (cell(defense=Wearing(), recovery=each) for each in (AsAnswered(), Argmax()))
    found = [run(each, Store(tmp_path), CPU)[0] for each in (asking, loading)]
    assert len(list(tmp_path.glob("transfers/toy/*"))) == 1  # the second asked nothing
    apart = run(loading, Store(tmp_path / "apart"), CPU)[0]
    for name in ("defended_accuracy", "l1_mean", "l1_max", "answer_entropy"):
        assert found[0][name] == found[1][name] == apart[name]
    assert 0.55 < found[0]["defended_accuracy"] < 0.65  # 120 of 200 images; 70 if the thief's 50 counted


def test_a_fresh_deployment_has_forgotten_every_query():
    worn = deploy(victim(), Wearing(quota=10))
    assert changed(worn.session(), 15).sum() == 5
    assert changed(worn.session(), 15).all()
    fresh = worn.fresh()
    assert changed(fresh.session(), 15).sum() == 5
    assert changed(worn.fresh().session(), 15).sum() == 5
    assert fresh._turn is not worn._turn
    assert (fresh.served, fresh.model, fresh.columns) == (worn.served, worn.model, worn.columns)
    stateless = deploy(victim(), Mad(0.5))
    assert stateless.fresh() is stateless
