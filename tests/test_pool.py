"""pysel/selection/learned/pool.py: a pool is taken where it demonstrably helps, and only there."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import pysel
from pysel.selection import ASSS
from pysel.selection.learned.batches import Tensors
from pysel.selection.learned.lookahead import default_loss
from pysel.selection.learned.pool import Tried, best_pool, credits, try_pools
from pysel.selection.learned.replicas import Replicas
from pysel.selection.subset import quotas
from tests.ranks import ranks
from tests.test_asss import Numbered, linear_network, noisy_task

pytestmark = pytest.mark.usefixtures("one_thread")


def large_network(outputs: int = 2) -> nn.Module:
    """One that learns wrong labels by heart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, outputs))


@pytest.fixture(scope="module")
def noisy() -> tuple[Tensor, Tensor, Tensor, ASSS]:
    x, y, wrong = noisy_task(0, n=1500, noise=0.3)
    return x, y, wrong, ASSS(0.4, epochs=20, batch_size=32, task_lr=0.03, key=0).fit(x, y, large_network)


def test_wrong_labels_that_do_harm_are_left_out(noisy: tuple[Tensor, Tensor, Tensor, ASSS]) -> None:
    _, _, wrong, selector = noisy
    assert selector.pool < 1 and float(wrong[selector.select()].float().mean()) < float(wrong.float().mean()) / 2
    assert [one.pool for one in selector.tried] == [1.0, 0.8, 0.6]
    everything, some, fewer = selector.tried
    assert everything.gain == everything.error == 0
    assert min(fewer.credit, some.credit) > everything.credit
    assert fewer.gain == pytest.approx(fewer.credit - everything.credit) and fewer.gain > 2 * fewer.error > 0


def test_nothing_is_left_out_of_clean_data() -> None:
    x, y, _ = noisy_task(0, n=1500, noise=0.0)
    selector = ASSS(0.4, epochs=6, batch_size=64, key=0).fit(x, y, large_network)
    assert selector.pool == 1.0 and bool((selector.importances().margin >= 0).all())


def test_a_pool_that_is_the_whole_can_be_had_without_a_trial(noisy: tuple[Tensor, Tensor, Tensor, ASSS]) -> None:
    x, y, _, _ = noisy
    whole = ASSS(0.4, pool=1.0, epochs=2, key=0).fit(x, y, large_network)
    other = ASSS(0.4, pool=1.0, epochs=2, key=1).fit(x, y, large_network)
    assert whole.tried == [] and whole.pool == 1.0
    assert not torch.equal(whole.select(), other.select())


@pytest.mark.parametrize(
    ("keep_ratio", "pools"), [(0.3, [1.0, 0.8, 0.6]), (0.6, [1.0, 0.8]), (0.7, [1.0, 0.8, 0.7]), (0.9, [1.0, 0.9])]
)
def test_pools_hold_the_subset(keep_ratio: float, pools: list[float]) -> None:
    x, y, _ = noisy_task(0)
    selector = ASSS(keep_ratio, epochs=2, key=0).fit(x, y, linear_network(0))
    assert [one.pool for one in selector.tried] == pools and len(selector) == round(600 * keep_ratio)


def test_all_of_the_data_and_a_single_sample_need_no_trial() -> None:
    x, y, _ = noisy_task(0)
    assert torch.equal(ASSS(1.0, epochs=1, key=0).fit(x, y, linear_network(0)).select(), torch.arange(600))
    assert len(ASSS(0.5, epochs=1, key=0).fit(x[:2], y[:2], linear_network(0)).select()) == 1
    assert ASSS(0.5, epochs=1, key=0).fit(x[:1], y[:1], linear_network(0)).select().tolist() == [0]


