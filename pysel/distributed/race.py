"""How many winners each shard has: the exact selection of the k first of many sorted parts that never meet.

An element's place is decided by a tuple of integers, smallest first: its group, its key, the random word that orders
equal keys if there is one, and its index. No two are equal, so a rank of the tuple is enough to cut at. Pivots divide
each group into bins, all ranks add up how many elements they have in each, and a bin is won, lost, or cut in two::

    group 0                      group 1
    |  won  |  won  | CUT | lost | won | CUT | lost | lost |
                    ^pivots

What lies in a bin that is cut goes on to the next round, with finer pivots from among it: few by then, and sorted, so
that each rank's pivots are spaced by rank and narrow down any distribution, ties included. Half of them are even, and
half are where the cut would be if all shards were alike. When the remainder fits into a message all ranks get all of
it. The first round has no order yet: without groups its pivots are the values
of a key's 16 leading bits, with groups they are keys at random places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pysel import _checks, ops
from pysel.distributed.agree import Meeting, add, gather
from pysel.random import words_at

PIECE = 1 << 22  # elements whose keys exist at a time
_DIGIT = 16
_BYTES = 3 << 18  # of all ranks' pivots together
_INDEX_BITS = 42  # in a message; the other 21 are the group's
_LEAST = torch.iinfo(torch.int64).min


class Piece(NamedTuple):
    """Some elements of a shard that may win."""

    rows: Tensor  # int64 [m] where they are, ascending
    keys: Tensor  # int64 [m] smallest first
    groups: Tensor  # int64 [m]


def pieces_of(
    n: int,
    device: torch.device,
    groups: Tensor | None,
    keys_of: Callable[[slice], Tensor],
    can_win: Callable[[slice], Tensor] | None = None,
) -> Iterator[Piece]:
    """A shard of n rows, a few million at a time; at least one piece, be it empty."""
    for first in range(0, max(n, 1), PIECE):
        part = slice(first, min(n, first + PIECE))
        rows = torch.arange(part.start, part.stop, device=device)
        of = torch.zeros_like(rows) if groups is None else groups[part].long()
        keys = keys_of(part)
        if can_win is not None:
            inside = can_win(part)
            rows, keys, of = rows[inside], keys[inside], of[inside]
        yield Piece(rows, keys, of)


def check_groups(op: str, groups: Tensor | None, quotas: Tensor | None, k: int, like_name: str, like: Tensor) -> None:
    """Refuse groups and quotas that do not fit this rank's shard, or ``k``."""
    if groups is None and quotas is None:
        return
    for name, value, other in (("groups", groups, "quotas"), ("quotas", quotas, "groups")):
        if value is None:
            raise ValueError(f"{op}: {name} must be given with {other}, got None")
    assert groups is not None
    assert quotas is not None
    _checks.tensor(op, "groups", groups, (torch.int64, torch.int32))
    _checks.tensor(op, "quotas", quotas, (torch.int64,))
    _checks.same_device(op, "groups", groups, like_name, like)
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


def winners(
    op: str,
    meeting: Meeting,
    pieces: Callable[[], Iterator[Piece]],
    quotas: Tensor,
    key: Tensor | None,
    size_name: str,
) -> Tensor:
    """How many of each group's first ``quotas`` are in this rank's shard.

    Args:
        pieces: the shard's elements, the same each time.
        quotas: int64 [G], on the CPU.
        key: orders equal keys by its words; None by index.
        size_name: what messages call the number of a group's elements.

    Returns:
        int64 [G], on the CPU.

    Raises:
        ValueError: a quota is above the number of elements; on all ranks.
    """
    device = next(pieces()).keys.device
    need = quotas.to(device)
    edges = _edges(meeting, pieces, len(quotas), device)
    mine = _count(pieces, edges)
    cut, won = _cut(edges.groups, mine, need, meeting, lambda size: _check(op, size_name, quotas, size))
    held = _collect(pieces, edges, cut.split, meeting, key)
    while bool(cut.split.any()):
        capacity = _BYTES // (8 * (len(held) - 1) * meeting.world)
        size = held.size(1)
        place = _places(held[0], cut, capacity) if size > capacity else torch.arange(size, device=device)
        message = torch.zeros(len(held) - 1, capacity + 1, dtype=torch.int64, device=device)
        message[:2, 0] = torch.tensor([size, len(place)], device=device)
        message[:, 1 : len(place) + 1] = _packed(held[:, place])
        told = gather(message, meeting.group)
        parts = [_unpacked(part[:, 1 : part[1, 0] + 1]) for part in told]
        if int(told[:, 0, 0].max()) <= capacity:  # these are all
            return (won + _last(parts, cut.need, meeting.rank)).cpu()
        pivots = torch.cat([_starts(held, len(quotas)), *parts], 1)
        pivots = pivots[:, _order(pivots)]
        bins = _bins(pivots, held)
        mine = torch.bincount(bins, minlength=pivots.size(1))
        cut, more = _cut(pivots[0], mine, cut.need, meeting)
        won += more
        held = held[:, cut.split[bins]]
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


