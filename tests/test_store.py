"""What is finished is kept, what is damaged is made again, what cannot be written is one line."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import CPU, victim

from mad import store as stores
from mad.errors import MadError
from mad.store import Store

TASK = "victim toy"


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def only(folder, name):
    (found,) = folder.rglob(name)
    return found


def test_a_victim_is_trained_once(tmp_path, fits):
    first, seconds = Store(tmp_path).victim(victim(), CPU)
    again, kept_seconds = Store(tmp_path).victim(victim(), CPU)
    assert fits == [TASK]
    assert torch.equal(weights(first), weights(again))
    assert seconds == kept_seconds > 0
    assert not again.training
    Store(tmp_path).victim(victim(seed=1), CPU)
    assert fits == [TASK, TASK]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone"])
def test_damaged_weights_are_made_again(tmp_path, fits, damage):
    first, _ = Store(tmp_path).victim(victim(), CPU)
    file = only(tmp_path, "weights.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 255
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flipped" else content[:-8])
    again, _ = Store(tmp_path).victim(victim(), CPU)
    assert fits == [TASK, TASK]
    assert torch.equal(weights(first), weights(again))
    Store(tmp_path).victim(victim(), CPU)
    assert len(fits) == 2


@pytest.mark.parametrize("text", ['{"sha256": "ab', "", "[]", "{}", '{"sha256": "00"}'])
def test_damaged_facts_are_made_again(tmp_path, fits, text, capfd):
    first, _ = Store(tmp_path).victim(victim(), CPU)
    only(tmp_path, "victim.json").write_text(text)
    again, _ = Store(tmp_path).victim(victim(), CPU)
    assert fits == [TASK, TASK]
    assert torch.equal(weights(first), weights(again))
    assert only(tmp_path, "victim.json.damaged").read_text() == text
    assert json.loads(only(tmp_path, "victim.json").read_text())["sha256"]
    assert "damaged" in capfd.readouterr().err


def test_facts_that_are_no_text_are_made_again(tmp_path, fits):
    Store(tmp_path).victim(victim(), CPU)
    only(tmp_path, "victim.json").write_bytes(b"\xff\xfe\x00")
    Store(tmp_path).victim(victim(), CPU)
    assert len(fits) == 2


def test_weights_without_facts_are_no_victim(tmp_path, fits):
    Store(tmp_path).victim(victim(), CPU)
    only(tmp_path, "victim.json").unlink()
    Store(tmp_path).victim(victim(), CPU)
    assert len(fits) == 2


def test_an_interrupted_training_leaves_no_victim(tmp_path, fits, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stores, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).victim(victim(), CPU)
    monkeypatch.undo()
    Store(tmp_path).victim(victim(), CPU)
    assert only(tmp_path, "victim.json")


def test_a_record_is_kept(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"value": len(made)}

    path = Path("runs/a/record.json")
    assert Store(tmp_path).record(path, make) == ({"value": 1}, False)
    assert Store(tmp_path).record(path, make) == ({"value": 1}, True)
    (tmp_path / path).write_text('{"value": ')
    assert Store(tmp_path).record(path, make) == ({"value": 2}, False)


def test_many_at_once_make_it_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"value": 1}

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: Store(tmp_path).record(Path("runs/record.json"), make), range(8)))
    assert len(made) == 1
    assert sorted(kept for _, kept in found) == [False] + [True] * 7


def test_a_failure_while_making_keeps_nothing(tmp_path):
    def fail():
        raise MadError("no")

    with pytest.raises(MadError, match="no"):
        Store(tmp_path).record(Path("runs/record.json"), fail)
    assert Store(tmp_path).record(Path("runs/record.json"), lambda: {"value": 1}) == ({"value": 1}, False)


def test_outputs_below_a_file_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    below = Store(tmp_path / "file" / "outputs")
    with pytest.raises(MadError, match="outputs="):
        below.victim(victim(), CPU)
    with pytest.raises(MadError, match="outputs="):
        below.record(Path("runs/record.json"), dict)
    with pytest.raises(MadError, match="outputs="):
        stores.write(tmp_path / "file" / "records.csv", b"")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "records.csv"
    stores.write(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(MadError, match="No space left"):
        stores.write(path, b"new")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["records.csv"]
    assert path.read_bytes() == b"old"
