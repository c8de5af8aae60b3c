"""Several defenses in a row: each hook reaches each part."""

import threading
from dataclasses import dataclass, replace

import pytest
import torch
from toys import CPU, cell, victim

from mad import pipeline, simplex
from mad.cell import about
from mad.defenses import Chain, Context, Defense, Mad, MadArgmax, MadRandom, Prada, Rounding, TopK, Undefended
from mad.defenses.surrogates import AdversarySurrogate, TrainedSurrogate
from mad.deployment import deploy, open_deployment
from mad.errors import MadError
from mad.estimate import networks
from mad.pipeline import run
from mad.schema import Column
from mad.storage.fingerprint import describe, digest, settings
from mad.storage.store import Store
from mad.testing import check_defense, trainer


def images(count, seed=0):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@dataclass
class Counting(Defense):
    """Counts the queries of a client and of all, and moves each answer a little more."""

    name = "counting"
    stateful = True
    schema = (
        Column("count_own", "whole number", "", "of a client"),
        Column("count_all", "whole number", "", "of all"),
        Column("count_honest", "series", "", "of each honest one"),
        Column("count_stolen", "whole number", "", "asked of the stolen network"),
    )
    epsilon: float | None = None
    label: str = ""

    def prepare(self, context):
        self._all = [0]

    def begin(self):
        self._own = 0

    def perturb(self, images, clean):
        self._own += len(clean)
        self._all[0] += len(clean)
        return clean

    def session_columns(self):
        return {"count_own": self._own, "count_all": self._all[0]}

    def honest_columns(self, sessions):
        return {"count_honest": [each._own for each in sessions]}

    def verify(self, network, transfer, context):
        assert not network.training
        return {"count_stolen": len(transfer)}


def test_each_part_sees_the_answers_of_the_one_before():
    parts = [Rounding(decimals=1), MadRandom(0.4), TopK(k=2)]
    toy = victim(10)
    context = Context(toy, toy.untrained(seed=0, purpose="victim"), 3, CPU)
    some, clean = images(20), torch.softmax(3 * torch.randn(20, 10, generator=torch.Generator().manual_seed(1)), dim=1)
    expected = clean
    for part in parts:
        expected = part.prepared(context)(some, expected)
    assert torch.equal(Chain(parts=parts).prepared(context)(some, clean), expected)
    assert simplex.l1(expected, clean).max() > 0.8
    within = Chain(0.3, parts).prepared(context)(some, clean)
    assert simplex.l1(within, clean).max() <= 0.3 + 1e-5
    assert torch.allclose(within, simplex.shrink(expected, clean, 0.3))
    backwards = Chain(parts=parts[::-1]).prepared(context)(some, clean)
    assert not torch.allclose(backwards, expected, atol=1e-3)


def test_a_chain_of_one_is_that_one():
    some = images(9)
    alone, chained = (deploy(victim(), defense).session()(some) for defense in (Mad(0.5), Chain(parts=[Mad(0.5)])))
    assert torch.equal(alone, chained)


def test_twins_draw_on_their_own():
    some, clean = images(40), torch.full((40, 10), 0.1)
    toy = victim(10)
    chain = Chain(parts=[MadRandom(0.4), MadRandom(0.4)])
    ready = chain.prepared(Context(toy, toy.untrained(seed=0, purpose="victim"), 0, CPU))
    first, second = (part(some, clean).argmax(dim=1) for part in ready.held())
    assert (first != second).float().mean() > 0.5
    nested = Chain(parts=[MadRandom(0.4), Chain(parts=[MadRandom(0.4), Rounding()])])
    ready = nested.prepared(Context(toy, toy.untrained(seed=0, purpose="victim"), 0, CPU))
    outer, inner = (part(some, clean).argmax(dim=1) for part in (ready.held()[0], ready.held()[1].held()[0]))
    assert (outer != inner).float().mean() > 0.5
    assert torch.equal(outer, first)
    deep = Chain(parts=[Chain(parts=[MadRandom(0.4), MadRandom(0.4)]), MadRandom(0.4)])
    ready = deep.prepared(Context(toy, toy.untrained(seed=0, purpose="victim"), 0, CPU))
    keys = [each._key for each in (*ready.held()[0].held(), ready.held()[1])]
    assert len(set(keys)) == 3


def test_sessions_are_apart_and_what_is_shared_is_shared():
    chain = Chain(parts=[Mad(0.5), Counting()])
    assert chain.stateful
    assert not Chain(parts=[Mad(0.5)]).stateful
    deployment = deploy(victim(), chain)
    first, second = deployment.session(), deployment.session()
    first(images(5))
    second(images(7))
    first(images(2))
    assert first.defense.session_columns() == {"count_own": 7, "count_all": 14}
    assert second.defense.session_columns() == {"count_own": 7, "count_all": 14}
    assert deployment.fresh().session().defense.session_columns() == {"count_own": 0, "count_all": 0}


def test_64_threads_count_each_query():
    deployment = deploy(victim(), Chain(parts=[MadArgmax(0.5), Counting(), Prada(least=20)]))
    shared, some = deployment.session(), images(64 * 12).split(4)
    own = [deployment.session() for _ in range(64)]

    def ask(number):
        for part in some[3 * number : 3 * number + 3]:
            shared(part)
            own[number](part)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(64)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert shared.queries == shared.defense.session_columns()["count_own"] == 64 * 12
    assert {each.defense.session_columns()["count_own"] for each in own} == {12}
    assert shared.defense.session_columns()["count_all"] == 2 * 64 * 12
    assert shared.defense.held()[2]._asked == 64 * 12


