"""The proof, before a port is opened, that what is served is what the benchmark measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mad.api import BlackBox
from mad.datasets import batch_limit, to_unit_range
from mad.errors import MadError
from mad.recipes import Absent
from mad.seeds import generator
from mad.serve.engine import Engine, images_like
from mad.serve.service import Service

REQUESTS = (1, 2, 3, 5, 8, 17, 64, 100, 200)  # images of the requests that are tried, in turn
ALONE = 100  # about so many images are asked by themselves, one after another
AT_ONCE = 16  # requests that are asked before the first answer is waited for
MOST, RANDOM = 10_000, 1024  # test images; random ones, where the data did not travel


def checked(service: Service) -> str:
    """Ask the engine about the test images, in requests of many sizes, and return a line about it.

    The benchmark's answers are those of ``Deployment.session`` in batches of ``BlackBox.most`` images; those of a
    ``stateful`` defense are those of one client that sends the same requests.

    Raises:
        MadError: if a bit of an answer is another.
    """
    deployment = service.deployment.fresh()
    dataset = deployment.victim.dataset
    if isinstance(dataset, Absent):
        images, which = images_like(deployment, RANDOM), "random images: the data did not travel"
    else:
        held = dataset.test().images
        rows = range(min(len(held), batch_limit(MOST, dataset.shape)))
        images, which = to_unit_range(torch.stack([held[row] for row in rows])), f"test images of {dataset.name}"
    sizes = request_sizes(len(images), service.settings.max_images)
    if deployment.defense.stateful:
        session = deployment.session()
        expected, deployment = torch.cat([session(part) for part in images.split(sizes)]), deployment.fresh()
        engine = Engine(deployment)  # what the clients share is left as it is
    else:
        expected, engine = deployment.session()(images), service.engine
    found = asked(engine, deployment.session(), images.split(sizes))
    if not deployment.defense.stateful:  # a few by themselves, which no others' answers may change
        alone = range(0, len(images), max(1, len(images) // ALONE))
        for row in alone:
            found[row] = asked(engine, deployment.session(), [images[row : row + 1]])[0]
    wrong = int((found != expected).any(dim=1).sum())
    if wrong:
        largest = (found - expected).abs().max().item()
        raise MadError(
            f"{wrong} of {len(images)} answers are not the benchmark's (by up to {largest:.2g}): nothing is served; "
            "set threads= to what the record was made with"
        )
    batches = f", batches of {', '.join(map(str, engine.sizes))}" if engine.sizes else ""
    return f"{len(images)} answers in {len(sizes)} requests are the benchmark's to the bit ({which}{batches})"


def asked(engine: Engine, session: BlackBox, parts: Sequence[Tensor]) -> Tensor:
    """Return an engine's defended answers to requests."""
    found = []
    for start in range(0, len(parts), AT_ONCE):
        waiting = [engine.ask(part, session) for part in parts[start : start + AT_ONCE]]
        found += [each.result()[1] for each in waiting]
    return torch.cat(found)


def request_sizes(count: int, most: int) -> list[int]:
    """Return sizes of requests that add up to a number of images, in a fixed random order."""
    draw, sizes = generator(0, "requests of a server's check"), list[int]()
    while count:
        size = min(count, most, REQUESTS[int(torch.randint(len(REQUESTS), (), generator=draw))])
        sizes.append(size)
        count -= size
    return sizes
