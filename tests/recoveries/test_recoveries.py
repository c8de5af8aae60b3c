"""What an adversary makes of answers, and what it may learn before."""

import contextlib
from dataclasses import dataclass, replace

import pytest
import torch
from toys import CPU, Blobs, Streamed, cell, victim

from mad.attacks.adaptive import KnockoffAdaptive
from mad.attacks.jbda import Jbda
from mad.attacks.online import Online
from mad.datasets import to_unit_range
from mad.defenses.mad import Mad
from mad.errors import MadError
from mad.pipeline import run
from mad.recoveries import AsAnswered, Recovery
from mad.recoveries.argmax import Argmax
from mad.schema import Column
from mad.storage.store import Store
from mad.transfer import TransferSet

SEEN = []  # the adversary and the transfer set of each time that anything was learned
TRAINED = []


@dataclass
class Inverse(Recovery):
    """Learn a network from a whole transfer set, and undo with it what the defense did."""

    name = "inverse"
    knows = ("the defense",)
    width: int = 3

    def prepare(self, adversary, transfer):
        SEEN.append((adversary, transfer))
        about = ("inverse", self.width, adversary.seed, len(transfer))
        self._network = adversary.kept("inverse", about, lambda: torch.nn.Linear(4, 4), TRAINED.append)

    def __call__(self, answers, images=None):
        assert self.is_prepared
        assert images is None
        with torch.no_grad():
            return torch.softmax(self._network(answers), dim=1)


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()
    TRAINED.clear()


def test_it_learns_once_from_the_whole_transfer_set(tmp_path):
    whole = cell(recovery=Inverse())
    run(whole, Store(tmp_path), CPU)
    ((adversary, transfer),) = SEEN
    assert len(transfer) == len(transfer.rows.unique()) == len(transfer.answers) == 50
    assert torch.equal(transfer.images, Blobs().images((1, 8, 8)))
    assert not whole.recovery.is_prepared  # a copy has learned
    assert not hasattr(whole.recovery, "_network")
    assert (adversary.defense, adversary.victim, adversary.seed) == (whole.defense, None, 0)
    assert len(list(tmp_path.glob("victims/inverse/*/weights.safetensors"))) == 1


def test_what_it_trains_is_kept(tmp_path):
    for epochs in (8, 9):
        knockoff = replace(cell().knockoff, epochs=epochs)
        record = run(cell(recovery=Inverse(), knockoff=knockoff), Store(tmp_path), CPU)[0]
    assert (len(SEEN), len(TRAINED)) == (2, 1)
    assert "inverse/" in record["uses"]


@pytest.mark.parametrize(
    ("knows", "given"), [((), ()), (("the defense",), ("defense",)), (("the victim's data",), ("victim",))]
)
def test_an_adversary_is_given_what_its_recovery_says_that_it_knows(knows, given):
    class Knowing(Inverse):
        pass

    Knowing.knows = knows
    whole = cell(recovery=Knowing())
    adversary = whole.adversary(CPU)
    assert adversary.defense == (whole.defense if "defense" in given else None)
    assert adversary.victim == (whole.victim if "victim" in given else None)


@pytest.mark.parametrize("attack", [Online(50), KnockoffAdaptive(50)], ids=lambda attack: attack.name)
def test_an_attack_that_recovers_answers_before_it_has_a_transfer_set_is_refused(attack, fits):
    with pytest.raises(MadError, match=f"recovery inverse learns from a whole transfer set, attack {attack.name} "):
        cell(recovery=Inverse(), attack=attack)
    for other in (AsAnswered(), Argmax()):
        assert cell(recovery=other, attack=attack).recovery == other
    assert fits == []


def test_an_attack_of_rounds_learns_anew_in_each(tmp_path, fits):
    run(cell(victim=victim(6), recovery=Sixth(), attack=Jbda(40, seeds=10, epochs=1)), Store(tmp_path), CPU)
    assert fits == ["victim toy", "substitute 0", "substitute 1", "knockoff"]
    assert [len(transfer) for _, transfer in SEEN] == [10, 20, 40]


@dataclass
class Sixth(Recovery):
    """Count the answers that it learns from."""

    name = "sixth"

    def prepare(self, adversary, transfer):
        SEEN.append((adversary, transfer))
        self._mean = transfer.answers.mean(dim=0)

    def __call__(self, answers, images=None):
        return (answers + self._mean) / 2


@dataclass
class Looking(Recovery):
    """Take the class of the image, which it sees, instead of the answer."""

    name = "looking"
    needs_images = True

    def __call__(self, answers, images=None):
        assert 0 <= images.min() <= images.max() <= 1
        SEEN.append(images)
        return answers


