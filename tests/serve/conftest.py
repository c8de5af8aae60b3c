"""One server of the toy deployment for all tests that do not change it."""

import pytest


@pytest.fixture(scope="session")
def toy_deployment():
    from serving_toys import shared

    return shared()


@pytest.fixture(scope="session")
def server(toy_deployment):
    from serving_toys import running

    with running(toy_deployment, grpc_port=0) as it:
        yield it


@pytest.fixture
def answered(server, capfd):
    """A list to which a test adds how many images were answered; all else must not be charged."""
    from serving_toys import pictures

    before, more = server.metrics().get("mad_answered_total", 0), []
    yield more
    assert server.infer(pictures(1))[0] == 200
    assert server.metrics()["mad_answered_total"] == before + 1 + sum(more)
    assert "Traceback" not in "".join(capfd.readouterr())
