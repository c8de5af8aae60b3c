"""The same model through every door is the same victim; the thief gets nothing of it but answers."""

import warnings
from dataclasses import replace

import pytest
import torch
from own_models import (
    FILES,
    MODEL,
    RECIPE,
    Conv,
    Inside,
    Named,
    dtype_of,
    exported,
    onnx,
    own,
    predict,
    safetensors,
    torchscript,
)
from safetensors.torch import save_file
from torch import nn
from toys import CPU, Tiny, cell, victim

from mad.defenses.mad import Mad
from mad.deployment import deploy
from mad.errors import MadError
from mad.notebook import run
from mad.pipeline import run as run_cell
from mad.seeds import seeded
from mad.storage.store import Store


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The record of the model when it is trained here."""
    return run_cell(cell(victim=RECIPE), Store(tmp_path_factory.mktemp("trained")), CPU)[0]


def stolen(tmp_path, **given):
    return run_cell(cell(victim=own(**given)), Store(tmp_path), CPU)[0]


def check_same(record, trained):
    assert record["victim_accuracy"] == trained["victim_accuracy"] > 0.9
    assert record["stolen_accuracy"] == pytest.approx(trained["stolen_accuracy"], abs=0.02)
    for column in ("defended_accuracy", "l1_mean", "l1_mean_queries", "answer_entropy", "target_entropy"):
        assert record[column] == pytest.approx(trained[column], abs=1e-3), column


def test_weights_beside_an_onnx_file_belong_to_it(tmp_path):
    onnx(tmp_path / "w.onnx")
    beside = tmp_path / "w.onnx.data"
    before = own(weights=str(tmp_path / "w.onnx")).checksums
    beside.write_bytes(beside.read_bytes()[:-4] + b"abcd")
    assert own(weights=str(tmp_path / "w.onnx")).checksums != before
    beside.unlink()
    with pytest.raises(MadError, match=r"w\.onnx cannot be read \(No such file or directory: .*w\.onnx\.data\)"):
        own(weights=str(tmp_path / "w.onnx"))


def test_an_architecture_of_a_notebook_needs_no_file_to_start_untrained():
    made = {"__name__": "__main__", "Tiny": Tiny}
    exec("class Cell(Tiny): pass", made)
    assert deploy(victim(architecture=made["Cell"]), Mad(0.5)).session()(torch.zeros(2, 1, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize("file", FILES)
def test_a_file_gives_the_record_of_the_model_in_it(tmp_path, trained, file):
    FILES[file](tmp_path / file)
    check_same(stolen(tmp_path, weights=str(tmp_path / file)), trained)


def test_a_function_gives_the_record_of_the_model_behind_it(tmp_path, trained):
    check_same(stolen(tmp_path, function=predict), trained)


def test_a_function_of_logits_or_labels_is_told_by_answers(tmp_path, trained):
    check_same(stolen(tmp_path, function=MODEL), trained)
    check_same(stolen(tmp_path, function=MODEL.forward, answers="logits"), trained)
    labels = cell(victim=own(function=lambda images: MODEL(images).argmax(1), answers="labels"), epsilon=0)
    assert run_cell(labels, Store(tmp_path), CPU)[0]["answer_entropy"] == 0
    defended = run_cell(replace(labels, defense=Mad(0.5)), Store(tmp_path), CPU)[0]
    assert defended["l1_mean"] == pytest.approx(0.5, abs=1e-5)
    assert defended["defended_accuracy"] == trained["victim_accuracy"]  # half of a label's mass moves no top class


@torch.no_grad()
def in_place(images):
    """Answers as ``predict`` does, from images that it normalizes in place."""
    images.sub_(0.5)
    return torch.softmax(MODEL(images + 0.5), dim=1)


def in_place_of_numpy(images):
    """The same through an array, which shares the tensor's memory."""
    found = images.numpy()
    found -= 0.5
    return predict(torch.from_numpy(found) + 0.5)


class Writing(nn.Module):
    """A network that writes into its images."""

    def forward(self, images):
        return torch.nn.functional.pad(images.sub_(0.5).flatten(1).sum(1, keepdim=True), [0, 3])


