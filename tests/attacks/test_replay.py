"""Replaying a log steals what the same queries would have stolen, and any log that cannot be replayed is one line."""

import json
from dataclasses import replace

import pytest
import torch
from logs import columns, png
from PIL import Image
from toys import CPU, cell

from mad.api import BlackBox
from mad.attacks.replay import Replay
from mad.datasets.checked import say
from mad.defenses import Undefended
from mad.defenses.mad import Mad
from mad.defenses.mad_argmax import MadArgmax
from mad.defenses.random_noise import RandomNoise
from mad.defenses.reverse_sigmoid import ReverseSigmoid
from mad.defenses.top_k import TopK
from mad.deployment import deploy
from mad.errors import BudgetExceededError, MadError
from mad.pipeline import run
from mad.storage.store import Store

DEFENSES = [Undefended(), Mad(0.8), MadArgmax(0.8), RandomNoise(0.5), ReverseSigmoid(beta=0.5), TopK(k=2)]
SCORES = ("stolen_accuracy", "agreement", "learned", "l1_mean_queries", "target_entropy", "queries", "budget")


@pytest.mark.parametrize(
    ("how", "name"),
    [(how, "log.parquet") for how in ("bytes", "paths", "structs", "structs of paths")] + [("paths", "log.csv")],
)
def test_a_replayed_log_is_the_theft_that_it_is_of_to_the_bit(asked, written, how, name, tmp_path):
    store, _, answers = asked
    queried, replayed = cell(defense=Undefended()), cell(defense=Undefended(), attack=Replay(log=written(how, name)))
    expected, record = (run(whole, store, CPU)[0] for whole in (queried, replayed))
    assert [record[name] for name in SCORES] == [expected[name] for name in SCORES]
    assert (record["attack"], record["pool"], record["seconds_queries"] > 0) == ("replay", "none", True)
    pool, networks = queried.pool.images((1, 8, 8)), []
    for whole in (queried, replayed):
        adversary, api = whole.adversary(CPU), deploy(whole.victim, store=store).session(50)
        transfer = whole.attack.spend(api, pool, adversary)
        assert torch.equal(transfer.transfer.answers, answers)
        networks.append(adversary.train(transfer.transfer).state_dict())
    assert all(torch.equal(networks[0][key], value) for key, value in networks[1].items())


@pytest.mark.parametrize("defense", DEFENSES, ids=lambda defense: defense.name)
def test_defended_replay_is_what_defended_queries_would_be_answered(asked, written, defense):
    store, images, _ = asked
    deployed = deploy(cell().victim, defense, store=store)
    expected = deployed.session()(images / 255)
    attack, api = Replay(log=written()), deployed.session(50)
    found = attack.spend(api, None, cell(attack=attack).adversary(CPU)).transfer.answers
    assert torch.equal(found, expected)
    plain = deployed.session()
    plain(images / 255)
    assert (api.queries, api.l1_mean, api.target_entropy) == (plain.queries, plain.l1_mean, plain.target_entropy)


def test_the_victim_is_not_asked(asked, written):
    class Deaf(torch.nn.Module):
        def forward(self, images):
            raise AssertionError("the victim was asked")

    api = BlackBox(Deaf().eval(), Undefended(), (1, 8, 8), 50, CPU)
    attack = Replay(log=written())
    assert torch.equal(attack.spend(api, None, cell(attack=attack).adversary(CPU)).transfer.answers, asked[2])


@pytest.mark.parametrize("pattern", ["p{}", "posterior_{}", "{}", "class.{}"])
def test_posteriors_may_be_columns(asked, written, pattern):
    path = written("paths", "log.csv", answer=None, **columns(asked[2], pattern), label=3, other_7=1)
    assert torch.equal(Replay(log=path).opened.posteriors(4, "it"), asked[2])


def test_columns_of_any_name_can_be_said(asked, written):
    path = written(image=None, answer=None, picture=list(map(png, asked[1])), **columns(asked[2]), top=[1] * 50, q=0)
    assert torch.equal(Replay(log=path, image="picture").opened.posteriors(4, "it"), asked[2])
    one_hot = Replay(log=path, image="picture", answer="top").opened.posteriors(4, "it")
    assert torch.equal(one_hot, torch.tensor([[0.0, 1, 0, 0]]).expand(50, 4))


def test_class_numbers_become_one_hot(asked, written, tmp_path):
    path = written("paths", "log.csv", answer=None, label=asked[2].argmax(dim=1).numpy())
    found = Replay(log=path).opened.posteriors(4, "it")
    assert torch.equal(found.argmax(dim=1), asked[2].argmax(dim=1))
    assert torch.equal(found.amax(dim=1), torch.ones(50))
    record, _ = run(cell(attack=Replay(log=path), pool=None), Store(tmp_path / "outputs"), CPU)
    assert record["l1_mean_queries"] > 0.4


