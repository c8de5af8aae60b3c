"""A ledger in PostgreSQL: one budget for several servers, exact, and nothing is answered while it is away."""

import os
import random
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("kserve")
psycopg = pytest.importorskip("psycopg")
pytestmark = pytest.mark.serve

from serving_toys import guarded, pictures, running  # noqa: E402

from mad.errors import BudgetExceededError, MadError  # noqa: E402
from mad.serve.ledger import Ledger, LedgerError  # noqa: E402
from mad.serve.settings import Settings  # noqa: E402

SECRET = "a-password-that-nobody-prints"


class Database:
    """A PostgreSQL server of its own, on a free port of this machine."""

    def __init__(self, folder, programs):
        self.folder, self.programs = folder, programs
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "password").write_text(SECRET)
        if os.geteuid() == 0:  # PostgreSQL refuses root
            shutil.chown(folder, "postgres", "postgres")
            shutil.chown(folder / "password", "postgres")
        self.run("initdb", "-D", folder / "data", "-U", "mad", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}")
        self.start()

    def run(self, program, *words):
        who = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        subprocess.run(
            [*who, str(self.programs / program), *map(str, words)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
            cwd=self.folder,
        )

    def control(self, what, *words):
        self.run("pg_ctl", what, "-w", "-D", self.folder / "data", "-m" if what == "stop" else "-l", *words)

    def start(self):
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        self.control("start", self.folder / "log", "-o", options)

    def stop(self):
        self.control("stop", "immediate")

    @property
    def url(self):
        return f"postgresql://mad:{SECRET}@127.0.0.1:{self.port}/postgres"

    def forget(self):
        with psycopg.connect(self.url, autocommit=True) as db:
            db.execute("DROP TABLE IF EXISTS mad_used, mad_memories")


@pytest.fixture(scope="module")
def server():
    found = shutil.which("postgres") or shutil.which("pg_ctl")
    if found is None:
        pytest.skip("there is no PostgreSQL on this machine")
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())  # its user may not enter pytest's
    database = Database(folder, Path(found).resolve().parent)
    yield database
    database.stop()
    shutil.rmtree(folder)


@pytest.fixture
def database(server):
    server.forget()
    return server


def test_two_servers_charge_one_budget_whatever_the_order_of_clients(database):
    ledgers = [Ledger(database.url) for _ in range(2)]
    assert [each.new for each in ledgers] == [True, False]
    asked = [("abcd"[number % 4], number % 2) for number in range(1200)]
    random.Random(0).shuffle(asked)

    def ask(one):
        client, number = one
        try:
            return client, ledgers[number].charge(client, 1, 100).result()
        except BudgetExceededError:
            return None

    with ThreadPoolExecutor(32) as threads:
        found = [each for each in threads.map(ask, asked) if each is not None]
    assert sorted(found) == [(client, number) for client in "abcd" for number in range(1, 101)]
    for each in ledgers:
        assert each.used("a") == 100
        each.close()


def test_charges_are_whole_and_memories_outlive_a_restart(database):
    ledger = Ledger(database.url)
    assert ledger.charge("a", 7, 10).result() == 7
    with pytest.raises(BudgetExceededError, match="4 queries asked for, 3 of 10 left"):
        ledger.charge("a", 4, 10).result()
    assert ledger.used("b") == 0
    assert ledger.memory("a", "gate 2") is None
    for memory in ([1, 2.5], [3, 1e300]):
        ledger.remember("a", "gate 2", memory).result()
    ledger.close()
    ledger = Ledger(database.url)
    assert (ledger.used("a"), ledger.memory("a", "gate 2"), ledger.memory("b", "gate 1")) == (7, [3, 1e300], None)
    ledger.close()


def test_two_servers_share_a_budget(tmp_path, database, toy_deployment):
    """Each has the keys, as on two machines, and neither a file of its own."""
    with running(toy_deployment, tmp_path, [("a", {"budget": 50})], ledger=database.url) as one:
        key = one.keys["a"]
        with running(toy_deployment, tmp_path, [("a", {})], ledger=database.url) as other:

            def ask(number):
                return (one, other)[number % 2].infer(pictures(1), key)[0]

            with ThreadPoolExecutor(8) as threads:
                found = list(threads.map(ask, range(80)))
    assert (found.count(200), found.count(403)) == (50, 30)
    assert not list(tmp_path.glob("*ledger*"))


def test_a_database_that_goes_away_answers_nobody_and_comes_back(tmp_path, database, toy_deployment, capfd):
    with running(toy_deployment, tmp_path, [("a", {"budget": 100})], ledger=database.url) as it:
        assert it.infer(pictures(2), it.keys["a"])[0] == 200
        database.stop()
        for _ in range(2):
            status, said = it.infer(pictures(2), it.keys["a"])
            assert (status, said["error"]) == (503, "queries cannot be counted now, so none is answered")
        database.start()
        assert it.infer(pictures(2), it.keys["a"])[0] == 200
        (client,) = it.service.clients.all()
        assert it.service.ledger.used(client.id) == 4
        database.stop()  # this time its tables are lost, too
        database.start()
        database.forget()
        for _ in range(2):
            assert it.infer(pictures(1), it.keys["a"])[0] == 503
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert SECRET not in said


def test_a_stateful_defense_is_served_once(database):
    one, other = Ledger(database.url), Ledger(database.url)
    one.alone()
    with pytest.raises(
        MadError, match=r"another server with the ledger 127\.0\.0\.1/postgres is running.*serve it once"
    ):
        other.alone()
    database.stop()
    database.start()
    with pytest.raises(LedgerError):
        one.charge("a", 1, 10).result()
    assert one.charge("a", 1, 10).result() == 1  # a new connection, which holds the lock
    third = Ledger(database.url)
    with pytest.raises(MadError, match="serve it once"):
        third.alone()
    one.close()
    third.alone()
    for each in (other, third):
        each.close()


def test_a_server_goes_on_with_what_another_one_knew_of_a_client(tmp_path, database):
    deployment, clients = guarded(), [("thief", {"operator": True})]
    with running(deployment, tmp_path, clients, ledger=database.url) as it:
        key = it.keys["thief"]
        with pytest.raises(MadError, match="serve it once"), running(deployment, ledger=database.url):
            pass
        it.answers(pictures(60), key)
    with running(deployment, tmp_path, clients, ledger=database.url, refuse_flagged=True) as it:
        assert it.infer(pictures(1), key)[0] == 429


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("postgresql://mad:wrong@127.0.0.1:{port}/postgres", "the ledger in PostgreSQL cannot be used"),
        ("postgresql://127.0.0.1:1/none", "the ledger in PostgreSQL cannot be used"),
        ("postgresql://%zz", "the ledger in PostgreSQL cannot be used"),
    ],
)
def test_what_is_no_database_is_a_line(server, place, said):
    with pytest.raises(MadError, match=f"^{said}[^\n]*see ledger=$") as error:
        Ledger(place.format(port=server.port))
    assert SECRET not in str(error.value)


def test_other_addresses_are_refused():
    with pytest.raises(MadError, match=r"^ledger must be a file, or a database such as postgresql://USER@HOST/NAME$"):
        Settings(ledger="redis://localhost")
