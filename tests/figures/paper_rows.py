"""Records such as the paper's figures are drawn from."""

import numpy as np
from figure_rows import row

from mad.cli import configs
from mad.figures import cells
from mad.storage import records

NAMES = sorted(file.stem for file in (configs.config_dir() / "experiment" / "paper").glob("*.yaml"))


LETTERS = ("knockoff", "jbda", "jbself", "jbtop3")


def paper_row(defense, strength, seed, stolen, **more):
    """Return a made-up record of knockoff on MNIST: L1 as the strength, half a point lost at 0.95, all at 1.1, ..."""
    more = {"strength_parameter": "epsilon", **more}
    defended = {0.95: 0.985, 1.1: 0.0, 150.0: 0.5}.get(strength, 0.99)
    name = "-".join(map(str, (defense, strength, seed, *more.values())))
    columns = {
        "victim": "mnist",
        "victim_accuracy": 0.99,
        "architecture": "lenet",
        "attack_settings": "",
        "knockoff_architecture": "lenet",
        "knockoff_optimizer": "momentum",
        "knockoff_epochs": 6,
        "strength": strength,
        "fingerprint": name,
        "comparison_group": "-".join(
            map(str, (v for k, v in more.items() if k not in ("strength_parameter", "defense_settings", "test_loss")))
        ),
    }
    return row(defense, strength, seed, defended, stolen, strength, **(columns | more))


def curve_rows(defense, levels, seeds=(0, 1), **more):
    return [paper_row(defense, at, seed, level + 0.01 * seed, **more) for at, level in levels.items() for seed in seeds]


MAD = {0.5: 0.8, 0.95: 0.7, 1.1: 0.3}


KNOCKOFF = [*curve_rows("none", {0.0: 0.96}), *curve_rows("mad", MAD)]


def theft(rows):
    (found,) = cells.thefts(records.frame(rows))
    return found


def jacobian(attack, undefended, levels):
    return [*curve_rows("none", {0.0: undefended}, attack=attack), *curve_rows("mad", levels, attack=attack)]


THREE = [each for name in LETTERS[1:] for each in jacobian(name, 0.9, {0.95: 0.4})]


NOISE = curve_rows(
    "random_noise", {50.0: 0.9, 100.0: 0.65, 150.0: 0.6}, strength_parameter="scale", comparison_group=""
)


DP = curve_rows("dp_sgd", {1.0: 0.9}, strength_parameter="noise_multiplier", comparison_group="")


TOP = [
    *curve_rows("none", {0.0: 0.95}, recovery="argmax"),
    *curve_rows("mad", {0.95: 0.88}, recovery="argmax"),
    *curve_rows("mad_argmax", {0.95: 0.94}, recovery="argmax"),
]


ARGMAX = curve_rows("mad_argmax", {0.95: 0.75})


ABLATED = [*curve_rows("mad_identity", {0.95: 0.85}), *curve_rows("mad_random", {0.95: 0.9})]


ADAM = [
    *curve_rows("none", {0.0: 0.97}, knockoff_optimizer="adam"),
    *curve_rows("mad", {0.95: 0.72}, knockoff_optimizer="adam"),
]


FEWER = [
    *curve_rows("none", {0.0: 0.5}, budget=5),
    *curve_rows("none", {0.0: 0.705}, budget=10, seeds=(0,)),
    *curve_rows("none", {0.0: 0.71}, budget=10, seeds=(1,)),
    *curve_rows("mad", {0.95: 0.4}, budget=5),
]


def study(strength, degree, losses, seed=0):
    counts = np.zeros(180, dtype=int)
    counts[[degree - 2, degree + 2]] = 5
    white = {"attack": "online", "knockoff_optimizer": "sgd", "knockoff_epochs": 1, "deviation_mean": degree + 0.5}
    series = {"deviation_histogram": counts.tolist(), "test_loss": losses, "test_loss_queries": [0, 25, 50]}
    if strength == 0.95:  # as records of earlier versions say it
        series = {name: " ".join(map(str, numbers)) for name, numbers in series.items()}
    settings = {"defense_settings": "surrogate=adversary"} if strength else {}
    more = white | settings | series | {"comparison_group": "white"}
    return paper_row("mad" if strength else "none", strength, seed, 0.5, **more)


WHITE = [
    study(0.0, 2, [2.3, 1, 0.5]),
    study(0.95, 20, [2.3, 1.2, 0.8]),
    study(0.99, 30, [2.3, 1.3, 1]),
    study(2.0, 95, [2, 3, 5]),
]


ALL = [*KNOCKOFF, *THREE, *NOISE, *DP, *TOP, *ARGMAX, *ABLATED, *ADAM, *FEWER, *WHITE]


IDLE = [each if each["strength"] != 0.95 or each["seed"] else {**each, "learned": False} for each in ALL]
