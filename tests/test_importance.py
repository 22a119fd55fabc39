"""pysel/selection/learned/importance.py, fitted.py, trial.py: what is said of samples, and which strata they are in."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import pysel
from pysel.selection import ASSS, quotas
from pysel.selection.learned.importance import importances
from pysel.selection.learned.trial import strata_of
from tests.learned import best_only
from tests.statistics import accept, chi_square, reject
from tests.test_asss import linear_network, noisy_task

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def fitted() -> tuple[Tensor, Tensor, ASSS]:
    x, y, _ = noisy_task(0, n=200)
    return x, y, best_only(0.3, batch_size=50, key=0).fit(x, y, linear_network(0), labels=y)


def test_a_table_by_hand() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 0.5, 3.0, 1.0])
    strata = torch.tensor([0, 0, 0, 0, 1, 1], dtype=torch.int32)
    table = importances(logits, torch.sigmoid(logits), torch.arange(6.0), *[torch.tensor([0, 3, 5])] * 2, strata, True)
    assert table.rank.tolist() == [2, 6, 5, 4, 1, 3], "of equal ones the kept one comes first"
    assert table.margin.tolist() == [1.5, -1.5, 0.0, 0.0, 2.0, -2.0]
    assert table.selected.tolist() == [True, False, False, True, False, True]
    everything = importances(logits, torch.sigmoid(logits), logits, torch.arange(6), torch.arange(2), strata, False)
    assert everything.selected.tolist() == [True, True, False, False, False, False]
    assert everything.margin.tolist() == [math.inf] * 6


def test_explain_says_why(fitted: tuple[Tensor, Tensor, ASSS]) -> None:
    _, y, selector = fitted
    table, chosen = selector.importances(), set(selector.select().tolist())
    for i in (0, 57, np.int64(199)):
        why = selector.explain(i)
        others = [j for j in range(200) if y[j] == y[i] and (j in chosen) != (i in chosen)]
        cut = (max if i in chosen else min)(float(table.logit[j]) for j in others)
        assert why == {
            "sample": int(i),
            "logit": float(table.logit[i]),
            "probability": float(selector.probabilities[i]),
            "rank": 1 + sum(bool(table.logit[j] > table.logit[i]) for j in range(200)),
            "loss": float(table.loss[i]),
            "margin": pytest.approx(float(table.logit[i]) - cut),
            "stratum": int(y[i]),
            "selected": int(i) in chosen,
        }
        assert (why["margin"] >= 0) == why["selected"]
    for i, error in ((200, IndexError), (-1, IndexError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="ASSS: i must be"):
            selector.explain(i)


def test_the_losses_are_those_of_the_task_network_at_the_end() -> None:
    x, y, _ = noisy_task(0, n=100)
    made: list[nn.Module] = []

    def network() -> nn.Module:
        made.append(linear_network(0)())
        return made[-1]

    selector = best_only(0.3, epochs=4, attenuation="input", key=0).fit(x, y, network)
    wanted = nn.functional.cross_entropy(made[0](x), y, reduction="none").detach()
    torch.testing.assert_close(selector.importances().loss, wanted)


def test_arrays_and_files(fitted: tuple[Tensor, Tensor, ASSS], tmp_path: Path) -> None:
    _, _, selector = fitted
    table = selector.importances()
    arrays = table.to_numpy()
    assert list(arrays) == ["logit", "probability", "rank", "loss", "margin", "stratum", "selected"]
    table.to_csv(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["sample"]) for row in rows] == list(range(200))
    for name, array in arrays.items():
        read = np.array([row[name] == "True" if name == "selected" else float(row[name]) for row in rows])
        assert np.array_equal(read.astype(array.dtype), array), "exactly, in as few digits as it takes"
    assert max(len(row["logit"]) for row in rows) < 15


def test_pandas_reads_what_was_written(fitted: tuple[Tensor, Tensor, ASSS], tmp_path: Path) -> None:
    table = fitted[2].importances()
    table.to_csv(tmp_path / "table.csv")
    read = pd.read_csv(tmp_path / "table.csv", index_col="sample", dtype={"logit": np.float32})
    assert np.array_equal(read["logit"], table.logit) and np.array_equal(read["selected"], table.selected)
    assert list(pd.DataFrame(table.to_numpy())) == list(read)


def test_parquet(fitted: tuple[Tensor, Tensor, ASSS], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = fitted[2].importances()
    table.to_parquet(tmp_path / "table.parquet")
    read = parquet.read_table(tmp_path / "table.parquet")
    assert read.column_names == ["sample", *table.to_numpy()] and read["sample"].to_pylist() == list(range(200))
    for name, array in table.to_numpy().items():
        assert np.array_equal(read[name].to_numpy(), array) and read[name].to_numpy().dtype == array.dtype


def test_without_pyarrow_it_says_what_to_install(
    fitted: tuple[Tensor, Tensor, ASSS], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"Importances: Parquet is written with pyarrow\. Type: pip install pyarrow"):
        fitted[2].importances().to_parquet(tmp_path / "table.parquet")
    assert not (tmp_path / "table.parquet").exists()


def test_importances_are_weights_to_draw_by(fitted: tuple[Tensor, Tensor, ASSS]) -> None:
    p = fitted[2].probabilities.double()
    counts = torch.bincount(torch.tensor(list(pysel.WeightedSampler(p, 400_000, key=0))), minlength=200)
    accept({"draws": chi_square(counts, p / p.sum())})
    reject({"draws": chi_square(counts, np.full(200, 1 / 200))})


def test_a_pool_is_found_and_the_subset_is_a_random_part_of_it() -> None:
    x, y, wrong = noisy_task(0)
    selector = best_only(0.2, pool=0.6, batch_size=100, key=0).fit(x, y, linear_network(0), labels=y)
    table = selector.importances()
    assert selector.history[-1]["mean_probability"] == pytest.approx(0.6, abs=0.1), "the pool is the game's target"
    pool = table.margin >= 0
    assert int(pool.sum()) == 360 and int(table.selected.sum()) == 120 and not bool((table.selected & ~pool).any())
    assert torch.equal(torch.bincount(y[table.selected]), quotas(torch.bincount(y), 120)), "classes keep their share"
    assert float(wrong[table.selected].float().mean()) < 0.05
    # random in the pool: as many of its better half as of its worse one, 5 standard errors
    ranks = table.rank[table.selected]
    assert abs(int((ranks <= 180).sum()) - 60) < 25
    other = best_only(0.2, pool=0.6, batch_size=100, key=1).fit(x, y, linear_network(0), labels=y)
    assert not torch.equal(other.select(), selector.select())
    whole = best_only(0.6, pool=0.6, epochs=2, key=0).fit(x, y, linear_network(0)).select()
    assert torch.equal(whole, best_only(0.6, epochs=2, key=0).fit(x, y, linear_network(0)).select())
    for pool_share, message in (
        (0.1, "pool must be at least keep_ratio, 0.2, got 0.1"),
        (1.5, r"pool must be in \(0, 1\]"),
    ):
        with pytest.raises(ValueError, match=f"ASSS: {message}"):
            best_only(0.2, pool=pool_share)


def test_a_class_with_too_few_in_the_pool_is_filled_up_with_its_best() -> None:
    """Class 1 is noise: hardly any of it is found good, and it must have its share of the subset all the same."""
    x, y, _ = noisy_task(0, noise=0.0)
    strange = torch.arange(600) % 3 == 0
    labels = torch.where(strange, 1, 0)
    y = torch.where(strange, torch.randint(2, (600,), generator=torch.Generator().manual_seed(1)), y)
    selector = best_only(0.5, pool=0.6, batch_size=100, key=0).fit(x, y, linear_network(0), labels=labels)
    table = selector.importances()
    pool = table.margin >= 0
    assert int(pool.sum()) == 360
    wanted = quotas(torch.bincount(labels), 300)
    assert torch.equal(torch.bincount(labels[table.selected]), wanted)
    held = torch.bincount(labels[pool], minlength=2)
    for c in (0, 1):
        outside = table.selected & ~pool & (labels == c)
        assert int(outside.sum()) == max(0, int(wanted[c] - held[c]))
        left = ~table.selected & (labels == c)
        if bool(outside.any()):
            assert float(table.logit[outside].min()) >= float(table.logit[left].max())


def test_ties_at_the_cut_go_by_the_key() -> None:
    """Before the selector plays all logits are equal: the subset is then a random one, and not the first rows."""
    x, y, _ = noisy_task(0, n=400)
    chosen = [
        best_only(0.5, epochs=1, warmup_epochs=1, key=seed).fit(x, y, linear_network(0)).select() for seed in (0, 0, 1)
    ]
    assert torch.equal(chosen[0], chosen[1]) and not torch.equal(chosen[0], chosen[2])
    assert 60 < int((chosen[0] < 200).sum()) < 140, "half of each half, 5 standard errors"


# --- strata ----------------------------------------------------------------------------


def test_quantiles_of_a_real_target() -> None:
    target = torch.randn(103, generator=torch.Generator().manual_seed(0)).exp()
    strata = strata_of(target, 4, 103, 0.3)
    assert strata.groups is not None and strata.quotas is not None
    sizes = torch.bincount(strata.groups)
    assert int(sizes.sum()) == 103 and int(sizes.max() - sizes.min()) <= 1 and int(strata.quotas.sum()) == 31
    highest, lowest = (torch.stack([f(target[strata.groups == g]) for g in range(4)]) for f in (torch.max, torch.min))
    assert bool((highest[:-1] < lowest[1:]).all())
    assert torch.equal(strata_of(target.tolist(), 4, 103, 0.3).groups, strata.groups)


def test_equal_targets_are_in_one_stratum() -> None:
    strata = strata_of(torch.tensor([1.0, 1.0, 1.0, 2.0, 3.0, 4.0]), 2, 6, 0.5)
    assert strata.groups is not None and strata.groups.tolist() == [0, 0, 0, 1, 1, 1]
    strata = strata_of(torch.tensor([1.0, 2.0, 2.0, 2.0, 2.0, 3.0]), 2, 6, 0.5)
    assert strata.groups is not None and strata.groups.tolist() == [0, 1, 1, 1, 1, 1]


def test_a_real_target_keeps_its_quantiles() -> None:
    x, _, _ = noisy_task(0, n=200)
    target = x[:, 0].exp()
    selector = best_only(0.25, epochs=3, key=0).fit(x, target, lambda: nn.Linear(8, 1), labels=target, quantiles=5)
    kept = selector.importances()
    assert torch.bincount(kept.stratum[kept.selected]).tolist() == [10] * 5


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (torch.rand(9), {"quantiles": 10}, ValueError, "quantiles must be between 1 and 9, got 10"),
        (torch.rand(9), {"quantiles": 2.5}, TypeError, "quantiles must be an int"),
        (torch.full((9,), math.nan), {}, ValueError, "labels must be finite"),
        (torch.rand(9), {"quantiles": 8}, ValueError, "keep_ratio must give .* each of the 8 classes .* subset of 3"),
        (torch.rand(9, 1), {}, ValueError, r"labels must be \[9\]"),
    ],
)
def test_bad_strata(labels: Tensor, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"ASSS: .*{message}"):
        strata_of(labels, options.get("quantiles", 3), 9, 0.3)
