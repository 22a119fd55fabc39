"""pysel/selection/nmtune.py: the loss against numpy, and its gradient where singular values are equal or 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pysel.selection import nmtune_loss

pytestmark = pytest.mark.usefixtures("one_thread")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def formula(f: np.ndarray, z: np.ndarray, a: float, b: float, c: float, largest: int) -> float:
    unit = lambda x: x / np.sqrt((x**2).sum(1, keepdims=True))  # noqa: E731
    covariance = np.cov(z, rowvar=False).reshape(z.shape[1], z.shape[1])
    off = covariance - np.diag(np.diag(covariance))
    # of the Gram matrix, which is another way than svdvals
    s = np.sqrt(np.clip(np.linalg.eigvalsh(z @ z.T if len(z) < z.shape[1] else z.T @ z), 0, None))[::-1]
    return float(
        a * ((unit(z) - unit(f)) ** 2).mean() + b * (off**2).sum() / z.shape[1] - c * s[:largest].mean() / s.sum()
    )


@pytest.mark.parametrize("shape", [(20, 6), (6, 20), (8, 8), (5, 1), (2, 3)])
@pytest.mark.parametrize("factors", [(1.0, 0.04, 0.001, 5), (0.0, 0.0, 1.0, 1), (0.5, 2.0, 3.0, 100)])
def test_formula(shape: tuple[int, int], factors: tuple[float, float, float, int]) -> None:
    f, z = randn(*shape), randn(*shape, seed=1)
    a, b, c, largest = factors
    got = nmtune_loss(f, z, consistency=a, covariance=b, spectrum=c, largest=largest)
    np.testing.assert_allclose(float(got), formula(f.numpy(), z.numpy(), *factors), rtol=1e-10)
    single = nmtune_loss(f.float(), z.float(), consistency=a, covariance=b, spectrum=c, largest=largest)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), got, rtol=1e-4, atol=1e-5)


def test_defaults() -> None:
    f, z = randn(12, 7), randn(12, 7, seed=1)
    np.testing.assert_allclose(float(nmtune_loss(f, z)), formula(f.numpy(), z.numpy(), 1, 0.04, 0.001, 5), rtol=1e-10)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_gradient(shape: tuple[int, int]) -> None:
    f, z = randn(*shape).requires_grad_(), randn(*shape, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: nmtune_loss(f, z, spectrum=1.0, largest=2), z)
    nmtune_loss(f, z).backward()
    assert f.grad is None


SINGULAR = {
    "all values equal": torch.eye(6, dtype=torch.float64),
    "two of them equal, at the edge of the largest": torch.diag(torch.tensor([3.0, 2, 2, 1, 1, 1]).double()),
    "equal rows": randn(1, 6).expand(6, 6),
    "zeros": torch.zeros(6, 6, dtype=torch.float64),
    "rank 2": randn(6, 2) @ randn(2, 6, seed=1),
}


@pytest.mark.parametrize("z", SINGULAR.values(), ids=SINGULAR)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_gradient_is_finite_where_singular_values_are_equal_or_0(z: Tensor, dtype: torch.dtype) -> None:
    z = z.to(dtype).clone().requires_grad_()
    loss = nmtune_loss(randn(6, 6).to(dtype), z, spectrum=1.0, largest=2)
    loss.backward()
    assert z.grad is not None
    assert bool(loss.isfinite())
    assert bool(z.grad.isfinite().all())


def test_descent_flattens_correlations_and_sharpens_the_spectrum() -> None:
    z = (randn(40, 5) @ randn(5, 5, seed=1)).requires_grad_()
    share = lambda: float((s := torch.linalg.svdvals(z.detach()))[0] / s.sum())  # noqa: E731
    before = share()
    optimiser = torch.optim.SGD([z], lr=1.0)
    for _ in range(100):
        optimiser.zero_grad()
        nmtune_loss(z.detach(), z, spectrum=1.0, covariance=0.0, largest=1).backward()
        optimiser.step()
    assert share() > before + 0.03


def test_autocast_changes_nothing() -> None:
    f, z = randn(8, 4).float(), randn(8, 4, seed=1).float()
    wanted = nmtune_loss(f, z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nmtune_loss(f, z), wanted)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nmtune_loss([[1.0]], randn(2, 2)), TypeError, "nmtune_loss: features must be a Tensor, got list"),
        (lambda: nmtune_loss(randn(2, 2), randn(2, 2).long()), TypeError, "nmtune_loss: z must be float32, float64"),
        (lambda: nmtune_loss(randn(2), randn(2)), ValueError, r"nmtune_loss: z must be \[B, D\], .* got \[2\]"),
        (lambda: nmtune_loss(randn(1, 3), randn(1, 3)), ValueError, r"B at least 2 .* got \[1, 3\]"),
        (
            lambda: nmtune_loss(randn(2, 4), randn(2, 3)),
            ValueError,
            r"nmtune_loss: features must have the shape of z, \[2, 3\], got \[2, 4\]",
        ),
        (
            lambda: nmtune_loss(randn(2, 3), randn(2, 3), spectrum=-1),
            ValueError,
            "nmtune_loss: spectrum must be finite and at least 0, got -1",
        ),
        (
            lambda: nmtune_loss(randn(2, 3), randn(2, 3), largest=0),
            ValueError,
            "nmtune_loss: largest must be at least 1, got 0",
        ),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
