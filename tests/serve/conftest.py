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
