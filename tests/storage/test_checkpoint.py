"""An attack that was stopped in the middle goes on, and nothing is asked or counted twice."""

from dataclasses import dataclass

import pytest
import torch
from toys import CPU, cell

from mad.api import BlackBox
from mad.attacks import Attack, Stolen, TransferSet
from mad.attacks.base import drawn
from mad.defenses.mad import Mad
from mad.pipeline import run
from mad.recoveries.argmax import Argmax
from mad.storage.checkpoint import Checkpoint
from mad.storage.store import Store

STOP = []  # after how many queries the power goes, once each


@dataclass(frozen=True)
class Slow(Attack):
    """Ask ten images at a time; leave a checkpoint after each."""

    name = "slow"

    def run(self, api, pool, adversary):
        rows, state = drawn(pool, adversary, api.budget), adversary.resume(api) or {"answers": []}
        answers = list(state["answers"])
        while api.queries < api.budget:
            some = rows[api.queries : api.queries + 10]
            answers.append(api(pool[some] / 255))
            adversary.save(api, answers=answers)
            if STOP and api.queries == STOP[0]:
                STOP.pop(0)
                raise KeyboardInterrupt
        return Stolen(transfer=TransferSet(pool, rows, torch.cat(answers)))


@pytest.fixture
def asked(monkeypatch):
    sizes, answer = [], BlackBox.__call__
    monkeypatch.setattr(BlackBox, "__call__", lambda self, images: sizes.append(len(images)) or answer(self, images))
    STOP.clear()
    return sizes


def numbers(record):
    return {name: value for name, value in record.items() if not name.startswith("seconds")}


def slow(**more):
    return cell(attack=Slow(50), defense=Mad(0.5), **more)


def stopped(folder, *stops, **more):
    """Run, and lose power after some numbers of queries; return where the checkpoint lies."""
    for at in stops:
        STOP.append(at)
        with pytest.raises(KeyboardInterrupt):
            run(slow(**more), Store(folder), CPU)
    return Checkpoint(folder, slow(**more).path.parent)


def test_an_attack_goes_on_where_it_was_stopped(tmp_path, asked):
    whole = run(slow(), Store(tmp_path / "whole"), CPU)[0]
    assert asked == [10] * 5
    asked.clear()
    checkpoint = stopped(tmp_path / "broken", 20, 40)
    assert asked == [10] * 4
    assert checkpoint.load()["api"]["queries"] == 40
    found, kept = run(slow(), Store(tmp_path / "broken"), CPU)
    assert not kept
    assert asked == [10] * 5
    assert found["queries"] == 50
    assert found["l1_mean_queries"] == pytest.approx(whole["l1_mean_queries"], abs=1e-9)
    assert numbers(found) == numbers(whole)
    assert [file.name for file in checkpoint.file.parent.iterdir()] == ["record.json"]


def test_a_finished_attack_leaves_nothing_behind(tmp_path, asked):
    run(slow(), Store(tmp_path), CPU)
    assert not list(tmp_path.rglob("checkpoint*"))
    assert run(slow(), Store(tmp_path), CPU, force=True)[1] is False
    assert asked == [10] * 10


def test_a_checkpoint_is_its_own_cells(tmp_path, asked):
    stopped(tmp_path, 20)
    asked.clear()
    assert run(slow(seed=1), Store(tmp_path), CPU)[0]["queries"] == 50
    assert asked == [10] * 5


def flipped(content, at):
    content = bytearray(content)
    content[int(at * (len(content) - 1))] ^= 1
    return bytes(content)


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "text": lambda content: b"not at all",
    **{f"a bit at {at}": lambda content, at=at: flipped(content, at) for at in (0, 0.25, 0.5, 0.6, 0.75, 0.9)},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_with_a_damaged_checkpoint_it_begins_again(tmp_path, asked, damage, capfd):
    whole = run(slow(), Store(tmp_path / "whole"), CPU)[0]
    checkpoint = stopped(tmp_path / "broken", 30)
    checkpoint.file.write_bytes(DAMAGES[damage](checkpoint.file.read_bytes()))
    asked.clear()
    found = run(slow(), Store(tmp_path / "broken"), CPU)[0]
    assert asked == [10] * 5
    assert numbers(found) == numbers(whole)
    assert "the attack begins again" in " ".join(capfd.readouterr().err.split())
    assert not checkpoint.file.exists()


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return (tmp_path.joinpath("run").touch, ())

    checkpoint = Checkpoint(tmp_path, slow().path.parent)
    checkpoint.save(a=torch.ones(2), b={"c": [1, "d"]})
    assert checkpoint.load()["b"] == {"c": [1, "d"]}
    checkpoint.save(a=Code())
    assert checkpoint.load() is None
    assert not (tmp_path / "run").exists()


def test_without_a_store_nothing_is_left(tmp_path):
    adversary = slow().adversary(CPU)
    api = BlackBox(slow().victim.untrained(seed=0, purpose="victim"), Mad(0), (1, 8, 8), 50, CPU)
    adversary.save(api, a=1)
    assert adversary.resume(api) is None


@pytest.mark.parametrize(("force", "renewed"), [(True, None), (False, set())])
def test_a_cell_that_is_made_anew_begins_its_attack_anew(tmp_path, asked, force, renewed):
    stopped(tmp_path, 20)
    asked.clear()
    record, kept = run(slow(), Store(tmp_path, renewed), CPU, force=force)
    assert (record["queries"], kept) == (50, False)
    assert asked == [10] * 5


@dataclass(frozen=True)
class Trained(Attack):
    """Train a network itself, leave a checkpoint with it, and nothing is left to do."""

    name = "trained"

    def run(self, api, pool, adversary):
        rows, state, network = drawn(pool, adversary, api.budget), adversary.resume(api), adversary.untrained()
        if state is None:
            stolen = adversary.train(TransferSet(pool, rows, api(pool[rows] / 255)))
            state = {"network": stolen.state_dict()}
            adversary.save(api, **state)
            if STOP:
                STOP.pop(0)
                raise KeyboardInterrupt
        network.load_state_dict(state["network"])
        return Stolen(network=network.eval())


def test_what_was_recovered_before_the_last_checkpoint_counts(tmp_path, asked, fits):
    whole = cell(attack=Trained(50), recovery=Argmax())
    record = run(whole, Store(tmp_path / "whole"), CPU)[0]
    STOP.append("once")
    with pytest.raises(KeyboardInterrupt):
        run(whole, Store(tmp_path / "broken"), CPU)
    asked.clear()
    fits.clear()
    assert numbers(run(whole, Store(tmp_path / "broken"), CPU)[0]) == numbers(record)
    assert asked == fits == []
