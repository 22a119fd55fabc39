"""Bitmap: the members of a set by their places, whatever their number."""

from __future__ import annotations

import pickle

import pytest
import torch

from pysel.selection import Bitmap
from pysel.selection.bitmap import packed

SIZES = [0, 1, 7, 63, 64, 65, 511, 512, 513, 1500]


def made(members: torch.Tensor, n: int) -> Bitmap:
    return Bitmap(packed(members, 0, n, n).view(torch.int64), n)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_it_is_indexed_like_its_members(n: int, share: float) -> None:
    members = (torch.rand(n, generator=torch.Generator().manual_seed(n)) < share).nonzero().flatten()
    bitmap = made(members, n)
    assert len(bitmap) == bitmap.numel() == len(members)
    assert torch.equal(bitmap[:], members) and torch.equal(bitmap[::-3], members.flip(0)[::3])
    at = torch.randperm(len(members), generator=torch.Generator().manual_seed(1))
    assert torch.equal(bitmap[at], members[at]) and torch.equal(bitmap[at.int()], members[at])
    for start, stop in ((0, n), (n // 3, n // 2), (n, n), (5, 3)):
        assert bitmap.between(start, stop).tolist() == [i for i in members.tolist() if start <= i < stop]
    again = pickle.loads(pickle.dumps(bitmap))
    assert torch.equal(again[:], members) and torch.equal(again.words, bitmap.words)
    assert torch.equal(Bitmap(None, n)[:], torch.arange(n))


@pytest.mark.parametrize(("offset", "count"), [(0, 1500), (3, 700), (64, 0), (1000, 500), (511, 2)])
def test_parts_are_packed_to_their_places(offset: int, count: int) -> None:
    rows = torch.arange(count)[::3]
    assert torch.equal(Bitmap(packed(rows, offset, count, 1500).view(torch.int64), 1500)[:], rows + offset)


def test_it_does_not_share_what_it_was_given() -> None:
    words = torch.tensor([0b10110])
    bitmap = Bitmap(words, 40)
    words.zero_()
    assert len(bitmap) == 3
    for members in (bitmap[:], bitmap.between(0, 40), Bitmap(bitmap.words, 40)[:]):
        assert members.tolist() == [1, 2, 4]


def test_it_holds_its_words_once() -> None:
    bitmap = Bitmap(None, 1 << 20)
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in _tensors(bitmap)}
    assert sum(held.values()) <= (1 << 17) * 9 / 8 + 8


def _tensors(bitmap: Bitmap) -> list[torch.Tensor]:
    return [value for value in vars(bitmap).values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        (torch.tensor([3]), IndexError, "positions must be between 0 and 2, got 3"),
        (torch.tensor([-1]), IndexError, "positions must be between 0 and 2, got -1"),
        (torch.tensor([[0]]), TypeError, r"positions must be a slice or a tensor \[n\], got \[1, 1\]"),
        (torch.tensor([0.0]), TypeError, "positions must be int"),
        (torch.tensor([True]), TypeError, "positions must be int"),
        (1, TypeError, "positions must be a Tensor, got int"),
        ([0, 1], TypeError, "positions must be a Tensor, got list"),
    ],
)
def test_bad_positions(where: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"Bitmap: {message}"):
        Bitmap(torch.tensor([0b10110]), 40)[where]  # type: ignore[index]


@pytest.mark.parametrize(
    ("words", "n", "message"),
    [
        (torch.zeros(2, dtype=torch.int64), 64, r"words must have shape \[1\], got \[2\]"),
        (torch.tensor([1 << 40]), 40, "words must have no bits from 40 on"),
        (torch.tensor([-1]), 63, "words must have no bits from 63 on"),
    ],
)
def test_bad_words(words: torch.Tensor, n: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"Bitmap: {message}"):
        Bitmap(words, n)
