"""How many winners each shard has: the exact selection of the k first of many sorted parts that never meet.

An element's place is decided by a tuple of integers, smallest first: its group, its key, the random word that orders
equal keys if there is one, and its index. No two are equal, so a rank of the tuple is enough to cut at. Pivots divide
each group into bins, all ranks add up how many elements they have in each, and a bin is won, lost, or cut in two::

    group 0                      group 1
    |  won  |  won  | CUT | lost | won | CUT | lost | lost |
                    ^pivots

What lies in a bin that is cut goes on to the next round, with finer pivots from among it. The first round has no order
yet: it takes a random sample, and from it without groups two pivots between which the cut lies but for bad luck, which
costs time and nothing else, with groups all. What is left then is little and gets sorted, so that each rank's pivots
are spaced by rank and narrow down any distribution, ties included. Half of them are even, and half are where the cut
would be if all shards were alike. When the remainder fits into a message all ranks get all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pysel import _checks, ops
from pysel.distributed.agree import Meeting, add, gather

PIECE = 1 << 22  # elements whose keys exist at a time
_ORDER_STREAM = 2  # see csrc/common/philox.h
_RUN = 32  # neighbours in a sample
_BYTES = 3 << 18  # of all ranks' pivots together
_INDEX_BITS = 42  # in a message; the other 21 are the group's
_LEAST = torch.iinfo(torch.int64).min


class Piece(NamedTuple):
    """Some elements of a shard."""

    rows: Tensor  # int64 [m] where they are, ascending
    values: Tensor  # [m]
    groups: Tensor | None  # [m]


class Shard(NamedTuple):
    """What a rank has to offer."""

    rows: int
    largest: bool  # whether the largest values come first
    values: Callable[[slice], Tensor]  # [m] of a part of the rows
    can_win: Callable[[slice], Tensor] | None  # bool [m] of a part; None: all of them
    groups: Tensor | None  # int64 or int32 [rows]
    offset: int  # rows of the shards before
    key: Tensor | None  # equal values go by its words; None: by index

    def pieces(self) -> Iterator[Piece]:
        """All elements that can win, a few million rows at a time; at least one piece, be it empty."""
        return (self.piece(slice(first, min(self.rows, first + PIECE))) for first in range(0, max(self.rows, 1), PIECE))

    def piece(self, part: slice) -> Piece:
        """Those of a part of the rows."""
        values = self.values(part)
        rows = torch.arange(part.start, part.stop, device=values.device)
        groups = None if self.groups is None else self.groups[part]
        inside = None if self.can_win is None else self.can_win(part)
        if inside is not None and not bool(inside.all()):
            rows, values, groups = rows[inside], values[inside], None if groups is None else groups[inside]
        return Piece(rows, values, groups)

    def sample(self, size: int) -> Piece:
        """Elements of random rows, in short runs; all of them where there are no more."""
        if self.rows <= size:
            return self.piece(slice(0, self.rows))
        runs = ops.permutation(self.rows // _RUN, key=0, stop=size // _RUN).sort().values.tolist()
        return joined([self.piece(slice(_RUN * run, _RUN * (run + 1))) for run in runs])

    def ties(self, rows: Tensor) -> Tensor:
        """int64 that ascend as equal elements come."""
        index = rows + self.offset
        return index if self.key is None else torch.ops.pysel.words64(self.key, _ORDER_STREAM, index) ^ _LEAST


def joined(pieces: list[Piece]) -> Piece:
    """All of them in one."""
    groups = [piece.groups for piece in pieces if piece.groups is not None]
    rows, values = torch.cat([piece.rows for piece in pieces]), torch.cat([piece.values for piece in pieces])
    return Piece(rows, values, torch.cat(groups) if groups else None)


def check_groups(op: str, groups: Tensor | None, quotas: Tensor | None, k: int, like_name: str, like: Tensor) -> None:
    """Refuse groups and quotas that do not fit this rank's shard, or ``k``."""
    _checks.groups(op, groups, quotas, like_name, like)
    if groups is None or quotas is None:
        return
    if groups.shape != like.shape:
        raise ValueError(
            f"{op}: groups must have the shape of {like_name}, {list(like.shape)}, got {list(groups.shape)}"
        )
    if quotas.dim() != 1:
        raise ValueError(f"{op}: quotas must have shape [G], got {list(quotas.shape)}")
    if bool((quotas < 0).any()):
        g = int((quotas < 0).nonzero()[0])
        raise ValueError(f"{op}: quotas must be at least 0, got {int(quotas[g])} for group {g}")
    if sum(quotas.tolist()) != k:
        raise ValueError(f"{op}: quotas must sum to k, {k}, got a sum of {sum(quotas.tolist())}")
    outside = (groups < 0) | (groups >= len(quotas))
    if bool(outside.any()):
        wanted = f"between 0 and {len(quotas) - 1}" if len(quotas) else "empty for empty quotas"
        raise IndexError(f"{op}: groups must be {wanted}, got {int(groups[outside][0])}")


