"""Data of a published name are what was published under it, or a line says what to do; and doing it helps."""

import errno
import gzip
import hashlib
import io
import os
import pickle
import shutil
import zipfile
from functools import partial
from urllib.error import URLError

import numpy as np
import pytest
import torch
from idx_files import idx
from torchvision import datasets

from mad.cli import data
from mad.cli.archives import ARCHIVES
from mad.datasets import published
from mad.datasets.published import PARTS
from mad.datasets.vision import Vision
from mad.errors import MadError
from mad.storage.fingerprint import describe

CLOSE = r"^[^\n]*$"


RIGHT = {part: idx(part, number) for number, part in enumerate(PARTS)}


@pytest.fixture
def offline(monkeypatch):
    """No download works; returns what was asked for."""
    asked = []

    def refuse(url, *_, **__):
        asked.append(url)
        raise URLError("no network")

    for module in ("mnist", "cifar"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", refuse)
    return asked


@pytest.fixture
def mnist(tmp_path, monkeypatch, offline):
    """A small MNIST whose files are as published, with no archive beside."""
    monkeypatch.setitem(published.MD5S, "MNIST", tuple(hashlib.md5(RIGHT[part]).hexdigest() for part in PARTS))
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, content in RIGHT.items():
        (raw / part).write_bytes(content)
    return Vision("mnist", "MNIST", str(tmp_path))


def test_the_real_checksums_are_those_of_the_readme_of_mnist():
    assert published.MD5S["MNIST"][0] == "6bbc9ace898e44ae57da46a324031adb"
    assert {len(sums) for sums in published.MD5S.values()} == {4}
    assert len({one for sums in published.MD5S.values() for one in sums}) == 12


def test_what_was_published_is_read(mnist):
    for split, part in ((mnist.train(), "train"), (mnist.test(), "t10k")):
        assert split.images.numpy().tobytes() == RIGHT[f"{part}-images-idx3-ubyte"][16:]
        assert split.labels.tolist() == list(RIGHT[f"{part}-labels-idx1-ubyte"][8:])
        assert split.labels.dtype == torch.int64
    assert torch.equal(mnist.images((1, 28, 28)), mnist.train().images)
    with pytest.raises(MadError, match=r"\(1, 28, 28\).*\(1, 32, 32\)"):
        Vision("mnist", "MNIST", mnist.root, shape=[1, 32, 32]).train()


def fewer(content):
    return content[:-9]


def other(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def longer(content):
    return content + b"\0"


def nothing(content):
    return b""


def test_what_cannot_be_written_can_be_checked(mnist, tmp_path, monkeypatch, capsys, mad_data):
    """Data that a cluster shares lie where users only read; a full disk is told, since something may be missing."""

    def unwritable(error, file):
        raise OSError(error, os.strerror(error), str(file))

    for error, code in ((errno.EROFS, 0), (errno.EACCES, 0), (errno.ENOSPC, 1)):
        monkeypatch.setattr("mad.cli.data.held", partial(unwritable, error))
        assert mad_data("mnist", "--root", tmp_path) == code
        assert ("mnist train: 30 images" in capsys.readouterr().out) == (code == 0)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", [fewer, other, longer, nothing])
def test_another_content_is_refused_and_the_advice_helps(
    mnist, tmp_path, monkeypatch, capsys, offline, part, damage, mad_data
):
    file = tmp_path / "MNIST" / "raw" / part
    file.write_bytes(damage(RIGHT[part]))
    bad, good = (mnist.train, mnist.test) if part.startswith("train") else (mnist.test, mnist.train)
    good()
    with pytest.raises(MadError, match=CLOSE) as caught:
        bad()
    right, found = (hashlib.md5(content).hexdigest() for content in (RIGHT[part], damage(RIGHT[part])))
    for told in (str(file), right, found, f"run mad-data mnist --root {tmp_path}"):
        assert told in str(caught.value)

    monkeypatch.setattr(datasets.MNIST, "resources", [(f"{name}.gz", f"MD5 of {name}") for name in PARTS])
    for _ in range(2):  # it never gives the same advice
        assert mad_data("mnist", "--root", tmp_path) == 1
        error = capsys.readouterr().err
        assert f"put {part}.gz (MD5 MD5 of {part}) at {file}.gz yourself" in error
        assert "run mad-data" not in error
    assert file.with_name(f"{part}.wrong").read_bytes() == damage(RIGHT[part])
    with pytest.raises(MadError, match="yourself"):
        bad()
    file.with_name(f"{part}.gz").write_bytes(gzip.compress(RIGHT[part]))
    asked = len(offline)
    assert mad_data("mnist", "--root", tmp_path) == 0
    assert "mnist train: 30 images" in capsys.readouterr().out
    assert len(offline) == asked
    assert file.read_bytes() == RIGHT[part]


def test_a_damaged_archive_beside_is_not_unpacked(mnist, tmp_path):
    file = tmp_path / "MNIST" / "raw" / PARTS[0]
    for content in (gzip.compress(RIGHT[PARTS[2]]), gzip.compress(RIGHT[PARTS[0]])[:-20], b"no archive"):
        file.unlink(missing_ok=True)
        file.with_name(f"{PARTS[0]}.gz").write_bytes(content)
        with pytest.raises(MadError, match="could not be downloaded"):
            mnist.train()
    file.with_name(f"{PARTS[0]}.gz").write_bytes(gzip.compress(RIGHT[PARTS[0]]))
    assert len(mnist.train().images) == 30


def test_mad_run_says_it_before_anything_is_trained(mnist, tmp_path, mad_run, fits):
    for part in PARTS:
        (tmp_path / "MNIST" / "raw" / part).write_bytes(idx(part, 99))
    code, _, error = mad_run("victim=mnist", f"data_root={tmp_path}", "pool=mnist", "attack.budget=20")
    assert (code, fits, error.count("\n")) == (1, [], 1)
    assert "its MD5 should be" in error


def test_what_an_old_torchvision_left_is_not_taken(mnist, tmp_path):
    old = tmp_path / "MNIST" / "processed"
    old.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(9, 28, 28, dtype=torch.uint8), torch.zeros(9).long()), old / name)
    assert len(mnist.train().images) == 30
    shutil.rmtree(tmp_path / "MNIST" / "raw")
    with pytest.raises(MadError, match=rf"remove {old} and run mad-data mnist"):
        mnist.train()


