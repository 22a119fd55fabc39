"""pysel/sae/model.py: the sparse autoencoder is its formula, and keeps its promises."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

import pysel
from pysel.sae import TopKSAE, evaluate_sae, geometric_median, normal
from pysel.sae.model import power_of_two

pytestmark = pytest.mark.usefixtures("one_thread")


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
    torch.testing.assert_close(model.variance, x.double().var(0, correction=0).sum(), rtol=1e-6, atol=0)
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
    x = 1e-4 * torch.empty(4000, 3).exponential_(generator=torch.Generator().manual_seed(0))
    x[0] = 1  # far outside the scale of all others, which nothing is to blur
    median = geometric_median(x)
    for axis in torch.eye(3):
        assert cost(median) < cost(median + 3e-6 * axis) and cost(median) < cost(median - 3e-6 * axis)


def test_power_of_two() -> None:
    values = torch.tensor([0.0, 1.0, 3.9, 4.0, 5.0, 0.3, 2.0**-130])
    assert [float(power_of_two(x)) for x in values] == [1, 1, 2, 4, 4, 0.25, 2.0**-130]


def test_dead_units_are_found_and_revived() -> None:
    x = sparse_data(400)

    def dead_after_training(revive: str | None) -> int:
        model = TopKSAE(16, 64, 4, key=pysel.key(0), dead_after=400, revive=revive).initialise_(x)
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

    assert dead_after_training("aux") < 16 < dead_after_training(None)
    assert dead_after_training("dead") < 16


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


def test_the_loss_in_half_precision() -> None:
    """At a variance of 28,320 rows times variance is beyond float16: the loss was 0.0 for 0.746."""
    x = sparse_data(512)
    x = (x - x.mean(0)) / x.std(0) * (28_320 / 16) ** 0.5
    model = TopKSAE(16, 64, 4, key=0).initialise_(x).eval()
    assert float(model.variance) == pytest.approx(28_320, rel=0.01)
    expected = float(model.loss(x).detach())
    assert 0.1 < expected < 1
    assert float(model.half().loss(x.half()).detach()) == pytest.approx(expected, rel=0.01)
    assert float(model.bfloat16().loss(x.bfloat16()).detach()) == pytest.approx(expected, rel=0.05)


def test_leading_dimensions(sae: TopKSAE) -> None:
    x = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flat = sae(x.flatten(0, 1))
    reconstruction, values, indices = sae(x)
    assert torch.equal(reconstruction.flatten(0, 1), flat.reconstruction) and indices.shape == (2, 3, 3)
    assert torch.equal(sae.decode(values, indices), reconstruction)
    assert torch.equal(sae(x[0, 0]).values, values[0, 0]) and sae(x[0, 0]).reconstruction.shape == (6,)
    torch.testing.assert_close(sae.eval().loss(x), sae.loss(x.flatten(0, 1)))


def test_tied_is_one_parameter() -> None:
    x = sparse_data(20)
    model = TopKSAE(16, 64, 4, tied=True, key=0)
    assert model.encoder is model.decoder and len(list(model.parameters())) == 3
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).double()):
        assert copied.encoder is copied.decoder
    other = TopKSAE(16, 64, 4, tied=True)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x).reconstruction, model(x).reconstruction) and "tied" in repr(other)


@pytest.mark.parametrize("tied", [False, True])
def test_magnitudes_with_their_signs(tied: bool) -> None:
    """Against the formula with all activations written out, forward and backward."""
    model = TopKSAE(6, 20, 3, activation="abs", tied=tied, key=1, dtype=torch.float64)
    with torch.no_grad():
        model.decoder += 0.3 * torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
        model.encoder_bias += 0.1
        model.bias += 0.5
    x = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def formula() -> Tensor:
        z = (x - model.bias) @ model.encoder.mT + model.encoder_bias
        threshold = z.abs().topk(3, dim=1).values[:, -1:]
        return torch.where(z.abs() >= threshold, z, 0) @ model.decoder + model.bias

    reconstruction, values, indices = model(x)
    torch.testing.assert_close(reconstruction, formula())
    assert bool((values < 0).any()) and bool((values > 0).any())
    assert int(model.counts(values, indices).sum()) == 150  # negative values are activity too
    wanted = list(model.parameters())
    ours = torch.autograd.grad((model(x).reconstruction - x).square().sum(), wanted)
    dense = torch.autograd.grad((formula() - x).square().sum(), wanted)
    for a, b in zip(ours, dense, strict=True):
        torch.testing.assert_close(a, b)


def test_export(sae: TopKSAE) -> None:
    x = torch.randn(5, 6, dtype=torch.float64)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(sae.eval(), (x,)), buffer)
    buffer.seek(0)
    assert torch.equal(torch.export.load(buffer).module()(x)[0], sae(x).reconstruction)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_tracing(sae: TopKSAE) -> None:
    x = torch.randn(5, 6, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"TopKSAE: torch.jit.trace records no gradients: trace it under torch.no"):
        torch.jit.trace(sae, x)
    with torch.no_grad():
        traced = torch.jit.trace(sae, x)
    assert torch.equal(traced(x[:3])[0], sae(x[:3]).reconstruction)


def test_compiled_whole(sae: TopKSAE) -> None:
    x = torch.randn(5, 6, dtype=torch.float64)
    compiled = torch.compile(sae, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x).reconstruction, sae(x).reconstruction)


def replica() -> TopKSAE:
    model = TopKSAE(16, 32, 2, key=0, dead_after=60, aux_k=4, dtype=torch.float64)
    model.bias.data += 3
    return model


def train_replica(rank: int, folder: str) -> None:
    """A rank of two, each with half of every batch."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = replica()
    model.process_group = torch.distributed.group.WORLD
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    for batch in sparse_data(240).double().split(40):
        optimiser.zero_grad()
        wrapped(batch[rank * 20 : rank * 20 + 20], loss=True).backward()
        optimiser.step()
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_replicas_stay_one_model(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_replica, (str(tmp_path),), nprocs=2)
    single = replica()
    optimiser = torch.optim.SGD(single.parameters(), lr=0.5)
    for batch in sparse_data(240).double().split(40):
        optimiser.zero_grad()
        single.loss(batch).backward()
        optimiser.step()
    assert single.dead_units().numel() > 0  # so that the account of the dead had a say
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt")
        for name, value in single.state_dict().items():
            torch.testing.assert_close(state[name], value, msg=f"rank {rank}: {name}")


