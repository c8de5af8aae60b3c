"""Adaptive Misinformation: wrong answers where the victim is unsure, and no others."""

import math
from dataclasses import replace

import pytest
import torch
from toys import CPU, Blobs, Others, build, cell, compose, trainer, victim

import mad
from mad.datasets.digits import Greek
from mad.defenses import Context
from mad.defenses.adaptive_misinformation import AdaptiveMisinformation, MisinformationTrainer, reverse_cross_entropy
from mad.deployment import deploy
from mad.errors import MadError
from mad.own import Own
from mad.pipeline import run
from mad.storage.store import Store
from mad.training import Trainer, logits_of

IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
OUTLIERS = Others()


def posteriors(classes, rows=40):
    """Rows of all top probabilities, from nearly uniform to one-hot."""
    noise = torch.randn(rows, classes, generator=torch.Generator().manual_seed(classes))
    found = torch.softmax(noise * torch.logspace(-2, 3, rows).unsqueeze(1), dim=1)
    found[-1] = torch.eye(classes)[0]
    found[0] = 1 / classes
    found[1] = (torch.eye(classes)[0] + torch.eye(classes)[1]) / 2
    return found


def prepared(classes=4, **settings):
    toy = victim(classes)
    return AdaptiveMisinformation(**settings).prepared(Context(toy, toy.train(CPU), 0, CPU))


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("nu", [1.0, 1000.0])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_answers_are_the_formula(classes, nu, tau):
    defense, clean = prepared(classes, tau=tau, nu=nu), posteriors(classes)
    answers = defense(IMAGES, clean)
    for image, y, answer in zip(IMAGES, clean, answers, strict=True):
        wrong = torch.softmax(defense._wrong(image[None])[0].double(), dim=0)
        share = 1 / (1 + math.exp(min(700.0, nu * (y.max().item() - tau))))
        assert torch.allclose(answer.double(), (1 - share) * y.double() + share * wrong, atol=2e-6)


def test_sure_answers_are_left_alone_and_cost_nothing():
    defense, clean = prepared(tau=0.8), posteriors(4)
    asked = []
    defense._wrong.register_forward_hook(lambda network, given, logits: asked.append(len(given[0])))
    answers, sure = defense(IMAGES, clean), clean.amax(dim=1) > 0.82
    assert torch.equal(answers[sure], clean[sure])
    assert asked == [int((~sure).sum())]
    assert 0 < asked[0] < len(clean)
    assert torch.equal(defense(IMAGES[sure], clean[sure]), clean[sure])
    assert len(asked) == 1


def test_a_higher_tau_moves_more():
    clean = posteriors(4)
    moved = [(prepared(tau=tau)(IMAGES, clean) - clean).abs().sum().item() for tau in (0, 0.3, 0.5, 0.7, 0.9, 1)]
    assert moved == sorted(moved)
    assert moved[0] == 0 < moved[-1]


