"""The training loop, on blobs that a linear layer can tell apart."""

import pytest
import torch
import torch.nn.functional as F
from fitting import EXACT, SPLIT, fitted, weights
from torch import nn
from toys import CPU, Blobs, Moves, Streamed, Tiny, choices, compose, trainer, victim

from mad import training
from mad.datasets import batches
from mad.device import fast_bfloat16, warn_of_emulation
from mad.seeds import generator
from mad.training import DivergedError

PLAIN = {
    "sgd": lambda weights: torch.optim.SGD(weights, 0.02, weight_decay=0.01),
    "momentum": lambda weights: torch.optim.SGD(weights, 0.02, momentum=0.9, weight_decay=0.01),
    "adam": lambda weights: torch.optim.Adam(weights, 0.02, weight_decay=0.01),
    "adagrad": lambda weights: torch.optim.Adagrad(weights, 0.02, weight_decay=0.01),
}


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_the_loop_is_the_plain_one(optimizer):
    model = victim().untrained(seed=0, purpose="victim").double()
    plain, order = PLAIN[optimizer](model.parameters()), generator(3, "order of test")
    for _ in range(3):
        for rows in torch.randperm(len(SPLIT.labels), generator=order).split(30):
            plain.zero_grad()
            log = torch.log_softmax(model(EXACT[rows]), dim=1)
            (-log[torch.arange(len(rows)), SPLIT.labels[rows]].mean()).backward()
            plain.step()
    recipe = trainer(
        epochs=3, batch_size=30, optimizer=optimizer, learning_rate=0.02, weight_decay=0.01, schedule="step"
    )
    assert torch.allclose(weights(fitted(recipe, seed=3, images=EXACT)), weights(model), rtol=1e-10, atol=1e-10)


def test_rows_choose_the_images():
    rows = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:70]
    chosen = fitted(trainer(), SPLIT.labels[rows], rows=rows)
    assert torch.equal(weights(chosen), weights(fitted(trainer(), SPLIT.labels[rows], images=SPLIT.images[rows])))
    assert not torch.equal(weights(chosen), weights(fitted(trainer(), SPLIT.labels[:70], images=SPLIT.images[:70])))


@pytest.mark.parametrize("rows", [None, torch.arange(199, 20, -3)])
def test_a_stream_trains_to_the_same_bits(rows):
    recipe = trainer(epochs=2, augment="crop_flip")
    targets = SPLIT.labels if rows is None else SPLIT.labels[rows]
    before = torch.get_rng_state()
    whole, streamed = (
        fitted(recipe, targets, images=images, rows=rows) for images in (SPLIT.images, Streamed(SPLIT.images))
    )
    assert torch.equal(weights(whole), weights(streamed))
    logits = [training.logits_of(whole, images, CPU) for images in (SPLIT.images, Streamed(SPLIT.images))]
    assert torch.equal(*logits)
    assert torch.equal(before, torch.get_rng_state())


def test_large_images_are_scored_in_small_batches():
    sizes = []

    class Seen(torch.nn.Module):
        def forward(self, images):
            sizes.append(len(images))
            return images.flatten(1)[:, :2]

    for shape, expected in (((3, 32, 32), [70]), ((3, 224, 224), [66, 4])):
        sizes.clear()
        training.logits_of(Seen(), torch.zeros(70, *shape, dtype=torch.uint8), CPU)
        assert sizes == expected


def test_a_model_is_yielded_after_every_epoch():
    model, recipe = Tiny((1, 8, 8), 4), trainer(epochs=3)
    how = {"seed": 0, "device": CPU, "task": "test"}
    seen = [(done, weights(model)) for done in recipe.epochs_of(model, *SPLIT, **how)]
    assert [done for done, _ in seen] == [1, 2, 3]
    assert not torch.equal(seen[0][1], seen[1][1])
    assert model.training


