"""What users and the thief get of each class, by its name."""

import json

import torch
from own_models import own, predict
from toys import CPU, cell

from mad.cli.task import by_class
from mad.evaluation import by_class as column
from mad.pipeline import run
from mad.storage.store import Store


def test_a_record_has_the_share_of_each_named_class(tmp_path):
    record, _ = run(cell(victim=own(function=predict)), Store(tmp_path), CPU)
    assert json.loads(record["class_names"]) == ["ant", "bee", "cat", "dog"]
    for part in ("defended", "stolen"):
        found = torch.tensor(record[f"{part}_by_class"])  # all classes have as many test images
        assert found.mean().item() == torch.tensor(record[f"{part}_accuracy"]).item()
    assert Store(tmp_path).find(cell(victim=own(function=predict)).path) == record


def test_a_class_without_images_has_no_share():
    found = column(own(function=predict), "share", torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 3]))
    assert found == {"share": [0.5, 1.0, None, 0.0]}


def test_classes_without_names_have_no_columns(tmp_path):
    record, _ = run(cell(), Store(tmp_path), CPU)
    assert record["class_names"] is None
    assert "stolen_by_class" not in record


def test_the_line_of_a_run_names_the_classes_at_either_end():
    names = [f"c{k}" for k in range(8)]
    record = {
        "class_names": json.dumps(names),
        "defended_by_class": [1.0] * 8,
        "stolen_by_class": [k / 8 for k in range(8)],
    }
    assert by_class(record) == (
        "stolen most: c7 88% (API 100%), c6 75% (API 100%), c5 62% (API 100%); "
        "least: c0 0% (API 100%), c1 12% (API 100%), c2 25% (API 100%)"
    )
    few = record | {"class_names": '["a", "b"]', "defended_by_class": [1.0, 0.5], "stolen_by_class": [0.25, None]}
    assert by_class(few) == "stolen by class: a 25% (API 100%)"
