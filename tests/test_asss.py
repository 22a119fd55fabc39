"""pysel/selection/learned/asss.py: who is chosen, what the two networks learn, and how training is driven."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import pysel
from pysel.selection import ASSS, performance_retention_rate, quotas
from pysel.selection.learned.batches import Tensors
from tests.learned import best_only

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy_task(seed: int, n: int = 600, noise: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Two classes with a gap between them, a share of labels wrong: inputs, labels, which are wrong."""
    g = generator(seed)
    x = torch.randn(n, 8, generator=g)
    y = (x[:, 0] > 0).long()
    x[:, 0] += 2.0 * y - 1
    wrong = torch.rand(n, generator=g) < noise
    return x, torch.where(wrong, 1 - y, y), wrong


def linear_network(seed: int, outputs: int = 2) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Linear(8, outputs)

    return make


def share_of_wrong_labels(seed: int, keep_ratio: float, **options: Any) -> float:
    x, y, wrong = noisy_task(seed)
    selector = best_only(keep_ratio, batch_size=100, key=pysel.key(seed), **options)
    chosen = selector.fit(x, y, linear_network(seed)).select()
    assert len(chosen) == math.ceil(600 * keep_ratio)
    return float(wrong[chosen].float().mean())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalise": True},
        {"attenuation": "input"},
        {"hard": True},
        {"attenuation": "input", "sparsity": "mean", "sparsity_weight": 0.1},
        {"sparsity": "absolute"},
        {"gate": "khot"},
        {"gate": "khot", "hard": True},
        {"tau_schedule": "cosine"},
        {"fidelity": "lookahead"},
        {"fidelity": "lookahead", "layers": "last", "normalise": True},
    ],
    ids=str,
)
def test_asss_leaves_out_wrong_labels(seed: int, options: dict[str, Any]) -> None:
    """A random half has 30 % wrong labels, with standard error 2.6 points; ASSS keeps nearly none."""
    assert share_of_wrong_labels(seed, 0.5, **options) < 0.05


@pytest.mark.parametrize("seed", range(2))
def test_the_adversarial_game_keeps_what_the_cooperative_one_drops(seed: int) -> None:
    assert share_of_wrong_labels(seed, 0.3, game="adversarial") > 0.6


def test_an_asss_that_cannot_learn_is_random() -> None:
    """The control for the tests above: without learning, the subset has the data's share of wrong labels."""
    shares = [share_of_wrong_labels(seed, 0.5, selector_lr=1e-12, epochs=3) for seed in range(3)]
    assert 0.2 < sum(shares) / 3 < 0.4


