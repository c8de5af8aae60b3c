"""Every YAML below conf/ composes, builds its part, and is named like it."""

from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image
from toys import build, choices, compose

from mad.architectures.lenet import LeNet
from mad.cli import configs
from mad.cli.compose import PARTS
from mad.knockoff import CHANGES
from mad.pipeline import Cell

FILES = sorted(  # but for the launchers, which are Hydra's to build
    (file.parent.relative_to(configs.config_dir()).as_posix(), file.stem)
    for file in configs.config_dir().rglob("*.yaml")
    if file.parent != configs.config_dir() and "hydra" not in file.parts[len(configs.config_dir().parts) :]
)
KINDS = ("defense", "attack", "recovery", "victim", "pool", "dataset", "defense/surrogate")


@pytest.fixture
def part(tmp_path):
    """Build the part that a choice names; the places where its files lie are set in what was composed."""

    def make(group, name):
        if name == "own":
            for one in ("a", "b"):
                (tmp_path / one).mkdir(exist_ok=True)
                Image.new("L", (9, 9), 50).save(tmp_path / one / "one.png")
        if name in ("image_folder", "replay"):
            Image.new("L", (9, 9), 50).save(tmp_path / "one.png")
        if name == "replay":
            (tmp_path / "log.csv").write_text("image,label\none.png,0\n")
        if group == "dataset":  # is no part of its own: others take it in
            config, at = compose(f"+dataset@data={name}"), "data"
        else:
            config, at = compose(f"{group}={name}"), group.replace("/", ".")
        node = OmegaConf.select(config, at)
        config.data_root = str(tmp_path)
        if (group, name) == ("victim", "own"):
            config.data = str(tmp_path)
        if name in ("own", "image_folder"):
            (node if group == "dataset" else config.pool).path = str(tmp_path)
        if name == "replay":
            node.log = f"{tmp_path}/log.csv"
        if name == "idx":
            node.path = f"{tmp_path}/some"
        if node.get("_target_", "").endswith("IdxImages"):
            for file in map(Path, [node.path] if isinstance(node.path, str) else node.path):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"any")
        return build(node)

    return make


def test_the_walk_finds_every_group():
    groups = {group for group, _ in FILES}
    assert groups >= {*PARTS, "trainer", "architecture", "experiment", "dataset", "defense/surrogate"}


@pytest.mark.parametrize(("group", "name"), [pair for pair in FILES if not pair[0].startswith("experiment")])
def test_choice_composes_and_builds_and_is_named_like_its_file(part, group, name):
    made = part(group, name)
    assert made is not None
    assert group not in KINDS or made.name == name


@pytest.mark.parametrize("name", [name for name in configs.experiments() if not name.startswith("paper/")])
def test_experiment_is_a_cell(name):
    config = compose(f"experiment={name}")
    made = Cell(**{part: build(config[part]) for part in PARTS}, seed=config.seed)
    assert made.fingerprint == Cell(**{part: build(config[part]) for part in PARTS}).fingerprint


@pytest.mark.parametrize("name", choices("architecture"))
def test_every_architecture_can_be_the_knockoffs(name):
    knockoff = build(compose(f"knockoff/architecture={name}").knockoff)
    own = build(compose(f"architecture={name}").architecture)
    assert knockoff.architecture.func is own.func


