"""Fault 9: whatever is asked for ends in a result or in a one-line error, and leaves only whole files."""

import math
import re
from collections import Counter
from pathlib import Path

import pytest
from common import HERE, ONE, TOY, draw_nothing, leftovers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mad.storage import files
from mad.storage.store import read_record

KEYS = [
    "seed",
    "device",
    "outputs",
    "data_root",
    "force",
    "pool.size",
    "pool.name",
    "pool.shape",
    "pool.classes",
    "pool._target_",
    "victim.name",
    "victim.epochs",
    "victim.seed",
    "victim.dataset",
    "victim.dataset.classes",
    "victim.dataset.shape",
    "victim.dataset.size",
    "victim.trainer",
    "victim.architecture",
    "trainer.epochs",
    "trainer.batch_size",
    "trainer.optimizer",
    "trainer.learning_rate",
    "trainer.momentum",
    "trainer.weight_decay",
    "trainer.schedule",
    "trainer.step_epochs",
    "trainer.min_steps",
    "trainer.knockoff",
    "trainer.knockoff.epochs",
    "knockoff.min_steps",
    "knockoff.schedule",
    "trainer._target_",
    "defense.epsilon",
    "defense.gradient",
    "defense.solver",
    "defense.surrogate",
    "defense.surrogate.epochs",
    "defense.scale",
    "defense._target_",
    "defense._partial_",
    "attack.budget",
    "attack._target_",
    "recovery",
    "recovery._target_",
    "knockoff.epochs",
    "knockoff.optimizer",
    "knockoff.learning_rate",
    "knockoff.weight_decay",
    "knockoff.initial_weights",
    "knockoff.trainer",
    "architecture",
    "architecture._partial_",
    "unknown",
    "defense.unknown.deeper",
    "hydra.job.chdir",
    "grid",
]
GROUPS = {
    "defense": ("none", "mad", "mad_argmax", "random_noise", "mad_trained", "null", "madd"),
    "defense/surrogate": ("random", "trained", "victim", "null"),
    "defense/surrogate/architecture": ("linear", "lenet", "odd"),
    "defense/surrogate/dataset": ("digits", "nowhere"),
    "architecture": ("linear", "lenet", "odd", "null"),
    "knockoff/architecture": ("lenet", "null", "nothing"),
    "pool": ("toy", "letters", "image_folder", "null"),
    "attack": ("knockoff", "null", "x"),
    "recovery": ("none", "argmax", "null"),
    "knockoff": ("default", "null"),
    "trainer": ("toy", "null", "x"),
    "victim": ("toy", "null", "x"),
    "experiment": ("null", "x"),
}
TEXT = r"""-1 0 1 2 3 5 0.5 1e-3 1e9 -1e9 1e300 nan inf -inf true false null abc '' '../../x' é a/b ~ . [] [1]
    [1,4,4] [0,1,1] [a,b] {} {a:1} ${seed} ${nothing} ${oc.env:NOTHING} $ 'x{200}' 0x10 1_000 99999999999999999999 mad
    builtins.dict toy.Blobs toy.nothing nowhere.Thing cpu cuda adam step 'line\nline' '\x1b[31m' 1,2 0.5,1,abc
    choice(1,2) range(1,3)"""
VALUES = TEXT.split()
GOOD = """pool.size=20 trainer.epochs=1 defense.epsilon=1 defense=none defense=random_noise attack.budget=7 seed=3
    recovery=argmax knockoff.optimizer=adam victim.epochs=2 force=true"""
WORDS = st.one_of(
    st.sampled_from(GOOD.split()),
    st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)).map("=".join),
    st.tuples(st.sampled_from(KEYS), st.floats(-1, 3) | st.integers(-2, 12)).map(lambda pair: f"{pair[0]}={pair[1]}"),
    st.sampled_from([f"{group}={name}" for group, names in GROUPS.items() for name in names]),
    st.tuples(st.sampled_from(["+", "++", "~"]), st.sampled_from(KEYS)).map(lambda pair: f"{pair[0]}{pair[1]}=1"),
    st.text(st.characters(codec="utf-8", exclude_characters="-", exclude_categories=["Cs"]), min_size=1, max_size=8),
)
LINES = st.tuples(st.sampled_from([()] * 9 + [("-m",)]), st.lists(WORDS, min_size=1, max_size=3))


def check_artefacts(folder):
    """Every file is whole, and none is half-written."""
    for record in folder.rglob("record.json"):
        found = read_record(record)
        assert all(math.isfinite(value) for value in found.values() if isinstance(value, float))
    for facts in folder.rglob("victim.json"):
        content = facts.with_name("weights.safetensors").read_bytes()
        assert files.unseal(facts)["weights_sha256"] == files.hashlib.sha256(content).hexdigest()
    assert leftovers(folder) == []


def check_lines(code, err):
    """A result, or one line that says what was wrong; in a sweep, one a cell and their number."""
    assert "Traceback" not in err
    said = [line for line in err.splitlines() if line.startswith(("mad: ", "failed: "))]
    assert (code == 0) == (said == []), err
    assert code in (0, 1)
    other = set(err.splitlines()) - set(said)
    assert all(re.search(r"defended|cells failed|^\d+ of \d+|: no image of ", line) for line in other), err
    return "result" if code == 0 else "error"


@pytest.mark.parametrize("examples", [8, pytest.param(1000, marks=pytest.mark.faults)])
def test_any_overrides_end_in_a_result_or_one_line(examples, mad_run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    draw_nothing(monkeypatch)
    ends = Counter()

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(LINES)
    def one(line):
        flags, words = line
        code, _, err = mad_run(*flags, *TOY, *ONE, *words)
        ends[check_lines(code, err)] += 1
        check_artefacts(tmp_path)

    one()
    assert {path.name for path in Path(tmp_path).iterdir()} >= {"outputs"}
    print(f"\n{sum(ends.values())} command lines: {ends['result']} results, {ends['error']} one-line errors")
