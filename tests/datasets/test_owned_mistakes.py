"""What is wrong with one's own images ends in one line that names it."""

import shutil

import pandas as pd
import pytest
from test_owned import COUNTS, content, folder, rows, save, written

from mad.datasets.owned import OwnImages
from mad.errors import MadError


def table(top, text):
    (top / "table.csv").write_text(text)
    return "table.csv"


def truncated(top):
    file = top / "cat" / "1.png"
    file.write_bytes(file.read_bytes()[:200])
    return "."


def no_image(top):
    (top / "cat" / "1.png").write_bytes(b"no image")
    return "."


def in_table(top):
    table = rows(top)
    data = [(top / file).read_bytes() for file in table.file]
    data[2] = data[2][:200] if len(data[2]) > 300 else b"no image"
    pd.DataFrame({"image": data, "label": table.label}).to_parquet(top / "t.parquet")
    return "t.parquet"


def alone(top, kept=("cat",)):
    for name in set(COUNTS) - set(kept):
        shutil.rmtree(top / name)
    return "."


def empty(top):
    (top / "ape").mkdir()
    return "."


def only_in_test(top):
    folder(top / "parts" / "train", {"a": 2, "b": 2})
    folder(top / "parts" / "test", {"a": 2, "c": 2})
    return "parts"


def no_classes(top):
    save(top / "parts" / "train" / "1.png", 1)
    save(top / "parts" / "test" / "1.png", 1)
    return "parts"


def half_bare(top):
    folder(top / "parts" / "train", {"a": 2, "b": 2})
    save(top / "parts" / "test" / "1.png", 1)
    return "parts"


def flat(top):
    save(top / "flat" / "1.png", 1)
    return "flat"


def hollow(top):
    (top / "hollow").mkdir()
    return "hollow"


def garbage(top, name="t.parquet", data=b"PAR1 and so on"):
    (top / name).write_bytes(data)
    return name


