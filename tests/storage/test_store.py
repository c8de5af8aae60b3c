"""What is finished is kept, what is damaged is made again, what cannot be written is one line."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from toys import CPU, Tiny, trainer, victim

from mad.architectures import imagenet
from mad.cli import sweep_folder
from mad.errors import MadError
from mad.storage import files
from mad.storage import store as stores
from mad.storage.store import Store, kept

TASK = "victim toy"
PATH = Path("runs/toy/mad/knockoff/0123456789abcdef/record.json")


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


FETCHED = []


def pretrained(shape, classes):
    FETCHED.append(imagenet.wanted("imagenet"))
    return Tiny(shape, classes)


def test_a_kept_victim_fetches_no_published_weights(tmp_path, fits):
    FETCHED.clear()
    for _ in range(2):
        Store(tmp_path).victim(victim(architecture=pretrained), CPU)
    assert fits == [TASK]
    assert FETCHED == [True, False]


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


def test_everything_is_renewed_once_and_nobody_reads_what_is_old(tmp_path, fits):
    """Many jobs of a sweep on one victim: the first to come makes it again, the others wait and read the new one."""
    old, _ = Store(tmp_path).victim(victim(), CPU)
    (tmp_path / "sweep").mkdir()
    facts = only(tmp_path, "victim.json")
    inode = facts.stat().st_ino

    def job(_):
        store = Store(tmp_path, sweep_folder.Renewed(tmp_path / "sweep"))
        model, _ = store.victim(victim(), CPU)
        return facts.stat().st_ino != inode and torch.equal(weights(model), weights(old))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(job, range(8)))
    assert fits == [TASK, TASK]


def test_a_victim_replaced_by_anothers_is_made_again(tmp_path, fits, capfd):
    first, _ = Store(tmp_path).victim(victim(), CPU)
    Store(tmp_path).victim(victim(seed=1), CPU)
    one, two = sorted((tmp_path / "victims" / "toy").iterdir())
    for name in ("weights.safetensors", "victim.json"):
        (one / name).write_bytes((two / name).read_bytes())
    again = [Store(tmp_path).victim(victim(seed=seed), CPU)[0] for seed in (0, 1)]
    assert torch.equal(weights(again[0]), weights(first))
    assert len(fits) == 3
    assert "another's" in capfd.readouterr().err


def test_weights_that_do_not_fit_are_made_again(tmp_path, fits, capfd):
    """Facts and weights that agree with one another, and are of another network or no weights at all."""
    first, _ = Store(tmp_path).victim(victim(), CPU)
    facts, file = only(tmp_path, "victim.json"), only(tmp_path, "weights.safetensors")
    for content in (stores.save({"a": torch.zeros(1)}), b"\x80\x04N.", b""):
        file.write_bytes(content)
        about = {**files.unseal(facts), "weights_sha256": stores.hashlib.sha256(content).hexdigest()}
        files.write(facts, files.seal(about))
        assert torch.equal(weights(Store(tmp_path).victim(victim(), CPU)[0]), weights(first))
        assert "damaged" in capfd.readouterr().err
    assert len(fits) == 4


def test_a_diverged_victim_is_refused_and_not_kept(tmp_path):
    with pytest.raises(MadError, match="diverged"):
        Store(tmp_path).victim(victim(trainer=trainer(learning_rate=1e38)), CPU)
    assert list(tmp_path.rglob("*.json")) == list(tmp_path.rglob("*.safetensors")) == []


def test_outputs_below_a_file_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    below = Store(tmp_path / "file" / "outputs")
    with pytest.raises(MadError, match="outputs="):
        below.victim(victim(), CPU)
    with pytest.raises(MadError, match="outputs="):
        below.record(PATH, dict)
    with pytest.raises(MadError, match="outputs="):
        files.write(tmp_path / "file" / "records.csv", b"")


DEPTH = ("a network of this test", 3)


def made(folder, train, about=DEPTH):
    return kept(Store(folder), "helper", about, lambda: Tiny((1, 8, 8), 4), train, CPU)


def test_a_network_of_a_plug_in_is_trained_once_and_then_loaded(tmp_path):
    trained = []

    def train(network):
        assert network.training
        trained.append(network)
        network.head.weight.data.fill_(len(trained))

    first, again = made(tmp_path, train), made(tmp_path, train)
    assert len(trained) == 1
    assert first is trained[0]
    assert again is not first
    assert torch.equal(weights(again), weights(first))
    assert not again.training
    assert not first.training
    made(tmp_path, train, about=("a network of this test", 4))
    assert len(trained) == 2
    file = sorted(tmp_path.glob("victims/helper/*/weights.safetensors"), key=os.path.getmtime)[0]
    file.write_bytes(file.read_bytes()[:-1])
    assert made(tmp_path, train).head.weight.unique().item() == 3
    assert made(tmp_path, train).head.weight.unique().item() == 3
    assert list(tmp_path.glob("victims/helper/*/*.damaged"))


def test_a_network_of_a_plug_in_may_be_another_than_was_built(tmp_path):
    def train(network):
        other = Tiny((1, 8, 8), 4)
        other.head.bias.data.fill_(7)
        return other

    assert made(tmp_path, train).head.bias.tolist() == made(tmp_path, None).head.bias.tolist() == [7] * 4
    assert kept(None, "helper", DEPTH, lambda: Tiny((1, 8, 8), 4), train, CPU).head.bias.tolist() == [7] * 4


def test_many_at_once_train_a_network_once(tmp_path):
    trained = []
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: weights(made(tmp_path, trained.append)), range(8)))
    assert len(trained) == 1
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("name", ["../x", "", "a/b", None])
def test_a_kept_networks_name_leads_nowhere_else(tmp_path, name):
    with pytest.raises(MadError, match="the name of what is kept"):
        kept(Store(tmp_path), name, DEPTH, lambda: Tiny((1, 8, 8), 4), print, CPU)


@pytest.mark.parametrize("shared", [True, False])
def test_networks_of_one_recipe_and_two_names_are_both_renewed(tmp_path, shared):
    trained = []
    (tmp_path / "sweep").mkdir()
    renewed = sweep_folder.Renewed(tmp_path / "sweep") if shared else set()
    for store in (Store(tmp_path), Store(tmp_path, renewed), Store(tmp_path, renewed)):
        for name in ("encoder", "decoder"):
            kept(store, name, DEPTH, lambda: Tiny((1, 8, 8), 4), lambda _, name=name: trained.append(name), CPU)
    assert trained == ["encoder", "decoder"] * 2


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


def test_a_network_with_tied_weights_is_kept(tmp_path):
    first, again = (kept(Store(tmp_path), "tied", "tied", Tied, lambda _: None, CPU) for _ in range(2))
    assert first is not again
    assert again.first.weight is again.second.weight
    assert torch.equal(weights(first), weights(again))
