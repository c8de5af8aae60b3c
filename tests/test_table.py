"""Records on the terminal."""

from test_figures import row

from mad import records, table


def shown(rows, capfd):
    table.show(records.frame([{**each, "attack_settings": ""} for each in rows]))
    return capfd.readouterr().out


def test_thefts_that_differ_in_more_than_the_defense_say_in_what(capfd):
    pair = [row("none", 0.0, 0, 0.9, 0.8, 0.0), row("none", 0.0, 0, 0.9, 0.7, 0.0, attack="jbda")]
    text = shown(pair, capfd)
    assert "stolen by several attacks from blobs, 50 queries" in text
    assert [line.split()[0] for line in text.splitlines() if "epsilon=0" in line] == ["jbda", "knockoff"]


def test_what_all_have_in_common_is_the_title(capfd):
    text = shown([row("mad", 0.5, 0, 0.9, 0.8, 0.5), row("none", 0.0, 0, 0.9, 0.8, 0.0)], capfd)
    assert "toy stolen by knockoff from blobs, 50 queries" in text
    assert [line.split()[0] for line in text.splitlines() if "epsilon=" in line] == ["none", "mad"]


def test_a_long_value_is_folded_and_never_cut_off(capfd):
    long = {"dial": "noise_multiplier", "knockoff_architecture": "torchvision mobilenet_v3_large"}
    rows = [row("random_noise", 0.5, seed, 0.9, 0.8, 0.5, **long) for seed in (0, 1)]
    rows += [row("reverse_sigmoid", 0.25, 0, 0.9, 0.8, 0.5, **long | {"knockoff_architecture": "lenet"})]
    text = shown([{**each, "recovery": f"recovery_{place}"} for place, each in enumerate(rows)], capfd)
    assert "…" not in text
