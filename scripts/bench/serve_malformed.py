"""Malformed requests to `mad-serve`, for minutes: each gets a 4xx, and the server's memory does not grow.

    python scripts/bench/serve_malformed.py --seconds 600

A server of a small victim of the digits behind MAD runs as a process of its own. Four connections send it bodies that
are cut, random, of wrong shapes or fields, or of NaN, and one request in fifty that is right. Printed are the
statuses, and the resident memory of the server every minute. It exits with 1 if a malformed request got anything but
a 4xx, a right one anything but 200, or if the memory grew by more than 5 % after the first minute.

Needs `pip install 'mad[serve]'`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from serve import Server

import mad
from mad.cli.command import Leave, Parser, command
from mad.serve import clients as keys

WORDS = ("victim=digits", "architecture=mlp", "trainer.epochs=1", "trainer.min_steps=0", "defense=mad")
CONNECTIONS, RIGHT, GROWTH = 4, 50, 1.05
RIGHT_BODY = {"inputs": [{"name": "images", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [0.5] * 784}]}


def malformed(draw: random.Random) -> bytes:
    """Return a body that is no request."""
    text = json.dumps(RIGHT_BODY)
    kind = draw.randrange(6)
    if kind == 0:
        return text[: draw.randrange(len(text) - 1)].encode()
    if kind == 1:
        return draw.randbytes(draw.randrange(1, 4000))
    wrong = json.loads(text)
    tensor = wrong["inputs"][0]
    if kind == 2:
        tensor["shape"] = [draw.choice([-1, 0, 2, 10**9]), 1, 28, 28]
    elif kind == 3:
        tensor["data"][draw.randrange(784)] = draw.choice([float("nan"), 1e39, 300, "a", None, [1]])
    elif kind == 4:
        tensor[draw.choice(["name", "datatype", "shape"])] = draw.choice([None, 7, "text", [], {}])
    else:
        tensor["data"] = tensor["data"][: draw.randrange(783)]
    return json.dumps(wrong).encode()


def send(server: Server, key: str, number: int, until: float, found: Counter[tuple[bool, int]]) -> None:
    """Send requests until a time, and count whether each was right, and its status."""
    draw, right = random.Random(number), json.dumps(RIGHT_BODY).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    while time.monotonic() < until:
        good = draw.randrange(RIGHT) == 0
        connection.request("POST", "/v2/models/digits/infer", right if good else malformed(draw), headers)
        answer = connection.getresponse()
        answer.read()
        found[good, answer.status] += 1
    connection.close()


def resident(process: int) -> float:
    """Return a process's resident memory, in MB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000


@command
def main() -> None:
    """Run it and print what came out."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mad.deploy(mad.load(*WORDS), outputs=folder / "outputs").export(folder / "api")
        server = Server(folder, "api")
        key = keys.add(server.clients, "a")
        server.start()
        found: Counter[tuple[bool, int]] = Counter()
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=send, args=(server, key, number, until, found)) for number in range(CONNECTIONS)
        ]
        for each in threads:
            each.start()
        memory = []
        while any(each.is_alive() for each in threads):
            time.sleep(min(60.0, max(0.1, until - time.monotonic())))
            memory.append(resident(server.process.pid))
            print(f"{memory[-1]:.0f} MB after {sum(found.values()):,} requests", flush=True)
        server.end()
    print({f"{'right' if good else 'malformed'}, {status}": count for (good, status), count in sorted(found.items())})
    wrong = [status for good, status in found if (status != 200 if good else not 400 <= status < 500)]
    raise Leave(int(bool(wrong) or memory[-1] > GROWTH * memory[0]))


if __name__ == "__main__":
    main()
