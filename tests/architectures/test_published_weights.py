"""The published weights of networks for photographs: which parts take them, and what is said where there are none."""

from functools import partial

import pytest
import torch

from mad.architectures import imagenet
from mad.architectures.library import Torchvision
from mad.architectures.pixels import IMAGENET_MEAN, IMAGENET_STD
from mad.architectures.resnet import ResNet18, ResNet34, ResNet50
from mad.architectures.vgg import VGG16BN
from mad.errors import MadError
from mad.seeds import seeded


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize("side", [32, 64])
def test_resnet_from_imagenet(fetched, name, side):
    from torchvision import models

    make = partial({"resnet18": ResNet18, "resnet34": ResNet34, "resnet50": ResNet50}[name], (3, side, side), 1000)
    with seeded(0, "test"):
        random = make()
    with seeded(0, "test"):
        own = make(weights="imagenet")
    assert fetched == [name]
    given = list(imagenet.published(name).state_dict().values())
    untouched = range(len(given) - 2, len(given)) if side == 64 else [*range(6), len(given) - 2, len(given) - 1]
    for place, value in enumerate(own.state_dict().values()):
        expected = list(random.state_dict().values())[place] if place in untouched else given[place]
        assert torch.equal(value, expected)
    assert len(given) == len(models.get_model(name).state_dict())
    assert own.trunk[0].mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)
    assert own.trunk[0].std.flatten().tolist() == pytest.approx(IMAGENET_STD)


@pytest.mark.parametrize("side", [32, 64])
def test_vgg_from_imagenet(fetched, side):
    with seeded(0, "test"):
        own = VGG16BN((3, side, side), 5, weights="imagenet")
    assert fetched == ["vgg16_bn"]
    for place, value in enumerate(own.trunk.state_dict().values()):
        assert (value == torch.tensor(1e-3 * (place + 1)).to(value.dtype)).all()
    assert own.head.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_weights_are_left_out_where_others_follow(fetched):
    with imagenet.left_out():
        model = ResNet18((3, 32, 32), 3, weights="imagenet")
    assert not fetched
    assert model.trunk[0].mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)
    ResNet18((3, 32, 32), 3, weights="imagenet")
    assert fetched


def test_torchvision_from_imagenet(fetched):
    with seeded(0, "test"):
        model = Torchvision((3, 32, 32), 1000, "resnet18", weights="imagenet")
    assert fetched == ["resnet18"]
    given = imagenet.published("resnet18").state_dict()
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, given[name]) is not name.startswith("fc.")
    assert model.head is model.network.fc


def test_weights_out_of_reach_are_one_line(monkeypatch):
    from urllib.error import URLError

    from torchvision.models import _api

    def fail(*given, **how):
        raise URLError("no network")

    monkeypatch.setattr(_api, "load_state_dict_from_url", fail)
    with pytest.raises(MadError, match=r"^the ImageNet weights of resnet18 cannot be fetched .*no network.*: put http"):
        ResNet18((3, 32, 32), 5, weights="imagenet")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"<html>no such page</html>"])
def test_a_broken_file_of_weights_is_one_line_that_names_it(monkeypatch, tmp_path, content):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(MadError, match=rf"^{file} cannot be read .*: remove it, and it is fetched again$") as broken:
        ResNet18((3, 32, 32), 5, weights="imagenet")
    assert "\n" not in str(broken.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda state: state | {"layer4.1.bn2.weight": torch.full((512,), torch.nan)}, "NaN or infinite"),
        (lambda state: {f"module.{name}": value for name, value in state.items()}, "does not hold"),
        (lambda state: {name: value for name, value in state.items() if name != "conv1.weight"}, "does not hold"),
        (lambda state: list(state), "does not hold"),
    ],
)
def test_a_file_of_other_weights_is_one_line_that_names_it(monkeypatch, fetched, change, why):
    from torchvision.models import _api

    load = _api.load_state_dict_from_url
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda url, **how: change(load(url, **how)))
    with pytest.raises(MadError, match=rf"^.*resnet18-f37072fd\.pth .*{why}.*remove it"):
        ResNet18((3, 32, 32), 5, weights="imagenet")
