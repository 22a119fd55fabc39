"""Gradients: one torch.autograd.Function an op.

Each Function is the op's kernel at the Autograd dispatch key, so that the raw op differentiates too. Under a functorch
transform (``torch.func.grad``, ``vmap``, ``jvp``) it is applied directly, because a Function reached through the
dispatcher is invisible to functorch. Forward-mode AD raises, as for any Function without ``jvp``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from pysel import _checks, _fake

_WHOLE = {"indices", "key", "groups", "quotas"}
"""Arguments of integers, which never require grad."""

_Below = torch._C._AutoDispatchBelowAutograd
_transforms_active = torch._C._are_functorch_transforms_active
_tracing = torch._C._get_tracing_state
_library = torch.library.Library("pysel", "IMPL")


def differentiable(function: type[Function], **constant: int) -> Callable[..., Any]:
    """Register a Function, named after its op, and return what the public functions call.

    ``constant`` names arguments, by their place, whose derivative exists and is not implemented: they are refused where
    it would be needed, rather than left out of the gradient.
    """
    name = function.__name__
    op = getattr(torch.ops.pysel, name).default
    tensors = _differentiable_arguments(op)
    gradient = function.backward

    def apply(*args: Any) -> Any:
        for argument, place in constant.items():
            _checks.no_grad(name, argument, args[place])
        return function.apply(*args)

    def backward(ctx: Any, *grads: Any) -> Any:
        for argument, place in constant.items():
            if ctx.needs_input_grad[place]:  # by an outer transform, which an inner one hides from `apply`
                raise _checks.needs_grad(name, argument)
        return gradient(ctx, *grads)

    if constant:
        function.backward = staticmethod(backward)  # type: ignore[method-assign]
    _library.impl(name, apply, "Autograd")

    direct = _direct(op)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*args)
        if _transforms_active():
            return apply(*args)
        if forward_ad._current_level >= 0:
            return op(*args)
        for i in tensors:
            if args[i] is not None and args[i].requires_grad and torch.is_grad_enabled():
                return op(*args)
        below_autograd = _Below()  # from here on: a Function costs several times what a small kernel does
        try:
            return (op if _tracing() else direct)(*args)  # torch.jit.trace compares lines with `below`'s
        finally:
            del below_autograd  # to here; `with` would cost as much again

    return call


def constant(name: str) -> Callable[..., Any]:
    """What the public functions call of an op that has no gradient."""
    op = getattr(torch.ops.pysel, name).default
    tensors = _differentiable_arguments(op)
    direct = _direct(op)

    def call(*args: Any) -> Any:
        if not (torch.compiler.is_compiling() or _transforms_active()):
            for i in tensors:
                if args[i].requires_grad:
                    break
            else:
                if forward_ad._current_level < 0:
                    return direct(*args)
        return op(*(a.detach() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args))

    return call


def _differentiable_arguments(op: torch._ops.OpOverload) -> list[int]:
    """The places of the tensors that a gradient may be wanted of."""
    return [i for i, a in enumerate(op._schema.arguments) if "Tensor" in str(a.type) and a.name not in _WHOLE]


def _direct(op: torch._ops.OpOverload) -> Callable[..., Any]:
    """What an OpOverload calls in turn: without its own Python frame, which a small call feels."""
    return op._op


def below(name: str, *args: Any) -> Any:
    """Call an op's kernel without its gradient."""
    with _Below():
        return getattr(torch.ops.pysel, name).default(*args)


