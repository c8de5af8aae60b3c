"""Records of a panel's members."""

from figure_rows import row

from mad.storage import records


def cells(defense, strength, member, stolen, group, **more):
    """One cell a seed; stolen accuracies by seed."""
    recovery = {"recovery": "none" if member == "naive" else member}
    return [
        row(
            defense,
            strength,
            seed,
            0.88,
            share,
            0.4,
            comparison_group=group * 16,
            **{**recovery, "recovery_knows": "", "nll": 0.1, **more},
        )
        for seed, share in enumerate(stolen)
    ]


ROWS = [
    *cells("none", 0.0, "naive", (0.80, 0.82, 0.84), "a"),
    *cells("none", 0.0, "argmax", (0.70, 0.72, 0.74), "b"),
    *cells("mad", 0.5, "naive", (0.60, 0.20, 0.40), "a"),
    *cells("mad", 0.5, "argmax", (0.50, 0.52, 0.54), "b"),
    *cells("mad", 0.5, "oracle_filter", (0.79, 0.79, 0.79), "c", recovery_knows="the victim's clean answers"),
    *cells("top_k", 1.0, "naive", (0.90, 0.10, 0.10), "a", strength_parameter="k"),
    *cells("top_k", 1.0, "argmax", (0.20, 0.20, 0.20), "b", strength_parameter="k"),
]


FRAME = records.frame(ROWS)