def dead_model(revive: str | None, x: Tensor) -> TopKSAE:
    model = TopKSAE(16, 32, 4, key=pysel.key(0), dead_after=1, aux_k=8, aux_weight=0.25, revive=revive).initialise_(x)
    with torch.no_grad():
        model.encoder[:3] *= 0.01  # too faint to be among the k largest
        model.encoder_bias[:3] = torch.tensor([-1.0, 0.5, 0.01])
        model.encoder_bias[3:] = 3.0
    return model


def test_auxiliary_loss_is_the_formula_and_damped_by_the_number_of_the_dead() -> None:
    x = sparse_data(50)
    model = dead_model("aux", x)
    with torch.no_grad():
        reconstruction, _, _ = model(x)
        total = model.loss(x)
        dead = model.dead_units()
        assert {0, 1, 2} <= set(dead.tolist()) and len(dead) < 8
        plain = model.eval().loss(x)
        z = torch.relu((x - model.bias) @ model.encoder[dead].mT + model.encoder_bias[dead])
        missing = (x - reconstruction - z @ model.decoder[dead]).square().sum() / (50 * model.variance)
        torch.testing.assert_close(total, (plain + 0.25 * len(dead) / 8 * missing).float())


def test_revival_of_the_paper_is_the_formula() -> None:
    x = sparse_data(50)
    model = dead_model("dead", x)
    total = model.loss(x)
    dead = model.dead_units()
    plain = model.eval().loss(x)
    rebuilt = torch.zeros((), dtype=torch.float64)
    for j in dead.tolist():
        pre = (x - model.bias).double() @ model.encoder[j].double() + model.encoder_bias[j]
        best = int(pre.argmax())
        rebuilt = rebuilt + (x[best] - model.bias - pre[best] * model.decoder[j]).square().sum()
    torch.testing.assert_close(total.double(), plain.double() + 0.25 * rebuilt / (50 * model.variance))
    gradients = torch.autograd.grad(total - plain, [model.encoder, model.encoder_bias, model.bias, model.decoder])
    for name, gradient in zip(("encoder", "encoder_bias", "bias", "decoder"), gradients, strict=True):
        moved = gradient.abs().reshape(len(gradient), -1).amax(1) > 1e-7
        if name == "bias":
            assert not moved.any()  # only the dead learn
        else:
            assert set(torch.nonzero(moved).flatten().tolist()) == set(dead.tolist())