def test_asss_with_a_selector_network_that_sees_labels() -> None:
    x, y, wrong = noisy_task(0)
    seen = torch.cat([x, F.one_hot(y, 2)], 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
    selector = best_only(0.5, batch_size=100, selector=network, key=pysel.key(0))
    chosen = selector.fit(x, y, linear_network(0), selector_inputs=seen).select()
    assert float(wrong[chosen].float().mean()) < 0.05


@pytest.mark.parametrize("real", [False, True], ids=["classes", "real target"])
def test_the_default_network_judges_samples_that_it_has_not_seen(real: bool) -> None:
    """It sees labels, and so can tell wrong ones among other samples: AUC far from that of a guess, 0.5 +- 0.02."""
    (x, y, wrong), (new_x, new_y, new_wrong) = noisy_task(0), noisy_task(1)
    if real:
        y, new_y = (2.0 * t - 1 for t in (y, new_y))
    selector = best_only(0.5, batch_size=100, selector="network", see_labels=True, key=0)
    selector.fit(x, y, linear_network(0, 1 if real else 2))
    assert float(wrong[selector.select()].float().mean()) < 0.05
    score = selector.score(new_x, new_y)
    good, bad = score[~new_wrong], score[new_wrong]
    assert float((good[:, None] > bad).double().mean()) > 0.95
    assert torch.allclose(selector.score(x, y), selector.importances().logit, atol=1e-5)
    with pytest.raises(ValueError, match="ASSS: y must be given to score"):
        selector.score(new_x)


def test_a_table_cannot_judge_others() -> None:
    x, y, _ = noisy_task(0, n=50)
    with pytest.raises(ValueError, match="ASSS: selector must be a network for score"):
        best_only(0.5, epochs=1, key=0).fit(x, y, linear_network(0)).score(x)


def test_an_embedding_over_groups_is_a_network_and_not_the_table() -> None:
    """The labels of group 1 are noise: of it nothing should stay."""
    x, y, _ = noisy_task(0, noise=0.0)
    group = torch.arange(600) % 3
    y = torch.where(group == 1, torch.randint(2, (600,), generator=generator(5)), y)
    with torch.random.fork_rng(devices=[]):
        embedding = nn.Embedding(3, 1)
    selector = best_only(0.5, batch_size=100, selector=embedding, selector_lr=0.1, key=0)
    selector.fit(x, y, linear_network(0), selector_inputs=group)
    logits = selector.importances().logit
    assert logits.unique().numel() == 3 and not bool((group[selector.select()] == 1).any())
    assert selector.score(torch.tensor([0, 1, 2])).argmin() == 1


def test_frozen_parameters_of_a_selector_stay() -> None:
    x, y, _ = noisy_task(0, n=100)
    with torch.random.fork_rng(devices=[]):
        network = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))
    network[0].requires_grad_(False)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    best_only(0.5, epochs=4, selector=network, key=0).fit(x, y, linear_network(0))
    changed = {name for name, t in network.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {"2.weight", "2.bias"}
    with pytest.raises(ValueError, match="ASSS: selector must have parameters that require grad"):
        best_only(0.5, selector=network.requires_grad_(False))


def test_asss_sparsity_reaches_its_target() -> None:
    x, y, _ = noisy_task(0)
    for rho in (0.3, 0.5):
        selector = best_only(rho, batch_size=100, normalise=True, key=pysel.key(0)).fit(x, y, linear_network(0))
        assert selector.history[-1]["mean_probability"] == pytest.approx(rho, abs=0.1)
        assert selector.probabilities.shape == (600,)


def test_asss_anneals_and_reports() -> None:
    x, y, _ = noisy_task(0, n=50)
    seen: list[int] = []
    selector = best_only(0.5, epochs=4, tau=1.0, tau_rate=1.0, tau_min=0.2, key=pysel.key(0))
    selector.fit(x, y, linear_network(0), progress=lambda epoch, _: seen.append(epoch))
    taus = [entry["tau"] for entry in selector.history]
    assert taus == pytest.approx([1.0, math.exp(-1), 0.2, 0.2]) and seen == [0, 1, 2, 3]
    falling = best_only(0.5, epochs=4, tau=1.0, tau_min=0.2, tau_schedule="linear", key=0).fit(x, y, linear_network(0))
    assert [entry["tau"] for entry in falling.history] == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_asss_is_a_function_of_its_key() -> None:
    x, y, _ = noisy_task(0, n=200)

    def fit(seed: int) -> ASSS:
        return best_only(0.5, epochs=4, key=pysel.key(seed)).fit(x, y, linear_network(0))

    before = torch.get_rng_state()
    assert torch.equal(fit(0).probabilities, fit(0).probabilities)
    assert not torch.equal(fit(0).probabilities, fit(1).probabilities)
    assert torch.equal(before, torch.get_rng_state())


def test_asss_regression_stratification_and_state() -> None:
    x, y, _ = noisy_task(0, n=200)
    target = x[:, 0] * 2
    with torch.random.fork_rng(devices=[]):
        fitted = best_only(0.25, epochs=3, key=pysel.key(0)).fit(x, target, lambda: nn.Linear(8, 1), labels=y)
    chosen = fitted.select()
    counts = torch.bincount(y)
    assert torch.equal(torch.bincount(y[chosen]), quotas(counts.tolist(), 50))
    assert isinstance(fitted, pysel.samplers.Selects) and torch.equal(fitted.select(9), chosen)
    resumed = best_only(0.25, epochs=3)
    with pytest.raises(RuntimeError, match="call fit first"):
        resumed.select()
    resumed.load_state_dict(fitted.state_dict())
    assert torch.equal(resumed.select(), chosen) and len(resumed) == 50


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep_ratio": 1.5}, ValueError, "keep_ratio, the fraction kept"),
        ({"epochs": 0}, ValueError, "ASSS: epochs must be at least 1, got 0"),
        ({"batch_size": 1.5}, TypeError, "ASSS: batch_size must be an int, got float"),
        ({"task_lr": 0.0}, ValueError, "ASSS: task_lr must be positive and finite, got 0.0"),
        ({"tau_min": -1.0}, ValueError, "ASSS: tau_min must be positive and finite, got -1.0"),
        (
            {"sparsity_weight": -1.0},
            ValueError,
            "ASSS: sparsity_weight must be finite and at least 0, got -1.0",
        ),
        ({"attenuation": "both"}, ValueError, "ASSS: attenuation must be loss or input, got 'both'"),
        ({"game": "zero-sum"}, ValueError, "game must be cooperative or adversarial, got 'zero-sum'"),
        ({"sparsity": "l0"}, ValueError, "ASSS: sparsity must be target, absolute or mean, got 'l0'"),
        ({"hard": 2}, TypeError, "ASSS: hard must be"),
        ({"see_labels": "no"}, TypeError, "ASSS: see_labels must be"),
        ({"see_labels": True}, ValueError, "ASSS: see_labels must be False with selector='table'"),
        ({"selector": "tree"}, ValueError, "ASSS: selector must be table or network, got 'tree'"),
        ({"selector": len}, TypeError, "ASSS: selector must be 'table', 'network' or a Module"),
        ({"tau_schedule": "step"}, ValueError, "ASSS: tau_schedule must be exponential, linear or cosine, got 'step'"),
        ({"tau_schedule": lambda progress: 2 * progress}, ValueError, r"ASSS: tau_schedule must stay in \[0, 1\], got"),
        (
            {"fidelity": "lookahead", "attenuation": "input"},
            ValueError,
            "ASSS: fidelity must be 'task' with attenuation",
        ),
        ({"patience": 0}, ValueError, "ASSS: patience must be at least 1"),
        ({"trusted": 0.0}, ValueError, r"ASSS: trusted must be in \(0, 1\]"),
        (
            {"sparsity": "mean", "normalise": False},
            ValueError,
            "ASSS: sparsity must be 'target' or 'absolute', got 'mean'",
        ),
        ({"normalise": True, "attenuation": "input"}, ValueError, "ASSS: normalise must be False with"),
    ],
)
def test_bad_asss_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ASSS(**{"keep_ratio": 0.5, **options})


