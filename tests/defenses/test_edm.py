"""EDM: networks that agree on the victim's images and on nothing else, and the hash that chooses one."""

import math
from dataclasses import replace
from functools import partial
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from toys import CPU, Blobs, Others, Tiny, build, cell, compose, trainer, victim

import mad
from mad.architectures.fast_resnet import FastResNet
from mad.datasets.digits import Greek
from mad.defenses import Undefended
from mad.defenses.edm import Edm, Ensemble, EnsembleTrainer, coherence, mean_image, pairs, smooth_coherence
from mad.deployment import deploy
from mad.errors import MadError
from mad.own import Own
from mad.pipeline import run
from mad.storage.fingerprint import describe
from mad.storage.store import Store
from mad.testing import check_defense
from mad.training import logits_of

SHAPE = (3, 9, 12)
IMAGES = torch.rand(60, *SHAPE, generator=torch.Generator().manual_seed(0))
OUTLIERS = Others()
MEAN = IMAGES.mean(dim=0) * 255


def ensemble(networks=5, bits=6, seed=0, architecture=Tiny, classes=4):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Ensemble(SHAPE, classes, architecture, networks, bits).eval()
    made.hash_by(seed, SHAPE, MEAN)
    return made


def routed(made, image):
    """The number of an image's network, bit by bit."""
    cell_number, values = 0, (image * 255).round().double().flatten()
    for bit in range(len(made.middle)):
        total = sum(sign * value for sign, value in zip(made.signs[:, bit].tolist(), values.tolist(), strict=True))
        cell_number += 2**bit if total > made.middle[bit].item() else 0
    return made.table[cell_number].item()


@pytest.mark.parametrize("architecture", [Tiny, FastResNet])
@pytest.mark.parametrize(("networks", "bits"), [(2, 1), (5, 6), (3, 8)])
def test_each_image_is_answered_by_the_network_of_its_hash(architecture, networks, bits):
    made = ensemble(networks, bits, architecture=architecture)
    answers, route = made(IMAGES), made.route(IMAGES)
    assert len(route.unique()) > 1
    for image, answer, number in zip(IMAGES, answers, route.tolist(), strict=True):
        assert number == routed(made, image)
        assert torch.allclose(answer, made.networks[number](image[None])[0], atol=1e-4)


def test_no_answer_depends_on_its_batch():
    made, order = ensemble(), torch.randperm(60, generator=torch.Generator().manual_seed(1))
    for size in (1, 7, 60):
        parts = torch.cat([made(part) for part in IMAGES[order].split(size)])
        assert torch.allclose(parts, made(IMAGES)[order], atol=1e-5)
        assert torch.equal(torch.cat([made.route(part) for part in IMAGES.split(size)]), made.route(IMAGES))
    assert made(IMAGES[:0]).shape == (0, 4)


def test_only_the_networks_that_answer_run_and_each_once():
    made, asked = ensemble(), []
    for number, network in enumerate(made.networks):
        network.register_forward_hook(lambda net, given, logits, at=number: asked.append((at, len(given[0]))))
    made(IMAGES)
    assert asked == list(enumerate(made.route(IMAGES).bincount(minlength=5).tolist()))
    asked.clear()
    made(IMAGES[:1])
    assert asked == [(made.route(IMAGES[:1]).item(), 1)]


