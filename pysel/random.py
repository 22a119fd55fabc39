"""Keys: where randomness comes from.

Every random op is a pure function of its inputs and a *key*, an int64 tensor ``[seed, offset]``. The generator is
Philox4x32-10 (Salmon et al., SC 2011): Philox key = seed, counter = (lo, hi, stream, 0) with hi:lo =
``(offset + i // 4) mod 2**64``, and element ``i`` takes word ``i & 3`` of its block. Here ``i`` is the op's ``start``
plus the row-major index of the element, so that a shard which knows where it begins draws exactly its part of the
whole, on any device and at any thread count.

Derive keys with :func:`split` or :func:`fold_in` only: adding 1 to an offset shifts the stream by four elements.
"""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Generator, Tensor

from pysel import _checks

__all__ = ["fold_in", "gumbel_at", "key", "split"]

_HIGH, _LOW = 0, 1  # streams, see csrc/common/philox.h

# Tagged so that two draws in one compiled graph are never merged into one.
torch.library.define("pysel::draw_key", "(Device device) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))


@torch.library.impl("pysel::draw_key", "BackendSelect")
def _draw_key(device: torch.device) -> Tensor:
    return _draw(device, None)


@torch.library.register_fake("pysel::draw_key")  # type: ignore[untyped-decorator]
def _draw_key_fake(device: torch.device) -> Tensor:
    return torch.empty(2, dtype=torch.int64, device=device)


def _draw(device: torch.device, generator: Generator | None) -> Tensor:
    if torch._C._are_functorch_transforms_active():
        # an op that vmap knows as random, so that its `randomness` rules; the same bits as below
        drawn = torch.randint(-(2**63), 2**63 - 1, (2,), dtype=torch.int64, device=device, generator=generator)
        return drawn ^ -(2**63)
    words = torch.empty(2, dtype=torch.int64, device=device)
    # all 64 bits of both; an argument by name takes a tenth of a small call's time
    return words.random_(-(2**63), None) if generator is None else words.random_(-(2**63), None, generator=generator)


def key(
    seed: int | None = None,
    *,
    generator: Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Make a key.

    Args:
        seed: any int; taken mod 2**64, offset 0. None draws seed and offset from ``generator``.
        generator: a :class:`torch.Generator`; None means torch's default one of ``device``, so that
            :func:`torch.manual_seed` governs.
        device: where the key lives; by default the generator's device, or torch's default device.

    Returns:
        int64 tensor ``[seed, offset]``, shape [2].

    Raises:
        ValueError: both ``seed`` and ``generator`` are given.
        TypeError: ``seed`` is not an int, or ``generator`` not a Generator.

    Example:
        >>> import pysel
        >>> pysel.key(7)
        tensor([7, 0])

    Under ``torch.compile`` pass a key, or nothing: a Generator argument breaks the graph. Under :func:`torch.vmap` a
    drawn key obeys ``randomness``: with "same" all examples have the key that a plain call would draw, with "different"
    those that a loop over the examples would (compiled by inductor, other ones, as of torch's random ops). Inside
    activation checkpointing pass a key, or nothing: a generator is not set back for the recomputation, which would then
    have other noise.
    """
    if seed is not None:
        if generator is not None:
            raise ValueError("key: give seed or generator, not both")
        _checks.integer("key", "seed", seed, any_size=True)
        seed = (int(seed) + 2**63) % 2**64 - 2**63
        return torch.tensor([seed, 0], dtype=torch.int64, device=device)
    if generator is not None:
        if not isinstance(generator, Generator):
            raise TypeError(f"key: generator must be a torch.Generator, got {type(generator).__name__}")
        return _draw(torch.device(device) if device is not None else generator.device, generator)
    where = torch.device(device) if device is not None else torch.get_default_device()
    if torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active():
        return torch.ops.pysel.draw_key(where)
    return _draw(where, None)


def resolve(op: str, given: Tensor | int | None, generator: Generator | None, device: torch.device) -> Tensor:
    """The key an op uses: the one given (an int stands for ``key(int)``), or one drawn on the input's device."""
    if generator is not None:
        if given is not None:
            raise ValueError(f"{op}: give key or generator, not both")
        if not isinstance(generator, Generator):
            raise TypeError(f"{op}: generator must be a torch.Generator, got {type(generator).__name__}")
    if given is None:
        return key(generator=generator, device=device) if torch.compiler.is_compiling() else _draw(device, generator)
    if not isinstance(given, Tensor):
        if isinstance(given, bool) or not isinstance(given, numbers.Integral | torch.SymInt):
            raise TypeError(f"{op}: key must be a Tensor or an int, got {type(given).__name__}")
        return key(given, device="cpu")
    _check_key(op, given)
    if given.device != device and given.device.type != "cpu":
        raise ValueError(f"{op}: key must be on the device of the input, {device}, or on the CPU, got {given.device}")
    return given


def as_key(op: str, value: Any) -> Tensor:
    """An object's own copy, on the CPU, of the key given: a key, an int, or None for a fresh one."""
    if not isinstance(value, Tensor):
        return resolve(op, value, None, torch.device("cpu"))
    _check_key(op, value)
    if value.is_meta:
        raise ValueError(f"{op}: key must hold numbers, got a meta tensor")
    return value.detach().to("cpu", torch.int64, copy=True)


def given_key(op: str, value: Tensor | int) -> Tensor:
    """The key given, where none can be drawn."""
    if value is None:
        raise TypeError(f"{op}: key must be a Tensor or an int, got NoneType")
    return resolve(op, value, None, value.device if isinstance(value, Tensor) else torch.device("cpu"))


def _check_key(op: str, value: Tensor) -> None:
    _checks.tensor(op, "key", value, (torch.int64, torch.uint64))
    if value.shape != (2,):
        raise ValueError(f"{op}: key must have shape [2], got {list(value.shape)}")


def split(key: Tensor | int, n: int) -> Tensor:
    """Derive ``n`` keys, independent of each other and of ``key``'s own draws.

    Args:
        key: int64 [2], or the int to make one from.
        n: how many.

    Returns:
        int64 [n, 2]; row ``i`` equals ``fold_in(key, i)``.

    Raises:
        TypeError, ValueError: ``key`` is not an int64 tensor of shape [2] or an int, or ``n`` is negative.

    Example:
        >>> import pysel
        >>> init, noise = pysel.split(pysel.key(0), 2)
    """
    key, n = given_key("split", key), _checks.integer("split", "n", n)
    return torch.ops.pysel.split(key, n)


def fold_in(key: Tensor | int, data: int) -> Tensor:
    """Derive the key numbered ``data``, for instance an epoch or a step.

    Args:
        key: int64 [2], or the int to make one from.
        data: 0 or more.

    Returns:
        int64 [2].

    Raises:
        TypeError, ValueError: ``key`` is not an int64 tensor of shape [2] or an int, or ``data`` is negative.

    Example:
        >>> import pysel
        >>> epoch_key = pysel.fold_in(pysel.key(0), 3)
    """
    key, data = given_key("fold_in", key), _checks.integer("fold_in", "data", data)
    return torch.ops.pysel.fold_in(key, data)


def gumbel_at(elements: Tensor, key: Tensor, dtype: torch.dtype) -> Tensor:
    """The Gumbel noise of single elements of a key's stream.

    Args:
        elements: int64 [n], ascending.
        key: int64 [2].
        dtype: float32 or wider gives that noise, a half type float32.

    Returns:
        [n], on the device of ``elements``.

    Example:
        >>> import pysel
        >>> logits = torch.zeros(8)
        >>> noise = gumbel_at(torch.arange(8), pysel.key(0), torch.float32)
        >>> bool(noise.argmax() == pysel.gumbel_argmax(logits, key=pysel.key(0)))
        True
    """
    key = key.to(elements.device)
    words = torch.empty_like(elements)
    piece = 1 << 20
    for first in torch.unique(elements // piece).tolist():  # words come in runs: those of the pieces that are asked for
        low, high = torch.searchsorted(elements, elements.new_tensor([first * piece, (first + 1) * piece])).tolist()
        start, stop = int(elements[low]), int(elements[high - 1]) + 1
        run = [torch.ops.pysel.random_words(key, stream, start, stop - start) for stream in (_HIGH, _LOW)]
        at = elements[low:high] - start
        words[low:high] = run[0][at] << 32 | run[1][at]
    return torch.ops.pysel.noise(words, "gumbel", dtype == torch.float64)