def test_none_are_revived_on_demand() -> None:
    x = sparse_data(50)
    model = dead_model(None, x)
    assert torch.equal(model.loss(x), model.eval().loss(x)) and model.dead_units().numel() >= 3


def test_normal_numbers() -> None:
    """Kolmogorov-Smirnov at alpha = 1e-6 on 100,000 draws: 2.69 / sqrt(n)."""
    x = normal((100, 1000), key=pysel.key(5), like=torch.empty(0, dtype=torch.float64)).flatten().sort().values
    rank = torch.arange(1, 100_001) / 100_000

    def distance(shift: float) -> float:
        return float((torch.special.ndtr(x + shift) - rank).abs().max())

    assert distance(0) < 2.69 / 100_000**0.5 < distance(0.05)
    assert torch.equal(normal((4,), key=pysel.key(5)), normal((4,), key=pysel.key(5)))
    assert normal((4,), key=pysel.key(5), like=torch.empty(0, dtype=torch.bfloat16)).dtype == torch.bfloat16


# --- State ---------------------------------------------------------------------------


def snapshot(model: TopKSAE) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def state_of(**options: Any) -> dict[str, Tensor]:
    model = TopKSAE(**{"in_features": 6, "num_factors": 20, "k": 3, "key": 1, **options})
    model.spread.fill_(2)
    return snapshot(model)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (state_of(k=4), "k must be 3, got 4"),
        (state_of(activation="abs"), "activation must be relu, got abs"),
        (state_of(tied=True), "tied must be False, got True"),
        (state_of(num_factors=21), r"decoder must have shape \[20, 6\], got \[21, 6\]"),
        (state_of(in_features=1), r"bias must have shape \[6\], got \[1\]"),
        ({k: v for k, v in state_of().items() if k != "bias"}, "bias must be there, got none"),
        ({k: v for k, v in state_of().items() if k != "silent"}, "silent must be there, got none"),
        ({**state_of(), "scale": torch.ones(1)}, "scale is unknown"),
        ({**state_of(), "bias": [0.0] * 6}, "bias must be a Tensor, got list"),
        ({**state_of(), "_extra_state": torch.ones(1)}, r"_extra_state must be int64 \[3\]"),
        ({**state_of(), "_extra_state": "k=3"}, r"_extra_state must be int64 \[3\]"),
    ],
)
def test_a_state_of_something_else_is_refused_and_nothing_changes(state: dict[str, Any], message: str) -> None:
    model = TopKSAE(6, 20, 3, key=0)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=f"TopKSAE: state_dict: .*{message}"):
        model.load_state_dict(state)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_tied_model_takes_one_matrix_only() -> None:
    model = TopKSAE(6, 20, 3, tied=True, key=0)
    apart = {**snapshot(model), "encoder": torch.zeros(20, 6)}
    with pytest.raises(RuntimeError, match="encoder must equal decoder, which it is tied to"):
        model.load_state_dict(apart)
    for assign in (False, True):
        model.load_state_dict(state_of(tied=True), assign=assign)
        assert model.encoder is model.decoder and torch.equal(model.decoder, state_of(tied=True)["decoder"])


def test_states_from_before_say_less_and_load() -> None:
    state = state_of(k=4)
    del state["_extra_state"]
    model = TopKSAE(6, 20, 3, key=0)
    model.load_state_dict(state)
    assert torch.equal(model.decoder, state["decoder"]) and float(model.spread) == 2


def test_a_part_of_a_state_loads_without_strict() -> None:
    model = TopKSAE(6, 20, 3, key=0)
    missing, unexpected = model.load_state_dict({"bias": torch.ones(6), "scale": torch.ones(1)}, strict=False)
    assert set(missing) == {"decoder", "encoder", "encoder_bias", "silent", "spread"} and unexpected == ["scale"]
    assert torch.equal(model.bias, torch.ones(6))
    with pytest.raises(RuntimeError, match="k must be 3, got 4"):
        model.load_state_dict(state_of(k=4), strict=False)


