"""pysel/sae/train.py: what is learned, from any features, in any surroundings."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pysel
from pysel.sae import Rows, SAEReport, TopKSAE, evaluate_sae, geometric_median, load_sae, normal, save_sae, train_sae
from tests.test_sae_model import sparse_data

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:train_sae. the autoencoder explains only"),
]


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


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 3e38, 1e-40])
def test_constant_features_are_explained_by_the_bias(value: float) -> None:
    model, report = train_sae(torch.full((20, 4), value), 8, 2, epochs=1, key=pysel.key(0))
    assert report.explained_variance == 1.0 and report.l0 == 0
    assert torch.equal(model.bias.detach(), torch.full((4,), value))


def test_progress_is_called() -> None:
    calls: list[tuple[int, float]] = []
    _, report = train_sae(
        sparse_data(100), 16, 2, epochs=3, key=pysel.key(0), progress=lambda *call: calls.append(call)
    )
    assert calls == list(enumerate(report.losses))


def trained(x: Any, **options: Any) -> tuple[TopKSAE, SAEReport]:
    return train_sae(x, 64, 4, epochs=6, batch_size=64, lr=2e-2, key=0, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_training_is_in_float32_whatever_the_features_dtype(dtype: torch.dtype) -> None:
    """Adam in half precision makes every weight NaN in one step."""
    x = sparse_data().to(dtype)
    model, report = trained(x)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert report.explained_variance > 0.9
    assert trained(x.float())[1].explained_variance == pytest.approx(report.explained_variance, abs=0.02)
    for batch in (x[:5], x[:5].float()):  # either kind is taken
        assert model(batch).reconstruction.dtype == torch.float32


@pytest.mark.parametrize("exponent", [-60, 64])
def test_features_in_other_units_give_the_same_model_in_those_units(exponent: int) -> None:
    """Squares of 2^64, 1.8e19, overflow float32, and so did the variance."""
    unit = 2.0**exponent
    model, report = trained(sparse_data())
    scaled, scaled_report = trained(sparse_data() * unit)
    assert torch.equal(scaled.encoder, model.encoder) and torch.equal(scaled.decoder, model.decoder)
    for name in ("bias", "encoder_bias", "spread"):
        torch.testing.assert_close(getattr(scaled, name), getattr(model, name) * unit, rtol=1e-6, atol=0)
    assert scaled_report.losses == report.losses
    assert scaled_report.explained_variance == pytest.approx(report.explained_variance, abs=1e-6)
    fvu = scaled.loss(sparse_data() * unit)
    assert float(fvu.detach()) == pytest.approx(report.fvu, rel=1e-3)


def test_a_mean_far_from_zero_costs_no_accuracy_or_is_refused() -> None:
    x = sparse_data().double()
    _, near = trained(x)
    _, far = trained(x + 1e4)
    assert far.explained_variance == pytest.approx(near.explained_variance, abs=0.02)
    with pytest.raises(ValueError, match=r"features must be centred .* values near 1.0e\+06 vary by \d.\de-01 only"):
        trained(x + 1e6)


@pytest.mark.parametrize("factor", [1e31, 1e-32])
def test_features_beyond_float32_are_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="train_sae: features must lie within 1e30 and vary by 1e-30 to 1e30"):
        train_sae(sparse_data().double() * factor, 64, 4)


def test_a_loss_that_is_not_finite_raises_at_once() -> None:
    with pytest.raises(FloatingPointError, match=r"the loss became (nan|inf) at step \d+ of 5: try an lr below 1e\+38"):
        train_sae(sparse_data(320), 64, 4, epochs=1, batch_size=64, lr=1e38, key=0)


def test_a_poor_model_warns_and_a_good_one_does_not() -> None:
    x = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))  # nothing sparse about it
    with pytest.warns(
        UserWarning, match=r"train_sae: the autoencoder explains only \d\d.\d% of the variance of features"
    ):
        train_sae(x, 32, 1, key=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(sparse_data())
        train_sae(x, 32, 1, epochs=0, key=0)  # nobody expects an untrained one to be good


def test_rows_that_are_not_finite_are_named() -> None:
    x = sparse_data(100)
    x[77, 3] = torch.nan
    for source in (x, x.numpy(), list(x.split(30))):
        with pytest.raises(ValueError, match="train_sae: features must be finite, got nan in row 77"):
            train_sae(source, 16, 2)
        with pytest.raises(ValueError, match="train_sae: features must be finite, got nan in row 77"):
            train_sae(source, 4, 2, max_rows=4, key=0)  # whether or not it is in the sample
        with pytest.raises(ValueError, match="evaluate_sae: features must be finite, got nan in row 77"):
            evaluate_sae(TopKSAE(16, 16, 2), source)


def test_every_source_trains_the_same_model(tmp_path: Path) -> None:
    x = sparse_data(300)
    np.save(tmp_path / "x.npy", x.numpy())
    reference, report = train_sae(x, 32, 3, max_rows=200, epochs=2, key=3)
    for source in (x.numpy(), np.load(tmp_path / "x.npy", mmap_mode="r"), list(x.split(77)), Rows(x, "f", "x")):
        model, again = train_sae(source, 32, 3, max_rows=200, epochs=2, key=3)
        for name, value in reference.state_dict().items():
            assert torch.equal(value, model.state_dict()[name])
        assert (again.losses, again.explained_variance) == (report.losses, report.explained_variance)


def test_training_sees_a_sample_and_judges_on_other_rows() -> None:
    """Rows of a kind that is seen in training only by a sample of all."""
    x = sparse_data(2000)
    seen: list[Tensor] = []

    class Watched(Rows):
        def take(self, indices: Tensor) -> Tensor:
            seen.append(indices)
            return super().take(indices)

    _, report = train_sae(Watched(x, "f", "x"), 32, 3, max_rows=500, epochs=1, key=0)
    sample, judged = seen
    assert len(sample) == len(judged) == report.rows == 500
    assert not set(sample.tolist()) & set(judged.tolist())
    assert torch.equal(sample, sample.unique()) and 800 < float(sample.double().mean()) < 1200
    train_sae(Watched(x, "f", "x"), 32, 3, max_rows=500, epochs=1, key=1)
    assert not torch.equal(seen[2], sample)
    _, report = train_sae(Watched(x, "f", "x"), 32, 3, max_rows=None, epochs=1, key=0)
    assert torch.equal(seen[4], torch.arange(2000)) and report.rows == 2000


def test_surroundings_do_not_reach_in() -> None:
    x = sparse_data(200)

    def weights(features: Tensor) -> Tensor:
        return train_sae(features, 32, 3, epochs=2, key=0)[0].encoder.detach()

    expected = weights(x)
    assert torch.equal(weights(x.clone().requires_grad_() * 1), expected)  # features that carry a graph
    for around in ("meta", "float64", "no_grad", "inference_mode", "autocast"):
        with surroundings(around):
            assert torch.equal(weights(x * 1), expected)
    with torch.device("meta"):
        assert torch.equal(weights(x.numpy()), expected)


def surroundings(name: str) -> AbstractContextManager[Any]:
    """What a caller may have set around a call."""

    @contextmanager
    def float64() -> Iterator[None]:
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)

    return {
        "meta": lambda: torch.device("meta"),
        "float64": float64,
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    }[name]()


@pytest.mark.parametrize("around", ["meta", "float64", "no_grad", "inference_mode"])
def test_surroundings_do_not_change_what_is_measured_and_kept(around: str, tmp_path: Path) -> None:
    x = sparse_data(200)
    model, _ = train_sae(x, 32, 3, epochs=2, key=0)

    def everything() -> list[Any]:
        report = evaluate_sae(model, x * 1)
        save_sae(model, tmp_path)
        start = copy.deepcopy(model).train().initialise_(x)
        return [
            report.explained_variance,
            report.l0,
            load_sae(tmp_path)(x).reconstruction,
            load_sae(tmp_path, dtype=torch.float64).bias,
            start.bias,
            start.spread,
            start.loss(x),
            start.silent,
            geometric_median(x),
            normal((3,), key=1),
            Rows(x.tolist(), "f", "x").take(torch.arange(3, device="cpu")),
            *Rows(x.numpy(), "f", "x").batches(100),
        ]

    expected = everything()
    with surroundings(around):
        got = everything()
    for a, b in zip(got, expected, strict=True):
        if isinstance(b, Tensor):
            assert a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
        else:
            assert a == b


@pytest.mark.parametrize("of", [np.int64, np.int32, np.uint8, torch.tensor, np.array], ids=lambda of: of.__name__)
def test_numbers_of_any_kind(of: Any) -> None:
    x = sparse_data(100)
    whole = {"max_rows": 80, "epochs": 2, "batch_size": 40, "aux_k": 3, "dead_after": 90}
    real = {"lr": 0.01, "aux_weight": 0.25}
    expected, _ = train_sae(x, 16, 2, key=0, **whole, **real)  # type: ignore[arg-type]
    to_real = of if of in (torch.tensor, np.array) else np.float64
    if of is torch.tensor:
        to_real = lambda value: torch.tensor(value, dtype=torch.float64)  # noqa: E731
    given = {name: of(value) for name, value in whole.items()} | {n: to_real(v) for n, v in real.items()}
    model, report = train_sae(x, of(16), of(2), key=0, **given)
    assert torch.equal(model.encoder, expected.encoder)
    assert (type(model.k), type(model.aux_k), type(model.dead_after), type(model.num_factors)) == (int,) * 4
    assert type(model.aux_weight) is float and type(report.num_factors) is int
    assert evaluate_sae(model, x, batch_size=of(7)).l0 == evaluate_sae(model, x).l0
    assert torch.equal(geometric_median(x, of(3), to_real(0.5), of(20)), geometric_median(x, 3, 0.5, 20))


def test_the_least_values_that_are_allowed() -> None:
    x = sparse_data(6)
    least = {"max_rows": 1, "epochs": 1, "batch_size": 1, "aux_k": 1, "dead_after": 1, "aux_weight": 0}
    model, report = train_sae(x, 1, 1, key=0, **least)  # type: ignore[arg-type]
    assert (model.num_factors, model.k, len(report.losses)) == (1, 1, 1)
    assert evaluate_sae(model, x, batch_size=1).l0 == evaluate_sae(model, x).l0
    assert torch.equal(geometric_median(x, 0, 0, 1), x[0])


class Unread:
    """Features that nobody may read yet."""

    def __iter__(self) -> Iterator[Tensor]:
        raise AssertionError("read before the options were checked")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 17}, ValueError, "k must be between 1 and 16, got 17"),
        ({"k": 2.0}, TypeError, "k must be an int, got float"),
        ({"num_factors": 0}, ValueError, "num_factors must be at least 1, got 0"),
        ({"num_factors": True}, TypeError, "num_factors must be an int, got bool"),
        ({"activation": "gelu"}, ValueError, "activation must be relu or abs, got 'gelu'"),
        ({"revive": "yes"}, ValueError, "revive must be aux or dead, got 'yes'"),
        ({"aux_k": 17}, ValueError, "aux_k must be between 1 and 16, got 17"),
        ({"aux_weight": -1}, ValueError, "aux_weight must be finite and at least 0, got -1"),
        ({"dead_after": 0}, ValueError, "dead_after must be at least 1, got 0"),
        ({"max_rows": 0}, ValueError, "max_rows must be at least 1, got 0"),
        ({"epochs": -1}, ValueError, "epochs must be at least 0, got -1"),
        ({"batch_size": 1.5}, TypeError, "batch_size must be an int, got float"),
        ({"lr": torch.inf}, ValueError, "lr must be positive and finite, got inf"),
        ({"lr": torch.nan}, ValueError, "lr must be positive and finite, got nan"),
        ({"lr": 0}, ValueError, "lr must be positive and finite, got 0"),
        ({"lr": "fast"}, TypeError, "lr must be a number, got str"),
        ({"key": 0.5}, TypeError, "key must be a Tensor or an int, got float"),
        ({"progress": 3}, TypeError, "progress must be True, False or a function, got int"),
        ({"device": "gpu0"}, RuntimeError, "gpu0"),
    ],
)
def test_options_are_checked_before_anything_is_read(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train_sae(Unread(), **{"num_factors": 16, "k": 2, **options})


def test_an_int_key_is_a_key() -> None:
    x = sparse_data(100)
    for key in (5, np.int64(5)):
        assert torch.equal(
            train_sae(x, 16, 2, epochs=1, key=key)[0].encoder,
            train_sae(x, 16, 2, epochs=1, key=pysel.key(5))[0].encoder,
        )
        assert torch.equal(TopKSAE(4, 8, 2, key=key).encoder, TopKSAE(4, 8, 2, key=pysel.key(5)).encoder)


def test_a_bar_shows_where_it_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    x = sparse_data(100)

    def written(terminal: bool, progress: bool | None) -> str:
        stream = io.StringIO()
        stream.isatty = lambda: terminal  # type: ignore[method-assign]
        monkeypatch.setattr("sys.stderr", stream)
        train_sae(x, 16, 2, epochs=3, key=0, progress=progress)
        return stream.getvalue()

    assert "3/3" in written(True, True)
    assert "".join(written(*never) for never in ((True, None), (True, False), (False, True))) == ""


def test_a_tied_model_learns_and_stays_tied() -> None:
    model, report = trained(sparse_data(), tied=True)
    assert model.encoder is model.decoder
    assert report.explained_variance > 0.8
    torch.testing.assert_close(model.encoder.norm(dim=1), torch.ones(64))


def test_the_form_of_the_paper_learns() -> None:
    x = sparse_data()
    options = {"activation": "abs", "tied": True, "revive": "dead", "dead_after": 500}
    _, untrained = train_sae(x, 64, 4, epochs=0, key=0, **options)  # type: ignore[arg-type]
    model, report = trained(x, **options)
    assert report.explained_variance > 0.6 > untrained.explained_variance + 0.2 and report.l0 == 4
    assert "activation='abs', tied=True" in repr(model)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: train_sae(torch.ones(3), 8, 2), ValueError, r"features must be a matrix .*\[3\]"),
        (lambda: train_sae(torch.ones(0, 3), 8, 2), ValueError, r"at least one row, got shape \[0, 3\]"),
        (lambda: train_sae(torch.ones(3, 3).long(), 8, 2), TypeError, "features must be .*int64"),
        (
            lambda: train_sae(torch.full((8, 3), torch.nan), 8, 2),
            ValueError,
            "features must be finite, got nan in row 0",
        ),
        (
            lambda: train_sae(torch.ones(7, 3), 8, 2),
            ValueError,
            "num_factors must be at most the 7 rows of features, got 8",
        ),
        (
            lambda: train_sae(torch.ones(9, 3), 8, 2, max_rows=7),
            ValueError,
            "num_factors must be at most max_rows, 7, got 8",
        ),
        (lambda: train_sae(torch.ones(9, 3), 8, 2, key=torch.ones(2)), TypeError, "train_sae: key must be int64"),
        (lambda: evaluate_sae(TopKSAE(4, 8, 2), torch.ones(3, 5)), ValueError, r"must be \[N, 4\], got \[3, 5\]"),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