def _vmap_by_loop(op: Callable[..., Any]) -> Callable[..., Any]:
    """The batching rule of every op: what calling it for each example gives, noise included."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        def example(i: int) -> list[Any]:
            return [a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)]

        if info.batch_size == 0:
            raise ValueError("pysel: vmap must have at least one example, got 0")
        results = [op(*example(i)) for i in range(info.batch_size)]
        if isinstance(results[0], tuple):
            return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])
        return torch.stack(results), 0

    return rule


def register_vmap(*names: str) -> None:
    """Give ops the batching rule."""
    for name in names:
        op = getattr(torch.ops.pysel, name)
        torch.library.register_vmap(f"pysel::{name}", _vmap_by_loop(op))


def bump_version(*names: str) -> None:
    """Make ops that change arguments bump the version counters of these.

    Without it a backward that saved the argument would silently use the changed values.
    """
    for name in names:
        base, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.pysel, base), overload or "default")
        arguments = enumerate(op._schema.arguments)
        changed = [(i, a.name) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write]

        def kernel(*args: Any, _op: Any = op, _changed: list[tuple[int, str]] = changed, **kwargs: Any) -> Any:
            with torch._C._AutoDispatchBelowADInplaceOrView():
                result = _op(*args, **kwargs)
            for i, argument in _changed:
                torch.autograd.graph.increment_version(args[i] if i < len(args) else kwargs[argument])
            return result

        _library.impl(name, kernel, "ADInplaceOrView")


bump_version("usage_update_", "usage_step_", "usage_select_", *(f"{fake.__name__}.out" for fake in _fake.OUT))

factor_counts_op = constant("factor_counts")
factor_scores_op = constant("factor_scores")
gumbel_argmax_op = constant("gumbel_argmax")
select_op = constant("select")
weighted_sample_op = constant("weighted_sample")


# --- gumbel ---


class gumbel_softmax_backward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, y: Tensor, tau: Tensor, dim: int) -> Tensor:
        return below("gumbel_softmax_backward", grad, y, tau, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, y, tau, ctx.dim = inputs
        ctx.save_for_backward(grad, y, tau)

    @staticmethod
    def backward(ctx: Any, gg: Tensor) -> tuple[Tensor | None, ...]:
        grad, y, tau = ctx.saved_tensors
        to_grad = _softmax_backward(gg, y, tau, ctx.dim) if ctx.needs_input_grad[0] else None
        to_y = None
        if ctx.needs_input_grad[1]:
            # plain torch, so that it differentiates further
            along = {"dim": ctx.dim, "keepdim": True}
            inner = gg * (grad - (grad * y).sum(**along)) - grad * (gg * y).sum(**along)
            t = tau.to(device=y.device, dtype=y.dtype)
            to_y = torch.where(t > 0, inner / t, 0.0)
        return to_grad, to_y, None, None


_softmax_backward = differentiable(gumbel_softmax_backward, tau=2)


class gumbel_softmax(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Tensor, tau: Tensor, key: Tensor, dim: int, hard: bool, start: int, validate: bool | None
    ) -> Tensor:
        return below("gumbel_softmax", logits, tau, key, dim, hard, start, validate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        logits, tau, key, ctx.dim, ctx.hard, ctx.start, _ = inputs
        # soft keeps its output; hard replays the noise from the key
        ctx.save_for_backward(logits if ctx.hard else output, tau, key)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, tau, key = ctx.saved_tensors
        none = (None,) * 6
        if not ctx.hard:
            return _softmax_backward(grad, saved, tau, ctx.dim), *none
        # at tau = 0 the gradient is zero whatever y is; any tau then serves to compute y
        soft_tau = torch.where(tau > 0, tau, 1.0)
        y = gumbel_softmax_op(saved, soft_tau, key, ctx.dim, False, ctx.start, False)
        return _softmax_backward(grad, y, tau, ctx.dim), *none


gumbel_softmax_op = differentiable(gumbel_softmax, tau=1)


class gumbel_sigmoid_backward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, logits: Tensor, tau: Tensor, key: Tensor, start: int) -> Tensor:
        return below("gumbel_sigmoid_backward", grad, logits, tau, key, start)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, logits, tau, key, ctx.start = inputs
        ctx.save_for_backward(grad, logits, tau, key)

    @staticmethod
    def backward(ctx: Any, gg: Tensor) -> tuple[Tensor | None, ...]:
        grad, logits, tau, key = ctx.saved_tensors
        to_grad = _sigmoid_backward(gg, logits, tau, key, ctx.start) if ctx.needs_input_grad[0] else None
        to_logits = None
        if ctx.needs_input_grad[1]:
            # d/dlogits of w (1 - w) is w (1 - w) (1 - 2 w) / tau, and 1 - 2 w = -tanh(t / 2)
            bits = _element_bits(logits, key, ctx.start)
            noise = torch.ops.pysel.noise(bits, "logistic", logits.dtype == torch.float64)
            t = tau.to(device=logits.device, dtype=noise.dtype)
            z = (logits.to(noise.dtype) + noise) / torch.where(t > 0, t, 1.0)
            w = torch.sigmoid(z)
            slope = torch.where(t > 0, -w * (1 - w) * torch.tanh(z / 2) / (t * t), 0.0)
            to_logits = (gg * grad * slope).to(logits.dtype)
        return to_grad, to_logits, None, None, None


_sigmoid_backward = differentiable(gumbel_sigmoid_backward, tau=2)


def _element_bits(x: Tensor, key: Tensor, start: int) -> Tensor:
    high, low = (torch.ops.pysel.random_words(key, s, start, x.numel()) for s in (0, 1))
    return ((high << 32) | low).view(x.shape).to(x.device)


class gumbel_sigmoid(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, tau: Tensor, key: Tensor, hard: bool, start: int, validate: bool | None) -> Tensor:
        return below("gumbel_sigmoid", logits, tau, key, hard, start, validate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        logits, tau, key, _, ctx.start, _ = inputs
        ctx.save_for_backward(logits, tau, key)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, tau, key = ctx.saved_tensors
        return _sigmoid_backward(grad, logits, tau, key, ctx.start), None, None, None, None, None


gumbel_sigmoid_op = differentiable(gumbel_sigmoid, tau=1)

register_vmap(
    "random_words",
    "noise",
    "split",
    "fold_in",
    "permutation",
    "gumbel_softmax",
    "gumbel_softmax_backward",
    "gumbel_sigmoid",
    "gumbel_sigmoid_backward",
    "gumbel_argmax",
    "weighted_sample",
)


# --- topk ---

# The four products are linear in each of their floats, so that the gradient of each consists of the others.


class sparse_decode(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return below("sparse_decode", values, indices, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, indices, weight, _ = inputs
        ctx.save_for_backward(values, indices, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, weight = ctx.saved_tensors
        need = ctx.needs_input_grad
        to_values, to_weight = None, None
        if need[0] and need[2]:
            to_values, to_weight = sparse_decode_backward_op(grad, values, indices, weight)
        elif need[0]:
            to_values = sddmm_op(indices, weight, grad)
        elif need[2]:
            to_weight = spmm_t_op(values, indices, grad, weight.shape[0])
        return to_values, None, to_weight, grad.sum(0) if need[3] else None


sparse_decode_op = differentiable(sparse_decode)


class sddmm(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(indices: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
        return below("sddmm", indices, weight, grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gg: Tensor) -> tuple[Tensor | None, ...]:
        indices, weight, grad = ctx.saved_tensors
        need = ctx.needs_input_grad
        to_weight = spmm_t_op(gg, indices, grad, weight.shape[0]) if need[1] else None
        return None, to_weight, sparse_decode_op(gg, indices, weight, None) if need[2] else None


sddmm_op = differentiable(sddmm)


class spmm_t(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, indices: Tensor, rows: Tensor, num_factors: int) -> Tensor:
        return below("spmm_t", values, indices, rows, num_factors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, gg: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, rows = ctx.saved_tensors
        need = ctx.needs_input_grad
        to_values = sddmm_op(indices, gg, rows) if need[0] else None
        return to_values, None, sparse_decode_op(values, indices, gg, None) if need[2] else None, None


spmm_t_op = differentiable(spmm_t)


class sparse_decode_backward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, values: Tensor, indices: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return below("sparse_decode_backward", grad, values, indices, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, of_values: Tensor, of_weight: Tensor) -> tuple[Tensor | None, ...]:
        grad, values, indices, weight = ctx.saved_tensors
        need = ctx.needs_input_grad
        to_grad = None
        if need[0]:
            to_grad = sparse_decode_op(of_values, indices, weight, None)
            to_grad = to_grad + sparse_decode_op(values, indices, of_weight, None)
        to_values = sddmm_op(indices, of_weight, grad) if need[1] else None
        return to_grad, to_values, None, spmm_t_op(of_values, indices, grad, weight.shape[0]) if need[3] else None


sparse_decode_backward_op = differentiable(sparse_decode_backward)


class topk(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return below("topk", x, k)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.n = inputs[0].shape[-1]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        return grad.new_zeros(*grad.shape[:-1], ctx.n).scatter(-1, indices, grad), None


topk_op = differentiable(topk)


class topk_encode(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, k: int, activation: str) -> tuple[Tensor, Tensor]:
        return below("topk_encode", x, weight, bias, k, activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, _, _, ctx.activation = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        x, weight, values, indices = ctx.saved_tensors
        need = ctx.needs_input_grad
        through = grad
        if ctx.activation == "relu":
            through = torch.where(values <= 0, 0.0, grad).to(grad.dtype)  # NaN passes
        num_factors = weight.shape[0]
        ones = x.new_ones(x.shape[0], 1)
        return (
            sparse_decode_op(through, indices, weight, None) if need[0] else None,
            spmm_t_op(through, indices, x, num_factors) if need[1] else None,
            spmm_t_op(through, indices, ones, num_factors).squeeze(1) if need[2] else None,
            None,
            None,
        )


topk_encode_op = differentiable(topk_encode)


# --- usage ---


class usage_penalty(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, counts: Tensor, gamma: float, form: str, step: int) -> Tensor:
        return below("usage_penalty", scores, counts, gamma, form, step)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, counts, ctx.gamma, ctx.form, ctx.step = inputs
        if ctx.form == "exp":
            ctx.save_for_backward(counts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.form == "exp":  # a factor on the score, so on the gradient too
            grad = usage_penalty_op(grad, *ctx.saved_tensors, ctx.gamma, "exp", ctx.step)
        return grad, None, None, None, None


usage_penalty_op = differentiable(usage_penalty, counts=1)

register_vmap(
    "topk",
    "topk_encode",
    "sparse_decode",
    "sddmm",
    "spmm_t",
    "sparse_decode_backward",
    "factor_counts",
    "factor_scores",
    "select",
    "usage_penalty",
)
