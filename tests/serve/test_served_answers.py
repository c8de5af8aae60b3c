"""The answers are the benchmark's to the bit, at any batching; shadow mode and the check before a port is opened."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
import torch

pytest.importorskip("kserve")
pytestmark = pytest.mark.serve

from serving_toys import pictures, running, shared, toy  # noqa: E402
from toys import Tiny  # noqa: E402

from mad.architectures.lenet import LeNet  # noqa: E402
from mad.defenses.base import Defense  # noqa: E402
from mad.defenses.modelguard_s import ModelGuardS  # noqa: E402
from mad.deployment import Deployment, open_deployment  # noqa: E402
from mad.errors import MadError  # noqa: E402
from mad.serve.check import checked, request_sizes  # noqa: E402
from mad.serve.engine import Engine, cut, filled, same_sizes  # noqa: E402
from mad.serve.service import Service, digest  # noqa: E402
from mad.serve.settings import Settings  # noqa: E402


@dataclass
class Counting(Defense):
    """A defense whose answers depend on how many images it gets, below 8."""

    name = "counting"
    epsilon: float | None = None

    def perturb(self, images, clean):
        return clean.roll(1, dims=1) if len(images) < 8 else clean


@dataclass
class Another(Counting):
    """A defense that serves another network than the victim."""

    name = "another"

    def serve(self, context):
        torch.manual_seed(0)
        return Tiny(context.victim.dataset.shape, context.victim.dataset.classes).eval()


def test_only_sizes_that_give_the_same_bits_are_used():
    def answer(images):
        rows = images.flatten(1)[:, :3]
        return rows, rows + (1e-7 if len(images) < 16 else 0)

    assert same_sizes(answer, pictures(256)) == [16, 32, 64, 128, 256]
    assert same_sizes(answer, pictures(100)) == [16, 32, 64, 100]
    assert same_sizes(lambda images: answer(images.double()), pictures(1)) == [1]


@pytest.mark.parametrize(
    ("count", "lengths"),
    [(1, [1]), (4, [4]), (5, [4, 1]), (7, [7]), (9, [8, 1]), (25, [25]), (40, [32, 8]), (300, [256, 32, 8, 4])],
)
def test_requests_are_cut_to_sizes_that_are_nearly_full(count, lengths):
    sizes = [4, 8, 16, 32, 64, 128, 256]
    parts = cut(pictures(count), sizes)
    assert [len(part) for part in parts] == lengths
    assert torch.equal(torch.cat(parts), pictures(count))
    assert torch.equal(filled(parts[-1], 400)[: len(parts[-1])], parts[-1])


@pytest.mark.parametrize("make", [shared, lambda: toy(Counting()), lambda: toy(architecture=LeNet, shape=(1, 28, 28))])
def test_answers_at_any_batching_are_those_of_whole_batches(make):
    deployment = make()
    images = torch.rand(256, *deployment.victim.dataset.shape, generator=torch.Generator().manual_seed(3))
    expected = deployment.session()(images)
    engine = Engine(deployment, linger=0.005)
    parts = images.split(request_sizes(256, 60))
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda part: engine.ask(part, deployment.session()).result()[1], parts))
    assert torch.equal(torch.cat(found), expected)
    engine.close()


def test_requests_are_merged(toy_deployment, monkeypatch):
    engine, sizes = Engine(toy_deployment, linger=0.2), []
    both = engine._both
    monkeypatch.setattr(engine, "_both", lambda session, images: (sizes.append(len(images)), both(session, images))[1])
    waiting = [engine.ask(pictures(8), toy_deployment.session()) for _ in range(40)]
    assert all(each.result()[1].shape == (8, 4) for each in waiting)
    assert sum(sizes) <= 40 * 8 + 64
    assert len(sizes) <= 4
    engine.close()


def test_a_stateful_defense_gets_each_clients_requests_as_they_came(tmp_path):
    deployment = toy(ModelGuardS())
    requests = {name: [pictures(count, seed) for count in (3, 1, 20)] for seed, name in enumerate("ab")}
    inside = deployment.fresh()
    sessions = {name: inside.session() for name in "ab"}
    expected = {name: [] for name in "ab"}
    for turn in range(3):  # in the order of the server's: all clients share a code book
        for name in "ab":
            expected[name].append(sessions[name](requests[name][turn]))
    with running(deployment.fresh(), tmp_path, [("a", {}), ("b", {})]) as it:
        assert it.service.engine.sizes == []
        for turn in range(3):
            for name in "ab":
                assert torch.equal(it.answers(requests[name][turn], it.keys[name]), expected[name][turn])


def test_the_check(toy_deployment, monkeypatch):
    for deployment in (toy_deployment, toy(ModelGuardS())):
        service = Service(deployment, Settings())
        said = checked(service)
        assert said.startswith("200 answers in ")
        assert "are the benchmark's to the bit (test images of blobs" in said
        service.close()
    service = Service(toy_deployment, Settings())
    both = service.engine._both

    def off(session, images):
        clean, defended = both(session, images)
        return clean, torch.nextafter(defended, torch.ones(()))

    monkeypatch.setattr(service.engine, "_both", off)
    with pytest.raises(MadError, match=r"200 of 200 answers are not the benchmark's .by up to .*: nothing is served"):
        checked(service)
    service.close()


def test_an_opened_deployment_is_checked_and_served(tmp_path, toy_deployment):
    toy_deployment.export(tmp_path / "api")
    opened = open_deployment(tmp_path / "api")
    with running(opened, check=True) as it:
        assert "1024 answers in " in checked(it.service)
        assert torch.equal(it.answers(pictures(5)), predict(pictures(5)))


def predict(images):
    return shared().session().answer(filled(images, 256))[1][: len(images)]


def test_shadow_answers_are_clean_and_what_the_defense_would_do_is_noted(tmp_path, toy_deployment):
    images = pictures(6)
    clean, defended = (each[:6] for each in toy_deployment.session().answer(filled(images, 256)))
    with running(toy_deployment, tmp_path, [("a", {"operator": True})], shadow=True) as it:
        assert torch.equal(it.answers(images, it.keys["a"]), clean)
        found = it.metrics(it.keys["a"])
    (line,) = map(json.loads, (tmp_path / "clients.audit.jsonl").read_text().splitlines())
    distances = (defended - clean).abs().sum(dim=1)
    assert found["mad_shadow"] == 1
    assert found["mad_l1_mean"] == pytest.approx(distances.mean().item(), rel=1e-5)
    assert (line["client"], line["status"], line["shadow"]) == ("a", 200, True)
    assert line["touched"] == [True] * 6
    assert line["l1"] == pytest.approx(distances.tolist(), abs=1e-6)
    assert line["images"] == [digest(image) for image in images]
    assert set(line) == {"time", "client", "status", "request", "shadow", "images", "touched", "l1"}


def test_shadow_of_a_defense_that_serves_another_model_needs_the_victim():
    deployment = toy(Another())
    assert deployment.model is not deployment.served
    with running(deployment, shadow=True) as it:
        clean = deployment.clean(filled(pictures(3), 256))[:3]
        assert torch.equal(it.answers(pictures(3)), clean)
        assert it.metrics()["mad_touched_share"] == 1
    with pytest.raises(MadError, match="shadow=true needs the undefended victim"):
        Service(replace(deployment, model=deployment.served), Settings(shadow=True))


def test_the_audit_log_is_rotated(tmp_path, toy_deployment):
    with running(toy_deployment, tmp_path, [("a", {})], audit_bytes=1000, audit_files=2) as it:
        for _ in range(12):
            it.answers(pictures(1), it.keys["a"])
    names = sorted(each.name for each in tmp_path.glob("clients.audit.jsonl*"))
    assert names == ["clients.audit.jsonl", "clients.audit.jsonl.1", "clients.audit.jsonl.2"]
    for each in names:
        assert all(json.loads(line)["client"] == "a" for line in (tmp_path / each).read_text().splitlines())


def test_names_of_classes_travel_with_an_export(tmp_path):
    from serving_toys import Named

    deployment = toy()
    named: Deployment = replace(deployment, victim=Named(**vars(deployment.victim)))
    named.export(tmp_path / "api")
    assert open_deployment(tmp_path / "api").victim.class_names == '["a", "b", "c", "d"]'
