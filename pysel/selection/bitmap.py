"""A subset as one bit for each sample, whose j-th member is found without a list of them.

Words of 64 bits, eight to a block; beside them how many members there are up to each block's end::

    members up to     | 261               | 498               | ...
    words             | w0 w1 ... w7      | w8 ...            |
    sample            0                   512                 1024

The j-th member's block is found by bisection, its word by the counts of eight words, its bit by halving the word.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pysel import _checks

_WORD, _BLOCK = 64, 512
_PIECE = 1 << 22  # samples looked at at a time


class Bitmap:
    """An ascending set of indices in [0, N), in N / 8 bytes and a directory of as much again an eighth.

    It is indexed like the int64 tensor of its members, by a slice or by a tensor of positions.

    Args:
        words: int64 [ceil(N / 64)] on the CPU; bit b of word w says whether 64 w + b is a member. None: all are.
        num_samples: N.

    Raises:
        TypeError, ValueError: ``words`` of another dtype or shape, or with bits beyond N.

    Example:
        >>> bitmap = Bitmap(torch.tensor([0b10110]), 40)
        >>> len(bitmap), bitmap[0:3], bitmap[torch.tensor([2, 0])]
        (3, tensor([1, 2, 4]), tensor([4, 1]))
    """

    def __init__(self, words: Tensor | None, num_samples: int) -> None:
        op = "Bitmap"
        self.num_samples = _checks.in_range(op, "num_samples", num_samples, 0)
        count = -(-num_samples // _WORD)
        beyond = -1 << num_samples % _WORD if num_samples % _WORD else 0  # bits of the last word that stand for nothing
        if words is None:
            words = torch.full((count,), -1, dtype=torch.int64, device="cpu")
            words[-1:] &= ~beyond
        _checks.tensor(op, "words", words, (torch.int64,))
        if words.shape != (count,):
            raise ValueError(f"{op}: words must have shape [{count}], got {list(words.shape)}")
        if count and int(words[-1]) & beyond:
            raise ValueError(f"{op}: words must have no bits from {num_samples} on")
        padded = torch.zeros(-(-num_samples // _BLOCK) * (_BLOCK // _WORD), dtype=torch.int64, device="cpu")
        padded[:count] = words
        self.words = padded[:count]  # a copy of those given, and the only one
        self._blocks = padded.view(-1, _BLOCK // _WORD)
        counts = [_ones(part).sum(1) for part in self._blocks.split(_PIECE // _BLOCK)]
        self._upto = torch.cat([words.new_zeros(1), *counts]).cumsum(0)  # int64 [blocks + 1]

    def __len__(self) -> int:
        """How many members there are."""
        return int(self._upto[-1])

    def numel(self) -> int:
        """The same, as of a tensor."""
        return len(self)

    def __getitem__(self, where: slice | Tensor) -> Tensor:
        """The members at such positions [n], int64.

        Raises:
            TypeError: the positions are neither a slice nor a tensor [n] of integers.
            IndexError: a position is outside [0, len).
        """
        at = torch.arange(*where.indices(len(self)), device="cpu") if isinstance(where, slice) else where
        _checks.tensor("Bitmap", "positions", at, (torch.int64, torch.int32))
        if at.dim() != 1:
            raise TypeError(f"Bitmap: positions must be a slice or a tensor [n], got {list(at.shape)}")
        if not at.numel():
            return at.new_empty(at.shape, dtype=torch.int64)
        low, high = int(at.min()), int(at.max())
        if low < 0 or high >= len(self):
            raise IndexError(f"Bitmap: positions must be between 0 and {len(self) - 1}, got {low if low < 0 else high}")
        block = torch.searchsorted(self._upto, at.contiguous(), right=True) - 1
        words = self._blocks[block]
        upto = _ones(words).cumsum(1)
        rest = at - self._upto[block]  # members before it in the block
        word = (upto <= rest[:, None]).sum(1)
        bits = words.gather(1, word[:, None]).squeeze(1)
        rest -= upto.gather(1, word[:, None]).squeeze(1) - _ones(bits)
        bit = torch.zeros_like(rest)
        for half in (32, 16, 8, 4, 2, 1):
            before = _ones(bits & ((1 << half) - 1))
            above = rest >= before
            rest -= before * above
            bit += half * above
            bits = torch.where(above, bits >> half, bits)
        return _BLOCK * block + _WORD * word + bit

    def has(self, samples: Tensor) -> Tensor:
        """Which of ``samples``, int64 in [0, N), are members: bool."""
        return ((self.words[samples // _WORD] >> samples % _WORD) & 1).bool()

    def between(self, start: int, stop: int) -> Tensor:
        """The members in [start, stop), int64 ascending."""
        return torch.cat([torch.empty(0, dtype=torch.int64, device="cpu"), *self._between(start, stop)])

    def _between(self, start: int, stop: int) -> Iterator[Tensor]:
        for first in range(start // _WORD * _WORD, stop, _PIECE):
            octets = self.words[first // _WORD : -(-min(first + _PIECE, stop) // _WORD)].view(torch.uint8)
            members = ((octets[:, None] >> torch.arange(8, dtype=torch.uint8, device="cpu")) & 1).flatten().nonzero()
            members = members.flatten() + first
            yield members[(members >= start) & (members < stop)]

    def __repr__(self) -> str:
        return f"Bitmap({len(self)} of {self.num_samples})"


def packed(rows: Tensor, offset: int, count: int, num_samples: int) -> Tensor:
    """The bytes of a `Bitmap`'s words, uint8 [8 ceil(N / 64)], with bits only for rows [m] of a part.

    Args:
        rows: int64, distinct, in [0, count).
        offset: the sample that is the part's row 0.
    """
    octets = torch.zeros(-(-num_samples // _WORD) * 8, dtype=torch.uint8, device=rows.device)
    first, before = divmod(offset, 8)
    member = torch.zeros(-(-(before + count) // 8) * 8, dtype=torch.uint8, device=rows.device)
    member[rows + before] = 1
    shift = torch.arange(8, dtype=torch.uint8, device=rows.device)
    octets[first : first + len(member) // 8] = (member.view(-1, 8) << shift).sum(1, dtype=torch.uint8)
    return octets


def _ones(words: Tensor) -> Tensor:
    """How many bits of each are set, by adding up ever wider fields (shifts keep the sign: masks take it off)."""
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (words * 0x0101010101010101) >> 56
