"""The classes of one's own images: their names, and their order."""

import pytest
from test_owned import folder, hugging_face, rows, written

from mad.datasets.owned import OwnImages
from mad.errors import MadError


def test_class_names_set_the_order(tmp_path):
    top = folder(tmp_path / "top")
    names = ["yak", "dog", "cat", "emu"]
    (tmp_path / "names.txt").write_text("yak\ndog\n\ncat\nemu\n")
    usual = OwnImages(str(top))
    for given in (names, str(tmp_path / "names.txt")):
        data = OwnImages(str(top), class_names=given)
        assert data.names == names
        for mine, theirs in zip(data.train().labels, usual.train().labels, strict=True):
            assert names[mine] == usual.names[theirs]


def test_whole_numbers_are_ordered_as_such_and_count_along_the_names(tmp_path):
    top = folder(tmp_path / "top", {str(number): 2 for number in (10, 2, 0, 1)})
    assert OwnImages(str(top)).names == ["0", "1", "10", "2"]  # as torchvision
    assert OwnImages(str(written("csv", top))).names == ["0", "1", "2", "10"]
    table = rows(top)
    table["label"] = table.label.astype(int).replace(10, 3)
    table.to_parquet(top / "numbers.parquet")
    data = OwnImages(str(top / "numbers.parquet"), class_names=["a", "b", "c", "d"])
    assert data.names == ["a", "b", "c", "d"]
    assert data.labels().tolist() == OwnImages(str(top / "numbers.parquet")).labels().tolist()
    with pytest.raises(MadError, match=r"class_names has names for classes 0 to 2, [^\n]* has a class 3: name all$"):
        _ = OwnImages(data.path, class_names=["a", "b", "c"]).names


def test_classes_in_a_csv_are_the_text_that_is_there(tmp_path):
    top = folder(tmp_path / "top", {"NA": 2, "007": 2, "None": 2})
    assert OwnImages(str(written("csv", top))).names == ["007", "NA", "None"]


def test_classes_in_decimals_are_numbers_in_every_form(tmp_path):
    top = folder(tmp_path / "top", {str(number): 1 for number in (10, 2, 0, -1)})
    table = rows(top)
    for form, labels in {"whole": table.label, "float": table.label.astype(float), "long": table.label + ".00"}.items():
        made = table.assign(label=labels)
        made.to_csv(top / f"{form}.csv", index=False)
        made.to_parquet(top / f"{form}.parquet")
        for kind in ("csv", "parquet"):
            assert OwnImages(str(top / f"{form}.{kind}")).names == ["-1", "0", "2", "10"]
    contents = {OwnImages(str(top / f"{form}.csv")).contents() for form in ("whole", "float", "long")}
    assert len(contents) == 1  # the same images and classes
    table.assign(label=table.label.replace("10", "1.50").replace("2", "2.0")).to_csv(top / "text.csv", index=False)
    assert OwnImages(str(top / "text.csv")).names == ["-1", "0", "1.50", "2.0"]  # text where one is no whole number


def test_names_of_a_classlabel_keep_their_order(tmp_path):
    top = folder(tmp_path / "top", {"a": 3, "b": 3})
    table = rows(top)
    data = hugging_face([(top / file).read_bytes() for file in table.file], table.label, ["b", "a"])
    data.save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "hub.parquet")
    assert OwnImages(str(tmp_path / "saved")).names == OwnImages(str(tmp_path / "hub.parquet")).names == ["b", "a"]
