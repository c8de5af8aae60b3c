"""The examples keep their contracts, and run by the commands at their top."""

import importlib
import importlib.util
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import joblib
import nbformat
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient
from sklearn.dummy import DummyClassifier

from mad import testing
from mad.defenses.mad import Mad
from mad.errors import MadError
from mad.testing import toy_victim

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICK = ["attack.budget=60", "knockoff.min_steps=0", "knockoff.epochs=1", "architecture=mlp", "trainer.min_steps=0"]


DOCUMENT = (EXAMPLES.parent / "docs" / "extending.md").read_text()
HEAD = """from dataclasses import dataclass
import torch
from mad.attacks import Attack, Stolen, TransferSet, ask, drawn
from mad.defenses import Defense
from mad.recoveries import Recovery
"""


def test_the_plug_ins_of_the_document_keep_their_contracts(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.S)
    (tmp_path / "of_the_document.py").write_text("\n\n".join([HEAD, *blocks]))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("of_the_document")
    testing.check_defense(module.Flatten())
    testing.check_attack(module.Half(40))
    testing.check_recovery(module.Sharpen())
    assert len(blocks) == 3


def test_the_snippets_for_a_model_of_ones_own_run_as_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "docs" / "own-model.md").read_text(), flags=re.S)
    (module,) = (block for block in blocks if "my_module.py" in block)
    (log,) = (block for block in blocks if "to_parquet" in block)
    images = torch.randint(0, 256, (6, 4, 4), dtype=torch.uint8)
    joblib.dump(DummyClassifier().fit(images.flatten(1), [0, 1, 2, 0, 1, 2]), "model.joblib")
    found = {"images": images.numpy()}
    exec(module, found)
    found["answers"] = found["predict"](images[:, None] / 255)
    exec(log, found)
    assert len(pd.read_parquet("answers.parquet")) == 6


@pytest.fixture
def example(monkeypatch):
    """Return one of the example modules by its name."""

    def get(name):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return get


def test_the_attack_keeps_its_contract(example):
    testing.check_attack(example("uncertain").Uncertain(40, rounds=3))


def test_the_recovery_keeps_its_contract(example):
    testing.check_recovery(example("restorer").Restorer(steps=5), classes=(4,))


def test_the_surrogate_asks_for_images_that_are_held_out(example):
    surrogate = example("private_surrogate").PrivateSurrogate()
    with pytest.raises(MadError, match=r"victim\.validation"):
        Mad(0.5, surrogate).check(replace(toy_victim(), validation=0.0))


@pytest.mark.parametrize("name", [file.stem for file in sorted(EXAMPLES.glob("*.py"))])
def test_the_command_at_the_top_runs(name, mad_run, tmp_path):
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    (command,) = re.findall(r"^mad-run (.*)$", (EXAMPLES / f"{name}.py").read_text(), flags=re.M)
    code, out, err = mad_run(*command.split(), *QUICK, "pool.size=100")
    assert code == 0, err
    assert name in out or name.removeprefix("private_") in out or "private" in out


def test_the_five_lines_run_in_a_notebook(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(EXAMPLES / "five_lines.ipynb", as_version=4)
    load = notebook.cells[1]  # the rest as it stands
    load.source = load.source.replace(")", "".join(f', "{word}"' for word in QUICK) + ")")
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}, timeout=300).execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert "image/png" in outputs["plot"][-1].data
    assert "text/html" in outputs["records"][-1].data
    assert "tensor" in outputs["ask"][-1].data["text/plain"]
