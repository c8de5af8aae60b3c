"""What is finished is kept, what is damaged is made again, what cannot be written is one line."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from toys import CPU, Tiny, trainer, victim

from mad.architectures import imagenet
from mad.cli import sweep_folder
from mad.errors import MadError
from mad.storage import files, records
from mad.storage import store as stores
from mad.storage.store import COLUMNS, Store

TASK = "victim toy"
PATH = Path("runs/toy/mad/knockoff/0123456789abcdef/record.json")


def content(value=1):
    """A record's smallest content."""
    some = {key: "x" if kinds is str else 0 for key, kinds in COLUMNS.items()}
    return {
        **some,
        **dict(zip(("victim", "defense", "attack", "fingerprint"), PATH.parts[1:], strict=False)),
        "v": value,
    }


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def only(folder, name):
    (found,) = folder.rglob(name)
    return found


def test_a_victim_is_trained_once(tmp_path, fits):
    first, seconds = Store(tmp_path).victim(victim(), CPU)
    again, kept_seconds = Store(tmp_path).victim(victim(), CPU)
    assert fits == [TASK]
    assert torch.equal(weights(first), weights(again))
    assert seconds == kept_seconds > 0
    assert not again.training
    Store(tmp_path).victim(victim(seed=1), CPU)
    assert fits == [TASK, TASK]


FETCHED = []


def pretrained(shape, classes):
    FETCHED.append(imagenet.wanted("imagenet"))
    return Tiny(shape, classes)


def test_a_kept_victim_fetches_no_published_weights(tmp_path, fits):
    FETCHED.clear()
    for _ in range(2):
        Store(tmp_path).victim(victim(architecture=pretrained), CPU)
    assert fits == [TASK]
    assert FETCHED == [True, False]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone"])
def test_damaged_weights_are_made_again(tmp_path, fits, damage):
    first, _ = Store(tmp_path).victim(victim(), CPU)
    file = only(tmp_path, "weights.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 255
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flipped" else content[:-8])
    again, _ = Store(tmp_path).victim(victim(), CPU)
    assert fits == [TASK, TASK]
    assert torch.equal(weights(first), weights(again))
    Store(tmp_path).victim(victim(), CPU)
    assert len(fits) == 2


@pytest.mark.parametrize("text", ['{"sha256": "ab', "", "[]", "{}", '{"sha256": "00"}'])
def test_damaged_facts_are_made_again(tmp_path, fits, text, capfd):
    first, _ = Store(tmp_path).victim(victim(), CPU)
    only(tmp_path, "victim.json").write_text(text)
    again, _ = Store(tmp_path).victim(victim(), CPU)
    assert fits == [TASK, TASK]
    assert torch.equal(weights(first), weights(again))
    assert only(tmp_path, "victim.json.damaged").read_text() == text
    assert json.loads(only(tmp_path, "victim.json").read_text())["sha256"]
    assert "damaged" in capfd.readouterr().err


def test_facts_that_are_no_text_are_made_again(tmp_path, fits):
    Store(tmp_path).victim(victim(), CPU)
    only(tmp_path, "victim.json").write_bytes(b"\xff\xfe\x00")
    Store(tmp_path).victim(victim(), CPU)
    assert len(fits) == 2


def test_weights_without_facts_are_no_victim(tmp_path, fits):
    Store(tmp_path).victim(victim(), CPU)
    only(tmp_path, "victim.json").unlink()
    Store(tmp_path).victim(victim(), CPU)
    assert len(fits) == 2


def test_an_interrupted_training_leaves_no_victim(tmp_path, fits, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stores, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).victim(victim(), CPU)
    monkeypatch.undo()
    Store(tmp_path).victim(victim(), CPU)
    assert only(tmp_path, "victim.json")


def kept(value, uses=""):
    return {**content(value), "uses": uses}


def test_a_record_is_kept(tmp_path):
    made = []

    def make():
        made.append(1)
        return content(len(made))

    assert Store(tmp_path).record(PATH, make) == (kept(1), False)
    assert Store(tmp_path).record(PATH, make) == (kept(1), True)
    assert Store(tmp_path).find(PATH) == kept(1)
    (tmp_path / PATH).write_text('{"value": ')
    assert Store(tmp_path).find(PATH) is None
    assert Store(tmp_path).record(PATH, make) == (kept(2), False)


def test_force_makes_it_again_and_keeps_the_old_one_until_then(tmp_path):
    Store(tmp_path).record(PATH, content)

    def fail():
        assert Store(tmp_path).find(PATH) == kept(1)
        raise MadError("no")

    with pytest.raises(MadError, match="no"):
        Store(tmp_path).record(PATH, fail, force=True)
    assert Store(tmp_path).find(PATH) == kept(1)
    assert Store(tmp_path).record(PATH, lambda: content(2), force=True) == (kept(2), False)
    assert Store(tmp_path).find(PATH) == kept(2)


@pytest.mark.parametrize("at", range(0, 700, 31))
def test_one_bit_of_a_record_is_noticed(tmp_path, at):
    Store(tmp_path).record(PATH, content)
    file = tmp_path / PATH
    whole = bytearray(file.read_bytes())
    whole[at % len(whole)] ^= 1 << at % 8
    file.write_bytes(whole)
    assert Store(tmp_path).find(PATH) is None
    assert records.read(tmp_path).empty


def test_a_number_that_was_edited_is_noticed(tmp_path):
    Store(tmp_path).record(PATH, content)
    file = tmp_path / PATH
    file.write_text(file.read_text().replace('"v": 1', '"v": 2'))
    assert Store(tmp_path).find(PATH) is None


@pytest.mark.parametrize("index", [1, 2, 3, 4])
def test_a_record_in_anothers_folder_is_noticed(tmp_path, index):
    Store(tmp_path).record(PATH, content)
    parts = list(PATH.parts)
    parts[index] = "another"
    other = Path(*parts)
    (tmp_path / other).parent.mkdir(parents=True)
    (tmp_path / other).write_bytes((tmp_path / PATH).read_bytes())
    assert Store(tmp_path).find(other) is None
    assert len(records.read(tmp_path)) == 1


@pytest.mark.parametrize(
    "foreign", [{"more": {"a": 1}}, {"more": [1]}, {"strength_parameter": 1}, {"epsilon": "x"}, {"\x1b": 1}]
)
def test_a_record_of_more_than_plain_values_is_none(tmp_path, foreign):
    files.write(tmp_path / PATH, files.seal({**content(), **foreign}))
    assert Store(tmp_path).find(PATH) is None
    assert records.read(tmp_path).empty
    assert Store(tmp_path).record(PATH, content) == (kept(1), False)


VALUES = st.none() | st.booleans() | st.integers(-(2**1023), 2**1023) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(), max_size=9)  # any code point, lone surrogates too


