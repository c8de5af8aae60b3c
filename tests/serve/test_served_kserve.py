"""The file for KServe in docs/deploy.md: no cluster reads it here, but its SDK does, and the server its arguments."""

import json
import re
import urllib.request
from pathlib import Path

import pytest
import yaml

pytest.importorskip("kserve")
pytestmark = pytest.mark.serve

import kserve  # noqa: E402
import kubernetes.client  # noqa: E402
from serving_toys import Process  # noqa: E402

from mad.serve import clients as keys  # noqa: E402
from mad.serve.settings import Settings  # noqa: E402

DOCUMENT = Path(__file__).parents[2] / "docs" / "deploy.md"


def manifest():
    (found,) = [
        each
        for each in map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.S))
        if each.get("kind") == "InferenceService"
    ]
    return found


def built(value, kind, where="manifest"):
    """Return the object of the SDK, of a kind such as list[V1Container], that a part of a manifest describes."""
    if found := re.fullmatch(r"[Ll]ist\[(.*)\]", kind):
        return [built(each, found[1], f"{where}[{number}]") for number, each in enumerate(value)]
    if found := re.fullmatch(r"dict\(str, (.*)\)", kind):
        return {key: built(each, found[1], f"{where}.{key}") for key, each in value.items()}
    if kind in ("str", "int", "bool", "float"):
        assert type(value).__name__ == kind, f"{where} must be {kind}, got {value!r}"
        return value
    if kind == "object":  # a number or a name, such as a port
        return value
    made = getattr(kserve, kind, None) or getattr(kubernetes.client, kind)
    names = {outside: inside for inside, outside in made.attribute_map.items()}
    assert set(value) <= set(names), f"{where}: {kind} has no {set(value) - set(names)}"
    parts = {names[key]: (each, made.openapi_types[names[key]], f"{where}.{key}") for key, each in value.items()}
    return made(**{name: built(*part) for name, part in parts.items()})  # which refuses one that lacks something


def test_it_is_an_inference_service():
    service = built(manifest(), "V1beta1InferenceService")
    (container,) = service.spec.predictor.containers
    assert {each.name for each in container.volume_mounts} == {each.name for each in service.spec.predictor.volumes}
    for change in ({"replicas": 1}, {"minReplicas": "1"}, {"containers": [{"image": "a"}]}):
        wrong = manifest()
        wrong["spec"]["predictor"] |= change
        with pytest.raises((AssertionError, ValueError)):
            built(wrong, "V1beta1InferenceService")


def test_the_server_takes_its_arguments_and_is_ready_where_it_says(tmp_path, toy_deployment):
    (container,) = manifest()["spec"]["predictor"]["containers"]
    places = {"/mnt/models": tmp_path / "api", "/keys": tmp_path / "keys", "/state": tmp_path / "state"}
    assert {each["mountPath"] for each in container["volumeMounts"]} < set(places)
    toy_deployment.export(places["/mnt/models"])
    for place in ("/keys", "/state"):
        places[place].mkdir()
    key = keys.add(places["/keys"] / "clients.json", "a", budget=3)
    probe = container["readinessProbe"]["httpGet"]
    assert probe["port"] == Settings().port == container["ports"][0]["containerPort"]
    words = [re.sub("=(/mnt/models|/keys|/state)", lambda found: f"={places[found[1]]}", w) for w in container["args"]]
    assert sum(a != b for a, b in zip(words, container["args"], strict=True)) == 4
    server = Process(words)
    try:
        assert server.url.endswith("/v2/models/digits/infer")
        address = server.url.partition("/v2")[0]
        with urllib.request.urlopen(address + probe["path"], timeout=20) as answer:
            assert answer.status == 200
            assert json.load(answer)["ready"] is True
        assert [server.ask(key) for _ in range(4)] == [200, 200, 200, 403]
        assert {each.name for each in places["/state"].iterdir()} >= {"ledger", "audit.jsonl"}
        assert [each.name for each in places["/keys"].iterdir()] == ["clients.json"]
    finally:
        server.end()
