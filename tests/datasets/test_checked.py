"""Whatever a user's data set or pool gives is right, or one line says what came, what was expected and what to do."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from small_sets import IMAGES, LABELS, Mine, refused
from toys import CPU, Streamed, cell, trainer, victim

from mad.attacks.adaptive import KnockoffAdaptive
from mad.datasets import Split, batches, checked
from mad.defenses.mad import Mad
from mad.defenses.surrogates import TrainedSurrogate
from mad.pipeline import run
from mad.storage.store import Store

UNIT = IMAGES.float() / 255


class Listed:
    """A stream that says one shape and gives other images."""

    def __init__(self, images, shape=None, size=None):
        self.images, self.shape = images, shape or (len(images), *images[0].shape)
        self.size = len(images) if size is None else size

    def __len__(self):
        return self.size

    def __getitem__(self, row):
        return self.images[row]


def spoiled(images):
    """Not a number in one place."""
    images = images.clone()
    images[3, 0, 2, 2] = float("nan")
    return images


WRONG_IMAGES = {
    "floats to 255": (IMAGES.float(), r"in \[0, 1\], got .* to .*take images / 255"),
    "normalized": ((UNIT - 0.5) / 0.2, r"in \[0, 1\], got -.*a network may normalize"),
    "resized": (UNIT * 1.02, r"take images\.clamp\(0, 1\)"),
    "NaN": (spoiled(UNIT), "not finite"),
    "infinite": (UNIT / 0, "not finite"),
    "float64": (UNIT.double(), r"got torch\.float64; take images\.float\(\)"),
    "float16": (UNIT.half(), r"got torch\.float16; take images\.float\(\)"),
    "int64": (IMAGES.long(), r"got torch\.int64; take uint8"),
    "bool": (IMAGES > 99, r"got torch\.bool; take uint8"),
    "HWC": (IMAGES.permute(0, 2, 3, 1), r"got \(20, 8, 8, 1\); channels come first"),
    "no channel": (IMAGES[:, 0], r"got \(20, 8, 8\); add the channel"),
    "flat": (IMAGES.flatten(1), r"got \(20, 64\); take images\.view\(-1, 1, 8, 8\)"),
    "one image": (IMAGES[0, 0], r"got \(8, 8\)"),
    "empty": (IMAGES[:0], "got none"),
    "0 and 1 in bytes": ((IMAGES > 99).to(torch.uint8), "nearly black: multiply it by 255"),
    "divided twice": (UNIT / 255, "divided twice"),
    "numpy": (IMAGES.numpy(), r"ndarray uint8 \(20, 1, 8, 8\); take torch\.from_numpy"),
    "list": (list(IMAGES), "got list"),
    "None": (None, "got NoneType"),
    "stream of floats to 255": (Listed(IMAGES.float()), r"take images / 255"),
    "stream of float64": (Listed(UNIT.double()), r"torch\.float64"),
    "stream of arrays": (Listed(IMAGES.numpy()), "ndarray"),
    "stream of other sizes": (Listed(IMAGES[:, :, 1:], (20, 1, 8, 8)), r"\(1, 7, 8\)"),
    "stream of HWC": (Listed(IMAGES.permute(0, 2, 3, 1)), "channels come first"),
    "stream shorter than its shape": (Listed(IMAGES, (21, 1, 8, 8)), "says 21 images, its len 20"),
    "empty stream": (Listed(IMAGES, (0, 1, 8, 8), 0), "got none"),
    "stream without images": (Listed([{}], (1, 1, 8, 8)), "dict"),
}


WRONG_LABELS = {
    "from 1": (LABELS + 1, "from 0 to 3, got 1 to 4; take labels - 1"),
    "too high": (LABELS * 2, "from 0 to 3, got 0 to 6; or is it of more"),
    "negative": (LABELS - 1, "got -1 to 2"),
    "floats": (LABELS.float(), r"got torch\.float32; take labels\.long\(\)"),
    "bytes": (LABELS.to(torch.uint8), r"got torch\.uint8; take labels\.long\(\)"),
    "one-hot": (torch.eye(4)[LABELS], r"\(20, 4\); one-hot\? take labels\.argmax\(dim=1\)"),
    "a column": (LABELS[:, None], r"\(20, 1\); take labels\.view\(-1\)"),
    "too few": (LABELS[1:], "20 images and 19 labels"),
    "too many": (torch.cat([LABELS, LABELS]), "20 images and 40 labels"),
    "a list": (LABELS.tolist(), "got list; take torch.as_tensor"),
    "numpy": (LABELS.numpy(), "got ndarray"),
    "none": (None, "got NoneType"),
    "a number": (LABELS[0], r"Tensor torch\.int64 \(\)"),
}


WRONG = {
    **{name: (Split(images, LABELS[: len(images)] if name == "empty" else LABELS), words)
       for name, (images, words) in WRONG_IMAGES.items()},
    **{f"labels {name}": (Split(IMAGES, labels), words) for name, (labels, words) in WRONG_LABELS.items()},
    "no split": (IMAGES, r"expected Split\(images, labels\), got Tensor"),
    "a dict": ({"images": IMAGES}, "got dict"),
    "three": ((IMAGES, LABELS, LABELS), "got tuple"),
}  # fmt: skip


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_split_is_refused_before_anything_is_trained(tmp_path, fits, part, wrong):
    given, words = WRONG[wrong]
    made = cell(victim=victim(dataset=Mine(**{f"{part}_": given})))
    said = refused(lambda: run(made, Store(tmp_path), CPU), words)
    assert f"dataset mine, {part}()" in said
    assert fits == []
    assert not list(tmp_path.rglob("*.json")) or {file.parent.name for file in tmp_path.rglob("*.json")} == {"failed"}


@pytest.mark.parametrize("wrong", WRONG_IMAGES)
def test_a_wrong_pool_is_refused_before_anything_is_trained(tmp_path, fits, wrong):
    given, words = WRONG_IMAGES[wrong]
    said = refused(lambda: run(cell(pool=Mine(pool_=given), budget=10), Store(tmp_path), CPU), words)
    assert "pool mine" in said
    assert fits == []


@pytest.mark.parametrize("wrong", [name for name in WRONG_LABELS if name not in ("from 1", "too high", "negative")])
def test_wrong_labels_of_a_pool_are_refused(tmp_path, fits, wrong):
    given, words = WRONG_LABELS[wrong]

    @dataclass(frozen=True)
    class Sorted(Mine):
        def labels(self):
            return given

    made = cell(pool=Sorted(), attack=KnockoffAdaptive(10, "certainty"))
    assert "pool mine" in refused(lambda: run(made, Store(tmp_path), CPU), words)
    assert fits == []


def test_a_wrong_surrogates_set_is_refused_before_anything_is_trained(tmp_path, fits):
    odd = Mine(train_=Split(IMAGES, LABELS + 1))
    made = cell(defense=Mad(0.5, TrainedSurrogate(trainer(), dataset=odd)))
    refused(lambda: run(made, Store(tmp_path), CPU), "dataset mine, train.*take labels - 1")
    assert fits == []


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"classes": 1}, "classes of dataset mine must be a whole number of at least 2, got 1"),
        ({"classes": "4"}, "classes of dataset mine"),
        ({"classes": 4.0}, "classes of dataset mine"),
        ({"classes": ["a", "b"]}, "classes of dataset mine"),
        ({"shape": (8, 8)}, r"shape must be \(C, H, W\)"),
        ({"shape": 8}, r"shape must be \(C, H, W\)"),
        ({"shape": (1, 8, 0)}, r"shape must be \(C, H, W\)"),
        ({"shape": (1, 8, 8.0)}, r"shape must be \(C, H, W\)"),
        ({"name": "a/b"}, r"dataset\.name must be"),
        ({"name": None}, r"dataset\.name must be"),
    ],
)
def test_what_a_set_says_of_itself_is_checked_at_once(declared, words):
    refused(lambda: victim(dataset=Mine(**declared)), words)


def test_a_set_without_a_shape_is_refused():
    class Bare:
        name, classes = "bare", 4

    refused(lambda: victim(dataset=Bare()), "dataset Bare has no shape")


@pytest.mark.parametrize("kind", [torch.as_tensor, Streamed])
@pytest.mark.parametrize("images", [IMAGES, UNIT])
def test_what_is_right_passes(kind, images):
    made = Mine(train_=(kind(images), LABELS), pool_=kind(images))
    assert torch.equal(checked.split(made, "train").labels, LABELS)
    assert tuple(checked.pool(made, (1, 8, 8), "toy").shape) == (20, 1, 8, 8)
    assert tuple(checked.pool(made, [1, 8, 8], "toy").shape) == (20, 1, 8, 8)


def test_an_error_of_the_sets_own_names_it(tmp_path):
    class Lost(Mine):
        def test(self):
            return open(tmp_path / "absent")

    refused(lambda: checked.split(Lost(), "test"), r"^dataset mine, test\(\) failed: FileNotFoundError: .*absent")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (torch.zeros(1, 7, 8, dtype=torch.uint8), r"^image 15 of Listed: .*\(1, 7, 8\)"),
        (torch.zeros(1, 8, 8).double(), r"^image 15 of Listed: .*float64"),
        (torch.full((1, 8, 8), 9.0), r"^image 15 of Listed: .*images / 255"),
        (np.zeros((1, 8, 8)), "^image 15 of Listed cannot be read: "),
        (None, "^image 15 of Listed cannot be read: TypeError"),
    ],
)
def test_every_image_of_a_stream_is_checked_when_it_is_read(wrong, words):
    stream = Listed([*IMAGES[:15], wrong, *IMAGES[16:]], tuple(IMAGES.shape))
    refused(lambda: list(batches(stream, None, 5, CPU)), words)


def test_missing_classes_are_said_once(capsys):
    checked.say.cache_clear()
    for _ in range(2):
        checked.split(Mine(test_=Split(IMAGES, LABELS % 2)), "test")
    said = " ".join(capsys.readouterr().err.split())
    assert said == "dataset mine, test(): no image of 2 of its 4 classes (2, 3)"


# What is in them belongs to their names
