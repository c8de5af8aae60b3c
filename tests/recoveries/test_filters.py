"""A recovery may drop answers, and add images of its own: what is trained on then."""

from dataclasses import dataclass

import pytest
import torch
from toys import CPU, Blobs, Streamed, cell, victim

from mad.attacks.consistent import Consistent
from mad.attacks.copycat import Copycat
from mad.attacks.jbda import Jbself
from mad.attacks.knockoff_nets import KnockoffNets
from mad.attacks.online import Online
from mad.datasets import to_unit_range
from mad.datasets.joined import joined
from mad.errors import MadError
from mad.pipeline import run
from mad.recoveries import AsAnswered, Extra, Recovery
from mad.recoveries.confident import Confident
from mad.recoveries.oracle_filter import OracleFilter
from mad.storage.store import Store
from mad.testing import check_recovery, posteriors
from mad.training import Trainer
from mad.transfer import TransferSet

POOL = Blobs().images((1, 8, 8))


@dataclass
class Some(AsAnswered):
    """Keep what a function says, and add what is given."""

    name = "some"
    keep: object = None
    extra: object = None

    def keeps(self, answers, images=None):
        return self.keep(answers, images)

    def adds(self):
        return self.extra


@dataclass
class Seeing(Some):
    name = "seeing"
    needs_images = True


@dataclass
class Reusing(Seeing):
    """Writes all that it says to the same memory."""

    name = "reusing"

    def __post_init__(self):
        self._targets, self._keeps = {}, {}

    def __call__(self, answers, images=None):
        return self._targets.setdefault(len(answers), torch.empty_like(answers)).copy_(answers)

    def keeps(self, answers, images=None):
        found = super().keeps(answers, images)
        return self._keeps.setdefault(len(found), torch.empty_like(found)).copy_(found)


def transfer(count=30):
    answers = posteriors("dirichlet", 4)[torch.arange(count) % 12]
    return TransferSet(POOL, torch.randperm(len(POOL))[:count], answers)


@pytest.fixture
def trained_on(monkeypatch):
    """The images, rows and targets of each training."""
    seen = []
    monkeypatch.setattr(Trainer, "fit", lambda self, model, images, targets, **how: seen.append((images, targets, how)))
    return seen


def test_all_are_kept_by_default(trained_on):
    some = transfer()
    cell(recovery=AsAnswered()).adversary(CPU).train(some)
    ((images, targets, how),) = trained_on
    assert images is POOL
    assert torch.equal(targets, some.answers)
    assert torch.equal(how["rows"], some.rows)
    assert AsAnswered().keeps(some.answers).all()


@pytest.mark.parametrize("kind", [Some, Seeing, Reusing])
def test_answers_that_are_not_kept_are_not_trained_on(trained_on, kind, monkeypatch):
    monkeypatch.setattr("mad.adversary.EVALUATION_BATCH", 7)  # several batches
    some, seen = transfer(), []

    def keep(answers, images):
        seen.append(images)
        return answers[:, 0] > 0.3

    cell(recovery=kind(keep=keep)).adversary(CPU).train(some)
    ((_, targets, how),) = trained_on
    kept = some.answers[:, 0] > 0.3
    assert 0 < kept.sum() < 30
    assert torch.equal(targets, some.answers[kept])
    assert torch.equal(how["rows"], some.rows[kept])
    if kind.needs_images:
        assert torch.equal(torch.cat(seen), to_unit_range(POOL[some.rows]))
    else:
        assert seen == [None]


def test_something_is_always_left(trained_on, capfd):
    some = transfer()
    adversary = cell(recovery=Some(keep=lambda answers, images: torch.zeros(len(answers)).bool())).adversary(CPU)
    adversary.train(some)
    assert torch.equal(trained_on[0][1], some.answers)
    assert "recovery some keeps none of the 30 answers: all are trained on" in capfd.readouterr().err
    adversary.learned(victim().untrained(seed=0, purpose="knockoff"), some)
    assert capfd.readouterr().err == ""  # it was said


