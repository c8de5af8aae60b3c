"""Fault 10: names, paths and values as people have them: what is written can be read again, and drawn."""

import json
import shlex
import sys

import pandas as pd
import pytest
from common import HERE, ONE, TOY, draw_nothing, finished, leftovers, trainings
from matplotlib.figure import Figure
from PIL import Image

from mad.cli import figures as figures_command
from mad.cli import prune, status
from mad.figures import paper, tradeoff
from mad.storage import records

QUICK = ("trainer.epochs=1",)
# A no-break space, zero width, an emoji of three, right to left, a newline, a tab, terminal escapes, line separators,
# bytes that are no UTF-8, markup of two kinds, quotes, and what pandas would read as nothing.
ODD = "NA\u00a0\u200b\ufeff\U0001f469\u200d\U0001f52c\u202e\u05d0\u200f\n\t\x1b[31m\x07\x85\u2028\udcff"
ODD += '[b]$x^$[/b]it\'s "so"'


@pytest.fixture
def toy(mad_run, monkeypatch):
    monkeypatch.syspath_prepend(HERE)

    def call(*words):
        flags = [word for word in words if word.startswith("-")]
        return mad_run(*flags, *TOY, *ONE, *QUICK, *(word for word in words if not word.startswith("-")))

    return call


def test_a_path_of_any_characters_is_kept_and_read_again(toy, tmp_path, monkeypatch):
    draw_nothing(monkeypatch)
    folder = tmp_path / ODD
    folder.mkdir(parents=True)
    for number in range(20):
        Image.new("L", (4, 4), number).save(folder / f"{number}.png")
    quoted = str(folder).replace("'", "\\'")
    words = ["pool=image_folder", f"pool.path='{quoted}'", "defense=mad", "attack.budget=20"]
    code, out, err = toy(*words)
    assert code == 0, err
    code, out, again = toy(*words)
    assert (code, again.count("(kept)")) == (0, 2), again
    assert not {"\x1b", "\x07"} & set(out + err)
    table = records.read(tmp_path / "outputs")
    assert [shlex.split(each).count(words[1]) for each in table.overrides] == [1, 1]
    csv = pd.read_csv(tmp_path / "outputs" / "records.csv", dtype=str, keep_default_na=False)
    assert csv.overrides.tolist() == [each.encode(errors="backslashreplace").decode() for each in table.overrides]


def test_the_longest_names_are_written_and_drawn(toy, tmp_path, monkeypatch):
    draw_nothing(monkeypatch)
    name, outputs = 63 * chr(0x20000), tmp_path / "outputs"
    words = ("defense=mad_trained", f"victim.name='{name}'", f"+pool.name='{name}'")
    code, _, err = toy("-m", *words, "defense.epsilon=0.5,1")
    assert code == 0, err
    assert len(list(outputs.glob("figures/*.png"))) == 1
    assert leftovers(outputs) == []
    figures(monkeypatch)
    prune.prune(outputs, yes=True)
    assert toy(*words, "defense.epsilon=1")[2].count("(kept)") == 2
    shown(monkeypatch, *TOY[2:], *QUICK, *words, "defense.epsilon=1")


def figures(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["mad-figures", *words])
    figures_command.main()


def shown(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["mad-status", *TOY[:2], *words])
    status.main()


def test_a_name_too_long_for_a_folder_is_refused_before_anything_is_trained(toy, tmp_path):
    code, _, err = toy(f"victim.name='{64 * chr(0x20000)}'")
    assert code == 1
    assert "victim.name must be up to 255 bytes, got 256" in err
    assert not list(tmp_path.glob("outputs/*/*"))


def test_what_cannot_be_written_is_not_made_first(toy, tmp_path, monkeypatch):
    """As on disks that take shorter names than others, or whose folders are somebody else's."""
    log = tmp_path / "log"
    monkeypatch.setenv("TOY_LOG", str(log))
    (tmp_path / "outputs" / "victims").mkdir(parents=True)
    (tmp_path / "outputs" / "victims" / "toy").touch()
    code, _, err = toy()
    assert code == 1
    assert "cannot write" in err
    assert len(err.splitlines()) == 1
    assert not log.exists()


