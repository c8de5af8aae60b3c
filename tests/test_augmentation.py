"""Random crops and mirrors of a whole batch, against one image at a time."""

import pytest
import torch

from mad.augmentation import PAD, WARP, augmented, crop, flip, resized_crop, warped


def images(count=300, dtype=torch.uint8):
    values = torch.randint(1, 256, (count, 3, 6, 10), generator=torch.Generator().manual_seed(count))
    return values.to(dtype)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def windows(image):
    """Every crop of an image between zeros, by its top and left."""
    channels, height, width = image.shape
    padded = torch.zeros(channels, height + 2 * PAD, width + 2 * PAD, dtype=image.dtype)
    padded[:, PAD : PAD + height, PAD : PAD + width] = image
    moves = range(2 * PAD + 1)
    return {(top, left): padded[:, top : top + height, left : left + width] for top in moves for left in moves}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_crop_is_a_window_of_its_own_image(dtype):
    given = images(dtype=dtype)
    cropped = crop(given, draw())
    assert cropped.dtype == dtype
    assert cropped.shape == given.shape
    found = [
        next(move for move, window in windows(image).items() if torch.equal(window, new))
        for image, new in zip(given, cropped, strict=True)
    ]
    assert len(set(found)) > 70  # of 81
    tops, lefts = torch.randint(2 * PAD + 1, (2, len(given)), generator=draw())
    assert found == list(zip(tops.tolist(), lefts.tolist(), strict=True))


def test_a_resized_crop_is_a_part_of_the_image_enlarged():
    height, width, count = 40, 60, 500
    down, across = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    moved = resized_crop(torch.stack([down, across]).expand(count, 2, height, width), draw())
    assert moved.shape == (count, 2, height, width)
    # Inside, the coordinates rise evenly, by the part's height and width over the image's.
    inner = moved[:, :, 5:-5, 5:-5]
    high = inner[:, 0, :, 0].diff(dim=1)
    wide = inner[:, 1, 0].diff(dim=1)
    assert torch.all(high.amax(dim=1) - high.amin(dim=1) < 1e-5)
    assert torch.all(wide.amax(dim=1) - wide.amin(dim=1) < 1e-5)
    high, wide = high.mean(dim=1) * height, wide.mean(dim=1) * width
    area, ratio = high * wide, wide / high
    assert 0.0799 < area.min() < 0.1
    assert 0.9 < area.max() < 1.001
    assert 0.749 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < 1.334
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert len(moved[:, 0, 20, 30].unique()) > count * 0.9  # from everywhere
    assert moved[:, 0, 0, 0].min() < 0.02
    assert moved[:, 0, -1, 0].max() > 0.95


def test_a_resized_crop_of_bytes_is_in_the_unit_range():
    given = images()
    assert torch.equal(resized_crop(given, draw()), resized_crop(given.float() / 255, draw()))
    assert torch.all((resized_crop(torch.full((3, 1, 9, 9), 51, dtype=torch.uint8), draw()) - 0.2).abs() < 1e-6)


def test_a_flip_mirrors_half_of_the_images_and_no_rows():
    given = images()
    flipped = flip(given, draw())
    assert flipped.dtype == torch.uint8
    mirrored = (flipped == given.flip(3)).flatten(1).all(dim=1)
    kept = (flipped == given).flatten(1).all(dim=1)
    assert (mirrored ^ kept).all()
    assert 0.4 < mirrored.float().mean() < 0.6


@pytest.mark.parametrize("kind", ["crop", "crop_flip", "resized_crop_flip", "warp"])
def test_the_seed_draws_it(kind):
    first, again, other = (augmented(images(), kind, draw(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_kinds():
    given, seed = images(), draw()
    assert augmented(given, "none", seed) is given
    moved = crop(given, draw())
    assert torch.equal(augmented(given, "crop", draw()), moved)
    assert torch.equal(augmented(given, "warp", draw()), warped(given, draw(), *WARP))
    same = augmented(given, "crop_flip", draw())
    mirrored = (same == moved.flip(3)).flatten(1).all(dim=1)
    assert (mirrored ^ (same == moved).flatten(1).all(dim=1)).all()
    assert 0.4 < mirrored.float().mean() < 0.6
