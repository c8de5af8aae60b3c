"""What an owner may get wrong: a warning that says what to do, or one line that names the file or function."""

import pickle
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from own_models import FILES, MODEL, Conv, Named, own, predict, safetensors
from safetensors.torch import save_file
from toys import CPU, cell

from mad.datasets import Split
from mad.datasets.checked import say
from mad.defenses.dp_sgd import DpSgd
from mad.defenses.mad import Mad
from mad.defenses.surrogates import VictimSurrogate
from mad.deployment import deploy
from mad.errors import MadError
from mad.own.examine import channels
from mad.own.normalized import layer
from mad.pipeline import run
from mad.storage.store import Store


def examined(capsys, victim):
    network = victim.ready(CPU)
    victim.examine(network, Named().test(), CPU)
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def _lines_are_said_again():
    say.cache_clear()


def weights(tmp_path, change=lambda state: state):
    state = change({name: value.clone() for name, value in MODEL.state_dict().items()})
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "w.safetensors")
    return own(weights=str(tmp_path / "w.safetensors"))


def test_a_right_model_gets_its_accuracy_and_no_warning(tmp_path, capsys):
    said = examined(capsys, weights(tmp_path))
    assert "of 200 labeled images right" in said
    assert "warning" not in said


def test_another_order_of_the_classes_is_told(tmp_path, capsys):
    order = torch.tensor([1, 2, 3, 0])

    def turned(state):
        return state | {name: state[name][order] for name in ("head.weight", "head.bias")}

    said = examined(capsys, weights(tmp_path, turned))
    assert "100.0% would be right, not 0.0%, with its classes in another order" in said
    assert "its class 0 is bee, not ant" in said
    assert "class_names" in said


@dataclass(frozen=True)
class Shifted(Named):
    """Images whose model was trained on normalized ones."""

    def split(self, part):
        images, labels = super().split(part)
        return Split((images.float() * 0.1 + 120).to(torch.uint8), labels)


def test_a_wrong_normalization_is_told(tmp_path, capsys):
    recipe = replace(own(normalize="mnist"), dataset=Shifted())
    model = recipe.train(CPU)
    save_file({k: v.contiguous() for k, v in model.network.state_dict().items()}, tmp_path / "w.safetensors")
    for normalize, wrong in (("mnist", False), ("bytes", True)):
        given = replace(own(weights=str(tmp_path / "w.safetensors"), normalize=normalize), dataset=Shifted())
        network = given.ready(CPU)
        given.examine(network, Shifted().test(), CPU)
        said = capsys.readouterr().err
        assert ("images right with victim.normalize=" in said) is wrong, said
        assert wrong is False or f"as it is (victim.normalize={normalize})" in said


def test_blue_first_is_told(capsys):
    labels = torch.arange(60) % 3
    images = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0)) / 2
    images[torch.arange(60), labels] += 0.5  # the brightest channel is the class

    class Brightest(torch.nn.Module):
        def forward(self, images):
            return 9 * images.mean(dim=(2, 3))

    class Reversed(Brightest):
        def forward(self, images):
            return super().forward(images.flip(1))

    assert channels(Reversed(), Split(images, labels), CPU, "mine")
    assert "100.0% of 60 images right with blue first (BGR), 33.3% as it is" in capsys.readouterr().err
    assert not channels(Brightest(), Split(images, labels), CPU, "mine")
    assert not channels(Brightest(), Split(images[:, :1], labels), CPU, "mine")
    assert capsys.readouterr().err == ""


