"""Gumbel-softmax, its two-class case, and the categorical draw."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pysel import _autograd, _checks
from pysel.ops._autocast import autocast_dtype
from pysel.ops._out import write_out
from pysel.random import resolve

__all__ = ["gumbel_argmax", "gumbel_sigmoid", "gumbel_softmax"]


_modes = torch._C._len_torch_dispatch_stack
_transforms_active = torch._C._are_functorch_transforms_active
_tracing = torch._C._get_tracing_state


def _tau(op: str, tau: float | Tensor, logits: Tensor) -> Tensor:
    if type(tau) is float or not isinstance(tau, Tensor):  # the second question takes longer than the rest of it all
        tau = _checks.number(op, "tau", tau)
        if torch.compiler.is_compiling():
            # a float passed through arithmetic stays an input of the graph; torch.tensor would bake its value in
            return torch.ones((), dtype=torch.float64, device="cpu") * tau
        return _number_as_tau(tau)
    _checks.tensor(op, "tau", tau)
    if tau.device.type != "cpu":
        _checks.same_device(op, "tau", tau, "logits", logits)
    return tau


_last_tau = (0.0, torch.zeros((), dtype=torch.float64, device="cpu"))


def _number_as_tau(number: float) -> Tensor:
    """A tensor of the number, on the CPU whatever torch's default device is: the kernel reads it there.

    Usually that of the last call. Modes and transforms, which have tensors of their own kind, and torch.jit.trace,
    which records how they are made, get a fresh one. None made in inference mode is kept: a backward could not save it.
    """
    global _last_tau
    plain = not (_modes() or _transforms_active() or _tracing())
    kept, tensor = _last_tau  # at once: another thread may replace them
    if plain and kept == number:
        return tensor
    tensor = torch.full((), number, dtype=torch.float64, device="cpu")
    if plain and not tensor.is_inference():
        _last_tau = number, tensor
    return tensor


def _full_precision(x: Tensor) -> Tensor:
    """Under autocast, what torch.softmax does there: half types become float32 on accelerators."""
    if x.is_cpu or x.dtype not in (torch.bfloat16, torch.float16):
        return x
    return x.float() if autocast_dtype(x.device) else x


def gumbel_softmax(
    logits: Tensor,
    tau: float | Tensor = 1.0,
    hard: bool = False,
    *,
    dim: int = -1,
    key: Tensor | int | None = None,
    generator: Generator | None = None,
    start: int = 0,
    validate: bool | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Sample from the Gumbel-softmax distribution: ``softmax((logits + g) / tau)`` with ``g ~ Gumbel(0, 1)``.

    Noise is a function of the key and of each element's row-major number alone. The gradient is that of the softmax;
    with ``hard`` it is passed straight through the one-hot sample. Half types are computed in float32.

    At a small ``tau`` samples hold exact zeros, as those of torch.softmax do: their log is -inf and its gradient NaN.
    Clamp them before taking one.

    Args:
        logits: any shape, float32, float64, bfloat16 or float16: unnormalised log probabilities. -inf is
            probability 0; NaN makes its whole row NaN.
        tau: temperature above 0, a number or a 0-d floating tensor (annealing a tensor neither recompiles nor
            breaks CUDA graphs). 0 with ``hard`` is argmax, with zero gradient.
        hard: return one-hot samples.
        dim: the dimension of the categories.
        key: int64 [2] or an int, see :func:`pysel.key`.
        generator: draw the key from this generator instead; with neither, from torch's default one. :func:`pysel.key`
            says what that means under vmap, torch.compile and activation checkpointing.
        start: number of the first element, for shards.
        validate: None refuses bad values at once on the CPU; on a GPU the next call or :func:`pysel.check` does, and
            the rows concerned are NaN. True refuses at once everywhere, at the price of a wait; False never.
        out: write the samples here and return it; like ``logits``, which may be ``out`` itself. On the CPU untouched by
            an error. No gradient passes through it.

    Returns:
        Samples like ``logits``, contiguous.

    Raises:
        ValueError: tau below 0, NaN or 0 without ``hard``; a logit of +inf; a row of only -inf; a wrong key; key and
            generator together.
        TypeError: a wrong dtype.
        IndexError: ``dim`` out of range.

    Example:
        >>> import torch, pysel
        >>> logits = torch.zeros(2, 4)
        >>> y = pysel.gumbel_softmax(logits, tau=0.5, key=pysel.key(0))
        >>> torch.allclose(y.sum(-1), torch.ones(2))
        True

    Source: Jang et al., arXiv 1611.01144; Maddison et al., arXiv 1611.00712.
    """
    op = "gumbel_softmax"
    _checks.tensor(op, "logits", logits)
    dim = _checks.integer(op, "dim", dim)
    start = _checks.integer(op, "start", start)
    hard, validate = _checks.flag(op, "hard", hard), _checks.validate(op, validate)
    resolved = resolve(op, key, generator, logits.device)
    x = _full_precision(logits)
    args = (x, _tau(op, tau, logits), resolved, dim, hard, start, validate)
    if out is not None:
        return write_out(op, out, x.dtype, *args)
    return _autograd.gumbel_softmax_op(*args)


