"""A kept cell is found without torch, unless something that its fingerprint depends on may have changed."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
from toys import compose

from mad.cli import known
from mad.cli.figures import figures_of
from mad.storage import records

QUICK = [
    *("pool.size=60", "architecture=mlp", "trainer.epochs=1", "trainer.min_steps=0", "knockoff.epochs=1"),
    *("knockoff.min_steps=0", "device=cpu"),
]
AFTER = "; import sys; print([each for each in ('torch', 'matplotlib') if each in sys.modules])"
PLUGIN = """
import torch
from dataclasses import dataclass
from mad.defenses import Defense

@dataclass
class Flatten(Defense):
    name = "flatten"

    def perturb(self, images, clean):
        return torch.full_like(clean, 1 / clean.shape[1])
"""


def shell(folder, *words):
    """Run mad-run in a process of its own; return its stderr, and which slow libraries it imported."""
    code = "from mad.cli.run import main; main()" + AFTER
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr, done.stdout.splitlines()[-1]


def figures(folder):
    return {file: file.stat().st_mtime_ns for file in (folder / "outputs" / "figures").iterdir()}


def test_a_kept_cell_needs_neither_torch_nor_matplotlib(mad_run, tmp_path):
    assert mad_run("defense.epsilon=0.5", *QUICK)[0] == 0
    before = figures(tmp_path)
    err, imported = shell(tmp_path, "defense.epsilon=0.5", *QUICK)
    assert err.count("(kept)") == 2
    assert imported == "[]"
    assert figures(tmp_path) == before


def test_a_sweep_launches_what_is_not_kept(mad_run, tmp_path):
    basic = ["-m", "hydra/launcher=basic", *QUICK]
    assert mad_run(*basic, "defense.epsilon=0.5,0.8")[0] == 0
    err, imported = shell(tmp_path, "-m", "defense.epsilon=0.5,0.8", *QUICK)
    assert err.count("(kept)") == 4
    assert "2 of 2" in err
    assert imported == "[]"
    code, out, err = mad_run(*basic, "defense.epsilon=0.5,0.9,0.8")
    assert (code, err.count("(kept)")) == (0, 5)
    assert "3 of 3" in err
    assert all(value in out for value in ("0.5", "0.8", "0.9"))


def test_a_new_record_is_drawn(mad_run, tmp_path):
    mad_run("defense.epsilon=0.5", *QUICK)
    before = figures(tmp_path)
    mad_run("defense.epsilon=0.95", *QUICK)
    assert set(figures(tmp_path)) == set(before)
    assert all(figures(tmp_path)[file] > time for file, time in before.items())
    removed = next(iter(before))
    removed.unlink()
    mad_run("defense.epsilon=0.95", *QUICK)
    assert removed.exists()


def test_what_is_asked_for_anew_or_damaged_is_made(mad_run, tmp_path):
    mad_run("defense.epsilon=0.5", *QUICK)
    assert mad_run("defense.epsilon=0.5", "force=true", *QUICK)[2].count("(kept)") == 1
    (record,) = (tmp_path / "outputs" / "runs").glob("*/mad/*/*/record.json")
    record.write_text(record.read_text()[:-5])
    err = mad_run("defense.epsilon=0.5", *QUICK)[2]
    assert err.count("(kept)") == 1
    assert "set aside" in err


def test_an_edit_of_the_package_is_noticed(tmp_path):
    file = tmp_path / "deep" / "module.py"
    file.parent.mkdir()
    file.write_text("x = 1")
    found = [known.checksum(tmp_path)]
    os.utime(file, ns=(1, 1))
    found.append(known.checksum(tmp_path))
    file.write_text("x = 12")
    os.utime(file, ns=(1, 1))
    found.append(known.checksum(tmp_path))
    file.rename(file.with_name("other.py"))
    found.append(known.checksum(tmp_path))
    assert len(set(found)) == 4


def test_a_plug_in_is_looked_at_each_time(mad_run, tmp_path):
    (tmp_path / "conf" / "defense").mkdir(parents=True)
    (tmp_path / "conf" / "defense" / "flatten.yaml").write_text("_target_: known_flatten.Flatten\nepsilon: 0.5\n")
    (tmp_path / "known_flatten.py").write_text(PLUGIN)
    words = ["--config-dir", "conf", "defense=flatten", *QUICK]
    assert mad_run(*words)[0] == 0
    (tmp_path / "known_flatten.py").write_text(PLUGIN.replace("1 / clean", "0.5 + 0 / clean"))
    err, imported = shell(tmp_path, *words)
    assert err.count("(kept)") == 1  # the reference
    assert "torch" in imported


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ({"a": [1, {"b": "mad.x.Y"}], "contents": None, "content": ""}, True),
        ({"a": [{"contents": ["x"]}]}, False),
        ({"a": {"class": "flatten.Flatten source 0123"}}, False),
        ({"initial_sha256": "00"}, False),
    ],
)
def test_what_depends_on_files_is_told_by_its_description(description, expected):
    assert known.self_contained(description) is expected


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], True),
        (["threads=2"], True),
        (["grid=['defense=none']"], False),
        (["threads=0"], False),
        (["threads=many"], False),
        (["force=true"], False),
        (["device=cuda"], False),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_what_the_command_must_look_at_is_not_found_at_once(tmp_path, monkeypatch, words, found):
    usual = [f"outputs={tmp_path}", *QUICK]
    remembered = known.Known("runs/a", "runs/b", "a label")
    file = tmp_path / known.file_of(compose(*usual))
    file.parent.mkdir()
    file.write_text(json.dumps(asdict(remembered)))
    monkeypatch.setattr(known, "read_record", lambda path: {"at": path.name})
    records = [{"at": "a"}, {"at": "b"}]
    assert known.find(compose(*usual, *words)) == ((remembered, records) if found else None)


def row(group, defense, strength, **more):
    return {
        **{"victim": "toy", "architecture": "tiny", "pool": "blobs", "attack": "knockoff", "recovery": "none"},
        **{"defense": defense, "strength": strength, "defense_settings": "", "seed": 0, "queries": 50, "budget": 50},
        **{"stolen_accuracy": 0.5, "comparison_group": group * 16, "fingerprint": f"{group}{defense}", **more},
    }


def stamps(rows):
    """Return the checksum of each group's figure."""
    return {found.comparison_group.iloc[0]: stamp for found, stamp in figures_of(records.frame(rows)).values()}


MINE = [row("b", "mad", 0.5, attack_settings="x"), row("b", "none", 0.0)]
OTHERS = {
    "before mine": {"attack": "jbda", "pool": "a"},
    "after mine": {"attack": "knockoff", "pool": "z"},
    "with a column": {"attack": "jbda", "loss": 0.5},
    "without a whole number": {"attack": "jbda", "rounds": None},
    "without a flag": {"attack": "jbda", "learned": None},
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", OTHERS)
def test_a_new_record_of_another_group_leaves_a_figure_as_it_is(kind, first):
    mine = [each | {"rounds": 3, "learned": True} for each in MINE]
    other = row("a", "mad", 0.5, **OTHERS[kind])
    both = stamps([other, *mine] if first else [*mine, other])
    assert len(both) == 2
    assert both["b" * 16] == stamps(mine)["b" * 16]
    for column, value in (("stolen_accuracy", 0.6), ("rounds", 4), ("learned", False)):
        assert stamps([mine[0] | {column: value}, mine[1]])["b" * 16] != both["b" * 16]
    assert stamps([*mine, row("b", "mad", 0.7, attack_settings="x")])["b" * 16] != both["b" * 16]