def written(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Writing()).save(str(tmp_path / "w.ts"))
    return own(weights=str(tmp_path / "w.ts"))


@pytest.mark.parametrize(
    "make",
    [lambda _: own(function=in_place), lambda _: own(function=in_place_of_numpy), written],
    ids=["function", "numpy", "program"],
)
def test_a_victim_that_writes_into_its_images_changes_those_of_nobody_else(make, tmp_path):
    images, seen = Named().images((1, 8, 8)).float()[:20] / 255, []
    before = images.clone()
    answers = deploy(make(tmp_path)).session(watch=lambda given, *_: seen.append(given.clone()))(images)
    assert images.equal(before)
    assert seen[0].equal(before)
    if make is not written:
        assert torch.allclose(answers, torch.softmax(MODEL(images), 1), atol=1e-6)


def test_posteriors_pass_exactly():
    images = Named().images((1, 8, 8)).float()[:20] / 255
    answers = deploy(own(function=predict)).session()(images)
    assert torch.allclose(answers, torch.softmax(MODEL(images), dim=1), atol=1e-6)


class Labels(nn.Module):
    """The model's class of each image, as a whole number; in a column if asked for."""

    def __init__(self, column=False):
        super().__init__()
        self.model, self.column = MODEL, column

    def forward(self, images):
        return self.model(images).argmax(1, keepdim=self.column)


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("write", [torchscript, lambda file, model: exported(file, 2, model), onnx])
def test_a_program_may_answer_with_labels(tmp_path, write, column):
    images = Named().images((1, 8, 8)).float()[:5] / 255
    file = tmp_path / ("w.onnx" if write is onnx else "w.pt2")
    write(file, model=Labels(column).eval())
    answers = deploy(own(weights=str(file), answers="labels")).session()(images)
    assert torch.equal(answers, nn.functional.one_hot(MODEL(images).argmax(1), 4).float())
    with pytest.raises(MadError, match=r"if they are labels, set victim\.answers=labels"):
        deploy(own(weights=str(file))).session()(images)


