"""The checks for plug-ins: what is shipped passes them, and what breaks its contract is named."""

import secrets
from dataclasses import dataclass, replace

import pytest
import torch
from broken import Wrong
from torch import nn
from toys import Tiny

from mad.attacks import Stolen, TransferSet
from mad.attacks.adaptive import KnockoffAdaptive
from mad.attacks.jbda import Jbda
from mad.attacks.jbtopk import JbTopK
from mad.attacks.knockoff_nets import KnockoffNets
from mad.attacks.online import Online
from mad.defenses import Undefended
from mad.defenses.argmax import Argmax as ArgmaxDefense
from mad.defenses.mad import Mad
from mad.defenses.random_noise import RandomNoise
from mad.defenses.reverse_sigmoid import ReverseSigmoid
from mad.defenses.rounding import Rounding
from mad.defenses.top_k import TopK
from mad.errors import MadError
from mad.recoveries import AsAnswered, Recovery
from mad.recoveries.argmax import Argmax
from mad.testing import (
    check_attack,
    check_defense,
    check_recovery,
    check_victim,
    toy_victim,
)

DEFENSES = [Undefended(), Mad(0.5), Mad(0.5, gradient="all"), RandomNoise(0.5), ReverseSigmoid(), Rounding(), TopK(1)]
ATTACKS = [KnockoffNets(30), Online(30), KnockoffAdaptive(30), Jbda(30, seeds=10), JbTopK(budget=40, seeds=10, k=2)]


@pytest.mark.parametrize("defense", [*DEFENSES, ArgmaxDefense()], ids=lambda part: part.name)
def test_shipped_defenses_pass(defense):
    check_defense(defense, classes=(4,))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda part: part.name)
def test_shipped_attacks_pass(attack):
    check_attack(attack)


@pytest.mark.parametrize("recovery", [AsAnswered(), Argmax()], ids=lambda part: part.name)
def test_shipped_recoveries_pass(recovery):
    check_recovery(recovery)


def test_a_victim_passes():
    check_victim(toy_victim())


