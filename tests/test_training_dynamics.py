"""pysel/selection/static/training_dynamics.py: against whole histories in numpy, and what it keeps to."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pysel.selection import AUM, TDDS, DynamicUncertainty, Forgetting, ScoreSelector
from pysel.selection.static.training_dynamics import TrainingDynamics

pytestmark = pytest.mark.usefixtures("one_thread")

N, C, EPOCHS, J, DECAY = 60, 4, 9, 4, 0.7
LABELS = np.arange(N) % C
MAKERS: dict[str, Callable[..., TrainingDynamics]] = {
    "forgetting": lambda labels=LABELS, **o: Forgetting(labels, C, **o),
    "aum": lambda labels=LABELS, **o: AUM(labels, C, **o),
    "dyn-unc": lambda labels=LABELS, **o: DynamicUncertainty(labels, C, window=J, **o),
    "tdds": lambda labels=LABELS, **o: TDDS(labels, C, window=J, decay=DECAY, **o),
}
every = pytest.mark.parametrize("name", MAKERS)


def training(seed: int = 0, share: float = 0.8) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Batches (indices, logits) of each epoch, of some of the samples in some order; sample 0 is never seen, 1 once."""
    generator = np.random.default_rng(seed)
    epochs = []
    for epoch in range(EPOCHS):
        seen = np.flatnonzero(generator.random(N) < share)
        seen = seen[(seen > 1) | ((seen == 1) & (epoch == 2))]
        order = generator.permutation(np.union1d(seen, [1]) if epoch == 2 else seen)
        logits = (2 * generator.normal(size=(len(order), C))).astype(np.float32)
        epochs.append([(order[i : i + 16], logits[i : i + 16]) for i in range(0, len(order), 16)])
    return epochs


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z.astype(np.float64) - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def oracle(name: str, history: list[np.ndarray], label: int) -> float:
    """The score from all logits of a sample, in order."""
    if not history:
        return math.nan
    z = np.stack(history)
    if name == "forgetting":
        right = [int(np.argmax(row)) == label for row in z]
        forgotten = sum(before and not after for before, after in itertools.pairwise(right))
        return float(forgotten) if any(right) else math.inf
    if name == "aum":
        return float(np.mean([float(row[label]) - max(np.delete(row, label).tolist()) for row in z]))
    if len(z) < J:
        return math.nan
    p = softmax(z)
    starts = range(len(p) - J + 1)
    if name == "dyn-unc":
        return float(np.mean([np.std(p[k : k + J, label], ddof=1) for k in starts]))
    score = 0.0
    for k in starts:
        window = p[k : k + J]
        moves = np.abs(window[1:] * np.log(window[1:] / window[:-1])).sum(1)
        score = DECAY * np.linalg.norm(moves - moves.mean()) + (1 - DECAY) * score
    return float(score)


@every
def test_against_the_whole_history(name: str) -> None:
    dynamics, histories = MAKERS[name](), [[] for _ in range(N)]  # type: tuple[TrainingDynamics, list[list[Any]]]
    for epoch in training():
        for indices, logits in epoch:
            dynamics.update(indices, losses=None, logits=logits)
            for i, row in zip(indices, logits, strict=True):
                histories[i].append(row)
        wanted = [oracle(name, history, label) for history, label in zip(histories, LABELS, strict=True)]
        scores = dynamics.scores()
        assert scores.dtype == torch.float64 and scores.shape == (N,)
        np.testing.assert_allclose(scores.numpy(), wanted, rtol=2e-5, atol=1e-7)
    assert math.isnan(scores[0])
    assert sorted(map(len, histories))[:3] != [EPOCHS] * 3, "some were left out of some epochs"
    assert len(ScoreSelector(scores.nan_to_num(0.0), 0.3)) == 18
    with pytest.raises(ValueError, match="scores must be a number, got nan in row 0"):
        ScoreSelector(scores, 0.3)


