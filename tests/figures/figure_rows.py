"""Records of the digits, and the group of their figure."""

from mad.storage import records

BASE = {
    "victim": "toy",
    "architecture": "tiny",
    "pool": "blobs",
    "attack": "knockoff",
    "recovery": "none",
    "budget": 50,
    "queries": 50,
    "defense_settings": "",
    "comparison_group": "0123456789abcdef",
    "chance": 0.1,
    "victim_accuracy": 0.9,
    "agreement": 0.5,
    **dict.fromkeys(("seconds_victim", "seconds_queries", "seconds_knockoff"), 1.0),
}


def row(defense, epsilon, seed, defended, stolen, l1, **more):
    return {
        **BASE,
        "defense": defense,
        "epsilon": epsilon,
        "strength_parameter": "epsilon",
        "strength": epsilon,
        "seed": seed,
        "defended_accuracy": defended,
        "stolen_accuracy": stolen,
        "l1_mean": l1,
        "fingerprint": f"{defense}-{epsilon}-{seed}-{len(more)}",
        **more,
    }


ROWS = [
    row("mad", 1.0, 0, 0.70, 0.30, 0.9),
    row("mad", 0.5, 0, 0.88, 0.60, 0.4),
    row("mad", 0.5, 1, 0.86, 0.50, 0.5),
    row("none", 0.0, 0, 0.90, 0.80, 0.0),
    row("none", 0.0, 1, 0.90, 0.84, 0.0),
    row("random_noise", 0.5, 0, 0.85, 0.75, 0.45),
]


GROUP = records.frame(ROWS)


LONG = {
    "victim": "v" * 64,
    "pool": "p" * 64,
    "architecture": "torchvision mobilenet_v3_large",
    "attack_settings": "queries_per_image=5 augment=resized_crop_flip reward=certainty step=0.031 seeds=100",
    "recovery": "argmax",
    "knockoff_architecture": "torchvision efficientnet_v2_large",
    "knockoff_optimizer": "adagrad",
    "knockoff_learning_rate": 0.0123,
    "knockoff_epochs": 100,
    "victim_epochs": 30,
}


USUAL = {**BASE, "attack_settings": "", "knockoff_architecture": "tiny", "knockoff_optimizer": "momentum"}
