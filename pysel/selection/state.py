"""What is built from arguments and tables, goes on from a state and can be saved: the base of all methods."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pysel import _checks

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT = 1  # of a saved folder

# Decorates what gives tensors that outlive a caller's inference mode: training goes on with them outside of it.
lasting = torch.inference_mode(False)


class Stateful:
    """What has a representation, a fingerprint, `state_dict` and `load_state_dict`, `save` and `load`.

    A derived class passes to this constructor what it was built from, and defines `_state` and `_load_state`.

    Args:
        arguments: the constructor's arguments, by name: numbers, names, functions.
        tables: those that are tensors, by name; they must be its own, and not the caller's.
    """

    _kind = "selector"  # what messages call it

    def __init__(self, arguments: Mapping[str, Any], tables: Mapping[str, Tensor | None] | None = None) -> None:
        self._arguments = {name: _plain(value) for name, value in arguments.items()}
        self._tables = {name: table for name, table in (tables or {}).items() if table is not None}
        self._digest: int | None = None

    def __repr__(self) -> str:
        of = {"num_samples": self.num_samples} if hasattr(self, "num_samples") else {}  # streams have none
        given = ", ".join(f"{name}={value!r}" for name, value in {**of, **self._arguments}.items())
        return f"{type(self).__name__}({given})"

    @property
    def fingerprint(self) -> int:
        """63 bits of a hash of the tables: equal for equal tables on any device."""
        if self._digest is None:
            digest = hashlib.blake2b(digest_size=8)
            for name, table in sorted(self._tables.items()):
                digest.update(f"{name} {table.dtype} {list(table.shape)}".encode())
                for part in table.detach().cpu().contiguous().view(-1).split(1 << 22):
                    digest.update(part.view(torch.uint8).numpy())
            self._digest = int.from_bytes(digest.digest(), "little") >> 1
        return self._digest

    def _state(self) -> dict[str, Any]:
        """What else than tables and arguments the future depends on: ints, floats and copies of tensors."""
        return {}

    def _load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `_state` gave: numbers, and copies of the same shapes, dtypes and devices as one's own.

        What else can be wrong with them has to be found before anything is changed.
        """

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to continue with the same tables and arguments.

        Numbers, strings and tensors, of the same shapes in every epoch. The tables are not included: they are inputs.
        """
        return {"arguments": self._described(), "fingerprint": self.fingerprint, **self._state()}

    def _described(self) -> dict[str, Any]:
        """The arguments, functions by name: ``torch.load`` refuses to make them."""
        return {
            name: f"{value.__module__}.{getattr(value, '__qualname__', '')}" if callable(value) else value
            for name, value in self._arguments.items()
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of one with the same tables and arguments.

        Raises:
            TypeError: it is no dictionary, or an entry has the wrong type.
            ValueError: entries are missing or out of range, or the state belongs to other arguments or tables.
                Nothing has changed then.
        """
        own = self._state()
        self._check_origin(state_dict, own)
        name = type(self).__name__
        with torch.inference_mode(False):
            self._load_state({entry: like(name, entry, state_dict[entry], mine) for entry, mine in own.items()})

    def _check_origin(self, state_dict: Any, entries: Iterable[str]) -> None:
        """Refuse what is not the state, with those entries, of one with the same tables and arguments."""
        name = type(self).__name__
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"{name}: state_dict must be a dictionary, got {type(state_dict).__name__}")
        missing = [entry for entry in ("arguments", "fingerprint", *entries) if entry not in state_dict]
        if missing:
            raise ValueError(f"{name}: state_dict must have {', '.join(missing)}")
        arguments, fingerprint = state_dict["arguments"], state_dict["fingerprint"]
        if not isinstance(arguments, Mapping):
            raise TypeError(f"{name}: state_dict['arguments'] must be a dictionary, got {type(arguments).__name__}")
        for argument, mine in self._described().items():
            theirs = arguments.get(argument)
            if theirs != mine:
                raise ValueError(
                    f"{name}: state_dict must be of a {self._kind} with {argument}={mine!r}, got one with {theirs!r}"
                )
        if _checks.integer(name, "state_dict['fingerprint']", fingerprint) != self.fingerprint:
            raise ValueError(
                f"{name}: state_dict must be of a {self._kind} with the same tables "
                f"(fingerprint {self.fingerprint:x}), got one of other tables ({fingerprint:x})"
            )

    @classmethod
    def _restore(cls, tables: dict[str, Tensor], arguments: dict[str, Any], state: dict[str, Any]) -> Self:
        """One of the tables and arguments that `save` has written; its state is loaded afterwards."""
        make: Callable[..., Self] = cls  # each method's constructor has arguments of its own
        return make(**tables, **arguments)

    def save(self, path: str | Path) -> None:
        """Write arguments, tables and state into a folder: selector.json and tables.safetensors.

        Raises:
            ValueError: an argument is a function, which cannot be written; nothing has been.
        """
        name = type(self).__name__
        self._check_writable()
        state = self._state()
        tensors = {f"state.{entry}": value for entry, value in state.items() if isinstance(value, Tensor)}
        text = json.dumps(
            {
                "format": FORMAT,
                "selector": name,
                "arguments": self._arguments,
                "fingerprint": self.fingerprint,
                "state": {entry: value for entry, value in state.items() if not isinstance(value, Tensor)},
            },
            indent=2,
        )
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        stored = {entry: t.detach().cpu().contiguous() for entry, t in {**self._tables, **tensors}.items()}
        save_file(stored, folder / "tables.safetensors")
        (folder / "selector.json").write_text(text + "\n")

    def _check_writable(self) -> None:
        for argument, value in self._arguments.items():
            if callable(value):
                raise ValueError(
                    f"{type(self).__name__}: {argument} must be a name or a number to be saved, got {value!r}"
                )

    @classmethod
    def _read(cls, folder: Path) -> dict[str, Any]:
        """What `save` wrote beside the tensors."""
        saved: dict[str, Any] = json.loads((folder / "selector.json").read_text())
        if (saved.get("format"), saved.get("selector")) != (FORMAT, cls.__name__):
            raise ValueError(
                f"{cls.__name__}.load: path must hold a {cls.__name__} in format {FORMAT}, "
                f"got a {saved.get('selector')} in format {saved.get('format')}"
            )
        return saved

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Make again what `save` wrote, where it was.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it holds something else, or tables that do not belong to its fingerprint.
        """
        folder = Path(path)
        saved = cls._read(folder)
        stored = load_file(folder / "tables.safetensors", device=str(device))
        tensors = {name.removeprefix("state."): t for name, t in stored.items() if name.startswith("state.")}
        state = {**saved["state"], **tensors}
        tables = {name: t for name, t in stored.items() if not name.startswith("state.")}
        selector = cls._restore(tables, {name: exact(value) for name, value in saved["arguments"].items()}, state)
        selector.load_state_dict({**saved, **state})
        return selector


def like(op: str, entry: str, theirs: Any, mine: Any) -> Any:
    """A state's entry as a selector keeps its own: a number, or a copy of a tensor."""
    name = f"state_dict[{entry!r}]"
    if not isinstance(mine, Tensor):
        return (_checks.integer if isinstance(mine, int) else _checks.number)(op, name, theirs)
    _checks.tensor(op, name, theirs, (mine.dtype,))
    if theirs.shape != mine.shape:
        raise ValueError(f"{op}: {name} must have shape {list(mine.shape)}, got {list(theirs.shape)}")
    return theirs.detach().to(mine.device, copy=True)


def _plain(value: Any) -> Any:
    """An argument as JSON and ``torch.load`` take it; a number is the decimal one that was written."""
    if value is None or isinstance(value, bool | str) or callable(value):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if not math.isfinite(value):
        return float(value)
    exact = _checks.exact(value)
    near = float(exact)
    return near if _checks.exact(near) == exact else str(exact)


def exact(value: Any) -> Any:
    """The argument that `_plain` gave."""
    return Fraction(value) if isinstance(value, str) and re.fullmatch(r"\d+(/\d+)?", value) else value