def test_without_data_or_network_is_one_line(tmp_path, offline):
    with pytest.raises(MadError, match=r"^MNIST is not whole under [^\n]*data_root[^\n]*$") as caught:
        Vision("mnist", "MNIST", str(tmp_path / "data")).train()
    assert f"at {tmp_path}/data/MNIST/raw/train-images-idx3-ubyte.gz yourself" in str(caught.value)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist", "cifar10"])
def test_the_fingerprint_of_what_is_published_is_its_name_alone(tmp_path, name):
    dataset = data.described(name, tmp_path)
    assert set(describe(dataset)) == {"class", "version", "name", "loader", "shape", "classes", "options"}


def test_mnist_downloads_only_what_is_missing(mnist, tmp_path, monkeypatch):
    taken = []

    def deliver(url, download_root, filename, md5):
        taken.append(filename)
        (tmp_path / "MNIST" / "raw" / filename[:-3]).write_bytes(RIGHT[filename[:-3]])

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", deliver)
    mnist.train()
    assert not taken
    (tmp_path / "MNIST" / "raw" / PARTS[2]).unlink()
    mnist.train()
    assert not taken
    assert len(mnist.test().images) == 20
    assert f"{PARTS[2]}.gz" in taken


# EMNIST: its archive's checksum is published, those of the files in it are not