def test_columns_are_taken_by_number_and_names_of_images_as_text(asked, written, tmp_path):
    (tmp_path / "007").write_bytes(png(asked[1][0]))
    (tmp_path / "log.csv").write_text("p3,p1,image,p2,p0\n0.4,0.2,007,0.3,0.1\n")
    attack = Replay(log=str(tmp_path / "log.csv"))
    assert attack.opened.posteriors(4, "it").tolist() == [[pytest.approx(each) for each in (0.1, 0.2, 0.3, 0.4)]]
    assert torch.equal(attack.pictures((1, 8, 8)), asked[1][:1])


def test_answers_of_another_victim_are_refused_before_anything_is_loaded(written):
    with pytest.raises(MadError, match="victim toy has 4 classes"):
        cell(attack=Replay(log=written(answer=[[0.5, 0.5]] * 50)), pool=None)


def test_rounded_answers_are_rescaled(written):
    path = written(answer=[[0.333, 0.333, 0.333, 0.0]] * 50)
    assert torch.allclose(Replay(log=path).opened.posteriors(4, "it").sum(dim=1), torch.ones(50))


def test_images_get_the_victims_shape(written, tmp_path):
    (tmp_path / "images").mkdir()
    for name, size in (("a.png", (30, 20)), ("b.jpg", (9, 40))):
        Image.new("RGB", size, (250, 10, 10)).save(tmp_path / "images" / name)
    (tmp_path / "log.csv").write_text("image,label\nimages/a.png,0\nimages/b.jpg,1\n")
    assert Replay(log=str(tmp_path / "log.csv")).pictures((3, 8, 8)).shape == (2, 3, 8, 8)
    assert Replay(log=str(tmp_path / "log.csv")).pictures((1, 8, 8)).shape == (2, 1, 8, 8)


def test_large_logs_are_a_stream(asked, written, monkeypatch):
    monkeypatch.setattr("mad.datasets.base.IN_MEMORY", 100)
    attack = Replay(log=written(name="streamed.parquet"))
    found = attack.opened.images((1, 8, 8))
    assert not isinstance(found, torch.Tensor)
    assert torch.equal(torch.stack([found[row] for row in (49, 0, 49)]), asked[1][[49, 0, 49]])


def test_the_budget_is_the_first_rows(asked, written):
    path = written()
    assert Replay(log=path).affordable(None, "none") == 50
    assert Replay(20, log=path).affordable(None, "none") == 20
    api = deploy(cell().victim, store=asked[0]).session(20)
    transfer = Replay(20, log=path).spend(api, None, cell().adversary(CPU)).transfer
    assert torch.equal(transfer.answers, asked[2][:20])
    with pytest.raises(
        MadError, match=r"^attack.budget=51 is above the 50 rows of attack.log=.*log.parquet: lower it$"
    ):
        Replay(51, log=path).affordable(None, "none")


def test_the_api_counts_and_checks_what_is_replayed(asked):
    _, images, answers = asked
    api = deploy(cell().victim, Mad(0.5), store=asked[0]).session(30)
    api.replayed(images[:20] / 255, answers[:20])
    assert api.queries == 20
    with pytest.raises(BudgetExceededError, match="10 of 30 left"):
        api.replayed(images[:11] / 255, answers[:11])
    for given, clean in (
        (images[:2], answers[:2]),
        (images[:2] / 255, answers[:3]),
        (images[:2] / 255, answers[:2] * 2),
        (images[:2] / 255, answers[0]),
        (torch.rand(2, 3, 8, 8), answers[:2]),
    ):
        with pytest.raises(MadError):
            api.replayed(given, clean)
    assert api.queries == 20


def test_the_content_is_in_the_fingerprint_and_the_path_is_not(asked, written, tmp_path):
    here = written("paths")
    first = cell(attack=Replay(log=here), pool=None)
    (tmp_path / "other").mkdir()
    (tmp_path / "images").rename(tmp_path / "other" / "images")
    there = (tmp_path / "log.parquet").rename(tmp_path / "other" / "moved.parquet")
    assert cell(attack=Replay(log=str(there)), pool=None).fingerprint == first.fingerprint
    assert replace(first, attack=Replay(49, log=str(there))).fingerprint != first.fingerprint
    Image.new("L", (8, 8), 9).save(tmp_path / "other" / "images" / "7.png")
    assert cell(attack=Replay(log=str(there)), pool=None).fingerprint != first.fingerprint
    assert str(tmp_path) not in json.dumps(list(first.attack.__dict__["content"]))


def test_an_image_that_changes_after_the_start_is_refused(written, tmp_path):
    attack = Replay(log=written("paths"))
    Image.new("L", (8, 8), 9).save(tmp_path / "images" / "7.png")
    with pytest.raises(MadError, match=r"^attack\.log=.*changed after the start: start again$"):
        attack.load(cell().victim)


def test_a_line_says_what_is_in_it(written, capfd):
    say.cache_clear()
    answers = [[0.9, 0.1, 0, 0]] * 40 + [[0.1, 0.9, 0, 0]] * 10
    Replay(log=written(answer=answers, label=1)).load(cell().victim)
    assert capfd.readouterr().err.endswith(
        "log.parquet: 50 of 50 rows, 50 distinct images; 2 of 4 classes are a top class, "
        "from 0.0% of the rows (class 2) to 80.0% (class 0)\n"
    )
