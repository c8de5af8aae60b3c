"""Images of one's own: the same from every form, and one line for whatever is wrong."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from toys import CPU

from mad.datasets import base, batches, checked
from mad.datasets.owned import OwnImages
from mad.errors import MadError
from mad.storage.fingerprint import describe

COUNTS = {"dog": 6, "cat": 5, "emu": 2, "yak": 1}
FORMS = ["folder", "csv", "tsv", "parquet", "bytes", "struct", "hub", "saved"]


@pytest.fixture(autouse=True)
def _said_anew():
    checked.say.cache_clear()


def save(file, seed, size=(12, 10), mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).convert(mode).save(file)


def folder(top, counts=COUNTS, seed=0, **how):
    """Write a folder with one folder a class, and return it."""
    for name, count in counts.items():
        for number in range(count):
            seed += 1
            save(top / name / f"{number}.{'png' if number else 'jpg'}", seed, **how)
    return top


def rows(top):
    files = sorted(top.glob("**/*.[jp][pn]g"))
    return pd.DataFrame(
        {"file": [str(file.relative_to(top)) for file in files], "label": [f.parent.name for f in files]}
    )


def written(form, top):
    """Return the path of another form of what lies in a folder."""
    table, to = rows(top), top.parent / form
    data = [(top / file).read_bytes() for file in table.file]
    if form == "folder":
        return top
    if form in ("csv", "tsv"):
        table.to_csv(top / f"labels.{form}", index=False, sep="," if form == "csv" else "\t")
        return top / f"labels.{form}"
    if form == "parquet":
        table.rename(columns={"file": "image_path", "label": "Class"}).to_parquet(top / "labels.parquet")
        return top / "labels.parquet"
    if form == "bytes":
        pd.DataFrame({"picture": data, "category": table.label.astype("category")}).to_parquet(f"{to}.parquet")
        return f"{to}.parquet"
    if form == "struct":
        cells = [{"bytes": each, "path": name} for each, name in zip(data, table.file, strict=True)]
        pd.DataFrame({"image": cells, "label": table.label}).to_parquet(f"{to}.parquet")
        return f"{to}.parquet"
    made = hugging_face(data, table.label)
    if form == "hub":
        made.to_parquet(f"{to}.parquet")
        return f"{to}.parquet"
    made.save_to_disk(to)
    return to


def hugging_face(data, labels, names=None):
    import datasets

    names = names or sorted(set(labels))
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=names)})
    cells = [{"bytes": each, "path": None} for each in data]
    return datasets.Dataset.from_dict({"photo": cells, "kind": [names.index(name) for name in labels]}, features)


def content(data):
    return [torch.cat([data.train().images, data.test().images]), torch.cat([data.train().labels, data.test().labels])]


@pytest.mark.parametrize("form", FORMS[1:])
def test_every_form_gives_the_same(tmp_path, form):
    top = folder(tmp_path / "top")
    there, here = OwnImages(str(top)), OwnImages(str(written(form, top)))
    assert (here.names, here.shape) == (["cat", "dog", "emu", "yak"], (3, 12, 10))
    assert (here.names, here.shape, here.classes) == (there.names, there.shape, 4)
    for part in ("train", "test"):
        mine, theirs = checked.split(here, part), checked.split(there, part)
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(mine.labels, theirs.labels)
    assert describe(here) == describe(there)
    pool = OwnImages(here.path, test_share=0, key="pool.path")
    assert checked.pool(pool, (3, 12, 10), "v").shape[0] == len(checked.pool_labels(pool)) == 14


@pytest.mark.parametrize("form", FORMS)
def test_what_does_not_fit_in_memory_is_streamed(tmp_path, monkeypatch, form):
    path = str(written(form, folder(tmp_path / "top")))
    whole = OwnImages(path).train().images
    monkeypatch.setattr(base, "IN_MEMORY", 10)
    monkeypatch.setattr(base, "WORKERS", 1)
    for file in (Path(path), *Path(path).rglob("*")):
        file.touch()  # what was kept of it is not taken
    stream = checked.split(OwnImages(path), "train").images
    assert not isinstance(stream, torch.Tensor)
    assert torch.equal(torch.cat(list(batches(stream, None, 4, CPU))), whole)
    rows = torch.tensor([3, 0])
    assert torch.equal(torch.cat(list(batches(stream, rows, 4, CPU))), whole[rows])


def test_every_class_of_two_is_in_both_parts(tmp_path, capsys):
    data = OwnImages(str(folder(tmp_path / "top")))
    counts = [torch.bincount(part.labels, minlength=4).tolist() for part in (data.train(), data.test())]
    assert counts == [[4, 5, 1, 1], [1, 1, 1, 0]]
    said = capsys.readouterr().err
    assert (
        "4 classes, 11 training and 3 test images of 3 x 12 x 10; 1 (class emu) to 5 (class dog) training images"
        in said
    )
    assert "no test image of class 'yak'" in said
    assert torch.bincount(OwnImages(data.path, test_share=0.5).test().labels).tolist() == [2, 3, 1]
    with pytest.raises(MadError, match=r"no image for testing; set victim\.dataset.test_share"):
        OwnImages(data.path, test_share=0).test()


def test_the_division_depends_on_the_seed_and_the_bytes_only(tmp_path):
    top = folder(tmp_path / "top", {"a": 20, "b": 20})
    first = OwnImages(str(top)).test().images
    assert torch.equal(OwnImages(str(top)).test().images, first)
    assert not torch.equal(OwnImages(str(top), split_seed=1).test().images, first)
    shutil.move(top, tmp_path / "elsewhere")
    for file in (tmp_path / "elsewhere" / "a").iterdir():
        file.rename(file.with_stem(f"{100 - int(file.stem)}"))
    again = OwnImages(str(tmp_path / "elsewhere")).test().images
    assert {each.numpy().tobytes() for each in again} == {each.numpy().tobytes() for each in first}


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    top = folder(tmp_path / "top")
    before = describe(OwnImages(str(top)))
    shutil.copytree(top, tmp_path / "copy")
    assert describe(OwnImages(str(tmp_path / "copy"))) == before
    file = tmp_path / "copy" / "cat" / "1.png"
    file.write_bytes(file.read_bytes() + b"\0")
    assert describe(OwnImages(str(tmp_path / "copy"))) != before
    shutil.copytree(top, tmp_path / "moved")
    (tmp_path / "moved" / "cat" / "1.png").rename(tmp_path / "moved" / "dog" / "9.png")
    assert describe(OwnImages(str(tmp_path / "moved"))) != before
    names = ["dog", "cat", "emu", "yak"]
    assert describe(OwnImages(str(top), class_names=names)) != before
    assert describe(OwnImages(str(top), class_names=sorted(names))) == before
    assert describe(OwnImages(str(top), size=5)) != before


def test_the_fingerprint_of_a_table_is_that_of_its_labels(tmp_path):
    top = folder(tmp_path / "top")
    path = written("csv", top)
    before = describe(OwnImages(str(path)))
    path.write_text(path.read_text().replace("cat/1.png,cat", "cat/1.png,dog"))
    assert describe(OwnImages(str(path))) != before


def test_images_that_change_once_the_data_have_a_name_are_refused(tmp_path):
    data = OwnImages(str(folder(tmp_path / "top")))
    data.contents()
    save(tmp_path / "top" / "cat" / "1.png", 99)
    with pytest.raises(MadError, match=r"^images of data=[^\n]* changed after the start: start again$"):
        data.train()
    (tmp_path / "top" / "cat" / "1.png").unlink()
    with pytest.raises(MadError, match=r"^[^\n]*1\.png cannot be read \(No such file[^\n]*$"):
        data.train()


@pytest.mark.parametrize("form", ["folder", "csv", "saved"])
@pytest.mark.parametrize("test", ["test", "valid"])
def test_parts_that_are_given_are_kept(tmp_path, capsys, form, test):
    top = tmp_path / "top"
    for seed, part in enumerate(("train", test, "val")):
        folder(top / part, {"a": 3, "b": 2 + seed}, seed=100 * seed)
    if form == "csv":
        table = rows(top)
        table["split"] = [file.partition("/")[0].title() for file in table.file]
        table.sample(frac=1, random_state=0).to_csv(top / "t.csv", index=False)
    if form == "saved":
        import datasets

        whole = {}
        for part in ("train", test, "val"):
            table = rows(top / part)
            whole[part] = hugging_face([(top / part / file).read_bytes() for file in table.file], table.label)
        whole["unlabelled"] = whole["train"].map(lambda row: {"kind": -1})  # left out, and not looked at
        datasets.DatasetDict(whole).save_to_disk(tmp_path / "saved")
    data = OwnImages(str({"folder": top, "csv": top / "t.csv", "saved": tmp_path / "saved"}[form]), test_share=0.5)
    assert torch.bincount(data.train().labels).tolist() == [3, 2]
    expected = [3, 3] if test == "test" or form != "csv" else [6, 7]  # a column's valid and val are the same part
    if test == "valid" and form != "csv":
        expected = [3, 4]  # val comes first
    assert torch.bincount(data.test().labels).tolist() == expected
    said = capsys.readouterr().err
    assert ("is taken for testing" in said) == (test == "valid")
    assert ("left out va" in said) == (test == "test" or form != "csv")
    assert len(data.images((3, 4, 4))) == 5


def test_a_training_part_alone_is_divided_and_a_class_may_be_called_train(tmp_path):
    folder(tmp_path / "top" / "train", {"a": 5, "b": 5})
    assert OwnImages(str(tmp_path / "top")).names == ["a", "b"]
    assert len(OwnImages(str(tmp_path / "top")).test().labels) == 2
    assert OwnImages(str(folder(tmp_path / "vehicles", {"bus": 2, "train": 2}))).names == ["bus", "train"]


@pytest.mark.parametrize("form", ["folder", "bytes"])
def test_copies_in_both_parts_are_told(tmp_path, capsys, form):
    """The accuracy on a test image that was learned tells nothing."""
    top = folder(tmp_path / "data")
    for file in [*top.glob("dog/*"), *top.glob("cat/*")]:
        for copy in range(2):
            shutil.copy(file, file.with_name(f"copy {copy} of {file.name}"))
    data = OwnImages(written(form, top))
    data.test()
    data.train()
    train, test = ([data._listing.checksums()[row] for row in data._rows(part)] for part in (False, True))
    both = sum(each in train for each in test)
    assert both
    told = [line for line in capsys.readouterr().err.splitlines() if "training images, too" in line]
    assert [line.split(", such as")[0] for line in told] == [f"warning: dataset own: {both} of {len(test)} test images"]
    OwnImages(folder(tmp_path / "other", seed=100)).test()
    assert "too" not in capsys.readouterr().err


def test_size_and_channels(tmp_path):
    top = folder(tmp_path / "top", {"a": 2, "b": 2}, mode="L")
    assert OwnImages(str(top)).shape == (1, 12, 10)
    assert OwnImages(str(top), size=8, channels=3).train().images.shape[1:] == (3, 8, 8)
    assert OwnImages(str(top), size=[4, 6]).train().images.shape[1:] == (1, 4, 6)
    save(top / "a" / "9.png", 9)
    assert OwnImages(str(top)).shape == (3, 12, 10)
    turned = Image.new("RGB", (12, 10), "red")
    turned.getexif()[0x0112] = 6
    turned.save(top / "a" / "8.jpg", exif=turned.getexif())
    assert OwnImages(str(top)).shape == (3, 12, 10)
    save(top / "a" / "7.png", 9, size=(40, 50))
    with pytest.raises(
        MadError, match=r"^[^\n]*images of 2 sizes[^\n]*from 12x10 to 40x50: set victim.dataset.size=64"
    ):
        _ = OwnImages(str(top)).shape


def test_a_pool_needs_no_classes(tmp_path):
    save(tmp_path / "top" / "0.png", 0)
    save(tmp_path / "top" / "1.png", 1)
    (tmp_path / "top" / "list.csv").write_text("path\n0.png\n1.png\n")
    for path in (tmp_path / "top", tmp_path / "top" / "list.csv"):
        pool = OwnImages(str(path), key="pool.path", test_share=0.2)
        assert checked.pool(pool, (1, 6, 6), "v").shape == (2, 1, 6, 6)
        with pytest.raises(MadError, match=r"^[^\n]*(no folders of classes|no column of classes)[^\n]*$"):
            checked.pool_labels(pool)
        assert describe(pool)["contents"]


@pytest.mark.parametrize("form", ["folder", "csv"])
def test_a_test_part_alone_is_all_there_is(tmp_path, capsys, form):
    top = folder(tmp_path / "top" / "test").parent
    rows(top).assign(split="test").to_csv(top / "t.csv", index=False)
    data = OwnImages(str(top if form == "folder" else top / "t.csv"), test_share=1)
    assert len(data.test().labels) == sum(COUNTS.values())
    assert "test is taken for all of it, as there is no part called train" in capsys.readouterr().err
    with pytest.raises(MadError, match="leaves no image for training"):
        data.train()


def test_spaces_behind_the_commas_of_a_head_are_none_of_its_names(tmp_path):
    top = folder(tmp_path / "data")
    lines = ["file, label, split", *(f"{row.file}, {row.label}, train" for row in rows(top).itertuples())]
    (top / "spaced.csv").write_text("\n".join(lines))
    data = OwnImages(str(top / "spaced.csv"))
    assert (data.names, len(data.train().labels) + len(data.test().labels)) == (sorted(COUNTS), sum(COUNTS.values()))
