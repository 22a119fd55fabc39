"""pysel/selection/static/familiarity.py: cosines against numpy, the fit by its gradient, hooks left as found."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pysel.selection import Familiarity, FamiliaritySelector, awareness, hidden_states

pytestmark = pytest.mark.usefixtures("one_thread")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- awareness -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_awareness_is_the_cosine_with_the_last(dtype: torch.dtype) -> None:
    hidden = randn(4, 10, 6).to(dtype)
    hidden[1, 3] = 0
    h = hidden.double().numpy()
    wanted = np.zeros((10, 3))
    for block in range(3):
        for i in range(10):
            lengths = math.sqrt(h[block, i] @ h[block, i]) * math.sqrt(h[3, i] @ h[3, i])
            wanted[i, block] = h[block, i] @ h[3, i] / lengths if lengths else 0
    for given in (hidden, list(hidden), hidden.numpy(), hidden.tolist()):
        np.testing.assert_allclose(awareness(given).numpy(), wanted, rtol=1e-12, atol=1e-12)


# --- hidden states ---------------------------------------------------------------------


class Blocks(nn.Module):
    """Residual blocks on [B, T, d] or [B, d], of which one gives a tuple."""

    def __init__(self, dim: int = 5) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.5)) for _ in range(3))
        self.pair = nn.Identity()
        self.unused = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = x + block(x)
        return self.pair((x, None))


def test_hidden_states() -> None:
    torch.manual_seed(0)
    model = Blocks()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    for x in (randn(7, 5).float(), randn(7, 4, 5).float()):
        found = hidden_states(model, x, ["blocks.0", "pair"], batch_size=3)
        assert [module.training for module in model.modules()] == modes
        assert not any(module._forward_hooks for module in model.modules())
        model.eval()
        with torch.no_grad():
            first, (last, _) = model.blocks[0](x), model(x)
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
        for got, wanted in zip(found, (first, last), strict=True):
            torch.testing.assert_close(got, wanted[:, -1] if x.dim() == 3 else wanted)
            assert not got.requires_grad


def twice() -> nn.Module:
    shared = nn.Linear(3, 3)
    return nn.Sequential(nn.Sequential(shared), nn.ReLU(), shared)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hidden_states(3, randn(2, 3), ["0"]), TypeError, "hidden_states: model must be a Module, got int"),
        (lambda: hidden_states(twice(), [1.0], ["0"]), TypeError, "hidden_states: x must be a Tensor, got list"),
        (lambda: hidden_states(twice(), randn(0, 3), ["0"]), ValueError, r"hidden_states: x must be .* got \[0, 3\]"),
        (lambda: hidden_states(twice(), randn(2, 3), "0"), TypeError, "layers must be a list of names, got '0'"),
        (lambda: hidden_states(twice(), randn(2, 3), ["9"]), ValueError, "layers must be names .* got '9'"),
        (lambda: hidden_states(twice(), randn(2, 3), ["1", "1"]), ValueError, "layers must be distinct"),
        (
            lambda: hidden_states(twice(), randn(2, 3).float(), ["0.0"]),
            ValueError,
            "layers must run once in a pass, but '0.0' runs more than once",
        ),
        (
            lambda: hidden_states(Blocks(), randn(2, 5).float(), ["unused"]),
            ValueError,
            "layers must run once in a pass, but 'unused' does not run",
        ),
        (lambda: awareness(randn(2, 3)), ValueError, r"awareness: hidden must be of two blocks or more"),
        (
            lambda: awareness([randn(2, 3), randn(2, 4)]),
            ValueError,
            r"awareness: hidden\[0\] must have the shape of the last, \[2, 4\], got \[2, 3\]",
        ),
        (
            lambda: awareness([randn(2, 3) * math.nan, randn(2, 3)]),
            ValueError,
            r"awareness: hidden\[0\] must be finite, got nan in row 0",
        ),
        (lambda: Familiarity(0), ValueError, "Familiarity: shrinkage must be positive and finite, got 0"),
        (
            lambda: Familiarity().fit(randn(3, 2), [1, 1, 1]),
            ValueError,
            r"Familiarity.fit: seen must hold both 0 and 1 and nothing else, got \[1.0\]",
        ),
        (lambda: Familiarity().fit(randn(3, 2), [0, 1, 2]), ValueError, "Familiarity.fit: seen must hold both"),
        (lambda: Familiarity().fit(randn(3, 2), [0, 1]), ValueError, r"Familiarity.fit: seen must have shape \[3\]"),
        (lambda: Familiarity().scores(randn(3, 2)), RuntimeError, "Familiarity.scores: nothing has been fitted"),
        (lambda: fitted(2).scores(randn(3, 3)), ValueError, "awareness must have 2 columns, as were fitted, got 3"),
        (
            lambda: FamiliaritySelector(randn(3, 2), 0.5, "x"),
            TypeError,
            "FamiliaritySelector: classifier must be a Familiarity, got str",
        ),
        (
            lambda: FamiliaritySelector(randn(3, 2), 0.5, Familiarity()),
            ValueError,
            "FamiliaritySelector: classifier must be fitted to 2 columns, as awareness has, got None",
        ),
        (lambda: FamiliaritySelector(randn(3, 2), 2, fitted(2)), ValueError, "FamiliaritySelector: keep_ratio"),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_pass_that_fails_leaves_the_model_as_it_was() -> None:
    model = Blocks()
    with pytest.raises(RuntimeError):
        hidden_states(model, randn(2, 4).float(), ["blocks.0", "pair"])
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


# --- the classifier --------------------------------------------------------------------


def groups(n: int = 200, apart: float = 1.0) -> tuple[Tensor, Tensor]:
    seen = torch.arange(n) % 2
    return randn(n, 3) * torch.tensor([1.0, 5.0, 0.01]) + apart * seen[:, None] * torch.tensor([1.0, 0, 0.01]), seen


def fitted(columns: int) -> Familiarity:
    return Familiarity().fit(randn(20, columns), torch.arange(20) % 2)


@pytest.mark.parametrize("shrinkage", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("apart", [0.0, 1.0, 100.0])
def test_fit_is_the_minimum(shrinkage: float, apart: float) -> None:
    """Of a convex function, where its gradient is 0."""
    x, seen = groups(apart=apart)
    scores = Familiarity(shrinkage).fit(x, seen).scores(x).numpy()
    z = (x - x.mean(0)).numpy() / x.numpy().std(0)
    rows = np.concatenate([z, np.ones((len(z), 1))], 1)
    weights = np.linalg.lstsq(rows, scores, rcond=None)[0]
    np.testing.assert_allclose(rows @ weights, scores, atol=1e-9)
    error = 1 / (1 + np.exp(-scores)) - seen.numpy()
    gradient = rows.T @ error + shrinkage * np.array([1, 1, 1, 0]) * weights
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_a_column_that_never_varies_says_nothing() -> None:
    x, seen = groups()
    wanted = Familiarity().fit(x, seen).scores(x)
    more = torch.cat([x, torch.full((len(x), 1), 0.3, dtype=torch.float64)], 1)
    torch.testing.assert_close(Familiarity().fit(more, seen.bool()).scores(more), wanted)


def test_the_least_familiar_are_kept() -> None:
    x, seen = groups()
    known = Familiarity().fit(x[:100], seen[:100])
    scores = known.scores(x)
    chosen = FamiliaritySelector(x, 0.3, known).select()
    assert chosen.tolist() == sorted(np.argsort(scores.numpy(), kind="stable")[:60].tolist())
    assert float(seen[chosen].double().mean()) < 0.3
    labels = torch.arange(200) % 4 // 2
    halves = FamiliaritySelector(x.numpy(), 0.3, known, labels=labels).select()
    assert torch.bincount(labels[halves]).tolist() == [30, 30]
    other = FamiliaritySelector(-x, 0.3, known)
    other.load_state_dict(FamiliaritySelector(x, 0.3, known).state_dict())
    assert torch.equal(other.select(), chosen)