def test_images_are_those_that_were_answered(tmp_path, monkeypatch):
    pool, rows = Blobs().images((1, 8, 8)), torch.randperm(200)[:130]
    transfer = TransferSet(pool, rows, torch.full((130, 4), 0.25))
    adversary = cell(recovery=Looking()).adversary(CPU)
    SEEN.clear()
    assert adversary.targets(transfer).shape == (130, 4)
    assert torch.equal(torch.cat(SEEN), to_unit_range(pool[rows]))
    with pytest.raises(MadError, match="cannot be read"):
        adversary.targets(TransferSet(Streamed(pool, broken=3), torch.arange(5), transfer.answers[:5]))
    monkeypatch.setattr("mad.adversary.VALUES", 0)  # as if the answers were too many for one call
    unread = TransferSet(Streamed(pool, broken=3), torch.arange(5), transfer.answers[:5])
    assert torch.equal(cell(recovery=AsAnswered()).adversary(CPU).targets(unread), unread.answers)
    given = cell(recovery=AsAnswered()).adversary(CPU)
    assert torch.equal(given.targets(transfer), transfer.answers)
    record = run(cell(recovery=Looking(), attack=Online(20, batch_size=4)), Store(tmp_path), CPU)[0]
    assert record["recovery"] == "looking"


def test_a_knockoff_is_trained_on_what_was_recovered(tmp_path):
    honest = run(cell(recovery=AsAnswered(), defense=Mad(0)), Store(tmp_path), CPU)[0]
    fooled = run(cell(recovery=Wrong(), defense=Mad(0)), Store(tmp_path), CPU)[0]
    assert honest["stolen_accuracy"] > 0.9
    assert fooled["stolen_accuracy"] < 0.1


@dataclass
class Wrong(Recovery):
    """Shift every answer by a class, as it learned to."""

    name = "wrong"

    def prepare(self, adversary, transfer):
        self._by = 1

    def __call__(self, answers, images=None):
        return answers.roll(self._by, dims=1)


@dataclass
class Told(Recovery):
    """Add a column that a defense adds, too."""

    name = "told"
    schema = (Column("spent", "number", "", "what it cost"),)

    def columns(self):
        return {"spent": 1.0}

    def __call__(self, answers, images=None):
        return answers


@dataclass
class Costly(Mad):
    schema = (Column("spent", "number", "", "what it cost"),)

    def columns(self, context):
        return {"spent": 2.0}


def test_two_parts_with_one_column_are_refused_at_once(tmp_path):
    with pytest.raises(MadError, match=r"^recovery told and defense mad both write the column spent: rename one$"):
        cell(recovery=Told(), defense=Costly(0.5))
    for parts, spent in (({"recovery": Told()}, 1), ({"defense": Costly(0.5)}, 2)):
        assert run(cell(**parts), Store(tmp_path), CPU)[0]["spent"] == spent


def test_what_must_learn_first_is_not_applied_before(tmp_path):
    adversary = cell(recovery=Inverse()).adversary(CPU)
    with pytest.raises(MadError, match=r"^recovery inverse must learn .*recovers_early = True.*") as refused:
        adversary.recovered(torch.full((5, 4), 0.25))
    assert "\n" not in str(refused.value)
    assert adversary.recoveries == set()
    transfer = TransferSet(Blobs().images((1, 8, 8)), torch.arange(5), torch.full((5, 4), 0.25))
    assert adversary.learned_from(transfer).recovered(transfer.answers).shape == (5, 4)
    assert adversary.recoveries == {"inverse"}


class StopError(Exception):
    """Stops a run on a device that computes nothing."""


@dataclass
class Located(AsAnswered):
    """Note where answers and images lie; a device without data, ``meta``, goes no further."""

    needs_images = True

    def __call__(self, answers, images=None):
        SEEN.append((answers.device.type, images.device.type))
        if answers.is_meta or images.is_meta:
            raise StopError
        return answers

    def keeps(self, answers, images=None):
        SEEN.append((answers.device.type, images.device.type))
        raise StopError


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_answers_and_images_lie_on_one_device(device):
    adversary = replace(cell(recovery=Located()).adversary(CPU), device=torch.device(device))
    pool = Blobs().images((1, 8, 8))
    transfer = TransferSet(pool, torch.arange(5), torch.full((5, 4), 0.25))
    with pytest.raises(StopError):
        adversary.chosen(transfer)
    with contextlib.suppress(StopError):
        adversary.recovered(transfer.answers, to_unit_range(pool[:5]).to(device))
    assert SEEN
    assert set(SEEN) == {(device, device)}
