"""Replaying a log steals what the same queries would have stolen, and any log that cannot be replayed is one line."""

import io
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from toys import CPU, cell

from mad.api import BlackBox
from mad.attacks.replay import Replay
from mad.datasets.checked import say
from mad.defenses import Undefended
from mad.defenses.mad import Mad
from mad.defenses.mad_argmax import MadArgmax
from mad.defenses.random_noise import RandomNoise
from mad.defenses.reverse_sigmoid import ReverseSigmoid
from mad.defenses.top_k import TopK
from mad.deployment import deploy
from mad.errors import BudgetExceededError, MadError
from mad.pipeline import run
from mad.storage.store import Store
from mad.testing import check_attack

DEFENSES = [Undefended(), Mad(0.8), MadArgmax(0.8), RandomNoise(0.5), ReverseSigmoid(beta=0.5), TopK(k=2)]
SCORES = ("stolen_accuracy", "agreement", "learned", "l1_mean_queries", "target_entropy", "queries", "budget")


def png(image):
    held = io.BytesIO()
    Image.fromarray(image.squeeze(0).numpy()).save(held, "PNG")
    return held.getvalue()


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """An undefended theft: its outputs, and the images and answers of its transfer set."""
    store, whole = Store(tmp_path_factory.mktemp("outputs")), cell(defense=Undefended())
    api = deploy(whole.victim, store=store).session(50)
    transfer = whole.attack.spend(api, whole.pool.images((1, 8, 8)), whole.adversary(CPU)).transfer
    return store, transfer.images[transfer.rows], transfer.answers


@pytest.fixture
def written(asked, tmp_path):
    """Write the log in one of the ways that it may have; return its path."""
    _, images, answers = asked

    def write(how="bytes", name="log.parquet", **changes):
        (tmp_path / "images").mkdir(exist_ok=True)
        for number, image in enumerate(images):
            (tmp_path / "images" / f"{number}.png").write_bytes(png(image))
        paths, content = [f"images/{number}.png" for number in range(len(images))], list(map(png, images))
        pictures = {
            "bytes": content,
            "paths": paths,
            "structs": [{"bytes": each, "path": None} for each in content],
            "structs of paths": [{"bytes": None, "path": each} for each in paths],
        }
        frame = pd.DataFrame({"image": pictures[how], "answer": answers.numpy().tolist()})
        for column, value in changes.items():
            frame[column] = value
        frame = frame.drop(columns=[column for column, value in changes.items() if value is None])
        frame.to_csv(tmp_path / name, index=False) if name.endswith("csv") else frame.to_parquet(tmp_path / name)
        return str(tmp_path / name)

    return write


def columns(answers, name="p{}"):
    return {name.format(number): answers[:, number].numpy() for number in range(answers.shape[1])}


@pytest.mark.parametrize(
    ("how", "name"),
    [(how, "log.parquet") for how in ("bytes", "paths", "structs", "structs of paths")] + [("paths", "log.csv")],
)
def test_a_replayed_log_is_the_theft_that_it_is_of_to_the_bit(asked, written, how, name, tmp_path):
    store, _, answers = asked
    queried, replayed = cell(defense=Undefended()), cell(defense=Undefended(), attack=Replay(log=written(how, name)))
    expected, record = (run(whole, store, CPU)[0] for whole in (queried, replayed))
    assert [record[name] for name in SCORES] == [expected[name] for name in SCORES]
    assert (record["attack"], record["pool"], record["seconds_queries"] > 0) == ("replay", "none", True)
    pool, networks = queried.pool.images((1, 8, 8)), []
    for whole in (queried, replayed):
        adversary, api = whole.adversary(CPU), deploy(whole.victim, store=store).session(50)
        transfer = whole.attack.spend(api, pool, adversary)
        assert torch.equal(transfer.transfer.answers, answers)
        networks.append(adversary.train(transfer.transfer).state_dict())
    assert all(torch.equal(networks[0][key], value) for key, value in networks[1].items())


