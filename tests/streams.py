"""What every method for streams must hold to."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pysel.selection import StreamSelector
from tests.epochs import through_a_file

C, D = 3, 4


def arrivals(step: int, n: int = 20) -> dict[str, Any]:
    """A made-up batch, the same whenever it is asked for."""
    generator = np.random.default_rng([step, 3])
    return {
        "logits": generator.normal(size=(n, C)),
        "labels": generator.integers(C, size=n),
        "features": generator.normal(size=(n, D)),
    }


def judge(selector: StreamSelector, step: int) -> None:
    """A refresh with the outputs that it may need."""
    generator = np.random.default_rng([step, 4])
    held = len(selector)
    selector.refresh(generator.normal(size=(held, C)), features=generator.normal(size=(held, D)))


def run(selector: StreamSelector, steps: range, hold: Callable[[np.ndarray], Any] = np.asarray) -> list[Any]:
    """Masks, and what is replayed."""
    seen: list[Any] = []
    for step in steps:
        batch = {name: hold(values) for name, values in arrivals(step).items()}
        seen.append(selector.offer(batch["logits"], batch["labels"], features=batch["features"]).tolist())
        if step % 3 == 2:
            judge(selector, step)
            seen.append(selector.replay(2).tolist())
    return seen


def same_state(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name] for name in a
    )


def check(make: Callable[[int], StreamSelector], tmp_path: Path) -> None:
    """Determinism by key, exact resume, any container, and refusals without a trace.

    ``make`` gives a selector of a key, of `C` classes and `D` features.
    """
    whole = run(make(0), range(9))
    assert run(make(0), range(9)) == whole
    assert run(make(1), range(9)) != whole
    tensor = lambda v: torch.from_numpy(v).requires_grad_(v.dtype.kind == "f")  # noqa: E731
    for hold in (np.ndarray.tolist, tensor, lambda v: pd.DataFrame(v) if v.ndim == 2 else pd.Series(v)):
        assert run(make(0), range(9), hold) == whole

    default_device = torch.device("meta")
    for surroundings in (
        default_device,
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
    ):
        with surroundings:
            selector = make(0)
            before = run(selector, range(4))
            assert before == whole[: len(before)]
        resumed = make(7)
        resumed.load_state_dict(through_a_file(selector.state_dict()))
        selector.save(tmp_path)
        loaded = type(selector).load(tmp_path)
        assert repr(loaded) == repr(selector)
        assert loaded.stats() == resumed.stats() == selector.stats()
        for one in (selector, resumed, loaded):
            assert run(one, range(4, 9)) == whole[len(before) :]
        state = selector.state_dict()
        for value in selector.state_dict().values():  # copies
            if isinstance(value, torch.Tensor):
                value.fill_(5)
        assert same_state(selector.state_dict(), state)
    json.dumps(selector.stats())
    accepted = sum(sum(mask) for mask in whole if len(mask) > 2)
    stats = selector.stats()
    assert (stats["offered"], stats["accepted"]) == (180, accepted)
    assert stats["realised_ratio"] == accepted / 180 and stats["held"] == len(selector)

    # refusals
    before, name, good = selector.state_dict(), type(selector).__name__, arrivals(0)
    nan, wide = good["logits"].copy(), np.zeros((20, C + 1))
    nan[4, 1] = math.nan
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"logits": nan}, ValueError, "logits must be finite, got nan in row 4"),
        ({"logits": wide}, ValueError, rf"logits must be \[B, {C}\], got \[20, {C + 1}\]"),
        ({"logits": good["logits"][0]}, ValueError, rf"logits must be \[B, {C}\], got \[{C}\]"),
        ({"logits": "a"}, TypeError, "logits must be a tensor, an array or a list of numbers, got str"),
        ({"labels": np.full(20, C)}, ValueError, f"labels must be between 0 and {C - 1}, got {C} in row 0"),
        ({"labels": -good["labels"] - 1}, ValueError, f"labels must be between 0 and {C - 1}, got -"),
        ({"labels": good["labels"][:3]}, ValueError, r"labels must have shape \[20\], got \[3\]"),
        ({"labels": good["labels"] * 1.0}, TypeError, "labels must be integers, got torch.float64"),
        ({"indices": np.arange(19)}, ValueError, r"indices must be \[20\], one for each row, got \[19\]"),
        ({"indices": np.zeros(20, int)}, ValueError, "indices must be distinct, got 0 more than once"),
        ({"indices": np.arange(20) - 1}, ValueError, "indices must be between 0 and .*, got -1"),
    ]
    for change, error, message in bad:
        arguments = {**good, **change}
        with pytest.raises(error, match=f"{name}.offer: {message}"):
            selector.offer(**arguments)
        assert same_state(selector.state_dict(), before), message
    for n, error in ((-1, ValueError), (len(selector) + 1, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match=f"{name}.replay: n must be"):
            selector.replay(n)
    for entry, value in before.items():
        states: list[Any] = [{k: v for k, v in before.items() if k != entry}]
        if isinstance(value, torch.Tensor):
            states += [
                {**before, entry: torch.cat([value, value])},
                {**before, entry: value.bool()},
                {**before, entry: 3},
            ]
            if value.is_floating_point():
                states.append({**before, entry: value * math.nan})
        elif isinstance(value, int) and entry != "fingerprint":
            states += [{**before, entry: -1}, {**before, entry: "3"}, {**before, entry: 1.5}]
        for state in states:
            with pytest.raises((ValueError, TypeError), match=f"{name}: |ReplayMemory: |PeaksX"):
                selector.load_state_dict(state)
            assert same_state(selector.state_dict(), before), entry
    none = {name: values[:0] for name, values in good.items()}
    assert selector.offer(**none).tolist() == []
    assert selector.replay(0).tolist() == []