@pytest.mark.parametrize("tied", [False, True])
def test_a_state_goes_through_everything_that_carries_states(tied: bool, tmp_path: Path) -> None:
    model = TopKSAE(6, 20, 3, tied=tied, key=1)
    x = torch.randn(5, 6)
    expected = model(x).reconstruction

    def loaded(load: Any) -> Tensor:
        other = TopKSAE(6, 20, 3, tied=tied, key=2)
        load(other)
        return other(x).reconstruction

    torch.save(model.state_dict(), tmp_path / "torch.pt")
    assert torch.equal(
        loaded(lambda m: m.load_state_dict(torch.load(tmp_path / "torch.pt", weights_only=True))), expected
    )
    safetensors.torch.save_file(snapshot(model), tmp_path / "plain.safetensors")
    assert torch.equal(
        loaded(lambda m: m.load_state_dict(safetensors.torch.load_file(tmp_path / "plain.safetensors"))), expected
    )
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    assert torch.equal(loaded(lambda m: safetensors.torch.load_model(m, tmp_path / "model.safetensors")), expected)
    within = torch.nn.ModuleDict({"sae": model})
    outer = torch.nn.ModuleDict({"sae": TopKSAE(6, 20, 3, tied=tied, key=2)})
    outer.load_state_dict(within.state_dict())
    assert torch.equal(outer["sae"](x).reconstruction, expected)
    with pytest.raises(RuntimeError, match="k must be 2, got 3"):
        torch.nn.ModuleDict({"sae": TopKSAE(6, 20, 2, tied=tied)}).load_state_dict(within.state_dict())
    copied = copy.deepcopy(model)
    copied.load_state_dict(pickle.loads(pickle.dumps(model)).state_dict())
    assert torch.equal(copied(x).reconstruction, expected)
    state = model.state_dict(keep_vars=True)
    assert torch.equal(torch.func.functional_call(TopKSAE(6, 20, 3, tied=tied), state, (x,)).reconstruction, expected)
    with torch.device("meta"):
        empty = TopKSAE(6, 20, 3, tied=tied, key=2)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(x).reconstruction, expected)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TopKSAE(4, 8, 9), ValueError, "TopKSAE: k must be between 1 and 8, got 9"),
        (lambda: TopKSAE(4, 8, 0), ValueError, "TopKSAE: k must be between 1 and 8, got 0"),
        (lambda: TopKSAE(0, 8, 2), ValueError, "TopKSAE: in_features must be at least 1, got 0"),
        (lambda: TopKSAE(4, 8.0, 2), TypeError, "TopKSAE: num_factors must be an int, got float"),  # type: ignore[arg-type]
        (lambda: TopKSAE(4, 8, 2, aux_k=9), ValueError, "aux_k must be between 1 and 8, got 9"),
        (
            lambda: TopKSAE(4, 8, 2, key=torch.ones(3).long()),
            ValueError,
            r"TopKSAE: key must have shape \[2\], got \[3\]",
        ),
        (lambda: TopKSAE(4, 8, 2, key="a"), TypeError, "TopKSAE: key must be a Tensor or an int, got str"),  # type: ignore[arg-type]
        (lambda: TopKSAE(4, 8, 2, revive="auxk"), ValueError, "revive must be aux or dead, got 'auxk'"),
        (
            lambda: TopKSAE(4, 8, 2, aux_weight=torch.nan),
            ValueError,
            "aux_weight must be finite and at least 0, got nan",
        ),
        (lambda: TopKSAE(4, 8, 2)(torch.ones(3, 5)), ValueError, r"TopKSAE: x must be \[..., 4\], got shape \[3, 5\]"),
        (lambda: TopKSAE(4, 8, 2)(torch.ones(3, 4).long()), TypeError, "TopKSAE: x must be .* got torch.int64"),
        (lambda: geometric_median(torch.ones(2, 2, 2)), ValueError, r"x must be a matrix .*\[2, 2, 2\]"),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
