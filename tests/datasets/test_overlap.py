"""Images of a pool that stolen models are scored on are found in memory, in files and between the two."""

import pytest
import torch
from PIL import Image
from toys import Streamed

from mad.datasets import overlap
from mad.datasets.folder import Files
from mad.datasets.held_out import Part
from mad.datasets.overlap import in_both, warning
from mad.datasets.pictures import Encoded


@pytest.fixture
def photographs(tmp_path):
    """Return 30 files of different images, 16 x 16."""
    draw = torch.Generator().manual_seed(0)
    files = [tmp_path / f"{number}.png" for number in range(30)]
    for file in files:
        Image.fromarray(torch.randint(256, (16, 16, 3), dtype=torch.uint8, generator=draw).numpy()).save(file)
    return files


def held(stream):
    return torch.stack([stream[row] for row in range(len(stream))])


def test_streams_and_images_in_memory_are_compared(photographs):
    whole = Files(photographs, (3, 16, 16))
    pool, test = Part(whole, range(20)), Part(whole, range(15, 30))
    assert in_both(held(pool), held(test)) == (5, 20)
    assert in_both(pool, test) == (5, 20)
    assert in_both(pool, held(test)) == (5, 20)
    assert in_both(held(pool), test) == (5, 15)
    assert in_both(Part(whole, range(5)), Part(whole, range(5, 30))) == (0, 5)
    assert "shares 5 of 20 compared images with the test split" in warning("mine", pool, "the test split", test)
    assert warning("mine", pool, "the test split", Part(whole, range(20, 30))) == ""


def test_floats_are_the_bytes_they_come_from(photographs):
    some = held(Files(photographs, (3, 16, 16)))
    assert in_both(some, some[10:].float() / 255) == (20, 30)
    assert in_both(some[:, :, :8], some) == (0, 0)


def test_files_are_compared_by_their_bytes_wherever_they_lie(photographs, tmp_path):
    packed = [Encoded(file.read_bytes(), "row") for file in photographs[:7]]
    small = (3, 8, 8)
    assert in_both(Files(packed, small), Files(photographs, small)) == (7, 7)
    again = tmp_path / "again.png"
    Image.open(photographs[0]).rotate(90).save(again)
    assert in_both(Files([again], small), Files(photographs, small)) == (0, 1)


def test_of_many_an_even_sample_is_compared(photographs, monkeypatch):
    monkeypatch.setattr(overlap, "DECODED", 10)
    monkeypatch.setattr(overlap, "FILES", 6)
    whole = Files(photographs, (3, 16, 16))
    assert in_both(whole, held(whole)) == (10, 10)
    assert in_both(whole, whole) == (6, 6)
    assert in_both(Streamed(held(whole)), Streamed(held(whole))) == (0, 0)
