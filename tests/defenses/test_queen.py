"""QUEEN: what counts, what is falsified and with what, beside plain definitions."""

import math
import threading

import pytest
import torch
from scipy.optimize import minimize
from toys import CPU, Tiny, cell, trainer, victim

from mad.architectures.lenet import LeNet
from mad.defenses import Chain, Context, Queen, Rounding
from mad.defenses.edm import Edm
from mad.defenses.feature_map import ContrastiveTrainer, Cut, mapping
from mad.defenses.queen import Ledger, nearest_posterior
from mad.deployment import deploy, open_deployment
from mad.errors import MadError
from mad.pipeline import run, utility
from mad.storage.store import Store
from mad.testing import Blobs

QUICK = {"shadows": 2, "map_steps": 40}


def images(count, seed=0):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def blobs():
    return Blobs().test().images.float() / 255


def test_the_nearest_posterior_has_the_largest_cosine():
    guess, clean = (torch.softmax(2 * torch.randn(2, 6, 5), dim=2) for _ in range(2))
    for target in (2 * guess - clean).flatten(0, 1).double():
        found = nearest_posterior(target[None])[0].numpy()

        def angle(x, aim=target):
            aim = aim.numpy()
            return -(x @ aim) / math.sqrt((x @ x) * (aim @ aim))

        sums = {"type": "eq", "fun": lambda x: x.sum() - 1}
        best = minimize(angle, [0.2] * 5, method="SLSQP", constraints=sums, bounds=[(0, 1)] * 5)
        assert found.sum() == pytest.approx(1)
        assert (found >= 0).all()
        assert angle(found) <= best.fun + 1e-6


def by_hand(points, labels, centers, spread, radius, threshold):
    """Return the queries to falsify, one after the other, and the sensitivity of each class."""
    sums, counted, falsified = [0.0] * len(spread), [[] for _ in spread], []
    for number, (point, label) in enumerate(zip(points, labels, strict=True)):
        distance = math.dist(point, centers[label])
        near = any(math.dist(point, other) <= radius * spread[label] for other in counted[label])
        if distance >= spread[label] or near:
            continue
        if sums[label] > threshold:
            falsified.append(number)
            continue
        counted[label].append(point)
        sensitivity = 0.5 * math.erfc((distance - spread[label]) / spread[label])
        sums[label] += sensitivity**2 * radius**2
    return falsified, sums


@pytest.mark.parametrize("size", [1, 7, 400])
def test_what_counts_and_what_is_falsified(size):
    draw = torch.Generator().manual_seed(3)
    points, labels = torch.randn(400, 2, generator=draw), torch.randint(3, (400,), generator=draw)
    defense = Queen(radius=0.2, threshold=0.2)
    defense._map = mapping(4, 3, 0)
    defense._map.spread.copy_(torch.tensor([1.0, 0.8, 0.0]))  # the last class has no training images
    defense._map.centers.copy_(torch.tensor([[0.0, 0.0], [0.3, 0.1], [0.0, 0.0]]))
    defense._ledger, found = Ledger(3), []
    for start in range(0, 400, size):
        some = defense._count(points[start : start + size], labels[start : start + size])
        found += [start + each for each in some]
    told = points.tolist(), labels.tolist(), defense._map.centers.tolist(), defense._map.spread.tolist()
    falsified, sums = by_hand(*told, 0.2, 0.2)
    assert found == falsified
    assert len(found) > 10
    assert defense._ledger.sums == pytest.approx(sums)
    assert sums[2] == 0


def test_the_mapping_makes_clusters_of_classes():
    deployment = deploy(victim(), Queen(**QUICK))
    network, cut = deployment.defense._map, deployment.defense._cut
    split = victim().training_split()
    with torch.no_grad():
        points = network(cut(split.images.float() / 255))
    for label in range(4):
        own = points[split.labels == label]
        assert torch.allclose(own.mean(dim=0), network.centers[label], atol=1e-4)
        assert torch.allclose((own - own.mean(dim=0)).norm(dim=1).mean(), network.spread[label], atol=1e-4)
    between = torch.pdist(network.centers).min()
    assert between > 3 * network.spread.max()


def test_the_contrastive_loss_is_its_definition():
    draw = torch.Generator().manual_seed(1)
    points, labels = torch.randn(9, 2, generator=draw), torch.tensor([0, 0, 1, 1, 1, 2, 2, 0, 3])
    recipe = ContrastiveTrainer(1, 9, "adam", 0.01, 0.0, 0.0, "constant")
    total = 0.0
    for i in range(9):
        others = [j for j in range(9) if j != i]
        whole = sum(math.exp(-(math.dist(points[i], points[j]) ** 2)) for j in others)
        same = [j for j in others if labels[j] == labels[i]]
        logs = [math.log(math.exp(-(math.dist(points[i], points[j]) ** 2)) / whole) for j in same]
        total -= sum(logs) / max(1, len(logs)) / 9
    assert recipe.loss(torch.nn.Identity(), points, labels).item() == pytest.approx(total, rel=1e-4)


class Raw(torch.nn.Module):
    """Ends in no linear layer."""

    def __init__(self, shape, classes):
        super().__init__()
        self.head = torch.nn.Linear(64, classes)

    def forward(self, images):
        return self.head(images.flatten(1)).tanh()


@pytest.mark.parametrize(("make", "width"), [(LeNet, None), (Tiny, 64), (Raw, 10)])
def test_a_network_is_cut_before_its_last_layer(make, width):
    shape = (1, 28, 28) if make is LeNet else (1, 8, 8)
    network = make(shape, 10).eval()
    some = torch.rand(5, *shape)
    cut = Cut(network, some[:2])
    with torch.no_grad():
        features = cut(some)
        assert torch.allclose(cut.head(features).softmax(1), network(some).softmax(1), atol=1e-5)
    assert width is None or features.shape == (5, width)
    assert (cut.last is None) == (make is Raw)


