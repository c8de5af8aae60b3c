"""Load on `mad-serve`: exact budgets, latency beside the undefended server in the same run, and kills.

    python scripts/bench/serve.py --clients 64 --requests 100000 --budget 1000
    python scripts/bench/serve.py --clients 8 --requests 24000 --budget 2500 --kills 20

Two servers of one trained victim run as processes of their own, one with the defense and one without. First one client
asks both in turn, one image a request (batch 1). Then all clients ask one after the other server at once, one image a
request as binary tensors, in blocks that alternate; each client has a key and its budget. Printed are the exact counts,
the milliseconds of answers as a client sees them, and the processor time of the server. With `--kills` the defended
server is killed by SIGKILL while it is under load, and started again, so many times; then what was answered is compared
with what was charged.

Needs `pip install 'mad[serve]'`. `--words` are mad-run's; the default is the bundled digits behind MAD.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import torch

import mad
from mad.cli.command import Parser, command
from mad.serve import clients as keys
from mad.serve.engine import Engine, images_like
from mad.serve.ledger import Ledger

SERVE = "from mad.cli.serve import main; main()"
BLOCKS = 4  # of each server under load, in turn
ALONE, WARM = 500, 20  # requests of one client to each server, and those before them that are not timed


class Server:
    """A `mad-serve` process of an exported deployment."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.api, self.port = folder, folder / name, 0
        self.clients = folder / f"{name}-clients.json"

    def start(self) -> None:
        """Start it; again on the port that it had."""
        words = [f"deployment={self.api}", f"clients={self.clients}", f"port={self.port}", "grpc_port=null"]
        command = [sys.executable, "-c", SERVE, *words]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = ""
        while "http://" not in line:
            line = self.process.stderr.readline()
            assert line, "it did not start"
        self.port = int(line.partition("http://")[2].partition(":")[2].partition("/")[0])

    def end(self, how: int = signal.SIGTERM) -> None:
        """End it, if it runs."""
        if self.process.poll() is None:
            self.process.send_signal(how)
            self.process.communicate()


class Client:
    """Asks a server about one image a request, and notes status and seconds of each."""

    def __init__(self, server: Server, name: str, key: str) -> None:
        self.server, self.name, self.key = server, name, key
        self.statuses: Counter[int] = Counter()
        self.seconds: list[float] = []
        self.lost = 0  # requests whose connection broke
        self.connection: http.client.HTTPConnection | None = None

    def ask(self, path: str, body: bytes, length: int) -> int:
        """Send a request; return its status, 0 if the connection broke."""
        headers = {"Authorization": f"Bearer {self.key}", "Inference-Header-Content-Length": str(length)}
        began = time.perf_counter()
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
            self.connection.request("POST", path, body, headers)
            answer = self.connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            if self.connection is not None:
                self.connection.close()
            self.connection = None
            self.lost += 1
            return 0
        self.statuses[answer.status] += 1
        if answer.status == 200:
            self.seconds.append(time.perf_counter() - began)
        return answer.status


def processor(client: Client) -> float:
    """Return the processor seconds that a server has taken, by its metrics; the client's key must be an operator's."""
    connection = http.client.HTTPConnection("127.0.0.1", client.server.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {client.key}"})
        lines = connection.getresponse().read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("process_cpu_seconds_total"))


def bodies(shape: tuple[int, ...], count: int = 64) -> list[tuple[bytes, int]]:
    """Return binary requests of one random image each, and the lengths of their JSON."""
    found = []
    for image in torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)).numpy():
        tensor = {"name": "images", "shape": [1, *shape], "datatype": "FP32"}
        tensor["parameters"] = {"binary_data_size": image.nbytes}
        told = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        found.append((told + image.tobytes(), len(told)))
    return found


def load(clients: list[Client], each: int, path: str, asked: list[tuple[bytes, int]]) -> float:
    """Let all clients send requests at once; return the seconds that it took."""

    def one(client: Client) -> None:
        for number in range(each):
            while client.ask(path, *asked[number % len(asked)]) == 0:  # it is being started again
                time.sleep(0.05)

    threads = [threading.Thread(target=one, args=(client,)) for client in clients]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def computing(deployment: mad.Deployment) -> tuple[int, float]:
    """Return the least batch that the server computes, and the milliseconds of processor that it takes here."""
    engine = Engine(deployment)
    size = engine.sizes[0]
    engine.close()
    images, session, took = images_like(deployment, size), deployment.session(), []
    for _ in range(WARM + ALONE):
        began = time.process_time()
        session.answer(images)
        took.append(time.process_time() - began)
    return size, 1000 * statistics.median(took[WARM:])