BROKEN = {
    "beside": "smaller batches|another order",
    "global": "prepared twice",
    "place": "another order",
    "in place": "changed in place",
    "undeclared": "not in its schema",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_defense_that_breaks_its_contract_is_named(how):
    with pytest.raises(MadError, match=rf"defense wrong.*({BROKEN[how]})"):
        check_defense(Wrong(how=how))
    check_defense(Wrong(how="none"))


def test_a_defense_that_reads_held_out_images_says_so():
    class Calibrated(Wrong):
        def prepare(self, context):
            context.victim.validation_split()

    class Saying(Calibrated):
        needs_validation = True

    with pytest.raises(MadError, match=r"defense wrong must say needs_validation = True .* set victim\.validation"):
        check_defense(Calibrated(how="none"))
    check_defense(Saying(how="none"), classes=(4,))


@dataclass
class Forgetful(Wrong):
    """Carry over to the next client what the last one asked."""

    name = "forgetful"
    stateful = True

    def prepare(self, context):
        self.asked = []

    def perturb(self, images, clean):
        self.asked.append(1)
        return clean if len(self.asked) % 3 else clean.flip(1)


def test_a_defense_whose_sessions_do_not_start_alike_is_named():
    class Remembering(Forgetful):
        asked = []  # noqa: RUF012  # of all, which is what is wrong

        def prepare(self, context):
            pass

    with pytest.raises(MadError, match=r"defense forgetful.* prepared twice"):
        check_defense(Remembering(), classes=(4,))


@dataclass
class Loose(AsAnswered):
    """Break the contract of a hook."""

    name = "loose"
    how: str = "columns"

    def columns(self):
        return {"more": 1} if self.how == "columns" else {}

    def keeps(self, answers, images=None):
        return answers if self.how == "keeps" else answers[:, 0] > 0.5


@pytest.mark.parametrize(("how", "what"), [("columns", "not in its schema"), ("keeps", "a tensor of bool")])
def test_a_recovery_whose_hooks_are_wrong_is_named(how, what):
    with pytest.raises(MadError, match=f"recovery loose.*{what}"):
        check_recovery(Loose(how), classes=(4,))
    check_recovery(Loose("none"), classes=(4,))


@pytest.mark.parametrize("check", [check_attack, check_defense, check_recovery, check_victim])
@pytest.mark.parametrize("given", [KnockoffNets, Mad, AsAnswered, None, "mad"])
def test_what_is_no_plug_in_is_named(check, given):
    with pytest.raises(MadError, match=rf"^{check.__name__} takes an? .*, got "):
        check(given)


@dataclass(frozen=True)
class Drawing(KnockoffNets):
    """Ask about other images each time."""

    name = "drawing"

    def run(self, api, pool, adversary):
        return super().run(api, pool, replace(adversary, seed=secrets.randbits(30)))


@dataclass(frozen=True)
class Secretly(KnockoffNets):
    """Choose by the answers, and say that it does not."""

    name = "secretly"

    def run(self, api, pool, adversary):
        answers = api(pool[: api.budget] / 255)
        rows = answers[:, 0].argsort()
        return Stolen(transfer=TransferSet(pool, rows, answers[rows]))


@dataclass(frozen=True)
class Changing(KnockoffNets):
    """Write into the pool."""

    name = "changing"

    def run(self, api, pool, adversary):
        found = super().run(api, pool, adversary)
        pool[0] = 0
        return found


def test_attacks_that_break_their_contract_are_named():
    with pytest.raises(MadError, match="attack drawing"):
        check_attack(Drawing(30))
    with pytest.raises(MadError, match=r"attack secretly: .*depends_on_answers must be True"):
        check_attack(Secretly(30))
    with pytest.raises(MadError, match=r"attack changing.* changed what it was given"):
        check_attack(Changing(30))

    class Oracle(KnockoffNets):
        knows = ("everything",)

    with pytest.raises(MadError, match="attack knockoff: what it knows must be one of"):
        check_attack(Oracle(30))


@dataclass
class Bad(Recovery):
    """Break the contract in one way."""

    name = "bad"
    how: str = "none"

    def prepare(self, adversary, transfer):
        if self.how == "itself":
            transfer.answers.copy_(transfer.answers.roll(1, dims=1))

    def __call__(self, answers, images=None):
        if self.how == "drawn":
            return torch.rand_like(answers).softmax(dim=1)
        return answers * 2 if self.how == "rows" else answers


@pytest.mark.parametrize(("how", "why"), [("rows", "sum to 1"), ("itself", "changed"), ("drawn", "global generator")])
def test_recoveries_that_break_their_contract_are_named(how, why):
    with pytest.raises(MadError, match=f"recovery bad.*{why}"):
        check_recovery(Bad(how=how))


def test_a_recovery_that_knows_what_nobody_can_is_named():
    class Oracle(Bad):
        knows = ("everything",)

    with pytest.raises(MadError, match="what it knows must be one of"):
        check_recovery(Oracle())


class Mixing(Tiny):
    """Answers by what is beside an image."""

    def forward(self, images):
        logits = super().forward(images)
        return logits - logits.mean(dim=0)


def test_a_victim_that_mixes_images_is_named():
    with pytest.raises(MadError, match="victim toy, one image at a time"):
        check_victim(replace(toy_victim(), architecture=Mixing))
    with pytest.raises(MadError, match=r"victim toy must answer .* with logits \(2, 4\)"):
        check_victim(replace(toy_victim(), architecture=lambda shape, classes: nn.Flatten()))


@dataclass
class Small(Wrong):
    """Fail for more images at once than it can take."""

    name = "small"

    def perturb(self, images, clean):
        if len(clean) > 4:
            raise MadError(f"small got {len(clean)} images")
        return clean


def test_a_defense_is_given_no_more_images_at_once_than_it_takes():
    class Saying(Small):
        max_batch = 4

    class Overstating(Small):
        max_batch = 5

    check_defense(Saying(), classes=(4,))
    for defense, count in ((Small(), 12), (Overstating(), 5)):
        with pytest.raises(MadError, match=f"small got {count} images"):
            check_defense(defense, classes=(4,))
