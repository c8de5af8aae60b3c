"""A server that is killed under load and started again: what was answered stays charged."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("kserve")
pytestmark = pytest.mark.serve

from serving_toys import pictures, question  # noqa: E402

from mad.serve import clients as keys  # noqa: E402
from mad.serve.ledger import Ledger  # noqa: E402


class Process:
    """``mad-serve`` in a process of its own."""

    def __init__(self, folder, api):
        words = [f"deployment={api}", f"clients={folder / 'clients.json'}", "port=0", "grpc_port=null"]
        code = "from mad.cli.serve import main; main()"
        tests = str(Path(__file__).parents[1])  # where the toy network's class is
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, "-c", code, *words]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        line = ""
        while "http://" not in line:
            line = self.process.stderr.readline()
            assert line, f"it did not start: {self.process.communicate()}"
        self.url = line[line.index("http://") :].split()[0].rstrip(",") + "/infer"

    def ask(self, key, count=1):
        request = urllib.request.Request(self.url, json.dumps(question(pictures(count))).encode())
        request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                answer.read()
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except (OSError, http.client.HTTPException):  # it was killed
            return None

    def end(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        self.process.communicate()
        return self.process.returncode


def test_a_server_that_is_killed_gives_no_budget_back(tmp_path, toy_deployment):
    toy_deployment.export(tmp_path / "api")
    key = keys.add(tmp_path / "clients.json", "a", budget=200)
    answered, server = 0, Process(tmp_path, tmp_path / "api")
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
            server = Process(tmp_path, tmp_path / "api")
    ledger = Ledger(tmp_path / "clients.ledger")
    (client,) = keys.read(tmp_path / "clients.json")
    assert ledger.used(client.id) == 200
    ledger.close()
    assert 200 - 4 <= answered <= 200  # at most what was under way when it was killed is charged and not answered
    assert server.end(signal.SIGTERM) == 0