@example([None] * 9, "\r", 0.5)
@given(st.lists(VALUES | TEXTS, min_size=9, max_size=9), TEXTS, st.floats(0, 1))
def test_what_a_record_may_hold_comes_back_as_it_was(tmp_path_factory, values, text, number):
    folder = tmp_path_factory.mktemp("record")
    some = {f"c{place}": value for place, value in enumerate(values)}
    given_ = {
        **content(),
        **some,
        "defense_settings": text,
        "strength_parameter": text,
        "overrides": text,
        "stolen_accuracy": number,
    }
    assert stores.fault(given_) is None
    record, _ = Store(folder).record(PATH, lambda: given_)
    assert Store(folder).record(PATH, content) == (record, True)
    assert repr({**record, "uses": ""}) == repr({**given_, "uses": ""})
    table = records.read(folder)
    assert len(table) == 1
    back = pd.read_csv(records.write_csv(table, folder), dtype=str, keep_default_na=False, encoding="utf-8")
    for name, value in given_.items():
        written = back[name][0]
        if isinstance(value, str):
            assert written == value.encode(errors="backslashreplace").decode()
        elif isinstance(value, bool) or value is None:
            assert written == ("" if value is None else str(value))
        else:
            assert type(value)(written) == value


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ({"more": [1]}, "more is list"),
        ({"more": torch.zeros(3)}, "more is Tensor"),
        ({"more": 10**5000}, "more has too many digits"),
        ({"sha256": "a"}, "'sha256' cannot be a column"),
        ({7: "a"}, "7 cannot be a column"),
        ({"victim": "another"}, "it is another's"),
        ({"comparison_group": "a b"}, "comparison_group must be"),
        ({"budget": "many"}, "budget is 'many'"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, column, said):
    with pytest.raises(MadError, match=said):
        Store(tmp_path).record(PATH, lambda: content() | column)
    assert list(tmp_path.rglob("*.json")) == []