def test_a_budget_is_kept_as_well():
    clean = posteriors(4)
    answers = prepared(tau=0.9, epsilon=0.3)(IMAGES, clean)
    assert (answers - clean).abs().sum(dim=1).max() <= 0.3 + 1e-5


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_reverse_cross_entropy_is_its_formula(classes):
    logits = torch.randn(30, classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    labels = torch.arange(30) % classes
    for row, label, found in zip(logits, labels, reverse_cross_entropy(logits, labels), strict=True):
        assert found.item() == pytest.approx(-math.log(1 - torch.softmax(row, dim=0)[label].item()), rel=1e-6)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_reverse_cross_entropy_of_mixed_labels_is_the_same_mixture(classes):
    logits, labels = posteriors(classes).double().clamp(min=1e-9).log().requires_grad_(), torch.arange(40) % classes
    others, share = (labels + 1) % classes, 0.3
    mixed = share * torch.eye(classes)[labels] + (1 - share) * torch.eye(classes)[others]
    parts = [reverse_cross_entropy(logits, each) for each in (labels, others)]
    wanted, found = share * parts[0] + (1 - share) * parts[1], reverse_cross_entropy(logits, mixed)
    assert torch.allclose(found, wanted)
    slopes = [torch.autograd.grad(each.sum(), logits, retain_graph=True)[0] for each in (found, wanted)]
    assert torch.allclose(*slopes, atol=1e-6)


@pytest.mark.parametrize("outliers", [None, OUTLIERS])
def test_a_victim_that_learns_by_mixup_is_defended(outliers):
    toy = victim(trainer=trainer(epochs=1, mixup=0.2))
    answers = deploy(toy, AdaptiveMisinformation(tau=1.0, outliers=outliers)).session()(IMAGES)
    assert torch.allclose(answers.sum(dim=1), torch.ones(40), atol=1e-5)


def test_the_reverse_cross_entropy_is_finite_at_the_edge():
    logits = torch.tensor([[1000.0, 0, 0], [-1000, 0, 0]], requires_grad=True)
    loss = reverse_cross_entropy(logits, torch.tensor([0, 0]))
    assert loss.tolist() == pytest.approx([1000 - math.log(2), 0], abs=1e-3)
    loss.sum().backward()
    assert logits.grad.isfinite().all()


def test_the_network_is_wrong_about_the_victims_images():
    toy = victim()
    for part in (toy.dataset.train(), toy.dataset.test()):
        told = logits_of(prepared()._wrong, part.images, CPU).argmax(dim=1)
        assert (told == part.labels).float().mean() < 0.05


def test_the_loss_of_the_network_is_its_formula():
    outliers = OUTLIERS.images((1, 8, 8))
    recipe, model = MisinformationTrainer.like(trainer()), victim().untrained(seed=0, purpose="victim")
    split, labels = victim().dataset.train(), torch.arange(9) % 4
    object.__setattr__(recipe, "_drawn", iter([(outliers[:9], labels)]))
    found = recipe.loss(model, split.images[:5], split.labels[:5]).item()
    pairs = [*zip(split.images[:5], split.labels[:5], strict=True), *zip(outliers[:9], labels, strict=True)]
    losses = [-math.log(1 - torch.softmax(model(image[None] / 255)[0], dim=0)[y].item()) for image, y in pairs]
    assert found == pytest.approx(sum(losses) / 14, rel=1e-4)


def test_outliers_have_the_served_victims_labels(monkeypatch):
    told, fit = {}, Trainer.fit

    def noting(self, *data, **how):
        told[how["task"]] = how
        fit(self, *data, **how)

    monkeypatch.setattr(Trainer, "fit", noting)
    outliers = OUTLIERS.images((1, 8, 8))
    served = deploy(victim(), AdaptiveMisinformation(outliers=OUTLIERS)).served
    assert list(told) == ["victim toy", "victim toy-exposed", "misinformation"]
    assert torch.equal(told["misinformation"]["labels"], logits_of(served, outliers, CPU).argmax(dim=1))
    assert "outliers" not in told["victim toy"]
    for task in ("victim toy-exposed", "misinformation"):
        assert torch.equal(told[task]["outliers"], outliers)


def test_with_outliers_a_victim_that_is_unsure_about_them_is_served():
    outliers = OUTLIERS.images((1, 8, 8)) / 255
    plain, exposed = (deploy(victim(), AdaptiveMisinformation(outliers=pool)) for pool in (None, OUTLIERS))
    assert plain.served is plain.model
    tops = [each.session().answer(outliers)[0].amax(dim=1).mean() for each in (plain, exposed)]
    assert tops[1] < tops[0] - 0.1


def test_everything_is_trained_once_and_tau_trains_nothing(tmp_path, fits):
    asked = replace(OUTLIERS, size=300, name="asked")
    made = [cell(pool=asked, defense=AdaptiveMisinformation(tau=tau, outliers=OUTLIERS)) for tau in (0.3, 0.7)]
    first, second = (run(each, Store(tmp_path), CPU)[0] for each in made)
    assert fits == ["victim toy", "victim toy-exposed", "misinformation", "knockoff", "knockoff"]
    assert (first["strength_parameter"], first["strength"], first["epsilon"]) == ("tau", 0.3, None)
    assert first["l1_mean_queries"] < second["l1_mean_queries"]
    assert second["defended_accuracy"] > 0.7
    run(cell(defense=AdaptiveMisinformation()), Store(tmp_path), CPU)
    other = replace(OUTLIERS, size=250)
    run(cell(defense=AdaptiveMisinformation(outliers=other)), Store(tmp_path), CPU)
    assert fits[5:] == ["misinformation", "knockoff", "victim toy-exposed", "misinformation", "knockoff"]


@pytest.mark.parametrize("outliers", [None, OUTLIERS])
def test_a_deployment_travels(outliers, tmp_path, monkeypatch):
    deployed = deploy(victim(), AdaptiveMisinformation(tau=0.95, outliers=outliers), seed=2)
    deployed.export(tmp_path / "away")
    monkeypatch.setattr(Blobs, "split", None)
    opened = mad.open_deployment(tmp_path / "away")
    for ours, theirs in zip(deployed.session().answer(IMAGES), opened.session().answer(IMAGES), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


def predict(images):
    """Posteriors that only depend on how bright an image is."""
    return torch.softmax(images.mean(dim=(1, 2, 3)).unsqueeze(1) * torch.tensor([1.0, 2.0, 3.0, 4.0]), dim=1)


class OnlyTest(Blobs):
    """A data set without images for training."""

    def train(self):
        raise MadError("it leaves no image for train")


def test_a_given_victim_needs_no_weights_but_images_and_no_outliers():
    parts = {"name": "given", "architecture": victim().architecture, "trainer": trainer(), "function": predict}
    given = Own(dataset=Blobs(), **parts)
    deployed = deploy(given, AdaptiveMisinformation(tau=0.9))
    clean, answers = deployed.session().answer(IMAGES)
    assert torch.allclose(clean, predict(IMAGES), atol=1e-6)
    assert (answers - clean).abs().sum(dim=1).min() > 0.1
    with pytest.raises(
        MadError, match=r"^defense=adaptive_misinformation with defense.outliers=others trains victim g"
    ):
        cell(victim=given, defense=AdaptiveMisinformation(outliers=OUTLIERS))
    with pytest.raises(MadError, match=r"^defense=adaptive_misinformation trains a network .*no image for train$"):
        cell(victim=Own(dataset=OnlyTest(), **parts), defense=AdaptiveMisinformation())


@pytest.mark.parametrize(("name", "value"), [("tau", -0.1), ("tau", 1.1), ("nu", 0), ("epsilon", 3), ("tau", None)])
def test_a_bad_setting_is_refused_by_name(name, value):
    with pytest.raises(MadError, match=rf"defense\.{name}"):
        AdaptiveMisinformation(**{name: value})


def test_the_command_line_chooses_outliers():
    assert build(compose("defense=adaptive_misinformation").defense) == AdaptiveMisinformation()
    line = ("defense=adaptive_misinformation", "defense/outliers=greek", "defense.outliers.size=50")
    assert build(compose(*line).defense).outliers == Greek(size=50)
    assert compose(line[0], "defense/outliers=kmnist_part").defense.outliers.name == "kmnist_part"