@pytest.mark.parametrize("stratified", [False, True])
def test_a_trial_is_plain_training_judged_on_the_other_half(stratified: bool) -> None:
    """Against a loop of its own: one batch an epoch, whose mean gradients do not depend on the order."""
    x, y, _ = noisy_task(1, n=200)
    logits, loss, key = torch.randn(200, generator=torch.Generator().manual_seed(2)), default_loss(y), pysel.key(5)

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.5)

    logits += 2 * y  # one class is the easier
    groups = y.int() if stratified else None
    data = Tensors(x, y, None, 64, pysel.key(6))
    alone = Replicas(None)
    network = linear_network(3)()
    tried = try_pools(
        logits,
        0.25,
        groups,
        network,
        sgd,
        loss,
        data.epoch,
        data.all,
        epochs=3,
        batch_size=999,
        replicas=alone,
        key=key,
    )
    assert torch.equal(network.weight, linear_network(3)().weight), "it is copied"

    second = pysel.permutation(200, key=pysel.fold_in(key, 0)) < 100
    chance = pysel.gumbel_sigmoid(torch.zeros(200, dtype=torch.float64), key=pysel.fold_in(key, 1))
    right = []
    for one in tried:
        each = torch.zeros(200, dtype=torch.float64)
        for held_back in (second, ~second):
            half = torch.nonzero(~held_back).flatten()
            pool = half[logits[half].topk(round(one.pool * 100)).indices]
            if stratified:
                place = (
                    torch.sigmoid(logits.double()) - 1
                )  # those out of the pool, only where a class has too few in it
                place[pool] = chance[pool]
                sizes = quotas(torch.bincount(y[half]), 25, "proportional").tolist()
                of_class = [half[y[half] == c] for c in (0, 1)]
                rows = torch.cat(
                    [own[place[own].topk(size).indices] for own, size in zip(of_class, sizes, strict=True)]
                )
            else:
                rows = pool[chance[pool].topk(25).indices]
            own = linear_network(3)()
            for lr in (0.5, 0.5 * 2 / 3, 0.5 / 3):
                gradients = torch.autograd.grad(loss(own(x[rows]), y[rows]).mean(), own.parameters())
                with torch.no_grad():
                    for parameter, gradient in zip(own.parameters(), gradients, strict=True):
                        parameter -= lr * gradient
            each[held_back] = (own(x[held_back]).argmax(1) == y[held_back]).double()
        right.append(each)
    for one, of in zip(tried, right, strict=True):
        ahead = of - right[0]
        assert one.credit == pytest.approx(float(of.mean()))
        assert one.gain == pytest.approx(float(ahead.mean()))
        assert one.error == pytest.approx(float(ahead.std() / 200**0.5))


def test_credits_are_accuracy_or_correlation() -> None:
    y = torch.tensor([0, 2, 1])
    outputs = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0], [1.0, 0.0, 0.0]])
    assert credits(outputs, y, default_loss(y)).tolist() == [1, 1, 0]
    pixels = torch.zeros(2, 3, 4)  # of two pictures with four pixels
    pixels[:, 1] = 1
    assert credits(pixels, torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]]), default_loss(y)).tolist() == [0.75, 0]
    g = torch.Generator().manual_seed(0)
    target = torch.randn(500, generator=g)
    forecast = target + torch.randn(500, generator=g)
    wanted = float(torch.corrcoef(torch.stack([target, forecast]))[0, 1])
    centred = forecast - forecast.mean()
    for offset in (0, 0.3, 7):  # it counts, and how widely forecasts are spread does not
        for spread in (1, 3):
            given = (spread * centred + target.mean() + offset)[:, None]
            counted = wanted**2 - offset**2 / float(target.var(correction=0))
            assert float(credits(given, target, default_loss(target)).mean()) == pytest.approx(counted, abs=1e-4)
    assert float(credits(-centred + target.mean(), target, default_loss(target)).mean()) == pytest.approx(-(wanted**2))
    mean = target.mean().expand(500)
    assert float(credits(mean, target, default_loss(target)).mean()) == pytest.approx(0, abs=1e-6)
    assert credits(torch.arange(4.0), torch.ones(4), default_loss(target)).tolist() == [0, 0, 0, 0]
    odd = credits(torch.ones(2, 3), torch.zeros(2), lambda outputs, _: outputs.sum(1))
    assert odd.tolist() == [-3, -3]


