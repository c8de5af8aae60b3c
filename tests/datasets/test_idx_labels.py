"""The labels of idx files, and files below a home folder."""

import pytest
from idx_files import idx

from mad.datasets.idx import IdxImages
from mad.errors import MadError
from mad.storage.fingerprint import describe


def test_labels_count_for_an_attack_that_goes_by_them(tmp_path):
    file = tmp_path / "images-idx3-ubyte"
    file.write_bytes(idx("train-images", 1))
    pool = IdxImages(str(file))
    assert pool.label_contents() == []
    found = []
    for seed in (1, 2):
        (tmp_path / "labels-idx1-ubyte").write_bytes(idx("train-labels", seed))
        found.append(pool.label_contents())
    assert found[0] != found[1]
    assert describe(pool) == describe(IdxImages(str(file)))


@pytest.mark.parametrize("length", [0, 3, 7, 8, 9])
def test_labels_that_are_no_whole_file_are_one_line(tmp_path, length):
    (tmp_path / "images-idx3-ubyte").write_bytes(idx("train-images", 1))
    (tmp_path / "labels-idx1-ubyte").write_bytes(idx("train-labels", 1)[:length])
    with pytest.raises(MadError, match=r"^[^\n]*labels-idx1-ubyte is no whole IDX file of labels[^\n]*$"):
        IdxImages(str(tmp_path / "images-idx3-ubyte")).labels()


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").write_bytes(idx("train-images", 1))
    assert len(IdxImages("~/images").images((1, 28, 28))) == 30
    with pytest.raises(MadError, match=r"^~nobody-of-that-name/x: there is no such home folder; [^\n]*$"):
        IdxImages("~nobody-of-that-name/x")
