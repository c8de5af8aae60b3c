"""The committed results: every number of the ledger comes from the committed records, and the document shows it."""

import importlib.util
import io
import re
import shlex
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from mad.cli import configs
from mad.cli.compose import cell_of
from mad.figures import ledger
from mad.figures.cells import thefts
from mad.storage import records

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "reproduction"
NAMES = {  # as reproduction.md has them
    "undefended": "none",
    "MAD": "mad",
    "MAD-argmax": "mad_argmax",
    "random noise within epsilon": "random_noise",
    "reverse sigmoid, beta": "reverse_sigmoid",
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    with tarfile.open(DOCS / "records.tar.gz") as archive:
        archive.extractall(outputs, filter="data")
    return outputs


def test_the_ledger_is_that_of_the_committed_records(kept):
    table = records.read(kept)
    made = ledger.ledger(thefts(table)).to_csv(index=False)
    pd.testing.assert_frame_equal(*(pd.read_csv(each, dtype=str) for each in (io.StringIO(made), DOCS / "ledger.csv")))
    listed = pd.read_csv(DOCS / "records.csv")
    assert sorted(listed.fingerprint) == sorted(table.fingerprint)
    assert sorted(listed.stolen_accuracy) == pytest.approx(sorted(table.stolen_accuracy))
    named = {one for some in pd.read_csv(DOCS / "ledger.csv").our_fingerprints.dropna() for one in some.split()}
    assert named <= set(listed.fingerprint)


def test_the_overrides_of_every_record_make_its_fingerprint_again():
    listed = pd.read_csv(DOCS / "records.csv")
    GlobalHydra.instance().clear()
    configs.register_aliases()
    with initialize_config_dir(str(configs.config_dir()), version_base="1.3"):
        made, composed = [], {}
        for text, precision in zip(listed.overrides, listed.precision, strict=True):
            words = [word for word in shlex.split(text) if not word.startswith("seed=")]
            # precision=fast is bfloat16 only on CPUs with units for it
            words += ["trainer.precision=bfloat16"] if precision == "bfloat16" else []
            if tuple(words) not in composed:  # the seeds of a cell share its config
                composed[tuple(words)] = hydra_compose("config", words)
            config = composed[tuple(words)]
            config.seed = int(re.search(r" seed=(\d+)|$", f" {text}")[1] or 0)
            made.append(cell_of(config).fingerprint)
    assert made == listed.fingerprint.tolist()


def test_the_document_shows_the_ledger():
    spec = importlib.util.spec_from_file_location("ledger_table", ROOT / "scripts" / "ledger_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rows, idle = script.found()
    assert not len(idle)
    assert (rows.same != "").all()
    assert script.table(rows) in (DOCS.parent / "reproduction.md").read_text()


@pytest.mark.parametrize(
    ("document", "heading", "records", "theft"),
    [
        (
            "reproduction",
            "| API | strength | API % | mean L1 |",
            "reproduction/records",
            ("cifar10", "cifar100_test", 10000),
        ),
        ("methods", "| defense | strength | API % | mean L1 |", "bench/defenses", ("mnist", "fashion_mnist", 50000)),
    ],
)
def test_costs_in_tables_are_means_of_the_records(document, heading, records, theft):
    found = pd.read_csv(DOCS.parent / f"{records}.csv")
    found = found[(found[["victim", "pool", "budget"]] == list(theft)).all(axis=1)]
    checked = 0
    for line in (DOCS.parent / f"{document}.md").read_text().partition(heading)[2].splitlines()[2:]:
        if not line.startswith("|"):
            break
        name, strength, api, l1 = (each.strip() for each in line.split("|")[1:5])
        name = NAMES.get(name) or re.search(r"`(\w+)`", name).group(1)
        number = float(re.search(r"[\d.]+$", strength).group()) if strength else 0
        rows = found[(found.defense == name) & (found.strength.fillna(0) == number)]
        if len(rows):
            assert float(api) == pytest.approx(100 * rows.defended_accuracy.mean(), abs=0.051), line
            assert float(l1) == pytest.approx(rows.l1_mean.mean(), abs=0.0051), line
            checked += 1
    assert checked > 10


@pytest.mark.parametrize("document", [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))], ids=lambda each: each.stem)
def test_a_sweep_that_a_document_shows_says_that_it_is_one(document):
    for line in re.findall(r"^    (mad-run .*)", document.read_text().replace("\\\n", " "), flags=re.M):
        words = shlex.split(line, comments=True)
        values = [value for _, _, value in (word.partition("=") for word in words) if value[:1] not in "[{"]
        experiments = [word.partition("=")[2].strip("[]").split(",")[-1] for word in words if "experiment=" in word]
        if "-m" not in words and not any(configs.sweeps(name) for name in experiments):
            assert not any("," in value for value in values), line
