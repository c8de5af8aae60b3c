"""Keys, budgets and rates: exact under concurrency, kept across restarts, and what is refused says why."""

import json
import random
import socket
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("kserve")
pytestmark = pytest.mark.serve

from serving_toys import MODEL, guarded, pictures, question, running, shared, toy  # noqa: E402

from mad.defenses.modelguard_s import ModelGuardS  # noqa: E402
from mad.errors import BudgetExceededError, MadError  # noqa: E402
from mad.serve.audit import Audit  # noqa: E402
from mad.serve.book import Memory  # noqa: E402
from mad.serve.ledger import Ledger, LedgerError  # noqa: E402
from mad.serve.on_ray import replica  # noqa: E402
from mad.serve.server import listener  # noqa: E402
from mad.serve.service import Service  # noqa: E402
from mad.serve.sqlite import TABLE  # noqa: E402


def test_sixteen_threads_get_exactly_the_budget(tmp_path, toy_deployment):
    sizes = [random.Random(0).randint(1, 3) for _ in range(400)]
    with running(toy_deployment, tmp_path, [("a", {"budget": 300})]) as it:
        key = it.keys["a"]
        with ThreadPoolExecutor(16) as threads:
            found = list(threads.map(lambda size: (size, it.infer(pictures(size), key)[0]), sizes))
        assert it.infer(pictures(1), key)[0] in (200, 403)
        answered = sum(size for size, status in found if status == 200)
        assert {status for _, status in found} == {200, 403}
        assert 298 <= answered <= 300
        for _ in range(300 - answered):
            it.infer(pictures(1), key)
        status, said = it.infer(pictures(1), key)
        assert (status, said["error"]) == (403, "the budget is spent: 1 queries asked for, 0 of 300 left")
        (client,) = it.service.clients.all()
        assert it.service.ledger.used(client.id) == 300
    lines = [json.loads(line) for line in (tmp_path / "clients.audit.jsonl").read_text().splitlines()]
    assert sum(len(line["images"]) for line in lines if line["status"] == 200) == 300
    with running(toy_deployment, tmp_path, [("a", {})]) as it:  # the same files: a restart
        assert it.infer(pictures(1), key)[0] == 403


def test_two_processes_charge_one_file(tmp_path):
    """Two ledgers of one file stand for two processes."""
    ledgers = [Ledger(tmp_path / "ledger") for _ in range(2)]

    def ask(number):
        try:
            return ledgers[number % 2].charge("a", 1, 100).result()
        except BudgetExceededError:
            return None

    with ThreadPoolExecutor(16) as threads:
        found = [each for each in threads.map(ask, range(300)) if each is not None]
    assert sorted(found) == list(range(1, 101))
    for each in ledgers:
        each.close()