def test_forgetting_counts_falls_alone() -> None:
    dynamics = Forgetting([0, 0, 0, 0])
    answers = [[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]  # whether each sample is right
    for right in answers:
        dynamics.update(range(4), logits=[[1.0, 0.0] if r else [0.0, 1.0] for r in right])
    assert dynamics.scores().tolist() == [2, math.inf, 0, 0]
    assert ScoreSelector(dynamics.scores(), 0.5).select().tolist() == [0, 1]


def test_certain_predictions_move_finitely() -> None:
    """A probability of 0 in float32, before and after one of 1."""
    dynamics = TDDS([0], window=3)
    for logits in ([[1e30, -1e30]], [[-1e30, 1e30]], [[-1e30, 1e30]], [[1e30, -1e30]]):
        dynamics.update([0], logits=logits)
    bits = -math.log(2.0**-126)  # each of the two jumps, of which no window holds both
    assert float(dynamics.scores()) == pytest.approx(bits / 2**0.5 * (0.9 + 0.09), rel=1e-6)


@every
def test_resumes_exactly(name: str, tmp_path: Path) -> None:
    epochs, whole = training(), MAKERS[name]()
    for epoch in epochs:
        for indices, logits in epoch:
            whole.update(indices, logits=logits)
    for stop in (1, 4, 6):
        first, resumed = MAKERS[name](), MAKERS[name]()
        batches = [batch for epoch in epochs for batch in epoch]
        for indices, logits in batches[: 3 * stop - 1]:  # in the middle of an epoch
            first.update(indices, logits=logits)
        torch.save(first.state_dict(), tmp_path / "state.pt")
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for indices, logits in batches[3 * stop - 1 :]:
            resumed.update(indices, logits=logits)
        assert resumed.scores().numpy().tobytes() == whole.scores().numpy().tobytes()


def told(name: str) -> TrainingDynamics:
    dynamics = MAKERS[name]()
    for epoch in training(1)[:6]:
        for indices, logits in epoch:
            dynamics.update(indices, logits=logits)
    return dynamics


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


@every
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (([1, 2], None), ValueError, "logits must be given"),
        (([1, 2], np.zeros((2, C + 1))), ValueError, r"logits must be \[B, C\], here \[2, 4\], got \[2, 5\]"),
        (([1, 2], np.zeros((3, C))), ValueError, r"logits must be \[B, C\], here \[2, 4\], got \[3, 4\]"),
        (([1, 2], np.zeros(C)), ValueError, r"logits must be \[B, C\], here \[2, 4\], got \[4\]"),
        (([5, 2], [[0.0] * C, [math.nan] * C]), ValueError, "logits must be finite, got nan in row 2"),
        (([5, 2], [[0.0] * C, [1e300] * C]), ValueError, "logits must be finite, got inf in row 2"),
        (([1, N], np.zeros((2, C))), ValueError, "indices must be between 0 and 59, got 60"),
        (([-1, 2], np.zeros((2, C))), ValueError, "indices must be between 0 and 59, got -1"),
        (([2, 2], np.zeros((2, C))), ValueError, "indices must be distinct, got 2 more than once"),
        (([1.0, 2.0], np.zeros((2, C))), TypeError, "indices must be integers, got torch.float64"),
        (([1, 2], "ab"), TypeError, "logits must be a tensor, an array or a list of numbers, got str"),
    ],
)
def test_a_refused_batch_has_changed_nothing(
    name: str, given: tuple[Any, Any], error: type[Exception], message: str
) -> None:
    dynamics = told(name)
    before = dynamics.state_dict()
    with pytest.raises(error, match=f"{type(dynamics).__name__}.update: {message}"):
        dynamics.update(given[0], logits=given[1])
    assert same(dynamics.state_dict(), before)


@every
def test_a_refused_state_has_changed_nothing(name: str) -> None:
    dynamics = told(name)
    before, kind = dynamics.state_dict(), type(dynamics).__name__
    other = MAKERS[name](labels=LABELS[::-1]).state_dict()
    bad: list[tuple[Any, type[Exception], str]] = [
        (None, TypeError, "state_dict must be a dictionary, got NoneType"),
        (other, ValueError, "state_dict must be of a recorder with the same tables"),
        ({**before, "arguments": {}}, ValueError, "state_dict must be of a recorder with num_classes=4, got one with"),
    ]
    for entry, value in before.items():
        if not isinstance(value, torch.Tensor):
            continue
        wrong = torch.full_like(value, math.nan) if value.is_floating_point() else value.int() - 99
        bad += [
            ({k: v for k, v in before.items() if k != entry}, ValueError, f"state_dict must have {entry}"),
            ({**before, entry: value[:-1]}, ValueError, rf"state_dict\['{entry}'\] must have shape"),
            ({**before, entry: value.bool()}, TypeError, rf"state_dict\['{entry}'\] must be .*, got torch.bool"),
        ]
        if wrong.dtype == value.dtype:
            bad.append(({**before, entry: wrong}, ValueError, rf"state_dict\['{entry}'\] must be .*, got (nan|-)"))
    for given, error, message in bad:
        with pytest.raises(error, match=f"{kind}: {message}"):
            dynamics.load_state_dict(given)
        assert same(dynamics.state_dict(), before)


