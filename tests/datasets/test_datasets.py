"""Images in, uint8 tensors out; what is missing is one line."""

import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from toys import CPU, Blobs, Streamed

from mad.datasets import batches, digits, to_unit_range
from mad.datasets.digits import Digits, Greek, Letters
from mad.datasets.folder import ImageFolder
from mad.datasets.idx import IdxImages
from mad.datasets.joined import joined
from mad.datasets.vision import Vision
from mad.errors import MadError
from mad.storage.fingerprint import describe


def rows(images):
    return {image.numpy().tobytes() for image in images}


def test_digits_are_split_once_and_for_all():
    train, test = Digits().train(), Digits().test()
    assert train.images.shape == (1297, 1, 28, 28)
    assert test.images.shape == (500, 1, 28, 28)
    assert train.images.dtype == torch.uint8
    assert train.labels.dtype == torch.int64
    assert not rows(train.images) & rows(test.images)
    assert test.labels.bincount(minlength=10).min() >= 30
    torch.manual_seed(1)
    again = Digits().test()
    assert torch.equal(again.images, test.images)
    assert torch.equal(again.labels, test.labels)
    assert test.labels[:8].tolist() == [5, 3, 1, 3, 2, 9, 6, 2]


@pytest.mark.parametrize("kind", [Letters, Greek])
def test_more_letters_than_there_is_memory_for_are_one_line(kind, monkeypatch):
    with pytest.raises(MadError, match=r"^pool\.size=100000000000 needs about 2,000,000 GB .*: take at most \d+$"):
        kind(size=10**11).images((1, 28, 28))
    monkeypatch.setattr(digits, "memory", lambda: 2e6)
    with pytest.raises(MadError, match=r"take at most 100$"):
        kind(size=101).images((1, 28, 28))
    assert len(kind(size=100).images((1, 28, 28))) == 100


def test_letters_follow_their_seed():
    one, again, other = (Letters(size=300, seed=seed).images((1, 28, 28)) for seed in (0, 0, 1))
    assert one.shape == (300, 1, 28, 28)
    assert one.dtype == torch.uint8
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len(rows(one)) > 290


def test_letters_hold_ink():
    ink = to_unit_range(Letters(size=300).images((1, 28, 28))).mean(dim=(1, 2, 3))
    assert 0.1 < ink.mean() < 0.4
    assert ink.min() > 0.02
    assert ink.max() < 0.7


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_letters_need_a_size(size):
    with pytest.raises(MadError, match=r"pool\.size"):
        Letters(size=size)


def test_unit():
    assert torch.equal(to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)), torch.tensor([0.0, 1.0]))
    floats = torch.tensor([0.25])
    assert to_unit_range(floats) is floats


@pytest.mark.parametrize("rows", [None, torch.tensor([4, 0, 6, 6, 3])])
@pytest.mark.parametrize("kind", [torch.as_tensor, Streamed])
def test_batches_keep_the_order(kind, rows):
    images = torch.randint(0, 256, (7, 1, 3, 4)).to(torch.uint8)
    found = list(batches(kind(images), rows, 2, CPU))
    assert [len(batch) for batch in found] == ([2, 2, 2, 1] if rows is None else [2, 2, 1])
    assert torch.equal(torch.cat(found), images if rows is None else images[rows])


def test_what_a_worker_cannot_read_is_one_line():
    images = Streamed(torch.zeros(9, 1, 3, 4, dtype=torch.uint8), broken=5)
    assert len(list(batches(images, torch.tensor([0, 8]), 2, CPU))) == 1
    with pytest.raises(MadError) as caught:
        list(batches(images, None, 2, CPU))
    assert str(caught.value) == "row 5 cannot be read"


def save(folder, name, pixels):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(file)
    return file


