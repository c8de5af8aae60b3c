"""What a knockoff's initial weights must be, and what is said of them."""

import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from toys import CPU, Blobs, Tiny, cell, trainer, victim

from mad.attacks import TransferSet
from mad.errors import MadError
from mad.knockoff import Knockoff
from mad.pipeline import run
from mad.storage.store import Store
from mad.weights import NESTED, first_line, load_into


class Deep(Tiny):
    """A body, of a layer and a norm, below the head."""

    def __init__(self, shape, classes):
        super().__init__((1, 1, 5), classes)
        self.body = nn.Sequential(nn.Linear(torch.Size(shape).numel(), 5), nn.BatchNorm1d(5))

    def forward(self, images):
        return super().forward(self.body(images.flatten(1)))


def transfer_set(toy):
    images = Blobs().images((1, 8, 8))
    return TransferSet(images, torch.arange(20), torch.full((20, toy.dataset.classes), 0.25))


DEEP = victim(architecture=Deep)


def stored(tmp_path, change=lambda tensors: tensors, classes=4):
    """A file with the weights of another network of the same architecture, changed; and those weights."""
    weights = victim(classes, architecture=Deep).untrained(seed=9, purpose="start").state_dict()
    save_file({name: value.contiguous() for name, value in change(dict(weights)).items()}, tmp_path / "w.safetensors")
    return str(tmp_path / "w.safetensors"), weights


def prefixed(prefix, names=None):
    return lambda tensors: {(prefix if names is None or k in names else "") + k: v for k, v in tensors.items()}


def without(*names):
    return lambda tensors: {name: value for name, value in tensors.items() if name not in names}


def with_(**values):
    return lambda tensors: tensors | {name.replace("__", "."): value for name, value in values.items()}


BODY = ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias", "body.1.running_mean", "body.1.running_var"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without(), "9 of 9 tensors loaded"),
        (prefixed("module."), "9 of 9 .*9 of them .* prefix, such as 'module.head.weight' as head.weight"),
        (prefixed("_orig_mod.model."), "9 of 9 .* prefix"),
        (prefixed("module.", BODY), "9 of 9 .*6 of them"),
        (without("body.1.num_batches_tracked"), "8 of 9 tensors loaded; left as drawn: body.1.num_batches_tracked"),
        (without("head.bias"), "7 of 9 tensors loaded; left as drawn: head.weight, head.bias"),
        (with_(more=torch.zeros(2)), "9 of 9 tensors loaded; in the file but not in the network: 'more'"),
        (lambda t: {k: v.half() if v.is_floating_point() else v for k, v in t.items()}, "converted from float16"),
    ],
)
def test_a_knockoff_says_what_it_starts_from(tmp_path, change, said):
    file, weights = stored(tmp_path, change)
    network = DEEP.untrained(seed=0, purpose="knockoff")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    told = Knockoff(trainer(), initial_weights=file).start(network)
    assert re.search(said, told)
    for name, value in network.state_dict().items():
        expected = before[name] if re.search(rf"drawn.*{name}", told) else weights[name]
        assert torch.allclose(value.double(), expected.double(), atol=1e-3), name


def test_a_last_layer_of_other_classes_stays_as_drawn(tmp_path):
    file, weights = stored(tmp_path, classes=7)
    network = DEEP.untrained(seed=0, purpose="knockoff")
    head = network.head.weight.clone()
    assert "left as drawn: head.weight, head.bias" in Knockoff(trainer(), initial_weights=file).start(network)
    assert torch.equal(network.body[0].weight, weights["body.0.weight"])
    assert torch.equal(network.head.weight, head)


def test_a_checkpoint_may_hold_tensors_beside_the_weights(tmp_path):
    """PyTorch's own example of ImageNet keeps its best accuracy so."""
    network, start = (DEEP.untrained(seed=seed, purpose="knockoff") for seed in (0, 1))
    held: dict = {"epoch": 3, "state_dict": start.state_dict(), "best_acc1": torch.tensor(71.3), "params": {"lr": 0.1}}
    torch.save(held, tmp_path / "checkpoint.pt")
    assert "9 of 9" in load_into(network, (tmp_path / "checkpoint.pt").read_bytes(), whole=True)
    assert torch.equal(network.head.weight, start.head.weight)
    held.clear()
    held |= dict.fromkeys(NESTED, held)  # without an end
    torch.save(held, tmp_path / "checkpoint.pt")
    with pytest.raises(MadError, match="holds no state dict"):
        load_into(network, (tmp_path / "checkpoint.pt").read_bytes())


