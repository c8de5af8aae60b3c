"""mad.load: the cell of a line of overrides, in Python."""

import shlex

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from toys import compose

import mad
from mad.cli import configs
from mad.cli.compose import cell_of
from mad.errors import MadError

WORDS = ["victim=digits", "pool.size=60", "defense=mad", "defense.epsilon=0.8", "seed=3"]


@pytest.fixture(autouse=True)
def no_further_folder():
    yield
    configs.FURTHER.clear()
    GlobalHydra.instance().clear()


def test_it_is_the_cell_that_the_command_runs():
    cell = mad.load(*WORDS)
    assert (cell.victim.name, cell.defense.name, cell.defense.epsilon, cell.seed) == ("digits", "mad", 0.8, 3)
    assert cell.fingerprint == cell_of(compose(*WORDS)).fingerprint
    assert set(shlex.split(cell.overrides)) == set(WORDS)
    assert mad.load(*shlex.split(cell.overrides)).fingerprint == cell.fingerprint


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("defense=made", "mad"),
        ("defense.epsilom=0.5", "epsilon"),
        ("defense.epsilon=7", "defense.epsilon"),
        ("defense.epsilon", "defense.epsilon"),
        ("seed=-1", "seed"),
        (
            "seed=0,1",
            r"^seed=0,1 is a sweep: mad-run -m runs a cell for each of its values; here give one; a number has",
        ),
        ("seed=range(3)", r"^seed=range\(3\) is a sweep: mad-run -m .*; here give one$"),
        ("experiment=panel", "^this experiment is a grid of cells, not one: mad-run -m runs it, without a second one"),
        ("victim.epochs=${nothing}", "nothing"),
    ],
)
def test_what_is_wrong_is_one_line(word, said):
    with pytest.raises(MadError, match=said) as refused:
        mad.load("victim=digits", word)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("word", ["outputs=there", "device=cuda", "threads=2", "force=true", "+device=cpu"])
def test_what_is_no_part_of_a_cell_is_refused(word):
    with pytest.raises(MadError, match=r"say \w+ to mad\.run or mad\.deploy"):
        mad.load("victim=digits", word)


@pytest.mark.parametrize("word", ["seed=1", "seed=-1"])
def test_a_hydra_that_is_already_initialized_stays_as_it_was(tmp_path, word):
    (tmp_path / "theirs.yaml").write_text("x: 1\n")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        theirs = GlobalHydra.instance().hydra
        try:
            mad.load("victim=digits", word)
        except MadError:
            assert word == "seed=-1"
        assert GlobalHydra.instance().hydra is theirs
        assert hydra.compose("theirs").x == 1
    GlobalHydra.instance().clear()
    mad.load("victim=digits")
    assert not GlobalHydra.instance().is_initialized()


def test_a_further_folder_of_configs(tmp_path):
    (tmp_path / "recovery").mkdir()
    (tmp_path / "recovery" / "label.yaml").write_text("_target_: mad.recoveries.argmax.Argmax\n")
    assert mad.load("victim=digits", "recovery=label", config_dir=tmp_path).recovery.name == "argmax"
    with pytest.raises(MadError, match="label"):
        mad.load("victim=digits", "recovery=label")
    with pytest.raises(MadError, match="there is no such folder"):
        mad.load("victim=digits", config_dir=tmp_path / "nowhere")