def test_the_hash_has_a_key_and_divides_cells_and_images_evenly():
    one, again, other = (ensemble(bits=8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.route(IMAGES), again.route(IMAGES))
    assert not torch.equal(one.route(IMAGES), other.route(IMAGES))
    assert one.table.bincount().tolist() == [52, 51, 51, 51, 51]
    assert set(one.signs.flatten().tolist()) == {-1.0, 1.0}
    share = (IMAGES.flatten(1) * 255 @ one.signs > one.middle).float().mean(dim=0)
    assert share.sub(0.5).abs().max() < 0.25
    assert (one.middle % 1 == 0.5).all()  # no sum of whole numbers equals it


def test_small_changes_rarely_change_the_network():
    made = ensemble()
    noise = torch.rand(IMAGES.shape, generator=torch.Generator().manual_seed(2)) - 0.5
    changed = [
        (made.route((IMAGES + size * noise).clamp(0, 1)) != made.route(IMAGES)).float().mean() for size in (0.01, 1)
    ]
    assert changed[0] < 0.1 < 0.5 < changed[1]
    assert torch.equal(made.route(IMAGES + 1e-6), made.route(IMAGES))


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_coherence_is_its_formula(classes):
    drawn = torch.randn(4, 6, classes, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)
    told = torch.softmax(5 * drawn, dim=2)
    told[:, 0], told[:, 1], told[0, 2], told[1, 2] = 1 / classes, torch.eye(classes)[0], 0, 0
    told[0, 2, 0], told[1, 2, 1] = 1, 1
    for row in range(6):
        cosines = []
        for a, b in combinations(told[:, row], 2):
            cosines.append((sum(a * b) / (sum(a * a) * sum(b * b)) ** 0.5).item())
        assert pairs(told)[:, row].tolist() == pytest.approx(cosines)
        assert coherence(told)[row].item() == pytest.approx(max(cosines))
        assert smooth_coherence(told)[row].item() == pytest.approx(math.log(sum(map(math.exp, cosines))))
    assert coherence(told)[:2].tolist() == pytest.approx([1, 1])
    assert coherence(told[:2, 2:3]).item() == pytest.approx(0)


def test_the_loss_is_its_formula():
    split, outliers = Blobs(4, SHAPE).train(), Others(shape=SHAPE).images(SHAPE)
    recipe, made = EnsembleTrainer.like(trainer(), weight=0.7), ensemble(3)
    object.__setattr__(recipe, "_drawn", iter([(outliers[:9], None)]))
    found = recipe.loss(made, split.images[:6], split.labels[:6]).item()
    labels = sum(F.cross_entropy(net(split.images[:6] / 255), split.labels[:6]).item() for net in made.networks)
    told = torch.stack([net(outliers[:9] / 255).softmax(dim=1) for net in made.networks])
    assert found == pytest.approx(labels + 0.7 * smooth_coherence(told).mean().item(), rel=1e-5)


def test_networks_agree_on_the_task_and_less_on_outliers():
    found, test = {}, Blobs().test()
    for diversity in (0.0, 2.0):
        deployed = deploy(victim(), Edm(diversity=diversity, networks=3, outliers=OUTLIERS))
        found[diversity] = deployed.columns["edm_coherence"]
        told = [logits_of(net, test.images, CPU).argmax(dim=1) for net in deployed.served.networks]
        assert min((each == test.labels).float().mean() for each in told) > 0.9
        outside = [logits_of(net, OUTLIERS.images((1, 8, 8)), CPU).softmax(dim=1) for net in deployed.served.networks]
        assert found[diversity] == pytest.approx(coherence(torch.stack(outside)).mean().item(), abs=1e-5)
    assert found[2.0] < found[0.0] - 0.2


def test_the_ensemble_is_trained_once_and_its_key_is_the_cells(tmp_path, fits):
    made = [cell(defense=Edm(outliers=OUTLIERS), budget=budget) for budget in (50, 60)]
    first, second = (run(each, Store(tmp_path), CPU)[0] for each in made)
    assert fits == ["victim toy", "victim toy-edm", "knockoff", "knockoff"]
    assert (first["strength_parameter"], first["strength"], first["epsilon"]) == ("diversity", 1, None)
    assert 0 < first["edm_coherence"] == second["edm_coherence"] < 1
    assert first["l1_max"] < 1e-6
    assert first["defended_accuracy"] > 0.9
    changes = [{"diversity": 0.5}, {"networks": 3}, {"bits": 4}, {"outliers": replace(OUTLIERS, size=250)}]
    for change in changes:
        deploy(victim(), replace(Edm(outliers=OUTLIERS), **change), store=Store(tmp_path))
    deploy(victim(), Edm(outliers=OUTLIERS), seed=1, store=Store(tmp_path))
    assert fits[4:] == ["victim toy-edm"] * 5
    hashes = [deploy(victim(), Edm(outliers=OUTLIERS), seed=seed, store=Store(tmp_path)).served for seed in (0, 0, 1)]
    assert torch.equal(hashes[0].signs, hashes[1].signs)
    assert not torch.equal(hashes[0].signs, hashes[2].signs)
    assert len(fits) == 9


def test_the_hash_is_centred_between_images_and_outliers():
    served = deploy(victim(), Edm(outliers=OUTLIERS)).served
    both = [images.double().mean(dim=0) for images in (Blobs().train().images, OUTLIERS.images((1, 8, 8)))]
    middle = served.signs.T.double() @ (sum(both) / 2).flatten()
    assert (served.middle - middle).abs().max() < 1
    assert torch.allclose(mean_image(Blobs().train().images), both[0])


def test_networks_start_differently_and_the_global_generator_stays():
    before = torch.get_rng_state()
    served = deploy(victim(), Edm(outliers=OUTLIERS, diversity=0.0)).served
    assert len({each.head.weight.sum().item() for each in served.networks}) == 5
    assert torch.equal(before, torch.get_rng_state())


def lenet_like(shape, classes):
    """A network of a function."""
    return Tiny(shape, classes)


@pytest.mark.parametrize("architecture", [Tiny, lenet_like, partial(FastResNet)])
def test_a_deployment_travels_and_travels_on(architecture, tmp_path, monkeypatch):
    shape, images = (1, 9, 9), IMAGES[:, :1, :, :9]
    toy = victim(shape=shape, architecture=architecture, trainer=trainer(epochs=1))
    deployed = deploy(toy, Edm(networks=3, outliers=replace(OUTLIERS, shape=shape)), seed=2)
    deployed.export(tmp_path / "away")
    monkeypatch.setattr(Blobs, "split", None)
    opened = mad.open_deployment(tmp_path / "away")
    opened.export(tmp_path / "further")
    again = mad.open_deployment(tmp_path / "further")
    ours = deployed.session().answer(images)[1]
    assert torch.allclose(ours, opened.session().answer(images)[1], rtol=0, atol=1e-6)
    assert torch.allclose(ours, again.session().answer(images)[1], rtol=0, atol=1e-6)
    assert again.columns == deployed.columns


def test_a_victim_with_a_normalization_is_served_and_exported_with_it(tmp_path):
    own = Own("own", Blobs(), Tiny, trainer(), normalize={"mean": [0.5], "std": [0.25]})
    deployed = deploy(own, Edm(networks=2, outliers=OUTLIERS))
    deployed.export(tmp_path / "away")
    images = IMAGES[:, :1, :8, :8]
    opened = mad.open_deployment(tmp_path / "away")
    assert torch.allclose(deployed.session().answer(images)[1], opened.session().answer(images)[1], atol=1e-6)


@pytest.mark.parametrize("classes", [2, 100])
def test_conformance(classes):
    check_defense(Edm(networks=2, outliers=OUTLIERS), (classes,))


def test_what_cannot_work_is_refused_before_anything_is_trained():
    with pytest.raises(MadError, match=r"^defense=edm needs outliers, got none: set defense/outliers=POOL"):
        cell(defense=Edm())
    given = Own("given", Blobs(), Tiny, trainer(), function=lambda images: images)
    with pytest.raises(MadError, match=r"^defense=edm trains victim given anew"):
        cell(victim=given, defense=Edm(outliers=OUTLIERS))
    with pytest.raises(MadError, match=r"no L1 budget.*diversity"):
        Edm(0.5, outliers=OUTLIERS)
    assert cell(defense=Edm(0, outliers=OUTLIERS)).defense == Undefended()


@pytest.mark.parametrize(
    ("name", "value"), [("diversity", -1), ("networks", 1), ("networks", 2.5), ("bits", 0), ("bits", 17)]
)
def test_a_bad_setting_is_refused_by_name(name, value):
    with pytest.raises(MadError, match=rf"defense\.{name}"):
        Edm(**{name: value})


def test_the_command_line_chooses_outliers():
    made = build(compose("defense=edm").defense)
    assert made == Edm(outliers=Greek())
    assert compose("defense=edm", "defense/outliers=kmnist_part").defense.outliers.name == "kmnist_part"
    assert build(compose("defense=edm", "defense.outliers.seed=1").defense).outliers == Greek(seed=1)
    assert describe(made)["outliers"]["name"] == "greek"