def ascending(x: Tensor, largest: bool) -> Tensor:
    """int64 that ascend as numbers do, or descend if the largest are to come first; -0 equals 0."""
    if x.is_floating_point():
        x = x.to(torch.promote_types(x.dtype, torch.float32)) + 0.0
        bits = x.view(torch.int64 if x.dtype == torch.float64 else torch.int32)
        bits = bits ^ ((bits >> (8 * bits.element_size() - 1)) & torch.iinfo(bits.dtype).max)
    else:
        bits = x
    keys = bits.long() << (64 - 8 * bits.element_size())
    return ~keys if largest else keys


def winners(op: str, meeting: Meeting, shard: Shard, quotas: Tensor, size_name: str) -> Tensor:
    """How many of each group's first ``quotas`` are in this rank's shard.

    Args:
        quotas: int64 [G], on the CPU.
        size_name: what messages call the number of a group's elements.

    Returns:
        int64 [G], on the CPU.

    Raises:
        ValueError: a quota is above the number of elements, or there are too many groups; on all ranks.
    """
    most = 1 << (63 - _INDEX_BITS)
    if len(quotas) > most:
        raise ValueError(f"{op}: quotas must be of at most {most} groups, got {len(quotas)}")
    need = quotas.to(shard.values(slice(0, 0)).device)
    device = need.device
    bins = (_Bracket if shard.groups is None else _Pivots)(meeting, shard, need)
    mine = bins.count()
    cut, won = _cut(bins.groups, mine, need, meeting, lambda size: _check(op, size_name, quotas, size))
    held = _sorted(bins.inside(cut.split), shard)
    while bool(cut.split.any()):
        capacity = _BYTES // (8 * (len(held) - 1) * meeting.world)
        size = held.size(1)
        place = _places(held, cut, capacity) if size > capacity else torch.arange(size, device=device)
        message = torch.zeros(len(held) - 1, capacity + 1, dtype=torch.int64, device=device)
        message[:2, 0] = torch.tensor([size, len(place)], device=device)
        message[:, 1 : len(place) + 1] = _packed(held[:, place])
        told = gather(message, meeting.group)
        parts = [_unpacked(part[:, 1 : part[1, 0] + 1]) for part in told]
        if int(told[:, 0, 0].max()) <= capacity:  # these are all
            return (won + _last(parts, cut.need, meeting.rank)).cpu()
        pivots = torch.cat([_starts(held, len(quotas)), *parts], 1)
        pivots = pivots[:, _order(pivots)]
        bin_of = _bin_of(pivots, held)
        mine = torch.bincount(bin_of, minlength=pivots.size(1))
        cut, more = _cut(pivots[0], mine, cut.need, meeting)
        won += more
        held = held[:, cut.split[bin_of]]
    return won.cpu()


class _Cut(NamedTuple):
    split: Tensor  # bool [bins] where a group's last winner and its first loser are both in the bin
    need: Tensor  # int64 [G] winners in it
    size: Tensor  # int64 [G] elements in it