class _Edges(NamedTuple):
    """The first round's bins: ascending lower edges of ``_leading``, and the group of each bin."""

    lower: Tensor  # int64 [bins]; empty: bins are digits
    groups: Tensor  # int64 [bins]


def _leading(piece: Piece) -> Tensor:
    """Group and the upper half of the key in one integer: coarser, but in the same order."""
    return (piece.groups << 32) + ((piece.keys >> 32) + (1 << 31))


def _edges(meeting: Meeting, pieces: Callable[[], Iterator[Piece]], num_groups: int, device: torch.device) -> _Edges:
    if num_groups == 1:
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        return _Edges(nothing, torch.zeros(1 << _DIGIT, dtype=torch.int64, device=device))
    capacity = _BYTES // (8 * meeting.world)
    sample = torch.full((capacity,), torch.iinfo(torch.int64).max, dtype=torch.int64, device=device)
    n = meeting.rows[meeting.rank]
    at = ops.permutation(n, key=0, stop=min(n, capacity)).to(device).sort().values
    first = 0
    for piece in pieces():  # what is drawn and cannot win is missing
        here = torch.isin(piece.rows, at, assume_unique=True)
        keys = _leading(piece)[here]
        sample[first : first + len(keys)] = keys
        first += len(keys)
    starts = torch.arange(num_groups, device=device) << 32
    lower = torch.unique(torch.cat([starts, gather(sample, meeting.group).flatten()]))
    lower = lower[lower < num_groups << 32]
    return _Edges(lower, lower >> 32)


def _bin_of(piece: Piece, edges: _Edges) -> Tensor:
    if edges.lower.numel() == 0:
        return (piece.keys >> (64 - _DIGIT)) + (1 << (_DIGIT - 1))
    return torch.searchsorted(edges.lower, _leading(piece), right=True) - 1


def _count(pieces: Callable[[], Iterator[Piece]], edges: _Edges) -> Tensor:
    counts = torch.zeros_like(edges.groups)
    for piece in pieces():
        counts += torch.bincount(_bin_of(piece, edges), minlength=len(counts))
    return counts


def _collect(
    pieces: Callable[[], Iterator[Piece]], edges: _Edges, split: Tensor, meeting: Meeting, key: Tensor | None
) -> Tensor:
    """The elements in bins that are cut, sorted: rows of group, key, the key's word if there is one, and index."""
    found = []
    for piece in pieces():
        inside = split[_bin_of(piece, edges)]
        found.append(torch.stack([piece.groups[inside], piece.keys[inside], piece.rows[inside]]))
    groups, keys, rows = torch.cat(found, 1)
    index = rows + meeting.offset
    columns = [groups, keys, index]
    if key is not None:
        columns.insert(2, words_at(index, key) ^ _LEAST)  # their order as unsigned numbers
    held = torch.stack(columns)
    return held[:, _order(held)]


def _places(groups: Tensor, cut: _Cut, capacity: int) -> Tensor:
    """Which of this rank's sorted elements become pivots: ascending, at most ``capacity``."""
    n = len(groups)
    even = (2 * torch.arange(capacity // 2, device=groups.device) + 1) * n // (capacity // 2 * 2)
    mine = torch.bincount(groups, minlength=len(cut.need))
    live = mine.nonzero().flatten()
    each = capacity // 2 // len(live)
    if each == 0:
        return even.unique()
    first = (mine.cumsum(0) - mine)[live].double()
    mine = mine[live].double()
    expected = mine * (cut.need / cut.size.clamp_min(1))[live]
    around = (
        torch.linspace(-1.5, 1.5, each, dtype=torch.float64, device=groups.device) if each > 1 else expected[:1] * 0
    )
    place = expected[:, None] + mine.sqrt()[:, None] * around
    place = first[:, None] + place.minimum(mine[:, None] - 1).clamp_min(0)
    return torch.cat([even, place.flatten().long()]).unique()


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
        order = order[column[order].sort(stable=True).indices]
    return order


def _bins(pivots: Tensor, held: Tensor) -> Tensor:
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