@every
def test_nothing_is_shared_with_the_caller(name: str) -> None:
    labels = torch.from_numpy(LABELS.copy())
    dynamics = MAKERS[name](labels=labels)
    dynamics.load_state_dict(told(name).state_dict())
    wanted = dynamics.scores()
    labels.zero_()
    for taken in (dynamics.state_dict().values(), [dynamics.scores()]):
        for value in taken:
            if isinstance(value, torch.Tensor):
                value.fill_(1)
    assert dynamics.scores().numpy().tobytes() == wanted.numpy().tobytes()
    assert dynamics.fingerprint == MAKERS[name]().fingerprint


@every
def test_any_container_dtype_and_surroundings(name: str) -> None:
    wanted = told(name).scores().numpy().tobytes()
    holds: list[tuple[Callable[[np.ndarray], Any], Callable[[np.ndarray], Any]]] = [
        (list, lambda z: z.tolist()),
        (pd.Series, pd.DataFrame),
        (lambda i: torch.from_numpy(i).int(), lambda z: torch.from_numpy(z).double().requires_grad_()),
    ]
    surroundings: list[contextlib.AbstractContextManager[Any]] = [
        contextlib.nullcontext(),
        torch.inference_mode(),
        torch.device("meta"),
        torch.autocast("cpu", torch.bfloat16),
    ]
    for rows, values in holds:
        for around in surroundings:
            with around:
                dynamics = MAKERS[name](labels=rows(LABELS))
                for epoch in training(1)[:3]:
                    for indices, logits in epoch:
                        dynamics.update(rows(indices), logits=values(logits))
            for epoch in training(1)[3:6]:
                for indices, logits in epoch:
                    dynamics.update(rows(indices), logits=values(logits))
            assert dynamics.scores().numpy().tobytes() == wanted


@every
def test_batches_of_nothing_and_of_half_types(name: str) -> None:
    dynamics = told(name)
    before = dynamics.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dynamics.update([], logits=torch.zeros(0, C))
    assert same(dynamics.state_dict(), before)
    logits = torch.randn(N, C, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    other = told(name)
    dynamics.update(range(N), logits=logits)
    other.update(range(N), logits=logits.float())
    assert same(dynamics.state_dict(), other.state_dict())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Forgetting(np.array([], int)), ValueError, r"Forgetting: labels must be \[N\] with N > 0, got \[0\]"),
        (lambda: Forgetting([0.5]), TypeError, "Forgetting: labels must be integers, got torch.float64"),
        (lambda: AUM([0, -1]), ValueError, "AUM: labels must be between 0 and .*, got -1"),
        (lambda: AUM([0, 4], 4), ValueError, "AUM: labels must be between 0 and 3, got 4"),
        (lambda: AUM([0, 0], 1), ValueError, "AUM: num_classes must be between 2 and .*, got 1"),
        (lambda: TDDS([2**40]), ValueError, "TDDS: labels must be between 0 and 2147483647, got 1099511627776"),
        (lambda: TDDS([0, 1], window=2), ValueError, "TDDS: window must be at least 3, got 2"),
        (lambda: TDDS([0, 1], decay=0), ValueError, r"TDDS: decay must be in \(0, 1\], got 0"),
        (lambda: DynamicUncertainty([0], window=1), ValueError, "DynamicUncertainty: window must be at least 2, got 1"),
        (lambda: DynamicUncertainty([0], window=3.0), TypeError, "window must be an int, got float"),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_as_wide_as_the_labels_need() -> None:
    assert [TDDS(labels).num_classes for labels in ([0, 0], [0, 6], np.array([3], np.uint8))] == [2, 7, 4]
    assert repr(TDDS([0, 2])) == "TDDS(num_samples=2, num_classes=3, window=10, decay=0.9)"
