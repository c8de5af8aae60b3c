"""Every defense, attack and recovery runs by its name: a theft of the digits in miniature, from config to record.

Defenses are also planned, and exported and opened again.
"""

import pytest
import torch
from toys import CPU, choices

import mad
from mad.estimate import networks
from mad.pipeline import run
from mad.storage.store import Store
from mad.victim import Victim

SMALL = (
    *("trainer.epochs=1", "trainer.min_steps=0", "knockoff.epochs=1", "knockoff.min_steps=0"),
    *("pool.size=300", "attack.budget=120", "architecture=mlp"),
)
QUICK = {
    "defense": {
        "dp_sgd": ("defense.epochs=1", "defense.min_steps=1"),
        "edm": ("defense.networks=2", "defense.outliers.size=200"),
        "ini": ("defense.outliers.size=200",),
        "queen": ("defense.shadows=1", "defense.map_steps=5"),
        "gradient_redirection": ("defense.surrogate.queries=100", "defense.surrogate.epochs=1"),
        "gate": ("victim.validation=0.1",),
        "chain": ("defense.parts=[{mad_argmax: {epsilon: 0.5}}, prada]",),
    },
    "attack": {
        "online": (),
        "jbda": ("attack.seeds=30", "attack.epochs=1"),
        "jbself": ("attack.seeds=30", "attack.epochs=1"),
        "jbtop3": ("attack.seeds=30", "attack.epochs=1"),
        "jbtopk": ("attack.seeds=30", "attack.epochs=1"),
        "jbtr": ("attack.seeds=30", "attack.epochs=1"),
        "dfme": ("attack.batch_size=12", "attack.width=4"),
        "maze": ("attack.batch_size=6", "attack.width=4"),
        "activethief": ("attack.rounds=2", "attack.epochs=1", "attack.min_steps=1"),
    },
    "recovery": {
        "restorer": ("recovery.shadows=1", "recovery.steps=5"),
        "restorer_plus": ("recovery.shadows=1", "recovery.steps=5"),
        "bayes": ("recovery.shadows=1",),
        "few": ("recovery.count=10",),
    },
}
UNNAMED = ("replay",)  # a log goes with it: tests/attacks/test_replay.py
NAMED = [(group, name) for group in QUICK for name in choices(group) if name not in UNNAMED]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.mark.parametrize("name", choices("defense"))
def test_it_can_be_planned(name):
    cell = mad.load(*SMALL, f"defense={name}", *QUICK["defense"].get(name, ()))
    found = networks(cell)
    assert found[0] == cell.victim
    assert all(isinstance(each, Victim) for each in found)


@pytest.mark.parametrize(("group", "name"), NAMED, ids=lambda part: part)
def test_it_runs_by_name(outputs, group, name):
    cell = mad.load(*SMALL, f"{group}={name}", *QUICK[group].get(name, ()))
    record = run(cell, Store(outputs), CPU)[0]
    assert record[group] == name
    assert record["queries"] == 120
    assert record["victim_accuracy"] > 0.3
    assert record["nll"] > 0
    if group == "defense":
        deployment = mad.deploy(cell, outputs=outputs, device="cpu")
        deployment.export(outputs / "exports" / name)
        images = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        answers = mad.open_deployment(outputs / "exports" / name).session()(images)
        assert torch.allclose(answers, deployment.fresh().session()(images), atol=1e-6)