def test_a_request_is_charged_as_a_whole_or_not_at_all(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    assert ledger.charge("a", 7, 10).result() == 7
    with pytest.raises(BudgetExceededError, match="4 queries asked for, 3 of 10 left"):
        ledger.charge("a", 4, 10).result()
    assert ledger.charge("a", 3, 10).result() == 10
    with pytest.raises(BudgetExceededError, match="11 queries asked for, 10 of 10 left"):
        ledger.charge("b", 11, 10).result()
    assert ledger.charge("b", 1, None).result() == 1
    ledger.close()


def test_a_ledger_that_goes_away_answers_nobody_and_comes_back(tmp_path, toy_deployment):
    with running(toy_deployment, tmp_path, [("a", {"budget": 100})]) as it:
        assert it.infer(pictures(2), it.keys["a"])[0] == 200
        aside = [(each, each.with_name(f"aside-{each.name}")) for each in tmp_path.glob("clients.ledger*")]
        for here, there in aside:
            here.rename(there)
        status, said = it.infer(pictures(2), it.keys["a"])
        assert (status, said["error"]) == (503, "queries cannot be counted now, so none is answered")
        assert not list(tmp_path.glob("clients.ledger*"))  # a new one would restore the budget
        for here, there in aside:
            there.rename(here)
        assert it.infer(pictures(2), it.keys["a"])[0] == 200
        (client,) = it.service.clients.all()
        assert it.service.ledger.used(client.id) == 4


def test_a_full_disk_answers_nobody(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "ledger")

    def full(charges):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_committed", full)
        with pytest.raises(LedgerError, match=r"cannot be written now .database or disk is full."):
            ledger.charge("a", 1, 10).result()
    assert ledger.charge("a", 1, 10).result() == 1
    ledger.close()


def test_another_file_is_no_ledger(tmp_path):
    (tmp_path / "text").write_text("no database at all, but long enough to be looked at" * 30)
    sqlite3.connect(tmp_path / "other").execute("CREATE TABLE other (a)").connection.close()
    for name in ("text", "other", "nowhere/ledger"):
        with pytest.raises(MadError, match=r"^the ledger \S+ cannot be used .*ledger= to another file$"):
            Ledger(tmp_path / name)


def test_an_answer_that_cannot_be_noted_is_not_given(tmp_path, toy_deployment, monkeypatch):
    with running(toy_deployment, tmp_path, [("a", {})]) as it:

        def full(**what):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(it.service.audit, "write", full)
        status, said = it.infer(pictures(1), it.keys["a"])
        assert (status, said["error"]) == (503, "answers cannot be noted now, so none is given")


def test_a_log_that_was_moved_or_removed_is_begun_again(tmp_path):
    log, other = (Audit(tmp_path / "log", 10_000, 3) for _ in range(2))
    log.write(number=1)
    (tmp_path / "log").rename(tmp_path / "moved")  # by logrotate, or by a server that has rotated it
    log.write(number=2)
    other.write(number=3)
    assert [json.loads(line)["number"] for line in (tmp_path / "log").read_text().splitlines()] == [2, 3]
    (tmp_path / "log").unlink()
    log.write(number=4)
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert len((tmp_path / "moved").read_text().splitlines()) == 1
    log.close()
    other.close()


def test_an_empty_ledger_is_told_as_a_new_one(tmp_path):
    (tmp_path / "ledger").touch()  # such as what a full disk left of it: every budget is whole again
    for new in (True, False):
        ledger = Ledger(tmp_path / "ledger")
        assert ledger.new is new
        ledger.close()


def test_a_stateful_defense_is_served_once(tmp_path):
    deployment = toy(ModelGuardS())
    with running(deployment, tmp_path, [("a", {})]) as it:
        with pytest.raises(MadError, match=r"another server with the ledger .* is running"):
            Service(deployment, it.service.settings)
        Service(shared(), it.service.settings).close()  # a stateless one may share it
    Service(deployment, it.service.settings).close()


def test_a_restart_does_not_clear_a_flagged_client(tmp_path):
    deployment, clients = guarded(), [("thief", {}), ("user", {"operator": True})]
    honest = deployment.victim.dataset.test().images[:50] / 255
    with running(deployment, tmp_path, clients) as it:
        keys_of = it.keys
        it.answers(pictures(100), keys_of["thief"])
        it.answers(honest, keys_of["user"])
        metrics = it.metrics(keys_of["user"])
        assert metrics["mad_flagged_clients"] == 1
        assert metrics["mad_unflagged_answered_total"] == 150  # the thief was not flagged before its request
        touched = metrics["mad_unflagged_touched_total"]
    with running(deployment, tmp_path, clients) as it:
        assert it.metrics(keys_of["user"])["mad_flagged_clients"] == 0  # nobody has asked yet
        answers = it.answers(honest, keys_of["thief"])
        assert (answers != deployment.clean(honest)).any(dim=1).all()
        assert (it.answers(honest, keys_of["user"]) == deployment.clean(honest)).all(dim=1).double().mean() > 0.8
        metrics = it.metrics(keys_of["user"])
        assert metrics["mad_flagged_clients"] == 1
        assert (metrics["mad_answered_total"], metrics["mad_unflagged_answered_total"]) == (100, 50)
        assert metrics["mad_unflagged_touched_total"] < touched
    with running(deployment, tmp_path, clients, refuse_flagged=True) as it:
        thief, _ = it.service.clients.all()
        used = it.service.ledger.used(thief.id)
        status, said = it.infer(honest, keys_of["thief"])
        assert (status, said["error"].split(":")[0]) == (429, "this key is closed")
        assert it.service.ledger.used(thief.id) == used
        assert it.infer(honest, keys_of["user"])[0] == 200
    with running(deployment, tmp_path, clients, refuse_flagged=True, shadow=True) as it:
        assert torch.equal(it.answers(honest, keys_of["thief"]), deployment.clean(honest))


def test_a_client_is_counted_once_whose_requests_are_under_way_when_it_is_flagged(tmp_path):
    with running(guarded(), tmp_path, [("thief", {"operator": True})]) as it:
        key = it.keys["thief"]
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(lambda some: it.infer(some, key)[0], pictures(160).split(20))) == [200] * 8
        assert it.metrics(key)["mad_flagged_clients"] == 1


