"""A server of a toy deployment in a thread of this process, and plain HTTP to ask it."""

import asyncio
import contextlib
import functools
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch
from toys import victim

from mad.defenses.gate import Gate
from mad.defenses.mad import Mad
from mad.deployment import deploy
from mad.serve.clients import add
from mad.serve.server import serving
from mad.serve.service import Service
from mad.serve.settings import Settings
from mad.testing import Blobs
from mad.victim import Victim

SHAPE, CLASSES, MODEL = (1, 8, 8), 4, "/v2/models/toy"


def toy(defense=None, **changes):
    return deploy(victim(**changes), defense or Mad(0.5))


def guarded():
    """A deployment that tests its clients."""
    return toy(Gate(alpha=0.1, client=1e-6), dataset=Blobs(size=700), validation=0.4)


@functools.cache
def shared():
    """The deployment that the tests share."""
    return toy()


def predict(images):
    """Answer as the shared deployment does."""
    return shared().session().answer(images)[1]


def pictures(count, seed=0):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Named(Victim):
    """A victim whose data has names of classes."""

    @property
    def class_names(self):
        return json.dumps(["a", "b", "c", "d"])


class Running:
    """A running server and the keys of its clients."""

    def __init__(self, service, port, grpc_port, keys):
        self.service, self.port, self.grpc_port, self.keys = service, port, grpc_port, keys
        self.host, self.url = f"127.0.0.1:{port}", f"http://127.0.0.1:{port}{MODEL}"

    def call(self, path, body=None, key=None, headers=(), method=None):
        """Return status, content and headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = {**({"Authorization": f"Bearer {key}"} if key else {}), **dict(headers)}
        with contextlib.closing(connection):
            connection.request(method or ("GET" if body is None else "POST"), path, body, sent)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers

    def infer(self, images, key=None, **more):
        """Return status and the JSON of an answer to images (B, C, H, W)."""
        status, content, _ = self.call(f"{MODEL}/infer", json.dumps(question(images, **more)), key)
        return status, json.loads(content)

    def answers(self, images, key=None):
        status, found = self.infer(images, key)
        assert status == 200, found
        return torch.tensor(found["outputs"][0]["data"]).reshape(found["outputs"][0]["shape"])

    def metrics(self, key=None):
        status, content, _ = self.call("/metrics", key=key)
        assert status == 200
        rows = [line.rsplit(" ", 1) for line in content.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in rows}


def question(images, **more):
    data = {"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.flatten().tolist()}
    return {"inputs": [data], **more}


@contextlib.contextmanager
def running(deployment, folder=None, clients=(), **settings):
    """Serve a deployment; ``clients`` are (name, limits)."""
    keys = {}
    if clients:
        file = folder / "clients.json"
        settings["clients"] = str(file)
        if not file.exists():
            keys = {name: add(file, name, **limits) for name, limits in clients}
    service = Service(deployment, Settings(**{"port": 0, "grpc_port": None, **settings}))
    ports, ready = [], threading.Event()

    def started(*found):
        ports.extend(found)
        ready.set()

    thread = threading.Thread(target=lambda: asyncio.run(serving(service, started)))
    thread.start()
    try:
        assert ready.wait(20)
        yield Running(service, *ports, keys)
    finally:
        service.closing = True
        thread.join()
        service.close()


class Process:
    """``mad-serve`` in a process of its own, at a free port."""

    def __init__(self, words):
        words = [*words, "port=0"]
        code = "from mad.cli.serve import main; main()"
        tests = str(Path(__file__).parents[1])  # where the toy network's class is
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, "-c", code, *words]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        line, said = "", []
        while "http://" not in line:
            line = self.process.stderr.readline()
            said.append(line)
            assert line, f"it did not start: {''.join(said)}"
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
