"""One line for every mistake on a command line, before anything is trained; paths that begin with ~."""

import os
import re
import shlex
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra
from toys import compose

from mad.cli import configs, data, messages, status, tune
from mad.cli import figures as figures_command
from mad.cli import run as run_command
from mad.errors import MadError, near

ENTRIES = {
    "mad-run": run_command.main,
    "mad-figures": figures_command.main,
    "mad-status": status.main,
    "mad-data": data.main,
    "mad-tune": tune.main,
}
MISTAKES = {
    # no override, or one that Hydra cannot read
    "mad-run defense": ("'defense' is no override", "key=value", "--help"),
    "mad-run defense mad": ("'defense' is no override",),
    "mad-run defense:mad": ("'defense:mad' is no override",),
    "mad-run help": ("'help' is no override",),
    "mad-run =mad": ("key=value", "without a key"),
    "mad-run defense==mad": ("one = too many", "defense=mad"),
    "mad-run .epsilon=1": ("'.epsilon' is no key",),
    "mad-run defense.=1": ("'defense.' is no key",),
    "mad-run 'outputs=a(b'": ("'outputs=a(b' cannot be read", """'outputs="a(b"'"""),
    "mad-run outputs=a{b": ("""'outputs="a{b"'""",),
    """mad-run "outputs=a'b" """: ("outputs=a'b", "quotes"),
    "mad-run pool.path=/tmp/a=b": ("""'pool.path="/tmp/a=b"'""",),
    "mad-run pool.path=/tmp/ä": ("""'pool.path="/tmp/ä"'""",),
    "mad-run 'pool.path=/tmp/a;b#c'": ("""'pool.path="/tmp/a;b#c"'""",),
    "mad-run 'pool.path=/a,b'": ("sweep", "-m", """'pool.path="/a,b"'"""),
    "mad-run -m defense.epsilon=0.5,": ("'defense.epsilon=0.5,' cannot be read", "none empty"),
    "mad-run 'pool.path=/a/${x}' pool=image_folder": ("'x'", "${...}"),
    # sweeps
    "mad-run defense.epsilon=0.5,0.8": ("defense.epsilon=0.5,0.8 is a sweep", "-m"),
    "mad-run attack.budget=50,000": ("-m", "no comma"),
    "mad-run defense=mad,none": ("defense=mad,none is a sweep", "-m"),
    "mad-run experiment=panel defense=mad,none out=x": ("unknown key 'out'", "did you mean outputs?"),
    "mad-run experiment=paper/fig4 defense.epsilon=0.5,0.9 sede=0": ("unknown key 'sede'", "did you mean seed?"),
    "mad-run -m outputs=a,b": ("outputs cannot be swept over",),
    "mad-run -m 'defense=glob(zz*)'": ("no cell", "glob(zz*)"),
    "mad-run -m hydra.launcher.n_jobs=x": ("hydra.launcher.n_jobs=x", "Integer"),
    "mad-run -m hydra.sweep.dir=~/x": ("hydra.sweep.dir", "without the ~"),
    "mad-run experiment=paper/fig4 defense=top_k": ("defense=top_k fits no line of the grid", "beta"),
    # unknown names
    "mad-run victim=MNIST": ("unknown victim 'MNIST'", "did you mean mnist?"),
    "mad-run victim=mnist/": ("unknown victim 'mnist/'", "did you mean mnist?"),
    "mad-run experiment=mnst": ("paper/fig4", "paper/table1", "did you mean mnist?"),
    "mad-run experiment=fig4": ("paper/table1", "did you mean paper/fig4?"),
    "mad-run experiment=paper/fig44": ("unknown experiment 'paper/fig44'", "did you mean paper/fig4?"),
    "mad-run experiment=paper": ("unknown experiment 'paper'", "paper/fig4"),
    "mad-run dataset=mnist": ("unknown choice 'dataset'", "victim"),
    "mad-run victim=null": ("null",),
    "mad-run +experiment=mnist": ("experiment=", "without the +"),
    "mad-run +seed=1": ("seed=", "without the +"),
    "mad-tune victim=digits los=0.01": ("unknown key 'los'", "seeds", "did you mean loss?"),
    "mad-tune victim=digits sed=1": ("unknown key 'sed'", "latency", "did you mean seed?"),
    "mad-tune victim=digits trainer.loss=1": ("unknown key 'loss' in trainer",),
    # wrong values, with the key as it is typed
    "mad-run knockoff.epochs=0": ("mad: knockoff.epochs must be a whole number of at least 1, got 0",),
    "mad-run victim.epochs=0": ("mad: victim.epochs must be",),
    "mad-run trainer.epochs=0": ("mad: trainer.epochs must be",),
    "mad-run trainer.knockoff.epochs=0": ("mad: trainer.knockoff.epochs must be",),
    "mad-run trainer.schedule=x": ("mad: trainer.schedule must be one of",),
    "mad-run knockoff.mixup=-1": ("mad: knockoff.mixup must be",),
    "mad-run knockoff.rotation=-1": ("mad: knockoff.rotation must be",),
    "mad-run victim=own data=. victim.dataset.size=x": ("mad: victim.dataset.size must be one number of pixels",),
    "mad-run victim=own data=. victim.dataset.channels=2": ("mad: victim.dataset.channels must be 1 or 3",),
    "mad-run victim=own data=. victim.dataset.split_seed=-1": ("mad: victim.dataset.split_seed must be",),
    "mad-run pool=own pool.path=. pool.test_share=4": ("mad: pool.test_share must be a number in [0, 1], got 4",),
    "mad-run seed=99999999999999999999": ("seed must be a whole number in [0, 4611686018427387904]",),
    "mad-run seed=1e3": ("got 1000.0: write it out, 1000",),
    "mad-run attack.budget=1e9": ("attack.budget must be", "write it out, 1000000000"),
    "mad-run architecture=torchvision architecture.name=foo": ("no such model, as there are", "list_models()"),
    # keys of other choices
    "mad-run data=foo": ("unknown key 'data': it is one of victim=own; here choose from seed",),
    "mad-run victim.weights=x.pt": ("unknown key 'weights' in victim: it is one of victim=own;",),
    "mad-run victim.service.rate=1": ("unknown key 'service' in victim: it is one of victim=own;",),
    "mad-run defense.beta=1": ("'beta' in defense: it is one of defense=dcp, defense=reverse_sigmoid; here",),
    # what cannot be written
    "mad-run export=/proc/x": ("mad: cannot write /proc/x/stolen", "; export to another folder"),
    "mad-run ~nothing": ("nothing is not there",),
    "mad-run knockoff.architecture=resnet18": ("knockoff/architecture=",),
    "mad-run architecture.foo=1": ("unknown key 'foo' in architecture", "none to choose"),
    "mad-run victim.dataset=mnist": ("victim.dataset=mnist", "keys of its own"),
    "mad-run defense.surrogate=victim": ("defense.surrogate=victim", "keys of its own"),
    "mad-run defense._target_=nowhere.X": ("nowhere.X cannot be imported", "where the command is started"),
    # flags
    "mad-run --defense=mad": ("unknown flag --defense=mad", "no dashes: defense=mad"),
    "mad-run -x": ("unknown flag -x", "--help"),
    "mad-run --cfg": ("--cfg", "expected one argument"),
    "mad-run --cfg jobs": ("--cfg", "'jobs'"),
    "mad-run --config-dir nowhere": ("--config-dir nowhere", "no such folder"),
    "mad-run --config-name nope": ("unknown config 'nope'",),
    # paths
    "mad-run outputs=": ("outputs must be a path", "''"),
    "mad-run outputs=null": ("outputs must be a path", "None"),
    "mad-run outputs=[a]": ("outputs must be a path", "['a']"),
    "mad-run outputs=~nobody-there/x": ("outputs=~nobody-there/x", "no such user"),
    # the other commands
    "mad-figures papr": ("paper", "'papr'"),
    "mad-figures outputs=x": ("'outputs=x'",),
    "mad-figures paper extra": ("extra", "--help"),
    "mad-figures --outputs": ("--outputs", "expected one argument"),
    "mad-figures --outputs nowhere": ("nowhere", "no record", "--records"),
    "mad-figures board --records nowhere.csv": ("nowhere.csv", "No such file"),
    "mad-status nowhere": ("nowhere", "no sweep's folder"),
    "mad-status a b": ("one sweep's folder at a time",),
    "mad-status seed=0 nowhere": ("'nowhere' is no override",),
    "mad-status --outputz=x": ("--outputz=x", "--help"),
    "mad-status --config-dir nowhere seed=0": ("--config-dir nowhere", "no such folder"),
    "mad-status --prune --outputs nowhere": ("nowhere", "no folder"),
    "mad-status --prune nowhere": ("'nowhere'",),
    "mad-status --yes": ("--prune",),
    "mad-status experiment=mnst": ("paper/fig4", "did you mean mnist?"),
    "mad-status 'outputs=a(b'": ("""'outputs="a(b"'""",),
    "mad-status outputs=": ("outputs must be a path",),
    "mad-data": ("NAME",),
    "mad-data mnst": ("unknown data set 'mnst'", "did you mean mnist?"),
    "mad-data MNIST": ("did you mean mnist?",),
    "mad-data mnist extra": ("extra",),
    "mad-data mnist --rot x": ("--rot", "--help"),
    "mad-data digits --root ''": ("--root must be a path",),
    "mad-data digits --root /dev/null": ("/dev/null", "--root"),
}


