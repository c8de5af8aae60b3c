"""Fault 3: every artefact truncated, flipped, emptied, replaced by another's."""

import random
import shutil

import pytest
from toys import CPU, cell, trainer, victim

from mad.defenses.mad import Mad
from mad.defenses.surrogates import TrainedSurrogate
from mad.pipeline import run
from mad.storage import records
from mad.storage.store import Store

NETWORKS = ("victims/toy/*/{}", "victims/surrogate/*/{}")
ARTEFACTS = [
    "runs/toy/mad/*/*/record.json",
    *(place.format(name) for place in NETWORKS for name in ("victim.json", "weights.safetensors")),
]
KINDS = ("truncated", "flipped", "emptied", "another's")


def theft(seed):
    return cell(defense=Mad(0.5, TrainedSurrogate(trainer(epochs=2))), seed=seed, victim=victim(seed=seed))


def numbers(record):
    return {key: value for key, value in record.items() if not key.startswith("seconds")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Outputs of two cells, and the record of the first."""
    outputs = tmp_path_factory.mktemp("whole")
    found = [run(theft(seed), Store(outputs), CPU)[0] for seed in (0, 1)]
    return outputs, numbers(found[0])


def damage(file, other, kind, draw):
    content = bytearray(file.read_bytes())
    if kind == "truncated":
        del content[draw.randrange(len(content)) :]
    elif kind == "flipped":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "emptied":
        content.clear()
    else:
        content = bytearray(other.read_bytes())
    file.write_bytes(content)


def of_the_first(outputs, pattern):
    """The file of the first cell and of the second."""
    uses = run(theft(0), Store(outputs), CPU)[0]
    mine = (uses["fingerprint"], *(name.rpartition("/")[2] for name in uses["uses"].split()))
    files = sorted(outputs.glob(pattern), key=lambda file: file.parent.name not in mine)
    assert len(files) == 2
    return files


@pytest.mark.parametrize("times", [1, pytest.param(25, marks=pytest.mark.faults)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", ARTEFACTS)
def test_damage_is_noticed_reported_and_repaired(pattern, kind, times, whole, tmp_path, capfd):
    source, right = whole
    for turn in range(times):
        outputs = tmp_path / str(turn)
        shutil.copytree(source, outputs)
        file, other = of_the_first(outputs, pattern)
        damage(file, other, kind, random.Random(f"{pattern} {kind} {turn}"))
        if file.name == "record.json":
            assert len(records.read(outputs)) == 1
        else:  # networks are read again only where a record is to be made
            (outputs / theft(0).path).unlink()
        capfd.readouterr()
        record, kept = run(theft(0), Store(outputs), CPU)
        assert not kept
        assert numbers(record) == right
        lines = [line for line in capfd.readouterr().err.splitlines() if "damaged" in line]
        assert len(lines) == 1
        assert file.parent.name in lines[0]
        assert len(list(outputs.rglob("*.damaged"))) == 1
        assert run(theft(0), Store(outputs), CPU) == (record, True)
        assert len(records.read(outputs)) == 2
        shutil.rmtree(outputs)