# --- what is given, and how -------------------------------------------------------------


def fitted(x: Any, y: Any, **options: Any) -> ASSS:
    return best_only(0.3, epochs=4, batch_size=64, key=3).fit(x, y, linear_network(0), **options)


@pytest.fixture(scope="module")
def plain() -> tuple[Tensor, Tensor, ASSS]:
    x, y, _ = noisy_task(0, n=200)
    return x, y, fitted(x, y)


@pytest.mark.parametrize("form", ["numpy", "lists", "narrow", "graph", "loader", "numpy loader"])
def test_any_form_of_data_gives_the_same(form: str, plain: tuple[Tensor, Tensor, ASSS]) -> None:
    x, y, wanted = plain
    if form == "numpy":
        got = fitted(x.double().numpy(), y.numpy())
    elif form == "lists":
        got = fitted(x.tolist(), y.tolist())
    elif form == "narrow":
        got = fitted(x, y.to(torch.uint8))
    elif form == "graph":
        got = fitted((x.clone().requires_grad_() * 1.0), y)
    else:
        as_given = (lambda t: t.numpy()) if form == "numpy loader" else (lambda t: t)
        orders = Tensors(x, y, None, 64, pysel.fold_in(pysel.key(3), 0))
        loader = EachEpoch(lambda epoch: [(as_given(b.indices), b.x, as_given(b.y)) for b in orders.epoch(epoch)])
        got = best_only(0.3, epochs=4, batch_size=64, key=3).fit(loader, network=linear_network(0), num_samples=200)
    assert torch.equal(got.probabilities, wanted.probabilities) and torch.equal(got.select(), wanted.select())


class EachEpoch:
    """A loader whose batches are a function of the epoch that it is told."""

    def __init__(self, batches: Callable[[int], list[Any]]) -> None:
        self.batches, self.epoch = batches, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        return iter(self.batches(self.epoch))


