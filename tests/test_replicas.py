"""pysel/selection/learned/replicas.py: ranks that each have a part of every batch are one that has the whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pysel.selection import MetaWeighter
from pysel.selection.learned.replicas import Replicas
from tests.learned import best_only
from tests.ranks import Ranks, ranks
from tests.test_asss import linear_network, noisy_task

OPTIONS: list[dict[str, Any]] = [
    {},
    {"attenuation": "input"},
    {"selector": "module"},
    {"sparsity": "absolute"},
    {"hard": True},
]


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    with ranks(2) as started:
        yield started


def trained(
    rank: int, group: Any, options: dict[str, Any], world: int
) -> tuple[Tensor, Tensor, list[dict[str, float]]]:
    """Logits, losses and history after three epochs of four batches, of which each rank has its part."""
    x, y, _ = noisy_task(0, n=160)
    options = dict(options)
    if options.get("selector") == "module":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            options["selector"] = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1))

    def network() -> nn.Module:
        made = linear_network(0)()
        return made if world == 1 else DistributedDataParallel(made, process_group=group)

    selector = best_only(0.4, warmup_epochs=1, key=0, **options)
    selector.start(network, 160, process_group=None if world == 1 else group)
    for epoch in range(3):
        selector.set_epoch(epoch)
        for batch in torch.arange(160).split(40):
            own = batch.tensor_split(world)[rank]
            selector.step((own, x[own], y[own]))
    table = selector.finish([(torch.arange(160), x, y)]).importances()
    return table.logit, table.loss, selector.history


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_two_ranks_are_one(two: Ranks, options: dict[str, Any]) -> None:
    wanted = trained(0, None, options, 1)
    first, second = two(trained, 2, options, 2)
    assert isinstance(first, tuple) and isinstance(second, tuple), (first, second)
    for one, other, alone in zip(first[:2], second[:2], wanted[:2], strict=True):
        assert torch.equal(one, other), "the ranks agree to the bit"
        torch.testing.assert_close(one, alone, atol=2e-3, rtol=1e-3)
    for one, alone in zip(first[2], wanted[2], strict=True):
        assert one["task_loss"] == pytest.approx(alone["task_loss"], abs=1e-4)


def weighed(rank: int, group: Any) -> list[Tensor]:
    model, weighter = linear_network(0)(), MetaWeighter(lr=0.1, key=0)
    x, y, _ = noisy_task(rank, n=20)  # other samples on each
    for _ in range(3):
        weighter.meta_step(model, (x, y), (x[:5], y[:5]), 0.1, process_group=group)
    return [parameter.detach() for parameter in weighter.parameters()]


def test_a_weighter_stays_the_same_on_all_ranks(two: Ranks) -> None:
    first, second = two(weighed, 2)
    assert isinstance(first, list), first
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    alone = weighed(0, None)
    assert not torch.equal(first[0], alone[0]), "it has learned from both"


def means(rank: int, group: Any) -> tuple[Tensor, Tensor, Tensor, float]:
    replicas = Replicas(group)
    table = nn.Embedding.from_pretrained(torch.zeros(10, 2), freeze=False, sparse=True)
    rows = torch.tensor([[1, 3, 3], [3, 7, 7]])[rank][: 3 - rank]  # as many as they are, unequal
    table(rows).sum().backward()
    dense = nn.Parameter(torch.zeros(2))
    dense.grad = torch.tensor([1.0, 2.0]) * (rank + 1)
    unused = nn.Parameter(torch.zeros(1))
    replicas.average_gradients([table.weight, dense, unused])
    own = torch.tensor(float(rank), requires_grad=True)
    mean = replicas.mean(own)
    (slope,) = torch.autograd.grad(mean, own)
    assert table.weight.grad is not None and dense.grad is not None and unused.grad is not None
    assert table.weight.grad.is_sparse and float(unused.grad) == 0 and float(slope) == 1
    return table.weight.grad.to_dense(), table.weight.grad.indices()[0], dense.grad, float(mean)


def test_means_over_ranks(two: Ranks) -> None:
    for answer in two(means, 2):
        assert isinstance(answer, tuple), answer
        table, rows, dense, mean = answer
        assert rows.tolist() == [1, 3, 7], "of sparse gradients only the rows that one of them has"
        assert table[:, 0].tolist() == [0, 0.5, 0, 1.5, 0, 0, 0, 0.5, 0, 0]
        assert dense.tolist() == [1.5, 3.0] and mean == 0.5
