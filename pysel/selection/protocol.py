"""What every selection method offers, and how it is saved."""

from __future__ import annotations

import hashlib
import json
import numbers
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self

_FORMAT = 1  # of a saved folder


class Selector:
    """A rule for which samples to train on in each epoch: the base of all selection methods.

    A method defines `select` and `__len__`, and passes to this constructor what it was built from. It then has a
    representation, a fingerprint, `state_dict` and `load_state_dict`, `save` and `load`. `pysel.SelectionSampler` takes
    any object with the first two and the state's two methods, derived from this class or not.

    Args:
        num_samples: N.
        arguments: the constructor's other arguments, by name: numbers, names, functions.
        tables: those that are tensors, by name.
    """

    def __init__(
        self, num_samples: int, arguments: Mapping[str, Any], tables: Mapping[str, Tensor | None] | None = None
    ) -> None:
        self.num_samples = num_samples
        self._arguments = {name: _plain(value) for name, value in arguments.items()}
        self._tables = {name: table for name, table in (tables or {}).items() if table is not None}
        self._digest: int | None = None

    def select(self, epoch: int = 0) -> Tensor:
        """The samples of an epoch: int64 indices, ascending. Asking again, or backwards, gives the same answer."""
        raise NotImplementedError

    def __len__(self) -> int:
        """How many samples the epoch that was selected last holds; before any, the first epoch."""
        raise NotImplementedError

    def update(self, indices: Tensor, *, losses: Tensor | None = None, logits: Tensor | None = None) -> None:
        """Tell what training has seen of samples; methods that learn nothing from it do nothing.

        Args:
            indices: int64 [B] samples of a batch.
            losses: [B] their losses, unweighted.
            logits: [B, C] the network's outputs.
        """

    def weights(self, indices: Tensor) -> Tensor:
        """Factors [B] for the losses of samples ``indices``, int64 [B], of the current subset: here all 1."""
        return torch.ones(indices.shape, device=indices.device)

    def steps(self, batch_size: int, drop_last: bool = False) -> int:
        """Batches in the epoch that ``len`` speaks of."""
        return len(self) // batch_size if drop_last else -(-len(self) // batch_size)

    def __repr__(self) -> str:
        given = [f"{name}={value!r}" for name, value in self._arguments.items() if name != "num_samples"]
        return f"{type(self).__name__}({', '.join([f'num_samples={self.num_samples}', *given])})"

    # --- state ---

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
        """What else than tables and arguments the next subset depends on: numbers and tensors."""
        return {}

    def _load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `_state` gave."""

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to continue with the same tables and arguments.

        Numbers, strings and tensors, of the same shapes in every epoch. The tables are not included: they are inputs.
        """
        return {"arguments": dict(self._arguments), "fingerprint": self.fingerprint, **self._state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict` of a selector with the same tables and arguments.

        Raises:
            ValueError: entries are missing, or the state belongs to other arguments or tables; nothing has changed.
        """
        name = type(self).__name__
        missing = [entry for entry in self.state_dict() if entry not in state_dict]
        if missing:
            raise ValueError(f"{name}: state_dict must have {', '.join(missing)}")
        for argument, mine in self._arguments.items():
            theirs = state_dict["arguments"].get(argument)
            if theirs != mine:
                raise ValueError(
                    f"{name}: state_dict must be of a selector with {argument}={mine!r}, got one with {theirs!r}"
                )
        if state_dict["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"{name}: state_dict must be of a selector with the same tables (fingerprint {self.fingerprint:x}), "
                f"got one of other tables ({state_dict['fingerprint']:x})"
            )
        self._load_state({entry: state_dict[entry] for entry in self._state()})

    @classmethod
    def _restore(cls, tables: dict[str, Tensor], arguments: dict[str, Any]) -> Self:
        """A selector of the tables and arguments that `save` has written."""
        make: Callable[..., Self] = cls  # each method's constructor has arguments of its own
        return make(**tables, **arguments)

    def save(self, path: str | Path) -> None:
        """Write arguments, tables and state into a folder: selector.json and tables.safetensors.

        Raises:
            ValueError: an argument is a function, which cannot be written; nothing has been.
        """
        name = type(self).__name__
        for argument, value in self._arguments.items():
            if callable(value):
                raise ValueError(f"{name}: {argument} must be a name or a number to be saved, got {value!r}")
        state = self._state()
        tensors = {f"state.{entry}": value for entry, value in state.items() if isinstance(value, Tensor)}
        text = json.dumps(
            {
                "format": _FORMAT,
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

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Make the selector again that `save` wrote, where it was.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it holds another kind of selector, or tables that do not belong to its fingerprint.
        """
        folder = Path(path)
        saved = json.loads((folder / "selector.json").read_text())
        if saved["format"] != _FORMAT or saved["selector"] != cls.__name__:
            raise ValueError(
                f"{cls.__name__}.load: path must hold a {cls.__name__} in format {_FORMAT}, "
                f"got a {saved['selector']} in format {saved['format']}"
            )
        stored = load_file(folder / "tables.safetensors", device=str(device))
        state = {name.removeprefix("state."): t for name, t in stored.items() if name.startswith("state.")}
        tables = {name: t for name, t in stored.items() if not name.startswith("state.")}
        selector = cls._restore(tables, {name: _exact(value) for name, value in saved["arguments"].items()})
        selector.load_state_dict({**saved, **saved["state"], **state})
        return selector


def _plain(value: Any) -> Any:
    """An argument as JSON and ``torch.load`` take it; a number that they have not, as the fraction that was written."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if value is None or isinstance(value, bool | float | str) or callable(value):
        return value
    return str(Fraction(str(value)))


def _exact(value: Any) -> Any:
    """The argument that `_plain` gave."""
    return Fraction(value) if isinstance(value, str) and re.fullmatch(r"\d+(/\d+)?", value) else value
