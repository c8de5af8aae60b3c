"""What a notebook calls: run, records, plot, deploy."""

import sys
from dataclasses import dataclass, replace

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from toys import Tiny, cell, victim

import mad
from mad.defenses.mad import Mad
from mad.errors import MadError
from mad.figures import tradeoff


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Two comparison groups, one with its reference."""
    folder = tmp_path_factory.mktemp("outputs")
    mad.run(cell(), folder, device="cpu")
    mad.run(cell(budget=40), folder, device="cpu", reference=False)
    return folder


def test_a_cell_is_run_with_its_reference_unless_that_is_unwanted(tmp_path, fits):
    record = mad.run(cell(), tmp_path, device="cpu", reference=False)
    assert record["fingerprint"] == cell().fingerprint
    assert fits == ["victim toy", "knockoff"]
    assert mad.run(cell(), tmp_path, device="cpu") == record  # kept; the reference is run
    assert mad.run(cell().reference, tmp_path, device="cpu")["defense"] == "none"
    assert fits == ["victim toy", "knockoff", "knockoff"]
    mad.run(cell(), tmp_path, device="cpu", force=True)  # this cell alone
    assert fits == ["victim toy", *["knockoff"] * 3]


def test_threads_are_as_they_were(tmp_path):
    before = torch.get_num_threads()
    assert mad.run(cell(), tmp_path, device="cpu", threads=2, reference=False)["threads"] == 2
    assert torch.get_num_threads() == before


@dataclass
class Leaving(Mad):
    """A plug-in that ends the program."""

    name = "leaving"
    when: str = "perturb"

    def prepare(self, context):
        return sys.exit(3) if self.when == "prepare" else super().prepare(context)

    def perturb(self, images, clean):
        sys.exit(3)


def test_a_plug_in_does_not_end_the_callers_program(tmp_path):
    with pytest.raises(MadError, match=r"sys\.exit\(3\)"):
        mad.run(cell(defense=Leaving(0.5)), tmp_path, device="cpu", reference=False)
    with pytest.raises(MadError, match=r"prepare ended the program with sys\.exit\(3\)"):
        mad.deploy(victim(), Leaving(0.5, when="prepare"), outputs=tmp_path, device="cpu")


def test_records_are_a_table(outputs, tmp_path):
    table = mad.records(outputs)
    assert sorted(zip(table.defense, table.budget, strict=True)) == [("mad", 40), ("mad", 50), ("none", 50)]
    assert mad.records(tmp_path).empty
    with pytest.raises(
        MadError, match=r"^outputs: there is no folder .*typo; name the outputs folder of earlier runs$"
    ):
        mad.records(tmp_path / "typo")


def test_one_comparison_group_is_plotted_and_no_other_number(outputs, tmp_path):
    table = mad.records(outputs)
    figure = mad.plot(table[table.budget == 50])
    assert isinstance(figure, Figure)
    with pytest.raises(MadError, match=r"records of 2 comparison groups that differ in .*plot one") as refused:
        mad.plot(table)
    assert "\n" not in str(refused.value)
    with pytest.raises(MadError, match="no record to plot"):
        mad.plot(mad.records(tmp_path))
    with pytest.raises(MadError, match="no record to plot"):
        mad.plot(table[:0])


def test_a_plot_counts_each_record_once_and_takes_a_csv(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("mad.figures.tradeoff.draw", drawn.append)
    for seed in (0, 1):
        mad.run(cell(seed=seed), tmp_path, device="cpu")
    table = mad.records(tmp_path)
    table.to_csv(tmp_path / "records.csv", index=False)
    for frame in (table, pd.concat([table, table[table.seed == 0]]), pd.read_csv(tmp_path / "records.csv")):
        mad.plot(frame)
    for frame in drawn:
        (mine,) = tradeoff.curves(frame).values()
        assert mine["stolen_accuracy"].to_numpy() == pytest.approx(
            tradeoff.curves(table)["mad"]["stolen_accuracy"].to_numpy()
        )
        assert list(tradeoff.curves(frame)) == ["mad"]


@pytest.mark.parametrize("frame", [{"defense": "mad"}, [1], None, pd.DataFrame({"defense": ["mad"]})])
def test_what_is_no_table_of_records_is_not_plotted(frame):
    with pytest.raises(MadError, match=r"mad\.records\(outputs\)"):
        mad.plot(frame)


def test_a_deployment_is_a_cells_or_a_victims(outputs, fits):
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = mad.deploy(cell(), outputs=outputs, device="cpu").session(5)(images)
    theirs = mad.deploy(victim(), Mad(0.5), outputs=outputs, device="cpu").session(5)(images)
    assert torch.equal(ours, theirs)
    assert fits == []  # the victim is kept
    assert not torch.allclose(ours, mad.deploy(victim(), outputs=outputs, device="cpu").session()(images), atol=0.01)
    with pytest.raises(MadError, match=r"^a cell has a defense of its own: .*a victim and a defense$"):
        mad.deploy(cell(), Mad(0.5), outputs=outputs, device="cpu")
    mad.deploy(victim(), outputs=None, device="cpu")
    assert fits == ["victim toy"]


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: mad.run("defense=mad"), r"what mad\.run runs must be a Cell, such as mad\.load.*got 'defense=mad'"),
        (lambda: mad.panel(None), "the cell of a panel must be a Cell"),
        (lambda: mad.load(["defense=mad"]), r"an override must be a str, such as 'defense=mad'"),
        (lambda: mad.deploy("digits", outputs=None), "what is deployed must be a Victim"),
        (lambda: mad.deploy(victim(), Mad, outputs=None), "the defense must be a Defense.*got <class"),
        (lambda: mad.deploy(victim(), seed="a", outputs=None), r"seed must be a whole number in \[0, \d+\], got 'a'"),
        (lambda: mad.open_deployment("nowhere", "gpu"), "device=gpu is not there: choose from auto, cpu"),
        (lambda: mad.deploy(victim(), seed=2**70, outputs=None), "seed must be a whole number in"),
        (lambda: mad.deploy(cell(), seed=1, outputs=None), "a cell has a seed of its own: load it with seed=1"),
        (lambda: mad.deploy(victim(), outputs=3), "outputs must be a path, got 3"),
        (lambda: mad.records(None), "outputs must be a path, got None"),
        (lambda: mad.records("~nobody_at_all"), "there is no such home folder"),
        (lambda: mad.run(cell(), ""), "outputs must be a path, got ''"),
        (lambda: mad.run(cell(), export=3), "export must be a path, got 3"),
        (lambda: mad.run(cell(), force="no"), "force must be true or false, got 'no'"),
        (lambda: mad.run(cell(), reference=None), "reference must be true or false, got None"),
        (lambda: mad.run(cell(), threads=0), "threads must be a whole number of at least 1, got 0"),
        (lambda: mad.open_model(None), "the folder of a model must be a path, got None"),
        (lambda: mad.open_deployment(3), "the folder of a deployment must be a path, got 3"),
        (lambda: replace(cell(), victim=None), "victim must be a Victim; got None"),
        (lambda: replace(cell(), knockoff=cell().knockoff.trainer), r"knockoff must be a Knockoff; got Trainer\("),
        (lambda: mad.Knockoff("fast"), r"knockoff\.trainer must be a Trainer; got 'fast'"),
        (lambda: replace(victim(), trainer=None), "trainer must be a Trainer; got None"),
        (lambda: replace(victim(), architecture="lenet"), "architecture must be what makes an untrained network"),
        (lambda: replace(victim(), architecture=Tiny((1, 8, 8), 4)), "got Tiny.*a trained network is a function of"),
    ],
)
def test_a_wrong_part_is_a_line(call, what):
    with pytest.raises(MadError, match=what) as refused:
        call()
    assert "\n" not in str(refused.value)
