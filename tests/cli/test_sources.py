"""Files of configs are parsed once, and what Hydra composes is what it would compose from its own sources."""

import copy

import hydra
import pytest
from hydra._internal.core_plugins import file_config_source, structured_config_source
from hydra._internal.sources_registry import SourcesRegistry
from omegaconf import OmegaConf

from mad.cli import configs, sources

LINES = [["defense=mad", "victim=mnist"], ["experiment=panel", "defense.epsilon=0.5"], ["knockoff/architecture=lenet"]]


def composed(words, folder=None):
    with (
        configs.own_hydra(),
        configs.quiet(),
        hydra.initialize_config_dir(str(folder or configs.config_dir()), version_base="1.3"),
    ):
        config = hydra.compose("config", words, return_hydra_config=True)
    return OmegaConf.to_container(config, resolve=False)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    configs.register_aliases()
    monkeypatch.setattr(sources, "_parsed", {})
    types = SourcesRegistry.instance().types
    for source in (sources.FileConfigSource, sources.StructuredConfigSource):
        monkeypatch.setitem(types, source.scheme(), source)
    return types


@pytest.mark.parametrize("words", LINES)
def test_the_config_is_that_of_hydras_own_sources(words, registered, monkeypatch):
    found = [composed(words), composed(words)]
    monkeypatch.setitem(registered, "file", file_config_source.FileConfigSource)
    monkeypatch.setitem(registered, "structured", structured_config_source.StructuredConfigSource)
    assert found == [composed(words)] * 2


def test_a_text_is_parsed_once(monkeypatch):
    composed(LINES[0])
    monkeypatch.setattr(sources.FileConfigSource.__base__, "load_config", None)
    assert composed(LINES[0])["defense"]


def test_an_edit_is_seen_and_a_file_that_is_broken_or_gone_is_an_error(tmp_path):
    file = tmp_path / "config.yaml"
    for value in (1, 2):
        file.write_text(f"x: {value}")
        assert composed([], tmp_path)["x"] == value
    for spoil in (lambda: file.write_text("x: ["), lambda: file.write_bytes(b"\xff"), file.unlink):
        spoil()
        with pytest.raises(Exception, match=r"config|flow|utf-8"):
            composed([], tmp_path)


def test_a_copy_of_the_registered_configs_is_they():
    source = sources.StructuredConfigSource("schema", "structured://")
    assert copy.deepcopy(source) is source
    before = copy.deepcopy(source.store.repo)
    composed(LINES[2])
    assert source.store.repo == before