@pytest.fixture
def say(tmp_path, monkeypatch, capfd):
    """Give any of the commands a line, in an empty folder; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("HYDRA_FULL_ERROR", "MAD_TRACEBACK", "MAD_DATA", "MPLBACKEND"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)

    def call(line):
        GlobalHydra.instance().clear()
        command, *words = shlex.split(line)
        monkeypatch.setattr(sys, "argv", [command, *words])
        code = 0
        try:
            ENTRIES[command]()
        except SystemExit as end:
            code = end.code
        os.environ.pop("HYDRA_FULL_ERROR", None)
        return code, *capfd.readouterr()

    yield call
    GlobalHydra.instance().clear()


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line(line, say, tmp_path):
    code, _, err = say(line)
    assert code == 1
    assert len(err.splitlines()) == 1, err
    assert err.startswith("mad: ")
    assert "HYDRA_FULL_ERROR" not in err  # that is for what nobody foresaw
    for word in MISTAKES[line]:
        assert word in err
    assert not [path for name in ("victims", "runs", "~*") for path in tmp_path.rglob(name)]


def test_what_a_line_proposes_is_read(say):
    _, _, err = say("mad-run 'pool.path=/tmp/a (1),b;c' pool.size=1 pool=image_folder")
    proposed = re.search(r"""'pool\.path=".*?"'""", err)[0]
    code, _, err = say(f"mad-run pool=image_folder {proposed}")
    assert code == 1
    assert "pool.path must be a folder" in err
    assert "/tmp/a (1),b;c" in err


def test_flags_may_stand_anywhere(say, tmp_path):
    (tmp_path / "mine").mkdir()
    code, out, _ = say("mad-run defense.epsilon=0.25 --cfg job seed=3 --config-dir mine")
    assert code == 0
    assert "epsilon: 0.25" in out
    assert "seed: 3" in out


@pytest.mark.parametrize("command", ENTRIES)
def test_help_is_whole(command, say):
    code, out, err = say(f"{command} --help")
    assert (code, err) == (0, "")
    assert "`" not in out
    assert command in out


def test_the_defaults_that_the_help_names_are_the_defaults(say):
    _, out, _ = say("mad-run --help")
    listed = out.partition("with their defaults")[2].partition("Flags")[0]
    pairs = re.findall(r"([\w.]+)=([\w.]+)", listed)
    config = compose()
    assert len(pairs) >= 7
    for key, value in pairs:
        found = config
        for part in key.split("."):
            found = found[part]
        assert ("null" if found is None else str(found).lower()) == value, key


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    return tmp_path / "me"


@pytest.mark.parametrize("written", ["outputs=~/runs", """outputs="'~/runs'" """, "outputs='\"~/runs\"'"])
def test_outputs_may_begin_with_a_tilde(written, say, at_home, tmp_path):
    code, _, err = say(f"mad-run {written} pool.size=10 attack.budget=50")
    assert code == 1
    assert "attack.budget=50 is above the 10" in err
    assert list(at_home.glob("runs/failed/*.json"))
    assert not (tmp_path / "~").exists()
    code, out, _ = say(f"mad-status {written} pool.size=10 attack.budget=50")
    assert code == 0
    assert out.count("failed ") == 2  # it looks there, too
    say("mad-run -m hydra/launcher=basic pool.size=10 attack.budget=50 " + written)
    assert list(at_home.glob("runs/sweeps/*/cells.jsonl"))
    code, out, _ = say("mad-status --outputs '~/runs'")
    assert code == 0
    assert "failed" in out
    assert not (tmp_path / "~").exists()


def test_every_path_of_a_config_may_begin_with_a_tilde(say, at_home, tmp_path):
    folder = at_home / "my_conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [override /pool: image_folder]\npool: {path: ~/images}\n"
    )
    for flag in ("--config-dir '~/my_conf'", "'--config-dir=~/my_conf'"):
        code, _, err = say(f"mad-run {flag} experiment=mine")
        assert code == 1
        assert str(at_home / "images") in err
    code, out, _ = say("mad-status --config-dir '~/my_conf' experiment=mine")
    assert str(at_home / "images") in out
    code, _, err = say("mad-run --config-dir '~/my_conf' experiment=mnne")
    assert "did you mean mine?" in err
    code, _, err = say("mad-run victim=mnist data_root=~/d pool=mnist")
    assert code == 1
    assert str(at_home / "d") in err
    assert not (tmp_path / "~").exists()


def test_data_root_of_the_environment_may_begin_with_a_tilde(at_home, monkeypatch):
    monkeypatch.setenv("MAD_DATA", "~/d")
    assert configs.at_home(compose("victim=mnist").victim, "victim").dataset.root == str(at_home / "d")


@pytest.mark.parametrize("value", [None, "", True, 1.5, ["a"]])
def test_what_is_no_path(value):
    with pytest.raises(MadError, match="outputs must be a path"):
        configs.home("outputs", value)


def test_names_are_near_in_any_case_and_below_any_folder():
    assert near("FIG4", ["mnist", "paper/fig4"]) == " (did you mean paper/fig4?)"
    assert near("x", ["mnist"]) == ""


def test_several_overrides_in_one_text_are_told_so():
    told = messages.unreadable("defense=mad defense.epsilon=0.5")
    assert (
        told == "'defense=mad defense.epsilon=0.5' is several overrides in one text: give each an argument of its own"
    )
    assert "in quotes twice" in messages.unreadable("pool.path=my photographs=new")
    assert "in quotes twice" in messages.unreadable("defense.name='a b=c")
