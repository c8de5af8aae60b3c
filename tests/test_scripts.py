"""The scripts beside the package: a wrong word is one line, and no traceback."""

import runpy
import sys
from pathlib import Path

import pytest
from toys import exit_code

SCRIPTS = Path(__file__).parents[1] / "scripts"
NAMES = sorted(file.relative_to(SCRIPTS).as_posix() for file in SCRIPTS.rglob("*.py"))
NO_COMMANDS = ("bench/common.py", "bench/published.py")


@pytest.fixture
def script(tmp_path, monkeypatch, capfd):
    """Run a script in this process, in an empty folder; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for module in ("common", "published"):  # other tests and scripts have modules of these names
        monkeypatch.delitem(sys.modules, module, raising=False)
    known = set(sys.modules)

    def call(name, *words):
        monkeypatch.syspath_prepend((SCRIPTS / name).parent)
        main = runpy.run_path(str(SCRIPTS / name), run_name="__not_main__")["main"]
        code = exit_code(monkeypatch, main, name, *words)
        return code, *capfd.readouterr()

    yield call
    for module in set(sys.modules) - known:
        if SCRIPTS.as_posix() in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NO_COMMANDS])
def test_a_flag_that_is_unknown_is_one_line(script, name):
    code, _, err = script(name, "--nonsense")
    assert code == 1
    assert err.startswith("mad: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["operating_points.py", "victim=digits", "nonsense=1", "--", "defense=mad 0 2"], "unknown key 'nonsense'"),
        (["operating_points.py", "victim=digits"], "stands after a --"),
        (["operating_points.py", "victim=digits", "--", "defense=argmax"], "its strongest strength"),
        (["operating_points.py", "victim=digits", "--", "defense=mad a b"], "is no candidate"),
        (["gate_rates.py", "nosuchpool"], "unknown pool 'nosuchpool'"),
        (["thief.py", "nonsense=1", "--", "--seeds=0", "--arms=adam-cycle-8", "--to=x"], "unknown key 'nonsense'"),
        (["thief.py", "victim=digits", "--", "--seeds=0", "--arms=nope-8", "--to=x"], "adam-cooldown"),
        (["thief.py", "victim=digits", "--", "--seeds=x", "--arms=adam-cycle-8", "--to=x"], "--seeds must be whole"),
        (["thief.py", "victim=digits", "--", "--seeds=0", "--arms=adam-cycle-x", "--to=x"], "must be whole numbers"),
        (
            ["operating_points.py", "victim=digits", "--", "defense=mad 0 2", "defense=nope 0 2"],
            "unknown defense 'nope'",
        ),
        (["thief_report.py", "nofile.jsonl"], "No such file or directory: 'nofile.jsonl'"),
        (["bench/tables.py", "nofile.json"], "No such file or directory: 'nofile.json'"),
        (["bench/argmax.py", "--overrides=victim=nope"], "unknown victim 'nope'"),
        (["bench/defenses.py", "--defenses=nope"], "unknown defense 'nope'"),
        (["bench/defenses.py", "--queries=nope"], "--queries must be one of pool, test, noise"),
        (["bench/defenses.py", "--batches=x"], "--batches must be whole numbers with commas between them, got 'x'"),
        (["bench/train.py", "--seeds=0,x"], "--seeds must be whole numbers with commas between them, got '0,x'"),
        (["bench/together.py", "--cells=x"], "--cells must be whole numbers with commas between them, got 'x'"),
        (["bench/together.py", "--cells=0"], "--cells must be a whole number of at least 1, got 0"),
        (["bench/together.py", "--batch=0"], "--batch must be a number of at least 1, got 0"),
        (["bench/theta.py", "--peak=nope"], "--peak must be one of lenet, vgg16_bn"),
        (["bench/query.py", "--networks=nope"], "--networks must be part of one of lenet"),
        (["bench/query.py", "--device=nope"], "device=nope is not there"),
        (["bench/query.py", "--repeats=0"], "--repeats must be a number of at least 1"),
        (["bench/theta.py", "--networks=nope"], "--networks must be one of lenet, vgg16_bn"),
        (["bench/sweep.py", "--victim=nope"], "unknown victim 'nope'"),
        (["bench/launchers.py", "--victim=nope"], "unknown victim 'nope'"),
        (["bench/train.py", "--part=nope"], "--part must be one of speed, target, final"),
        (["bench/together.py", "--network=nope"], "--network must be one of vgg16_bn, fast_resnet"),
    ],
)
def test_a_wrong_word_is_one_line(script, line, said):
    code, _, err = script(*line)
    assert code == 1
    assert said in err
    assert err.startswith("mad: ")
    assert err.count("\n") == 1