@pytest.mark.parametrize(
    "wrong",
    [
        lambda rows: torch.ones(len(rows)),
        lambda rows: torch.ones(3).bool(),
        lambda rows: None,
        lambda rows: [True] * 30,
    ],
)
def test_what_is_no_choice_is_named(wrong):
    adversary = cell(recovery=Some(keep=lambda answers, images: wrong(answers))).adversary(CPU)
    with pytest.raises(MadError, match="recovery some: keeps must return a tensor of bool, one for each of 30 answers"):
        adversary.train(transfer())


def test_whether_it_learned_is_judged_by_what_was_kept():
    """A network that answers the kept answers and nothing else has learned."""
    answers = torch.eye(4)[torch.arange(40) % 4]
    mixed = torch.where((torch.arange(40) < 20)[:, None], answers, answers.roll(1, dims=1))
    some = TransferSet(POOL, torch.arange(40), mixed)
    told = torch.zeros(len(POOL), 4)
    told[:40] = 9 * answers

    class Table(torch.nn.Module):
        def forward(self, images):
            apart = (images[:, None] - to_unit_range(POOL)[None]).abs().flatten(2).sum(dim=2)
            return told[apart.argmin(dim=1)]

    assert not cell(recovery=AsAnswered()).adversary(CPU).learned(Table().eval(), some)
    half = cell(recovery=Some(keep=lambda rows, images: torch.arange(len(rows)) < 20)).adversary(CPU)
    assert half.learned(Table().eval(), some)


def test_an_attack_that_trains_while_it_queries_takes_no_filter():
    for recovery, what in ((Some(keep=None), "drops answers"), (Confident(), "learns from a whole transfer set")):
        with pytest.raises(MadError, match=f"recovery {recovery.name} {what}"):
            cell(recovery=recovery, attack=Online(50))


def test_further_images_are_trained_on(trained_on):
    some, more = transfer(), Extra(POOL[:3] // 2, torch.eye(4)[:3])
    recovery = Some(keep=lambda rows, images: rows[:, 0] > 0.3, extra=more)
    cell(recovery=recovery).adversary(CPU).train(some)
    ((images, targets, how),) = trained_on
    kept = some.answers[:, 0] > 0.3
    assert torch.equal(images[how["rows"]], torch.cat([POOL[some.rows[kept]], more.images]))
    assert torch.equal(targets, torch.cat([some.answers[kept], more.targets]))


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ((POOL[:3], torch.eye(4)[:3]), "Extra of two tensors, got a builtins.tuple"),
        (Extra(POOL[:3], torch.arange(3)), "3 posteriors"),
        (Extra(POOL[:3], torch.eye(4)[:2]), "3 posteriors"),
        (Extra(POOL[:3], 100 * torch.eye(4)[:3]), "that are none"),
        (Extra(POOL[:3].float(), torch.eye(4)[:3]), "take images / 255"),
        (Extra(POOL[:3].long(), torch.eye(4)[:3]), "expected images of uint8 or float32"),
        (Extra(POOL[:3, :, :4], torch.eye(4)[:3]), "expected images of"),
    ],
    ids=["tuple", "labels", "fewer", "no posteriors", "floats to 255", "int64", "shape"],
)
def test_further_images_that_are_wrong_are_named_before_the_training(trained_on, wrong, what):
    recovery = Some(keep=lambda rows, images: rows[:, 0] > 0.3, extra=wrong)
    with pytest.raises(MadError, match=f"^recovery some: adds.*{what}"):
        cell(recovery=recovery).adversary(CPU).train(transfer())
    assert trained_on == []
    with pytest.raises(MadError, match=r"^recovery some: adds"):
        check_recovery(recovery, classes=(4,))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("floats", [False, True])