def test_a_figure_that_cannot_be_drawn_costs_no_other(toy, tmp_path, monkeypatch, capfd):
    outputs = tmp_path / "outputs"

    def broken(group):
        if group["pool"].iloc[0] == "odd":
            raise ZeroDivisionError("no such color")
        return Figure((1, 1))

    monkeypatch.setattr(tradeoff, "draw", broken)
    code, _, err = toy("-m", "+pool.name=a,odd,z", "defense.epsilon=0.5,9")
    assert code == 1
    words = [word for file in outputs.glob("figures/*.png") for word in file.name.split("-")]
    assert sorted(word for word in words if word in ("a", "odd", "z")) == ["a", "z"]
    (said,) = [line for line in err.splitlines() if "not drawn" in line]
    assert "ZeroDivisionError: no such color" in said
    assert err.count("failed: ") == 3  # the sweep's other news are told all the same
    for file in outputs.glob("figures/*"):
        file.unlink()
    with pytest.raises(SystemExit):
        figures(monkeypatch)
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert len(list(outputs.glob("figures/*.png"))) == 2


def test_the_papers_figures_are_drawn_one_by_one(toy, tmp_path, monkeypatch, capfd):
    assert toy("defense.epsilon=0.5")[0] == 0
    monkeypatch.setitem(paper.FIGURES, "fig3", lambda known: 1 / 0)
    monkeypatch.setattr("mad.figures.table1.table1", lambda every: [][0])
    with pytest.raises(SystemExit):
        figures(monkeypatch, "paper")
    (said,) = capfd.readouterr().err.splitlines()
    assert all(word in said for word in ("fig3 (ZeroDivisionError", "table1.csv", "table1.md"))
    assert {file.name for file in tmp_path.glob("outputs/figures/paper/*")} >= {"ledger.csv", "fig4.png"}


PLUGIN = """
from dataclasses import dataclass

import torch
from mad.defenses import Defense


@dataclass
class Flatten(Defense):
    name = "flatten"

    def perturb(self, images, clean):
        return WHAT
"""
KEEP, FLATTEN = "clean", "torch.full_like(clean, 1 / clean.shape[1])"


def test_an_edited_plugin_is_run_and_shown_apart(toy, tmp_path, monkeypatch):
    draw_nothing(monkeypatch)
    (tmp_path / "conf" / "defense").mkdir(parents=True)
    (tmp_path / "conf" / "defense" / "flatten.yaml").write_text("_target_: flatten_plugin.Flatten\nepsilon: 2\n")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = []
    for what in (KEEP, FLATTEN, FLATTEN):
        (tmp_path / "flatten_plugin.py").write_text(PLUGIN.replace("WHAT", what))
        sys.modules.pop("flatten_plugin", None)
        place = f"hydra.searchpath=[{json.dumps(str(tmp_path / 'conf'))}]"
        code, _, err = toy(place, "defense=flatten")
        assert code == 0, err
        found.append((err.count("(kept)"), len(records.read(tmp_path / "outputs"))))
    assert found == [(0, 2), (1, 3), (2, 3)]
    table = records.read(tmp_path / "outputs")
    assert sorted(table[table.defense == "flatten"].l1_mean > 0.1) == [False, True]
    assert len(tradeoff.curves(table)) == 2
    sys.modules.pop("flatten_plugin", None)


def made(outputs):
    return {file.parent.parent.name + "/" + file.parent.name: at for file, at in finished(outputs).items()}


def test_force_all_makes_everything_again_once_a_sweep(toy, tmp_path, monkeypatch):
    draw_nothing(monkeypatch)
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    words = ("-m", "defense=mad_trained", "defense.epsilon=0.5,1")
    assert toy(*words)[0] == 0
    once, numbers = trainings(tmp_path), records.read(tmp_path / "outputs")
    assert sum(once.values()) == 5  # victim, surrogate, reference, two cells
    before = made(tmp_path / "outputs")
    code, _, err = toy(*words, "force=all")
    assert code == 0, err
    assert trainings(tmp_path) == once + once
    after = made(tmp_path / "outputs")
    assert after.keys() == before.keys()
    assert all(after[name] != at for name, at in before.items())
    again = records.read(tmp_path / "outputs")
    same = [name for name in numbers if not name.startswith("seconds")]
    pd.testing.assert_frame_equal(again[same], numbers[same])
    assert toy(words[1], "defense.epsilon=1", "force=all")[0] == 0
    assert sum(trainings(tmp_path).values()) == 10 + 4
    assert leftovers(tmp_path / "outputs") == []


@pytest.mark.parametrize("value", ["yes", "1", "none", "ALL", "null", "[all]"])
def test_force_is_one_of_three(value, toy, tmp_path):
    code, _, err = toy(f"force={value}")
    assert code == 1
    assert "force must be false, true" in err
    assert len(err.splitlines()) == 1