class Numbered(torch.utils.data.Dataset):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[int, Tensor, Tensor]:
        return i, self.x[i], self.y[i]


def test_a_data_loader_with_indices() -> None:
    x, y, wrong = noisy_task(0)
    loader = DataLoader(
        Numbered(x, y), batch_size=100, sampler=pysel.WeightedSampler(torch.ones(600), 600, False, key=1)
    )
    chosen = best_only(0.5, key=0).fit(loader, network=linear_network(0)).select()
    assert len(chosen) == 300 and float(wrong[chosen].float().mean()) < 0.05


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_gradients_switched_off_around_it_change_nothing(around: Any, plain: tuple[Tensor, Tensor, ASSS]) -> None:
    x, y, wanted = plain
    with around():
        assert torch.equal(fitted(x.clone(), y.clone()).probabilities, wanted.probabilities)
        batches = [(torch.arange(200), x.clone(), y.clone())]
        own = best_only(0.5, warmup_epochs=0, key=0).start(linear_network(0), 200)
        own.step(batches[0])
        own.finish(batches)


def test_defaults_of_the_process_change_nothing(plain: tuple[Tensor, Tensor, ASSS]) -> None:
    x, y, wanted = plain

    def network() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Linear(8, 2, dtype=torch.float32)

    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        got = best_only(0.3, epochs=4, batch_size=64, key=3).fit(x, y, network)
        assert torch.equal(got.probabilities, wanted.probabilities)
        net = best_only(0.3, epochs=4, selector="network", see_labels=True, gate="khot", key=3).fit(x, y, network)
        assert net.score(x, y).dtype == torch.float32 and net.importances().margin.device.type == "cpu"
        best_only(0.3, epochs=4, fidelity="lookahead", key=3).fit(x, y, network)
        for one in (got, net):  # a state of its own, of the dtypes that it wants
            one.load_state_dict(one.state_dict())
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("options", [{}, {"selector": "network"}, {"fidelity": "lookahead"}], ids=str)
@pytest.mark.parametrize("form", ["tensors", "loader"])
def test_a_last_batch_of_one_goes_with_the_one_before(form: str, options: dict[str, Any]) -> None:
    x, y, _ = noisy_task(0, n=129)

    def network() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            return nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    selector = best_only(0.5, epochs=3, batch_size=64, warmup_epochs=1, key=0, **options)
    if form == "tensors":
        selector.fit(x, y, network)
    else:
        selector.fit(DataLoader(Numbered(x, y), batch_size=64), network=network)
    assert len(selector) == 65 and bool(selector.probabilities.isfinite().all())


def test_layers_that_learn_their_shape_from_the_data() -> None:
    x, y, _ = noisy_task(0, n=64)
    selector = best_only(0.5, epochs=3, selector=nn.LazyLinear(1), key=0)
    assert len(selector.fit(x, y, lambda: nn.LazyLinear(2))) == 32


def test_numbers_of_numpy_are_taken_and_leave_a_plain_state(tmp_path: Path) -> None:
    x, y, _ = noisy_task(0, n=64)
    options = {
        "hard": np.bool_(False),
        "epochs": np.int64(3),
        "batch_size": np.int32(16),
        "tau": np.float32(0.5),
        "task_lr": torch.tensor(0.01),
    }
    selector = best_only(np.float32(0.3), key=np.int64(4), **options).fit(x, y, linear_network(0))
    assert len(selector) == 20, "0.3 and not 0.30000001192092896"
    torch.save(selector.state_dict(), tmp_path / "state.pt")
    again = best_only(np.float32(0.3), key=0, **options)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(again.select(), selector.select()) and again.history == selector.history


def test_nothing_of_the_callers_is_kept_or_given_away(plain: tuple[Tensor, Tensor, ASSS]) -> None:
    x, y, wanted = plain
    key = pysel.key(3)
    selector = best_only(0.3, epochs=4, batch_size=64, key=key)
    key.fill_(0)
    selector.fit(x, y, linear_network(0))
    assert torch.equal(selector.probabilities, wanted.probabilities)
    selector.importances().logit.fill_(0)
    selector.select().fill_(0)
    selector.history.append({})
    state = selector.state_dict()
    state["logits"].fill_(0)
    assert torch.equal(selector.probabilities, wanted.probabilities) and torch.equal(selector.select(), wanted.select())


