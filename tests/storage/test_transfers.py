"""A transfer set whose images do not depend on the answers is asked for once, whoever trains on it."""

from dataclasses import dataclass, replace

import pytest
import torch
from toys import CPU, Blobs, cell, trainer

from mad.api import BlackBox
from mad.attacks import Stolen, TransferSet
from mad.attacks.jbda import Jbda
from mad.attacks.knockoff_nets import KnockoffNets
from mad.cli.prune import prune
from mad.errors import MadError
from mad.knockoff import Knockoff
from mad.pipeline import run
from mad.recoveries import AsAnswered
from mad.recoveries.argmax import Argmax
from mad.schema import Column
from mad.storage.checkpoint import Checkpoint
from mad.storage.store import Store


@pytest.fixture
def asked(monkeypatch):
    """How many images each request to an API is about, all clients together."""
    sizes, answer = [], BlackBox.__call__

    def counting(self, images):
        sizes.append(len(images))
        return answer(self, images)

    monkeypatch.setattr(BlackBox, "__call__", counting)
    return sizes


def thieves(**more):
    """Two recoveries and two knockoffs of one transfer set."""
    knockoffs = Knockoff(trainer()), Knockoff(trainer(), epochs=3)
    return [cell(recovery=each, knockoff=how, **more) for each in (AsAnswered(), Argmax()) for how in knockoffs]


def numbers(record):
    return {name: value for name, value in record.items() if not name.startswith("seconds")}


def test_two_recoveries_and_two_knockoffs_ask_once(tmp_path, asked):
    together = [run(each, Store(tmp_path / "one"), CPU)[0] for each in thieves()]
    assert asked == [50]
    assert {record["queries"] for record in together} == {50}
    (folder,) = (tmp_path / "one").glob("transfers/toy/*")
    assert all(f"transfers/toy/{folder.name}" in record["uses"].split() for record in together)
    apart = [run(each, Store(tmp_path / str(place)), CPU)[0] for place, each in enumerate(thieves())]
    assert [numbers(record) for record in together] == [numbers(record) for record in apart]
    assert asked == [50] * 5
    assert len({record["stolen_accuracy"] for record in together}) > 1  # they are four thieves


@pytest.mark.parametrize(
    "other",
    [{"epsilon": 0.6}, {"budget": 49}, {"seed": 1}, {"pool": Blobs(size=300)}, {"attack": KnockoffNets(50, 2)}],
    ids=str,
)
def test_another_theft_asks_anew(tmp_path, asked, other):
    for each in (cell(), cell(**other)):
        run(each, Store(tmp_path), CPU)
    assert asked == [50, other.get("budget", 50)]
    assert len(list(tmp_path.glob("transfers/toy/*"))) == 2


def test_force_asks_again(tmp_path, asked):
    first, second = thieves()[:2]
    made = run(first, Store(tmp_path), CPU)[0]
    assert numbers(run(first, Store(tmp_path), CPU, force=True)[0]) == numbers(made)
    assert asked == [50, 50]
    run(second, Store(tmp_path), CPU)
    assert asked == [50, 50]


@pytest.mark.parametrize("name", ["transfer.safetensors", "transfer.json"])
def test_a_damaged_one_is_asked_for_again(tmp_path, asked, name, capfd):
    first, second = thieves()[:2]
    run(first, Store(tmp_path), CPU)
    (file,) = tmp_path.rglob(name)
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    found = run(second, Store(tmp_path), CPU)[0]
    assert asked == [50, 50]
    assert "damaged" in capfd.readouterr().err
    assert numbers(found) == numbers(run(second, Store(tmp_path / "whole"), CPU)[0])


def test_where_images_depend_on_the_answers_each_thief_asks(tmp_path, asked):
    for each in thieves(attack=Jbda(50, seeds=25, epochs=1))[::2]:
        run(each, Store(tmp_path), CPU)
    assert sum(asked) == 100
    assert not list(tmp_path.glob("transfers/*"))


@dataclass(frozen=True)
class Untrue(KnockoffNets):
    """Says that its queries do not depend on the answers, and brings home what cannot be kept."""

    name = "untrue"
    what: str = "a network"

    def run(self, api, pool, adversary):
        found = super().run(api, pool, adversary)
        if self.what == "a network":
            return replace(found, network=adversary.train(found.transfer))
        if self.what == "a network alone":
            return Stolen(network=adversary.train(found.transfer))
        return Stolen(transfer=TransferSet(pool[found.transfer.rows], torch.arange(50), found.transfer.answers))


@pytest.mark.parametrize("what", ["a network", "a network alone", "other images"])
def test_who_says_so_and_brings_home_more_is_refused(tmp_path, what):
    with pytest.raises(MadError, match=r"^attack untrue says .* must return the pool's images and no network$"):
        run(cell(attack=Untrue(50, what=what)), Store(tmp_path), CPU)
    assert not list(tmp_path.rglob("transfer.json"))
    assert not list(tmp_path.rglob("record.json"))


def test_pruning_leaves_what_a_record_used(tmp_path, asked, capfd):
    first, second = thieves()[:2]
    run(first, Store(tmp_path), CPU)
    run(cell(0.9), Store(tmp_path), CPU)
    (tmp_path / cell(0.9).path).unlink()
    Checkpoint(tmp_path, first.path.parent).save(a=1)  # what a process left that died before it was removed
    Checkpoint(tmp_path, second.path.parent).save(a=1)  # what a run goes on from
    assert len(list(tmp_path.glob("transfers/toy/*"))) == 2
    asked.clear()
    prune(tmp_path, yes=True)
    assert "removed 2" in capfd.readouterr().out
    assert len(list(tmp_path.glob("transfers/toy/*"))) == len(list(tmp_path.glob("victims/toy/*"))) == 1
    assert not Checkpoint(tmp_path, first.path.parent).file.exists()
    assert Checkpoint(tmp_path, second.path.parent).file.exists()
    run(second, Store(tmp_path), CPU)
    assert asked == []
    prune(tmp_path, yes=True)
    assert "nothing to prune" in capfd.readouterr().out


@dataclass(frozen=True)
class Telling(KnockoffNets):
    """Say how much was asked, as a tensor."""

    name = "telling"
    schema = (Column("asked_in_all", "whole number", "", "queries"), Column("share", "number", "", "of the pool"))

    def run(self, api, pool, adversary):
        found = super().run(api, pool, adversary)
        return replace(found, columns={"asked_in_all": torch.tensor(50), "share": torch.tensor(0.25)})


def test_a_column_that_is_a_tensor_is_kept_as_its_number(tmp_path, asked):
    for recovery in (AsAnswered(), Argmax()):
        record = run(cell(attack=Telling(50), recovery=recovery), Store(tmp_path), CPU)[0]
        assert (record["asked_in_all"], record["share"]) == (50, 0.25)
    assert asked == [50]
