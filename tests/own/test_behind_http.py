"""A victim behind HTTP in a whole theft: the server is a process of its own, and is killed in the middle."""

import threading
from dataclasses import dataclass, replace

import pytest
import torch
from serving import CLASSES, SHAPE, logits, served, softmax
from toys import CPU, Blobs, Tiny, cell, trainer

from mad.own import Own
from mad.own.service import Service
from mad.pipeline import run
from mad.storage.store import Store


@dataclass(frozen=True)
class Six(Blobs):
    classes: int = CLASSES
    shape: tuple[int, int, int] = SHAPE


def own(**given):
    return Own(name="own", dataset=Six(), architecture=Tiny, trainer=trainer(), **given)


def predict(images):
    """What the server answers."""
    return torch.from_numpy(softmax(logits(images.double().numpy()))).float()


def theft(victim):
    return cell(victim=victim, pool=Six(), budget=150)


def there(server, **settings):
    def service(url, answers):
        return Service(url, answers=answers, batch=10, **settings)

    return own(url=server.url, service=service)


@pytest.fixture
def server(tmp_path):
    with served(tmp_path) as it:
        yield it


def test_a_service_is_made_from_its_address_and_again_for_other_answers(server):
    plain = own(url=server.url)
    assert (plain.service.url, plain.service.answers) == (server.url, "posteriors")
    turned = replace(there(server), answers="logits")
    assert (turned.service.answers, turned.service.batch) == ("logits", 10)


def check_same(record, other):
    for column in ("victim_accuracy", "defended_accuracy", "stolen_accuracy", "l1_mean", "l1_mean_queries"):
        assert record[column] == pytest.approx(other[column], abs=1e-3), column


def test_it_gives_the_record_of_the_model_behind_it(tmp_path, server):
    record, _ = run(theft(there(server)), Store(tmp_path / "http"), CPU)
    check_same(record, run(theft(own(function=predict)), Store(tmp_path / "function"), CPU)[0])
    assert record["architecture"] == "service"


def test_a_server_that_is_killed_in_the_middle_costs_no_query_twice(tmp_path, server):
    server.tell(hold=250)  # 200 test images, then into the queries
    found, victim = [], there(server, retries=100)
    thief = threading.Thread(target=lambda: found.append(run(theft(victim), Store(tmp_path / "http"), CPU)[0]))
    thief.start()
    while sum(server.answered().values()) < 250 and thief.is_alive():
        thief.join(0.01)
    server.kill()
    server.start()
    thief.join()
    check_same(found[0], run(theft(own(function=predict)), Store(tmp_path / "function"), CPU)[0])
    counts = server.answered()
    assert len(counts) == 200 + 150
    again = sum(count - 1 for count in counts.values())
    assert again <= 4 * 10  # what was under way when it died: the protocol cannot say whether it was answered


def test_what_was_answered_is_not_asked_again_by_another_run(tmp_path, server):
    run(theft(there(server)), Store(tmp_path / "http"), CPU)
    asked = server.answered()
    assert set(asked.values()) == {1}
    record, kept = run(theft(there(server)), Store(tmp_path / "http"), CPU, force=True)
    assert not kept
    assert server.answered() == asked
    assert record["queries"] == 150