# --- a loop of one's own, and resuming ------------------------------------------------


def test_steps_of_ones_own_are_those_of_fit(plain: tuple[Tensor, Tensor, ASSS]) -> None:
    x, y, wanted = plain
    orders = Tensors(x, y, None, 64, pysel.fold_in(pysel.key(3), 0))
    selector = best_only(0.3, epochs=4, batch_size=64, key=3).start(linear_network(0), 200)
    for epoch in range(4):
        selector.set_epoch(epoch)
        for batch in orders.epoch(epoch):
            selector.step(batch[:3])
    selector.finish([(torch.arange(200), x, y)])
    assert torch.equal(selector.probabilities, wanted.probabilities) and selector.history == wanted.history
    with pytest.raises(RuntimeError, match="ASSS: call start first, or fit"):
        best_only(0.5).step((torch.arange(200), x, y))


def test_accumulated_batches_make_the_step_of_one() -> None:
    """Two halves of a batch accumulated are the batch: same task network, and same logits but for the gates' noise."""
    x, y, _ = noisy_task(0, n=64)
    networks: list[nn.Module] = []

    def network() -> nn.Module:
        networks.append(linear_network(0)())
        return networks[-1]

    whole = best_only(0.5, warmup_epochs=1, key=0).start(network, 64)
    whole.step((torch.arange(64), x, y))
    halves = best_only(0.5, warmup_epochs=1, key=0).start(network, 64, accumulate=2)
    for rows in (torch.arange(32), torch.arange(32, 64)):
        halves.step((rows, x[rows], y[rows]))
    for one, two in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("attenuation", ["loss", "input"])
def test_half_precision_with_a_scaler(attenuation: str) -> None:
    x, y, wrong = noisy_task(0)
    selector = best_only(0.5, epochs=12, attenuation=attenuation, key=0)
    selector.start(linear_network(0), 600, scaler=torch.amp.GradScaler("cpu"), accumulate=2)
    loader = DataLoader(
        Numbered(x, y), batch_size=50, sampler=pysel.WeightedSampler(torch.ones(600), 600, False, key=1)
    )
    for epoch in range(12):
        selector.set_epoch(epoch)
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            with torch.autocast("cpu", torch.bfloat16):
                selector.step(batch)
    loader.sampler.set_epoch(12)
    selector.finish(loader)
    assert float(wrong[selector.select()].float().mean()) < 0.05


class StopHereError(Exception):
    pass