@pytest.mark.parametrize("defense", DEFENSES, ids=lambda defense: defense.name)
def test_defended_replay_is_what_defended_queries_would_be_answered(asked, written, defense):
    store, images, _ = asked
    deployed = deploy(cell().victim, defense, store=store)
    expected = deployed.session()(images / 255)
    attack, api = Replay(log=written()), deployed.session(50)
    found = attack.spend(api, None, cell(attack=attack).adversary(CPU)).transfer.answers
    assert torch.equal(found, expected)
    plain = deployed.session()
    plain(images / 255)
    assert (api.queries, api.l1_mean, api.target_entropy) == (plain.queries, plain.l1_mean, plain.target_entropy)


def test_the_victim_is_not_asked(asked, written):
    class Deaf(torch.nn.Module):
        def forward(self, images):
            raise AssertionError("the victim was asked")

    api = BlackBox(Deaf().eval(), Undefended(), (1, 8, 8), 50, CPU)
    attack = Replay(log=written())
    assert torch.equal(attack.spend(api, None, cell(attack=attack).adversary(CPU)).transfer.answers, asked[2])


@pytest.mark.parametrize("pattern", ["p{}", "posterior_{}", "{}", "class.{}"])
def test_posteriors_may_be_columns(asked, written, pattern):
    path = written("paths", "log.csv", answer=None, **columns(asked[2], pattern), label=3, other_7=1)
    assert torch.equal(Replay(log=path).opened.posteriors(4, "it"), asked[2])


def test_columns_of_any_name_can_be_said(asked, written):
    path = written(image=None, answer=None, picture=list(map(png, asked[1])), **columns(asked[2]), top=[1] * 50, q=0)
    assert torch.equal(Replay(log=path, image="picture").opened.posteriors(4, "it"), asked[2])
    one_hot = Replay(log=path, image="picture", answer="top").opened.posteriors(4, "it")
    assert torch.equal(one_hot, torch.tensor([[0.0, 1, 0, 0]]).expand(50, 4))


def test_class_numbers_become_one_hot(asked, written, tmp_path):
    path = written("paths", "log.csv", answer=None, label=asked[2].argmax(dim=1).numpy())
    found = Replay(log=path).opened.posteriors(4, "it")
    assert torch.equal(found.argmax(dim=1), asked[2].argmax(dim=1))
    assert torch.equal(found.amax(dim=1), torch.ones(50))
    record, _ = run(cell(attack=Replay(log=path), pool=None), Store(tmp_path / "outputs"), CPU)
    assert record["l1_mean_queries"] > 0.4


def test_columns_are_taken_by_number_and_names_of_images_as_text(asked, written, tmp_path):
    (tmp_path / "007").write_bytes(png(asked[1][0]))
    (tmp_path / "log.csv").write_text("p3,p1,image,p2,p0\n0.4,0.2,007,0.3,0.1\n")
    attack = Replay(log=str(tmp_path / "log.csv"))
    assert attack.opened.posteriors(4, "it").tolist() == [[pytest.approx(each) for each in (0.1, 0.2, 0.3, 0.4)]]
    assert torch.equal(attack.pictures((1, 8, 8)), asked[1][:1])


def test_answers_of_another_victim_are_refused_before_anything_is_loaded(written):
    with pytest.raises(MadError, match="victim toy has 4 classes"):
        cell(attack=Replay(log=written(answer=[[0.5, 0.5]] * 50)), pool=None)


def test_rounded_answers_are_rescaled(written):
    path = written(answer=[[0.333, 0.333, 0.333, 0.0]] * 50)
    assert torch.allclose(Replay(log=path).opened.posteriors(4, "it").sum(dim=1), torch.ones(50))


def test_images_get_the_victims_shape(written, tmp_path):
    (tmp_path / "images").mkdir()
    for name, size in (("a.png", (30, 20)), ("b.jpg", (9, 40))):
        Image.new("RGB", size, (250, 10, 10)).save(tmp_path / "images" / name)
    (tmp_path / "log.csv").write_text("image,label\nimages/a.png,0\nimages/b.jpg,1\n")
    assert Replay(log=str(tmp_path / "log.csv")).pictures((3, 8, 8)).shape == (2, 3, 8, 8)
    assert Replay(log=str(tmp_path / "log.csv")).pictures((1, 8, 8)).shape == (2, 1, 8, 8)


def test_large_logs_are_a_stream(asked, written, monkeypatch):
    monkeypatch.setattr("mad.datasets.base.IN_MEMORY", 100)
    attack = Replay(log=written(name="streamed.parquet"))
    found = attack.opened.images((1, 8, 8))
    assert not isinstance(found, torch.Tensor)
    assert torch.equal(torch.stack([found[row] for row in (49, 0, 49)]), asked[1][[49, 0, 49]])


