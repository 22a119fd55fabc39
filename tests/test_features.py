"""pysel/selection/features.py: the formulas, in every dtype and at every scale, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pysel
from pysel.selection.features import pca, penultimate, random_projection, standardise, unit_length


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_standardise() -> None:
    x = torch.randn(200, 3, 2, generator=generator()) * 5 + 7
    x[:, 1, 1] = 4
    z = standardise(x)
    assert z.shape == (200, 6)
    scale = z.square().mean(0)
    torch.testing.assert_close(z.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(scale, torch.tensor([1.0, 1, 1, 0, 1, 1]), atol=1e-4, rtol=0)


def test_pca() -> None:
    x = torch.randn(300, 5, generator=generator(), dtype=torch.float64) * torch.tensor([1.0, 5, 2, 0.1, 3])
    z = pca(x, 3)
    centred = x - x.mean(0)
    _, s, _ = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(z.square().sum(0), s[:3] ** 2)
    torch.testing.assert_close(z.mT @ z, torch.diag(s[:3] ** 2), atol=1e-8, rtol=0)
    torch.testing.assert_close(pca(x, 5).square().sum(1), centred.square().sum(1))
    white = pca(torch.cat([x, x[:, :1]], 1), 6, whiten=True)  # the last direction has no variance
    variance = torch.tensor([1.0, 1, 1, 1, 1, 0], dtype=torch.float64)
    torch.testing.assert_close(white.square().mean(0), variance)
    assert pca(torch.randint(256, (10, 4, 4), dtype=torch.uint8), 2).shape == (10, 2)


@pytest.mark.parametrize("unit", [1, 1e-200, 1e200])
def test_unit_length(unit: float) -> None:
    x = torch.randn(50, 2, 3, generator=generator(), dtype=torch.float64)
    x[7] = 0
    z = unit_length(x * unit)
    flat = x.flatten(1).numpy()
    wanted = flat / np.where(np.arange(50) == 7, 1, np.sqrt((flat**2).sum(1)))[:, None]
    np.testing.assert_allclose(z.numpy(), wanted, rtol=1e-14, atol=0)
    assert unit_length(x.half()).dtype == torch.float32
    with pytest.raises(ValueError, match="unit_length: x must be finite, got inf in row 0"):
        unit_length([[torch.inf]])


def test_random_projection_keeps_distances() -> None:
    x = torch.randn(50, 300, generator=generator())
    z = random_projection(x, 2000, key=pysel.key(0))
    ratio = torch.pdist(z) / torch.pdist(x)
    assert float((ratio - 1).abs().max()) < 0.1  # standard deviation 1 / sqrt(2 * 2000) = 0.016
    assert torch.equal(z, random_projection(x, 2000, key=pysel.key(0)))
    assert not torch.equal(z, random_projection(x, 2000, key=pysel.key(1)))


def test_penultimate() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Dropout(0.5), nn.Linear(3, 2))
    model[1].eval()
    x = torch.randn(10, 4, generator=generator())
    z = penultimate(model, x, batch_size=3)
    with torch.no_grad():
        torch.testing.assert_close(z, model[2](model[1](model[0](x))))
    assert model.training and model[3].training and not model[1].training, "modes are as they were"
    assert not z.requires_grad
    assert torch.equal(penultimate(model, [x[:5], x[5:]]), z)
    assert torch.equal(penultimate(model, x, layer="0"), x)
    assert not model[4]._forward_pre_hooks


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pca(torch.ones(3, 2), 3), ValueError, "pca: dim must be between 1 and 2, got 3"),
        (lambda: pca(torch.ones(3), 1), ValueError, r"pca: x must be \[N, ...\].*got shape \[3\]"),
        (
            lambda: standardise([[1.0], 2.0]),
            TypeError,
            "standardise: x must be a tensor, .* got a list that makes no array",
        ),
        (
            lambda: random_projection(torch.ones(3, 2), 0, key=pysel.key(0)),
            ValueError,
            "random_projection: dim must be at least 1, got 0",
        ),
        (lambda: penultimate(nn.ReLU(), torch.ones(3, 2)), ValueError, "layer must be given"),
        (
            lambda: penultimate(nn.Linear(2, 2), torch.ones(3, 2), layer="head"),
            ValueError,
            r"layer must be a name in model.named_modules\(\), got 'head'",
        ),
        (lambda: penultimate(nn.Linear(2, 2), []), ValueError, "x must give at least one batch"),
        (
            lambda: penultimate(nn.Linear(2, 2), torch.ones(3, 2), batch_size=0),
            ValueError,
            "penultimate: batch_size must be at least 1, got 0",
        ),
        (lambda: pca(torch.ones(3, 2), 1.0), TypeError, "pca: dim must be an int, got float"),
        (
            lambda: standardise(torch.ones(3, 2), -1),
            ValueError,
            "standardise: eps must be .* at least 0, got -1",
        ),
        (lambda: pca(torch.ones(3, 0), 1), ValueError, r"pca: x must be \[N, ...\].*got shape \[3, 0\]"),
        (lambda: random_projection(torch.ones(3, 2), 1, key="a"), TypeError, "random_projection: key must be a Tensor"),
        (lambda: penultimate(nn.Linear(2, 2), [[1.0]]), TypeError, "tensors of inputs alone, got a float"),
        (
            lambda: penultimate(nn.Linear(2, 2), [(torch.ones(3, 2), torch.ones(3))]),
            TypeError,
            "tensors of inputs alone, got a tuple",
        ),
        (lambda: standardise(np.array([["a"]])), TypeError, "got ndarray of <U1"),
        (lambda: pca(torch.ones(3, 2, dtype=torch.complex64), 1), TypeError, "x must be real, got torch.complex64"),
    ],
)
def test_bad_features(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


MAKERS: dict[str, Callable[[Any], Tensor]] = {
    "standardise": standardise,
    "pca": lambda x: pca(x, 2),
    "whitened pca": lambda x: pca(x, 2, whiten=True),
    "random_projection": lambda x: random_projection(x, 2, key=0),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    """Squares of deviations of 300 overflow float16, and eigh does not take it."""
    x = torch.randn(500, 3, generator=generator()) * torch.tensor([300.0, 20, 30]) + 500
    x = (x / 5).clamp(0, 255).to(dtype) if dtype == torch.uint8 else x.to(dtype)
    result = MAKERS[name](x)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(result.double(), MAKERS[name](x.double()), rtol=1e-3, atol=1e-2)
    assert torch.equal(MAKERS[name](x if dtype == torch.bfloat16 else x.numpy()), result)
    if name == "standardise":
        torch.testing.assert_close(result.square().mean(0), torch.ones(3).to(result))


@pytest.mark.parametrize("name", ["standardise", "pca", "whitened pca"])
@pytest.mark.parametrize("exponent", [60, 110, -15])
def test_units_do_not_matter(name: str, exponent: int) -> None:
    x = torch.randn(50, 3, generator=generator()) + 2
    expected = MAKERS[name](x) * (2.0**exponent if name == "pca" else 1)
    torch.testing.assert_close(MAKERS[name](x * 2.0**exponent), expected, rtol=1e-6, atol=0)


def test_a_mean_far_from_zero() -> None:
    x = torch.randn(300, 3, generator=generator(), dtype=torch.float64)
    z = standardise((x + 1e4).float())
    torch.testing.assert_close(z.double(), standardise(x), atol=3e-3, rtol=0)
    assert float(z.double().mean(0).abs().max()) < 1e-7


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_named(name: str, value: float) -> None:
    x = torch.ones(40, 3, 2)
    x[31, 1, 0] = value
    with pytest.raises(ValueError, match=rf"x must be finite, got {value} in row 31"):
        MAKERS[name](x)


def test_features_with_a_graph_and_the_callers_own_data() -> None:
    x = torch.randn(20, 3, generator=generator(), dtype=torch.float64)
    before = x.clone()
    for make in MAKERS.values():
        assert not make(x.clone().requires_grad_()).requires_grad
        make(x)
        assert torch.equal(x, before)
    array = np.arange(12.0).reshape(4, 3)[::-1].astype(">f8")
    assert torch.equal(standardise(array), standardise(torch.arange(12.0, dtype=torch.float64).view(4, 3).flip(0)))


class ByName(nn.Module):
    """A model that passes its head's input by name, once or twice."""

    def __init__(self, uses: int) -> None:
        super().__init__()
        self.head, self.uses = nn.Linear(3, 2), uses

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.head(input=x * (i + 1)) for i in range(self.uses))  # type: ignore[return-value]


