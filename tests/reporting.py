"""Synthetic records of one theft, for the tests of reports."""

from functools import cache

from mad.figures import board
from mad.report import contents
from mad.storage import records

EVIL = "<script>alert(1)</script>"
SECRET = "/home/somebody/secret/net.pt"
MEMBERS = ["none", "argmax", "sharpen", "confidence", "constant", "few", "self_training", "bayes", "oracle_filter"]
DEFENSES = ["mad", "mad_argmax", "random_noise", "top_k", "rounding"]


def cell(defense, strength, recovery, seed, number, settings="", **more):
    """One record; the more of a defense, the less is stolen, and the less the API is right."""
    words = f"defense={defense} defense.epsilon={strength} recovery={recovery} +weights={SECRET} seed={seed}"
    return {
        **{"victim": "toy", "architecture": "tiny", "pool": "blobs", "attack": "knockoff", "budget": 5000},
        **{"queries": 5000, "chance": 0.1, "victim_accuracy": 0.9, "device": "cpu", "version": "0.1.0"},
        **dict.fromkeys(("seconds_victim", "seconds_queries", "seconds_knockoff"), 1.5),
        **{"defense": defense, "defense_settings": settings, "strength_parameter": "epsilon", "strength": strength},
        **{"recovery": recovery, "recovery_knows": board.CLEAN if recovery == "oracle_filter" else "", "seed": seed},
        **{"comparison_group": f"{MEMBERS.index(recovery):016x}", "fingerprint": f"{number:016x}", "overrides": words},
        **{"defended_accuracy": 0.9 - 0.1 * strength, "l1_mean": strength, "l1_max": strength, "nll": 0.2, "ece": 0.05},
        "stolen_accuracy": 0.8 - 0.3 * strength + 0.01 * seed + 0.02 * MEMBERS.index(recovery),
        "recovery_settings": f"prior={SECRET}" if recovery == "few" else "",
        "agreement": 0.7,
        **more,
    }


def rows():
    """500 records: five defenses with four strengths, nine members, and one to three seeds."""
    cells = [("none", 0.0, "", each, seed) for each in MEMBERS for seed in range(3)]
    cells += [
        (defense, strength, EVIL if defense == "rounding" else "", each, seed)
        for defense in DEFENSES
        for strength in (0.2, 0.4, 0.6, 0.8)
        for each in MEMBERS
        for seed in range(3 if defense != "top_k" else 1)
    ]
    return [cell(a, b, each, seed, place, said) for place, (a, b, said, each, seed) in enumerate(cells)]


ROWS = [
    *rows(),
    *(cell("mad", 1.0, each, seed, 9000 + 10 * seed + k) for seed in range(4) for k, each in enumerate(MEMBERS)),
]
TABLE = records.frame(ROWS)


@cache
def example():
    """What a report says of these records; made once, by the first test that asks."""
    (found,) = contents.read(TABLE)
    return found
