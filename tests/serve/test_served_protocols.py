"""Clients that nobody here wrote get the deployment's answers, to the bit; and so does our own."""

import asyncio
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("kserve")
pytestmark = pytest.mark.serve

from serving_toys import CLASSES, MODEL, SHAPE, Named, pictures, predict, question, running, toy  # noqa: E402
from toys import CPU, Blobs, Tiny, cell, trainer  # noqa: E402

from mad.defenses import Undefended  # noqa: E402
from mad.own import Own  # noqa: E402
from mad.own.service import Service as OwnService  # noqa: E402
from mad.pipeline import run  # noqa: E402
from mad.serve.clients import add  # noqa: E402
from mad.storage.store import Store  # noqa: E402

IMAGES = pictures(7)


@pytest.fixture(scope="module")
def expected(toy_deployment):
    return toy_deployment.session().answer(torch.cat([IMAGES, pictures(249, seed=1)]))[1][:7]


def same(found, expected):
    return np.array_equal(np.asarray(found, dtype=np.float32).reshape(expected.shape), expected.numpy())


def test_plain_http(server, expected):
    status, found = server.infer(IMAGES, id="mine")
    assert (status, found["id"], found["model_name"], found["model_version"]) == (200, "mine", "toy", "1")
    (output,) = found["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("posteriors", "FP32", [7, CLASSES])
    assert same(output["data"], expected)
    path = f"{MODEL}/versions/1/infer"
    assert server.call(path, json.dumps(question(IMAGES)))[0] == 200


def test_labels_when_asked(server, expected):
    labels = expected.argmax(dim=1).tolist()
    for more in ({"parameters": {"labels": True}}, {"outputs": [{"name": "labels"}]}):
        (output,) = server.infer(IMAGES, **more)[1]["outputs"]
        assert (output["name"], output["datatype"], output["data"]) == ("labels", "INT64", labels)
    both = server.infer(IMAGES, outputs=[{"name": "labels"}, {"name": "posteriors"}])[1]["outputs"]
    assert both[0]["data"] == labels
    assert same(both[1]["data"], expected)


@pytest.mark.parametrize(("datatype", "kind"), [("FP32", "<f4"), ("FP64", "<f8"), ("FP16", "<f2"), ("UINT8", "u1")])
def test_binary_tensors_of_every_datatype(server, toy_deployment, datatype, kind):
    sent = (IMAGES.numpy() * 255).round().astype("u1") if datatype == "UINT8" else IMAGES.numpy().astype(kind)
    tensor = {"name": "images", "shape": list(sent.shape), "datatype": datatype}
    tensor["parameters"] = {"binary_data_size": sent.nbytes}
    told = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    header = {"Inference-Header-Content-Length": str(len(told))}
    status, content, headers = server.call(f"{MODEL}/infer", told + sent.tobytes(), headers=header)
    assert status == 200
    length = int(headers["Inference-Header-Content-Length"])
    (output,) = json.loads(content[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": len(content) - length}
    images = torch.from_numpy(sent).float().div(255) if datatype == "UINT8" else torch.from_numpy(sent).float()
    whole = torch.cat([images, pictures(249)])
    assert same(np.frombuffer(content[length:], "<f4"), toy_deployment.session().answer(whole)[1][:7])


def test_triton_over_http(server, expected):
    client = pytest.importorskip("tritonclient.http")
    with client.InferenceServerClient(server.host) as triton:
        assert triton.is_server_live()
        assert triton.is_server_ready()
        assert triton.is_model_ready("toy")
        assert triton.get_model_metadata("toy")["inputs"][0]["shape"] == [-1, *SHAPE]
        for binary in (True, False):
            tensor = client.InferInput("images", list(IMAGES.shape), "FP32")
            tensor.set_data_from_numpy(IMAGES.numpy(), binary_data=binary)
            output = client.InferRequestedOutput("posteriors", binary_data=binary)
            assert same(triton.infer("toy", [tensor], outputs=[output]).as_numpy("posteriors"), expected)
        assert same(triton.infer("toy", [tensor]).as_numpy("posteriors"), expected)


TRITON = """
import json, sys
import numpy as np
import tritonclient.grpc as client

port, images = sys.argv[1], np.load(sys.argv[2])
triton = client.InferenceServerClient(f"127.0.0.1:{port}")
assert triton.is_server_live() and triton.is_server_ready() and triton.is_model_ready("toy")
shape = list(triton.get_model_metadata("toy").outputs[0].shape)
tensor = client.InferInput("images", list(images.shape), "FP32")
tensor.set_data_from_numpy(images)
posteriors = triton.infer("toy", [tensor]).as_numpy("posteriors")
wanted = [client.InferRequestedOutput("labels")]
labels = triton.infer("toy", [tensor], outputs=wanted).as_numpy("labels")
try:
    triton.infer("other", [tensor])
except client.InferenceServerException as error:
    refused = error.status()
print(json.dumps([shape, posteriors.tolist(), labels.tolist(), refused]))
"""


def test_triton_over_grpc(tmp_path, server, expected):
    """It runs in a process of its own: one process cannot hold its messages and KServe's."""
    if importlib.util.find_spec("tritonclient") is None:
        pytest.skip("needs tritonclient")
    np.save(tmp_path / "images.npy", IMAGES.numpy())
    command = [sys.executable, "-c", TRITON, str(server.grpc_port), str(tmp_path / "images.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    shape, posteriors, labels, refused = json.loads(done.stdout)
    assert shape == [-1, CLASSES]
    assert same(posteriors, expected)
    assert labels == expected.argmax(dim=1).tolist()
    assert refused == "StatusCode.NOT_FOUND"


def test_the_clients_of_kserve(server, expected):
    from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

    async def ask():
        tensor = InferInput("images", list(IMAGES.shape), "FP32")
        tensor.set_data_from_numpy(IMAGES.numpy())
        rest = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
        base = f"http://{server.host}"
        assert await rest.is_server_ready(base)
        assert await rest.is_model_ready(base, "toy")
        yield await rest.infer(base, InferRequest("toy", [tensor]), model_name="toy")
        grpc = InferenceGRPCClient(f"127.0.0.1:{server.grpc_port}", retries=0)
        assert await grpc.is_server_ready()
        yield await grpc.infer(InferRequest("toy", [tensor]))
        await grpc.close()
        await rest.close()

    async def all_of():
        return [each async for each in ask()]

    for answer in asyncio.run(all_of()):
        assert same(answer.outputs[0].as_numpy(), expected)


def test_our_own_client_steals_the_same_as_in_process(tmp_path, server):
    """The theft from a server, and from a function that answers as it does, end in the same record."""

    def own(**given):
        return Own(name="toy", dataset=Blobs(), architecture=Tiny, trainer=trainer(), **given)

    def service(url, answers):
        return OwnService(url, answers=answers, batch=30)

    served = own(url=server.url, service=service)
    record = run(cell(victim=served, defense=Undefended(), budget=150), Store(tmp_path / "http"), CPU)[0]
    direct = own(function=predict)
    other = run(cell(victim=direct, defense=Undefended(), budget=150), Store(tmp_path / "direct"), CPU)[0]
    for column in ("victim_accuracy", "defended_accuracy", "stolen_accuracy", "agreement", "queries"):
        assert record[column] == other[column], column


def test_metadata_health_and_openapi(server):
    for path, said in (("live", {"live": True}), ("ready", {"ready": True})):
        assert json.loads(server.call(f"/v2/health/{path}")[1]) == said
    assert json.loads(server.call("/v2/models")[1]) == {"models": ["toy"]}
    assert json.loads(server.call(f"{MODEL}/ready")[1]) == {"name": "toy", "ready": True}
    found = json.loads(server.call(MODEL)[1])
    assert found["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, *SHAPE]}]
    assert found["outputs"] == [{"name": "posteriors", "datatype": "FP32", "shape": [-1, CLASSES]}]
    told = json.loads(server.call("/openapi.json")[1])
    body = told["paths"]["/v2/models/{model_name}/infer"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "application/octet-stream"}
    names = {each["$ref"].rpartition("/")[2] for each in references(told)}
    assert names <= set(told["components"]["schemas"])


def references(found):
    """Yield the references in a JSON document."""
    if isinstance(found, dict):
        if "$ref" in found:
            yield found
        for each in found.values():
            yield from references(each)
    if isinstance(found, list):
        for each in found:
            yield from references(each)


def test_class_names_are_in_the_metadata():
    from dataclasses import replace

    deployment = toy()
    named = replace(deployment, victim=Named(**vars(deployment.victim)))
    with running(named) as it:
        assert json.loads(it.call(MODEL)[1])["parameters"] == {"class_names": ["a", "b", "c", "d"]}


def test_metrics_count_what_was_answered(toy_deployment):
    with running(toy_deployment) as it:
        session = toy_deployment.session()
        for count in (1, 4, 10):
            it.answers(pictures(count))
            session(pictures(count))
        found = it.metrics()
    assert found["mad_answered_total"] == session.queries == 15
    assert found["mad_l1_mean"] == pytest.approx(session.l1_mean, rel=1e-5)
    assert found["mad_touched_share"] == 1
    assert found['mad_latency_seconds_count{protocol="rest"}'] == 3
    assert found['mad_requests_total{protocol="rest",status="200"}'] == 3


def test_the_metrics_of_budgets_follow_the_file_of_clients(tmp_path, toy_deployment):
    with running(toy_deployment, tmp_path, [("a", {"budget": 9}), ("b", {"operator": True})]) as it:
        file, key = tmp_path / "clients.json", it.keys["b"]

        def left():
            return sorted(value for name, value in it.metrics(key).items() if name.startswith("mad_budget_left"))

        def edited(budget):
            (mine, *others) = json.loads(file.read_text())["clients"]
            file.write_text(json.dumps({"clients": [{**mine, "budget": budget}, *others]}))

        it.answers(pictures(4), it.keys["a"])
        assert left() == [5]
        for budget, told in ((100, [96]), (3, [0]), (None, []), (20, [16])):
            edited(budget)
            assert left() == told
        add(file, "c", budget=7)
        assert left() == [7, 16]
        it.answers(pictures(1), it.keys["a"])
        assert left() == [7, 15]
        file.write_text(json.dumps({"clients": json.loads(file.read_text())["clients"][1:]}))
        assert left() == [7]
