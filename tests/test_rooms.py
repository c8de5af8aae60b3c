"""No module imports in a circle, and the parts that compute know nothing of the command line."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mad

ROOT = Path(__file__).parents[1] / "mad"
ENTRIES = ("mad.cli", "mad.config", "mad.panels")  # may import Hydra, and each other


def modules():
    found = {}
    for file in ROOT.rglob("*.py"):
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(file, known):
    """Return what a module imports, here and in functions, also for its annotations only."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        if isinstance(node, ast.ImportFrom):
            for each in node.names:
                whole = f"{node.module}.{each.name}"
                yield whole if whole in known else node.module


def edges():
    """Return what each module imports; ``mad`` itself is a list of public names, and imports them when asked."""
    known = modules()
    return {name: set(imported(file, known)) - {"mad"} for name, file in known.items() if name != "mad"}


def circle(graph):
    """Return the modules of one circle, or nothing."""
    done, way = set(), []

    def walk(name):
        if name in way:
            return way[way.index(name) :]
        if name in done or name not in graph:
            return None
        way.append(name)
        found = next((each for each in map(walk, sorted(graph[name])) if each), None)
        way.pop()
        done.add(name)
        return found

    return next((found for found in map(walk, sorted(graph)) if found), [])


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": {"d"}}) == []


def test_no_module_imports_itself_in_a_circle():
    assert circle(edges()) == []


def test_only_the_command_line_imports_hydra():
    for name, others in edges().items():
        if not name.startswith(ENTRIES):
            assert not [each for each in others if each.startswith(("hydra", "omegaconf", *ENTRIES))], name


def test_no_module_is_long():
    assert [name for name, file in modules().items() if len(file.read_text().splitlines()) > 300] == []


def test_importing_is_quiet():
    left_out = ("mad.figures.__main__", "mad.serve.")  # a command, and what needs KServe's SDK
    everything = "; ".join(f"import {name}" for name in sorted(modules()) if not name.startswith(left_out))
    script = (
        "import sys, warnings; from omegaconf import OmegaConf; before = list(sys.path), list(warnings.filters);"
        f"import torch, torchvision, hydra.main, matplotlib, pandas; before = list(sys.path), list(warnings.filters);"
        f"{everything};"
        "assert (sys.path, warnings.filters) == before, 'the path or the filters of warnings changed';"
        "assert not [each for each in ('mad_jobs', 'mad_home', 'mad_token') if OmegaConf.has_resolver(each)]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_server_is_imported_by_its_command_only():
    for name, others in edges().items():
        if not name.startswith(("mad.serve", "mad.cli.serve")):
            assert not [each for each in others if each.startswith("mad.serve")], name


def test_importing_the_package_imports_nothing_else():
    script = "import sys; before = {*sys.modules}; import mad; dir(mad); print(sorted({*sys.modules} - before))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT.parent)
    assert not [each for each in ast.literal_eval(done.stdout) if each.startswith(("mad.", "torch", "hydra", "numpy"))]


@pytest.mark.parametrize("name", mad.__all__)
def test_every_public_name_is_there(name):
    assert getattr(mad, name) is not None
    assert name in dir(mad)


def test_computing_needs_no_hydra():
    script = "import mad.pipeline, sys; assert not [each for each in ('hydra', 'omegaconf') if each in sys.modules]"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_package_hands_out_the_classes_of_its_modules():
    from mad.attacks import KnockoffNets
    from mad.defenses import Mad, Surrogate
    from mad.recoveries import Argmax

    assert [each.__module__ for each in (KnockoffNets, Mad, Surrogate, Argmax)] == [
        "mad.attacks.knockoff_nets",
        "mad.defenses.mad",
        "mad.defenses.surrogates",
        "mad.recoveries.argmax",
    ]
    with pytest.raises(ImportError):
        from mad.defenses import Nope  # noqa: F401