def gumbel_sigmoid(
    logits: Tensor,
    tau: float | Tensor = 1.0,
    hard: bool = False,
    *,
    key: Tensor | int | None = None,
    generator: Generator | None = None,
    start: int = 0,
    validate: bool | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Sample relaxed Bernoulli gates: ``sigmoid((logits + l) / tau)`` with ``l ~ Logistic(0, 1)``.

    The two-class case of :func:`gumbel_softmax`, with one draw an element. Soft gates are clamped to [smallest
    normal, largest value below 1] of their dtype; the gradient comes from the unclamped gate. Hard gates are 0 or 1,
    straight through.

    Args:
        logits: any shape, float32, float64, bfloat16 or float16: log odds. -inf is 0; NaN stays NaN.
        tau: temperature above 0, a number or a 0-d floating tensor; 0 with ``hard`` is a threshold.
        hard: return gates of exactly 0 or 1.
        key: int64 [2] or an int, see :func:`pysel.key`.
        generator: draw the key from this generator instead; with neither, from torch's default one.
        start: number of the first element, for shards.
        validate: as in :func:`gumbel_softmax`.
        out: as in :func:`gumbel_softmax`.

    Returns:
        Gates like ``logits``, contiguous.

    Raises:
        ValueError, TypeError: as :func:`gumbel_softmax`, without the rows.

    Example:
        >>> import torch, pysel
        >>> pysel.gumbel_sigmoid(torch.tensor([-100.0, 100.0]), hard=True, key=pysel.key(0))
        tensor([0., 1.])

    Source: Maddison et al., arXiv 1611.00712 (binary concrete).
    """
    op = "gumbel_sigmoid"
    _checks.tensor(op, "logits", logits)
    start = _checks.integer(op, "start", start)
    hard, validate = _checks.flag(op, "hard", hard), _checks.validate(op, validate)
    resolved = resolve(op, key, generator, logits.device)
    x = _full_precision(logits)
    args = (x, _tau(op, tau, logits), resolved, hard, start, validate)
    if out is not None:
        return write_out(op, out, x.dtype, *args)
    return _autograd.gumbel_sigmoid_op(*args)


def gumbel_argmax(
    logits: Tensor,
    *,
    dim: int = -1,
    key: Tensor | int | None = None,
    generator: Generator | None = None,
    start: int = 0,
    validate: bool | None = None,
) -> Tensor:
    """Draw one category a row with probability ``softmax(logits)``, without computing the softmax.

    The same category that ``gumbel_softmax(..., hard=True)`` marks under the same key.

    Args:
        logits: any shape, float32, float64, bfloat16 or float16. A row with NaN gives the index of its first NaN.
        dim: the dimension of the categories.
        key: int64 [2] or an int, see :func:`pysel.key`.
        generator: draw the key from this generator instead; with neither, from torch's default one.
        start: number of the first element, for shards.
        validate: as in :func:`gumbel_softmax`.

    Returns:
        int64 indices, the shape of ``logits`` without ``dim``.

    Raises:
        ValueError, TypeError, IndexError: as :func:`gumbel_softmax`; IndexError also for an empty ``dim``.

    Example:
        >>> import torch, pysel
        >>> pysel.gumbel_argmax(torch.tensor([0.0, float("-inf")]), key=pysel.key(0))
        tensor(0)
    """
    op = "gumbel_argmax"
    _checks.tensor(op, "logits", logits)
    dim = _checks.integer(op, "dim", dim)
    start = _checks.integer(op, "start", start)
    resolved = resolve(op, key, generator, logits.device)
    validate = _checks.validate(op, validate)
    return _autograd.gumbel_argmax_op(logits, resolved, dim, start, validate)
