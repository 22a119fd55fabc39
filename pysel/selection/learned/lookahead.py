"""What a sample's weight does to the loss on other data, one step ahead of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from pysel import _inputs, ops

Loss = Callable[[Tensor, Tensor], Tensor]


def default_loss(y: Tensor) -> Loss:
    """Cross-entropy for integer targets, squared error for real ones; one number a sample."""
    return _squared_error if y.is_floating_point() else _cross_entropy


def _squared_error(output: Tensor, target: Tensor) -> Tensor:
    each = F.mse_loss(output.reshape(target.shape), target.to(output.dtype), reduction="none")
    return each.reshape(each.size(0), -1).mean(1)


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target.long(), reduction="none")


def low_loss(losses: Tensor, labels: Tensor | None, *, per_class: int | None = None, share: float = 1.0) -> Tensor:
    """Samples that are likely to be labelled rightly: those of the smallest losses, of each class.

    The loss of a network tells wrong labels from right ones as long as it has not learned them by heart: of samples
    that it is not trained on, or early in training. They can be the meta set of a method that asks for clean data.

    Args:
        losses: [B].
        labels: integers [B]; None or real targets rank all samples together.
        per_class: so many of each class, or all of a smaller one; default the ``share`` of it, rounded up.
        share: in (0, 1].

    Returns:
        int64 ascending indices; equal losses go by the lowest.

    Example:
        >>> low_loss(torch.tensor([3.0, 1.0, 2.0, 9.0]), torch.tensor([0, 0, 0, 1]), per_class=1)
        tensor([1, 3])

    Source: Shu et al., arXiv 2202.05613, appendix; with ``share``, ours.
    """
    if labels is None or labels.is_floating_point():
        labels = torch.zeros(losses.shape, dtype=torch.int64, device=losses.device)
    ids, _, sizes = _inputs.classes("low_loss", "labels", labels, losses.numel())
    wanted = (sizes.double() * share - 1e-9).ceil().long() if per_class is None else sizes.clamp_max(per_class)
    return ops.select(-losses, int(wanted.sum()), groups=ids, quotas=wanted)


def lookahead(
    model: nn.Module,
    loss: Loss,
    batch: tuple[Tensor, Tensor],
    weights: Tensor,
    held_out: tuple[Tensor, Tensor],
    lr: float,
    *,
    layers: str = "all",
    trusted: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The gradient of the held-out loss after one step of the network, by the weights of that step's samples.

    With theta' = theta - lr grad mean_i w_i loss_i(theta), a plain gradient step::

        d L_held_out(theta') / d w_i = -(lr / B) <grad loss_i(theta), grad L_held_out(theta')>

    All B products are one directional derivative of the losses along the held-out gradient (``torch.func.jvp``), where
    a double backward would keep the graph of the step. The model itself is left as it is, its buffers included.

    Args:
        model: its parameters that require grad take the step.
        loss: from outputs and targets to one number a sample.
        batch: inputs [B, ...] and targets.
        weights: [B].
        held_out: inputs [M, ...] and targets.
        lr: length of the step.
        trusted: the held-out loss is the mean over this share of each class, those of the smallest losses.
        layers: "last" lets only the model's last ``nn.Linear`` take it, at little more than the cost of forward passes.

    Returns:
        the gradient [B], and the held-out loss after the step.

    Raises:
        ValueError: with "last", a model without ``nn.Linear``.

    Example:
        >>> model, x, y = nn.Linear(2, 1, bias=False), torch.eye(2), torch.zeros(2, 1)
        >>> _ = nn.init.ones_(model.weight)
        >>> lookahead(model, default_loss(y), (x, y), torch.ones(2), (x, y), lr=0.5)
        (tensor([-0.2500, -0.2500]), tensor(0.2500))

    Source: the identity behind the weighting of Ren et al., arXiv 1803.09050, and MW-Net, arXiv 1902.07379.
    """
    chosen = _last_linear(model) if layers == "last" else None
    theta = {
        name: parameter.detach().requires_grad_()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (chosen is None or name in chosen)
    }
    fixed = {name: parameter.detach() for name, parameter in model.named_parameters() if name not in theta}
    buffers = dict(model.named_buffers())

    def losses(parameters: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        # layers may write into their buffers: into copies, and made here, where the derivative is taken
        state = {**fixed, **parameters, **{name: buffer.clone() for name, buffer in buffers.items()}}
        return loss(functional_call(model, state, (x,)), y)

    with torch.enable_grad():
        step = _gradient((weights.detach() * losses(theta, *batch)).mean(), theta)
        ahead = {name: (t.detach() - lr * step[name]).requires_grad_() for name, t in theta.items()}
        judged = losses(ahead, *held_out)
        if trusted < 1:
            judged = judged[low_loss(judged.detach(), held_out[1], share=trusted)]
        target = judged.mean()
        slope = _gradient(target, ahead)
    here = {name: t.detach() for name, t in theta.items()}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no directional derivative
        along = jvp(lambda parameters: losses(parameters, *batch), (here,), (slope,))[1]
    return along * (-lr / weights.numel()), target.detach()


def _gradient(of: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(of, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, gradients, strict=True))


def _last_linear(model: nn.Module) -> set[str]:
    """Names of the parameters of a model's last ``nn.Linear``."""
    name = next((n for n, module in reversed(list(model.named_modules())) if isinstance(module, nn.Linear)), None)
    if name is None:
        raise ValueError("lookahead: layers must be 'all' for a model without nn.Linear, got 'last'")
    return {f"{name}.{part}" if name else part for part in ("weight", "bias")}
