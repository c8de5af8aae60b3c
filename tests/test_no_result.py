"""Thefts that are no result: what diverged, and what learned nothing."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CPU, Blobs, Tiny, cell, trainer, victim

from mad.attacks import TransferSet
from mad.attacks.adaptive import KnockoffAdaptive
from mad.attacks.jbda import Jbda
from mad.attacks.knockoff_nets import KnockoffNets
from mad.attacks.online import Online
from mad.defenses.dp_sgd import DpSgd
from mad.defenses.mad import Mad
from mad.defenses.surrogates import AdversarySurrogate, TrainedSurrogate
from mad.errors import MadError
from mad.knockoff import Knockoff
from mad.pipeline import run
from mad.storage.store import Store


@pytest.mark.parametrize(("rate", "learned"), [(0.05, True), (1e-9, False), (1e3, False)])
@pytest.mark.parametrize("attack", [KnockoffNets, Online])
def test_a_thief_that_learned_nothing_is_told(tmp_path, rate, learned, attack):
    given = Knockoff(trainer(), learning_rate=rate)
    attack = attack(100, batch_size=2, learning_rate=rate) if attack is Online else attack(100)
    assert run(cell(knockoff=given, attack=attack), Store(tmp_path), CPU)[0]["learned"] is learned


def test_a_thief_that_says_one_thing_to_everything_learned_nothing():
    toy, images = cell().adversary(CPU), Blobs().images((1, 8, 8))
    answers = F.one_hot(torch.arange(20) % 2, 4).float()
    constant = Tiny((1, 8, 8), 4)
    nn.init.zeros_(constant.head.weight)
    constant.head.bias.data = answers.mean(dim=0).log().clamp(min=-50)
    for noise in (0, 1e-6):  # what rounding, and no more than that, makes of one answer
        constant.head.weight.data[0] += noise
        assert not toy.learned(constant, TransferSet(images, torch.arange(20), answers))


DIVERGING = {
    "a knockoff": ({"knockoff": Knockoff(trainer(), optimizer="sgd", learning_rate=3e38)}, r"of knockoff .*=3e\+38"),
    "a victim": ({"victim": victim(trainer=trainer(learning_rate=3e38))}, "of victim toy "),
    "a surrogate": ({"defense": Mad(0.5, TrainedSurrogate(trainer(learning_rate=3e38)))}, "of victim surrogate "),
    "a private victim": ({"defense": DpSgd(learning_rate=3e38, epochs=1, min_steps=5)}, "of victim toy-dp_sgd "),
    "a substitute": ({"attack": Jbda(50, seeds=20, learning_rate=1e30)}, "substitute 0 .*attack.learning_rate"),
    "an online network": ({"attack": Online(50, batch_size=2, learning_rate=3e38)}, "online .*attack.learning_rate"),
    "a white box": (
        {"attack": Online(50, batch_size=2, learning_rate=3e38), "defense": Mad(0.5, AdversarySurrogate())},
        "online .*attack.learning_rate",
    ),
    "a policy": ({"attack": KnockoffAdaptive(150, learning_rate=1e38)}, "adaptive .*attack.learning_rate"),
}


@pytest.mark.parametrize("kind", DIVERGING)
def test_what_diverged_is_no_result(tmp_path, kind):
    changes, why = DIVERGING[kind]
    with pytest.raises(MadError, match=why) as failed:
        run(cell(**{"pool": LabelledBlobs(), **changes}), Store(tmp_path), CPU)
    assert "\n" not in str(failed.value)
    assert not list(tmp_path.glob("runs/**/record.json"))


@dataclass(frozen=True)
class LabelledBlobs(Blobs):
    """Blobs that say which class each is of."""

    def labels(self):
        return self.split("pool").labels


@dataclass(frozen=True)
class Broken(KnockoffNets):
    """An attack that brings home a network whose answers are no posteriors, its weights being finite."""

    depends_on_answers = True

    def run(self, api, pool, adversary):
        network = adversary.untrained()
        network.head.weight.data.fill_(3e38)
        return replace(super().run(api, pool, adversary), network=network.eval())


def test_a_stolen_network_whose_answers_are_no_posteriors_is_no_result(tmp_path):
    with pytest.raises(MadError, match=r"^the stolen network answers with NaN or infinities: .*learning_rate$"):
        run(cell(attack=Broken(50)), Store(tmp_path), CPU)
    assert not list(tmp_path.glob("runs/**/record.json"))


def test_a_record_says_which_precision_was_used(tmp_path):
    for name, attack, used in (
        ("float32", KnockoffNets(50), "float32"),
        ("auto", KnockoffNets(50), "float32"),
        ("bfloat16", KnockoffNets(50), "bfloat16"),
        ("bfloat16", Online(50, batch_size=5), "float32"),
    ):
        made = cell(knockoff=Knockoff(trainer(precision=name, epochs=1)), attack=attack)
        assert run(made, Store(tmp_path), CPU)[0]["precision"] == used


def test_where_all_answers_are_one_there_is_nothing_to_learn():
    toy = cell().adversary(CPU)
    images = Blobs().images((1, 8, 8))
    same = TransferSet(images, torch.arange(20), torch.eye(4)[[0]].expand(20, 4))
    assert toy.learned(toy.train(same), same)
    assert not toy.learned(toy.untrained(), same)


def test_answers_in_the_order_of_their_classes_are_judged_as_a_whole():
    toy, split = cell().adversary(CPU), Blobs(size=5000).train()
    rows = split.labels.argsort()
    ordered = TransferSet(split.images, rows, F.one_hot(split.labels[rows], 4).float())
    assert toy.learned(toy.train(ordered), ordered)
    first = Tiny((1, 8, 8), 4)
    nn.init.zeros_(first.head.weight)
    first.head.bias.data = torch.tensor([30.0, 0, 0, 0])
    assert not toy.learned(first, ordered)  # it is right about the first thousand


def test_of_many_classes_a_weak_thief_has_learned():
    classes, count = 500, 12_000
    rows = torch.arange(count)
    images = torch.stack([rows // 256, rows % 256], dim=1).to(torch.uint8).view(count, 1, 1, 2)
    answers = F.one_hot(rows % classes, classes).float()

    class Weak(nn.Module):
        def forward(self, images):
            place = (255 * images).round().long().flatten(1)
            return 0.2 * F.one_hot((256 * place[:, 0] + place[:, 1]) % classes, classes)

    toy = replace(cell().adversary(CPU), shape=(1, 1, 2), classes=classes)
    assert toy.learned(Weak().eval(), TransferSet(images, rows, answers))