def test_a_prefix_may_be_the_networks_own(tmp_path):
    network = nn.ModuleDict({"network": victim(architecture=Deep).untrained(seed=0, purpose="knockoff")})
    file, weights = stored(tmp_path)
    assert "9 of 9" in Knockoff(trainer(), initial_weights=file).start(network)
    assert torch.equal(network["network"].head.weight, weights["head.weight"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without("body.0.weight"), r"fits 8 of .* 9 .*body.0.weight \(5, 64\) is absent"),
        (prefixed("student."), "fits 0 of"),
        (prefixed("student.", BODY), "fits 3 of"),
        (with_(body__0__weight=torch.zeros(5, 9)), r"body.0.weight \(5, 64\) is \(5, 9\) there"),
        (with_(body__0__weight=torch.full((5, 64), torch.nan)), "NaN or infinite values in 'body.0.weight'"),
        (with_(body__1__running_var=torch.full((5,), torch.inf)), "NaN or infinite"),
        (with_(body__0__weight=torch.full((5, 64), 1e300, dtype=torch.float64)), "NaN or infinite"),
        (with_(body__0__weight=torch.ones(5, 64, dtype=torch.int8)), "'body.0.weight' as int8, .* float32"),
        (with_(module__body__0__weight=torch.zeros(5, 64)), "two tensors for body.0.weight"),
    ],
)
def test_weights_without_the_body_are_refused_before_anything_is_trained(tmp_path, fits, change, why):
    file, _ = stored(tmp_path, change)
    before = DEEP.untrained(seed=0, purpose="knockoff").state_dict()
    given = Knockoff(trainer(), initial_weights=file)
    with pytest.raises(MadError, match=rf"^knockoff\.initial_weights={file} .*{why}") as refused:
        run(cell(victim=DEEP, knockoff=given), Store(tmp_path / "outputs"), CPU)
    assert "\n" not in str(refused.value)
    assert fits == []
    network = DEEP.untrained(seed=0, purpose="knockoff")
    with pytest.raises(MadError, match="initial_weights"):
        given.start(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty: write it anew"),
        (b"PK\x03\x04 torch.save", r"cannot be read as a file of torch.save \(.*[^.]\): is it whole\?"),
        (b"\xff" * 20, "is no model file of a known kind: expected safetensors or a state dict .* TorchScript"),
        (b"hello I am not a model", "is no model file of a known kind"),
        (b"\x10" + 7 * b"\0" + b'{"a": ', r"cannot be read as safetensors \(.*\): is it whole\?"),
    ],
)
def test_a_file_without_weights_is_one_line_that_names_it(tmp_path, content, why, fits):
    (tmp_path / "w.pt").write_bytes(content)
    given = Knockoff(trainer(), initial_weights=str(tmp_path / "w.pt"))
    with pytest.raises(MadError, match=rf"^knockoff\.initial_weights=.*w\.pt {why}"):
        run(cell(knockoff=given), Store(tmp_path / "outputs"), CPU)
    assert fits == []


def test_another_librarys_message_is_cut_where_it_may_end():
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("a\nb ")) == "a b"
    assert first_line(ValueError("It is so. " + "x" * 200)) == "It is so"
    assert first_line(ValueError("x" * 200)) == "x" * 150 + "..."


@pytest.mark.parametrize("name", ["absent.safetensors", "", ".", "~nobody-of-that-name/w", "a\0b"])
def test_a_file_that_is_not_there_is_one_line_that_names_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MadError, match=r"^knockoff\.initial_weights=.* cannot be read \("):
        Knockoff(trainer(), initial_weights=name)


def test_a_file_that_is_replaced_meanwhile_is_not_loaded(tmp_path):
    file, _ = stored(tmp_path)
    given = Knockoff(trainer(), initial_weights=file)
    stored(tmp_path, with_(head__bias=torch.ones(4)))
    with pytest.raises(MadError, match="changed after the start"):
        given.start(DEEP.untrained(seed=0, purpose="knockoff"))


def test_a_record_says_what_a_knockoff_started_from(tmp_path, capfd):
    file, weights = stored(tmp_path, prefixed("module."))
    slow = Knockoff(trainer(epochs=1, optimizer="sgd", learning_rate=1e-9), initial_weights=file)
    start = cell(victim=DEEP, knockoff=slow).adversary(CPU).train(transfer_set(DEEP))
    assert torch.allclose(start.head.weight, weights["head.weight"], atol=1e-3)
    record = run(cell(victim=DEEP, knockoff=slow), Store(tmp_path / "outputs"), CPU)[0]
    assert record["initial_weights"].startswith("9 of 9 tensors loaded; 9 of them")
    assert f"knockoff.initial_weights={file}: {record['initial_weights']}" in capfd.readouterr().err
