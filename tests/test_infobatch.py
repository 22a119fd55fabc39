"""pysel/selection/dynamic/infobatch.py: the rule, and that the weighted gradient is unbiased."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pysel.selection import InfoBatch
from tests.losses import check
from tests.statistics import accept, chi_square


def test_infobatch_against_an_oracle() -> None:
    """The rule in numpy, from the losses that were told; only whether a coin fell is taken from the selector."""
    n, epochs, r = 400, 8, 0.4
    selector = InfoBatch(n, epochs, prune_ratio=r, delta=0.75, key=3)
    generator = np.random.default_rng(0)
    latest = np.full(n, np.nan)
    p_values = {}
    for epoch in range(epochs):
        chosen = selector.select(epoch).numpy()
        known = ~np.isnan(latest)
        low = np.zeros(n, bool)
        if known.any() and epoch < 6:
            low[known] = latest[known] < latest[known].mean()
        kept = np.zeros(n, bool)
        kept[chosen] = True
        assert kept[~low].all(), "only samples of small loss are left out"
        weights = selector.weights(torch.from_numpy(chosen)).numpy()
        np.testing.assert_allclose(weights, np.where(low[chosen], 1 / (1 - r), 1), rtol=1e-6)
        if low.any():
            p_values[f"epoch {epoch}"] = chi_square([kept[low].sum(), (~kept[low]).sum()], [1 - r, r])
        assert len(selector) == len(chosen) and selector.realised_ratio == len(chosen) / n
        for batch in torch.from_numpy(generator.permutation(chosen)).split(64):
            losses = torch.from_numpy(generator.gamma(1.0, size=len(batch)))
            selector.update(batch, losses=losses)
            latest[batch] = losses.float()
    accept(p_values)
    assert len(selector.select(epochs + 3)) == n


def test_infobatch_is_unbiased() -> None:
    """Over keys, the sum of weighted gradients is on average that of all samples; without the weights it is not."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(50, 3, generator=generator, dtype=torch.float64) + 1
    losses = torch.rand(50, generator=generator)
    weighted, plain = [], []
    for seed in range(1000):
        selector = InfoBatch(50, 2, key=seed)
        selector.update(torch.arange(50), losses=losses)
        chosen = selector.select(0)
        weighted.append(selector.weights(chosen).double() @ gradients[chosen])
        plain.append(gradients[chosen].sum(0))
    for sums, fits in ((torch.stack(weighted), True), (torch.stack(plain), False)):
        z = (sums.mean(0) - gradients.sum(0)) / (sums.std(0) / 1000**0.5)
        assert bool((z.abs() < 4.5).all()) == fits


@pytest.mark.parametrize("keep_ratio", [0.07, 0.3, 0.5, 0.9])
def test_a_chosen_ratio_against_an_oracle(keep_ratio: float) -> None:
    """Sizes, who may be left out, and weights, in numpy; only who was drawn is taken from the selector."""
    n, epochs = 400, 10
    selector = InfoBatch(n, epochs, keep_ratio=keep_ratio, max_weight=5, delta=0.8, key=3)
    generator = np.random.default_rng(0)
    latest = np.full(n, np.nan)
    k = math.ceil(round(keep_ratio * n, 9))
    assert len(selector) == k
    for epoch in range(epochs):
        chosen = selector.select(epoch).numpy()
        assert len(chosen) == len(selector) == (k if epoch < 8 else n)
        weights = selector.weights(chosen).numpy()
        if epoch < 8:
            mean = np.inf if np.isnan(latest).all() else np.nanmean(latest)
            rank = np.where(np.isnan(latest), -np.inf, latest)
            m = int((rank < mean).sum())
            m = min(n, max(m, math.ceil((n - k) * 5 / 4 - 1e-9)))  # so many, that none weighs more than 5
            bar = np.sort(rank)[m - 1]  # the first of them may be any of those without a loss
            low = rank < bar if np.isinf(bar) else rank <= bar
            assert (weights[rank[chosen] > bar] == 1).all()
            np.testing.assert_allclose(weights[low[chosen]], m / (m - (n - k)), rtol=1e-6)
            assert m == n or weights.max() <= 5 + 1e-6
            assert abs(weights.sum() - n) < 1e-2, "the weights are those of all samples, exactly"
            assert weights.mean() * selector.realised_ratio == pytest.approx(1, rel=1e-4)
        else:
            assert (weights == 1).all()
        losses = generator.gamma(1.0, size=len(chosen))
        selector.update(chosen, losses=losses)
        latest[chosen] = losses.astype(np.float32)