@pytest.mark.parametrize("seed", [6, 7])
def test_an_ensemble_is_not_cut_whichever_network_answers_the_images_that_it_is_tried_on(seed):
    """Of seed 6 the last network answers all images between black and white."""
    parts = [Edm(networks=2, outliers=Blobs(7, size=60, name="out")), Queen(**QUICK)]
    deployment = deploy(victim(trainer=trainer(epochs=1)), Chain(parts=parts), seed=seed)
    assert deployment.defense._parts[1]._cut.last is None
    assert torch.allclose(deployment.session().answer(images(30))[1].sum(dim=1), torch.ones(30), atol=1e-5)


def test_answers_are_turned_as_far_as_their_top_class_stays():
    deployment = deploy(victim(), Queen(threshold=1e9, **QUICK))
    some = images(30)
    clean, answers = deployment.session().answer(some)
    assert torch.equal(answers.argmax(dim=1), clean.argmax(dim=1))
    defense = deployment.defense
    with torch.no_grad():
        features = defense._cut(some)
        far = torch.cdist(features, defense._map.middle).argmax(dim=1)
        for row in range(30):
            toward = defense._map.middle[far[row]] - features[row]
            expected = clean[row]
            for number in range(1, 21):
                found = torch.softmax(deployment.served.head(features[row] + 0.05 * number * toward / toward.norm()), 0)
                if found.argmax() != clean[row].argmax():
                    break
                expected = found
            assert torch.allclose(answers[row], expected, atol=1e-5)
    assert (answers - clean).abs().sum(dim=1).mean() > 0.01
    still = deploy(victim(), Queen(threshold=1e9, steps=0, **QUICK)).session()
    assert torch.equal(*still.answer(some))


def test_falsified_answers_aim_at_twice_the_shadows_less_the_victim():
    deployment = deploy(victim(), Queen(threshold=0.0, radius=0.3, **QUICK))
    api, some = deployment.session(), blobs()
    clean, answers = api.answer(some)
    defense = api.defense
    wrong = (answers.argmax(dim=1) != clean.argmax(dim=1)).nonzero().squeeze(1)
    assert 0 < len(wrong) <= defense._wrong < 200
    guess = torch.stack([torch.softmax(each(some), dim=1) for each in defense._shadows]).mean(dim=0)
    assert torch.allclose(answers[wrong], nearest_posterior(2 * guess - clean)[wrong], atol=1e-5)


def test_all_clients_share_the_sensitivities_also_in_64_threads():
    deployment = deploy(victim(), Queen(threshold=0.0, radius=0.3, **QUICK))
    some, sessions = blobs()[:192].split(3), [deployment.session() for _ in range(64)]
    threads = [threading.Thread(target=sessions[number], args=(some[number],)) for number in range(64)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    ledger = deployment.defense._ledger
    assert all(each.defense._ledger is ledger for each in sessions)
    assert sum(each.defense._asked for each in sessions) == 192
    assert [len(each) for each in ledger.points] == [1, 1, 1, 1]  # of each class the first counts
    assert sum(each.defense._wrong for each in sessions) > 0
    assert deployment.fresh().defense._ledger.sums == [0, 0, 0, 0]


def test_the_record_says_how_much_was_falsified(tmp_path, fits):
    parts = Chain(parts=[Queen(threshold=0.0, radius=0.3, **QUICK), Rounding(decimals=4)])
    for defense in (Queen(threshold=0.0, radius=0.3, **QUICK), Queen(threshold=9.0, radius=0.3, **QUICK), parts):
        record = run(cell(defense=defense, budget=200), Store(tmp_path), CPU)[0]
        assert (record["queen_falsified"] > 0) == (defense.strength != 9)
        assert (record["queen_classes_over"] > 0) == (defense.strength != 9)
        assert 0 <= record["queen_honest_falsified"] < 1
    assert sum("shadow" in each for each in fits) == 2  # kept
    assert sum("mapping" in each for each in fits) == 1


def test_the_share_falsified_is_of_all_accounts():
    shares = []
    for accounts in (1, 2, 5):
        api = deploy(victim(), Queen(threshold=0.0, radius=0.3, **QUICK)).session(100, accounts=accounts)
        api(blobs()[:100])
        shares.append(api.defense.session_columns()["queen_falsified"])
    assert 0 < shares[0] == shares[1] == shares[2]


def test_honest_queries_add_up():
    api = deploy(victim(), Queen(threshold=0.0, radius=0.3, **QUICK))
    found = utility(api, victim().dataset.test(), None, CPU)
    assert 0 < found["queen_honest_falsified"] < 1
    assert found["defended_accuracy"] < found["victim_accuracy"]


def test_an_export_starts_with_nothing_counted(tmp_path):
    deployment = deploy(victim(), Queen(threshold=0.0, radius=0.3, **QUICK))
    deployment.session()(blobs())
    deployment.export(tmp_path / "api")
    again = open_deployment(tmp_path / "api").session()(blobs())
    assert torch.allclose(again, deployment.fresh().session()(blobs()), atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"threshold": -1}, {"radius": 0}, {"step": -1}, {"steps": -1}, {"shadows": 0}, {"map_steps": 0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(MadError, match=f"defense.{next(iter(settings))}"):
        Queen(**settings)


def test_a_context_of_another_seed_maps_otherwise():
    toy = victim(trainer=trainer(epochs=2))
    network = toy.untrained(seed=0, purpose="victim")
    first, other = (Queen(**QUICK).prepared(Context(toy, network, seed, CPU)) for seed in (0, 1))
    assert not torch.allclose(first._map.centers, other._map.centers)