def test_chance_is_told(capsys):
    said = examined(capsys, own(function=lambda images: torch.eye(4)[torch.arange(len(images)) // 3 % 4]))
    assert "hardly right more often than chance, 25.0%" in said


class Dropping(Conv):
    """A network whose dropout is never switched off."""

    def forward(self, images):
        return self.head(torch.nn.functional.dropout(self.body(images).flatten(1), 0.5)) / 9


def test_answers_that_change_are_told(tmp_path, capsys):
    def noisy(images):
        return torch.softmax(MODEL(images) / 9 + torch.rand(len(images), 4), 1)

    def by_place(images):
        return torch.softmax(MODEL(images) / 9 + torch.arange(len(images)).unsqueeze(1) * torch.eye(4)[0], 1)

    safetensors(tmp_path / "w.safetensors")
    weighed = replace(own(weights=str(tmp_path / "w.safetensors")), architecture=Dropping)
    for victim in (own(function=noisy), own(function=by_place), weighed):
        said = examined(capsys, victim)
        assert "warning: victim own: asked again it answers" in said
        assert "images otherwise" in said
        assert len([line for line in said.splitlines() if "asked again" in line]) == 1
        say.cache_clear()
    for victim in (own(function=predict), own(function=lambda images: MODEL(images).argmax(1), answers="labels")):
        assert "asked" not in examined(capsys, victim)


def test_answers_that_depend_on_the_others_are_told(capsys):
    """A batch norm in train mode answers twice alike, and nothing that a single user asks."""
    norm = torch.nn.BatchNorm1d(4).train()
    said = examined(capsys, own(function=lambda images: torch.softmax(norm(MODEL(images)), 1)))
    assert "asked again" not in said
    assert "warning: victim own: asked two at a time it answers" in said
    assert said.count("otherwise") == 1


def truncated(file):
    safetensors(file)
    file.write_bytes(file.read_bytes()[:500])


def cut_archive(file):
    FILES["w.pt"](file)
    file.write_bytes(file.read_bytes()[:500])


def whole_model(file):
    torch.save(MODEL, file)


def plain_pickle(file):
    file.write_bytes(pickle.dumps(MODEL))


def other_head(file):
    save_file(Conv((1, 8, 8), 7).state_dict(), file)


def other_network(file):
    save_file({"layer.weight": torch.zeros(3)}, file)


def other_shape(file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Conv((3, 5, 5), 4).eval(), torch.zeros(1, 3, 5, 5)).save(str(file))


def three_channels(file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Conv((3, 8, 8), 4).eval(), torch.zeros(1, 3, 8, 8)).save(str(file))


def other_classes(file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Conv((1, 8, 8), 7).eval(), torch.zeros(1, 1, 8, 8)).save(str(file))


def not_finite(file):
    save_file({k: v / 0 if v.is_floating_point() else v for k, v in MODEL.state_dict().items()}, file)


def nonsense(file):
    file.write_bytes(b"\x08\x01 nonsense" * 9)


@pytest.mark.parametrize(
    ("make", "name", "said"),
    [
        (truncated, "w.safetensors", "cannot be read as safetensors"),
        (cut_archive, "w.pt", "cannot be read as a file of torch.save"),
        (whole_model, "w.pt", "holds more than tensors.*safetensors.torch.save_file"),
        (plain_pickle, "w.pkl", "holds more than tensors"),
        (other_head, "w.safetensors", r"is \(7, 384\) there.*another number of classes.*\(1, 8, 8\) and 4 classes"),
        (other_network, "w.safetensors", "fits 0 of the network's .*give weights of this architecture"),
        (
            other_shape,
            "w.ts",
            r"takes no images of \(1, 8, 8\) \(RuntimeError: .* to have 3 channels, but got 1 channels instead\): "
            r"channels come first; see victim\.dataset\.channels",
        ),
        (three_channels, "w.ts", r"takes no images .*: it takes 3 channels: set victim\.dataset\.channels=3$"),
        (other_classes, "w.ts", r"must answer .* with logits .*\(4\), got.*, 7\)|another number of classes"),
        (not_finite, "w.safetensors", "NaN or infinite values"),
        (nonsense, "w.onnx", "cannot be opened as onnx"),
    ],
)
def test_a_file_that_does_not_do_is_one_line_that_names_it(tmp_path, make, name, said):
    make(tmp_path / name)
    with pytest.raises(MadError, match=said) as raised:
        deploy(own(weights=str(tmp_path / name))).session()(torch.zeros(2, 1, 8, 8))
    assert str(tmp_path / name) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_one_line():
    with pytest.raises(MadError, match=r"^victim.weights=nowhere.pt cannot be read \(No such file or directory\)"):
        own(weights="nowhere.pt")


def test_what_needs_weights_or_training_is_refused_at_the_start(tmp_path):
    with pytest.raises(MadError, match=r"defense/surrogate=victim needs the weights of victim own; victim.function"):
        cell(victim=own(function=predict), defense=Mad(0.5, surrogate=VictimSurrogate()))
    assert cell(victim=weights(tmp_path), defense=Mad(0.5, surrogate=VictimSurrogate()))
    with pytest.raises(
        MadError, match=r"defense=dp_sgd trains victim own anew, and victim\.function=.*\.predict is given"
    ):
        cell(victim=own(function=predict), defense=DpSgd())
    with pytest.raises(MadError, match="victim own anew"):
        own(function=predict).fit(MODEL, CPU)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weights": "a", "function": predict}, "takes one of"),
        (
            {"function": "no_such_module.predict"},
            "no_such_module.predict cannot be imported .*No module named.*: expected MODULE",
        ),
        ({"function": "os.no_such"}, "expected MODULE.FUNCTION"),
        ({"function": "predict"}, "expected MODULE.FUNCTION"),
        ({"function": 3}, "must be a function"),
        ({"function": predict, "answers": "odds"}, "victim.answers must be one of logits, posteriors, labels"),
        ({"function": predict, "normalize": "image_net"}, "victim.normalize must be none, imagenet"),
        ({"function": predict, "normalize": {"mean": [1], "std": [0]}}, "victim.normalize must be"),
        ({"function": predict, "initial_weights": "a"}, "a given network is not trained"),
    ],
)
def test_what_cannot_be_a_victim_is_one_line(given, said):
    with pytest.raises(MadError, match=said):
        own(**given)


def test_a_network_in_train_mode_is_refused():
    with pytest.raises(MadError, match=r"call its eval\(\)"):
        own(function=Conv((1, 8, 8), 4))


@pytest.mark.parametrize("given", [{"mean": [0.1, 0.2], "std": [1, 1]}, {"mean": "x", "std": [1]}, [0.5], {}, 3])
def test_a_normalization_of_other_channels_is_refused(given):
    with pytest.raises(MadError, match=r"with 3 numbers each"):
        layer(given, 3)


def test_three_numbers_of_ones_own_are_not_averaged_for_gray_images():
    with pytest.raises(MadError, match=r"with 1 numbers each"):
        layer({"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}, 1)
    assert layer("imagenet", 1) is not None


def test_rounded_posteriors_are_rescaled_with_a_line(capsys):
    answers = deploy(own(function=lambda images: torch.tensor([[0.33, 0.33, 0.33, 0.0]] * 2))).session()
    assert torch.allclose(answers(torch.zeros(2, 1, 8, 8)), torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]), atol=1e-6)
    assert "its posteriors are rounded, so they are rescaled" in capsys.readouterr().err


def test_a_network_that_takes_the_place_of_a_function_answers_with_logits():
    given = replace(own(function=predict), function=MODEL)
    assert torch.allclose(deploy(given).session()(torch.zeros(2, 1, 8, 8)), MODEL(torch.zeros(2, 1, 8, 8)).softmax(1))


def test_a_pool_of_the_victims_own_test_images_is_told(tmp_path, capsys):
    class Same(Named):
        def images(self, shape):
            return self.test().images

    run(cell(victim=own(function=predict), pool=Same()), Store(tmp_path), CPU)
    said = capsys.readouterr().err
    assert "warning: pool blobs shares 200 of 200 compared images with the test split of victim own" in said
    run(cell(victim=own(function=predict)), Store(tmp_path), CPU)
    assert "compared images" not in capsys.readouterr().err
