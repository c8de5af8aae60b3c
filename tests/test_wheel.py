import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_carries_the_configs_and_runs_from_anywhere(tmp_path):
    build = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
    ]
    subprocess.run([sys.executable, *build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("mad-*.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    assert (installed / "mad" / "conf" / "config.yaml").exists()
    assert (installed / "mad" / "columns.csv").exists()
    assert (installed / "mad" / "report" / "templates" / "page.html").exists()
    assert (installed / "hydra_plugins" / "mad_grid.py").exists()
    points = next(installed.glob("*.dist-info/entry_points.txt")).read_text()
    assert "mad-run = mad.cli.run:main" in points
    assert "mad-figures = mad.cli.figures:main" in points
    assert "mad-status = mad.cli.status:main" in points
    assert "mad-data = mad.cli.data:main" in points
    assert "mad-report = mad.cli.report:main" in points
    # The wheel's own copy must be what runs, not the clone's.
    script = f"import mad; assert mad.__file__.startswith({str(installed)!r}), mad.__file__; "
    script += "from mad.cli.run import main; main()"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, "victim=mnist", "defense=random_noise", "--cfg", "job"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "mad.defenses.random_noise.RandomNoise" in done.stdout
