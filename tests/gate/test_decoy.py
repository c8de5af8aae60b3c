"""Decoys: they depend on the key and the image only, hardly change with it, and look like honest answers."""

import pytest
import torch

from mad.gate.decoy import Decoys

CLASSES = 5


def bank(count=400, seed=0):
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, CLASSES, generator=draw)
    logits[torch.arange(count), torch.arange(count) % CLASSES] += 6
    return torch.softmax(logits, dim=1)


def images(count=500, seed=0):
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 7, 7, generator=draw)
    return torch.nn.functional.interpolate(coarse, 28, mode="bilinear")


def test_they_are_posteriors_and_depend_on_the_key_and_the_image_only():
    decoys, pixels = Decoys(bank(), 3, 1), images()
    found = decoys(pixels)
    assert torch.allclose(found.sum(dim=1), torch.ones(500), atol=1e-5)
    assert torch.equal(Decoys(bank(), 3, 1)(pixels), found)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(decoys(pixels[order]), found[order])
    assert torch.allclose(torch.cat([decoys(each) for each in pixels.split(70)]), found)
    assert (Decoys(bank(), 4, 1)(pixels).argmax(dim=1) == found.argmax(dim=1)).double().mean() < 0.4


def test_a_slightly_changed_copy_gets_the_same_class_and_nearly_the_same_answer():
    decoys, pixels = Decoys(bank(), 0, 1), images()
    found = decoys(pixels)
    noise = 0.02 * (torch.rand(pixels.shape, generator=torch.Generator().manual_seed(2)) - 0.5)
    for changed, least in ((pixels + noise, 0.9), (0.9 * pixels + 0.03, 0.999)):
        again = decoys(changed)
        assert (again.argmax(dim=1) == found.argmax(dim=1)).double().mean() >= least
    exact = decoys(pixels.clone())
    assert torch.equal(exact, found)


def test_they_look_like_the_bank_in_each_class_and_are_not_alike():
    held, found = bank(2000), Decoys(bank(2000), 0, 1)(images(4000))
    counts = found.argmax(dim=1).bincount(minlength=CLASSES) / 4000
    assert counts.min() > 0.1
    assert counts.max() < 0.3
    for label in range(CLASSES):
        ours, theirs = (each[each.argmax(dim=1) == label].log() for each in (found, held))
        assert torch.allclose(ours.mean(dim=0), theirs.mean(dim=0), atol=0.4)
        assert torch.allclose(ours.std(dim=0), theirs.std(dim=0), rtol=0.2)
    assert len(found.unique(dim=0)) > 3900


def test_over_keys_they_say_nothing_about_the_query():
    """Of each image every class is as likely, over keys, as it is in the bank."""
    pixels = images(20)
    told = torch.stack([Decoys(bank(), seed, 1)(pixels).argmax(dim=1) for seed in range(300)])
    for row in range(20):
        counts = told[:, row].bincount(minlength=CLASSES)
        assert ((counts - 60) ** 2 / 60).sum() < 25  # chi square, 4 degrees of freedom


def test_flat_images_and_a_class_that_the_bank_lacks_are_no_trouble():
    some = bank()
    some = some[some.argmax(dim=1) != 2]
    found = Decoys(some, 0, 3)(torch.zeros(3, 3, 16, 16))
    assert torch.equal(found[0], found[1])
    assert found.isfinite().all()


@pytest.mark.parametrize("side", [1, 5, 28])
def test_images_of_any_size(side):
    found = Decoys(bank(), 0, 1)(torch.rand(4, 1, side, side))
    assert found.shape == (4, CLASSES)
