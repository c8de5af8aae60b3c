"""DP-SGD: the served victim is trained as Abadi et al. say, once, and its privacy is in the record."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CPU, Blobs, Streamed, Tiny, cell, victim

from mad.architectures import imagenet
from mad.architectures.fast_resnet import FastResNet
from mad.architectures.lenet import LeNet
from mad.architectures.library import Torchvision
from mad.architectures.resnet import BasicBlock, Bottleneck, ResNet
from mad.architectures.vgg import VGG16BN
from mad.cache import Cache
from mad.defenses import Context
from mad.defenses.dp_sgd import DpSgd, PrivateTrainer, group_normed
from mad.pipeline import run
from mad.seeds import derive, generator
from mad.storage.fingerprint import describe, digest
from mad.storage.store import Store

SPLIT = Blobs().train()


QUICK = {"batch_size": 40, "epochs": 6, "min_steps": 0}


class BasicNet(ResNet):
    block, depths = BasicBlock, (1, 1, 0, 0)


class BottleneckNet(ResNet):
    block, depths = Bottleneck, (1, 1, 0, 0)


MIXING = [FastResNet, VGG16BN, BasicNet, BottleneckNet]  # they have batch norms, which mix images


def enlarged(size):
    return F.interpolate(SPLIT.images[:size].float(), size=(16, 16)).to(torch.uint8)


def exact(images):
    """Images in [0, 1] in float64, in which what rounding adds is below 1e-9 on every CPU."""
    return images.double() / 255


def private(**changes):
    recipe = {"epochs": 2, "batch_size": 40, "optimizer": "momentum", "learning_rate": 0.1, "momentum": 0.9}
    return PrivateTrainer(**{**recipe, "weight_decay": 0.0, "schedule": "step", **changes})


def fitted(recipe, seed=3, architecture=Tiny, images=SPLIT.images, **how):
    model = victim(architecture=architecture, shape=images.shape[1:]).untrained(seed=0, purpose="victim")
    model = model.double() if images.dtype == torch.float64 else model
    recipe.fit(model, images, SPLIT.labels[: len(images)], seed=seed, device=CPU, task="test", **how)
    return model


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def gradient(model, image, label, most):
    """The clipped gradient of one image."""
    found = torch.autograd.grad(F.cross_entropy(model(image[None]), label[None]), list(model.parameters()))
    norm = math.sqrt(sum(part.square().sum().item() for part in found))
    return [part * min(1.0, most / (norm + 1e-6)) for part in found]


def slow_twin(recipe, model, images, batch, epochs):
    """Train a model as a recipe says, one image of ``exact`` after the other."""
    model = model.double()
    optimizer, size, most = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), len(images), recipe.max_grad_norm
    order, blur = generator(3, "order of test"), torch.Generator().manual_seed(derive(3, "noise of test"))
    for _ in range(epochs * -(-size // batch)):
        chosen = (torch.rand(size, generator=order) < batch / size).nonzero().squeeze(1)
        found = [gradient(model, images[row], SPLIT.labels[row], most) for row in chosen]
        for place, parameter in enumerate(model.parameters()):
            deviation = recipe.noise_multiplier * most
            blurred = (
                torch.normal(0.0, deviation, parameter.shape, generator=blur, dtype=torch.float64) if deviation else 0
            )
            parameter.grad = (sum(each[place] for each in found) + blurred) / batch
        optimizer.step()
    return model


@pytest.mark.parametrize(("noise", "most"), [(0.0, 1e6), (0.0, 0.5), (1.3, 0.5)])
def test_training_is_its_formula(noise, most):
    recipe, images = private(noise_multiplier=noise, max_grad_norm=most), exact(SPLIT.images)
    model = slow_twin(recipe, victim().untrained(seed=0, purpose="victim"), images, batch=40, epochs=2)
    assert torch.allclose(weights(fitted(recipe, images=images)), weights(model), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("most", [1e6, 0.5])
@pytest.mark.parametrize("architecture", MIXING)
def test_with_group_norms_training_is_its_formula_too(architecture, most):
    images, recipe = exact(enlarged(6)), private(noise_multiplier=0.0, max_grad_norm=most, batch_size=3, epochs=1)
    architecture = DpSgd().recipe(victim(architecture=architecture, shape=(1, 16, 16))).architecture
    start = victim(architecture=architecture, shape=(1, 16, 16)).untrained(seed=0, purpose="victim")
    first = weights(start.double())
    moved, right = (
        weights(model) - first
        for model in (fitted(recipe, 3, architecture, images), slow_twin(recipe, start, images, batch=3, epochs=1))
    )
    assert (moved - right).norm() < 1e-9 * right.norm()


def test_the_noise_is_as_large_as_it_says():
    one_step = {"epochs": 1, "batch_size": 200, "max_grad_norm": 0.7}
    plain, noisy = (weights(fitted(private(noise_multiplier=noise, **one_step))) for noise in (0.0, 2.0))
    deviation = (noisy - plain).std().item() * 200 / 0.1
    assert deviation == pytest.approx(2.0 * 0.7, rel=0.15)


@pytest.mark.parametrize("architecture", [Tiny, LeNet])
def test_the_model_comes_out_as_its_architecture_makes_it(architecture):
    images = enlarged(50)
    model = fitted(private(epochs=1, batch_size=20), architecture=architecture, images=images)
    fresh = architecture(shape=(1, 16, 16), classes=4).eval()
    assert type(model) is type(fresh)
    assert not torch.equal(weights(model), weights(fitted(private(epochs=1), 4, architecture, images)))
    for part, its_twin in zip(model.modules(), fresh.modules(), strict=True):
        assert vars(part).keys() == vars(its_twin).keys()
        assert not part._forward_hooks
        assert not part._backward_hooks
        assert not part.training
    assert not any(vars(parameter) for parameter in model.parameters())
    fresh.load_state_dict(model.state_dict())


@pytest.mark.parametrize("architecture", MIXING)
def test_batch_norms_are_served_as_group_norms_and_all_else_as_it_was(architecture):
    own = victim(architecture=architecture, shape=(1, 16, 16))
    DpSgd().check(own)
    theirs, served = (each.untrained(seed=0, purpose="victim") for each in (own, DpSgd().recipe(own)))
    for part, its_twin in zip(theirs.modules(), served.modules(), strict=True):
        if isinstance(part, nn.BatchNorm2d):
            assert type(its_twin) is nn.GroupNorm
            assert its_twin.num_channels == part.num_features
        else:
            assert type(its_twin) is type(part)
            assert getattr(its_twin, "inplace", None) == getattr(part, "inplace", None)
            for value, its_value in zip(part.parameters(False), its_twin.parameters(False), strict=True):
                assert torch.equal(value, its_value)


def test_what_is_served_does_not_mix_images_and_is_kept(tmp_path):
    kept = DpSgd(**QUICK).recipe(victim(architecture=FastResNet, shape=(1, 9, 9)))
    kept = replace(kept, dataset=Blobs(4, (1, 9, 9), size=9), trainer=kept.trainer.but(epochs=1))
    images = kept.dataset.test().images / 255
    first, again = (Store(tmp_path).victim(kept, CPU)[0] for _ in range(2))
    assert torch.equal(weights(first), weights(again))
    first, images = first.double().train(), images.double()
    assert torch.allclose(first(images)[:1], first(images[:1]), rtol=1e-9, atol=1e-9)


def test_only_batch_norm_changes_the_architecture_and_its_fingerprint():
    assert DpSgd().recipe(victim(architecture=LeNet, shape=(1, 16, 16))).architecture is LeNet
    named = [partial(Torchvision, name=name) for name in ("mobilenet_v2", "shufflenet_v2_x0_5")]
    own = [victim(architecture=made, shape=(3, 32, 32)) for made in (FastResNet, VGG16BN, *named)]
    described = [describe(DpSgd().recipe(each).architecture) for each in own]
    assert described[0]["args"] == [describe(FastResNet)]
    assert len({digest(each) for each in described}) == len(own)


def test_no_weights_are_fetched_to_check(monkeypatch):
    monkeypatch.setattr(imagenet, "published", lambda name: pytest.fail("fetched"))
    own = victim(architecture=partial(BasicNet, weights="imagenet"), shape=(3, 16, 16))
    DpSgd().check(own)
    DpSgd().recipe(own)


def test_same_seed_same_weights_and_the_global_generator_stays():
    before = torch.get_rng_state()
    first, again, other = (weights(fitted(private(), seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_a_step_may_draw_no_image_and_a_set_may_be_smaller_than_a_batch():
    few = SPLIT.images[:9]
    assert weights(fitted(private(batch_size=1), images=few)).isfinite().all()
    assert weights(fitted(private(batch_size=50), images=few)).isfinite().all()
    grouped = partial(group_normed, FastResNet)
    assert weights(fitted(private(batch_size=1, epochs=1), architecture=grouped, images=enlarged(4))).isfinite().all()


def test_rows_and_streams_train_alike():
    rows = torch.arange(199, 100, -2)
    how = {"rows": rows, "seed": 0, "device": CPU, "task": "test"}
    models = []
    for images in (SPLIT.images, Streamed(SPLIT.images)):
        models.append(victim().untrained(seed=0, purpose="victim"))
        private(epochs=1, batch_size=25).fit(models[-1], images, SPLIT.labels[rows], **how)
    assert torch.equal(*map(weights, models))


def test_more_noise_is_more_private_and_more_steps_are_less():
    spent = [DpSgd(noise_multiplier=noise).trainer().spent(60000, 1e-5) for noise in (0.01, 0.3, 0.5, 1, 2, 4, 16)]
    assert spent == sorted(spent, reverse=True)
    assert len(set(spent)) == len(spent)
    assert all(map(math.isfinite, spent))
    longer, larger = DpSgd(epochs=40), DpSgd(batch_size=1024)
    assert min(each.trainer().spent(60000, 1e-5) for each in (longer, larger)) > DpSgd().trainer().spent(60000, 1e-5)
    assert DpSgd().trainer().spent(60000, 1e-7) > DpSgd().trainer().spent(60000, 1e-5)
    assert DpSgd(noise_multiplier=1000).trainer().spent(60000, 0.9) == 0  # the accountant's bound is below 0


def test_the_accountant_knows_the_gaussian_mechanism():
    """With every image in every step the Renyi divergence of n steps is n a / (2 s^2) at order a."""
    noise, steps, delta = 3.0, 7, 1e-5
    spent = private(batch_size=100, epochs=steps, noise_multiplier=noise).spent(100, delta)
    plain = min(steps * a / (2 * noise**2) - math.log(delta) / (a - 1) for a in torch.arange(1.1, 60, 0.1).tolist())
    tail = [a / 10 for a in range(11, 600)]
    tight = min(
        steps * a / (2 * noise**2) + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1) for a in tail
    )
    assert tight - 1e-6 <= spent <= plain
    assert spent == pytest.approx(tight, abs=0.02)


def test_the_private_victim_is_trained_once_and_its_privacy_recorded(tmp_path, fits):
    made = [cell(defense=DpSgd(**QUICK, delta=delta, noise_multiplier=300)) for delta in (1e-5, 1e-3)]
    first, second = (run(each, Store(tmp_path), CPU)[0] for each in made)
    assert fits == ["victim toy", "victim toy-dp_sgd", "knockoff", "knockoff"]
    assert (first["strength_parameter"], first["strength"], first["epsilon"]) == ("noise_multiplier", 300, None)
    assert first["dp_epsilon"] == made[0].defense.trainer().spent(200, 1e-5) > second["dp_epsilon"] > 0
    assert first["dp_delta"] == 1e-5
    assert first["l1_max"] < 1e-6
    assert first["victim_accuracy"] > 0.9 > 0.6 > first["defended_accuracy"]
    assert "dp_epsilon" not in run(cell(), Store(tmp_path), CPU)[0]
    assert len(list(tmp_path.glob("victims/toy-dp_sgd/*/weights.safetensors"))) == 1


def test_more_noise_is_a_worse_victim():
    labels = Blobs().test().labels
    correct = []
    for noise in (0.3, 300):
        context = Context(victim(), nn.Identity(), 0, CPU, cache=Cache())
        served = DpSgd(noise_multiplier=noise, **QUICK, learning_rate=0.3).serve(context)
        correct.append((served(Blobs().test().images / 255).argmax(dim=1) == labels).float().mean())
    assert correct[0] > 0.9 > 0.6 > correct[1]


def test_all_that_changes_the_weights_names_them():
    changes = [{}, {"noise_multiplier": 2.0}, {"max_grad_norm": 2.0}, {"batch_size": 100}, {"epochs": 7}]
    changes += [{"learning_rate": 0.2}, {"min_steps": 1}]
    names = [str(describe(DpSgd(**change).recipe(victim()))) for change in changes]
    assert len(set(names)) == len(names)
    assert str(describe(DpSgd(delta=1e-3).recipe(victim()))) == names[0]
    assert cell(defense=DpSgd(delta=1e-3)).fingerprint != cell(defense=DpSgd()).fingerprint
    assert DpSgd().recipe(replace(victim(), seed=4)).seed == 4
