"""pysel/selection/dynamic/factors.py: the tables are the formulas, unit by unit."""

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
