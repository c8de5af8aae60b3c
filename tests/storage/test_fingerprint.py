"""What names a cell: all that determines its numbers, and nothing else."""

import pytest
from toys import Blobs, Tiny, build, cell, compose, trainer, victim

from mad.attacks.knockoff_nets import KnockoffNets
from mad.cli.compose import PARTS
from mad.defenses.mad import Mad
from mad.defenses.random_noise import RandomNoise
from mad.knockoff import Knockoff
from mad.pipeline import Cell
from mad.recoveries.argmax import Argmax

CHANGES = {
    "seed": {"seed": 1},
    "epsilon": {"defense": Mad(0.6)},
    "defense": {"defense": RandomNoise(0.5)},
    "noise": {"defense": RandomNoise(0.5, scale=3)},
    "budget": {"attack": KnockoffNets(51)},
    "recovery": {"recovery": Argmax()},
    "pool": {"pool": Blobs(size=300)},
    "epochs": {"knockoff": Knockoff(trainer(), epochs=9)},
    "min_steps": {"knockoff": Knockoff(trainer(), min_steps=900)},
    "weight_decay": {"knockoff": Knockoff(trainer(), weight_decay=0.1)},
    "victim_seed": {"victim": victim(seed=1)},
    "victim_epochs": {"victim": victim(epochs=9)},
    "classes": {"victim": victim(5)},
}


def test_every_change_of_numbers_changes_the_name():
    names = [cell().fingerprint, *(cell(**change).fingerprint for change in CHANGES.values())]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "same",
    [
        {"defense": Mad(epsilon=0.5)},
        {"knockoff": Knockoff(trainer(), architecture=Tiny)},
        {"knockoff": Knockoff(trainer(epochs=3), epochs=8)},
        {"victim": victim(trainer=trainer(epochs=3), epochs=8)},
        {"pool": Blobs(shape=[1, 8, 8])},
    ],
)
def test_the_same_numbers_have_the_same_name(same):
    assert cell(**same).fingerprint == cell().fingerprint


def test_comparison_groups_differ_in_all_but_defense_and_seeds():
    same = ("seed", "epsilon", "defense", "noise", "victim_seed")
    for name, change in CHANGES.items():
        assert (cell(**change).comparison_group == cell().comparison_group) == (name in same), name


def composed(*overrides):
    config = compose(*overrides)
    return Cell(**{part: build(config[part]) for part in PARTS}, seed=config.seed)


def test_places_stay_out_of_the_name():
    plain = composed("victim=mnist", "pool=fashion_mnist")
    moved = composed("victim=mnist", "pool=fashion_mnist", "data_root=/else", "outputs=there", "device=cpu")
    assert moved.fingerprint == plain.fingerprint
    assert composed("victim=mnist", "pool=kmnist").fingerprint != plain.fingerprint
