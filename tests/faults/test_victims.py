"""Fault 7: victims that answer NaN, infinities, or exact zeros and ones."""

from functools import partial

import pytest
import torch
from toy import Odd
from toys import CPU, cell, trainer, victim

from mad.api import BlackBox
from mad.defenses import Context, Undefended
from mad.defenses.mad import Mad
from mad.defenses.mad_argmax import MadArgmax
from mad.defenses.random_noise import RandomNoise
from mad.errors import MadError
from mad.pipeline import run
from mad.recoveries.argmax import Argmax
from mad.storage.store import Store

DEFENSES = {"none": Undefended(), "mad": Mad(0.5), "mad_argmax": MadArgmax(0.5), "random_noise": RandomNoise(0.5)}
DEFENSES["exact"] = Mad(0.5, solver="exact")


def theft(last, defense, **changes):
    odd = victim(architecture=partial(Odd, last=str(last)), trainer=trainer(epochs=1))
    return cell(defense=DEFENSES[defense], victim=odd, **changes)


@pytest.mark.parametrize("defense", DEFENSES)
@pytest.mark.parametrize("last", ["nan", "inf"])
def test_what_is_no_posterior_is_refused(last, defense, tmp_path):
    with pytest.raises(MadError, match=r"NaN|diverged") as caught:
        run(theft(last, defense), Store(tmp_path), CPU)
    assert "victim" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.glob("runs/**/record.json")) == []


@pytest.mark.parametrize("defense", DEFENSES)
@pytest.mark.parametrize("last", ["nan", "inf"])
def test_what_a_served_model_breaks_is_not_passed_on(last, defense):
    recipe = theft(last, defense).victim
    model = recipe.untrained(seed=0, purpose="victim")
    ready = DEFENSES[defense].prepared(Context(victim(), victim().untrained(seed=0, purpose="victim"), 0, CPU))
    api = BlackBox(model, ready, (1, 8, 8), 10, CPU)
    with pytest.raises(MadError, match="the victim answered with NaN"):
        api(torch.rand(5, 1, 8, 8))


@pytest.mark.parametrize("defense", DEFENSES)
@pytest.mark.parametrize("last", [-1e4, 1e4, float("-inf")])
def test_exact_zeros_and_ones_are_answered(last, defense, tmp_path):
    """A logit of 10,000 is a posterior of one and zeros; one of -10,000 or minus infinity is a zero."""
    model = theft(last, defense).victim.untrained(seed=0, purpose="victim")
    clean = torch.softmax(model(torch.rand(5, 1, 8, 8)), dim=1)
    assert clean[:, -1].unique().tolist() == [1.0 if last == 1e4 else 0.0]
    record, _ = run(theft(last, defense, recovery=Argmax()), Store(tmp_path), CPU)
    assert 0 <= record["l1_max"] <= 0.5 + 1e-5
    assert all(0 <= record[name] <= 1 for name in ("defended_accuracy", "stolen_accuracy", "agreement"))
