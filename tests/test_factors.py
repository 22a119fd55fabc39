"""pysel/sae/factors.py: the tables are the formulas, unit by unit; pysel/selection/dynamic/unit_interval.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import pysel
from pysel.nn import TopKSAE
from pysel.selection import factor_tables, to_unit_interval

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def oracle_tables(
    activations: np.ndarray, labels: np.ndarray | None, common: float, effective: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Rep and Div of a dense [N, H] matrix of activations, unit by unit."""
    n, units = activations.shape
    active = activations > 0
    count = active.sum(0)
    live = int((count > 0).sum())
    most = sorted(range(units), key=lambda j: (-count[j], j))[: math.ceil(common * live)]
    rep, div = np.zeros(n), np.zeros(n)
    for j in range(units):
        if count[j] == 0:
            continue
        div[active[:, j]] += 1 / count[j]
        if j in most:
            spread = 1.0
            if labels is not None:
                of_class = np.array([np.sum(active[labels == c, j]) for c in np.unique(labels)])
                share = of_class[of_class > 0] / count[j]
                spread = math.exp(-np.sum(share * np.log(share))) if effective else len(share)
            rep[active[:, j]] += 1 / spread
    return rep, div


@pytest.mark.parametrize("class_coverage", ["once", "effective"])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("common", [0.1, 0.5, 1.0])
def test_factor_tables_are_the_formulas(class_coverage: str, classes: int, common: float) -> None:
    sae = TopKSAE(6, 30, 4, key=pysel.key(0), dtype=torch.float64)
    x = torch.randn(101, 6, dtype=torch.float64, generator=generator())
    labels = torch.randint(classes, (101,), generator=generator(1)) * 5 - 3 if classes else None
    with torch.no_grad():
        values, indices = sae.encode(x)
        z = torch.zeros(101, 30, dtype=torch.float64).scatter(1, indices, values)
    result = factor_tables(sae, x, labels=labels, common=common, class_coverage=class_coverage, batch_size=17)
    rep, div = oracle_tables(
        z.numpy(), None if labels is None else labels.numpy(), common, class_coverage == "effective"
    )
    np.testing.assert_allclose(result.representativeness.numpy(), rep, rtol=1e-6)
    np.testing.assert_allclose(result.diversity.numpy(), div, rtol=1e-6)
    assert torch.equal(result.counts, (z > 0).sum(0))
    assert int(result.common.sum()) == math.ceil(common * int((result.counts > 0).sum()))


@pytest.mark.parametrize("seed", range(5))
def test_the_sum_of_diversities_is_the_number_of_live_units(seed: int) -> None:
    sae = TopKSAE(6, 300, 4, key=pysel.key(seed))
    result = factor_tables(sae, torch.randn(150, 6, generator=generator(seed)))
    live = int((result.counts > 0).sum())
    assert 50 < live < 300
    assert float(result.diversity.double().sum()) == pytest.approx(live, rel=1e-6)


@pytest.mark.parametrize("around", [lambda: torch.device("meta"), torch.inference_mode], ids=["meta", "inference_mode"])
def test_surroundings_do_not_reach_in(around: Any) -> None:
    sae = TopKSAE(6, 30, 4, key=pysel.key(0))
    x = torch.randn(60, 6, generator=generator())
    for labels in (None, torch.arange(60) % 3):
        expected = factor_tables(sae, x, labels=labels)
        with around():
            got = factor_tables(sae, x, labels=labels)
        assert all(map(torch.equal, got, expected))


