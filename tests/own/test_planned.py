"""The plan of a given victim: nothing is trained or stored for it, and a service is not asked."""

from dataclasses import replace

import pytest
import torch
from own_models import Conv, onnx, own, predict, safetensors, torchscript
from test_taken_away import pictures
from toys import CPU, cell

from mad import measure
from mad.cli import preview
from mad.datasets.owned import OwnImages
from mad.defenses import Undefended
from mad.defenses.mad import Mad
from mad.estimate import RECORD, Estimator, pool_size, sizes
from mad.own.answering import Answering
from mad.own.service import Service

TRANSFER = 50 * (8 + 4 * 4)


@pytest.fixture
def fixed(monkeypatch):
    """Rates that are known: a millisecond a training image, ten a query, four an answer."""
    for name, rate in {"training": 0.001, "asking": 0.01, "answering": 0.004}.items():
        monkeypatch.setattr(measure, name, lambda *given, rate=rate: rate)


def estimator(folder):
    return Estimator(folder, CPU, 1, [])


def test_a_given_victim_costs_no_training_and_no_disk(tmp_path, fixed, fits):
    safetensors(tmp_path / "w.safetensors")
    trained = estimator(tmp_path).of("it", cell(victim=own(), defense=Undefended()))
    given = own(weights=str(tmp_path / "w.safetensors"))
    found = estimator(tmp_path).of("it", cell(victim=given, defense=Undefended()))
    assert trained.seconds - found.seconds == pytest.approx(200 * 8 * 0.001)
    assert (found.bytes, trained.bytes > found.bytes) == (RECORD + TRANSFER, True)
    assert found.seconds == pytest.approx(50 * (0.01 + 8 * 0.001) + 200 * (0.01 + 0.001))
    asked = estimator(tmp_path).of("it", cell(victim=own(function=predict), defense=Undefended()))
    assert asked.seconds - found.seconds == pytest.approx(200 * (3 * 0.004 - 0.001))
    assert fits == []


@pytest.mark.parametrize("write", [torchscript, onnx])
def test_a_program_is_measured_itself(tmp_path, write, monkeypatch):
    monkeypatch.setattr(measure, "network_of", lambda *given: pytest.fail("another network was measured"))
    file = tmp_path / ("w.onnx" if write is onnx else "w.ts")
    write(file)
    whole = cell(victim=own(weights=str(file)))
    assert measure.answering(whole.victim, CPU) > 0
    assert measure.asking(whole, CPU) > 0


def test_a_function_is_asked_about_few_images(tmp_path, monkeypatch):
    seen, forward = [], Answering.forward
    monkeypatch.setattr(Answering, "forward", lambda self, images: seen.append(len(images)) or forward(self, images))
    found = estimator(tmp_path)
    for epsilon in (0.5, 0.8):
        found.of("it", cell(epsilon, victim=own(function=predict)))
    assert 0 < sum(seen) <= 4 * measure.FIRST  # with MAD and without, each once to warm up


def test_a_service_is_not_asked_and_a_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Service, "connect", lambda *given, **named: pytest.fail("a plan asked the service"))
    found, url = estimator(tmp_path), "http://127.0.0.1:9/v2/models/digits"
    victim = own(url=url, service=Service)
    each = found.of("it", cell(victim=victim, defense=Mad(0.5)))
    assert each.bytes == RECORD + TRANSFER
    *_, last = preview.summary([each], found, 1)
    assert last == f"queries to victim.url={url} are not estimated: a plan sends none"


def test_images_of_ones_own_are_counted_and_not_decoded(tmp_path, monkeypatch):
    data = OwnImages(pictures(tmp_path / "data"), size=8, name="mnist")  # a name of other data
    pool = OwnImages(data.path, size=8, key="pool.path", test_share=0)
    for name in ("train", "test", "images"):
        monkeypatch.setattr(OwnImages, name, lambda *given: pytest.fail("images were decoded"))
    assert sizes(data) == (32, 8)
    assert pool_size(cell(pool=pool)) == 40


def test_a_given_network_leaves_images_for_validation_where_it_is_asked_for(tmp_path):
    folder = pictures(tmp_path / "data")

    def given(folder=folder, **changes):
        return replace(own(function=predict), dataset=OwnImages(str(folder), size=8), **changes)

    assert [given().dataset.count(testing) for testing in (False, True)] == [0, 40]
    held = given(validation=0.25)
    assert [held.dataset.count(testing) for testing in (False, True)] == [32, 8]
    assert len(held.validation_split().labels) == 8
    both = tmp_path / "both"
    pictures(both / "train")
    pictures(both / "test")
    assert {given(both, validation=each).dataset.test_share for each in (0.0, 0.25)} == {1}  # as ever, in names


def test_a_network_that_stands_in_has_the_victims_shape():
    assert isinstance(measure.standing_in(own(), CPU), Conv)
    silent = measure.standing_in(own(url="http://127.0.0.1:9/v2/models/x", service=Service), CPU)
    assert torch.equal(silent(torch.rand(3, 1, 8, 8)), torch.zeros(3, 4))


def test_the_command_plans_a_service_without_asking_it(mad_run, tmp_path, monkeypatch):
    monkeypatch.setattr(Service, "connect", lambda *given, **named: pytest.fail("a plan asked the service"))
    folder, url = pictures(tmp_path / "data"), "http://127.0.0.1:9/v2/models/digits"
    line = ["plan=true", "victim=own", f"data={folder}", f"victim.url={url}", "architecture=mlp", "device=cpu"]
    code, out, err = mad_run(*line, "pool=letters", "pool.size=60")
    assert code == 0, err
    assert f"queries to victim.url={url} are not estimated: a plan sends none" in out
    assert "2 cells: 0 kept, 2 to do" in out
    assert not (tmp_path / "outputs").exists()
