"""A random order without the memory that one takes."""

from __future__ import annotations

import torch
from torch import Tensor

from pysel import _checks
from pysel.random import given_key

__all__ = ["permutation"]


def permutation(n: int, *, key: Tensor | int, start: int = 0, stop: int | None = None) -> Tensor:
    """Elements ``start`` to ``stop`` of a random permutation of ``range(n)``.

    Each element is computed for itself, from the key and its position: there is no sort, and no memory beside the
    result. So an epoch of any length is shuffled in parts, as they are needed, and the first comes at once. The same
    key gives the same permutation on every device.

    Up to 1,024 elements, all ``n!`` orders are equally likely. Above, the order is that of a Feistel network: to tell
    it from a uniform one by how pairs of elements are placed takes some 2 n^3 elements of permutations of n, 2e9 at
    n = 1,025. It is not meant to keep secrets.

    Args:
        n: 0 or more.
        key: int64 [2], see :func:`pysel.key`, or the int to make one from.
        start: the first position wanted, from 0 to ``n``.
        stop: the first that is not, from ``start`` to ``n``; None: ``n``.

    Returns:
        int64 [stop - start], on the key's device (for an int, the CPU).

    Raises:
        ValueError: ``n`` is negative, or ``key`` has a wrong shape.
        IndexError: ``start`` or ``stop`` is out of range.
        TypeError: an argument of the wrong type.

    Example:
        >>> import pysel
        >>> pysel.permutation(5, key=0)
        tensor([4, 1, 2, 0, 3])
        >>> pysel.permutation(10**18, key=0, start=7, stop=9)
        tensor([421485443236025077, 500988603993597024])

    Source: Luby and Rackoff (SIAM Journal on Computing 17(2), 1988) for the network, Black and Rogaway (CT-RSA 2002)
    for permutations of any ``n`` made with it.
    """
    op = "permutation"
    key = given_key(op, key)
    n = _checks.integer(op, "n", n)
    start = _checks.integer(op, "start", start)
    stop = n if stop is None else _checks.integer(op, "stop", stop)
    return torch.ops.pysel.permutation(n, key, start, stop)