def frozen(file, model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.freeze(torch.jit.trace(model, torch.zeros(1, 1, 8, 8, dtype=dtype_of(model)))).save(str(file))


@pytest.mark.parametrize("write", [torchscript, frozen, exported, onnx])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_program_of_another_precision_answers_as_the_model_does(tmp_path, write, dtype):
    images = Named().images((1, 8, 8)).float()[:5] / 255
    file = tmp_path / ("w.onnx" if write is onnx else "w.pt2")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()  # onnxruntime has no convolutions of doubles
    expected = torch.softmax(model(images), dim=1)
    write(file, model=model.to(dtype))
    answers = deploy(own(weights=str(file))).session()(images)
    assert answers.dtype == torch.float32
    assert torch.allclose(answers, expected, atol=1e-2)


@pytest.mark.parametrize("most", [4, 5, 64, 1024])
def test_a_program_that_bounds_its_batch_gets_no_larger_one(tmp_path, most):
    exported(tmp_path / "w.pt2", most=most)
    network = own(weights=str(tmp_path / "w.pt2")).ready(CPU)
    images = torch.rand(1030 if most < 1024 else 1000, 1, 8, 8)
    for some in (images, images[:1], images[:0]):
        assert torch.allclose(network(some), MODEL(some), atol=1e-5)


class Loads(Conv):
    """A factory that gives the victim's weights to whoever builds it."""

    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.load_state_dict(MODEL.state_dict())


def test_knockoff_and_surrogate_start_untrained_whatever_the_factory_loads(tmp_path, capsys):
    safetensors(tmp_path / "w.safetensors")
    given = replace(own(weights=str(tmp_path / "w.safetensors")), architecture=Loads)
    with seeded(0, "usual draws"):
        mine, theirs = MODEL.state_dict(), Conv((1, 8, 8), 4).state_dict()
    for purpose in ("knockoff", "surrogate"):
        start = given.untrained(seed=0, purpose=purpose).state_dict()
        for name in ("body.0.weight", "body.0.bias", "head.weight"):
            assert not start[name].equal(mine[name]), name
            assert 0.3 < start[name].std() / theirs[name].std() < 3  # one of a layer's usual draws
        assert start["body.1.running_mean"].abs().max() == 0
    again = given.untrained(seed=0, purpose="knockoff").state_dict()
    assert again["head.weight"].equal(given.untrained(seed=0, purpose="knockoff").state_dict()["head.weight"])
    assert not again["head.weight"].equal(given.untrained(seed=1, purpose="knockoff").state_dict()["head.weight"])
    adversary = cell(victim=given).adversary(CPU)
    assert not adversary.untrained().state_dict()["head.weight"].equal(mine["head.weight"])
    assert "start" in capsys.readouterr().err
    assert deploy(given).model.state_dict()["head.weight"].equal(mine["head.weight"])  # the victim has its own


class Raw(Conv):
    """A factory that sets a parameter which no layer can draw anew."""

    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.scale = nn.Parameter(torch.arange(6.0).view(6, 1, 1))


def test_a_parameter_that_cannot_be_drawn_anew_is_refused():
    with pytest.raises(MadError, match=r"raw sets scale to the same values whatever the seed"):
        victim(architecture=Raw).untrained(seed=0, purpose="knockoff")


def test_factories_that_draw_their_weights_keep_them():
    """A network's own initialization is not replaced by its layers' usual ones."""

    class Wide(Tiny):
        def __init__(self, shape, classes):
            super().__init__(shape, classes)
            nn.init.normal_(self.head.weight, std=9)

    assert victim(architecture=Wide).untrained(seed=0, purpose="knockoff").head.weight.std() > 5


def test_the_fingerprint_is_of_the_content_and_not_of_the_path(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        safetensors(tmp_path / name)
    first, second = (cell(victim=own(weights=str(tmp_path / name))) for name in ("a.safetensors", "b.safetensors"))
    assert first.fingerprint == second.fingerprint != cell(victim=own(function=predict)).fingerprint
    save_file({k: v.contiguous() * 1.001 for k, v in MODEL.state_dict().items() if v.dim()}, tmp_path / "b.safetensors")
    assert cell(victim=own(weights=str(tmp_path / "b.safetensors"))).fingerprint != first.fingerprint
    with pytest.raises(MadError, match="changed after the start"):
        deploy(second.victim)


def test_functions_of_one_architecture_do_not_share_cached_answers():
    half = own(function=lambda images: torch.full((len(images), 4), 0.25))
    images = Named().images((1, 8, 8)).float()[:4] / 255
    from mad.cell import SHARED

    first = deploy(half, cache=SHARED).session()(images)
    assert not deploy(own(function=predict), cache=SHARED).session()(images).equal(first)


def test_normalization_is_the_networks(tmp_path):
    """Images reach the network as it was trained to see them, in its own layer if it has one."""
    images = Named().images((1, 8, 8)).float()[:20] / 255
    safetensors(tmp_path / "w.safetensors")
    plain = deploy(own(weights=str(tmp_path / "w.safetensors"), normalize={"mean": [0.2], "std": [0.7]})).session()
    assert torch.allclose(plain(images), torch.softmax(MODEL((images - 0.2) / 0.7), 1), atol=1e-6)

    inside = replace(own(weights=str(tmp_path / "w.safetensors")), architecture=Inside)
    assert torch.allclose(deploy(inside).session()(images), torch.softmax(MODEL((images - 0.5) * 2), 1), atol=1e-6)
    none = replace(inside, normalize="none")
    assert torch.allclose(deploy(none).session()(images), torch.softmax(MODEL(images), 1), atol=1e-6)


def test_without_a_model_it_is_trained_and_its_file_is_the_same_victim(tmp_path, trained):
    record = stolen(tmp_path)
    check_same(record, trained)
    file = next((tmp_path / "victims" / "own").rglob("weights.safetensors"))
    check_same(stolen(tmp_path, weights=str(file)), trained)


def test_a_run_from_python_takes_it(tmp_path):
    assert run(cell(victim=own(function=predict)), outputs=tmp_path)["architecture"] == "function"