def test_single_numbers_of_other_libraries_are_numbers(tmp_path):
    more = {"a": torch.tensor(0.5), "b": np.float32(2), "c": np.bool_(1)}
    found, _ = Store(tmp_path).record(PATH, lambda: content() | more)
    assert [found[name] for name in more] == [0.5, 2.0, True]
    assert Store(tmp_path).find(PATH) == found


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "9" * 5000])
def test_a_record_of_no_number_is_damaged(tmp_path, text, capfd):
    Store(tmp_path).record(PATH, content)
    file = tmp_path / PATH
    file.write_text(file.read_text().replace('"v": 1', f'"v": {text}'))
    assert Store(tmp_path).find(PATH) is None
    assert Store(tmp_path).record(PATH, content) == (kept(1), False)


def test_a_long_name_is_another_name(tmp_path):
    long = ["\u00e9" * 64, "a" * 63, "b"]
    names = [files.file_name(*long), files.file_name(*long[:2], "c"), files.file_name("a", "b")]
    assert names[2] == "a-b"
    assert len(set(names)) == 3
    assert all(len(name.encode()) <= files.LONGEST for name in names)
    with files.locked(tmp_path, Path(*long)):
        assert files.holder(tmp_path / files.lock_file(Path(*long)))


def test_everything_is_renewed_once_and_nobody_reads_what_is_old(tmp_path, fits):
    """Many jobs of a sweep on one victim: the first to come makes it again, the others wait and read the new one."""
    old, _ = Store(tmp_path).victim(victim(), CPU)
    (tmp_path / "sweep").mkdir()
    facts = only(tmp_path, "victim.json")
    inode = facts.stat().st_ino

    def job(_):
        store = Store(tmp_path, sweep_folder.Renewed(tmp_path / "sweep"))
        model, _ = store.victim(victim(), CPU)
        return facts.stat().st_ino != inode and torch.equal(weights(model), weights(old))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(job, range(8)))
    assert fits == [TASK, TASK]


def test_what_failed_to_be_renewed_is_tried_again_and_the_old_one_stays(tmp_path):
    def fail():
        raise MadError("no")

    Store(tmp_path).record(PATH, content)
    store = Store(tmp_path, set())
    with pytest.raises(MadError, match="no"):
        store.record(PATH, fail)
    assert store.find(PATH) is None
    assert Store(tmp_path).find(PATH) == kept(1)
    assert store.record(PATH, lambda: content(2)) == (kept(2), False)
    assert store.record(PATH, fail) == (kept(2), True)
    assert store.find(PATH) == kept(2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_result_of_nothing_is_not_kept(tmp_path, value):
    with pytest.raises(MadError, match="NaN or infinite"):
        Store(tmp_path).record(PATH, lambda: content(value))
    assert list(tmp_path.rglob("*.json")) == []


def test_a_record_names_the_networks_it_used(tmp_path):
    def make():
        Store(tmp_path).victim(victim(), CPU)
        return content()

    record, _ = Store(tmp_path).record(PATH, make)
    (folder,) = (tmp_path / "victims").glob("*/*")
    assert record["uses"] == f"toy/{folder.name}"
    Store(tmp_path).victim(victim(seed=1), CPU)
    assert stores.USES.get() is None


def test_a_victim_replaced_by_anothers_is_made_again(tmp_path, fits, capfd):
    first, _ = Store(tmp_path).victim(victim(), CPU)
    Store(tmp_path).victim(victim(seed=1), CPU)
    one, two = sorted((tmp_path / "victims" / "toy").iterdir())
    for name in ("weights.safetensors", "victim.json"):
        (one / name).write_bytes((two / name).read_bytes())
    again = [Store(tmp_path).victim(victim(seed=seed), CPU)[0] for seed in (0, 1)]
    assert torch.equal(weights(again[0]), weights(first))
    assert len(fits) == 3
    assert "another's" in capfd.readouterr().err


def test_weights_that_do_not_fit_are_made_again(tmp_path, fits, capfd):
    """Facts and weights that agree with one another, and are of another network or no weights at all."""
    first, _ = Store(tmp_path).victim(victim(), CPU)
    facts, file = only(tmp_path, "victim.json"), only(tmp_path, "weights.safetensors")
    for content in (stores.save({"a": torch.zeros(1)}), b"\x80\x04N.", b""):
        file.write_bytes(content)
        about = {**files.unseal(facts), "weights_sha256": stores.hashlib.sha256(content).hexdigest()}
        files.write(facts, files.seal(about))
        assert torch.equal(weights(Store(tmp_path).victim(victim(), CPU)[0]), weights(first))
        assert "damaged" in capfd.readouterr().err
    assert len(fits) == 4


def test_a_diverged_victim_is_refused_and_not_kept(tmp_path):
    with pytest.raises(MadError, match="diverged"):
        Store(tmp_path).victim(victim(trainer=trainer(learning_rate=1e38)), CPU)
    assert list(tmp_path.rglob("*.json")) == list(tmp_path.rglob("*.safetensors")) == []


def test_what_a_dead_process_left_is_cleared(tmp_path):
    left = tmp_path / PATH.parent / ".record.json.123.abcd.tmp"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    Store(tmp_path).record(PATH, content)
    assert [file.name for file in left.parent.iterdir()] == ["record.json"]
    assert list((tmp_path / files.LOCKS).iterdir()) == []


@pytest.mark.parametrize("where", ["runs", "runs/toy", str(PATH.parent), str(PATH), files.LOCKS])
def test_a_link_that_leads_out_is_refused(tmp_path, where):
    outputs, outside = tmp_path / "outputs", tmp_path / "outside"
    (outputs / where).parent.mkdir(parents=True)
    outside.mkdir()
    (outputs / where).symlink_to(outside / "new" if where.endswith("json") else outside)
    with pytest.raises(MadError, match="leads out of"):
        Store(outputs).record(PATH, content)
    assert list(outside.iterdir()) == []


def test_outputs_may_be_a_link_itself(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert Store(tmp_path / "link").record(PATH, content) == (kept(1), False)


def test_many_at_once_make_it_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return content()

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: Store(tmp_path).record(PATH, make), range(8)))
    assert len(made) == 1
    assert sorted(was_kept for _, was_kept in found) == [False] + [True] * 7