def test_augmentation_follows_the_seed():
    recipe = trainer(epochs=2, augment="crop")
    first, again, other = (weights(fitted(recipe, seed=seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, weights(fitted(trainer(epochs=2), seed=5)))


def test_precision():
    auto, full, halves = (fitted(trainer(precision=name)) for name in ("auto", "float32", "bfloat16"))
    assert torch.equal(weights(auto), weights(full))  # on any CPU
    assert halves.head.weight.dtype == torch.float32
    assert not torch.equal(weights(full), weights(halves))
    assert torch.allclose(weights(full), weights(halves), atol=0.02)


@pytest.mark.parametrize(
    ("told", "limit", "fast"),
    [
        ({"avx512_bf16": True}, None, True),
        ({"avx512_bf16": True}, "avx512_core_bf16", True),
        ({"avx512_bf16": True}, "AVX512_CORE", False),
        ({"avx512_bf16": True}, "avx2", False),
        ({"avx512_bf16": False, "avx512_f": True, "avx2": True}, None, False),
        ({"bf16": True, "neon": True}, None, False),
    ],
)
def test_bfloat16_is_taken_where_the_cpu_has_units_for_it(monkeypatch, told, limit, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: told.get("avx512_bf16", False), raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert fast_bfloat16(CPU) is fast
    found = [trainer(precision=name).arithmetic(CPU) for name in ("auto", "float32", "bfloat16", "fast")]
    assert found == ["float32", "float32", "bfloat16", "bfloat16" if fast else "float32"]
    assert not fast_bfloat16(torch.device("mps"))


def test_no_config_names_a_precision_that_another_cpu_lacks():
    for name in choices("trainer"):
        assert compose(f"trainer={name}").trainer.precision in ("auto", "fast", "float32"), name


def test_emulated_bfloat16_is_told_once(monkeypatch, capfd):
    monkeypatch.setattr(training, "fast_bfloat16", lambda device: False)
    warn_of_emulation.cache_clear()
    for _ in range(2):
        fitted(trainer(precision="bfloat16", epochs=1))
    assert capfd.readouterr().err.count("trainer.precision=fast") == 1
    fitted(trainer(precision="fast", epochs=1))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_labels_and_one_hot_posteriors_are_the_same(optimizer):
    recipe = trainer(epochs=2, optimizer=optimizer, learning_rate=0.01)
    hard, soft = (
        fitted(recipe, targets, images=EXACT) for targets in (SPLIT.labels, F.one_hot(SPLIT.labels, 4).double())
    )
    assert torch.allclose(weights(hard), weights(soft), rtol=1e-10, atol=1e-10)


def test_soft_targets_are_learned_as_soft():
    recipe = trainer(epochs=60, schedule="step", learning_rate=0.05)
    targets = torch.tensor([0.7, 0.3, 0.0, 0.0]).expand(len(SPLIT.labels), 4)
    answers = torch.softmax(fitted(recipe, targets)(SPLIT.images / 255), dim=1)
    assert torch.allclose(answers.mean(dim=0), targets[0], atol=0.03)


def test_same_seed_same_weights():
    first, again, other = (weights(fitted(trainer(), seed=seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_victims_follow_their_seed_alone():
    first = weights(victim(seed=3).train(CPU))
    torch.rand(7)
    assert torch.equal(first, weights(victim(seed=3).train(CPU)))
    assert not torch.equal(first, weights(victim(seed=4).train(CPU)))


def test_training_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    victim().train(CPU)
    assert torch.equal(before, torch.get_rng_state())


class Opposed(Tiny):
    """Weights that are not finite reach no answer."""

    def forward(self, images):
        self.head.bias.data[0] = -torch.inf
        return super().forward(images)


@pytest.mark.parametrize(
    ("architecture", "rate", "finite"), [(Tiny, 1e38, False), (Tiny, 3e38, True), (Opposed, 0.1, False)]
)
def test_what_ends_in_no_finite_numbers_is_no_network(architecture, rate, finite):
    """Neither in its weights nor, where those are finite and large, in its answers."""
    recipe = trainer(epochs=1, batch_size=200, optimizer="sgd", schedule="constant", learning_rate=rate)
    recipe = recipe.but(epochs=1 if finite else 4)
    model = victim(architecture=architecture).untrained(seed=0, purpose="victim")
    with pytest.raises(DivergedError, match=r"^the training of victim x diverged at learning_rate=[\de.+]+: .*lower"):
        recipe.fit(model, SPLIT.images, SPLIT.labels, seed=0, device=CPU, task="victim x")
    assert weights(model).isfinite().all() == finite


def test_eval_mode_afterwards():
    model = Tiny((1, 8, 8), 4).train()
    trainer(epochs=1).fit(model, SPLIT.images, SPLIT.labels, seed=0, device=CPU, task="test")
    assert not model.training
    assert not victim().train(CPU).training


def test_learns_blobs():
    test = Blobs().test()
    found = training.logits_of(victim().train(CPU), test.images, CPU).argmax(dim=1)
    assert (found == test.labels).float().mean() > 0.9


def test_images_and_their_floats_train_alike():
    floats = fitted(trainer(), images=SPLIT.images / 255)
    assert torch.equal(weights(fitted(trainer())), weights(floats))


@pytest.mark.parametrize("rows", [None, torch.arange(40, 0, -1)])
def test_large_images_are_moved_batch_by_batch(monkeypatch, rows):
    images, device = SPLIT.images[:41], torch.device("meta")
    targets = SPLIT.labels[: 41 if rows is None else 40]

    def moves(limit):
        monkeypatch.setattr("mad.datasets.base.IN_MEMORY", limit)
        with Moves() as moved:
            sizes = [len(batch) for batch in batches(images, rows, 20, device)]
        model, how = Tiny((1, 8, 8), 4), {"rows": rows, "seed": 0, "device": device, "task": "test"}
        with Moves() as trained:
            list(trainer(epochs=2).epochs_of(model, images, targets, **how))
        return sizes, moved.sizes, trained.sizes

    # ``meta`` has no lower precisions to switch on
    monkeypatch.setattr(training.Trainer, "loss", lambda _, model, images, targets: model(images.float()).mean())
    whole = [20, 20, 1] if rows is None else [20, 20]
    assert moves(images.nbytes) == (whole, [41], [41])
    assert moves(images.nbytes - 1) == (whole, whole, whole * 2)


def test_large_images_train_to_the_same_bits(monkeypatch):
    small = weights(fitted(trainer(augment="crop")))
    monkeypatch.setattr("mad.datasets.base.IN_MEMORY", 0)
    assert torch.equal(small, weights(fitted(trainer(augment="crop"))))


def test_adagrad_is_fused_on_cpus_alone():
    """Older versions of torch refuse it elsewhere."""
    recipe, model = trainer(optimizer="adagrad"), Tiny((1, 8, 8), 4)
    fused = [recipe._optimizer(model, torch.device(kind)).defaults["fused"] for kind in ("cpu", "cuda")]
    assert fused == [True, False]


def test_dropout_is_drawn_from_the_seed():
    def dropped(seed, state):
        torch.manual_seed(state)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 4))
        for value in model[2].parameters():
            nn.init.zeros_(value)
        before = torch.get_rng_state()
        trainer(epochs=2).fit(model, SPLIT.images, SPLIT.labels, seed=seed, device=CPU, task="dropout")
        assert torch.equal(torch.get_rng_state(), before)
        return model[2].weight

    assert torch.equal(dropped(0, state=1), dropped(0, state=2))
    assert not torch.equal(dropped(0, state=1), dropped(1, state=1))


class Normed(nn.Module):
    """A network with a batch norm over one value a channel and image."""

    def __init__(self):
        super().__init__()
        self.head, self.norm = nn.Linear(64, 4), nn.BatchNorm1d(4)

    def forward(self, images):
        return self.norm(self.head(images.flatten(1)))


def test_a_batch_norm_never_gets_a_single_image():
    recipe = trainer(batch_size=20, epochs=2)
    recipe.fit(Normed(), SPLIT.images[:41], SPLIT.labels[:41], seed=0, device=CPU, task="test")
    assert training.refuses_one(Normed(), (1, 8, 8))
    assert not training.refuses_one(Tiny((1, 8, 8), 4), (1, 8, 8))
    wide = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(72, 4))
    mean, before = wide[1].running_mean.clone(), torch.get_rng_state()
    assert not training.refuses_one(wide, (1, 8, 8))  # whose maps have several places
    assert torch.equal(wide[1].running_mean, mean)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("network", "sizes"), [(Normed(), [20, 21]), (Tiny((1, 8, 8), 4), [20, 20, 1])])
def test_a_single_image_joins_the_batch_before_it_where_it_must(network, sizes):
    seen = []
    network.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])) if module.training else None)
    trainer(batch_size=20, epochs=1).fit(network, SPLIT.images[:41], SPLIT.labels[:41], seed=0, device=CPU, task="test")
    assert seen[-len(sizes) :] == sizes
