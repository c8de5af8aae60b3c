"""Every engine, run for real: the same bits, a death that stops nobody, Ctrl-C, preemption."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = [
    "pool.size=200",
    "trainer.epochs=1",
    "trainer.min_steps=0",
    "knockoff.epochs=2",
    "knockoff.min_steps=0",
    "device=cpu",
    "defense=moody",
]
NEEDS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}
NOTEBOOK = "module://matplotlib_inline.backend_inline"  # what a notebook's child processes are told; needed nowhere
APART = ("seconds", "sha256", "overrides")  # when and by which words; the checksum is of these, too
PLUGIN = '''
import os, pathlib, signal, time
from dataclasses import dataclass

import torch
from mad.defenses import Defense


@dataclass
class Moody(Defense):
    """Kills its process at epsilon 0.3; at 0.4, hangs the first time."""

    name = "moody"

    def prepare(self, context):
        if self.epsilon == 0.3:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.epsilon == 0.4 and not pathlib.Path("hung").exists():
            pathlib.Path("hung").touch()
            time.sleep(1000)

    def perturb(self, images, clean):
        return torch.full_like(clean, 1 / clean.shape[1])
'''


@pytest.fixture(scope="session")
def slurm():
    """A one-node cluster for the tests."""
    if os.geteuid() or not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        pytest.skip("needs root, and Debian's slurm-wlm and munge")
    home = Path("/var/tmp/mad-slurm-test")
    environment = {**os.environ, "MAD_SLURM": str(home), "MAD_SLURM_PORT": "16827"}
    script = ["bash", str(ROOT / "scripts" / "slurm_local.sh")]
    subprocess.run([*script, "up"], env=environment, check=True, stdout=subprocess.DEVNULL)
    yield {"SLURM_CONF": str(home / "slurm.conf")}
    subprocess.run([*script, "down"], env=environment, check=True)
    assert not home.exists()


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.engine) for name in NEEDS])
def engine(request):
    if find_spec(f"hydra_plugins.hydra_{NEEDS[request.param]}_launcher") is None:
        pytest.skip(f"hydra-{NEEDS[request.param]}-launcher is not installed")
    extra = request.getfixturevalue("slurm") if request.param == "submitit_slurm" else {}
    return request.param, extra


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "moody.py").write_text(PLUGIN)
    (tmp_path / "my_conf" / "defense").mkdir(parents=True)
    (tmp_path / "my_conf" / "defense" / "moody.yaml").write_text("_target_: moody.Moody\nepsilon: 0.5\n")
    return tmp_path


def start(folder, extra, *words):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HYDRA_", "MAD_", "OMP_"))}
    command = [sys.executable, "-c", "from mad.cli.run import main; main()", "--config-dir", "my_conf", *words, *SMALL]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "MPLBACKEND": NOTEBOOK, **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a terminal's Ctrl-C reaches a whole group of processes
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def finish(process):
    text = process.communicate(timeout=300)[0]
    return process.returncode, text


def bits(outputs):
    """Return all that must not depend on where, when and how it was asked for: records but APART, and weights."""
    found = {}
    for path in [*outputs.glob("runs/*/*/*/*/record.json"), *outputs.glob("victims/*/*/weights.safetensors")]:
        if path.name == "record.json":
            record = json.loads(path.read_text())
            found[path.parent.name] = {key: value for key, value in record.items() if not key.startswith(APART)}
        else:
            found[path.parent.name] = path.read_bytes()
    return found


def wait_for(pattern, folder, process):
    """Wait until a file is there; a process that ends first, or five minutes on a busy machine, fail the test."""
    deadline = time.monotonic() + 300
    while not list(folder.glob(pattern)):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"no {pattern}: {process.communicate()[0]}")
        time.sleep(0.1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The bits of one cell, run by itself."""
    made = tmp_path_factory.mktemp("alone")
    (made / "moody.py").write_text(PLUGIN)
    (made / "my_conf" / "defense").mkdir(parents=True)
    (made / "my_conf" / "defense" / "moody.yaml").write_text("_target_: moody.Moody\nepsilon: 0.5\n")
    code, text = finish(start(made, {}, "knockoff/architecture=lenet"))
    assert code == 0, text
    return bits(made / "outputs")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("basic", marks=pytest.mark.engine), "joblib"])
def test_in_a_sweep_on_this_machine_the_bits_are_the_same(name, folder, alone):
    """The short form of the next: what needs no engine, and so is run by default."""
    words = ["-m", f"hydra/launcher={name}", "knockoff/architecture=lenet", "defense.epsilon=9,0.5"]
    code, text = finish(start(folder, {}, *words))
    failed = [line for line in text.splitlines() if line.startswith("failed:")]
    assert code == 1, text
    assert len(failed) == 1, text
    assert "epsilon=9" in failed[0]
    found = bits(folder / "outputs")
    assert found == alone
    assert sorted(each["defense"] for each in found.values() if isinstance(each, dict)) == ["moody", "none"]
    assert len(list((folder / "outputs").glob("figures/*.png"))) == 1


def test_a_death_stops_no_other_cell_and_bits_are_the_same(engine, folder, alone):
    name, extra = engine
    words = ["-m", f"hydra/launcher={name}", "knockoff/architecture=lenet", "defense.epsilon=0.3,9,0.5"]
    code, text = finish(start(folder, extra, *words))
    failed = [line for line in text.splitlines() if line.startswith("failed:")]
    assert code == 1, text
    assert len(failed) == 2, text
    assert "epsilon=0.3" in failed[0]
    assert "ended without a word" in failed[0]
    assert "epsilon=9" in failed[1]
    assert "[0, 2]" in failed[1]
    assert "2 of 3 cells failed" in text
    assert "Traceback" not in text
    assert bits(folder / "outputs") == alone


def test_ctrl_c_keeps_what_is_done_and_the_command_goes_on(engine, folder):
    name, extra = engine
    words = ["-m", f"hydra/launcher={name}", "defense.epsilon=0.4,0.5"]
    process = start(folder, extra, *words)
    wait_for("hung", folder, process)
    wait_for("outputs/runs/*/moody/*/*/record.json", folder, process)
    os.killpg(process.pid, signal.SIGINT)
    code, text = finish(process)
    assert code == 130, text
    assert "give the same command again" in text
    assert "Traceback" not in text or name == "submitit_local"  # submitit's own processes say how they ended
    if name == "submitit_slurm":
        assert queued(extra) == []
    code, text = finish(start(folder, extra, *words))
    assert code == 0, text
    assert "(kept)" in text or name.startswith("submitit")  # there, jobs print into files of their own
    assert len(bits(folder / "outputs")) == 4  # a victim, its undefended theft, two cells


def queued(extra):
    listed = subprocess.run(
        ["squeue", "-h", "-o", "%A %T"], env={**os.environ, **extra}, capture_output=True, text=True
    )
    return [line for line in listed.stdout.splitlines() if "COMPLETING" not in line]


@pytest.mark.engine
def test_a_preempted_cell_is_queued_again(slurm, folder):
    if find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        pytest.skip("hydra-submitit-launcher is not installed")
    process = start(folder, slurm, "-m", "hydra/launcher=submitit_slurm", "defense.epsilon=0.4,0.5")
    wait_for("hung", folder, process)
    urgent = ["sbatch", "-W", "-p", "urgent", "--exclusive", "-o", "/dev/null", "--wrap", "true"]
    subprocess.run(urgent, env={**os.environ, **slurm}, check=True, stdout=subprocess.DEVNULL)
    code, text = finish(process)
    assert code == 0, text
    assert len(bits(folder / "outputs")) == 4  # a victim, its undefended theft, two cells
