"""The thief's accounts behind a gate that tests clients, and behind other defenses."""

import pytest
import torch
from gate_victims import FLAT
from toys import CPU, cell

from mad.accounts import Accounts
from mad.attacks.knockoff_nets import KnockoffNets
from mad.defenses import Defense
from mad.defenses.gate import Gate
from mad.errors import MadError
from mad.pipeline import inputs, run
from mad.storage.store import Store


def test_accounts_of_any_defense_and_budget():
    class Counts(Defense):
        name = "counts"
        stateful = True
        epsilon = None

        def begin(self):
            self.asked = 0

        def perturb(self, images, clean):
            self.asked += len(images)
            return clean

        def session_columns(self):
            return {"asked": self.asked}

    defense = Counts(None)
    for count, share in ((3, [4, 3, 3]), (7, [2, 2, 2, 1, 1, 1, 1]), (10, [1] * 10), (1, [10])):
        accounts = Accounts(defense, 10, count)
        for size in (1, 5, 4):
            accounts(torch.rand(size, 1, 2, 2), torch.full((size, 2), 0.5))
        assert [each.asked for each in accounts._sessions] == share
        assert accounts.session_columns() == {"asked": share[0]}
    with pytest.raises(MadError, match=r"attack\.budget"):
        Accounts(defense, 2, 3)


def test_accounts_reach_the_record(tmp_path):
    record = run(
        cell(victim=FLAT, defense=Gate(client=0.01), attack=KnockoffNets(60, accounts=4)), Store(tmp_path), CPU
    )[0]
    assert record["gate_flagged"] <= 1
    assert record["gate_honest_flagged"] == 0
    assert "accounts=4" in record["attack_settings"]
    with pytest.raises(MadError, match=r"attack\.accounts"):
        KnockoffNets(3, accounts=4)
    with pytest.raises(MadError, match=r"attack\.accounts"):  # of a pool of 200 images
        inputs(cell(attack=KnockoffNets(None, accounts=201)))
