"""A server of the Open Inference Protocol v2 for tests: a fixed linear classifier, in a process of its own.

As a script it takes a file and a port (0: any), and prints the port. Each image that it answers is a line of the file,
written before the answer is sent. POST /control with JSON changes what it does:

- ``metadata``: what it says of the model; its datatype, its layout and the kind of its answers follow from that
- ``answers``: posteriors, logits or labels
- ``token``: what it takes as a bearer token; None for anything
- ``faults``: what it does instead of answering, one a request: {"status", "text", "headers"}, {"json"}, {"cut"}: the
  answer breaks off, {"wait"}: until it is released; {"after"}: it waits for as many requests
- ``hold``: it waits after as many images, until it is released
- ``release``: what waits goes on
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

SHAPE, CLASSES = (3, 4, 5), 6
SIZES = {"nchw": [-1, 3, 4, 5], "nhwc": [-1, 4, 5, 3]}
PATH = "/v2/models/toy"


def metadata(layout="nchw", datatype="FP32", shape=None, inputs=None, outputs=None):
    """Metadata of the model, as Triton has it."""
    images = [{"name": "images", "datatype": datatype, "shape": shape or SIZES[layout]}]
    answers = [{"name": "answers", "datatype": "FP32", "shape": [-1, CLASSES]}]
    found = {"name": "toy", "versions": ["1"], "platform": "numpy"}
    return {**found, "inputs": images if inputs is None else inputs, "outputs": outputs or answers}


def logits(images):
    """The logits (B, K) of images (B, C, H, W) in [0, 1], in float64."""
    draw = np.random.default_rng(0)
    return images.reshape(len(images), -1) @ draw.normal(size=(int(np.prod(SHAPE)), CLASSES))


def softmax(values):
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def name(image):
    """What the file says of an image (C, H, W)."""
    return hashlib.sha256(np.ascontiguousarray(image, dtype=np.float32).tobytes()).hexdigest()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, file, port):
        super().__init__(("127.0.0.1", port), Handler)
        self.file, self.lock, self.go = file, threading.Lock(), threading.Event()
        self.now = {"metadata": metadata(), "answers": "posteriors", "token": None, "faults": []}
        self.now |= {"hold": None, "taken": 0, "requests": 0}

    def handle_error(self, request, client_address):
        """Say nothing: clients are killed here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *what):
        pass

    def reply(self, status, body=b"", headers=(), cut=0):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[: len(body) - cut])
        self.close_connection = self.close_connection or cut > 0

    def refused(self):
        token = self.server.now["token"]
        if token is None or self.headers.get("Authorization") == f"Bearer {token}":
            return False
        self.reply(401 if "Authorization" not in self.headers else 403, {"error": str(self.headers["Authorization"])})
        return True

    def do_GET(self):
        if self.path == "/requests":
            return self.reply(200, self.server.now["requests"])
        if self.refused():
            return None
        if self.path == PATH:
            return self.reply(200, self.server.now["metadata"])
        return self.reply(200 if self.path == f"{PATH}/ready" else 404)

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/control":
            server.go.clear()
            if body.pop("release", False):
                server.now["hold"] = None
                server.go.set()
            server.now.update(body)
            return self.reply(200, {})
        if self.refused():
            return None
        with server.lock:
            server.now["requests"] += 1
            fault = server.now["faults"].pop(0) if server.now["faults"] else {}
        while server.now["requests"] < fault.get("after", 0):
            time.sleep(0.01)
        if "status" in fault:
            return self.reply(fault["status"], fault.get("text", "").encode(), fault.get("headers", ()))
        if "json" in fault:
            return self.reply(200, fault["json"])
        if "wait" in fault:
            server.go.wait()
        return self.answer(body, fault)

    def answer(self, body, fault):
        server, sent = self.server, body["inputs"][0]
        known = server.now["metadata"]["inputs"][0]
        if (sent["name"], sent["datatype"]) != (known["name"], known["datatype"]):
            return self.reply(400, {"error": f"unexpected input {sent['name']} {sent['datatype']}"})
        fit = [a in (-1, b) for a, b in zip(known["shape"], sent["shape"], strict=True)]
        if not all(fit):
            return self.reply(400, {"error": f"unexpected shape {sent['shape']}"})
        images = np.array(sent["data"]).reshape(sent["shape"]) / (255 if sent["datatype"] == "UINT8" else 1)
        images = images.transpose(0, 3, 1, 2) if list(images.shape[1:]) == SIZES["nhwc"][1:] else images
        with server.lock:
            server.now["taken"] += len(images)
            held = server.now["hold"] is not None and server.now["taken"] > server.now["hold"]
        if held:
            server.go.wait()
        with server.lock, server.file.open("a") as file:
            file.write("".join(f"{name(each)}\n" for each in images))
        values, kind = logits(images), server.now["answers"]
        values = values.argmax(axis=1) if kind == "labels" else softmax(values) if kind == "posteriors" else values
        wanted = [each["name"] for each in body.get("outputs", [{"name": "answers"}])]
        flat = {"shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()}
        return self.reply(200, {"outputs": [{"name": each, **flat} for each in wanted]}, cut=fault.get("cut", 0))


class Served:
    """The server, as a test sees it."""

    def __init__(self, folder):
        self.file, self.port = Path(folder) / "answered", 0
        self.file.touch()
        self.start()

    def start(self):
        """Start it; again on the port that it had."""
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(self.file), str(self.port)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}{PATH}"

    def tell(self, **what):
        """Change what it does."""
        self.call("/control", json.dumps(what).encode())

    def requests(self):
        """How many requests with images it got."""
        return self.call("/requests")

    def call(self, path, body=None):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return json.loads(answer.read())

    def reset(self):
        """Let it forget what it was told, and what it answered."""
        self.file.write_text("")
        self.tell(metadata=metadata(), answers="posteriors", token=None, faults=[], hold=None, taken=0, requests=0)

    def answered(self):
        """How often each image was answered."""
        return Counter(self.file.read_text().split())

    def kill(self):
        """Kill it, as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@contextlib.contextmanager
def served(folder):
    """Serve the toy model in a process of its own."""
    it = Served(folder)
    try:
        yield it
    finally:
        it.kill()


if __name__ == "__main__":
    server = Server(Path(sys.argv[1]), int(sys.argv[2]))
    print(server.server_address[1], flush=True)
    server.serve_forever()
