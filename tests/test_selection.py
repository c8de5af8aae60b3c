"""Settings of an adversary are compared on images of its pool that are held out before it chooses."""

from dataclasses import dataclass, replace

import pytest
import torch
from toys import CPU, Blobs, cell, trainer

from mad import selection
from mad.attacks import Attack, Stolen
from mad.attacks.base import TransferSet, ask, drawn
from mad.attacks.consistent import Consistent
from mad.attacks.copycat import Copycat
from mad.attacks.jbda import Jbda
from mad.defenses.mad import Mad
from mad.errors import MadError
from mad.knockoff import Knockoff
from mad.recoveries.oracle_filter import OracleFilter
from mad.recoveries.restorer_plus import RestorerPlus
from mad.selection import HELD, held_out_agreement, spare
from mad.storage.store import Store


@dataclass(frozen=True)
class Untested(Blobs):
    """Blobs whose test split is asked for its labels only: nobody may judge by it."""

    def test(self):
        images, labels = super().test()
        return type(super().test())(images * 0, labels * 0)


def test_a_good_thief_agrees_and_a_bad_one_does_not(tmp_path, fits):
    good = held_out_agreement(cell(), Store(tmp_path), CPU)
    bad = held_out_agreement(cell(knockoff=Knockoff(trainer(), learning_rate=1e-9)), Store(tmp_path), CPU)
    assert good.images == bad.images == 75
    assert good.share > 0.9 > 0.6 > bad.share
    assert good.learned
    assert not bad.learned
    assert fits == ["victim toy", "knockoff", "knockoff"]  # the victim is kept
    assert not list(tmp_path.rglob("record.json"))
    assert held_out_agreement(cell(), Store(tmp_path), CPU) == good


def test_neither_the_defense_nor_the_test_split_plays_a_part(tmp_path):
    plain = held_out_agreement(cell(), Store(tmp_path), CPU)
    assert held_out_agreement(cell(defense=Mad(2.0)), Store(tmp_path), CPU) == plain
    blind = replace(cell(), victim=replace(cell().victim, dataset=Untested()))
    assert held_out_agreement(blind, Store(tmp_path), CPU) == plain


@dataclass(frozen=True)
class Own(Attack):
    """Return a network that answers with one class, and no transfer set."""

    name = "own"

    def run(self, api, pool, adversary):
        ask(api, pool, drawn(pool, adversary, api.budget))
        network = adversary.untrained()
        network.head.weight.data.zero_()
        network.head.bias.data.copy_(torch.eye(4)[2])
        return Stolen(network=network.eval())


def test_a_network_of_the_attacks_own_is_judged(tmp_path):
    found = held_out_agreement(cell(attack=Own(80)), Store(tmp_path), CPU)
    assert found.images == 60
    assert 0.15 < found.share < 0.35


def test_an_attack_that_makes_images_of_its_own_is_judged_on_those_that_it_did_not_start_from(tmp_path):
    assert held_out_agreement(cell(attack=Jbda(40, seeds=20, epochs=1)), Store(tmp_path), CPU).images == 90


@dataclass(frozen=True)
class Dropping(Attack):
    """Keep a tenth of the answers."""

    name = "dropping"

    def run(self, api, pool, adversary):
        rows = drawn(pool, adversary, api.budget)
        return Stolen(transfer=TransferSet(pool, rows[::10], ask(api, pool, rows)[::10]))


def test_what_was_asked_about_and_dropped_is_not_held_out(tmp_path):
    for attack in (Dropping(80), Copycat(80), Consistent(160, tolerance=0.0)):
        assert held_out_agreement(cell(attack=attack), Store(tmp_path), CPU).images == 60


def test_no_more_than_ten_thousand_are_held_out(tmp_path):
    large = cell(pool=Blobs(shape=(1, 8, 8), size=2 * HELD + 60))
    assert held_out_agreement(large, Store(tmp_path), CPU).images == HELD


def test_an_attack_that_asks_about_the_whole_pool_is_refused(tmp_path):
    assert spare(cell(budget=198)) == 1
    with pytest.raises(MadError, match=r"asks about the whole pool.*lower attack\.budget"):
        held_out_agreement(cell(budget=200), Store(tmp_path), CPU)


class Classed(Blobs):
    """Blobs that have labels as a pool."""

    def labels(self):
        return torch.arange(self.size) % 7


@dataclass(frozen=True)
class Shown(Attack):
    """Note what it is shown, and take the first or the last images of it."""

    name = "shown"
    last: bool = False

    def run(self, api, pool, adversary):
        rows = torch.arange(len(pool))[-api.budget :] if self.last else torch.arange(api.budget)
        self.seen.append((pool, adversary.labels))
        return Stolen(transfer=TransferSet(pool, rows, ask(api, pool, rows)))


def test_all_attacks_are_judged_by_the_same_images_which_none_is_shown(tmp_path, monkeypatch):
    judged, shown = [], []
    monkeypatch.setattr(Shown, "seen", shown, raising=False)
    monkeypatch.setattr(Shown, "labelled", True)
    real = selection.logits_of
    monkeypatch.setattr(selection, "logits_of", lambda *given: judged.append(given[1][given[3]]) or real(*given))
    blobs = Classed()
    for attack in (Shown(80), Shown(80, last=True)):
        held_out_agreement(cell(attack=attack, pool=blobs), Store(tmp_path), CPU, held=40)
    whole, labels = blobs.images((1, 8, 8)), blobs.labels()
    assert len(judged) == 4
    assert all(torch.equal(each, judged[0]) for each in judged)
    known = {bytes(each.flatten().tolist()): label for each, label in zip(whole, labels.tolist(), strict=True)}
    held = {bytes(each.flatten().tolist()) for each in judged[0]}
    for pool, given in shown:
        names = [bytes(each.flatten().tolist()) for each in pool]
        assert len(pool) == len(whole) - 40
        assert not held & set(names)
        assert [known[name] for name in names] == given.tolist()


@dataclass(frozen=True)
class Poolless(Own):
    needs_pool = False


def test_an_attack_without_a_pool_is_refused_before_training(tmp_path, fits):
    with pytest.raises(MadError, match="attack own has no pool to hold images out of"):
        held_out_agreement(cell(attack=Poolless(20)), Store(tmp_path), CPU)
    assert fits == []


@pytest.mark.parametrize("recovery", [OracleFilter(), RestorerPlus(shadows=1, steps=20)], ids=lambda each: each.name)
def test_recoveries_that_know_the_clean_answers_are_given_them(tmp_path, recovery):
    assert held_out_agreement(cell(recovery=recovery), Store(tmp_path), CPU).images == 75
