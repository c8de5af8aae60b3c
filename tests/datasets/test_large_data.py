"""The paper's photographs in small trees of their archives' layout."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from toys import CPU, Tiny, build, cell, compose, trainer, victim

from mad.datasets import batches
from mad.datasets.caltech256 import Caltech256
from mad.datasets.cifar import Cifar100Test
from mad.datasets.cub200 import Cub200
from mad.datasets.folder import Files
from mad.datasets.imagenet import ImageNet, TinyImageNet
from mad.errors import MadError
from mad.pipeline import run
from mad.storage.fingerprint import describe
from mad.storage.store import Store

EVERY = (Cub200, Caltech256, ImageNet, TinyImageNet)


def paint(file, grey):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(file, "png")


def greys(images):
    """The one value of each image: which file it came from."""
    return [image.flatten()[0].item() for batch in batches(images, None, 64, CPU) for image in batch]


def plant_cub(root):
    """Six birds of three classes; number, class and part do not follow each other."""
    place = root / "CUB_200_2011"
    rows = [(1, "b/1.png", 2, 1), (2, "a/2.png", 1, 0), (3, "c/3.png", 3, 1)]
    rows += [(4, "a/4.png", 1, 1), (5, "c/5.png", 3, 0), (6, "b/6.png", 2, 0)]
    for number, file, _, _ in rows:
        paint(place / "images" / file, number)
    lists = {"images": 1, "image_class_labels": 2, "train_test_split": 3}
    for turn, (name, column) in enumerate(lists.items()):
        turned = rows if turn == 0 else rows[::-1]
        (place / f"{name}.txt").write_text("".join(f"{row[0]} {row[column]}\n" for row in turned))
    return Cub200(str(root), classes=3, sizes=(3, 3))


def plant_caltech(root):
    """Classes of 27, 26 and 30 images, painted 0 to 82 in order; clutter; a file that is no image."""
    place, grey = root / "caltech256" / "256_ObjectCategories", 0
    for folder, count in (("001.ak47", 27), ("002.flag", 26), ("003.bag", 30)):
        for number in range(count):
            paint(place / folder / f"{number:04}.jpg", grey)
            grey += 1
    paint(place / "257.clutter" / "0001.jpg", 200)
    (place / "001.ak47" / "RENAME2").write_text("no image")
    return Caltech256(str(root), classes=3, sizes=(8, 75))


def plant_imagenet(root):
    for grey, file in enumerate(
        ["train/n2/a.JPEG", "train/n1/b.JPEG", "train/n1/a.JPEG", "val/n2/v.JPEG", "val/n1/w.JPEG"]
    ):
        paint(root / "imagenet" / file, grey)
    return ImageNet(str(root), classes=2, sizes=(3, 2))


def plant_tiny(root):
    place = root / "tiny-imagenet-200"
    for grey, file in enumerate(["train/n1/images/a.JPEG", "train/n2/images/a.JPEG", "train/n2/images/b.JPEG"]):
        paint(place / file, grey)
    (place / "train/n1/n1_boxes.txt").write_text("a.JPEG 0 0 1 1\n")
    for grey, name in ((10, "v0"), (11, "v1")):
        paint(place / f"val/images/{name}.JPEG", grey)
    (place / "val/val_annotations.txt").write_text("v1.JPEG\tn1\t0\t0\t1\t1\nv0.JPEG\tn2\t0\t0\t1\t1\n")
    return TinyImageNet(str(root), classes=2, sizes=(3, 2))


PLANTS = (plant_cub, plant_caltech, plant_imagenet, plant_tiny)


def both_of(dataset):
    return dataset.train(), dataset.test()


def test_cub_keeps_its_official_split(tmp_path):
    birds = plant_cub(tmp_path)
    assert greys(birds.train().images) == [1, 3, 4]
    assert birds.train().labels.tolist() == [1, 2, 0]
    assert greys(birds.test().images) == [2, 5, 6]
    assert birds.test().labels.tolist() == [0, 2, 1]


def test_caltech_is_split_once_and_for_all_without_its_clutter(tmp_path):
    caltech = plant_caltech(tmp_path)
    train, test = caltech.train(), caltech.test()
    assert test.labels.bincount().tolist() == [25, 25, 25]
    assert train.labels.bincount().tolist() == [2, 1, 5]
    assert sorted(greys(train.images) + greys(test.images)) == list(range(83))
    for split in (train, test):
        found = torch.tensor(greys(split.images))
        assert torch.equal(split.labels, (found >= 27).long() + (found >= 53))
    assert sorted(greys(test.images))[:25] != list(range(25))
    torch.manual_seed(1)
    assert greys(plant_caltech(tmp_path).train().images) == greys(train.images)


def test_folders_are_classes(tmp_path):
    imagenet, tiny = plant_imagenet(tmp_path), plant_tiny(tmp_path)
    assert greys(imagenet.images((3, 8, 8))) == [2, 1, 0]
    assert imagenet.labels().tolist() == imagenet.train().labels.tolist() == [0, 0, 1]
    assert (greys(imagenet.test().images), imagenet.test().labels.tolist()) == ([4, 3], [0, 1])
    assert greys(tiny.images((3, 8, 8))) == [0, 1, 2]
    assert tiny.labels().tolist() == [0, 1, 1]
    assert (greys(tiny.test().images), tiny.test().labels.tolist()) == ([11, 10], [0, 1])


@pytest.mark.parametrize("plant", PLANTS[:3])
def test_large_images_are_decoded_only_when_asked_for(tmp_path, plant):
    planted = plant(tmp_path)
    for file in planted.place.rglob("*.[pjJ]*"):
        file.write_bytes(b"no image any more")
    for images in (planted.train().images, planted.test().images, planted.images((3, 224, 224))):
        assert not isinstance(images, torch.Tensor)
        assert tuple(images.shape) == (len(images), 3, 224, 224)
    with pytest.raises(MadError, match=r"^[^\n]* cannot be read as an image[^\n]*$"):
        list(batches(planted.train().images, None, 2, CPU))


def test_tiny_imagenet_streams_where_it_is_large(tmp_path, monkeypatch):
    tiny = plant_tiny(tmp_path)
    kept = tiny.images((3, 32, 32))
    assert isinstance(kept, torch.Tensor)
    assert kept.shape == (3, 3, 32, 32)
    assert tuple(tiny.train().images.shape) == (3, 3, 64, 64)
    monkeypatch.setattr("mad.datasets.base.IN_MEMORY", kept.numel() - 1)
    stream = tiny.images((3, 32, 32))
    assert not isinstance(stream, torch.Tensor)
    assert torch.equal(torch.cat(list(batches(stream, None, 2, CPU))), kept)


def test_the_border_is_that_of_resizing_to_256_and_cutting_out_224(tmp_path):
    smooth = np.add.outer(np.arange(128), np.arange(192)) % 256
    Image.fromarray(smooth.astype(np.uint8)).save(tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as image:
        slow = torch.tensor(np.array(image.resize((96, 64)).crop((20, 4, 76, 60)))).int()
    found = Files([tmp_path / "one.png"], (1, 56, 56), 1 / 16)[0][0].int()
    assert (found - slow)[3:-3, 3:-3].abs().max() <= 1
    whole = Files([tmp_path / "one.png"], (1, 56, 56))[0][0].int()
    assert (whole - slow)[3:-3, 3:-3].abs().max() > 1


def test_a_pool_gives_grey_or_color_alone(tmp_path):
    imagenet = plant_imagenet(tmp_path)
    assert tuple(imagenet.images((1, 28, 28))[0].shape) == (1, 28, 28)
    with pytest.raises(MadError, match="channels"):
        imagenet.images((2, 28, 28))


@pytest.mark.parametrize("kind", EVERY)
def test_missing_files_are_one_line_that_names_the_remedy(tmp_path, kind):
    absent = kind(str(tmp_path))  # composing needs no data
    for ask in (absent.train, absent.test, absent.labels, lambda: absent.images((3, 32, 32))):
        with pytest.raises(MadError) as caught:
            ask()
        assert f"mad-data {absent.name} --root {tmp_path}" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("plant", PLANTS)
def test_a_part_is_never_taken_for_the_whole(tmp_path, plant):
    planted = plant(tmp_path)
    both_of(planted)
    next(file for file in sorted(planted.place.rglob("*.*")) if file.suffix in (".png", ".jpg", ".JPEG")).unlink()
    again = type(planted)(str(tmp_path), classes=planted.classes, sizes=planted.sizes)
    with pytest.raises(MadError, match=rf"^[^\n]*mad-data {planted.name}[^\n]*$"):
        both_of(again)


def test_damaged_lists_are_one_line(tmp_path):
    plant_cub(tmp_path)
    for name, content in (("image_class_labels", "1 1\n"), ("images", "1 a b\n"), ("image_class_labels", "1 x\n")):
        birds = plant_cub(tmp_path)
        (birds.place / f"{name}.txt").write_text(content)
        with pytest.raises(MadError, match=r"^[^\n]*mad-data cub200[^\n]*$"):
            birds.train()


def test_where_they_lie_changes_no_fingerprint():
    for kind in EVERY:
        assert describe(kind("here")) == describe(kind("there"))
    assert describe(Cifar100Test("here")) == describe(Cifar100Test("there"))


def test_a_victim_of_streams_is_trained_and_stolen(tmp_path):
    caltech, imagenet = plant_caltech(tmp_path), plant_imagenet(tmp_path)
    small = Caltech256(caltech.root, classes=3, sizes=[8, 75], shape=[3, 8, 8])
    recipe = trainer(epochs=1, augment="crop_flip")
    made = cell(victim=victim(dataset=small, architecture=Tiny, trainer=recipe), pool=imagenet, budget=3)
    record, kept = run(made, Store(tmp_path / "outputs"), CPU)
    assert (record["queries"], record["pool"], kept) == (3, "imagenet", False)


def pickled(root):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    content = pickle.dumps({"data": pixels, "fine_labels": [5, 99, 0, 5], "coarse_labels": [1, 2, 3, 1]})
    (root / "cifar-100-python").mkdir(exist_ok=True)
    (root / "cifar-100-python" / "test").write_bytes(content)
    return pixels, hashlib.md5(content).hexdigest()


def test_cifar100s_test_split_is_a_pool_alone(tmp_path):
    pixels, md5 = pickled(tmp_path)
    pool = Cifar100Test(str(tmp_path), md5=md5)
    assert torch.equal(pool.images((3, 32, 32)), torch.from_numpy(pixels).view(4, 3, 32, 32))
    assert pool.labels().tolist() == [5, 99, 0, 5]
    assert pool.labels().dtype == torch.int64


def test_no_other_pickle_is_opened(tmp_path):
    for message in ("No such file", "MD5"):
        with pytest.raises(MadError, match=rf"^[^\n]*{message}[^\n]*mad-data cifar100[^\n]*$"):
            Cifar100Test(str(tmp_path)).images((3, 32, 32))
        pickled(tmp_path)


@pytest.mark.parametrize(
    ("name", "pool", "classes", "shape"),
    [
        ("cifar10", "cifar100", 10, (3, 32, 32)),
        ("cifar100", "cifar10", 100, (3, 32, 32)),
        ("cub200", "imagenet", 200, (3, 224, 224)),
        ("caltech256", "imagenet", 256, (3, 224, 224)),
    ],
)
def test_the_papers_large_victims(name, pool, classes, shape):
    config = compose(f"victim={name}")
    made = build(config.victim)
    assert (made.dataset.classes, made.dataset.shape, build(config.pool).name) == (classes, shape, pool)
    assert made.architecture.func is build(compose("architecture=vgg16_bn").architecture).func
    augment = "resized_crop_flip" if shape[1] == 224 else "crop_flip"
    assert made.trainer.augment == build(config.knockoff).trainer.augment == augment
    for overrides in (["trainer=paper", f"victim={name}"], [f"victim={name}", "trainer=paper"]):
        assert build(compose(*overrides).victim).trainer.augment == augment
    asked = compose(f"victim={name}", "trainer.augment=none", "pool=cifar100_test", "architecture=resnet18")
    assert build(asked.victim).trainer.augment == "none"
    assert (asked.pool._target_.split(".")[-1], build(asked.victim).architecture.func.__name__) == (
        "Cifar100Test",
        "ResNet18",
    )
