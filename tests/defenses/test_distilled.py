"""A surrogate that learns the victim's answers to a pool of the defender's."""

import pytest
import torch
from test_surrogates import Wide
from toys import CPU, Blobs, cell, trainer, victim

from mad import simplex
from mad.defenses import Chain, Context
from mad.defenses.distilled import DistilledSurrogate
from mad.defenses.gradient_redirection import GradientRedirection
from mad.defenses.mad import Mad
from mad.defenses.mad_argmax import MadArgmax
from mad.defenses.nasty_teacher import NastyTeacher
from mad.deployment import deploy
from mad.storage.fingerprint import describe, digest
from mad.storage.store import Store

POOL = Blobs(size=60, name="guess")


@pytest.mark.parametrize("kind", [GradientRedirection, Mad, MadArgmax])
def test_a_distilled_surrogate_learns_the_victims_answers_once(kind, tmp_path, fits):
    toy = victim(architecture=Wide)
    here = Context(toy, toy.train(CPU), 0, CPU, Store(tmp_path))
    del fits[:]
    surrogate = DistilledSurrogate(POOL, epochs=20, trainer=trainer(min_steps=1000))
    for _ in range(2):
        defense = kind(0.5, surrogate).prepared(here)
    assert fits == ["distilled surrogate"]
    network = surrogate.ready(here)
    some = POOL.images((1, 8, 8)) / 255
    assert (network(some).argmax(dim=1) == here.model(some).argmax(dim=1)).double().mean() > 0.9
    clean = torch.softmax(here.model(some), dim=1).detach()
    assert simplex.l1(defense(some, clean), clean).max() <= 0.5 + 1e-5
    for other in (DistilledSurrogate(POOL, queries=30), DistilledSurrogate(Blobs(size=60, name="other"))):
        other.ready(here)
    assert len(fits) == 3


def test_what_learns_another_served_model_is_another_network(tmp_path, fits):
    store, surrogate = Store(tmp_path), DistilledSurrogate(POOL, epochs=1)
    nasty = Chain(parts=[NastyTeacher(omega=0.05), Mad(0.5, surrogate)])
    for defense in (Mad(0.5, surrogate), nasty, Mad(0.5, surrogate), nasty):
        deploy(victim(), defense, store=store)
    assert fits.count("distilled surrogate") == 2


def test_a_distilled_surrogates_recipe():
    toy = victim(trainer=trainer(min_steps=500, weight_decay=0.1, knockoff={"learning_rate": 0.2, "epochs": 7}))
    few, whole = DistilledSurrogate(POOL).training(toy), DistilledSurrogate(POOL, epochs=None).training(toy)
    assert (few.epochs, few.min_steps, few.weight_decay, few.learning_rate) == (10, 0, 0, 0.2)
    assert (whole.epochs, whole.min_steps) == (7, 500)
    assert DistilledSurrogate(POOL, trainer=trainer(learning_rate=0.3)).training(toy).learning_rate == 0.3


@pytest.mark.parametrize("kind", [GradientRedirection, Mad])
@pytest.mark.parametrize("change", [{"learning_rate": 0.3}, {"optimizer": "adam"}, {"augment": "crop"}])
@pytest.mark.parametrize("owner", ["the victim", "the surrogate"])
def test_a_cell_is_another_if_its_surrogate_is_trained_in_another_way(kind, change, owner):
    def made(**own):
        recipe = trainer(knockoff=own)
        surrogate = DistilledSurrogate(POOL, trainer=None if owner == "the victim" else recipe)
        toy = victim(trainer=recipe) if owner == "the victim" else victim()
        return cell(victim=toy, defense=kind(0.5, surrogate))

    usual, other = made(), made(**change)
    for name in ("fingerprint", "defense_group", "asked_by"):
        assert digest(describe(getattr(usual, name))) != digest(describe(getattr(other, name)))
    assert made(**change).fingerprint == other.fingerprint
