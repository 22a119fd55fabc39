"""pysel/sae/model.py and train.py: the sparse autoencoder is its formula, learns, and keeps its promises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pysel
from pysel.sae import TopKSAE, evaluate_sae, geometric_median, normal, train_sae


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Steps this small are faster on one thread, on a busy machine by far."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sparse_data(n: int = 2000, d: int = 16, factors: int = 32, active: int = 2) -> Tensor:
    """Rows that are sums of few of many directions, around a centre that is not 0."""
    g = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(factors, d, generator=g), dim=1)
    chosen = torch.rand(n, factors, generator=g).topk(active, dim=1).indices
    strength = 1 + torch.rand(n, active, generator=g)
    return (strength[..., None] * directions[chosen]).sum(1) + 3


def dense_forward(sae: TopKSAE, x: Tensor) -> Tensor:
    """The formula with all activations written out."""
    z = torch.relu((x - sae.bias) @ sae.encoder.mT + sae.encoder_bias)
    threshold = z.topk(sae.k, dim=1).values[:, -1:]
    return torch.where(z >= threshold, z, 0) @ sae.decoder + sae.bias


@pytest.fixture
def sae() -> TopKSAE:
    model = TopKSAE(6, 20, 3, key=pysel.key(1), dtype=torch.float64)
    with torch.no_grad():  # away from the tied start, where encoder and decoder could be mixed up
        model.encoder += 0.3 * torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
        model.encoder_bias += 0.1
        model.bias += 0.5
    return model


def test_forward_is_the_formula(sae: TopKSAE) -> None:
    x = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    reconstruction, values, indices = sae(x)
    torch.testing.assert_close(reconstruction, dense_forward(sae, x))
    assert values.shape == indices.shape == (50, 3) and indices.dtype == torch.int64
    torch.testing.assert_close(sae.decode(*sae.encode(x)), reconstruction)


def test_gradients_are_the_formulas(sae: TopKSAE) -> None:
    x = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    wanted = [x, *sae.parameters()]
    sparse = torch.autograd.grad((sae(x).reconstruction - x).square().sum(), wanted)
    dense = torch.autograd.grad((dense_forward(sae, x) - x).square().sum(), wanted)
    for ours, formula in zip(sparse, dense, strict=True):
        assert float(formula.abs().max()) > 0
        torch.testing.assert_close(ours, formula)


def test_initial_model() -> None:
    model = TopKSAE(8, 32, 4, key=pysel.key(0))
    torch.testing.assert_close(model.decoder.norm(dim=1), torch.ones(32))
    assert torch.equal(model.encoder, model.decoder)
    again = TopKSAE(8, 32, 4, key=pysel.key(0))
    other = TopKSAE(8, 32, 4, key=pysel.key(1))
    assert torch.equal(model.decoder, again.decoder) and not torch.equal(model.decoder, other.decoder)


def test_initialisation_from_data() -> None:
    x = sparse_data()
    model = TopKSAE(16, 32, 4, key=pysel.key(0)).initialise_(x)
    torch.testing.assert_close(model.bias.data, geometric_median(x))
    torch.testing.assert_close(model.variance, x.var(0, correction=0).sum())
    model.eval()
    with torch.no_grad():
        expected = (x - model(x).reconstruction).square().sum() / (x - x.mean(0)).square().sum()
        torch.testing.assert_close(model.loss(x), expected)


def test_geometric_median() -> None:
    x = torch.randn(5001, 3, generator=torch.Generator().manual_seed(0)) + 2
    x[:500] += 1e4  # a tenth of the rows is wild: the mean moves by 1000, the median by little
    median = geometric_median(x)
    assert float((median - 2).abs().max()) < 0.5 < float((x.mean(0) - 2).abs().min())

    def cost(point: Tensor) -> float:
        return float((x - point).double().norm(dim=1).sum())

    for axis in torch.eye(3):
        assert cost(median) <= cost(median + 0.05 * axis) and cost(median) <= cost(median - 0.05 * axis)
    torch.testing.assert_close(geometric_median(torch.full((4, 2), 7.0)), torch.full((2,), 7.0))


def test_training_reduces_the_loss_and_explains_the_data() -> None:
    x = sparse_data()
    _, untrained = train_sae(x, 64, 4, epochs=0, key=pysel.key(0))
    model, report = train_sae(x, 64, 4, epochs=10, batch_size=64, lr=1e-2, key=pysel.key(0))
    assert report.losses[-1] < 0.5 * report.losses[0]
    assert report.explained_variance > 0.9 > untrained.explained_variance + 0.1
    assert report.fvu == 1 - report.explained_variance and 0 < report.l0 <= 4 and report.seconds > 0
    assert "explained variance" in str(report)
    torch.testing.assert_close(model.decoder.norm(dim=1), torch.ones(64))
    assert not model.training


def test_report_is_what_it_says() -> None:
    x = sparse_data(500)
    model, report = train_sae(x, 64, 4, epochs=1, key=pysel.key(0))
    with torch.no_grad():
        reconstruction, values, indices = model(x)
    fvu = (x - reconstruction).square().sum() / (x - x.mean(0)).square().sum()
    assert report.fvu == pytest.approx(float(fvu), rel=1e-4)
    assert report.l0 == pytest.approx(float((values > 0).sum(1).float().mean()))
    assert report.dead == 64 - len(indices[values > 0].unique())
    assert evaluate_sae(model, x, batch_size=7).fvu == pytest.approx(report.fvu)


def test_training_is_a_function_of_the_key() -> None:
    x = sparse_data(300)
    before = torch.get_rng_state()
    first, second, other = (train_sae(x, 32, 3, epochs=2, key=pysel.key(s))[0] for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.encoder, other.encoder)


def test_dead_units_are_found_and_revived() -> None:
    x = sparse_data(400)

    def dead_after_training(aux_weight: float) -> int:
        model = TopKSAE(16, 64, 4, key=pysel.key(0), dead_after=400, aux_weight=aux_weight).initialise_(x)
        with torch.no_grad():
            model.encoder[:32] *= 0.01  # half of the units are too faint to be among the k largest
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(100):
            if step == 4:
                assert set(range(32)) <= set(model.dead_units().tolist())
            optimiser.zero_grad()
            model.loss(x[step % 4 :: 4]).backward()
            model.project_decoder_grad_()
            optimiser.step()
            model.normalise_decoder_()
        return evaluate_sae(model.eval(), x).dead

    assert dead_after_training(1 / 32) < 16 < dead_after_training(0.0)


def test_evaluation_keeps_no_account_of_dead_units() -> None:
    model = TopKSAE(16, 32, 4, key=pysel.key(0)).eval()
    model.loss(sparse_data(50))
    assert int(model.silent.sum()) == 0
    model.train().loss(sparse_data(50))
    assert set(model.silent.tolist()) <= {0, 50} and int(model.silent.max()) == 50


def test_decoder_gradient_projection() -> None:
    model = TopKSAE(16, 32, 4, key=pysel.key(0))
    model.loss(sparse_data(50)).backward()
    model.project_decoder_grad_()
    assert model.decoder.grad is not None
    along = (model.decoder.grad * model.decoder).sum(1)
    torch.testing.assert_close(along, torch.zeros(32), atol=1e-5, rtol=0)
    assert float(model.decoder.grad.abs().max()) > 0


def test_constant_features() -> None:
    model, report = train_sae(torch.ones(20, 4), 8, 2, epochs=1, key=pysel.key(0))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert report.explained_variance in (0.0, 1.0)


def test_state_dict_round_trip(sae: TopKSAE) -> None:
    copy = TopKSAE(6, 20, 3, key=pysel.key(9), dtype=torch.float64)
    copy.load_state_dict(sae.state_dict())
    x = torch.randn(5, 6, dtype=torch.float64)
    assert torch.equal(copy(x).reconstruction, sae(x).reconstruction)


def test_progress_is_called() -> None:
    calls: list[tuple[int, float]] = []
    _, report = train_sae(
        sparse_data(100), 16, 2, epochs=3, key=pysel.key(0), progress=lambda *call: calls.append(call)
    )
    assert calls == list(enumerate(report.losses))


def test_normal_numbers() -> None:
    """Kolmogorov-Smirnov at alpha = 1e-6 on 100,000 draws: 2.69 / sqrt(n)."""
    x = normal((100, 1000), key=pysel.key(5), like=torch.empty(0, dtype=torch.float64)).flatten().sort().values
    rank = torch.arange(1, 100_001) / 100_000

    def distance(shift: float) -> float:
        return float((torch.special.ndtr(x + shift) - rank).abs().max())

    assert distance(0) < 2.69 / 100_000**0.5 < distance(0.05)
    assert torch.equal(normal((4,), key=pysel.key(5)), normal((4,), key=pysel.key(5)))
    assert normal((4,), key=pysel.key(5), like=torch.empty(0, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TopKSAE(4, 8, 9), ValueError, "TopKSAE: k must be between 1 and 8, got 9"),
        (lambda: TopKSAE(4, 8, 0), ValueError, "TopKSAE: k must be between 1 and 8, got 0"),
        (lambda: TopKSAE(0, 8, 2), ValueError, "TopKSAE: in_features must be at least 1, got 0"),
        (lambda: TopKSAE(4, 8.0, 2), TypeError, "TopKSAE: num_factors must be an int, got float"),  # type: ignore[arg-type]
        (lambda: TopKSAE(4, 8, 2, aux_k=9), ValueError, "aux_k must be between 1 and 8, got 9"),
        (lambda: train_sae(torch.ones(3), 8, 2), ValueError, r"features must be a matrix .*\[3\]"),
        (lambda: train_sae(torch.ones(0, 3), 8, 2), ValueError, r"at least one row, got shape \[0, 3\]"),
        (lambda: train_sae(torch.ones(3, 3).long(), 8, 2), TypeError, "features must be .*int64"),
        (lambda: train_sae(torch.full((3, 3), torch.nan), 8, 2), ValueError, "features must be finite"),
        (
            lambda: train_sae(torch.ones(3, 3), 8, 2, epochs=-1),
            ValueError,
            "epochs must be at least 0, got -1",
        ),
        (lambda: train_sae(torch.ones(3, 3), 8, 2, lr=0), ValueError, "lr must be positive, got 0"),
        (lambda: geometric_median(torch.ones(2, 2, 2)), ValueError, r"x must be a matrix .*\[2, 2, 2\]"),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
