"""A small data set, and refusals of it."""

import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from toys import Blobs

from mad.errors import MadError

RIGHT = Blobs(size=20).train()


IMAGES, LABELS = RIGHT


@dataclass(frozen=True)
class Mine:
    """A data set as a user writes it; each part as it was given, the right one otherwise."""

    train_: Any = field(default=RIGHT, compare=False)
    test_: Any = field(default=RIGHT, compare=False)
    pool_: Any = field(default=IMAGES, compare=False)
    classes: Any = 4
    shape: Any = (1, 8, 8)
    name: Any = "mine"

    def train(self):
        return self.train_

    def test(self):
        return self.test_

    def images(self, shape):
        return self.pool_


def refused(call, words):
    with pytest.raises(MadError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert re.search(words, str(caught.value)), caught.value
    return str(caught.value)