def test_images_of_two_sources(stream, floats):
    pool = to_unit_range(POOL) if floats else POOL
    rows, more = torch.tensor([5, 3, 5]), POOL[:2]
    both = joined(Streamed(pool) if stream else pool, rows, more)
    expected = torch.cat([pool[rows], to_unit_range(more) if floats and not stream else more])
    assert tuple(both.shape) == (5, 1, 8, 8)
    assert len(both) == 5
    assert all(torch.equal(both[row], expected[row]) for row in range(5))


@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("count", [12, 11, 1])
def test_confident_keeps_its_half(side, count):
    answers = posteriors("dirichlet", 4)[:count]
    recovery = Confident(side).prepared(None, TransferSet(POOL, torch.arange(count), answers))
    top = [max(row) for row in answers.tolist()]
    median = sorted(top)[(count - 1) // 2]
    expected = [each >= median if side == "above" else each <= median for each in top]
    assert recovery.keeps(answers).tolist() == expected
    assert recovery(answers) is answers
    flat = torch.full((5, 4), 0.25)
    assert Confident(side).prepared(None, TransferSet(POOL, torch.arange(5), flat)).keeps(flat).all()


def test_a_side_that_is_none():
    with pytest.raises(MadError, match=r"recovery\.side"):
        Confident("beside")


@pytest.mark.parametrize(("touched", "kept"), [(0, 40), (30, 10), (39, 4), (40, 4)])
def test_the_oracle_keeps_what_was_left_alone(touched, kept):
    clean = posteriors("dirichlet", 4)[torch.arange(40) % 12]
    moved = torch.arange(40)[:, None] < touched  # from 39: too few are left alone, so the nearest tenth is kept
    step = (0.1 + 0.01 * torch.arange(40))[:, None] * moved
    answers = clean + step * (torch.eye(4)[0] - clean)
    recovery, some = OracleFilter(), TransferSet(POOL, torch.arange(40), answers)
    asked = to_unit_range(POOL[:40])

    def clean_answers(images):
        return torch.stack([clean[[torch.equal(each, one) for one in asked].index(True)] for each in images])

    adversary = cell(recovery=recovery).adversary(CPU, clean=clean_answers).learned_from(some)
    rows, targets = adversary.chosen(some)
    assert len(rows) == kept
    distance = (answers - clean).abs().sum(dim=1)
    assert torch.equal(rows.sort().values, distance.argsort(stable=True)[:kept].sort().values)
    assert torch.equal(targets, answers[rows])
    assert adversary.recovery.columns() == {"untouched": pytest.approx((distance <= 1e-3).double().mean().item())}


def test_clean_answers_are_for_those_who_declare_it(tmp_path):
    assert cell(recovery=AsAnswered()).adversary(CPU, clean=len).clean is None
    assert cell(recovery=OracleFilter()).adversary(CPU, clean=len).clean is len
    record = run(cell(0.5, recovery=OracleFilter()), Store(tmp_path), CPU)[0]
    assert record["recovery_knows"] == "the victim's clean answers"
    assert record["untouched"] == 0
    record = run(cell(0, recovery=OracleFilter()), Store(tmp_path), CPU)[0]
    assert record["untouched"] == 1
    assert record["queries"] == 50


def test_a_filter_is_a_recovery_that_implements_keeps():
    assert Some().filters
    assert not AsAnswered().filters
    assert isinstance(Some(), Recovery)


@pytest.mark.parametrize(
    "attack",
    [
        Copycat(50),
        Consistent(50),
        KnockoffNets(50, queries_per_image=2, augment="crop"),
        Jbself(50, seeds=10, as_published=True),
    ],
    ids=lambda a: a.name,
)
def test_answers_that_are_not_the_apis_to_their_image_are_not_compared(attack):
    with pytest.raises(MadError, match=rf"recovery oracle_filter compares .* attack {attack.name}"):
        cell(recovery=OracleFilter(), attack=attack)
    assert cell(recovery=OracleFilter(), attack=KnockoffNets(50, queries_per_image=2)).knows
    assert cell(recovery=OracleFilter(), attack=Jbself(50, seeds=10)).knows