def _cut(
    groups: Tensor, mine: Tensor, need: Tensor, meeting: Meeting, check: Callable[[Tensor], None] | None = None
) -> tuple[_Cut, Tensor]:
    """Divide bins of ascending ``groups`` [bins] into won, cut and lost; and this rank's elements in those won, [G]."""
    counts = add(mine, meeting.group)
    size = torch.zeros_like(need).index_add_(0, groups, counts)
    if check is not None:
        check(size.cpu())
    wanted = need[groups]
    after = counts.cumsum(0) - (size.cumsum(0) - size)[groups]
    before = after - counts
    split = (before < wanted) & (wanted < after)
    rest, held = torch.zeros_like(need), torch.zeros_like(need)
    rest[groups[split]] = (wanted - before)[split]
    held[groups[split]] = counts[split]
    won = torch.zeros_like(need).index_add_(0, groups, mine.masked_fill(after > wanted, 0))
    return _Cut(split, rest, held), won


class _Bracket:
    """The first round's bins without groups: before two pivots, from one to the other, and after."""

    def __init__(self, meeting: Meeting, shard: Shard, need: Tensor) -> None:
        self._shard = shard
        self.groups = torch.zeros(3, dtype=torch.int64, device=need.device)
        capacity = _BYTES // (16 * meeting.world)
        sample = shard.sample(capacity)
        count = len(sample.rows)
        message = torch.zeros(2, capacity + 1, dtype=torch.int64, device=need.device)
        message[0, 0] = count
        message[0, 1 : count + 1] = ascending(sample.values, shard.largest)
        message[1, 1 : count + 1] = shard.ties(sample.rows)
        told = gather(message, meeting.group)
        counts = told[:, 0, 0].tolist()
        drawn = torch.cat([part[:, 1 : n + 1] for part, n in zip(told, counts, strict=True)], 1)
        # an element that was drawn stands for so many
        share = [rows / max(min(rows, capacity // _RUN * _RUN), 1) for rows in meeting.rows]
        weight = need.new_tensor(share, dtype=torch.float64).repeat_interleave(need.new_tensor(counts))
        order = _order(drawn)
        drawn, upto = drawn[:, order], weight[order].cumsum(0)
        size, wanted = max(float(weight.sum()), 1.0), float(need[0])
        typical = float(weight.square().sum()) / size
        margin = 12 * math.sqrt(max(wanted * (1 - wanted / size), 0.0) * typical) + 2 * typical
        low, high = torch.searchsorted(upto, upto.new_tensor([wanted - margin, wanted + margin])).tolist()
        self._low, self._high = self._pivot(drawn, low - 1), self._pivot(drawn, high)
        self._between: list[Piece] = []

    def _pivot(self, drawn: Tensor, at: int) -> tuple[Tensor, int] | None:
        """Value and tie of an element, or None beyond the first and the last."""
        if not 0 <= at < drawn.size(1):
            return None
        like = self._shard.values(slice(0, 0))
        return _value(drawn[0, at], like.dtype, self._shard.largest), int(drawn[1, at])

    def _outside(self, piece: Piece) -> tuple[Tensor, Tensor]:
        """bool [m]: what comes before the low pivot, and what after the high one."""
        masks = []
        for pivot, before in ((self._low, True), (self._high, False)):
            if pivot is None:
                masks.append(torch.zeros_like(piece.rows, dtype=torch.bool))
                continue
            value, tie = pivot
            mask = piece.values > value if before == self._shard.largest else piece.values < value
            equal = (piece.values == value).nonzero().flatten()
            if len(equal):
                ties = self._shard.ties(piece.rows[equal])
                mask[equal] = ties < tie if before else ties > tie
            masks.append(mask)
        return masks[0], masks[1]

    def count(self) -> Tensor:
        """int64 [3]: this rank's elements in each bin."""
        mine = torch.zeros_like(self.groups)
        for piece in self._shard.pieces():
            before, after = self._outside(piece)
            between = ~(before | after)
            self._between.append(Piece(piece.rows[between], piece.values[between], None))
            mine += torch.stack([before.count_nonzero(), between.count_nonzero(), after.count_nonzero()])
        return mine

    def inside(self, split: Tensor) -> Piece:
        """The elements in the bin that is cut: but for bad luck the middle one, which is there."""
        if bool(split[1]) or not bool(split.any()):
            return joined(self._between)
        which = 0 if bool(split[0]) else 1
        wanted = [self._outside(piece)[which] for piece in self._shard.pieces()]
        pieces = zip(self._shard.pieces(), wanted, strict=True)
        return joined([Piece(piece.rows[mask], piece.values[mask], None) for piece, mask in pieces])


class _Pivots:
    """The first round's bins with groups: from each element of a sample to the next.

    Elements have two words: group and the upper half of the key, then its lower half and what orders equal keys. All
    are found by the first; by the second only those, as a rule few, whose first one is a pivot's.
    """

    def __init__(self, meeting: Meeting, shard: Shard, need: Tensor) -> None:
        self._shard = shard
        self._index_bits = (sum(meeting.rows) - 1).bit_length()
        capacity = (1 << 15) // meeting.world
        sample = shard.sample(capacity)
        message = need.new_full((2, capacity), torch.iinfo(torch.int64).max)
        message[0, : len(sample.rows)] = self._first(sample)
        message[1, : len(sample.rows)] = self._second(sample.rows, sample.values)
        starts = torch.stack([torch.arange(len(need), device=need.device) << 32, torch.zeros_like(need)])
        words = torch.cat([starts, *gather(message, meeting.group)], 1)
        words = words[:, words[0] < len(need) << 32]
        self._firsts, number = torch.unique(words[0], return_inverse=True)
        self._room = 63 - len(self._firsts).bit_length()  # bits left for the second word beside the first one's number
        self._lower = torch.unique((number << self._room) | (words[1] >> (63 - self._room)))
        after = torch.arange(1, len(self._firsts) + 1, device=need.device) << self._room
        self._last = torch.searchsorted(self._lower, after) - 1  # the last bin that begins with each first word
        self.groups = self._firsts[self._lower >> self._room] >> 32

    def _first(self, piece: Piece) -> Tensor:
        assert piece.groups is not None
        return (piece.groups.long() << 32) + ((ascending(piece.values, self._shard.largest) >> 32) + (1 << 31))

    def _second(self, rows: Tensor, values: Tensor) -> Tensor:
        """63 bits: 32 of the key and 31 of the tie."""
        ties = self._shard.ties(rows)
        if self._shard.key is not None:
            ties = (ties >> 33) + (1 << 30)
        elif self._index_bits > 31:
            ties = ties >> (self._index_bits - 31)
        else:
            ties = ties << (31 - self._index_bits)
        return ((ascending(values, self._shard.largest) & 0xFFFFFFFF) << 31) | ties

    def _bins(self, piece: Piece) -> Tensor:
        first = self._first(piece)
        number = torch.searchsorted(self._firsts, first, right=True) - 1
        bins = self._last[number]
        same = (self._firsts[number] == first).nonzero().flatten()
        if len(same):
            second = self._second(piece.rows[same], piece.values[same]) >> (63 - self._room)
            bins[same] = torch.searchsorted(self._lower, (number[same] << self._room) | second, right=True) - 1
        return bins

    def count(self) -> Tensor:
        """int64 [bins]: this rank's elements in each."""
        mine = torch.zeros_like(self.groups)
        for piece in self._shard.pieces():
            mine += torch.bincount(self._bins(piece), minlength=len(mine))
        return mine

    def inside(self, split: Tensor) -> Piece:
        """The elements in bins that are cut."""
        found = []
        for piece in self._shard.pieces():
            assert piece.groups is not None
            wanted = split[self._bins(piece)].nonzero().flatten()
            found.append(Piece(piece.rows[wanted], piece.values[wanted], piece.groups[wanted]))
        return joined(found)


def _value(key: Tensor, dtype: torch.dtype, largest: bool) -> Tensor:
    """The number that `ascending` makes a key of."""
    key = ~key if largest else key
    if not dtype.is_floating_point:
        return (key >> (64 - 8 * dtype.itemsize)).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    bits = (key >> (64 - 8 * wide.itemsize)).to(torch.int64 if wide == torch.float64 else torch.int32)
    bits = bits ^ ((bits >> (8 * bits.element_size() - 1)) & torch.iinfo(bits.dtype).max)
    return bits.view(wide).to(dtype)


def _sorted(piece: Piece, shard: Shard) -> Tensor:
    """Elements as sorted columns: group, key, the key's word if there is one, and index."""
    index = piece.rows + shard.offset
    groups = torch.zeros_like(index) if piece.groups is None else piece.groups.long()
    columns = [groups, ascending(piece.values, shard.largest), index]
    if shard.key is not None:
        columns.insert(2, shard.ties(piece.rows))
    held = torch.stack(columns)
    return held[:, _order(held)]


def _places(held: Tensor, cut: _Cut, capacity: int) -> Tensor:
    """Which of this rank's sorted elements become pivots: ascending, at most ``capacity``."""
    n = held.size(1)
    even = (2 * torch.arange(capacity // 2, device=held.device) + 1) * n // (capacity // 2 * 2)
    mine = torch.bincount(held[0], minlength=len(cut.need))
    live = mine.nonzero().flatten()
    each = capacity // 2 // len(live)
    if each == 0:
        return even.unique()
    first = (mine.cumsum(0) - mine)[live]
    mine, need, size = mine[live], cut.need[live], cut.size[live]
    expected = mine.double() * (need / size)
    around = torch.linspace(-1.5, 1.5, each, dtype=torch.float64, device=held.device) if each > 1 else expected[:1] * 0
    place = (expected[:, None] + mine.double().sqrt()[:, None] * around).long()
    if each > 1 and len(held) == 3:
        # what is equal goes by index, so it goes by rank: the cut is there if all others' come after these, or before
        equal = held[1][first] == held[1][first + mine - 1]
        place[equal, :2] = torch.stack([need, need - (size - mine)], 1)[equal]
    place = first[:, None] + place.minimum(mine[:, None] - 1).clamp_min(0)
    return torch.cat([even, place.flatten()]).unique()


def _packed(columns: Tensor) -> Tensor:
    """Elements with group and index in one integer."""
    return torch.cat([columns[1:-1], (columns[:1] << _INDEX_BITS) | columns[-1:]])


def _unpacked(columns: Tensor) -> Tensor:
    return torch.cat([columns[-1:] >> _INDEX_BITS, columns[:-1], columns[-1:] & ((1 << _INDEX_BITS) - 1)])


def _starts(held: Tensor, num_groups: int) -> Tensor:
    """A pivot below all elements of each group."""
    starts = held.new_full((len(held), num_groups), _LEAST)
    starts[0] = torch.arange(num_groups, device=held.device)
    return starts


def _order(columns: Tensor) -> Tensor:
    """The order of elements by their first row, then by the second, and so on."""
    order = torch.arange(columns.size(1), device=columns.device)
    for column in columns.flip(0):
        ordered = column[order]
        if bool((ordered[1:] < ordered[:-1]).any()):
            order = order[ordered.sort(stable=True).indices]
    return order


def _bin_of(pivots: Tensor, held: Tensor) -> Tensor:
    """The last of ascending ``pivots`` that is not above each of the ascending elements."""
    order = _order(torch.cat([pivots, held], 1))
    is_pivot = order < pivots.size(1)
    return (is_pivot.cumsum(0) - 1)[~is_pivot]


def _last(parts: list[Tensor], need: Tensor, rank: int) -> Tensor:
    """This rank's winners in each group, from all that is left of all ranks."""
    everything = torch.cat(parts, 1)
    order = _order(everything)
    groups = everything[0][order]
    size = torch.bincount(groups, minlength=len(need))
    place = torch.arange(len(order), device=order.device) - (size.cumsum(0) - size)[groups]
    winner = order[place < need[groups]]
    first = sum(part.size(1) for part in parts[:rank])
    own = winner[(winner >= first) & (winner < first + parts[rank].size(1))]
    return torch.bincount(everything[0][own], minlength=len(need))


def _check(op: str, size_name: str, quotas: Tensor, size: Tensor) -> None:
    above = (quotas > size).nonzero().flatten().tolist()
    if not above:
        return
    g = above[0]
    if len(quotas) == 1:
        raise ValueError(f"{op}: k must be at most {size_name}, {int(size[0])}, got {int(quotas[0])}")
    raise ValueError(
        f"{op}: quotas must be at most {size_name} of each group, {int(size[g])} for group {g}, got {int(quotas[g])}"
    )