def test_to_unit_interval() -> None:
    x = torch.tensor([3.0, -1.0, 3.0, 7.0, 0.0])
    torch.testing.assert_close(to_unit_interval(x), (x + 1) / 8)
    torch.testing.assert_close(to_unit_interval(x, "rank"), torch.tensor([0.625, 0.0, 0.625, 1.0, 0.25]))
    assert to_unit_interval(torch.tensor([-3e38, 0, 3e38])).tolist() == [0, 0.5, 1]
    outlier = torch.cat([torch.linspace(0, 1, 199), torch.tensor([1e6])])
    clipped = to_unit_interval(outlier, "clip", quantile=0.95)
    assert 0.45 < float(clipped[100]) < 0.55 and float(to_unit_interval(outlier)[100]) < 1e-6
    for how in ("minmax", "clip", "rank"):
        assert to_unit_interval(torch.full((4,), 5.0), how).tolist() == [0.0] * 4
        once = to_unit_interval(torch.rand(1000, generator=generator()) ** 9, how)
        assert once.min() == 0 and once.max() == 1
        assert torch.equal(to_unit_interval(once, how), once)
    assert torch.equal(to_unit_interval(x.clamp(0, 1), None), x.clamp(0, 1))
    assert to_unit_interval(x.half(), "minmax").dtype == torch.float32
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\], got -1 to 7"):
        to_unit_interval(x, None)
    for bad in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(ValueError, match="scores must be finite"):
            to_unit_interval(torch.tensor([1.0, bad, 2.0]))
    with pytest.raises(ValueError, match="how must be minmax, clip or rank, got 'z'"):
        to_unit_interval(x, "z")
    for quantile in (0.5, 1.01, math.nan):
        with pytest.raises(ValueError, match=r"to_unit_interval: quantile must be in \(0.5, 1\], got"):
            to_unit_interval(x, "clip", quantile=quantile)
    with pytest.raises(TypeError, match="to_unit_interval: scores must be a tensor, an array or a list"):
        to_unit_interval("x")
    for given in (x.numpy(), x.tolist(), x.clone().requires_grad_()):
        torch.testing.assert_close(to_unit_interval(given), (x + 1) / 8, check_dtype=False)
    kept = torch.rand(5, generator=generator())
    assert to_unit_interval(kept, None).data_ptr() != kept.data_ptr(), "what comes back is the caller's own"


def test_to_unit_interval_of_the_smallest_differences() -> None:
    """Halves of the least subnormal number are 0."""
    for dtype in (torch.float32, torch.float64):
        least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert to_unit_interval(torch.tensor([0, 1, 2], dtype=dtype) * least).tolist() == [0, 0.5, 1]
    assert to_unit_interval([-1.7e308, 0, 1.7e308]).tolist() == [0, 0.5, 1]


def test_shares_are_the_numbers_that_were_written() -> None:
    """In binary floating point 1 - 0.9 is a little less than a tenth, and 0.07 of 100 a little more than 7."""
    scores = torch.arange(10.0)
    assert int((to_unit_interval(scores, "clip", quantile=0.9) == 1).sum()) == 2
    sae = TopKSAE(6, 100, 90, key=pysel.key(0))
    result = factor_tables(sae, torch.randn(300, 6, generator=generator()), common=0.07)
    assert int((result.counts > 0).sum()) == 100
    assert int(result.common.sum()) == 7


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"common": 0}, ValueError, r"factor_tables: common must be in \(0, 1\], got 0"),
        ({"common": "a"}, TypeError, "factor_tables: common must be a number, got str"),
        ({"class_coverage": "x"}, ValueError, "factor_tables: class_coverage must be once or effective, got 'x'"),
        ({"batch_size": 0}, ValueError, "factor_tables: batch_size must be at least 1, got 0"),
        ({"labels": [0.5] * 9}, TypeError, "factor_tables: labels must be integers, got torch.float64"),
        ({"labels": [0] * 8}, ValueError, r"factor_tables: labels must have shape \[9\], got \[8\]"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        factor_tables(TopKSAE(4, 8, 2, key=pysel.key(0)), torch.ones(9, 4), **options)


def test_effective_coverage_is_made_in_double() -> None:
    sae = TopKSAE(6, 30, 4, key=pysel.key(0))
    x = torch.randn(101, 6, generator=generator())
    labels = torch.randint(3, (101,), generator=generator(1))
    wanted = factor_tables(sae, x, labels=labels, class_coverage="effective")
    torch.set_default_dtype(torch.float64)
    try:
        found = factor_tables(sae, x, labels=labels, class_coverage="effective")
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_scores_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    factor_scores = pysel.ops.factor_scores
    monkeypatch.setattr(pysel.ops, "factor_scores", lambda *a: (calls.append(1), factor_scores(*a))[1])
    factor_tables(TopKSAE(4, 8, 2, key=pysel.key(0)), torch.ones(9, 4), batch_size=3)
    assert len(calls) == 3, "one call a batch, for both scores"