def test_folder_resizes_and_greys(tmp_path):
    save(tmp_path, "b/wide.png", np.full((20, 60, 3), (200, 100, 50)))
    save(tmp_path, "a.PNG", np.full((5, 5), 7))
    (tmp_path / "notes.txt").write_text("not an image")
    pool = ImageFolder(str(tmp_path))
    grey, color = pool.images((1, 28, 28)), pool.images((3, 16, 24))
    assert grey.shape == (2, 1, 28, 28)
    assert color.shape == (2, 3, 16, 24)
    assert grey.dtype == torch.uint8
    assert (grey[0] == 7).all()
    assert (color[0] == 7).all()
    assert (color[1].amax(dim=(1, 2)) == torch.tensor([200, 100, 50])).all()
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert (grey[1].float() - luma).abs().max() <= 1
    with pytest.raises(MadError, match="channels"):
        pool.images((2, 28, 28))


def test_folder_keeps_rows_and_columns(tmp_path):
    pixels = np.arange(28 * 28).reshape(28, 28) % 251
    save(tmp_path, "one.png", pixels)
    assert torch.equal(ImageFolder(str(tmp_path)).images((1, 28, 28))[0, 0].long(), torch.tensor(pixels))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 12)])
def test_a_large_folder_streams_the_same_images(tmp_path, monkeypatch, shape):
    for name in range(5):
        save(tmp_path, f"{name}.png", np.random.default_rng(name).integers(0, 256, (20 + name, 30, 3)))
    whole = ImageFolder(str(tmp_path)).images(shape)
    assert isinstance(whole, torch.Tensor)
    monkeypatch.setattr("mad.datasets.base.IN_MEMORY", whole.numel() - 1)
    stream = ImageFolder(str(tmp_path)).images(shape)
    assert not isinstance(stream, torch.Tensor)
    assert (len(stream), tuple(stream.shape)) == (5, (5, *shape))
    assert torch.equal(torch.cat(list(batches(stream, None, 2, CPU))), whole)


def test_a_large_folder_names_its_broken_image(tmp_path, monkeypatch):
    save(tmp_path, "good.png", np.full((9, 9), 7))
    (tmp_path / "broken.png").write_bytes(b"no image")
    monkeypatch.setattr("mad.datasets.base.IN_MEMORY", 0)
    with pytest.raises(MadError, match=r"^[^\n]*broken\.png[^\n]*$"):
        list(batches(ImageFolder(str(tmp_path)).images((1, 28, 28)), None, 2, CPU))


def test_folder_is_what_it_holds(tmp_path):
    for folder in ("here", "there", "other"):
        save(tmp_path / folder, "one.png", np.full((9, 9), 7))
    here, there = (describe(ImageFolder(str(tmp_path / folder))) for folder in ("here", "there"))
    assert here == there
    save(tmp_path / "other", "two.png", np.full((9, 9), 8))
    assert describe(ImageFolder(str(tmp_path / "other"))) != here


def test_folder_with_the_same_names_and_sizes_but_other_pixels_is_another(tmp_path):
    for folder, grey in (("here", 7), ("there", 8)):
        (tmp_path / folder).mkdir()
        Image.new("L", (9, 9), grey).save(tmp_path / folder / "one.bmp")
    here, there = (describe(ImageFolder(str(tmp_path / folder))) for folder in ("here", "there"))
    assert here != there


def test_folder_with_a_broken_image_names_it(tmp_path):
    save(tmp_path, "good.png", np.full((9, 9), 7))
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(MadError, match=r"broken\.png"):
        ImageFolder(str(tmp_path)).images((1, 28, 28))


def test_folder_needs_an_image(tmp_path):
    for path in (None, "", str(tmp_path), str(tmp_path / "absent")):
        with pytest.raises(MadError, match=r"pool\.path"):
            ImageFolder(path)


