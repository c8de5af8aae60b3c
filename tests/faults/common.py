"""How the fault tests start a toy sweep, and what they look at afterwards."""

import io
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

HERE = Path(__file__).parent
CONF = HERE / "conf"
TOY = ("--config-dir", str(CONF), "victim=toy", "device=cpu")
ONE = ("hydra/launcher=basic",)  # a sweep of this process alone, whose parts tests may replace
SWEEP = ("defense=mad_trained,random_noise", "defense.epsilon=0.5,1,1.5", "seed=0,1", "trainer.epochs=60")
SMALL = ("defense=mad_trained", "defense.epsilon=0.5,1", "trainer.epochs=60")
RECORDS, VICTIMS, SURROGATES = 14, 2, 2  # of SWEEP: 12 cells and an undefended reference a seed


def start(folder, *words):
    """Start a sweep in a folder and a process group of its own; its trainings are logged to ``log`` there."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HYDRA_", "MAD_"))}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), environment.get("PYTHONPATH")]))
    environment.update(OMP_NUM_THREADS="1", TOY_LOG=str(folder / "log"))
    return subprocess.Popen(
        [sys.executable, "-c", "from mad.cli.run import main; main()", "-m", *TOY, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill(process):
    """Kill a process and all it started, as a power cut would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def trainings(folder):
    """How often each network's training was finished."""
    lines = (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
    return Counter(line.partition(" ")[2] for line in lines)


def results(outputs):
    """The text of records.csv, times apart."""
    table = pd.read_csv(outputs / "records.csv", dtype=str, keep_default_na=False)
    text = io.StringIO()
    table.drop(columns=[name for name in table if name.startswith("seconds")]).to_csv(text, index=False)
    return text.getvalue()


def finished(outputs):
    """Every finished artefact: its path, and which file it is."""
    files = [*outputs.glob("runs/*/*/*/*/record.json"), *outputs.glob("victims/*/*/victim.json")]
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def leftovers(outputs):
    """Temporary, damaged and lock files, and what a sweep hides in its folder."""
    return [
        file
        for pattern in (".*.tmp", "*.lock", "*.damaged", "*.turn", "*.renewed", ".held")
        for file in outputs.rglob(pattern)
    ]


def draw_nothing(monkeypatch):
    """Write empty figures: drawing takes longer than all else that a toy cell does."""
    monkeypatch.setattr("mad.figures.tradeoff.draw", lambda comparison_group: Figure((1, 1)))
