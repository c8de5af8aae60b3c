"""The client's test: bets that no honest client wins, and most thieves within some queries."""

import pytest
import torch

from mad.gate.client import BETS, LEVELS, Client, payoffs, upper_bounds

DELTA = 0.05
SIZES = torch.tensor([[[n, int(level * (n + 1))] for level in LEVELS] for n in (60, 400)])
BOUNDS = upper_bounds(SIZES, DELTA / 2)
PAID = payoffs(BOUNDS)


def levels_of(p):
    """Return the lowest level that flags each p-value."""
    return (p.unsqueeze(-1) > torch.tensor(LEVELS, dtype=torch.float64)).sum(dim=-1)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_wealth(paid):
    """Return the wealth after all queries: a mean over bets of a sum over starting times."""
    total = 0.0
    for bet in range(len(BETS)):
        for start in range(1, len(paid) + 1):
            won = 1 / (start * (start + 1))
            for each in paid[start - 1 :]:
                won *= each[bet]
            total += won / len(BETS)
    return total + 1 / (len(paid) + 1)


def flagged(levels, group=1, delta=DELTA / 2):
    """Return after how many queries each client (N, T) is flagged, T + 1 if never; many clients at once."""
    wealth = torch.zeros(len(levels), len(BETS), dtype=torch.float64)
    found = torch.full((len(levels),), levels.shape[1] + 1)
    for number in range(1, levels.shape[1] + 1):
        wealth = (wealth + 1 / (number * (number + 1))) * PAID[group][:, levels[:, number - 1]].T
        new = (wealth.mean(dim=1) + 1 / (number + 1) >= 1 / delta) & (found > levels.shape[1])
        found[new] = number
    return found


def one(levels, names=None, group=1):
    client = Client(PAID.tolist(), DELTA / 2)
    client.look([group] * len(levels), levels, names or list(range(len(levels))))
    return client


def test_bounds_hold_for_the_share_of_calibrations_that_they_promise():
    slack, n, k = 0.2, 50, 5
    bound = upper_bounds(torch.tensor([[[n, k]]]), slack)[0, 0].item()
    scores = uniform(4000, n).sort(dim=1, descending=True).values
    above = 1 - scores[:, k - 1]  # how probably a new score is above the k-th largest
    assert (above > bound).double().mean() == pytest.approx(slack, abs=0.03)


def test_no_honest_distribution_within_the_bounds_wins():
    assert (PAID.diff(dim=2) <= 1e-12).all()
    edges = torch.cat([torch.zeros(2, 1), BOUNDS, torch.ones(2, 1)], dim=1)
    for shrink in (0, 0.3, 1):
        chance = (edges * torch.tensor([*[shrink] * 8, 1.0])).diff(dim=1)
        assert ((PAID * chance.unsqueeze(1)).sum(dim=2) <= 1 + 1e-9).all()
    assert ((PAID * edges.diff(dim=1).unsqueeze(1)).sum(dim=2) > 0.99).all()  # and none is wasted


def test_without_calibration_images_nobody_is_flagged_by_honest_queries():
    paid = payoffs(upper_bounds(torch.zeros(1, len(LEVELS), 2, dtype=torch.int64), 0.01))
    assert paid[0, :, -1] == pytest.approx(1)


def test_the_wealth_is_that_of_the_definition():
    levels = levels_of(uniform(25) ** 1.5).tolist()
    client = one(levels)
    assert client.flagged_at is None
    assert client.total == pytest.approx(slow_wealth([PAID[1][:, level].tolist() for level in levels]), rel=1e-9)


def test_many_clients_at_once_are_flagged_as_one_by_one():
    levels = levels_of(uniform(10, 60) ** 4)
    found = flagged(levels).tolist()
    assert [one(each).flagged_at or 61 for each in levels.tolist()] == found
    assert min(found) < 60