def write_idx(root, sizes=(("train", 5), ("t10k", 3))):
    """Write MNIST's four raw files with random pixels; return the pixels."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = {}
    for part, count in sizes:
        pixels[part] = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels[part].tobytes())
        labels = bytes(range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels)
    return pixels


def test_color_images_become_channels_first(tmp_path, monkeypatch):
    stored = np.random.default_rng(0).integers(0, 256, (3, 32, 30, 3), dtype=np.uint8)
    fake = SimpleNamespace(data=stored, targets=[1, 2, 3])
    monkeypatch.setattr(datasets, "CIFAR10", lambda *_, **__: fake)
    images = Vision("cifar10", "CIFAR10", str(tmp_path), shape=(3, 32, 30)).images((3, 32, 30))
    assert torch.equal(images, torch.from_numpy(stored).permute(0, 3, 1, 2))


def test_idx_files_are_a_pool_in_their_order(tmp_path):
    pixels = write_idx(tmp_path)
    files = [str(next(tmp_path.rglob(f"{part}-images-idx3-ubyte"))) for part in ("t10k", "train")]
    both = IdxImages(files, "mine")
    expected = torch.from_numpy(np.concatenate([pixels["t10k"], pixels["train"]]))
    assert torch.equal(both.images((1, 28, 28))[:, 0], expected)
    moved = tmp_path / "moved"
    moved.write_bytes(Path(files[0]).read_bytes())
    assert describe(IdxImages(str(moved), "mine")) == describe(IdxImages(files[0], "mine")) != describe(both)
    named = IdxImages(str(moved), "mine")
    moved.write_bytes(Path(files[1]).read_bytes())
    with pytest.raises(MadError, match="changed after the start"):  # the cell's name stands for other images
        named.images((1, 28, 28))


@pytest.mark.parametrize("content", [b"", b"short", bytes(16), struct.pack(">IIII", 2051, 2, 3, 3) + bytes(17)])
def test_what_is_no_idx_file_is_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(MadError, match="no whole IDX file"):
        IdxImages(str(tmp_path / "file")).images((1, 3, 3))


def test_idx_files_of_two_sizes_are_refused(tmp_path):
    for side in (2, 3):
        (tmp_path / str(side)).write_bytes(struct.pack(">IIII", 2051, 1, side, side) + bytes(side * side))
    with pytest.raises(MadError, match=r"\(1, 2, 2\) and \(1, 3, 3\)"):
        IdxImages([str(tmp_path / "2"), str(tmp_path / "3")]).images((1, 2, 2))
    with pytest.raises(MadError, match=r"set pool\.path"):
        IdxImages()


@pytest.mark.parametrize("kind", [IdxImages, ImageFolder])
@pytest.mark.parametrize("path", [None, 5, True, 0.5, [5], ["a", None]])
def test_a_path_that_is_none_names_its_key(kind, path):
    with pytest.raises(MadError, match=r"^pool\.path must be [^\n]*, got [^\n]*; set pool\.path=F[A-Z]+$") as caught:
        kind(path)
    assert repr(path) in str(caught.value)


def test_greek_letters_are_drawn_as_letters_and_are_none():
    greek, latin = Greek(size=300), Letters(size=300)
    images = greek.images((1, 28, 28))
    assert images.shape == (300, 1, 28, 28)
    assert not rows(images) & rows(latin.images((1, 28, 28)))
    ink = to_unit_range(images).mean(dim=(1, 2, 3))
    assert 0.1 < ink.mean() < 0.4
    assert ink.min() > 0.02
    assert greek.labels().unique().tolist() == list(range(len(Greek.alphabet)))
    assert not set(Greek.alphabet) & set(Letters.alphabet)


@pytest.mark.parametrize("kinds", [("uint8", "float"), ("float", "uint8"), ("uint8", "uint8")])
def test_images_of_two_sources_are_in_one_range_in_memory_and_as_a_stream(kinds):
    whole = Blobs(size=12).images((1, 8, 8))
    first, more = (
        {"uint8": some, "float": to_unit_range(some)}[kind] for some, kind in zip((whole, whole), kinds, strict=True)
    )
    rows, order = torch.arange(6), torch.tensor([0, 1, 6, 7])
    expected = to_unit_range(whole)[[0, 1, 0, 1]]
    for images in (first, Streamed(first)):
        (found,) = batches(joined(images, rows, more[:4]), order, 4, CPU)
        assert torch.allclose(to_unit_range(found), expected, atol=1e-6)
