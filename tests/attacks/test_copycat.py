"""Copycat CNN, and what every attack does with labels only."""

import pytest
import torch
from toys import CPU, Blobs, cell

from mad.api import BlackBox
from mad.attacks.activethief import STRATEGIES, ActiveThief
from mad.attacks.adaptive import KnockoffAdaptive
from mad.attacks.copycat import Copycat, balanced
from mad.attacks.jbda import Jbda, Jbself
from mad.attacks.jbtopk import JbTopK
from mad.attacks.jbtr import Jbtr
from mad.attacks.knockoff_nets import KnockoffNets
from mad.attacks.online import Online
from mad.defenses import Undefended
from mad.defenses.argmax import Argmax as ArgmaxDefense
from mad.errors import MadError
from mad.pipeline import run
from mad.recoveries import AsAnswered
from mad.recoveries.argmax import Argmax
from mad.storage.store import Store
from mad.testing import check_attack

SHORT = {"seeds": 10, "epochs": 2}
ROUNDS = {"epochs": 2, "min_steps": 0, "rounds": 2}
ATTACKS = [KnockoffNets(60), Copycat(60), KnockoffAdaptive(60), Online(60)]
ATTACKS += [
    *(kind(budget=60, **SHORT) for kind in (Jbda, Jbself, JbTopK, Jbtr)),
    Jbtr(budget=60, **SHORT, redrawn=True),
]
ATTACKS += [ActiveThief(60, **ROUNDS, strategy=strategy) for strategy in STRATEGIES]


@pytest.mark.parametrize("counts", [[5, 5, 5], [1, 9, 2], [0, 7, 0], [3, 0, 400], [1, 1, 1], [2, 3, 0]])
def test_balanced_classes_are_those_of_the_definition(counts):
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    rows = balanced(labels, seed=3)
    share = len(labels) // sum(count > 0 for count in counts)
    assert torch.equal(rows, balanced(labels, seed=3))
    for label, count in enumerate(counts):
        times = torch.bincount(rows, minlength=len(labels))[labels == label]
        assert times.sum() == (share if count else 0)
        assert not count or times.max() - times.min() <= 1  # none again before all were taken


class Named(Blobs):
    """A pool with labels."""

    def labels(self):
        return self.split("pool").labels


def stolen(attack, defense=None, recovery=None):
    whole = cell(pool=Named(), attack=attack, defense=defense or Undefended(), recovery=recovery or AsAnswered())
    api = BlackBox(whole.victim.untrained(seed=0, purpose="victim"), whole.defense, (1, 8, 8), 60, CPU)
    adversary = whole.adversary(CPU)
    found = whole.attack.spend(api, Blobs().images((1, 8, 8)), adversary)
    return found, adversary


def test_without_balance_it_is_the_knockoff_of_top_classes(tmp_path):
    plain = run(cell(attack=KnockoffNets(60), recovery=Argmax()), Store(tmp_path), CPU)[0]
    found = run(cell(attack=Copycat(60, balance=False)), Store(tmp_path), CPU)[0]
    for name in ("stolen_accuracy", "agreement", "queries", "l1_mean_queries"):
        assert found[name] == plain[name], name


def test_with_balance_it_learns_from_as_many_images_of_each_class_that_was_named():
    asked, _ = stolen(KnockoffNets(60))
    found, _ = stolen(Copycat(60))
    tops = dict(zip(asked.transfer.rows.tolist(), asked.transfer.answers.argmax(dim=1).tolist(), strict=True))
    counts = torch.bincount(found.transfer.answers.argmax(dim=1), minlength=4)
    named = len(set(tops.values()))
    assert sorted(counts.tolist()) == [0] * (4 - named) + [60 // named] * named
    for row, answer in zip(found.transfer.rows.tolist(), found.transfer.answers, strict=True):
        assert answer.tolist() == [float(label == tops[row]) for label in range(4)]


def test_it_keeps_the_contract_of_attacks():
    check_attack(Copycat(40))
    check_attack(Copycat(40, balance=False))
    with pytest.raises(MadError, match=r"attack\.balance"):
        Copycat(balance="no")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.name} {getattr(attack, 'strategy', '')}")
def test_an_adversary_of_labels_only_asks_what_it_would_ask_an_api_of_labels_only(attack):
    """An attack may use answers only as the recovery makes targets of them, and their top class."""
    hard, _ = stolen(attack, ArgmaxDefense())
    soft, adversary = stolen(attack, recovery=Argmax())
    assert torch.equal(hard.transfer.rows, soft.transfer.rows)
    if attack.name in ("jbda", "jbself", "jbtopk", "jbtr"):
        assert torch.equal(hard.transfer.images, soft.transfer.images)
    assert torch.equal(hard.transfer.answers, adversary.targets(soft.transfer))
    if hard.network is not None:
        both = (torch.cat([value.flatten() for value in each.network.parameters()]) for each in (hard, soft))
        assert torch.equal(*both)
