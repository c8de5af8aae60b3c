"""What a data set holds decides a fingerprint, and is read once."""

from dataclasses import dataclass, field

import torch
from small_sets import IMAGES, LABELS, Mine
from toys import CPU, Streamed, cell, victim

from mad.datasets import Split, cached
from mad.datasets.digits import Digits
from mad.pipeline import run
from mad.storage.fingerprint import describe
from mad.storage.store import Store


@dataclass(frozen=True)
class Saved:
    """A data set and pool in one file."""

    path: str = field(compare=False)
    classes: int = 4
    shape: tuple[int, int, int] = (1, 8, 8)
    name: str = "saved"

    def train(self):
        return Split(*torch.load(self.path))

    def test(self):
        return self.train()

    def images(self, shape):
        return self.train().images


def save(file, images=IMAGES, labels=LABELS):
    torch.save((images, labels), file)
    return Saved(str(file))


def test_content_decides_a_fingerprint_and_the_place_does_not(tmp_path):
    first = describe(save(tmp_path / "a"))
    assert describe(save(tmp_path / "b")) == first
    assert describe(save(tmp_path / "a", 255 - IMAGES)) != first
    assert describe(save(tmp_path / "a", labels=LABELS.flip(0))) != first
    assert describe(save(tmp_path / "a")) == first


def test_a_replaced_file_is_never_kept(tmp_path):
    store, parts = Store(tmp_path / "outputs"), {}
    for turn, content in enumerate((IMAGES, 255 - IMAGES)):
        for part in ("victim", "pool"):
            dataset = save(tmp_path / part, content if part == "victim" else IMAGES)
            parts[part] = victim(dataset=dataset) if part == "victim" else dataset
        made = cell(budget=10, **parts)
        assert run(made, store, CPU)[1] is False
        assert run(cell(budget=10, **parts), store, CPU)[1] is True
        save(tmp_path / "pool", 200 - IMAGES // 2 if turn else IMAGES // 2)
        assert run(cell(budget=10, **parts | {"pool": Saved(parts["pool"].path)}), store, CPU)[1] is False


def test_a_pool_that_is_no_data_set_counts_as_well(tmp_path):
    @dataclass(frozen=True)
    class Only:
        path: str = field(compare=False)
        name: str = "only"

        def images(self, shape):
            return torch.load(self.path)[0]

    names = []
    for content in (IMAGES, 255 - IMAGES):
        save(tmp_path / "a", content)
        names.append(cell(pool=Only(str(tmp_path / "a"))).fingerprint)
    assert names[0] != names[1]
    streamed = Mine(pool_=Streamed(IMAGES))
    assert cell(pool=streamed).fingerprint != cell(pool=Mine(pool_=Streamed(255 - IMAGES))).fingerprint


def test_who_knows_his_content_is_not_read(tmp_path):
    @dataclass(frozen=True)
    class Known(Saved):
        def contents(self):
            return "0815"

    known = Known(str(tmp_path / "absent"))
    assert describe(known)["contents"] == "0815"
    assert cell(pool=known).fingerprint
    assert "contents" not in describe(Digits())


def test_equal_sets_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(cached, "KEPT", type(cached.KEPT)())
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda file: read.append(file) or load(file))
    save(tmp_path / "a")
    for _ in range(3):
        describe(Saved(str(tmp_path / "a")))
    assert len(read) == 2
