"""The words of mad-serve: what they open, and the line of each that is wrong. No KServe is needed here."""

import json
import sys
import types

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from toys import exit_code

import mad
from mad.cli import configs, serve
from mad.errors import MadError
from mad.serve import on_ray
from mad.serve.settings import Settings, loopback

QUICK = ("victim=digits", "architecture=mlp", "trainer.epochs=1", "trainer.min_steps=0", "device=cpu")


@pytest.fixture
def mad_serve(tmp_path, monkeypatch, capfd):
    """Run mad-serve in this process, with a server that only notes what it was to serve."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    server, wire, served = types.ModuleType("mad.serve.server"), types.ModuleType("mad.serve.wire"), []
    server.serve = lambda *what: served.append(what)
    wire.say = None
    monkeypatch.setitem(sys.modules, "mad.serve.server", server)
    monkeypatch.setitem(sys.modules, "mad.serve.wire", wire)

    def call(*words):
        GlobalHydra.instance().clear()
        return exit_code(monkeypatch, serve.main, "mad-serve", *words), served, capfd.readouterr()

    yield call
    GlobalHydra.instance().clear()
    configs.FURTHER.clear()


def test_words_of_mad_run_and_an_exported_deployment(mad_serve, tmp_path, fits):
    code, served, said = mad_serve(*QUICK, "defense=random_noise", "port=0", "grpc_port=null", "--check", "shadow=true")
    assert code == 0, said.err
    deployment, settings, _ = served.pop()
    assert settings == Settings(port=0, grpc_port=None, check=True, shadow=True)
    assert (deployment.victim.name, deployment.defense.name) == ("digits", "random_noise")
    deployment.export(tmp_path / "api")
    code, served, said = mad_serve("deployment=api", "clients=keys.json", "host=0.0.0.0", "timeout=2.5")
    assert code == 0, said.err
    opened, settings, _ = served.pop()
    assert settings == Settings(clients="keys.json", host="0.0.0.0", timeout=2.5)
    assert opened.defense == deployment.defense
    assert mad_serve(*QUICK, "defense=none")[0] == 0
    assert fits == ["victim digits"]


def test_a_model_of_ones_own_is_served_without_a_pool(mad_serve, tmp_path):
    """As docs/deploy.md says: an API has no adversary."""
    for number in range(8):
        (tmp_path / "photos" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), 30 * number).save(tmp_path / "photos" / "ab"[number % 2] / f"{number}.png")
    (tmp_path / "answering.py").write_text("def ask(images):\n    return images.flatten(1)[:, :2].softmax(1)\n")
    code, served, said = mad_serve("victim=own", "data=photos", "victim.function=answering.ask", "defense=mad_argmax")
    assert code == 0, said.err
    deployment, *_ = served.pop()
    assert deployment.session()(torch.rand(3, 1, 16, 16)).shape == (3, 2)


def test_a_records_api(mad_serve, tmp_path, fits):
    words = [*QUICK[:-1], "pool.size=300", "attack.budget=50", "knockoff.epochs=1", "knockoff.min_steps=0"]
    cells = [mad.load(*words, "defense=random_noise", f"defense.epsilon={epsilon}", "seed=3") for epsilon in (0.4, 0.5)]
    for cell in cells:
        mad.run(cell, tmp_path / "kept", reference=False)
    fits.clear()
    name = cells[1].fingerprint
    code, served, said = mad_serve(f"record={name[:8]}", "outputs=kept", "port=0", "device=cpu")
    assert code == 0, said.err
    deployment, settings, _ = served.pop()
    assert (deployment.defense.epsilon, deployment.seed, settings.port) == (0.5, 3, 0)
    assert fits == []  # the kept victim
    for given, line in (
        ([f"record={name}"], f"no record in outputs with a fingerprint that begins with {name}: see its records.csv"),
        (
            [f"record={name}", "outputs=typo"],
            "outputs: there is no folder typo; name the outputs folder of earlier runs",
        ),
        (["record=", "outputs=kept"], "no record in kept with a fingerprint that begins with : see its records.csv"),
        ([f"record={name}", "outputs=kept", "defense=mad"], "defense= cannot be changed: a record says all of its API"),
    ):
        code, served, said = mad_serve(*given)
        assert (code, served, said.err) == (1, [], f"mad: {line}\n")
    (path,) = tmp_path.glob(f"kept/runs/*/*/*/{name}/record.json")
    path.write_text(path.read_text().replace("defense.epsilon=0.5", "defense.epsilon=0.6"))
    code, served, said = mad_serve(f"record={name}", "outputs=kept")
    assert (code, served) == (1, [])
    assert "record.json" in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize("quotes", ["", "'", '"'])
def test_a_records_folders_are_read_as_the_shell_gives_them_or_as_mad_run_does(mad_serve, tmp_path, fits, quotes):
    place, words = "kept ü(1)", [*QUICK[:-1], "pool.size=300", "attack.budget=50", "knockoff.epochs=1"]
    cell = mad.load(*words, "knockoff.min_steps=0", "defense=argmax")
    mad.run(cell, tmp_path / place, reference=False)
    fits.clear()
    folders = [f"outputs={quotes}{place}{quotes}", f"data_root={quotes}{tmp_path}{quotes}"]
    code, served, said = mad_serve(f"record={cell.fingerprint}", *folders, "device=cpu")
    assert code == 0, said.err
    assert served.pop()[0].defense.name == "argmax"
    assert fits == []


def test_a_record_that_cannot_be_made_again(mad_serve, tmp_path, monkeypatch):
    words = [*QUICK[:-1], "pool.size=300", "attack.budget=50", "knockoff.epochs=1", "knockoff.min_steps=0"]
    cell = mad.load(*words, "defense=random_noise")
    mad.run(cell, tmp_path / "outputs", reference=False)
    name = cell.fingerprint
    monkeypatch.setattr("mad.cell.Cell.fingerprint", "0123456789abcdef")
    code, served, said = mad_serve(f"record={name}")
    assert (code, served) == (1, [])
    assert "cannot be made again: its overrides now make 0123456789abcdef" in said.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["deployment=nowhere"], "nowhere holds no exported deployment"),
        (["deployment=api", "prot=80"], "prot= is no setting of a server that opens a deployment (did you mean port?)"),
        (["deployment=api", "port=http"], "port must be a whole number in [0, 65535], got 'http'"),
        (["deployment=api", "port=1", "port=2"], "port= is given twice: say it once"),
        (["deployment=api", "port=1", "grpc_port=1"], "grpc_port must be another port than port, got 1 for both"),
        (["deployment=api", "shadow=maybe"], "shadow must be true or false, got 'maybe'"),
        (["deployment=api", "linger=99"], "linger must be a number in [0, 10], got 99"),
        (["deployment=api", "host=0.0.0.0"], "host=0.0.0.0 can be reached from other machines: set clients=FILE"),
        (["deployment=api", "--chek"], "unknown flag --chek; mad-serve --help says what it takes"),
        (["deployment=api", "port"], "'port' is no setting: it must be key=value, like port=8080"),
        (["deployment=api", "name=a/b"], "name must be up to 64 letters"),
        (["deployment=api", "max_images=10", "waiting=5"], "waiting must be at least max_images=10, got 5"),
        (["victim=digitz"], "unknown victim 'digitz'"),
        (["victim=digits", "defense=nope"], "unknown defense 'nope'"),
        (["victim=digits", "prt=1"], "unknown key 'prt': choose from seed, probe, victim, outputs"),
        (["add-client"], "say mad-serve add-client NAME clients=FILE"),
        (["add-client", "a", "clients=keys.json", "budgit=3"], "say mad-serve add-client NAME clients=FILE"),
    ],
)
def test_a_word_that_is_wrong_is_a_line(mad_serve, fits, words, line):
    code, served, said = mad_serve(*words)
    assert (code, served, fits) == (1, [], [])
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith(f"mad: {line}")


def test_a_typo_in_a_servers_setting_is_found(mad_serve):
    _, _, said = mad_serve("victim=digits", "prt=1")
    assert "grpc_port" in said.err
    assert said.err.endswith("(did you mean port?)\n")


@pytest.mark.parametrize("words", [QUICK, ["deployment=api"], ["record=12ab"]])
def test_an_extra_that_is_missing_is_found_before_any_work(mad_serve, monkeypatch, fits, words):
    monkeypatch.delitem(sys.modules, "mad.serve.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, served, said = mad_serve(*words)
    assert (code, served, fits) == (1, [], [])
    assert said.err == "mad: this needs uvicorn: pip install 'mad[serve]'\n"


def test_a_ledgers_extra_is_looked_for_where_it_is_asked_for(mad_serve, monkeypatch, fits):
    monkeypatch.delitem(sys.modules, "mad.serve.postgres", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    code, _, said = mad_serve(*QUICK, "clients=keys.json", "ledger=postgresql://me@here/mad")
    assert (code, fits) == (1, [])
    assert said.err == "mad: this needs psycopg: pip install 'mad[postgres]'\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({}, "deployment must be the folder of an exported deployment, got None"),
        ({"deployment": "api", "replicas": 0}, "replicas must be a whole number of at least 1, got 0"),
        ({"deployment": "api", "clinets": "keys.json"}, r"unknown key 'clinets': .*did you mean clients\?"),
        ({"deployment": "api", "rate": 1}, "unknown key 'rate': choose from deployment, replicas, host"),
        ({"deployment": "api", "timeout": 0}, "timeout must be a number in"),
        ({"deployment": "api"}, "other machines may reach Ray's proxy, whatever host is: set clients to a file"),
    ],
)
def test_a_wrong_word_to_ray_is_found_before_a_replica_starts(words, line):
    with pytest.raises(MadError, match=line):
        on_ray.build(words)


def test_a_key_is_printed_once(mad_serve, tmp_path):
    pytest.importorskip("argon2")
    code, _, said = mad_serve("add-client", "shop", "clients=keys.json", "budget=1000", "rate=5")
    assert code == 0, said.err
    (client,) = json.loads((tmp_path / "keys.json").read_text())["clients"]
    assert said.out.startswith(f"mad-{client['id']}-")
    assert (client["name"], client["budget"], client["rate"], client["operator"]) == ("shop", 1000, 5, False)
    assert said.out.strip().split("-", 2)[2] not in (tmp_path / "keys.json").read_text()
    assert mad_serve("add-client", "shop", "clients=keys.json")[0] == 1
    assert mad_serve("add-client", "other", "clients=keys.json", "budget=-1")[0] == 1


def test_help_and_no_words(mad_serve):
    for words in ((), ("--help",)):
        code, served, said = mad_serve(*words)
        assert (code, served, said.err) == (0, [], "")
        assert "mad-serve deployment=FOLDER" in said.out
        assert set(said.out.split("\n")) >= set(serve.__doc__.replace("``", "").split("\n"))  # no command is broken


def test_which_addresses_are_this_machines_own():
    assert [loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")] == [True] * 5
    assert [loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org")] == [False] * 4
    with pytest.raises(MadError, match="open=true to let anybody ask"):
        Settings(host="::")
    assert Settings(host="::", open=True).open