def test_what_a_client_asked_before_a_restart_counts(tmp_path):
    deployment, queries, key = guarded(), pictures(4), None
    inside = deployment.session()
    for each in queries.split(1):
        inside(each)
    assert not inside.defense.suspect
    for some in queries.split(2):
        with running(deployment, tmp_path, [("a", {})]) as it:
            key = it.keys.get("a", key)
            with ThreadPoolExecutor(2) as threads:
                found = list(threads.map(lambda each, it=it, key=key: it.infer(each, key)[0], some.split(1)))
            assert found == [200] * 2
            (client,) = it.service.clients.all()
            memory = it.service._session(client).defense.remembered()
    assert memory[:4] == inside.defense.remembered()[:4]  # the queries of one restart may have come in another order
    ledger = Ledger(tmp_path / "clients.ledger")
    assert ledger.memory(client.id, "gate 3") == memory
    assert ledger.memory(client.id, "prada 1") is None
    ledger.close()


def test_a_memory_that_is_none_answers_nobody(tmp_path, capfd):
    with running(guarded(), tmp_path, [("a", {})]) as it:
        (client,) = it.service.clients.all()
        it.service.ledger.remember(client.id, "gate 3", [1, 2]).result()
        assert it.infer(pictures(1), it.keys["a"])[0] == 503
    assert "defense=gate cannot go on from [1, 2]: it is no memory of a client" in capfd.readouterr().err


def test_a_memory_that_cannot_be_written_answers_nobody(tmp_path, monkeypatch):
    with running(guarded(), tmp_path, [("a", {})]) as it:
        committed = it.service.ledger._committed

        def full(items):
            if any(isinstance(each, Memory) for each in items):
                raise sqlite3.OperationalError("database or disk is full")
            return committed(items)

        monkeypatch.setattr(it.service.ledger, "_committed", full)
        assert it.infer(pictures(1), it.keys["a"])[0] == 503
        monkeypatch.setattr(it.service.ledger, "_committed", committed)
        assert it.infer(pictures(1), it.keys["a"])[0] == 200


def test_a_ledger_of_before_has_no_memories(tmp_path):
    old = sqlite3.connect(tmp_path / "ledger")
    old.executescript(f"{TABLE} INSERT INTO used VALUES ('a', 7);")
    old.close()
    ledger = Ledger(tmp_path / "ledger")
    assert ledger.used("a") == 7
    assert ledger.memory("a", "gate 2") is None
    ledger.remember("a", "gate 2", [1.5]).result()
    assert ledger.memory("a", "gate 2") == [1.5]
    ledger.close()


def test_answers_are_sent_at_once():
    """With Nagle's algorithm an answer waits some 40 ms; asyncio turns it off for sockets that say they are TCP."""
    with listener("127.0.0.1", 0) as found:
        assert found.proto == socket.IPPROTO_TCP
        with pytest.raises(
            MadError, match=r"port=\d+ of 127.0.0.1 cannot be listened on .Address already in use.: take"
        ):
            listener("127.0.0.1", found.getsockname()[1])
    for host in ("no such host", "a..b"):
        with pytest.raises(MadError, match="cannot be listened on"):
            listener(host, 0)


def test_a_replica_of_ray_serve(tmp_path, toy_deployment, capfd):
    from starlette.testclient import TestClient

    toy_deployment.export(tmp_path / "api")
    client = TestClient(replica(str(tmp_path / "api"), {"check": True}, 2))
    assert "are the benchmark's to the bit" in capfd.readouterr().err
    found = client.post(f"{MODEL}/infer", json=question(pictures(2))).json()
    assert found["outputs"][0]["shape"] == [2, 4]
    toy(ModelGuardS()).export(tmp_path / "stateful")
    with pytest.raises(MadError, match="it can have one replica, got 2"):
        replica(str(tmp_path / "stateful"), {}, 2)