def test_honest_clients_are_hardly_ever_flagged():
    """The worst honest clients within the bounds: the promise is half of delta, the other half is the calibration's."""
    worst = torch.tensor([0.0, *BOUNDS[1].tolist(), 1.0])
    levels = torch.searchsorted(worst, uniform(1000, 3000, seed=1), right=True) - 1
    assert (flagged(levels) <= 3000).double().mean() <= DELTA / 2 + 3 * (DELTA / 2 / 1000) ** 0.5
    assert not (flagged(levels_of(uniform(300, 2000))) <= 2000).any()  # those of exact p-values have the slack


def test_honest_clients_whose_easy_images_are_alike_are_hardly_ever_flagged():
    """Near copies among honest queries are no independent draw of them: what they would have lost is lost."""
    worst = torch.tensor([0.0, *BOUNDS[1].tolist(), 1.0])
    levels = (torch.searchsorted(worst, uniform(100, 1000, seed=3), right=True) - 1).tolist()
    each = [one(some, [-1 if level == 7 else number for number, level in enumerate(some)]) for some in levels]
    assert sum(client.flagged_at is not None for client in each) <= 6  # 2.5 are promised


@pytest.mark.parametrize(("delta", "clients"), [(0.5, 100), (0.1, 200)])
def test_easy_images_that_are_all_one_leave_the_promise_as_it_is(delta, clients):
    """Bets that started with hard images only would win at once: with these bounds every such client was flagged."""
    bounds = upper_bounds(torch.tensor([[[4000, int(level * 4001)] for level in LEVELS]]), delta / 2)
    paid, hard = payoffs(bounds).tolist(), uniform(clients, 800, seed=4) < bounds[0, 0]
    flags = 0
    for own in hard.tolist():
        client = Client(paid, delta / 2)
        names = [float(number) if each else -1.0 for number, each in enumerate(own)]
        client.look([0] * len(own), [0 if each else len(LEVELS) for each in own], names)
        flags += client.flagged_at is not None
    assert flags / clients <= delta / 2 + 3 * (delta / 2 / clients) ** 0.5


def test_a_near_copy_wins_nothing_and_loses_what_it_would_lose():
    before, levels = [7, 7, 3, 7, 5], range(8)
    for level in levels:
        found = one([*before, level], [0, 1, 2, 3, 4, 2])
        lost = one(before)
        start = 1 / (6 * 7)
        kept = [(had + start) * min(1, paid[level].item()) for had, paid in zip(lost.wealth, PAID[1], strict=True)]
        assert found.wealth == pytest.approx(kept, rel=1e-12)
        assert found.counted == 6


def test_a_client_that_repeats_itself_is_not_flagged_for_it():
    levels = [0 if number % 40 == 0 else 7 for number in range(40) for _ in range(9)]
    names = [number for number in range(40) for _ in range(9)]
    assert one(levels, names).flagged_at is None
    assert one(levels).flagged_at is not None
    assert one(levels, names).counted == 360


def test_a_thief_is_flagged_soon_also_after_honest_queries_and_among_them():
    odd = levels_of(0.01 * uniform(200, 100))
    honest = levels_of(uniform(200, 500))
    at_once, later = flagged(odd), flagged(torch.cat([honest, odd], dim=1)) - 500
    assert at_once.max() <= 10
    assert later.max() <= 20
    assert later.min() > 0
    mixed = torch.where(uniform(200, 2000) < 0.1, 0, levels_of(uniform(200, 2000, seed=2)))
    assert (flagged(mixed) <= 2000).all()


def test_a_client_goes_on_where_it_was_saved():
    levels = levels_of(uniform(60) ** 2).tolist()
    names = [number // 2 for number in range(60)]
    whole, first, second = one(levels, names), one(levels[:31], names[:31]), one([])
    second.restore(first.state())
    second.look([1] * 29, levels[31:], names[31:])
    assert second.state() == pytest.approx(whole.state())
    assert len(whole.state()) < 30
