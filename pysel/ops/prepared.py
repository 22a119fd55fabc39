"""Weights that change a few at a time, and are drawn from in between: prioritised replay."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pysel import _checks
from pysel._fake import level_sizes

__all__ = ["PreparedWeights", "prepare"]


def prepare(weights: Tensor) -> PreparedWeights:
    """Sums over blocks of ``weights``, with which draws and changes no longer read all of them.

    Args:
        weights: [n], n > 0, float32, float64, bfloat16 or float16; finite and at least 0. They are copied.

    Returns:
        what :func:`weighted_sample` takes in their place, on the same device.

    Raises:
        ValueError: a wrong shape; a negative, infinite or NaN weight.
        TypeError: a wrong dtype.

    Example:
        >>> import torch, pysel
        >>> priorities = pysel.prepare(torch.tensor([1.0, 3.0, 0.0, 4.0]))
        >>> pysel.weighted_sample(priorities, 5, replacement=True, key=pysel.key(0))
        tensor([3, 3, 1, 3, 3])
        >>> priorities.update_(torch.tensor([1, 2]), torch.tensor([0.0, 8.0]))
        PreparedWeights(4 weights, torch.float32)
        >>> priorities.probabilities(torch.tensor([0, 2, 3]))
        tensor([0.0769, 0.6154, 0.3077], dtype=torch.float64)
    """
    _checks.tensor("prepare", "weights", weights)
    return PreparedWeights(weights.detach().contiguous().clone())


class PreparedWeights:
    """Made by :func:`prepare`.

    Draws are those of :func:`weighted_sample` from the weights as they stand, index for index: sums are kept in its
    fixed point, as integers, and so do not depend on the order of changes. A draw looks at some 64 numbers for each
    factor of 64 in n, a change at a few of them. Where a change moves the largest weight past a power of two, all sums
    are made anew, in one pass over the weights. It takes n / 8 bytes and, for the largest of each block, 1 / 64 of the
    weights beside them. Devices without a native kernel read all weights, too, and give the same.
    """

    def __init__(self, weights: Tensor) -> None:
        self.tables: tuple[Tensor, Tensor, Tensor] = (weights, *torch.ops.pysel.prepare(weights))

    def __len__(self) -> int:
        return len(self.tables[0])

    def __repr__(self) -> str:
        return f"PreparedWeights({len(self)} weights, {self.tables[0].dtype})"

    @property
    def weights(self) -> Tensor:
        """A copy of the weights [n] as they stand."""
        return self.tables[0].clone()

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.tables[0].device

    def update_(self, index: Tensor, weight: Tensor) -> PreparedWeights:
        """Give some items other weights, in place; everything is checked before anything is written.

        Args:
            index: int64 [m], in [0, n). Of an index that is listed twice the last weight stands.
            weight: [m], of the weights' dtype, finite and at least 0.

        Returns:
            self.

        Raises:
            IndexError: an index out of range.
            ValueError: other shapes or devices; a negative, infinite or NaN weight.
            TypeError: wrong dtypes.
        """
        weights = self.tables[0]
        _checks.tensor("update_", "index", index, (torch.int64,))
        _checks.tensor("update_", "weight", weight, (weights.dtype,))
        _checks.same_device("update_", "index", index, "the weights", weights)
        _checks.same_device("update_", "weight", weight, "the weights", weights)
        torch.ops.pysel.update_prepared_(*self.tables, index, weight.detach())
        return self

    def probabilities(self, index: Tensor) -> Tensor:
        """float64, the probability that a draw is each of these items: weights over their sum, for importance weights.

        Args:
            index: int64, of any shape, in [0, n).

        Raises:
            IndexError: an index out of range.
            ValueError: all weights are 0.
        """
        _checks.tensor("probabilities", "index", index, (torch.int64,))
        if index.numel():
            low, high = (int(x) for x in index.aminmax())
            if low < 0 or high >= len(self):
                got = low if low < 0 else high
                raise IndexError(f"probabilities: index must be between 0 and {len(self) - 1}, got {got}")
        weights, sums, largest = self.tables
        top = slice(-level_sizes(len(self))[-1], None)
        total = int(sums[-1]) % 2**64
        if total == 0:
            raise ValueError("probabilities: weights must have at least one above 0, got only zeros")
        shift = 64 - (len(self) - 1).bit_length() - math.frexp(float(largest[top].max()))[1]
        return weights[index].double() / math.ldexp(total, -shift)

    def state_dict(self) -> dict[str, Any]:
        """The weights; sums are made of them."""
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the weights of a `state_dict` of as many.

        Raises:
            TypeError, ValueError, KeyError: it is no such state; nothing has changed then.
        """
        weights, own = state["weights"], self.tables[0]
        _checks.tensor("load_state_dict", "weights", weights, (own.dtype,))
        if weights.shape != own.shape:
            raise ValueError(f"load_state_dict: weights must have shape {list(own.shape)}, got {list(weights.shape)}")
        self.tables = prepare(weights.to(self.device)).tables
