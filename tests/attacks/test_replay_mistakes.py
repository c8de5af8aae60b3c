"""Logs that cannot be replayed, and what a log may hold."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from logs import png
from toys import CPU, Blobs, cell

from mad.attacks.replay import Replay
from mad.defenses import Chain
from mad.defenses.adaptive_misinformation import AdaptiveMisinformation
from mad.defenses.mad import Mad
from mad.defenses.nasty_teacher import NastyTeacher
from mad.errors import MadError, UnfitError
from mad.pipeline import run
from mad.storage.store import Store
from mad.testing import check_attack

ROW = r", row {} \(from 0\): "
ERRORS = {
    "no such column": (dict(image=None, seen=1), " has no column of images .* attack.image to one of answer, seen$"),
    "no answers": (dict(answer=None, seen=1, p1=1), " has no answers: .* attack.answer to one of seen, p1$"),
    "images only": (dict(answer=None), " has no answers: .*, p1, \\.\\.\\. or a column label; it has no other column$"),
    "from one": (
        dict(answer=None, **{f"p{number}": 0.25 for number in range(1, 5)}),
        " has no answers: .*; 4 columns from p1 to p4: name them p0 to p3$",
    ),
    "a gap": (
        dict(answer=None, **{f"prob_{number}": 0.25 for number in (0, 1, 3)}),
        " has no answers: .*; 3 columns from prob_0 to prob_3: name them prob_0 to prob_2$",
    ),
    "one of K": (
        dict(answer=None, p0=1.0, p1=[0.0] * 9 + [None] * 41, p2=0.0, p3=[0.0] * 9 + [None] + [0.0] * 40),
        ROW.format(9) + "NaN, or nothing, in p1, p3$",
    ),
    "several": (dict(probs=1), " has several answers: set attack.answer to one of answer, probs$"),
    "K": (dict(answer=[[0.5, 0.5]] * 50), " has 2 probabilities a row in answer, victim toy has 4 classes$"),
    "ragged": (dict(answer=[[0.5, 0.5]] * 49 + [[1.0]]), ROW.format(49) + "1 probabilities, row 0 has 2$"),
    "NaN": (dict(answer=[[1.0, 0, 0, 0]] * 49 + [[np.nan] * 4]), ROW.format(49) + "NaN, or nothing, in answer$"),
    "sum": (dict(answer=[[0.9, 0.2, 0, 0]] * 50), ROW.format(0) + "probabilities from 0 that sum to 1.1; expected"),
    "infinite": (dict(answer=[[np.inf, 0, 0, 0]] * 50), ROW.format(0) + "probabilities from 0 that sum to inf"),
    "negative": (dict(answer=[[1.1, -0.1, 0, 0]] * 50), ROW.format(0) + "probabilities from -0.1 that sum to 1;"),
    "label": (dict(answer=None, label=[0] * 49 + [4]), ROW.format(49) + "class 4, victim toy has classes 0 to 3$"),
    "half a label": (dict(answer=None, label=[0] * 49 + [0.5]), ROW.format(49) + "class 0.5, victim"),
    "no label": (dict(answer=None, label=[0] * 49 + [None]), ROW.format(49) + "NaN, or nothing, in label$"),
    "text": (dict(answer="cat"), " holds in answer what is neither a list of probabilities"),
    "image": (dict(image=b"no image"), r", row 0 \(from 0\) cannot be read as an image"),
    "no image": (dict(image=[None] * 50), ROW.format(0) + "expected an image as bytes or the path .* got nothing"),
    "absent image": (dict(image="absent.png"), ROW.format(0) + "the image 'absent.png' is not there"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_a_log_that_cannot_be_replayed_is_one_line_that_names_it(what, written, tmp_path, fits):
    changes, text = ERRORS[what]
    path = written(name=f"{what}.parquet", **changes)
    with pytest.raises(MadError, match=rf"^attack\.log={path}{text}") as caught:
        run(cell(attack=Replay(log=path), pool=None), Store(tmp_path / "outputs"), CPU)
    assert "\n" not in str(caught.value)
    assert fits == []  # nothing was trained
    assert not (tmp_path / "outputs" / "runs").exists()


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.csv", None, "attack.log={} is not there: give a CSV or Parquet file, .*"),
        ("a" * 300, None, "attack.log=.* is not there: give a CSV"),
        ("a.json", b"{}", "attack.log must be a CSV or Parquet file"),
        ("a.csv", b"", "{} cannot be read as a table of images"),
        ("a.csv", b"image,label\n", "attack.log={} is empty"),
        ("a.parquet", b"PAR1 it is not", "{} cannot be read as a table of images"),
        ("a.csv", b"image,label\n\xff\xfe,1\n", "{} cannot be read as a table of images"),
    ],
)
def test_a_file_that_is_no_table_is_one_line(name, content, text, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MadError, match=rf"^{text.format(tmp_path / name)}[^\n]*$"):
        Replay(log=str(tmp_path / name))


@pytest.mark.parametrize(
    "defense", [NastyTeacher(), Chain(parts=[Mad(0.5), NastyTeacher()]), AdaptiveMisinformation(outliers=Blobs())]
)
def test_what_serves_another_model_cannot_be_replayed(written, defense):
    with pytest.raises(UnfitError, match="serves another model, whose answers no log holds"):
        cell(defense=defense, attack=Replay(log=written()))
    cell(defense=AdaptiveMisinformation(), attack=Replay(log=written()))  # the victim as it is


def test_it_needs_a_log_and_images_of_one_or_three_channels(written):
    with pytest.raises(MadError, match=r"^attack=replay needs a log [^\n]*: set attack\.log=FILE$"):
        Replay()
    with pytest.raises(MadError, match=r"^attack\.image must be a text, got True$"):
        Replay(log="x.csv", image=True)
    victim = cell().victim
    with pytest.raises(MadError, match="reads images of 1 or 3 channels, victim toy takes 2"):
        Replay(log=written()).check(replace(victim, dataset=replace(victim.dataset, shape=(2, 8, 8))))


def test_numbered_answers_that_are_named_must_begin_at_zero(written):
    path = written(name="one.parquet", answer=None, **{f"p{number}": 0.25 for number in range(1, 5)})
    with pytest.raises(MadError, match=r"one\.parquet has 4 columns from p1 to p4: name them p0 to p3$"):
        Replay(log=path, answer="p")


def test_columns_with_and_without_a_sign_before_the_number_are_two_kinds_of_answers(written):
    one, other = ({f"{stem}{number}": share for number in range(4)} for stem, share in (("p_", 0.25), ("p", 0.5)))
    path = written(name="two.parquet", answer=None, **one, **other)
    with pytest.raises(MadError, match=r"two\.parquet has several answers: set attack.answer to one of p_, p, "):
        Replay(log=path)
    assert Replay(log=path, answer="p_").opened.values.max() == 0.25
    assert Replay(log=written(name="one.parquet", answer=None, **one), answer="p").opened.values.max() == 0.25


def test_without_pyarrow_it_says_what_to_install(written, monkeypatch):
    path = written(name="unread.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MadError, match=r"unread.parquet needs pyarrow to be read: pip install 'mad\[datasets\]'$"):
        Replay(log=path)


def test_a_folder_of_hugging_face_is_a_log(asked, written, tmp_path):
    import datasets

    path, names = written("structs"), {"image": datasets.Image()}
    whole = datasets.Dataset.from_parquet(path, cache_dir=str(tmp_path / "cache"))
    whole.cast(datasets.Features({**whole.features, **names})).save_to_disk(tmp_path / "saved")
    log = Replay(log=str(tmp_path / "saved")).opened
    assert torch.equal(log.posteriors(4, "it"), asked[2])
    assert torch.equal(log.images((1, 8, 8)), asked[1])
    assert log.content == Replay(log=path).content
    datasets.DatasetDict(train=whole, test=whole).save_to_disk(tmp_path / "parts")
    with pytest.raises(MadError, match=r"^attack\.log=.*parts has several parts: give one, such as .*parts/train$"):
        Replay(log=str(tmp_path / "parts"))
    assert len(Replay(log=str(tmp_path / "parts" / "train")).opened) == 50


def test_numbers_in_a_csv_are_numbers(written, tmp_path):
    for column in ("1", "01", " 1.0", '"[0, 1.0, 0, 0]"', "1e0"):
        (tmp_path / "log.tsv").write_text(f"File\tLabel\n{written('paths') and 'images/0.png'}\t{column}\n")
        assert Replay(log=str(tmp_path / "log.tsv")).opened.posteriors(4, "it").tolist() == [[0, 1, 0, 0]]
    (tmp_path / "log.csv").write_text("image,label\nimages/0.png,0\nimages/1.png,\n")
    with pytest.raises(MadError, match=r"log.csv, row 1 \(from 0\): NaN, or nothing, in label$"):
        Replay(log=str(tmp_path / "log.csv")).opened.posteriors(4, "it")


def test_it_keeps_the_contract(written):
    check_attack(Replay(log=written()))


def test_one_command_gives_both_rows(mad_run, asked, tmp_path):
    _, images, answers = asked
    frame = pd.DataFrame({"image": list(map(png, images)), "label": answers.argmax(dim=1).numpy()})
    frame.to_parquet(tmp_path / "answers.parquet")
    quick = ["architecture=mlp", "trainer.epochs=1", "trainer.min_steps=0", "knockoff.epochs=1", "knockoff.min_steps=0"]
    code, out, err = mad_run("attack=replay", "attack.log=answers.parquet", "device=cpu", *quick)
    assert code == 0, err
    assert "attack.log=answers.parquet: 50 of 50 rows" in err
    assert {"none", "mad"} <= set(out.split())
    again = mad_run("attack=replay", "attack.log=answers.parquet", "device=cpu", *quick)
    assert again[2].count("(kept)") == 2


def test_answers_of_two_decimals_are_posteriors(written):
    answers = [[0.26, 0.26, 0.26, 0.24], [0.33, 0.33, 0.32, 0.0]] * 25  # sums of 1.02 and 0.98
    found = Replay(log=written(name="rounded.parquet", answer=answers)).opened.posteriors(4, "it")
    assert torch.allclose(found, torch.tensor(answers) / torch.tensor(answers).sum(dim=1, keepdim=True))
