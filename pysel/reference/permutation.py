"""Plain-torch oracle of the keyed permutation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pysel import _checks
from pysel.reference.random import PERMUTATION, child, random_words, unsigned_order, words64

SHUFFLED = 1024
"""Up to so many elements, all orders are equally likely."""

ROUNDS = 10

_MASK = 0xFFFFFFFF


def _multiply_high(x: Tensor, y: int, carry: Tensor | int = 0) -> Tensor:
    """``(x * y + carry) >> 32`` of 32-bit words."""
    return ((x * y + carry) >> 32) & _MASK


def _value(block: list[int], x: Tensor, modulus: int) -> Tensor:
    slope_high, slope_low, shift_high, shift_low = block
    low = x * slope_low + ((shift_high << 32 | shift_low) + 2**63) % 2**64 - 2**63
    high = ((low >> 32) + x * slope_high) & _MASK
    high = ((high ^ high >> 16) * 0xD2511F53) & _MASK
    high = ((high ^ high >> 15) * 0xCD9E8D57) & _MASK
    return _multiply_high(high, modulus, _multiply_high(low & _MASK, modulus))


def permutation(n: int, key: Tensor, start: int, stop: int) -> Tensor:
    """See :func:`pysel.permutation`."""
    _checks.positions("permutation", n, start, stop)
    key = child(key, PERMUTATION, n)
    if n <= SHUFFLED:
        words = words64(key, PERMUTATION, torch.arange(n, device=key.device))
        return unsigned_order(words).argsort(stable=True)[start:stop].clone()
    rows = math.isqrt(n - 1) + 1
    rows += rows % 2
    columns = -(-n // rows)
    rounds = random_words(key, PERMUTATION, 0, 4 * ROUNDS).view(ROUNDS, 4).tolist()
    out = torch.arange(start, stop, device=key.device)
    row, column = out // columns, out % columns
    walking = torch.ones_like(out, dtype=torch.bool)
    while bool(walking.any()):
        for k in range(0, ROUNDS, 2):
            row = (row + _value(rounds[k], column, rows)) % rows
            column = (column + _value(rounds[k + 1], row, columns)) % columns
        out[walking] = row[walking] * columns + column[walking]
        walking &= (out < 0) | (out >= n)  # the table may reach past 2^63
    return out
