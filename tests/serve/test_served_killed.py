"""A server that is killed under load and started again: what was answered stays charged."""

import signal
import threading
import time

import pytest

pytest.importorskip("kserve")
pytestmark = pytest.mark.serve

from serving_toys import Process  # noqa: E402

from mad.serve import clients as keys  # noqa: E402
from mad.serve.ledger import Ledger  # noqa: E402


def test_a_server_that_is_killed_gives_no_budget_back(tmp_path, toy_deployment):
    toy_deployment.export(tmp_path / "api")
    key = keys.add(tmp_path / "clients.json", "a", budget=200)
    words = [f"deployment={tmp_path / 'api'}", f"clients={tmp_path / 'clients.json'}", "grpc_port=null"]
    answered, server = 0, Process(words)
    for kills in (1, 0):
        counts, stop = [0] * 4, threading.Event()

        def load(number, server=server, counts=counts, stop=stop):
            while not stop.is_set():
                counts[number] += server.ask(key) == 200

        threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
        for each in threads:
            each.start()
        while sum(counts) < 40:
            time.sleep(0.01)
        if kills:
            server.end()
        else:
            while server.ask(key) == 200:
                answered += 1
        stop.set()
        for each in threads:
            each.join()
        answered += sum(counts)
        if kills:
            server = Process(words)
    ledger = Ledger(tmp_path / "clients.ledger")
    (client,) = keys.read(tmp_path / "clients.json")
    assert ledger.used(client.id) == 200
    ledger.close()
    assert 200 - 4 <= answered <= 200  # at most what was under way when it was killed is charged and not answered
    assert server.end(signal.SIGTERM) == 0