def test_forecasts_off_by_a_constant_are_not_worth_a_pool() -> None:
    """Of a skewed target that little explains, what fits best lies below its mean, and so do forecasts made of it."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1_500, 8, generator=g)
    skewed = torch.empty(1_500).exponential_(0.1, generator=g) * (torch.rand(1_500, generator=g) < 0.3)
    y = 2 * x[:, 0] + skewed
    selector = ASSS(0.4, batch_size=32, task_lr=0.01, key=0).fit(x, y, partial(large_network, 1))
    everything, some, fewer = selector.tried
    assert everything.gain == 0 > some.gain and fewer.gain < 0 and selector.pool == 1.0


def test_chance_is_not_taken_for_gain() -> None:
    tried = [Tried(1.0, 0.7, 0.0, 0.0), Tried(0.8, 0.719, 0.019, 0.01), Tried(0.6, 0.71, 0.01, 0.001)]
    assert best_pool(tried[:2]) == 1.0, "at 1.9 standard errors"
    assert best_pool(tried) == 0.6 and best_pool([]) == 1.0
    better = [Tried(1.0, 0.7, 0.0, 0.0), Tried(0.8, 0.73, 0.03, 0.01), Tried(0.6, 0.749, 0.049, 0.01)]
    assert best_pool(better) == 0.8, "no smaller one than is demonstrably better"
    assert best_pool([*better[:2], Tried(0.6, 0.751, 0.051, 0.01)]) == 0.6


def test_a_loader_is_tried_as_tensors_are() -> None:
    x, y, _ = noisy_task(0, n=300)
    everything = DataLoader(Numbered(x, y), batch_size=300)
    given = ASSS(0.3, epochs=4, batch_size=300, key=0).fit(x, y, linear_network(0))
    loaded = ASSS(0.3, epochs=4, batch_size=300, key=0).fit(everything, network=linear_network(0))
    for one, other in zip(given.tried, loaded.tried, strict=True):
        assert one.credit == pytest.approx(other.credit, abs=0.02)


def test_what_was_tried_is_kept(noisy: tuple[Tensor, Tensor, Tensor, ASSS], tmp_path: Path) -> None:
    selector = noisy[-1]
    selector.save(tmp_path)
    for again in (ASSS.load(tmp_path), ASSS(0.4, epochs=20, batch_size=32, task_lr=0.03)):
        again.load_state_dict(selector.state_dict())
        assert again.tried == selector.tried and again.pool == selector.pool < 1
        assert torch.equal(again.select(), selector.select())
        assert torch.equal(again.importances().margin, selector.importances().margin)
    state = {**selector.state_dict(), "tried": [[1.0, "much", 0.0, 0.0]]}
    with pytest.raises(TypeError, match="tried"):
        again.load_state_dict(state)
    with pytest.raises(RuntimeError, match="call fit first"):
        _ = ASSS(0.4).pool


def test_finish_goes_through_the_data_several_times() -> None:
    x, y, _ = noisy_task(0, n=100)
    batches = [(rows, x[rows], y[rows]) for rows in torch.arange(100).split(50)]
    selector = ASSS(0.5, epochs=2, warmup_epochs=0, key=0).start(linear_network(0), 100)
    for batch in batches:
        selector.step(batch)
    with pytest.raises(
        TypeError, match="batches must be what can be gone through many times with pool='auto', a loader"
    ):
        selector.finish(iter(batches))
    with pytest.raises(ValueError, match="every one of the 100 samples with pool='auto': 50 were missing"):
        selector.finish(batches[:1])
    with torch.inference_mode():
        assert len(selector.finish(batches).select()) == 50 and len(selector.tried) == 3


def learned(rank: int, group: Any) -> tuple[list[Tried], Tensor]:
    x, y, _ = noisy_task(0, n=160)

    def network() -> nn.Module:
        return nn.parallel.DistributedDataParallel(linear_network(rank)(), process_group=group)

    selector = ASSS(0.4, epochs=2, warmup_epochs=0, key=0).start(network, 160, process_group=group)
    for batch in torch.arange(160).split(40):
        own = batch.tensor_split(2)[rank]
        selector.step((own, x[own], y[own]))
    selector.finish([(torch.arange(160), x, y)])
    return selector.tried, selector.select()


def test_ranks_come_to_the_same_pool() -> None:
    with ranks(2) as two:
        first, second = two(learned, 2)
    assert isinstance(first, tuple) and isinstance(second, tuple), (first, second)
    assert first[0] == second[0] and len(first[0]) == 3 and torch.equal(first[1], second[1])


@pytest.mark.parametrize(
    ("pool", "message"), [("often", "pool must be 'auto', a share of the data or None"), (2, r"pool must be in")]
)
def test_a_pool_of_another_kind_is_refused(pool: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ASSS(0.4, pool=pool)
