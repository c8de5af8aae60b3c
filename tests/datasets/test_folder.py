"""Image folders: which files are read, and which are passed over."""

import os

import pytest
from PIL import Image

from mad.datasets import checked
from mad.datasets.content import checksum_of
from mad.datasets.folder import ImageFolder
from mad.datasets.photographs import classes_below
from mad.errors import MadError
from mad.storage.fingerprint import describe


def test_what_is_hidden_or_no_image_is_passed_over(tmp_path, capsys):
    checked.say.cache_clear()
    Image.new("L", (12, 12), 9).save(tmp_path / "a.png")
    for name in ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"\0")
    (tmp_path / ".thumbnails").mkdir()
    Image.new("L", (12, 12), 9).save(tmp_path / ".thumbnails" / "a.png")
    assert [file.name for file in ImageFolder(str(tmp_path)).files] == ["a.png"]
    assert capsys.readouterr().err == ""
    (tmp_path / "b.heic").touch()
    assert len(ImageFolder(str(tmp_path)).files) == 1
    assert "left out 1 files" in capsys.readouterr().err
    (tmp_path / "top" / ".git").mkdir(parents=True)
    (tmp_path / "top" / "one").mkdir()
    for name in ("._x.JPEG", "x.JPEG"):
        (tmp_path / "top" / "one" / name).touch()
    assert classes_below(tmp_path / "top") == [["one/x.JPEG"]]


def test_a_folder_may_be_named_like_an_image(tmp_path):
    (tmp_path / "pool" / "odd.png").mkdir(parents=True)
    Image.new("L", (12, 12), 9).save(tmp_path / "pool" / "odd.png" / "a.png")
    assert len(ImageFolder(str(tmp_path / "pool")).images((1, 12, 12))) == 1


def test_links_are_followed(tmp_path):
    for name in ("one", "two"):
        (tmp_path / "else" / name).mkdir(parents=True)
        Image.new("L", (12, 12), 9).save(tmp_path / "else" / name / "a.png")
    pool = tmp_path / "pool"
    pool.mkdir()
    for name in ("one", "two"):
        (pool / name).symlink_to(tmp_path / "else" / name)
    (pool / "b.png").symlink_to(tmp_path / "else" / "one" / "a.png")
    folder = ImageFolder(str(pool))
    assert folder.labels().tolist() == [0, 1, 2]
    assert len(folder.images((1, 12, 12))) == 3


@pytest.mark.parametrize("target", ["..", ".", "../..", "back"])
def test_links_that_go_round_are_one_line(tmp_path, target):
    pool = tmp_path / "pool" / "one"
    pool.mkdir(parents=True)
    Image.new("L", (12, 12), 9).save(pool / "a.png")
    if target == "back":  # by way of a folder elsewhere
        (tmp_path / "else").mkdir()
        (tmp_path / "else" / "b").symlink_to(tmp_path / "pool")
        target = tmp_path / "else"
    (pool / "round").symlink_to(target)
    with pytest.raises(MadError, match=r"^[^\n]* is a link to a folder that it lies in; remove the link$"):
        ImageFolder(str(tmp_path / "pool"))


@pytest.mark.parametrize("name", ["class", "x.png"])
def test_links_to_nothing_are_one_line(tmp_path, name):
    Image.new("L", (12, 12), 9).save(tmp_path / "a.png")
    (tmp_path / name).symlink_to(tmp_path / "absent")
    with pytest.raises(MadError, match=rf"^[^\n]*{name} is a link to [^\n]*absent, which is not there[^\n]*$"):
        ImageFolder(str(tmp_path))


def test_a_pipe_is_not_waited_for(tmp_path):
    Image.new("L", (12, 12), 9).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(MadError, match=r"b\.png is no regular file"):
        ImageFolder(str(tmp_path))


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pool").mkdir()
    Image.new("L", (12, 12), 9).save(tmp_path / "pool" / "a.png")
    assert len(ImageFolder("~/pool").images((1, 12, 12))) == 1
    for path in ("~nobody-of-that-name", "x" * 5000, "a\0b"):
        with pytest.raises(MadError, match=r"^[^\n]*$"):
            ImageFolder(path)


def test_a_folder_is_read_once_and_again_when_a_file_was_replaced(tmp_path, monkeypatch):
    file = tmp_path / "a.bmp"
    Image.new("L", (12, 12), 9).save(file)
    before = describe(ImageFolder(str(tmp_path)))
    opened = []
    real = open
    monkeypatch.setattr("builtins.open", lambda *given, **how: opened.append(given[0]) or real(*given, **how))
    assert describe(ImageFolder(str(tmp_path))) == before
    assert str(file) not in map(str, opened)
    Image.new("L", (12, 12), 10).save(tmp_path / "other.bmp")
    (tmp_path / "other.bmp").replace(file)
    assert describe(ImageFolder(str(tmp_path))) != before
    with pytest.raises(OSError, match="No such file"):
        checksum_of(tmp_path / "absent")


def test_images_that_change_once_the_cell_has_its_name_are_refused(tmp_path):
    Image.new("L", (12, 12), 9).save(tmp_path / "a.png")
    pool = ImageFolder(str(tmp_path))
    assert len(pool.images((1, 12, 12))) == 1
    Image.new("L", (12, 12), 99).save(tmp_path / "a.png")
    with pytest.raises(MadError, match="changed after the start"):
        pool.images((1, 12, 12))