@pytest.mark.parametrize("seen", [0, 20, 50])
@pytest.mark.parametrize("keep_ratio", [0.1, 0.5, 0.8])
def test_a_chosen_ratio_is_unbiased(keep_ratio: float, seen: int) -> None:
    """From epoch 0 on, and with few or no losses known."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(50, 3, generator=generator, dtype=torch.float64) + 1
    losses = torch.rand(50, generator=generator)
    weighted, plain = [], []
    for seed in range(1000):
        selector = InfoBatch(50, 2, keep_ratio=keep_ratio, key=seed)
        selector.update(torch.arange(seen), losses=losses[:seen])
        chosen = selector.select(0)
        assert len(chosen) == round(50 * keep_ratio)
        weighted.append(selector.weights(chosen).double() @ gradients[chosen])
        plain.append(gradients[chosen].sum(0))
    for sums, fits in ((torch.stack(weighted), True), (torch.stack(plain), False)):
        z = (sums.mean(0) - gradients.sum(0)) / (sums.std(0) / 1000**0.5)
        assert bool((z.abs() < 4.5).all()) == fits


def test_the_bar_rises_where_too_few_lie_below_the_mean() -> None:
    """Of ten samples five are to go, and one lies below the mean: with weights up to 2 all are drawn from."""
    losses = torch.tensor([-90.0, *range(9)])
    for max_weight, least in ((2.0, 10), (6.0, 6), (1e9, 6)):
        selector = InfoBatch(10, 4, keep_ratio=0.5, max_weight=max_weight, key=0)
        selector.update(range(10), losses=losses)
        chosen = selector.select(0)
        weights = selector.weights(chosen)
        assert len(chosen) == 5 and weights.max() == least / (least - 5)
        assert (weights[chosen >= least] == 1).all()


def test_everything_is_a_ratio_too() -> None:
    selector = InfoBatch(5, 3, keep_ratio=1, key=0)
    selector.update(range(5), losses=range(5))
    assert selector.select(0).tolist() == list(range(5)) and selector.weights(range(5)).tolist() == [1] * 5


def test_a_chosen_ratio_resumes(tmp_path: Path) -> None:
    check(lambda key: InfoBatch(200, 9, keep_ratio=0.4, delta=0.9, key=key), tmp_path)


def test_a_published_ratio_resumes(tmp_path: Path) -> None:
    check(lambda key: InfoBatch(200, 9, delta=0.9, key=key), tmp_path)


def test_infobatch_keeps_its_subset_while_losses_arrive_and_resumes() -> None:
    selector = InfoBatch(100, 10, key=0)
    assert len(selector) == 100 and torch.equal(selector.select(0), torch.arange(100))
    selector.update(torch.arange(100), losses=torch.arange(100.0))
    assert len(selector.select(0)) == 100, "an epoch's subset is settled when it is first asked for"
    first = selector.select(1)
    assert set(range(50, 100)) <= set(first.tolist()) and 60 < len(first) < 90
    selector.update(first, losses=torch.zeros(len(first)))
    assert torch.equal(selector.select(1), first)
    resumed = InfoBatch(100, 10)
    resumed.load_state_dict(selector.state_dict())
    assert torch.equal(resumed.select(1), first)
    assert torch.equal(resumed.weights(first), selector.weights(first))
    assert torch.equal(resumed.select(2), selector.select(2))
    with pytest.raises(ValueError, match="epoch must be at least 2, the last one selected, got 1"):
        selector.select(1)


def test_saved_and_loaded(tmp_path: Path) -> None:
    pruned = InfoBatch(100, 10, key=4)
    pruned.update(torch.arange(100), losses=torch.rand(100))
    chosen = pruned.select(1)
    pruned.save(tmp_path / "pruned")
    resumed = InfoBatch.load(tmp_path / "pruned")
    assert torch.equal(resumed.select(1), chosen) and torch.equal(resumed.weights(chosen), pruned.weights(chosen))
    assert torch.equal(resumed.select(2), pruned.select(2))


def test_infobatch_leaves_nothing_out_of_equal_losses_or_at_ratio_zero() -> None:
    equal = InfoBatch(7, 10, key=0)
    equal.update(torch.arange(7), losses=torch.full((7,), 0.1))
    assert len(equal.select(1)) == 7
    none = InfoBatch(7, 10, prune_ratio=0, key=0)
    none.update(torch.arange(7), losses=torch.arange(7.0))
    assert len(none.select(1)) == 7 and none.weights(torch.arange(7)).tolist() == [1] * 7


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: InfoBatch(0, 3), ValueError, "num_samples must be at least 1, got 0"),
        (lambda: InfoBatch(5, 0), ValueError, "epochs must be at least 1, got 0"),
        (
            lambda: InfoBatch(5, 3, prune_ratio=1),
            ValueError,
            r"prune_ratio, the fraction left out, must be in \[0, 1\)",
        ),
        (
            lambda: InfoBatch(5, 3, prune_ratio=0.5, keep_ratio=0.5),
            ValueError,
            "prune_ratio must be None with keep_ratio=0.5, got 0.5",
        ),
        (
            lambda: InfoBatch(5, 3, keep_ratio=0),
            ValueError,
            r"keep_ratio, the fraction kept, must be in \(0, 1\], got 0",
        ),
        (
            lambda: InfoBatch(5, 3, keep_ratio=0.5, max_weight=1),
            ValueError,
            "InfoBatch: max_weight must be above 1 and finite, got 1",
        ),
        (lambda: InfoBatch(5, 3, delta=2), ValueError, "delta must be between 0 and 1, got 2"),
        (lambda: InfoBatch(5, 3).update(torch.arange(2)), ValueError, "InfoBatch.update: losses must be given"),
        (
            lambda: InfoBatch(5, 3).update(torch.arange(2), losses=torch.ones(3)),
            ValueError,
            r"losses must be \[B\] for indices \[B\], got \[3\] and \[2\]",
        ),
        (
            lambda: InfoBatch(5, 3).update([4, 2], losses=[1.0, math.nan]),
            ValueError,
            "InfoBatch.update: losses must be finite, got nan in row 2",
        ),
        (
            lambda: InfoBatch(5, 3).update([4, 2], losses=[1e300, 1]),
            ValueError,
            "must be finite, got inf in row 4",
        ),
        (lambda: InfoBatch(5, 3).update([4, 5], losses=[1.0, 1]), ValueError, "indices must be between 0 and 4, got 5"),
        (lambda: InfoBatch(5, 3).update([-1], losses=[1.0]), ValueError, "indices must be between 0 and 4, got -1"),
        (lambda: InfoBatch(5, 3).update([3, 3], losses=[1.0, 1]), ValueError, "indices must be distinct, got 3 more"),
        (lambda: InfoBatch(5, 3).update([0.0], losses=[1.0]), TypeError, "InfoBatch.update: indices must be integers"),
        (lambda: InfoBatch(5, 3).update([0], losses="a"), TypeError, "InfoBatch.update: losses must be a tensor, an"),
        (lambda: InfoBatch(5, 3).update([0], losses=[[1.0]]), ValueError, r"losses must be \[B\] .*got \[1, 1\]"),
        (lambda: InfoBatch(5, 3, prune_ratio="a"), TypeError, "prune_ratio, the fraction left out, must be a number"),
        (lambda: InfoBatch(5, 3.0), TypeError, "InfoBatch: epochs must be an int, got float"),
    ],
)
def test_bad_infobatch_calls(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_refused_batch_has_changed_nothing() -> None:
    selector = InfoBatch(5, 3, key=0)
    selector.update([0, 1], losses=np.array([1.0, 2.0]))
    before = selector.state_dict()["losses"]
    for indices, losses in (([0, 1, 2], [5.0, 5.0, math.inf]), ([0, 9], [5.0, 5.0]), ([0, 0], [5.0, 5.0])):
        with pytest.raises(ValueError, match="must be"):
            selector.update(indices, losses=losses)
    assert torch.equal(selector.state_dict()["losses"].nan_to_num(-1), before.nan_to_num(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_losses_of_any_dtype_with_a_graph(dtype: torch.dtype) -> None:
    selector = InfoBatch(5, 3, key=0)
    selector.update(torch.arange(5, dtype=torch.int32), losses=torch.ones(5, dtype=dtype, requires_grad=True) * 2)
    assert selector.state_dict()["losses"].tolist() == [2] * 5
    assert not selector.state_dict()["losses"].requires_grad
    selector.update(np.array([1, 3], np.uint8), losses=[7, 8])
    assert selector.state_dict()["losses"].tolist() == [2, 7, 2, 8, 2]


@pytest.mark.parametrize("delta", [0.07, np.float32(0.07)])
def test_delta_is_the_number_that_was_written(delta: Any) -> None:
    """In binary floating point 0.07 of 100 epochs is a little more than 7."""
    selector = InfoBatch(4, 100, delta=delta, prune_ratio=0.99, key=0)
    selector.update(range(4), losses=[1.0, 1.0, 1.0, 9.0])
    assert [len(selector.select(epoch)) < 4 for epoch in (6, 7)] == [True, False]
