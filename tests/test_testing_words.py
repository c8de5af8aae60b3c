"""What the checks for plug-ins say of the class of a plug-in, and of senseless arguments."""

import pytest
from broken import Wrong

import mad
from mad.attacks.knockoff_nets import KnockoffNets
from mad.defenses.mad import Mad
from mad.errors import MadError
from mad.recoveries import AsAnswered
from mad.testing import (
    Blobs,
    Linear,
    check_attack,
    check_defense,
    check_recovery,
    toy_adversary,
    toy_victim,
    trainer,
)


def with_class(base, **attributes):
    return type("Its", (base,), attributes)


@pytest.mark.parametrize(
    ("attributes", "what"),
    [
        ({"max_batch": 0}, "max_batch must be a whole number of at least 1, got 0"),
        ({"max_batch": 2.5}, "max_batch must be a whole number of at least 1, got 2.5"),
        ({"max_batch": True}, "max_batch must be a whole number of at least 1, got True"),
        ({"honest_queries": 0}, "honest_queries must be a whole number of at least 1, got 0"),
        ({"version": "2"}, "version must be a whole number of at least 1, got '2'"),
        ({"stateful": "no"}, "stateful must be true or false, got 'no'"),
        ({"needs_gradients": None}, "needs_gradients must be true or false, got None"),
        ({"schema": None}, "schema must be a tuple, got None"),
        ({"schema": ("a",)}, r"schema must be a tuple of mad\.schema\.Column, got 'a' in it"),
        ({"strength_parameter": 3}, "strength_parameter must name one of its fields, got 3"),
    ],
)
def test_what_the_class_of_a_defense_says_is_checked(attributes, what):
    defense = with_class(Wrong, **attributes)()
    with pytest.raises(MadError, match=f"^defense wrong: {what}$"):
        check_defense(defense)
    if "strength_parameter" not in attributes:
        with pytest.raises(MadError, match=f"^defense wrong: {what}$"):
            mad.deploy(toy_victim(), defense, outputs=None)


def test_what_the_class_of_another_plug_in_says_is_checked():
    for attributes, what in (({"online": "no"}, "online"), ({"knows": None}, "knows"), ({"schema": 3}, "schema")):
        with pytest.raises(MadError, match=f"^attack knockoff: {what} must be "):
            check_attack(with_class(KnockoffNets, **attributes)(30))
    for attributes, what in (({"trainings": -1.0}, "trainings"), ({"needs_images": 1}, "needs_images")):
        with pytest.raises(MadError, match=f"^recovery none: {what} must be "):
            check_recovery(with_class(AsAnswered, **attributes)())


@pytest.mark.parametrize("classes", [(), 4, "24", None, (1,), (0,), (2.5,), ("2",)])
def test_senseless_classes_are_a_line(classes):
    for check, part in ((check_defense, Mad(0.5)), (check_recovery, AsAnswered())):
        with pytest.raises(MadError, match=r"^classes must be "):
            check(part, classes)
    if not isinstance(classes, int):
        with pytest.raises(MadError, match=r"^classes must be a whole number of at least 2"):
            check_attack(KnockoffNets(30), classes)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: Blobs(1), "classes must be"),
        (lambda: Blobs(size=0), "size must be"),
        (lambda: Blobs(shape=8), r"shape must be \(C, H, W\), got 8"),
        (lambda: Blobs(shape=(8, 8)), "shape must be"),
        (lambda: Blobs(shape=(1, 0, 8)), "shape must be"),
        (lambda: Linear("abc", 3), "shape must be"),
        (lambda: Linear((1, 8, 8), 0), "classes must be"),
        (lambda: trainer(0), "epochs must be"),
        (lambda: toy_victim("a"), "classes must be"),
        (lambda: toy_adversary("argmax"), "recovery must be a Recovery"),
        (lambda: toy_adversary(classes=0), "classes must be"),
        (lambda: toy_adversary(seed="a"), "seed must be"),
    ],
)
def test_senseless_toys_are_a_line(call, what):
    with pytest.raises(MadError, match=f"^{what}") as refused:
        call()
    assert "\n" not in str(refused.value)
