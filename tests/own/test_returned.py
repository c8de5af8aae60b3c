"""Functions and networks of an owner: what they return, memory that is written to again, and what is left alone."""

import numpy as np
import pytest
import torch
from own_models import Conv, own

from mad.deployment import deploy
from mad.own.answering import Answering
from mad.training import logits_of

CLASSES = 4
IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def logits(images):
    return images.flatten(1)[:, :CLASSES].numpy() * 9


def posteriors(images):
    return torch.softmax(torch.from_numpy(logits(images)), dim=1).numpy()


def test_a_function_may_write_all_answers_to_the_same_memory():
    kept = {}

    def again(images):
        place = kept.setdefault(len(images), np.empty((len(images), CLASSES), np.float32))
        place[:] = logits(images)
        return place

    many = torch.randint(256, (3000, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found, right = (
        logits_of(Answering(each, "logits", CLASSES, "it"), many, torch.device("cpu")) for each in (again, logits)
    )
    assert torch.equal(found, right)


def test_a_tensor_that_is_written_to_again_is_not_the_answer():
    place = torch.empty(len(IMAGES), CLASSES)
    answering = Answering(lambda images: place.copy_(torch.from_numpy(logits(images))), "logits", CLASSES, "it")
    first = answering(IMAGES)
    answering(IMAGES.flip(0))
    assert np.array_equal(first.numpy(), logits(IMAGES))


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:, ::-1][:, ::-1],
        lambda rows: rows[::-1].copy()[::-1],
        lambda rows: rows.astype(">f4"),
        lambda rows: rows.astype(np.longdouble),
        lambda rows: np.asfortranarray(rows),
    ],
)
def test_arrays_of_any_layout_and_float_are_answers(change):
    found = Answering(lambda images: change(posteriors(images)), "posteriors", CLASSES, "it")(IMAGES)
    assert np.allclose(found.exp().numpy(), posteriors(IMAGES), atol=1e-6)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.uint64, np.int16, ">i8"])
@pytest.mark.parametrize("tensor", [False, True])
def test_labels_are_whole_numbers_of_any_size(kind, tensor):
    def labels(images):
        found = logits(images).argmax(axis=1).astype(kind)
        return torch.from_numpy(found.astype(found.dtype.newbyteorder("="))) if tensor else found

    found = Answering(labels, "labels", CLASSES, "it")(IMAGES)
    assert np.array_equal(found.argmax(dim=1).numpy(), logits(IMAGES).argmax(axis=1))


def test_a_network_in_python_can_be_trained_on_afterwards():
    network = Conv(shape=(1, 8, 8), classes=CLASSES).eval()
    deployment = deploy(own(function=network))
    assert not deployment.session()(IMAGES).requires_grad
    assert all(each.requires_grad for each in network.parameters())


class Scale:
    """An object that no fingerprint tells."""

    def __call__(self, values):
        return values


SCALE = Scale()


def scaled(images):
    return SCALE(posteriors(images))


def test_a_line_tells_of_objects_that_a_record_is_not_named_by(capfd):
    for _ in range(2):
        own(function=scaled)
        own(function=posteriors)
    said = " ".join(capfd.readouterr().err.split())
    assert said.count("what SCALE, a Scale, holds is not in its records' names: after a change say force=all") == 1
    assert said.count("holds is not in") == 1
