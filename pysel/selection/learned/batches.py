"""Where training data come from: tensors and arrays, cut into batches here, or a loader of the user's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pysel import _inputs, ops
from pysel.random import fold_in


class Batch(NamedTuple):
    """Samples of one step."""

    indices: Tensor  # int64 [B], on the CPU or where x is
    x: Tensor  # [B, ...] inputs of the task network
    y: Tensor  # [B, ...]
    seen: Tensor  # [B, ...] what a selector network sees of them

    @property
    def rows(self) -> int:
        return self.indices.numel()

    def at(self, rows: Tensor) -> Batch:
        """Some of its samples, by a mask or by places."""
        rows = torch.nonzero(rows).flatten() if rows.dtype == torch.bool else rows
        indices, x, y = (part[rows.to(part.device)] for part in self[:3])
        return Batch(indices, x, y, x if self.seen is self.x else self.seen[rows.to(self.seen.device)])

    def to(self, device: torch.device) -> Batch:
        return Batch(*(part.to(device, non_blocking=True) for part in self))


def as_numbers(name: str, value: Any) -> Tensor:
    """A tensor as it is; of an array, a list or a column, floating-point numbers in torch's default dtype."""
    numbers = _inputs.tensor("ASSS", name, value)
    is_new = numbers.is_floating_point() and not isinstance(value, Tensor)
    return numbers.to(torch.get_default_dtype()) if is_new else numbers


def batch_of(given: Any, num_samples: int) -> Batch:
    """What a loader yields, or `ASSS.step` is given: (indices, x, y), and what a selector network sees where that is
    not x.

    Raises:
        TypeError: not that, or without whole numbers as indices.
        ValueError: indices out of range, or parts of different lengths.
    """
    wanted = "ASSS: a batch must be (indices, x, y)"
    if not isinstance(given, list | tuple) or len(given) not in (3, 4):
        got = f"{len(given)} of them" if isinstance(given, list | tuple) else f"a {type(given).__name__}"
        raise TypeError(f"{wanted}: a data set that returns (index, x, y) makes it so; got {got}")
    # tensors made in inference mode cannot take part in training
    given = [part.clone() if isinstance(part, Tensor) and part.is_inference() else part for part in given]
    try:
        indices = _inputs.integers("ASSS", "the indices of a batch", given[0])
    except (TypeError, ValueError) as error:
        raise TypeError(f"{wanted} with one integer a sample as indices: {error}") from None
    if indices.numel() == 0:
        raise ValueError("ASSS: a batch must have at least one sample, got none")
    x, y, *rest = given[1:]
    parts = {"x": x, "y": y, "what the selector sees": rest[0] if rest else x}
    for name, part in parts.items():
        part = parts[name] = as_numbers(name, part)
        if part.dim() == 0 or part.size(0) != indices.numel():
            raise ValueError(f"ASSS: {name} of a batch must have {indices.numel()} rows, got {list(part.shape)}")
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= num_samples:
        raise ValueError(
            f"ASSS: the indices of a batch must be between 0 and {num_samples - 1}, got {low if low < 0 else high}"
        )
    return Batch(indices.long(), *parts.values())


class Tensors:
    """Batches of tensors, in an order that is a function of the key and the epoch.

    Args:
        x: [N, ...], tensor, array or column; arrays of floating-point numbers get torch's default dtype.
        y: [N, ...] likewise.
        seen: [N, ...], or None for x.
    """

    def __init__(self, x: Any, y: Any, seen: Any, batch_size: int, key: Tensor) -> None:
        given = {"x": x, "y": y} if seen is None else {"x": x, "y": y, "selector_inputs": seen}
        parts: dict[str, Tensor] = {}
        for name, value in given.items():
            part = as_numbers(name, value)
            rows = parts["x"].size(0) if parts else part.size(0) if part.dim() else 0
            if rows == 0:
                raise ValueError(f"ASSS: x must be [N, ...] with at least one row, got {list(part.shape)}")
            if part.dim() == 0 or part.size(0) != rows:
                raise ValueError(f"ASSS: {name} must have {rows} rows like x, got {list(part.shape)}")
            if part.is_floating_point():
                _inputs.finite("ASSS", name, part)
            parts[name] = part.to(parts["x"].device) if parts else part
        self.x, self.y = parts["x"], parts["y"]
        self.seen = parts.get("selector_inputs", self.x)
        self.num_samples, self.device = self.x.size(0), self.x.device
        self._batch_size, self._key = batch_size, key.to(self.device)  # the order is made where it is used

    def _batch(self, rows: Tensor) -> Batch:
        x = self.x[rows]
        return Batch(rows, x, self.y[rows], x if self.seen is self.x else self.seen[rows])

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on; no last one of a single sample."""
        order = ops.permutation(self.num_samples, key=fold_in(self._key, epoch))
        sizes = [self._batch_size] * (self.num_samples // self._batch_size)
        if rest := self.num_samples % self._batch_size:
            sizes.append(rest)
        if len(sizes) > 1 and sizes[-1] == 1:
            sizes[-2:] = [sizes[-2] + 1]
        return map(self._batch, order.split(sizes)[start:])

    def all(self) -> Iterator[Batch]:
        """Every sample once."""
        return map(self._batch, torch.arange(self.num_samples, device=self.device).split(4 * self._batch_size))


class Given:
    """Batches as they come from a training loop of the user's.

    Args:
        batches: of (indices, x, y).
        num_samples: N.
    """

    def __init__(self, batches: Iterable[Any], num_samples: int) -> None:
        self.batches, self.num_samples = batches, num_samples

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """One pass; the loop's own affair which epoch that is."""
        return (batch_of(given, self.num_samples) for given in self.batches)

    def all(self) -> Iterator[Batch]:
        """One pass."""
        return self.epoch(0)


class Loader:
    """Batches of a loader that yields (indices, x, y) each time that it is iterated.

    Args:
        loader: its sampler is told the epoch, if it has ``set_epoch``.
        num_samples: N; default the length of the loader's data set.
    """

    device = None  # the network's

    def __init__(self, loader: Iterable[Any], num_samples: int | None) -> None:
        if not isinstance(loader, Iterable) or isinstance(loader, Iterator):
            raise TypeError(
                "ASSS: x must be a tensor, an array, or a loader of (indices, x, y) that can be iterated many times, "
                f"got {type(loader).__name__}"
            )
        if num_samples is None:
            try:
                num_samples = len(loader.dataset)  # type: ignore[attr-defined]
            except (AttributeError, TypeError):
                raise ValueError("ASSS: num_samples must be given, as the loader's data set has no length") from None
        self.loader, self.num_samples = loader, num_samples
        self._last = -1  # epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on; one of a single sample comes with the one before."""
        for of in (getattr(self.loader, "sampler", None), getattr(self.loader, "batch_sampler", None), self.loader):
            if callable(getattr(of, "set_epoch", None)):
                of.set_epoch(epoch)  # type: ignore[union-attr]
                break
        self._last = epoch
        waiting: Batch | None = None
        number = -1
        for given in self.loader:
            batch = batch_of(given, self.num_samples)
            if waiting is not None and batch.rows == 1:
                waiting = Batch(*map(torch.cat, zip(waiting, batch, strict=True)))
                continue
            if waiting is not None and number >= start:
                yield waiting
            waiting, number = batch, number + 1
        if waiting is None:
            raise ValueError("ASSS: x must yield at least one batch, got a loader without any")
        if number >= start:
            yield waiting

    def all(self) -> Iterator[Batch]:
        """What one more pass yields."""
        return self.epoch(self._last + 1)
