"""pysel/selection/protocol.py, state.py: what every method keeps to, whatever is passed and wherever the caller is."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import pysel
from pysel.selection import (
    RCAP,
    UCB,
    DynamicRandom,
    DynamicSelector,
    EpsilonGreedy,
    FacilityLocation,
    Familiarity,
    FamiliaritySelector,
    FixedSelector,
    Full,
    GraphCut,
    Herding,
    InfoBatch,
    KCentre,
    KMeans,
    Moderate,
    NearestNeighbourThinning,
    OrderDP,
    ScoreSelector,
    Selector,
    SemanticDiversity,
    SeTa,
    StaticRandom,
)

pytestmark = pytest.mark.usefixtures("one_thread")

N = 40
Hold = Callable[[list[Any]], Any]  # how the caller holds numbers: as a tensor, an array, a list


def numbers(seed: int, *shape: int) -> list[Any]:
    return np.random.default_rng(seed).random((N, *shape)).tolist()


LABELS = [i % 3 for i in range(N)]

# Each makes the same selector whatever the numbers are held in.
MAKERS: dict[str, Callable[[Hold], Selector]] = {
    "fixed": lambda hold: FixedSelector(hold([7, 3, 5]), N),
    "full": lambda hold: Full(N),
    "static random": lambda hold: StaticRandom(N, 0.3, labels=hold(LABELS), key=0),
    "scores": lambda hold: ScoreSelector(hold(numbers(0)), 0.3, largest=False, labels=hold(LABELS)),
    "k-means": lambda hold: KMeans(hold(numbers(0, 2)), 0.3, 4, key=0),
    "thinning": lambda hold: NearestNeighbourThinning(hold(numbers(0, 2)), 0.3),
    "moderate": lambda hold: Moderate(hold(numbers(0, 2)), 0.3, labels=hold(LABELS)),
    "k-centre": lambda hold: KCentre(hold(numbers(0, 2)), 0.3, labels=hold(LABELS)),
    "herding": lambda hold: Herding(hold(numbers(0, 2)), 0.3, labels=hold(LABELS)),
    "facility location": lambda hold: FacilityLocation(hold(numbers(0, 2)), 0.3, labels=hold(LABELS)),
    "graph cut": lambda hold: GraphCut(hold(numbers(0, 2)), 0.3, labels=hold(LABELS), trade_off=0.5),
    "semantic diversity": lambda hold: SemanticDiversity(
        hold(numbers(0, 2)), hold(LABELS), 0.3, hold(numbers(1, 2)), alpha=0.2, neighbours=3
    ),
    "familiarity": lambda hold: FamiliaritySelector(
        hold(numbers(0, 2)), 0.3, Familiarity().fit(hold(numbers(1, 2)), hold([i % 2 for i in range(N)]))
    ),
    "dynamic random": lambda hold: DynamicRandom(N, 0.3, key=0),
    "random with replacement": lambda hold: DynamicRandom(N, 0.3, replacement=True, key=0),
    "balanced random": lambda hold: DynamicRandom(
        N, 0.3, epochs=5, labels=hold(LABELS), balance="equal", refine=0.2, key=0
    ),
    "infobatch": lambda hold: told(InfoBatch(N, 5, key=0), hold),
    "infobatch by ratio": lambda hold: told(InfoBatch(N, 5, keep_ratio=0.3, key=0), hold),
    "epsilon-greedy": lambda hold: told(EpsilonGreedy(N, 0.3, epochs=5, refine=0.2, key=0), hold),
    "ucb": lambda hold: told(UCB(N, 0.3, epochs=5, refine=0.2, key=0), hold),
    "orderdp": lambda hold: told(OrderDP(N, 0.3, epochs=5, refine=0.2, key=0), hold),
    "seta": lambda hold: told(SeTa(N, 5, prune_ratio=0.3, groups=3, window=0.7, key=0), hold),
    "rcap": lambda hold: told(RCAP(hold(LABELS), 0.3, epochs=5, refine=0.2, key=0), hold),
    "dynamic": lambda hold: DynamicSelector(hold(numbers(0)), hold(numbers(1)), 0.3, 5, labels=hold(LABELS), key=0),
    "drawn": lambda hold: DynamicSelector(
        hold(numbers(0)), hold(numbers(1)), 0.3, 5, labels=hold(LABELS), temperature=0.2, key=0
    ),
    "as they are": lambda hold: DynamicSelector(hold(numbers(0)), hold(numbers(1)), 0.3, 5, normalise=None, key=0),
    "from features": lambda hold: DynamicSelector.from_features(
        hold(numbers(0, 3)), 0.3, 5, labels=hold(LABELS), num_factors=8, k=2, sae_options={"epochs": 1}, key=0
    ),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
ignore_poor = pytest.mark.filterwarnings("ignore:.*explains only")


def told(selector: Selector, hold: Hold) -> Selector:
    selector.update(hold(list(range(N))), losses=hold(numbers(2)))
    return selector


def as_tensor(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=None if isinstance(values[0], int) else torch.float64, device="cpu")


def history(selector: Selector, epochs: int = 5) -> list[tuple[list[int], list[float]]]:
    """Subsets and weights of epochs."""
    found = []
    for epoch in range(epochs):
        subset = selector.select(epoch)
        found.append((subset.tolist(), selector.weights(subset).tolist()))
    return found


@every
@ignore_poor
def test_protocol(make: Callable[[Hold], Selector]) -> None:
    selector, resumed = make(as_tensor), make(as_tensor)
    assert isinstance(selector, pysel.samplers.Selects)
    chosen = selector.select(1)
    assert len(selector) == len(chosen)
    assert chosen.dtype == torch.int64
    assert torch.equal(selector.select(1), chosen)
    assert torch.equal(chosen, chosen.unique())
    assert selector.steps(np.int64(7)) == -(-len(chosen) // 7)
    resumed.load_state_dict(selector.state_dict())
    assert torch.equal(resumed.select(1), chosen)
    assert torch.equal(resumed.select(2), selector.select(2))


EXACT = [name for name in MAKERS if name not in ("infobatch", "seta")]  # the others' sizes are the losses' affair


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("drop_last", [False, True])
@ignore_poor
def test_the_length_of_a_schedule_is_known_ahead(name: str, drop_last: bool) -> None:
    selector = MAKERS[name](as_tensor)
    told_ahead, sizes = selector.steps_total(7, np.int64(6), drop_last), [selector.size(epoch) for epoch in range(6)]
    steps = []
    for epoch in range(6):
        chosen = selector.select(epoch)
        assert len(chosen) == sizes[epoch] if name in EXACT else len(chosen) <= sizes[epoch]
        steps.append(selector.steps(7, drop_last))
    assert sum(steps) == told_ahead if name in EXACT else 0 < sum(steps) < told_ahead
    for arguments, error, message in (
        ((0, 6), ValueError, "batch_size must be at least 1, got 0"),
        ((7, 0), ValueError, "epochs must be at least 1, got 0"),
        ((7, True), TypeError, "epochs must be an int, got bool"),
        ((7, 6, 2), TypeError, "drop_last must be a bool, got int"),
    ):
        with pytest.raises(error, match=f"{type(selector).__name__}.steps_total: {message}"):
            selector.steps_total(*arguments)


@every
@ignore_poor
def test_explain_and_stats(make: Callable[[Hold], Selector]) -> None:
    selector = make(as_tensor)
    chosen = selector.select(1)
    assert 0 < selector.stats()["realised_ratio"] <= 1
    weights = selector.weights(chosen)
    for i in (0, 3, 5, 39):
        why = selector.explain(i)
        place = torch.nonzero(chosen == i).flatten().tolist()
        assert (why["sample"], why["taken"]) == (i, bool(place))
        if not isinstance(selector, DynamicSelector):  # there it is the schedule's
            assert why["weight"] == (float(weights[place[0]]) if place else 0)
        if hasattr(selector, "_losses"):
            assert why["loss"] == pytest.approx(numbers(2)[i])
    assert torch.equal(selector.select(1), chosen)
    name = f"{type(selector).__name__}.explain"
    for i, error, message in (
        (N, IndexError, f"{name}: i must be between 0 and 39, got 40"),
        (-1, IndexError, f"{name}: i must be between 0 and 39, got -1"),
        (1.0, TypeError, f"{name}: i must be an int, got float"),
    ):
        with pytest.raises(error, match=message):
            selector.explain(i)


def test_to_explain_settles_no_epoch() -> None:
    selector = UCB(N, 0.3, key=0)
    with pytest.raises(ValueError, match=r"UCB.explain: nothing has been selected yet: call select\(\) first"):
        selector.explain(0)


def test_a_weighter_is_what_has_its_methods() -> None:
    assert isinstance(pysel.selection.MetaWeighter(key=0), pysel.selection.Weighter)
    assert not isinstance(Full(3), pysel.selection.Weighter)


# --- what users pass -------------------------------------------------------------------


def frame(values: list[Any]) -> Any:
    """A column, or several, whose index does not count from 0."""
    make = pd.DataFrame if isinstance(values[0], list) else pd.Series
    return make(values, index=range(100, 100 + len(values)))


@every
@ignore_poor
@pytest.mark.parametrize(
    "hold",
    [list, np.array, frame, lambda v: as_tensor(v).requires_grad_(isinstance(v[0], float | list))],
    ids=["list", "numpy", "pandas", "graph"],
)
def test_numbers_in_any_container(make: Callable[[Hold], Selector], hold: Hold) -> None:
    assert history(make(hold)) == history(make(as_tensor))


@every
@ignore_poor
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.int8])
def test_narrow_integers(make: Callable[[Hold], Selector], dtype: torch.dtype) -> None:
    narrow = lambda v: as_tensor(v).to(dtype) if isinstance(v[0], int) else as_tensor(v)  # noqa: E731
    assert history(make(narrow)) == history(make(as_tensor))


@every
@ignore_poor
def test_indices_of_weights(make: Callable[[Hold], Selector]) -> None:
    selector = make(as_tensor)
    name = type(selector).__name__
    chosen = selector.select(np.int64(1))
    wanted = selector.weights(chosen)
    assert wanted.dtype == torch.float32 or isinstance(selector, DynamicSelector)
    for given in (chosen.numpy(), chosen.tolist(), pd.Series(chosen.numpy()), chosen.int(), chosen.flip(0).flip(0)):
        assert torch.equal(selector.weights(given), wanted)
    assert torch.equal(selector.weights([int(chosen[0])] * 2), wanted[[0, 0]])
    for given, error, message in (
        ([-1], ValueError, f"{name}.weights: indices must be between 0 and 39, got -1"),
        ([40], ValueError, f"{name}.weights: indices must be between 0 and 39, got 40"),
        ([1.0], TypeError, f"{name}.weights: indices must be integers"),
        (torch.ones(N, dtype=torch.bool), TypeError, f"{name}.weights: indices must be indices, got a boolean mask"),
        (3, TypeError, f"{name}.weights: indices must be a tensor, an array or a list of numbers, got int"),
    ):
        with pytest.raises(error, match=message):
            selector.weights(given)
    with pytest.raises(ValueError, match=f"{name}: epoch must be at least 0, got -1"):
        selector.select(-1)
    with pytest.raises(ValueError, match=f"{name}.steps: batch_size must be at least 1, got 0"):
        selector.steps(0)


# --- the caller's surroundings ----------------------------------------------------------


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "default device": lambda: torch.device("meta"),
    "default dtype": lambda: default_dtype(torch.float64),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@every
@ignore_poor
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_the_callers_surroundings_change_nothing(
    make: Callable[[Hold], Selector], surroundings: str, tmp_path: Path
) -> None:
    before = history(make(as_tensor))
    with SURROUNDINGS[surroundings]():
        selector = make(as_tensor)
        inside = history(selector, 3)
        resumed = make(as_tensor)
        resumed.load_state_dict(selector.state_dict())
        selector.save(tmp_path)
        loaded = type(selector).load(tmp_path)
    assert inside == before[:3]
    for one in (selector, resumed, loaded):  # and outside it goes on
        later = [(one.select(epoch).tolist(), one.weights(one.select(epoch)).tolist()) for epoch in (2, 3, 4)]
        assert later == before[2:]


@every
@ignore_poor
def test_what_inference_mode_gave_can_be_trained_with(make: Callable[[Hold], Selector]) -> None:
    with torch.inference_mode():
        selector = make(as_tensor)
        subset = selector.select(0)
        weights = selector.weights(subset)
    losses = torch.ones(N, requires_grad=True)
    (losses[subset] * weights).sum().backward()
    selector.update(subset, losses=losses[subset].detach())
    selector.select(1)


# --- state -----------------------------------------------------------------------------


@every
@ignore_poor
def test_states_hold_plain_numbers(make: Callable[[Hold], Selector], tmp_path: Path) -> None:
    selector = make(np.array)
    selector.select(np.int64(1))
    state = selector.state_dict()
    torch.save(state, tmp_path / "state.pt")
    resumed = make(np.array)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    json.dumps({name: value for name, value in state.items() if not isinstance(value, Tensor)})
    selector.save(tmp_path / "saved")
    loaded = type(selector).load(tmp_path / "saved")
    assert repr(loaded) == repr(selector)
    assert len(resumed) == len(loaded) == len(selector)
    later = [[one.select(epoch).tolist() for epoch in (1, 2, 4)] for one in (selector, resumed, loaded)]
    assert later[0] == later[1] == later[2]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) if a.is_floating_point() else torch.equal(a, b)
    return a == b


@every
@ignore_poor
def test_a_refused_state_has_changed_nothing(make: Callable[[Hold], Selector]) -> None:
    selector = make(as_tensor)
    name = type(selector).__name__
    state = selector.state_dict()
    selector.select(2)
    before = selector.state_dict()
    bad: list[tuple[Any, type[Exception], str]] = [
        ({}, ValueError, f"{name}: state_dict must have arguments, fingerprint"),
        (None, TypeError, f"{name}: state_dict must be a dictionary, got NoneType"),
        ({**state, "arguments": 3}, TypeError, r"state_dict\['arguments'\] must be a dictionary, got int"),
        ({**state, "arguments": {}}, ValueError, "state_dict must be of a selector with"),
        ({**state, "fingerprint": "x"}, TypeError, r"state_dict\['fingerprint'\] must be an int, got str"),
        ({**state, "fingerprint": 1}, ValueError, "state_dict must be of a selector with the same tables"),
    ]
    for entry, value in state.items():
        bad.append(({k: v for k, v in state.items() if k != entry}, ValueError, f"state_dict must have {entry}"))
        where = rf"{name}: state_dict\['{entry}'\] must "
        if isinstance(value, Tensor):
            bad += [
                ({**state, entry: value.tolist()}, TypeError, where + "be a Tensor, got list"),
                ({**state, entry: value.bool()}, TypeError, where + "be .* got torch.bool"),
                ({**state, entry: value.repeat(2)}, ValueError, where + "have shape"),
                ({**state, entry: value[None]}, ValueError, where + "have shape"),
            ]
    if "epoch" in state:
        bad += [
            ({**state, "epoch": "3"}, TypeError, r"state_dict\['epoch'\] must be an int, got str"),
            ({**state, "epoch": -2}, ValueError, r"state_dict\['epoch'\] must be at least"),
        ]
    if "indices" in state:
        for value in (state["indices"] + N, state["indices"] - N, state["indices"] * 0):
            bad.append(({**state, "indices": value}, ValueError, r"state_dict\['indices'\] must be"))
    if "losses" in state:
        infinite = state["losses"].clone().fill_(torch.inf)
        bad.append(({**state, "losses": infinite}, ValueError, r"state_dict\['losses'\] must be finite"))
        bad.append(({**state, "weights": -infinite}, ValueError, r"state_dict\['weights'\] must be finite"))
    for given, error, message in bad:
        with pytest.raises(error, match=message):
            selector.load_state_dict(given)
        after = selector.state_dict()
        assert all(same(after[entry], before[entry]) for entry in before)


@every
@ignore_poor
def test_nothing_is_shared_with_the_caller(make: Callable[[Hold], Selector]) -> None:
    """Tensors that were passed, and states that were taken or loaded, may be written to afterwards."""
    wanted = history(make(as_tensor))
    if make is MAKERS["from features"]:
        pytest.skip("features are read again, when samples are explained")
    held: list[Tensor] = []

    def keep(values: list[Any]) -> Tensor:
        held.append(as_tensor(values).int() if isinstance(values[0], int) else as_tensor(values))
        return held[-1]

    def spoil(tensors: Any) -> None:
        for t in tensors:
            if isinstance(t, Tensor):
                t.fill_(1)

    selector = make(keep)
    spoil(held)
    fingerprint = selector.fingerprint
    assert fingerprint == make(as_tensor).fingerprint
    state = selector.state_dict()
    selector.select(1)
    resumed = make(as_tensor)
    resumed.load_state_dict(state)
    spoil(state.values())
    assert history(resumed) == wanted
    selector = make(as_tensor)
    spoil(selector.state_dict().values())
    spoil([selector.select(0)])
    assert history(selector) == wanted


@pytest.mark.parametrize(
    "make",
    [
        lambda k: StaticRandom(N, 0.3, key=k),
        lambda k: DynamicRandom(N, 0.3, key=k),
        lambda k: InfoBatch(N, 5, key=k),
        lambda k: InfoBatch(N, 5, keep_ratio=0.5, key=k),
        lambda k: EpsilonGreedy(N, 0.3, key=k),
        lambda k: UCB(N, 0.3, key=k),
        lambda k: OrderDP(N, 0.3, key=k),
        lambda k: SeTa(N, 5, prune_ratio=0.3, key=k),
        lambda k: RCAP(LABELS, 0.3, key=k),
        lambda k: KMeans(numbers(0, 2), 0.3, 4, key=k),
        lambda k: DynamicSelector(numbers(0), numbers(1), 0.3, 5, key=k),
    ],
)
def test_keys(make: Callable[[Any], Selector]) -> None:
    key = pysel.key(5)
    selector = make(key)
    key.zero_()
    for same_key in (5, np.int64(5), pysel.key(5)):
        assert history(make(same_key)) == history(selector)
        selector = make(5)
    with pytest.raises(TypeError, match=f"{type(selector).__name__}: key must be a Tensor or an int, got str"):
        make("5")


def test_a_function_among_the_arguments_does_not_spoil_the_checkpoint(tmp_path: Path) -> None:
    make = lambda: DynamicSelector(numbers(0), numbers(1), 0.3, 5, schedule=pysel.selection.schedule.cosine, key=0)  # noqa: E731
    selector = make()
    selector.select(2)
    torch.save(selector.state_dict(), tmp_path / "state.pt")
    resumed = make()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert history(resumed) == history(selector)
    other = DynamicSelector(numbers(0), numbers(1), 0.3, 5, schedule=pysel.selection.schedule.linear, key=0)
    with pytest.raises(ValueError, match=r"schedule='pysel.selection.schedule.linear', got one with .*cosine"):
        other.load_state_dict(selector.state_dict())


def test_one_key_serves_several_selectors() -> None:
    """Over keys, who is taken by one method says nothing of who is taken by another, or in another epoch."""
    equal = torch.ones(N)
    makers: list[Callable[[int], Selector]] = [
        lambda key: StaticRandom(N, 0.5, key=key),
        lambda key: DynamicRandom(N, 0.5, key=key),
        lambda key: InfoBatch(N, 5, key=key),
        lambda key: InfoBatch(N, 5, keep_ratio=0.5, max_weight=2.001, key=key),
        lambda key: EpsilonGreedy(N, 0.5, epsilon=1, key=key),
        lambda key: UCB(N, 0.5, key=key),
        lambda key: OrderDP(N, 0.5, pool=0.5, key=key),
        lambda key: SeTa(N, 5, prune_ratio=0.5, groups=1, key=key),
        lambda key: DynamicRandom(N, 0.5, replacement=True, key=key),
        lambda key: RCAP([0] * N, 0.5, key=key),
        lambda key: DynamicSelector(equal, equal, 0.5, 5, refine=0, key=key),
        lambda key: DynamicSelector(equal, equal, 0.5, 5, refine=0, temperature=1.0, key=key),
    ]
    taken = torch.zeros(len(makers), 2, 400, N)  # method, epoch, key, sample
    for method, make in enumerate(makers):
        for seed in range(400):
            selector = make(seed)
            selector.update(range(N), losses=torch.cat([torch.zeros(N - 1), torch.full((1,), 9.0)]))
            for epoch in range(2):
                taken[method, epoch, seed, selector.select(epoch)] = 1
    taken = (taken - taken.mean(2, keepdim=True))[..., : N - 1].flatten(2)  # the last is always in InfoBatch's
    taken /= taken.norm(dim=2, keepdim=True)
    for epoch in range(2):
        for other in range(2):
            correlation = taken[:, epoch] @ taken[:, other].T
            correlation.fill_diagonal_(0)
            # of 400 * 39 pairs: a standard deviation of about 0.008
            assert float(correlation.abs().max()) < 0.05
