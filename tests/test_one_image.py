"""Trainings on one image at a time, and on one image alone."""

import pytest
from torch import nn
from toys import CPU, Tiny, trainer

from mad.errors import MadError
from mad.testing import Blobs
from mad.training import Trainer

SPLIT = Blobs(size=5).train()


def normed():
    return nn.Sequential(Tiny((1, 8, 8), 4), nn.BatchNorm1d(4))


def fit(recipe, network, count):
    recipe.fit(network, SPLIT.images[:count], SPLIT.labels[:count], seed=0, device=CPU, task="knockoff")


@pytest.mark.parametrize(("images", "batch_size"), [(1, 20), (5, 1)])
def test_a_batch_norm_that_takes_no_single_image_is_named(images, batch_size):
    recipe = trainer(batch_size=batch_size, epochs=1)
    with pytest.raises(MadError, match="knockoff is trained on one image at a time, of which a batch norm"):
        fit(recipe, normed(), images)
    fit(recipe, Tiny((1, 8, 8), 4), images)


class Broken(Trainer):
    def loss(self, model, images, targets):
        raise ValueError("of its own")


@pytest.mark.parametrize(("images", "network"), [(5, normed()), (1, Tiny((1, 8, 8), 4))])
def test_another_error_of_a_loss_stays_as_it_is(images, network):
    with pytest.raises(ValueError, match="of its own"):
        fit(Broken.like(trainer(batch_size=5)), network, images)