@pytest.fixture
def emnist(tmp_path, monkeypatch):
    """A small EMNIST of letters, whose labels start from 1, and the bytes of its archive."""
    inner = {f"emnist-letters-{part.replace('t10k', 'test')}": idx(part, number) for number, part in enumerate(PARTS)}
    for name in [name for name in inner if "labels" in name]:
        content = inner[name]
        inner[name] = content[:8] + bytes(number % 26 + 1 for number in range(len(content) - 8))
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in inner.items():
            archive.writestr(f"gzip/{name}.gz", gzip.compress(content))
    monkeypatch.setattr(published, "EMNIST_ZIP", ("gzip.zip", len(sink.getvalue())))
    monkeypatch.setattr(datasets.EMNIST, "md5", hashlib.md5(sink.getvalue()).hexdigest())
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in inner.items():
        (raw / name).write_bytes(content)
    made = Vision("emnist_letters", "EMNIST", str(tmp_path), classes=26, options={"split": "letters"})
    return made, raw, sink.getvalue()


def test_emnist_is_turned_upright_and_counted_from_0(emnist):
    made, raw, _ = emnist
    stored = np.frombuffer((raw / "emnist-letters-train-images-idx3-ubyte").read_bytes()[16:], dtype=np.uint8)
    assert torch.equal(made.images((1, 28, 28))[:, 0], torch.tensor(stored).view(-1, 28, 28).transpose(1, 2))
    assert made.train().labels.unique().tolist() == list(range(26))


def test_emnists_content_counts_where_nothing_tells_that_it_is_right(emnist):
    made, raw, archive = emnist
    loose = describe(made)
    assert len(loose["contents"]) == 4
    file = raw / "emnist-letters-test-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    assert describe(made) != loose
    (raw / "gzip.zip").write_bytes(archive)
    assert "contents" not in describe(made)  # the same as before it was downloaded
    with pytest.raises(MadError, match=r"^[^\n]*test-labels[^\n]*MD5 should be [^\n]*run mad-data emnist_letters"):
        made.test()
    shutil.rmtree(raw)
    assert "contents" not in describe(made)


def test_emnist_is_mended_from_its_archive(emnist, tmp_path, monkeypatch, capsys, mad_data):
    _, raw, archive = emnist
    file = raw / "emnist-letters-train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda *_, **__: [][0])  # no network
    assert mad_data("emnist_letters", "--root", tmp_path) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "it is no whole IDX file" in error
    assert f"put gzip.zip (MD5 {hashlib.md5(archive).hexdigest()}) at {raw}/gzip.zip yourself" in error
    (raw / "gzip.zip").write_bytes(archive)
    assert mad_data("emnist_letters", "--root", tmp_path) == 0
    assert "emnist_letters train: 30 images" in capsys.readouterr().out


# CIFAR: torchvision checks every file


@pytest.fixture
def cifar(tmp_path, monkeypatch, offline):
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    lists = {"train_list": ["one"], "test_list": ["two"]}
    for attribute, names in lists.items():
        sums = []
        for name in names:
            content = pickle.dumps({"data": np.zeros((4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 3]})
            (place / name).write_bytes(content)
            sums.append([name, hashlib.md5(content).hexdigest()])
        monkeypatch.setattr(datasets.CIFAR10, attribute, sums)
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)
    return Vision("cifar10", "CIFAR10", str(tmp_path), shape=(3, 32, 32))


def test_another_cifar_is_refused_and_set_aside(cifar, tmp_path, monkeypatch, capsys, offline, mad_data):
    assert len(cifar.train().images) == 4
    file = tmp_path / "cifar-10-batches-py" / "two"
    file.write_bytes(b"another")
    with pytest.raises(MadError, match=rf"^{file} is not CIFAR10's: its MD5 should be [^\n]*run mad-data cifar10"):
        cifar.train()
    assert not offline
    monkeypatch.setattr(ARCHIVES["cifar10"].__class__, "fetch", lambda *_: [][0])
    assert mad_data("cifar10", "--root", tmp_path) == 1
    assert "renamed to two.wrong" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(MadError, match=rf"put {datasets.CIFAR10.filename} \(MD5 [0-9a-f]*\) at {tmp_path}/"):
        cifar.train()


# IDX files: nothing is published of them