def said(what: str, seconds: list[float], spent: float) -> str:
    """Return a line with the median and the 99th percentile, and the server's processor time an answer."""
    cuts = statistics.quantiles(seconds, n=100)
    times = f"p50 {1000 * cuts[49]:.2f} ms, p99 {1000 * cuts[98]:.2f} ms"
    return f"{what}: {times}; {1000 * spent / len(seconds):.2f} ms of the server's processor ({len(seconds)} answers)"


def killed(server: Server, clients: list[Client], given: argparse.Namespace, path: str, asked: list) -> None:
    """Kill a server under load, again and again, and print what was answered and what was charged."""
    draw, going = random.Random(0), threading.Event()

    def killer() -> None:
        for _ in range(given.kills):
            if going.wait(draw.uniform(0.2, 2.0)):
                break
            server.end(signal.SIGKILL)
            server.start()

    thread = threading.Thread(target=killer)
    thread.start()
    took = load(clients, given.requests // given.clients, path, asked)
    going.set()
    thread.join()
    server.end()
    ledger = Ledger(server.clients.with_suffix(".ledger"))
    answered = {client.name: client.statuses[200] for client in clients}
    used = {each.name: ledger.used(each.id) for each in keys.read(server.clients) if each.name in answered}
    ledger.close()
    lost = {client.name: client.lost for client in clients}
    uncounted = sum(max(0, answered[name] - used[name]) for name in used)
    unanswered = sum(used[name] - answered[name] for name in used)
    over = sum(used[name] > given.budget for name in used)
    print(f"{given.kills} kills in {took:.0f} s: {sum(answered.values())} answered, {sum(used.values())} charged")
    print(f"answers that were not counted: {uncounted}; clients over their budget: {over}")
    print(f"charged and not answered: {unanswered}; broken requests: {sum(lost.values())}")


@command
def main() -> None:
    """Run the load that the command line describes."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("clients", 8), ("requests", 5000), ("budget", 400), ("kills", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--words", default="victim=digits defense=mad device=cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder = Path(place)
        cell = mad.load(*(word for word in shlex.split(given.words) if not word.startswith("device=")))
        deployments = {
            "undefended": mad.deploy(cell.victim, outputs=folder / "outputs", device="cpu"),
            "defended": mad.deploy(cell, outputs=folder / "outputs", device="cpu"),
        }
        path, asked = f"/v2/models/{cell.victim.name}/infer", bodies(tuple(cell.victim.dataset.shape))
        servers, everyone, alone = {}, {}, {}
        for name, deployment in deployments.items():
            deployment.export(folder / name)
            server = servers[name] = Server(folder, name)
            budgets = {f"client{number}": given.budget for number in range(given.clients)}
            made = {who: keys.add(server.clients, who, budget) for who, budget in budgets.items()}
            everyone[name] = [Client(server, who, key) for who, key in made.items()]
            alone[name] = Client(server, "alone", keys.add(server.clients, "alone", operator=True))
            server.start()
            stack.callback(server.end)
        if given.kills:
            killed(servers["defended"], everyone["defended"], given, path, asked)
            return
        for number in range(WARM):
            for client in alone.values():
                client.ask(path, *asked[number % len(asked)])
        spent = {name: -processor(client) for name, client in alone.items()}
        for number in range(ALONE):
            for client in alone.values():
                client.ask(path, *asked[number % len(asked)])
        for name, client in alone.items():
            spent[name] += processor(client)
            print(said(f"batch 1, {name}", client.seconds[WARM:], spent[name]))
        size, plain = computing(deployments["undefended"])
        other, whole = computing(deployments["defended"])
        more = 1000 * (spent["defended"] - spent["undefended"]) / ALONE
        print(f"    in this process: {plain:.2f} ms undefended (batch of {size}), {whole:.2f} ms defended (of {other})")
        share = more / (2 * plain)
        print(f"    the defense adds {more:.2f} ms of the server's processor: {share:.2f} of two forward passes")
        took, each = dict.fromkeys(servers, 0.0), given.requests // given.clients
        spent = {name: -processor(client) for name, client in alone.items()}
        for block in range(BLOCKS):
            part = each // BLOCKS + (block < each % BLOCKS)
            for name, some in everyone.items():
                took[name] += load(some, part, path, asked)
        for name, some in everyone.items():
            spent[name] += processor(alone[name])
            seconds = [second for one in some for second in one.seconds]
            print(said(f"{given.clients} clients, {name}", seconds, spent[name]))
            statuses = sum((one.statuses for one in some), Counter())
            exact = sum(one.statuses[200] == min(given.budget, each) for one in some)
            print(
                f"    {sum(statuses.values())} requests in {took[name]:.1f} s: {dict(sorted(statuses.items()))}; "
                f"{exact} of {len(some)} clients got exactly {min(given.budget, each)} answers"
            )


if __name__ == "__main__":
    main()