def test_one_at_a_time_holds_the_lock_and_is_named(tmp_path):
    inside = []

    def hold(_):
        with files.locked(tmp_path, Path("a/b")):
            inside.append(files.holder(tmp_path / files.lock_file(Path("a/b"))))
            assert len(inside) == 1
            inside.clear()

    assert files.holder(tmp_path / files.lock_file(Path("a/b"))) is None
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(hold, range(200)))
    with files.locked(tmp_path, Path("a/b")):
        found = files.holder(tmp_path / files.lock_file(Path("a/b")))
    assert (found["pid"], found["host"]) == (os.getpid(), files.whoami()["host"])


def test_a_lock_file_that_is_gone_is_no_lock(tmp_path, monkeypatch):
    """Whoever waits for a lock gets that of a file its holder has removed, and must take another."""
    file, flock, calls = tmp_path / "a.lock", files.fcntl.flock, []

    def late(descriptor, how):
        flock(descriptor, how)
        calls.append(file.unlink() if not calls else None)

    monkeypatch.setattr(files.fcntl, "flock", late)
    descriptor = files.acquire(file)
    assert os.path.samestat(os.fstat(descriptor), file.stat())
    assert len(calls) == 2
    os.close(descriptor)


def test_nothing_is_written_through_a_link(tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "ab")
    (tmp_path / f".a.{os.getpid()}.ab.tmp").symlink_to(tmp_path / "precious")
    with pytest.raises(MadError, match="cannot write"):
        files.write(tmp_path / "a", b"new")
    (tmp_path / "b").symlink_to(tmp_path / "precious")
    files.write(tmp_path / "b", b"new")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_failure_while_making_keeps_nothing(tmp_path):
    def fail():
        raise MadError("no")

    with pytest.raises(MadError, match="no"):
        Store(tmp_path).record(PATH, fail)
    assert Store(tmp_path).record(PATH, content) == (kept(1), False)


def test_outputs_below_a_file_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    below = Store(tmp_path / "file" / "outputs")
    with pytest.raises(MadError, match="outputs="):
        below.victim(victim(), CPU)
    with pytest.raises(MadError, match="outputs="):
        below.record(PATH, content)
    with pytest.raises(MadError, match="outputs="):
        files.write(tmp_path / "file" / "records.csv", b"")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "records.csv"
    files.write(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(MadError, match="No space left"):
        files.write(path, b"new")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["records.csv"]
    assert path.read_bytes() == b"old"
