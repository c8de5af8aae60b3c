"""Fault 6: the ledger under many threads."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from toys import CPU, victim

from mad.api import BlackBox
from mad.defenses import Context, Undefended
from mad.errors import BudgetExceededError

THREADS = 64


@pytest.mark.parametrize(
    ("requests", "budget"), [(6_400, 700), pytest.param(100_000, 20_000, marks=pytest.mark.faults)]
)
def test_never_one_answer_over_budget(requests, budget):
    model = victim().untrained(seed=0, purpose="victim")
    api = BlackBox(model, Undefended().prepared(Context(victim(), model, 0, CPU)), (1, 8, 8), budget, CPU)
    sizes = [torch.rand(size, 1, 8, 8) for size in (1, 2, 3)]

    def ask(thread):
        answered = refused = 0
        for turn in range(requests // THREADS):
            images = sizes[(thread + turn) % 3]
            try:
                answered += len(api(images))
            except BudgetExceededError:
                refused += 1
            assert api.queries <= budget
        return answered, refused

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(THREADS) as threads:
            counts = list(threads.map(ask, range(THREADS)))
    finally:
        sys.setswitchinterval(interval)
    answered, refused = (sum(each) for each in zip(*counts, strict=True))
    assert answered == api.queries == budget
    assert refused > 0
    said = f"{answered} images answered of a budget of {budget}, {refused} requests refused"
    print(f"\n{THREADS} threads, {requests} requests: {said}")