WRONG = {
    "truncated": (truncated, r"cat/1\.png cannot be read as an image"),
    "no image": (no_image, r"cat/1\.png cannot be read as an image"),
    "in a table": (in_table, r"t\.parquet, row 2 \(from 0\) cannot be read as an image"),
    "missing file": (
        lambda top: table(top, "file,label\ncat/1.png,cat\nx.png,dog\n"),
        r"csv, row 1 .*'x\.png' is not there",
    ),
    "no file": (lambda top: table(top, "file,label\ncat/1.png,cat\n,dog\n"), r"csv, row 1 .*got nothing"),
    "no label": (lambda top: table(top, "file,label\ncat/1.png,cat\ndog/1.png,\n"), r"csv, row 1 .*no class"),
    "columns": (
        lambda top: table(top, "a,b\n1,2\n"),
        r"no column of images.*set victim.dataset.image_column to one of a, b",
    ),
    "no classes": (lambda top: table(top, "file,b\ncat/1.png,2\n"), r"no column of classes.*label_column.*file, b"),
    "split": (lambda top: table(top, "file,label,split\ncat/1.png,2,tset\n"), r"row 0 .*split must be .*'tset'"),
    "no rows": (lambda top: table(top, "file,label\n"), r"lists no image"),
    "ragged": (lambda top: table(top, "file,label\na,b,c,d\ne\nf,g,h,i,j\n"), r"table\.csv"),
    "no text": (lambda top: garbage(top, "t.csv", b"\xff\xfe\0\1" * 50), r"t\.csv cannot be read"),
    "nothing": (lambda top: garbage(top, "t.csv", b""), r"t\.csv cannot be read"),
    "parquet": (garbage, r"t\.parquet cannot be read"),
    "saved": (lambda top: garbage(top, "state.json") and ".", r"cannot be read as a table"),
    "one class": (alone, r"one class only, 'cat'"),
    "empty class": (empty, r"no image for training of class 'ape'"),
    "test only": (only_in_test, r"no image for training of class 'c'"),
    "bare parts": (no_classes, r"parts/train holds images, but no folders of classes"),
    "flat": (flat, r"holds images, but no folders of classes"),
    "hollow": (hollow, r"no image below .*hollow; looked for \.avif"),
    "half bare": (half_bare, r"no image in a class folder below .*test; give each class"),
    "semicolons": (
        lambda top: table(top, "file;label\ncat/1.png;cat\n"),
        r"csv has one column, 'file;label': separate its columns by ','$",
    ),
    "commas": (
        lambda top: garbage(top, "t.tsv", b"file,label\ncat/1.png,cat\n"),
        r"tsv has one column, 'file,label': separate its columns by '\\t'$",
    ),
    "absent": (lambda top: "absent", r"data must be a folder of images .*, got .*absent'; set data=FOLDER"),
    "another file": (lambda top: garbage(top, "a.zip"), r"data must be a folder of images .*, got .*a\.zip'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line(tmp_path, case):
    make, words = WRONG[case]
    path = make(folder(tmp_path / "top"))
    with pytest.raises(MadError, match=words) as error:
        content(OwnImages(str(tmp_path / "top" / path)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"path": None}, r"^data must be a folder of images .*: set data=FOLDER$"),
        ({"path": None, "key": "pool.path"}, r"^pool\.path must be a folder of images .*: set pool\.path=FOLDER$"),
        ({"size": 0}, "size"),
        ({"size": [1, 2, 3]}, "size must be one number of pixels or two"),
        ({"size": "big"}, "size must be"),
        ({"size": 2.5}, "size must be"),
        ({"class_names": 5}, "class_names must be names"),
        ({"channels": 2}, "channels"),
        ({"test_share": 1}, "test_share"),
        ({"split_seed": -1}, "split_seed"),
        ({"name": "a/b"}, "name"),
        ({"class_names": ["cat", "dog", "emu"]}, "class 'yak', which victim.dataset.class_names lacks"),
        ({"class_names": ["cat", "dog", "emu", "yak", "ape"]}, "no image for training of class 'ape'"),
        ({"class_names": ["cat", "cat"]}, "'cat' twice"),
        ({"class_names": "absent.txt"}, r"class_names=absent\.txt cannot be read"),
        ({"image_column": "x"}, "has no column 'x'; set victim.dataset.image_column to one of file, label"),
        ({"label_column": "x"}, "has no column 'x'; set victim.dataset.label_column to one of file, label"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, how, words):
    top = folder(tmp_path / "top")
    path = written("csv", top) if set(how) & {"image_column", "label_column"} else top
    with pytest.raises(MadError, match=words) as error:
        content(OwnImages(**{"path": str(path), **how}))
    assert "\n" not in str(error.value)


def test_one_image_a_class_leaves_none_for_testing(tmp_path):
    top = folder(tmp_path / "top", {"cat": 1, "dog": 1})
    with pytest.raises(MadError, match=r"has one image a class, which leaves none for testing: add some$"):
        OwnImages(str(top)).test()
    with pytest.raises(MadError, match=r"leaves no image for testing; set victim\.dataset\.test_share=0\.2$"):
        OwnImages(str(top), test_share=0).test()


def test_a_number_without_a_name_is_told_which_have_one(tmp_path):
    path = tmp_path / table(folder(tmp_path), "file,label\ncat/1.png,0\ncat/2.png,1\ncat/3.png,2\n")
    said = r"names has names for classes 0 to 1, .*table\.csv has a class 2: name all$"
    with pytest.raises(MadError, match=said):
        content(OwnImages(str(path), class_names=["a", "b"]))


def test_a_pool_needs_no_classes_in_its_parts(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        for number in range(count):
            save(tmp_path / part / f"{number}.png", number)
    pool = OwnImages(str(tmp_path), key="pool.path", test_share=0.0)
    assert pool.images((3, 8, 8)).shape == (3, 3, 8, 8)  # not those for testing
    with pytest.raises(MadError, match="no folders of classes"):
        pool.labels()


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    path = written("saved", folder(tmp_path / "top"))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MadError, match=r"^[^\n]*needs datasets to be read: pip install 'mad\[datasets\]'$"):
        content(OwnImages(str(path)))


def test_a_pools_column_is_chosen_with_the_pools_key(tmp_path):
    file = tmp_path / table(tmp_path, "file,label\ncat/1.png,cat\n")
    with pytest.raises(MadError, match=r"has no column 'x'; set pool\.image_column to one of file, label"):
        OwnImages(str(file), image_column="x", key="pool.path").images((3, 8, 8))
