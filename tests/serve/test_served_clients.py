"""Clients, their keys and rates: what is refused says why, and a file of clients stays whose it is."""

import json

import pytest

pytest.importorskip("kserve")
pytestmark = pytest.mark.serve

from serving_toys import MODEL, pictures, question, running  # noqa: E402

from mad.errors import MadError  # noqa: E402
from mad.serve import clients as keys  # noqa: E402
from mad.serve.clients import Bucket, Clients  # noqa: E402


def test_keys(tmp_path, toy_deployment, capfd):
    with running(toy_deployment, tmp_path, [("a", {}), ("b", {"operator": True})], grpc_port=0) as it:
        right, other = it.keys["a"], it.keys["b"]
        wrong = right[:-1] + ("A" if right[-1] != "A" else "B")
        body = json.dumps(question(pictures(1)))
        for key in (None, "", wrong, f"mad-{'0' * 12}-{'x' * 43}", "x" * 1000):
            status, content, headers = it.call(f"{MODEL}/infer", body, key)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert json.loads(content) == {"error": "no such key: send the header Authorization: Bearer KEY"}
        assert it.call(MODEL)[0] == 401
        assert it.call("/v2/health/ready")[0] == 200
        for _ in range(2):  # by its hash, then by its digest
            assert it.infer(pictures(1), right)[0] == 200
            assert it.infer(pictures(1), wrong)[0] == 401
        assert it.call("/metrics", key=right)[0] == 403
        assert it.call("/metrics")[0] == 401
        labels = [name for name in it.metrics(other) if name.startswith("mad_queries_total")]
        assert labels == [f'mad_queries_total{{client="{it.service.clients.of(f"Bearer {right}").label}"}}']
        for _ in range(10):
            last = it.infer(pictures(1), wrong)
        assert (last[0], last[1]["error"]) == (429, "too many keys were tried for this client: wait a second")
        assert it.infer(pictures(1), right)[0] == 200  # whoever is known already does not wait
    written = "".join(each.read_text(errors="replace") for each in tmp_path.iterdir()) + "".join(capfd.readouterr())
    for key in (right, other, wrong):
        assert key.split("-", 2)[2] not in written  # a secret may hold a dash


def test_a_client_that_is_removed_is_refused_at_once(tmp_path, toy_deployment, capfd):
    with running(toy_deployment, tmp_path, [("a", {}), ("b", {})]) as it:
        assert it.infer(pictures(1), it.keys["a"])[0] == 200
        file = tmp_path / "clients.json"
        file.write_text(json.dumps({"clients": json.loads(file.read_text())["clients"][1:]}))
        assert it.infer(pictures(1), it.keys["a"])[0] == 401
        capfd.readouterr()
        file.write_text("{half of it")  # being edited: the clients stay as they were
        for _ in range(2):
            assert it.infer(pictures(1), it.keys["b"])[0] == 200
        (said,) = capfd.readouterr().err.splitlines()  # once
        assert said.startswith(f"mad-serve: the clients stay as they were: {file} is no file of clients")


def test_a_file_of_clients_stays_where_and_whose_it_is(tmp_path):
    """A server of another user reads it, maybe by a link."""
    file, link = tmp_path / "there" / "clients", tmp_path / "clients"
    file.parent.mkdir()
    link.symlink_to(file)
    server = []
    for mode, name in ((0o600, "a"), (0o640, "b")):
        key = keys.add(link, name)
        server = server or [Clients(file)]
        assert server[0].of(f"Bearer {key}").name == name
        assert link.is_symlink()
        assert file.stat().st_mode & 0o777 == mode
        file.chmod(0o640)


def test_files_of_clients_that_are_none(tmp_path):
    key = keys.add(tmp_path / "good", "a", budget=3)
    assert (tmp_path / "good").stat().st_mode & 0o777 == 0o600
    assert Clients(tmp_path / "good").of(f"bearer {key}").budget == 3
    with pytest.raises(MadError, match="has a client a: choose another name"):
        keys.add(tmp_path / "good", "a")
    with pytest.raises(MadError, match="cannot be written"):
        keys.add(tmp_path / "good" / "below", "b")
    entry = json.loads((tmp_path / "good").read_text())["clients"][0]
    bad = [{"clients": [entry, entry]}, {"clients": [{**entry, "budget": -1}]}, {"clients": [{"id": 1}]}, [], {}]
    for number, each in enumerate([*map(json.dumps, bad), "no JSON"]):
        file = tmp_path / f"bad{number}"
        file.write_text(each)
        with pytest.raises(MadError) as caught:
            Clients(file)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(MadError, match="No such file or directory; mad-serve add-client NAME clients=FILE makes one"):
        Clients(tmp_path / "absent")


def test_a_bucket_gives_its_rate():
    now = [0.0]
    bucket = Bucket(2.0, clock=lambda: now[0])
    assert [bucket.take() for _ in range(3)] == [0, 0, 0.5]
    now[0] = 0.5
    assert [bucket.take() for _ in range(2)] == [0, 0.5]
    now[0] = 100.0
    assert [bucket.take() for _ in range(3)] == [0, 0, 0.5]


def test_too_many_requests_are_told_when_to_come_back(tmp_path, toy_deployment):
    with running(toy_deployment, tmp_path, [("a", {"rate": 0.1})]) as it:
        assert it.infer(pictures(1), it.keys["a"])[0] == 200
        body = json.dumps(question(pictures(1)))
        status, content, headers = it.call(f"{MODEL}/infer", body, it.keys["a"])
        assert (status, headers["Retry-After"]) == (429, "10")
        assert json.loads(content)["error"].startswith("this key has 0.1 requests a second: wait ")