@pytest.mark.parametrize("steps", [1, 5, 8, 11, 15, 16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": "auto"},
        {"selector": "network", "see_labels": True, "attenuation": "input"},
        {"fidelity": "lookahead", "gate": "khot"},
    ],
    ids=str,
)
def test_an_interrupted_fit_goes_on_to_the_same_bits(steps: int, options: dict[str, Any], tmp_path: Path) -> None:
    """4 epochs of 4 batches: in the warm-up, in the middle of epochs, at the end of one, in the last, after it."""
    x, y, _ = noisy_task(0, n=200)

    def make() -> ASSS:
        return best_only(0.3, epochs=4, batch_size=64, warmup_epochs=1, patience=3, key=3, **options)

    wanted = make().fit(x, y, linear_network(0))
    stopped = make()
    orders = Tensors(x, y, None, 64, pysel.fold_in(pysel.key(3), 0))
    stopped.start(linear_network(0), 200)
    every = [(epoch, batch) for epoch in range(4) for batch in orders.epoch(epoch)]
    for at, batch in every[:steps]:
        stopped.set_epoch(at)
        stopped.step(batch[:3])
    if steps % 4 == 0:
        stopped.set_epoch(steps // 4)
    torch.save(stopped.state_dict(), tmp_path / "state.pt")

    resumed = make()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.fit(x, y, linear_network(1))
    assert torch.equal(resumed.importances().logit, wanted.importances().logit)
    assert torch.equal(resumed.importances().loss, wanted.importances().loss)
    assert torch.equal(resumed.select(), wanted.select()) and resumed.history == wanted.history
    assert resumed.tried == wanted.tried


def test_an_interrupted_loader_goes_on_to_the_same_bits() -> None:
    x, y, _ = noisy_task(0, n=200)
    orders = Tensors(x, y, None, 64, pysel.key(9))
    loader = EachEpoch(lambda epoch: [b[:3] for b in orders.epoch(epoch)])
    seen = 0

    def broken(epoch: int) -> Any:
        nonlocal seen
        for batch in orders.epoch(epoch):
            seen += 1
            if seen == 11:
                raise StopHereError
            yield batch[:3]

    def make() -> ASSS:
        return best_only(0.3, epochs=4, key=3)

    wanted = make().fit(loader, network=linear_network(0), num_samples=200)
    stopped = make()
    with pytest.raises(StopHereError):
        stopped.fit(EachEpoch(broken), network=linear_network(0), num_samples=200)
    resumed = make()
    resumed.load_state_dict(stopped.state_dict())
    resumed.fit(loader, network=linear_network(0), num_samples=200)
    assert torch.equal(resumed.probabilities, wanted.probabilities) and resumed.history == wanted.history


def test_a_step_between_accumulated_ones_can_be_saved() -> None:
    x, y, _ = noisy_task(0, n=200)
    batches = [(rows, x[rows], y[rows]) for rows in torch.arange(200).split(50)]

    def run(stop: int | None) -> ASSS:
        selector = best_only(0.3, warmup_epochs=0, key=3).start(linear_network(0), 200, accumulate=2)
        for place, batch in enumerate(batches):
            if place == stop:
                state = selector.state_dict()
                selector = best_only(0.3, warmup_epochs=0, key=3)
                selector.load_state_dict(state)
                selector.start(linear_network(1), 200, accumulate=2)
            selector.step(batch)
        return selector.finish(batches)

    assert torch.equal(run(None).importances().loss, run(3).importances().loss)
    assert torch.equal(run(None).probabilities, run(3).probabilities)


def test_one_that_had_settled_does_not_go_on() -> None:
    x, y, _ = noisy_task(0, n=200)

    def make() -> ASSS:
        return best_only(0.5, epochs=50, patience=2, turnover=0.02, key=0)

    def stop(epoch: int, entry: dict[str, float]) -> None:
        if stopped.settled:
            raise StopHereError

    wanted, stopped, resumed = make().fit(x, y, linear_network(0)), make(), make()
    with pytest.raises(StopHereError):
        stopped.fit(x, y, linear_network(0), progress=stop)
    resumed.load_state_dict(stopped.state_dict())
    resumed.fit(x, y, linear_network(1))
    assert resumed.history == wanted.history and torch.equal(resumed.probabilities, wanted.probabilities)


def test_it_stops_when_the_subset_has_settled() -> None:
    x, y, _ = noisy_task(0, n=200)
    selector = best_only(0.5, epochs=50, patience=2, turnover=0.02, key=0).fit(x, y, linear_network(0))
    turnovers = [entry["turnover"] for entry in selector.history[1:]]
    assert 5 < len(selector.history) < 50 and max(turnovers[-2:]) <= 0.02
    quiet = [t <= 0.02 for t in turnovers[2:]]
    assert not any(a and b for a, b in pairwise(quiet[:-1])), "no earlier two in a row"


def test_a_bar_shows_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, _ = noisy_task(0, n=50)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    best_only(0.5, epochs=3, key=0).fit(x, y, linear_network(0), progress=True)
    assert "ASSS: 100%" in capsys.readouterr().err
    best_only(0.5, epochs=3, key=0).fit(x, y, linear_network(0))
    assert capsys.readouterr().err == ""


# --- state -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"selector": "network", "see_labels": True}], ids=str)
def test_a_saved_selector_comes_back(options: dict[str, Any], tmp_path: Path) -> None:
    x, y, _ = noisy_task(0, n=200)
    selector = best_only(0.3, epochs=3, key=0, **options)
    with pytest.raises(RuntimeError, match="ASSS: call fit first"):
        selector.save(tmp_path / "a")
    selector.fit(x, y, linear_network(0), labels=y)
    selector.save(tmp_path / "a")
    again = ASSS.load(tmp_path / "a")
    assert repr(again) == repr(selector) and "keep_ratio=0.3" in repr(again) and "of 200 samples" in repr(again)
    assert torch.equal(again.select(), selector.select()) and again.explain(7) == selector.explain(7)
    if options:
        assert torch.equal(again.score(x, y), selector.score(x, y))


def test_what_cannot_be_saved_is_refused_and_nothing_written(tmp_path: Path) -> None:
    x, y, _ = noisy_task(0, n=50)
    for options in ({"selector": nn.Linear(8, 1)}, {"tau_schedule": lambda progress: 1 - progress}):
        selector = best_only(0.5, epochs=3, key=0, **options).fit(x, y, linear_network(0))
        with pytest.raises(ValueError, match=f"ASSS: {next(iter(options))} must be"):
            selector.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_refused_state_changes_nothing(plain: tuple[Tensor, Tensor, ASSS]) -> None:
    x, y, wanted = plain
    others = [({}, "have arguments"), (best_only(0.4, epochs=4, batch_size=64).state_dict(), "keep_ratio=0.3")]
    for state, message in others:
        with pytest.raises(ValueError, match=f"ASSS: state_dict must .*{message}"):
            wanted.load_state_dict(state)
    small = best_only(0.5, epochs=2, selector="network", hidden=8, key=0).fit(x, y, linear_network(0))
    narrow = {**small.state_dict(), "network": torch.ones(3, dtype=torch.float64)}
    before = small.probabilities
    with pytest.raises(ValueError, match=r"ASSS: state_dict must be of a selector network of .* numbers, got 3"):
        small.load_state_dict(narrow)
    assert torch.equal(small.probabilities, before)
    other = best_only(0.3, epochs=4, batch_size=64, key=3)
    other.load_state_dict(best_only(0.3, epochs=4, batch_size=64, key=3).start(linear_network(0), 200).state_dict())
    half = best_only(0.3, epochs=4, batch_size=64, key=3).start(linear_network(0), 200)
    half.step((torch.arange(64), x[:64], y[:64]))
    other.load_state_dict(half.state_dict())
    with pytest.raises(ValueError, match="ASSS: state_dict must be of 100 samples"):
        other.fit(x[:100], y[:100], linear_network(0))


# --- bad input -------------------------------------------------------------------------


def never() -> nn.Module:
    raise AssertionError("work has begun")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.ones(0, 8), torch.zeros(0).long()), {}, ValueError, r"ASSS: x must be .* got \[0, 8\]"),
        ((torch.ones(4, 8), torch.zeros(3).long()), {}, ValueError, r"y must have 4 rows like x, got \[3\]"),
        ((torch.ones(4, 8), torch.ones(4).mul(math.nan)), {}, ValueError, "ASSS: y must be finite, got nan in row 0"),
        ((torch.ones(4, 8), None), {}, TypeError, "ASSS: y must be given with x, unless x is a loader"),
        (("abc", torch.ones(4)), {}, TypeError, "ASSS: x must be a tensor, an array or a list"),
        ((torch.ones(4, 8), torch.zeros(4).long()), {"labels": torch.zeros(3).long()}, ValueError, "ASSS: labels must"),
        (
            (torch.ones(4, 8), torch.zeros(4).long()),
            {"labels": torch.arange(4)},
            ValueError,
            "ASSS: keep_ratio must give .* each of the 4 classes",
        ),
        (
            (torch.ones(4, 8), torch.zeros(4).long()),
            {"labels": torch.tensor([0.0, 0.0, 0.0, 1.0]), "quantiles": 2},
            ValueError,
            "ASSS: quantiles must be fewer for these labels.* stratum 0 of 2 would be empty",
        ),
        ((torch.ones(4, 8), torch.zeros(4).long()), {"progress": 3}, TypeError, "ASSS: progress must be True, False"),
        ((torch.ones(4, 8), torch.zeros(4).long()), {"held_out": (1, 2)}, ValueError, "ASSS: held_out must be None"),
        (([(torch.ones(2, 8), torch.zeros(2))],), {}, ValueError, "ASSS: num_samples must be given"),
        ((iter([1]),), {"num_samples": 4}, TypeError, "ASSS: x must be .* can be iterated many times"),
    ],
)
def test_bad_data_is_refused_before_a_network_is_made(
    arguments: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        best_only(0.5, key=0).fit(*arguments, **{"network": never, **options})


@pytest.mark.parametrize("network", [None, nn.Linear(8, 2), 3], ids=["none", "a network", "a number"])
def test_a_network_that_is_none(network: Any) -> None:
    with pytest.raises(TypeError, match="ASSS: network must be a function that makes a fresh task network"):
        best_only(0.5).fit(torch.ones(4, 8), torch.zeros(4).long(), network)


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        ({}, {"loss": F.cross_entropy}, ValueError, r"loss must return one number a sample, \[6\], got \[\]"),
        (
            {},
            {"loss": lambda out, y: out.sum(1) * math.nan},
            ValueError,
            "ASSS: loss must be finite, got nan for sample",
        ),
        ({}, {"y": torch.arange(6)}, ValueError, "ASSS: y must be between 0 and 1, as network has 2 outputs, got 5"),
        ({"attenuation": "input"}, {"x": torch.ones(6, 8).long()}, TypeError, "ASSS: x must be .* got torch.int64"),
        ({"selector": nn.Linear(8, 3)}, {}, ValueError, r"ASSS: selector must take .*\[6, 8\] and return \[6\]"),
        ({"selector": nn.Linear(5, 1)}, {}, ValueError, r"ASSS: selector must take inputs of shape \[6, 8\]"),
        ({}, {"loader": lambda x, y: [(x, y)]}, TypeError, r"ASSS: a batch must be \(indices, x, y\).* got 2 of them"),
        ({}, {"loader": lambda x, y: [(x, x, y)]}, TypeError, "with one integer a sample as indices"),
        ({}, {"loader": lambda x, y: [(torch.arange(6) + 1, x, y)]}, ValueError, "must be between 0 and 5, got 6"),
        ({}, {"loader": lambda x, y: [(torch.arange(6), x, y[:3])]}, ValueError, "y of a batch must have 6 rows"),
        ({}, {"loader": lambda x, y: [(torch.arange(0), x[:0], y[:0])]}, ValueError, "must have at least one sample"),
        ({}, {"loader": lambda x, y: []}, ValueError, "ASSS: x must yield at least one batch"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    make: dict[str, Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    x, y = options.pop("x", torch.randn(6, 8)), options.pop("y", torch.zeros(6).long())
    loader = options.pop("loader", None)
    networks: list[nn.Module] = []

    def network() -> nn.Module:
        networks.append(linear_network(0)())
        return networks[-1]

    with pytest.raises(error, match=message):
        if loader is None:
            best_only(0.5, batch_size=6, key=0, **make).fit(x, y, network, **options)
        else:
            best_only(0.5, key=0, **make).fit(loader(x, y), network=network, num_samples=6, **options)
    before = linear_network(0)()
    for made in networks:
        assert torch.equal(made.weight, before.weight) and made.weight.grad is None


@pytest.mark.parametrize("options", [{}, {"selector": "network"}], ids=str)
def test_samples_that_never_come_are_missed(options: dict[str, Any]) -> None:
    x, y, _ = noisy_task(0, n=50)
    selector = best_only(0.5, epochs=3, key=0, **options)
    with pytest.raises(ValueError, match=r"ASSS: batches must have every one of the 50 samples.*: 2 were in neither"):
        selector.fit([(torch.arange(48), x[:48], y[:48])], network=linear_network(0), num_samples=50)
    assert len(selector.finish([(torch.arange(48, 50), x[48:], y[48:])])) == 25


def test_losses_that_stop_being_finite() -> None:
    x, y, _ = noisy_task(0, n=64)
    with pytest.raises(ValueError, match=r"ASSS: loss must be finite, got nan in epoch .*a smaller task_lr may help"):
        best_only(0.5, task_lr=1e30, key=0).fit(x, y, lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)))


def test_performance_retention_rate() -> None:
    assert performance_retention_rate(0.89, 0.9) == pytest.approx(0.98889, abs=1e-5)
    with pytest.raises(ValueError, match="full_metric must be positive, got 0"):
        performance_retention_rate(0.5, 0)
