"""pysel/selection/static/scores.py: who is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import pysel
from pysel.selection import FixedSelector, Full, ScoreSelector, StaticRandom, el2n, grand, margin

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_full_and_fixed() -> None:
    assert Full(4).select(3).tolist() == [0, 1, 2, 3] and len(Full(4)) == 4
    fixed = FixedSelector(torch.tensor([1, 3]))
    fixed.select(0)[:] = 9
    assert fixed.select(1).tolist() == [1, 3]
    for given in ([3, 1], np.array([3, 1], np.uint8), torch.tensor([3, 1], dtype=torch.int16), pd.Series([3, 1])):
        assert FixedSelector(given).select().tolist() == [1, 3], "in ascending order"
    assert repr(FixedSelector([7, 3, 5])) == "FixedSelector(num_samples=8)"
    assert len(FixedSelector([])) == 0


def test_static_random() -> None:
    selector = StaticRandom(1000, 0.3, key=pysel.key(0))
    assert torch.equal(selector.select(0), selector.select(5)) and len(selector.select(0).unique()) == 300
    assert not torch.equal(selector.select(0), StaticRandom(1000, 0.3, key=pysel.key(1)).select(0))
    labels = torch.arange(1000) % 4
    even = StaticRandom(1000, 0.1, labels=labels, key=pysel.key(0)).select(0)
    assert torch.bincount(labels[even]).tolist() == [25] * 4


def test_el2n_and_score_selector() -> None:
    logits = torch.randn(20, 5, generator=generator(), dtype=torch.float64)
    labels = torch.arange(20) % 5
    expected = (torch.softmax(logits, 1) - F.one_hot(labels, 5)).norm(dim=1)
    scores = el2n(logits, labels)
    torch.testing.assert_close(scores, expected)
    hardest = ScoreSelector(scores, 0.25)
    assert hardest.select(0).tolist() == sorted(scores.topk(5).indices.tolist())
    easiest = ScoreSelector(scores, 0.25, largest=False)
    assert easiest.select(0).tolist() == sorted(scores.topk(5, largest=False).indices.tolist())
    confident = el2n(torch.tensor([[30.0, 0.0]]), torch.tensor([0]))
    assert float(confident) == pytest.approx(2**0.5 * math.exp(-30), rel=1e-4), "digits survive near 0"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_el2n_of_any_dtype(dtype: torch.dtype) -> None:
    logits = (torch.randn(20, 5, generator=generator()) * 3).to(dtype).requires_grad_()
    labels = torch.arange(20) % 5
    scores = el2n(logits, labels.to(torch.uint8))
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not scores.requires_grad
    torch.testing.assert_close(scores.double(), el2n(logits.double(), labels.tolist()), rtol=1e-6, atol=0)
    if dtype != torch.bfloat16:
        assert torch.equal(el2n(logits.detach().numpy(), labels.numpy()), scores)


def test_el2n_of_two_classes_and_of_ruled_out_ones() -> None:
    logits = [[1.0, 2.0, -math.inf], [0.0, -math.inf, 0.0]]
    expected = [2**0.5 / (1 + math.exp(-1)), 0.5**0.5]
    assert el2n(logits, [0, 0]).tolist() == pytest.approx(expected)
    assert el2n([row[:2] for row in logits[:1]], [False]).tolist() == pytest.approx(expected[:1]), "bool labels"


def test_grand_is_the_length_of_the_last_layers_gradient() -> None:
    x = torch.randn(12, 7, generator=generator(1), dtype=torch.float64)
    labels = torch.arange(12) % 4
    layer = torch.nn.Linear(7, 4, dtype=torch.float64)
    scores = grand(layer(x), labels, x)
    for row in range(12):
        loss = F.cross_entropy(layer(x[row : row + 1]), labels[row : row + 1])
        gradients = torch.autograd.grad(loss, (layer.weight, layer.bias))
        length = torch.cat([g.flatten() for g in gradients]).norm()
        torch.testing.assert_close(scores[row], length)
    assert not scores.requires_grad
    narrow = grand(layer(x).float(), labels, x.half())
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), scores, rtol=2e-3, atol=0)
    assert torch.equal(grand(layer(x), labels, x.reshape(12, 1, 7)), scores), "feature maps are flattened"
    huge = grand(torch.zeros(1, 2), [0], torch.full((1, 4), 1e25))
    assert float(huge) == pytest.approx(2e25 / 2**0.5), "squares that float32 does not hold"


def test_margin() -> None:
    logits = np.random.default_rng(0).normal(size=(30, 5))
    labels = np.arange(30) % 5
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = [row[y] - max(np.delete(row, y)) for row, y in zip(p, labels, strict=True)]
    np.testing.assert_allclose(margin(logits, labels), wanted)
    top = np.sort(p, axis=1)
    np.testing.assert_allclose(margin(logits), top[:, -1] - top[:, -2])
    assert margin(torch.tensor([[0.0, -math.inf, 0.0]]), [1]).tolist() == [-0.5], "a label that is ruled out"
    assert margin(torch.zeros(2, 3, dtype=torch.float16)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_scores_in_any_container(dtype: torch.dtype) -> None:
    scores = torch.rand(20, generator=generator()).to(dtype)
    wanted = ScoreSelector(scores, 0.25).select()
    for given in (scores.numpy(), scores.tolist(), pd.Series(scores.numpy()), scores.clone().requires_grad_()):
        assert torch.equal(ScoreSelector(given, np.float32(0.25)).select(), wanted)
    assert ScoreSelector([3, 1, 2], 0.5).select().tolist() == [0, 2]
    assert ScoreSelector([math.inf, 0, -math.inf], 0.3, largest=np.False_).select().tolist() == [2]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: el2n(torch.ones(4, 3), [0, 1]), ValueError, r"el2n: labels must have shape \[4\], got \[2\]"),
        (lambda: el2n(torch.ones(4), [0] * 4), ValueError, r"el2n: logits must be \[N, C\].*got \[4\]"),
        (lambda: el2n(torch.ones(2, 3), [0, 3]), ValueError, "el2n: labels must be between 0 and 2, got 3 in row 1"),
        (lambda: el2n(torch.ones(2, 3), [-1, 0]), ValueError, "el2n: labels must be between 0 and 2, got -1 in row 0"),
        (lambda: el2n(torch.ones(2, 3), [0.0, 1.0]), TypeError, "el2n: labels must be integers, got torch.float64"),
        (lambda: el2n([[1.0, math.nan]], [0]), ValueError, r"el2n: softmax\(logits\) must be finite, got nan in row 0"),
        (lambda: el2n("abc", [0]), TypeError, "el2n: logits must be a tensor, an array or a list of numbers, got str"),
        (
            lambda: grand(torch.ones(2, 3), [0, 3], torch.ones(2, 4)),
            ValueError,
            "grand: labels must be between 0 and 2",
        ),
        (
            lambda: grand(torch.ones(2, 3), None, torch.ones(2, 4)),
            TypeError,
            "grand: labels must be a tensor, an array",
        ),
        (lambda: grand(torch.ones(2, 3), [0, 1], torch.ones(3, 4)), ValueError, "grand: features must be .* with N=2"),
        (lambda: grand(torch.ones(1, 3), [0], [[math.inf]]), ValueError, "grand: features must be finite, got inf in"),
        (lambda: margin(torch.ones(2, 1)), ValueError, r"margin: logits must be \[N, C\] with C > 1, got \[2, 1\]"),
        (lambda: margin(torch.ones(2, 3), [0]), ValueError, r"margin: labels must have shape \[2\], got \[1\]"),
        (lambda: margin([[1.0, math.nan]]), ValueError, r"margin: softmax\(logits\) must be finite, got nan in row 0"),
        (lambda: FixedSelector([1, 1]), ValueError, "FixedSelector: indices must be distinct, got 1 more than once"),
        (lambda: FixedSelector([-1, 1]), ValueError, "FixedSelector: indices must be between 0 and .*, got -1"),
        (lambda: FixedSelector([1, 5], 5), ValueError, "FixedSelector: indices must be between 0 and 4, got 5"),
        (lambda: FixedSelector([True, False]), TypeError, "FixedSelector: indices must be indices, got a boolean mask"),
        (lambda: FixedSelector([1.0]), TypeError, "FixedSelector: indices must be integers, got torch.float64"),
        (lambda: FixedSelector([[1]]), ValueError, r"FixedSelector: indices must have shape \[N\], got \[1, 1\]"),
        (lambda: FixedSelector([1], -1), ValueError, "FixedSelector: num_samples must be at least 0, got -1"),
        (lambda: Full(-1), ValueError, "Full: num_samples must be at least 0, got -1"),
        (lambda: Full(2.5), TypeError, "Full: num_samples must be an int, got float"),
        (lambda: StaticRandom(0, 0.5), ValueError, "StaticRandom: num_samples must be at least 1, got 0"),
        (lambda: StaticRandom(9, 50), ValueError, r"StaticRandom: keep_ratio, the fraction kept, must be in \(0, 1\]"),
        (lambda: StaticRandom(9, 0.1, labels=range(9)), ValueError, "StaticRandom: keep_ratio must give at least one"),
        (lambda: StaticRandom(9, 0.5, labels=[0] * 8), ValueError, r"StaticRandom: labels must have shape \[9\]"),
        (lambda: ScoreSelector([1.0, math.nan], 0.5), ValueError, "ScoreSelector: scores must be a number, got nan in"),
        (lambda: ScoreSelector([], 0.5), ValueError, r"ScoreSelector: scores must be \[N\] with N > 0, got \[0\]"),
        (lambda: ScoreSelector([1.0, 2.0], 0), ValueError, "ScoreSelector: keep_ratio, the fraction kept, must be in"),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_saved_and_loaded_without_what_they_were_chosen_by(tmp_path: Path) -> None:
    for number, selector in enumerate(
        [
            FixedSelector([4, 2], 9),
            Full(5),
            StaticRandom(100, Fraction(1, 7)),
            ScoreSelector(torch.rand(50), np.float32(0.3), largest=False),
        ]
    ):
        selector.save(tmp_path / str(number))
        loaded = type(selector).load(tmp_path / str(number))
        assert torch.equal(loaded.select(), selector.select())
        assert repr(loaded) == repr(selector)
        assert loaded.num_samples == selector.num_samples
    with pytest.raises(ValueError, match=r"state_dict must be of a selector with keep_ratio=0.2, got .*0.3"):
        StaticRandom(100, 0.2).load_state_dict(StaticRandom(100, 0.3).state_dict())
    with pytest.raises(ValueError, match=r"StaticRandom: state_dict must be .* num_samples=10, got one with 20"):
        StaticRandom(10, 0.2).load_state_dict(StaticRandom(20, 0.2).state_dict())
