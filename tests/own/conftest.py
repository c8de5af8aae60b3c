"""A server of the toy model, for all tests of this folder."""

import pytest
from serving import served


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with served(tmp_path_factory.mktemp("server")) as it:
        yield it


@pytest.fixture
def server(running):
    running.reset()
    return running
