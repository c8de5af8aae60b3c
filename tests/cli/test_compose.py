"""The words that a record holds make its cell again, and its reference's make the reference."""

import shlex

import pytest
from toys import compose

from mad.cli.compose import cell_of
from mad.defenses import Undefended

WORDS = [
    [],
    ["device=cpu", "outputs=elsewhere", "data_root=there", "force=true"],
    ["defense=random_noise", "defense.epsilon=0.8", "seed=1"],
    ["++defense.epsilon=0.5", "attack.budget=70", "victim.validation=0.1"],
    ["attack=online", "defense/surrogate=adversary", "probe=true"],
    ["knockoff.epochs=3", "pool.size=300"],
]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_a_cell_and_its_reference_are_made_again_by_their_words(words):
    cell = cell_of(compose(*words), words)
    for one in (cell, cell.reference):
        assert not [word for word in ("device", "outputs", "data_root", "force") if f"{word}=" in one.overrides]
        again = shlex.split(one.overrides)
        assert cell_of(compose(*again), again).fingerprint == one.fingerprint, one.overrides
    assert cell.reference.defense == Undefended()
    assert cell.reference.probe == cell.probe == ("probe=true" in words)