def test_penultimate_of_a_head_called_by_keyword_or_twice() -> None:
    x = torch.randn(10, 3, generator=generator())
    model = ByName(1)
    assert torch.equal(penultimate(model, x, batch_size=4), x)
    twice = ByName(2)
    with pytest.raises(ValueError, match="penultimate: layer 'head' is used more than once in a pass"):
        penultimate(twice, x)
    assert twice.training and not twice.head._forward_pre_hooks


def test_penultimate_takes_what_loaders_give() -> None:
    x = torch.randn(10, 3, generator=generator())
    for loader in (DataLoader(TensorDataset(x), batch_size=4), DataLoader(x, batch_size=4)):  # type: ignore[arg-type, var-annotated]
        assert torch.equal(penultimate(nn.Linear(3, 2), loader), x)


def test_penultimate_moves_inputs_to_the_model() -> None:
    result = penultimate(nn.Linear(3, 2, device="meta"), torch.ones(10, 3))
    assert result.device.type == "meta" and result.shape == (10, 3)


class Sometimes(nn.Module):
    """A model that passes by its head where inputs are large."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x if bool((x > 1).any()) else self.head(x)


def test_penultimate_of_a_layer_that_is_not_always_used() -> None:
    x = torch.zeros(10, 3)
    assert len(penultimate(Sometimes(), x)) == 10
    x[7] = 2
    with pytest.raises(ValueError, match="penultimate: layer 'head' is not used in a pass"):
        penultimate(Sometimes(), x, batch_size=5)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_penultimate_of_arrays(dtype: type) -> None:
    """numpy's floats are double by default, a model's float."""
    x = np.arange(30, dtype=dtype).reshape(10, 3)
    model = nn.Linear(3, 2)
    wanted = torch.arange(30.0).view(10, 3)
    for given in (x, [x[:4], x[4:]], [[x]], DataLoader(TensorDataset(torch.from_numpy(x).float()), batch_size=3)):
        result = penultimate(model, given, batch_size=np.int64(4))
        assert result.dtype == torch.float32
        assert torch.equal(result, wanted)
    embedding = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
    tokens = np.array([[0, 1], [4, 4]], np.int32)
    assert torch.equal(penultimate(embedding, tokens), embedding[0].weight[torch.from_numpy(tokens)].flatten(1))


def test_a_frozen_batch_norm_stays_frozen_when_a_pass_fails() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].eval()
    mean = model[1].running_mean.clone()
    with pytest.raises(RuntimeError):
        penultimate(model, [torch.ones(5, 3), torch.ones(5, 2)])
    assert (model.training, model[1].training) == (True, False)
    assert not model[2]._forward_pre_hooks
    assert torch.equal(model[1].running_mean, mean)


@pytest.mark.parametrize("name", [*MAKERS, "penultimate"])
def test_the_callers_surroundings_change_no_features(name: str) -> None:
    x = torch.randn(20, 3, generator=generator())
    model = nn.Linear(3, 2)
    make = {**MAKERS, "penultimate": lambda x: penultimate(model, x)}[name]
    wanted = make(x)
    with torch.device("meta"):
        assert torch.equal(make(x), wanted)
        assert torch.equal(make(x.numpy()), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(make(x), wanted)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(make(x), wanted)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        made = make(x)
    nn.Linear(made.size(1), 1)(made).sum().backward()  # usable outside, where gradients are wanted