@pytest.mark.parametrize("name", choices("architecture"))
def test_architecture_takes_shape_and_classes(name):
    if name == "timm":
        pytest.importorskip("timm")
    shape = (3, 28, 28) if name == "torchvision" else (1, 28, 28)  # whose networks take colors alone
    model = build(compose(f"architecture={name}").architecture)(shape=shape, classes=7)
    assert model(next(iter(model.parameters())).new_zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("group", ["architecture", "knockoff/architecture", "defense/surrogate/architecture"])
def test_a_model_of_a_library_is_chosen_by_name_and_weights(group):
    at = group.replace("/", ".")
    config = compose(f"{group}=torchvision", f"{at}.name=resnet34", f"{at}.weights=imagenet")
    made = build(OmegaConf.select(config, at))
    assert made.keywords == {"name": "resnet34", "weights": "imagenet"}


@pytest.mark.parametrize("name", sorted({*choices("dataset")} - {"own"}))  # which is given a path at each place
def test_every_dataset_is_described_once(part, name):
    described = part("dataset", name)
    assert build(compose(f"pool={name}").pool) == described
    if name in choices("victim"):
        assert build(compose(f"victim={name}").victim).dataset == described
    trained = build(compose("defense/surrogate=trained", f"defense/surrogate/dataset={name}").defense).surrogate
    assert trained.dataset == described


@pytest.mark.parametrize("name", choices("architecture"))
@pytest.mark.parametrize("kind", ["random", "trained"])
def test_every_architecture_can_be_the_surrogates(kind, name):
    plain, other = [f"defense/surrogate={kind}"], f"defense/surrogate/architecture={name}"
    assert build(compose(*plain).defense).surrogate.architecture is None
    own = build(compose(f"architecture={name}").architecture)
    assert build(compose(*plain, other).defense).surrogate.architecture.func is own.func


def test_the_surrogate_is_trained_as_the_trainer_says():
    surrogate = build(compose("defense/surrogate=trained", "trainer.epochs=3").defense).surrogate
    assert (surrogate.trainer.epochs, surrogate.dataset) == (3, None)
    assert build(compose("defense/surrogate=trained", "defense.surrogate.epochs=2").defense).surrogate.epochs == 2


def test_knockoff_recipe_reaches_its_trainer():
    knockoff = build(compose("knockoff.epochs=3", "knockoff.optimizer=adam", "knockoff.min_steps=7").knockoff)
    assert (knockoff.trainer.epochs, knockoff.trainer.optimizer, knockoff.trainer.min_steps) == (3, "adam", 7)
    assert (knockoff.trainer.learning_rate, knockoff.trainer.weight_decay) == (0.001, 0)


def test_every_field_of_a_knockoffs_recipe_is_listed_in_its_config():
    assert set(CHANGES) <= set(compose().knockoff)


@pytest.mark.parametrize("name", choices("trainer"))
@pytest.mark.parametrize(
    "asked", ["knockoff.epochs=1", "victim.epochs=1", "trainer.epochs=1", "knockoff.schedule=constant"]
)
def test_fewer_epochs_are_no_fewer_steps(name, asked):
    config = compose(f"trainer={name}", asked)
    steps = {"paper": (0, 0), "fast": (2400, 800), "digits_fast": (800, 800)}.get(name, (800, 800))
    assert tuple(build(config[part]).trainer.min_steps for part in ("knockoff", "victim")) == steps


def test_the_papers_knockoff_is_trained_as_its_victim():
    config = compose("trainer=paper")
    own, victims = build(config.knockoff).trainer, build(config.victim).trainer
    assert own == replace(victims, weight_decay=0)
    assert (own.optimizer, own.learning_rate, own.momentum, own.schedule) == ("momentum", 0.1, 0.5, "step")


def test_knockoff_architecture_is_none_by_default():
    assert build(compose().knockoff).architecture is None
    assert build(compose("knockoff/architecture=lenet").knockoff).architecture.func is LeNet


@pytest.mark.parametrize(
    ("overrides", "pool"),
    [
        (["victim=mnist", "pool=fashion_mnist"], "fashion_mnist"),
        (["pool=fashion_mnist", "victim=mnist"], "fashion_mnist"),
        (["victim=mnist"], "emnist_letters"),
        (["victim=fashion_mnist"], "kmnist"),
        ([], "letters"),
        (["experiment=mnist"], "fashion_mnist"),
        (["experiment=mnist", "pool=kmnist"], "kmnist"),
    ],
)
def test_the_pool_asked_for_wins(overrides, pool):
    assert build(compose(*overrides).pool).name == pool


def test_data_root_is_the_environments(monkeypatch):
    monkeypatch.setenv("MAD_DATA", "elsewhere")
    assert compose("victim=mnist").victim.dataset.root == "elsewhere"
    assert compose("victim=mnist", "data_root=here").victim.dataset.root == "here"