def test_the_record_has_the_columns_of_all_parts_also_from_a_kept_transfer_set(tmp_path):
    this = cell(defense=Chain(parts=[Mad(0.5), Counting()]))
    record = run(this, Store(tmp_path), CPU)[0]
    assert (record["defense"], record["surrogate"]) == ("chain", "random")
    assert record["defense_settings"] == "parts=mad epsilon=0.5 + counting " + settings(Counting())
    assert (record["count_own"], record["count_all"], record["count_stolen"]) == (50, 50, 50)
    assert record["count_honest"] == [100, 100]  # 200 test images
    assert record["epsilon"] is record["strength"] is None
    again = replace(this, knockoff=replace(this.knockoff, trainer=trainer(2)))
    kept = run(again, Store(tmp_path), CPU)[0]
    assert len(list(tmp_path.glob("transfers/*/*"))) == 1
    assert {name: kept[name] for name in record if name.startswith("count")} == {
        name: record[name] for name in record if name.startswith("count")
    }


def test_honest_clients_make_as_many_queries_as_a_part_wants(tmp_path):
    class Long(Counting):
        honest_queries = 150

    defense = Chain(parts=[Long()])
    api = deploy(victim(), defense)
    found = pipeline.utility(api, victim().dataset.test(), None, CPU)
    assert found["count_honest"] == [150, 50]
    assert Chain(parts=[Mad(0.5)]).honest_queries == 100


def test_batches_and_gradients_are_those_of_the_parts():
    class Narrow(Counting):
        max_batch = 7

    class Narrower(Counting):
        max_batch = 5
        needs_gradients = True
        schema = ()

        def perturb(self, images, clean):
            assert torch.is_grad_enabled()
            assert len(clean) <= 5
            return clean

    chain = Chain(parts=[Narrow(), Narrower(), Rounding()])
    assert (chain.max_batch, chain.needs_gradients) == (5, True)
    assert (Chain(parts=[Rounding()]).max_batch, Chain(parts=[Rounding()]).needs_gradients) == (None, False)
    deploy(victim(), chain).session()(images(12))


@dataclass
class Serving(Defense):
    """Serves a network of its own."""

    name = "serving"
    epsilon: float | None = None
    seed: int = 5

    def serve(self, context):
        return context.victim.untrained(seed=self.seed, purpose="victim")

    def perturb(self, images, clean):
        return clean


def test_one_part_may_serve_another_model():
    deployment = deploy(victim(), Chain(parts=[Mad(0.5), Serving()]))
    assert torch.equal(deployment.served.head.weight, victim().untrained(seed=5, purpose="victim").head.weight)
    with pytest.raises(MadError, match="serving and serving each serve a model of their own"):
        cell(defense=Chain(parts=[Serving(), Chain(parts=[Serving()])]))


def test_surrogates_inside_are_found():
    chain = Chain(parts=[Mad(0.5, TrainedSurrogate(trainer())), Chain(parts=[Mad(0.5)])])
    this = cell(defense=chain)
    assert about(this)["surrogate"] == "trained + random"
    assert [each.name for each in networks(this)] == ["toy", "surrogate"]
    with pytest.raises(MadError, match=r"surrogate adversary reads .*take attack=online"):
        cell(defense=Chain(parts=[Prada(), Mad(0.5, AdversarySurrogate())]))


def test_a_part_may_refuse_a_victim():
    class Refusing(Rounding):
        def check(self, victim):
            raise MadError(f"not for {victim.name}")

    with pytest.raises(MadError, match="not for toy"):
        cell(defense=Chain(parts=[Mad(0.5), Refusing()]))


@pytest.mark.parametrize("parts", [(), "mad", Mad(0.5), None, 3])
def test_parts_are_a_list(parts):
    with pytest.raises(MadError, match=r"defense.parts must be a list of defenses"):
        Chain(parts=parts)


def test_parts_are_defenses_whose_columns_differ():
    with pytest.raises(MadError, match=r"defense.parts must hold defenses, got 'mad'"):
        Chain(parts=["mad"])
    with pytest.raises(MadError, match=r"part 2 of defense=chain, prada, and part 1 .* both write the column prada_"):
        Chain(parts=[Prada(), Prada(delta=0.9)])


def test_no_budget_is_no_defense():
    assert cell(defense=Chain(0.0, [Mad(0.5)])).defense == Undefended()


def test_settings_say_the_parts_and_every_change_is_another_fingerprint():
    chains = [
        Chain(parts=[MadArgmax(0.5), Prada()]),
        Chain(0.9, [MadArgmax(0.5), Prada()]),
        Chain(parts=[MadArgmax(0.6), Prada()]),
        Chain(parts=[Prada(), MadArgmax(0.5)]),
        Chain(parts=[MadArgmax(0.5), Prada(delta=0.9)]),
        Chain(parts=[MadArgmax(0.5, solver="exact"), Prada(every=1)]),
    ]
    assert settings(chains[0]) == settings(chains[1]) == "parts=mad_argmax epsilon=0.5 + prada"
    assert settings(chains[4]) == "parts=mad_argmax epsilon=0.5 + prada delta=0.9"
    assert settings(chains[5]) == "parts=mad_argmax epsilon=0.5 solver=exact + prada every=1"
    assert len({digest(describe(each)) for each in chains}) == len(chains)


def test_an_export_answers_the_same(tmp_path):
    deployment = deploy(victim(), Chain(1.5, [Mad(0.5), Chain(parts=[MadRandom(0.3), Prada()])]), seed=4)
    deployment.export(tmp_path / "api")
    again = open_deployment(tmp_path / "api")
    assert torch.allclose(again.session()(images(9)), deployment.session()(images(9)), atol=1e-6)
    assert again.defense.held()[1].held()[0]._key == deployment.defense.held()[1].held()[0]._key


def test_a_chain_is_a_defense():
    check_defense(Chain(0.9, [Rounding(), MadRandom(0.5), Prada()]), (2, 10))