def test_the_budget_is_the_first_rows(asked, written):
    path = written()
    assert Replay(log=path).affordable(None, "none") == 50
    assert Replay(20, log=path).affordable(None, "none") == 20
    api = deploy(cell().victim, store=asked[0]).session(20)
    transfer = Replay(20, log=path).spend(api, None, cell().adversary(CPU)).transfer
    assert torch.equal(transfer.answers, asked[2][:20])
    with pytest.raises(
        MadError, match=r"^attack.budget=51 is above the 50 rows of attack.log=.*log.parquet: lower it$"
    ):
        Replay(51, log=path).affordable(None, "none")


def test_the_api_counts_and_checks_what_is_replayed(asked):
    _, images, answers = asked
    api = deploy(cell().victim, Mad(0.5), store=asked[0]).session(30)
    api.replayed(images[:20] / 255, answers[:20])
    assert api.queries == 20
    with pytest.raises(BudgetExceededError, match="10 of 30 left"):
        api.replayed(images[:11] / 255, answers[:11])
    for given, clean in (
        (images[:2], answers[:2]),
        (images[:2] / 255, answers[:3]),
        (images[:2] / 255, answers[:2] * 2),
        (images[:2] / 255, answers[0]),
        (torch.rand(2, 3, 8, 8), answers[:2]),
    ):
        with pytest.raises(MadError):
            api.replayed(given, clean)
    assert api.queries == 20


def test_the_content_is_in_the_fingerprint_and_the_path_is_not(asked, written, tmp_path):
    here = written("paths")
    first = cell(attack=Replay(log=here), pool=None)
    (tmp_path / "other").mkdir()
    (tmp_path / "images").rename(tmp_path / "other" / "images")
    there = (tmp_path / "log.parquet").rename(tmp_path / "other" / "moved.parquet")
    assert cell(attack=Replay(log=str(there)), pool=None).fingerprint == first.fingerprint
    assert replace(first, attack=Replay(49, log=str(there))).fingerprint != first.fingerprint
    Image.new("L", (8, 8), 9).save(tmp_path / "other" / "images" / "7.png")
    assert cell(attack=Replay(log=str(there)), pool=None).fingerprint != first.fingerprint
    assert str(tmp_path) not in json.dumps(list(first.attack.__dict__["content"]))


def test_an_image_that_changes_after_the_start_is_refused(written, tmp_path):
    attack = Replay(log=written("paths"))
    Image.new("L", (8, 8), 9).save(tmp_path / "images" / "7.png")
    with pytest.raises(MadError, match=r"^attack\.log=.*changed after the start: start again$"):
        attack.load(cell().victim)


def test_a_line_says_what_is_in_it(written, capfd):
    say.cache_clear()
    answers = [[0.9, 0.1, 0, 0]] * 40 + [[0.1, 0.9, 0, 0]] * 10
    Replay(log=written(answer=answers, label=1)).load(cell().victim)
    assert capfd.readouterr().err.endswith(
        "log.parquet: 50 of 50 rows, 50 distinct images; 2 of 4 classes are a top class, "
        "from 0.0% of the rows (class 2) to 80.0% (class 0)\n"
    )


ROW = r", row {} \(from 0\): "
ERRORS = {
    "no such column": (dict(image=None, seen=1), " has no column of images .* attack.image to one of answer, seen$"),
    "no answers": (dict(answer=None, seen=1, p1=1), " has no answers: .* attack.answer to one of image, seen, p1$"),
    "several": (dict(probs=1), " has several answers: set attack.answer to one of image, answer, probs$"),
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


def test_it_needs_a_log_and_images_of_one_or_three_channels(written):
    with pytest.raises(MadError, match=r"^attack=replay needs a log [^\n]*: set attack\.log=FILE$"):
        Replay()
    with pytest.raises(MadError, match=r"^attack\.image must be a text, got True$"):
        Replay(log="x.csv", image=True)
    victim = cell().victim
    with pytest.raises(MadError, match="reads images of 1 or 3 channels, victim toy takes 2"):
        Replay(log=written()).check(replace(victim, dataset=replace(victim.dataset, shape=(2, 8, 8))))


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
