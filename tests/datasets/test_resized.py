"""A pool whose images have another shape than the victim's."""

import pytest
import torch
from toys import Blobs, Streamed

from mad.datasets import checked
from mad.datasets.resized import resized
from mad.errors import MadError


def uniform(*colors):
    """Images (N, 3, 10, 14) of one color each."""
    return torch.tensor(colors, dtype=torch.uint8).view(-1, 3, 1, 1).expand(-1, 3, 10, 14).contiguous()


def test_one_color_stays_that_color_at_any_size():
    colors = uniform([10, 200, 30], [255, 0, 7])
    for size in ((3, 5, 7), (3, 20, 28), (3, 9, 9)):
        found = resized(colors, size)
        assert found.dtype == torch.uint8
        assert found.equal(colors[:, :, :1, :1].expand(-1, *size))


def test_color_becomes_gray_by_luma_and_gray_three_channels():
    assert resized(uniform([255, 0, 0], [0, 255, 0]), (1, 10, 14))[:, 0, 0, 0].tolist() == [76, 150]
    gray = torch.arange(100, dtype=torch.uint8).view(1, 1, 10, 10)
    assert resized(gray, (3, 10, 10)).equal(gray.expand(1, 3, 10, 10))


def test_it_is_the_usual_bilinear_resize_of_the_center():
    from torchvision.transforms.v2.functional import resize

    image = torch.randint(0, 256, (2, 3, 12, 20), dtype=torch.uint8)
    wanted = resize(image[..., 4:16], [8, 8], antialias=True)
    assert (resized(image, (3, 8, 8)).int() - wanted.int()).abs().max() <= 1


def test_floats_and_streams_are_resized_alike():
    image = torch.randint(0, 256, (3, 3, 12, 20), dtype=torch.uint8)
    whole = resized(image, (3, 8, 8))
    stream = resized(Streamed(image), (3, 8, 8))
    assert tuple(stream.shape) == (3, 3, 8, 8) == tuple(whole.shape)
    assert torch.stack([stream[row] for row in range(3)]).equal(whole)
    floats = resized(image.float() / 255, (3, 8, 8))
    assert (floats * 255 - whole).abs().max() <= 0.51


def test_a_pool_is_resized_with_a_line(capsys):
    checked.say.cache_clear()
    found = checked.checked_pool(Blobs(), (3, 11, 9), "toy")
    assert tuple(found.shape[1:]) == (3, 11, 9)
    assert "pool blobs: its images of (1, 8, 8) are brought to (3, 11, 9), which victim toy takes" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(("have", "want"), [((2, 8, 8), (3, 8, 8)), ((1, 8, 8), (4, 8, 8))])
def test_other_numbers_of_channels_are_refused(have, want):
    with pytest.raises(MadError, match="choose another pool"):
        checked.checked_pool(Blobs(shape=have), want, "toy")
