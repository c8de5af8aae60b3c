"""How tests ask a service, and what it must answer."""

import time
from pathlib import Path

import pytest
import torch
from serving import CLASSES, SHAPE, logits, name, softmax

from mad.errors import MadError
from mad.own.service import Service

HERE = Path(__file__).parent


def pictures(count, seed=0):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def expected(images):
    return torch.from_numpy(softmax(logits(images.double().numpy()))).float()


def names(images):
    return [name(each) for each in images.numpy()]


def connect(server, cache=None, sleep=None, shape=SHAPE, classes=CLASSES, **fields):
    service = Service(**{"url": server.url, "batch": 4, "retries": 0, **fields})
    return service.connect(shape, classes, cache, sleep=sleep)


def refused(server, images=None, **how):
    """The one line that a query ends in."""
    with pytest.raises(MadError) as caught, connect(server, **how) as connection:
        connection(pictures(6) if images is None else images)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.startswith(server.url)
    return text.removeprefix(server.url).strip(" :")


def until(true):
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
