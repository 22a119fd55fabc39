"""ASSS: subsampling learned together with the task, after arXiv 2601.02081.

From the paper (its abstract and secondary sources; neither full text nor code could be had): a selector
network gives every sample a logit, a Gumbel-Softmax relaxation turns it into a continuous weight, a task
network sees samples attenuated by their weights, the two train in turn, and the selector's loss balances
fidelity against sparsity. The samples with the largest probabilities are kept and the task network is trained
on them from scratch.

Ours: the formulas below and every constant, all of them arguments. With w_i = gumbel_sigmoid(s_i, tau):

    L_task = mean_i loss(T(w_i x_i), y_i)                         attenuation="input"
           | mean_i w_i loss(T(x_i), y_i)                         attenuation="loss"
           | sum_i w_i loss_i / sum_i w_i                         attenuation="loss", normalise=True
    L_selector = L_task + sparsity_weight * sparsity              game="cooperative"
               | -L_task + sparsity_weight * sparsity             game="adversarial"
    sparsity = (mean(sigmoid(s)) - keep_ratio)^2 | mean(sigmoid(s))

Unless normalised, attenuating the loss rewards small weights as such, and only a sparsity term with a
target holds them up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pysel import _checks, ops
from pysel.nn import GumbelSelector
from pysel.random import as_key, fold_in, split
from pysel.selection.schedule import exponential_decay
from pysel.selection.subset import Strata, subset_size

Loss = Callable[[Tensor, Tensor], Tensor]


def performance_retention_rate(subset_metric: float, full_metric: float) -> float:
    """PRR: the metric after training on the subset over the metric after training on everything.

    Args:
        subset_metric, full_metric: of a kind where larger is better, accuracy for instance.

    Raises:
        ValueError: ``full_metric`` is not positive.

    Example:
        >>> performance_retention_rate(0.45, 0.9)
        0.5
    """
    if not full_metric > 0:
        raise ValueError(f"performance_retention_rate: full_metric must be positive, got {full_metric!r}")
    return subset_metric / full_metric


class ASSS:
    """Learns which samples a task needs, then keeps the best ``ceil(keep_ratio * N)``.

    After arXiv 2601.02081; this module's docstring says what is the paper's and what is ours. Once fitted it
    is a static `pysel.selection.Selector`.

    The cooperative game keeps samples that the task network fits, and so drops wrong labels first. The
    adversarial one keeps those that it does not fit. Sources speak of an adversarial game while the published
    objective is cooperative, hence both.

    Args:
        keep_ratio: fraction of samples **kept**, in (0, 1].
        epochs: passes over the data.
        batch_size: rows a step.
        task_lr, selector_lr: Adam's learning rates.
        warmup_epochs: the first epochs train the task network only, for its losses to mean something.
        attenuation: "loss" or "input".
        normalise: divide by the sum of the weights ("loss" only).
        sparsity: "target", squared distance of the mean probability to ``keep_ratio``, or "mean".
        sparsity_weight: its factor.
        game: "cooperative" or "adversarial".
        tau, tau_rate, tau_min: temperature ``max(tau_min, tau * exp(-tau_rate * epoch))``.
        hard: gates of 0 or 1 with the soft gate's gradient.
        selector: None for one free logit a sample, or a network from inputs [B, ...] to logits [B] or [B, 1].
        key: int64 [2] or an int, for gates and order; drawn from torch's default generator when missing.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Example:
        >>> import pysel
        >>> x, y = torch.randn(64, 4), torch.randint(2, (64,))
        >>> selector = ASSS(keep_ratio=0.25, epochs=2, key=pysel.key(0)).fit(x, y, lambda: nn.Linear(4, 2))
        >>> selector.select().shape, len(selector)
        (torch.Size([16]), 16)
    """

    def __init__(
        self,
        keep_ratio: float,
        *,
        epochs: int = 20,
        batch_size: int = 256,
        task_lr: float = 1e-2,
        selector_lr: float = 0.2,
        warmup_epochs: int = 2,
        attenuation: str = "loss",
        normalise: bool = False,
        sparsity: str = "target",
        sparsity_weight: float = 10.0,
        game: str = "cooperative",
        tau: float = 1.0,
        tau_rate: float = 0.1,
        tau_min: float = 0.2,
        hard: bool = False,
        selector: nn.Module | None = None,
        key: Tensor | int | None = None,
    ) -> None:
        name = "ASSS"
        subset_size(keep_ratio, 1)  # refuses a bad ratio before the work rather than after
        for argument, whole, low in (
            ("epochs", epochs, 1),
            ("batch_size", batch_size, 1),
            ("warmup_epochs", warmup_epochs, 0),
        ):
            _checks.integer(name, argument, whole)
            if whole < low:
                raise ValueError(f"{name}: {argument} must be at least {low}, got {whole}")
        for argument, number in (
            ("task_lr", task_lr),
            ("selector_lr", selector_lr),
            ("tau", tau),
            ("tau_min", tau_min),
        ):
            _checks.number(name, argument, number)
            if not 0 < number < math.inf:
                raise ValueError(f"{name}: {argument} must be positive and finite, got {number!r}")
        for argument, number in (("sparsity_weight", sparsity_weight), ("tau_rate", tau_rate)):
            _checks.number(name, argument, number)
            if not 0 <= number < math.inf:
                raise ValueError(f"{name}: {argument} must be finite and at least 0, got {number!r}")
        _checks.choice(name, "attenuation", attenuation, ("loss", "input"))
        _checks.choice(name, "sparsity", sparsity, ("target", "mean"))
        _checks.choice(name, "game", game, ("cooperative", "adversarial"))
        if normalise and attenuation == "input":
            raise ValueError(f"{name}: normalise must be False with attenuation='input', got True")
        if sparsity == "mean" and game == "cooperative" and attenuation == "loss" and not normalise:
            raise ValueError(
                f"{name}: sparsity must be 'target', got 'mean', which together with the loss would send all "
                "weights to 0; normalise=True and attenuation='input' allow it"
            )
        self.keep_ratio = keep_ratio
        self.epochs, self.batch_size, self.warmup_epochs = epochs, batch_size, warmup_epochs
        self.task_lr, self.selector_lr = task_lr, selector_lr
        self.attenuation, self.normalise, self.game, self.hard = attenuation, normalise, game, hard
        self.sparsity, self.sparsity_weight = sparsity, sparsity_weight
        self.tau, self.tau_rate, self.tau_min = tau, tau_rate, tau_min
        self._network = selector
        self._key = as_key(name, key)
        self._logits: Tensor | None = None
        self._subset: Tensor | None = None
        self.history: list[dict[str, float]] = []  # one entry an epoch: task loss, mean probability, tau

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        network: Callable[[], nn.Module],
        *,
        loss: Loss | None = None,
        selector_inputs: Tensor | None = None,
        labels: Tensor | None = None,
        progress: Callable[[int, dict[str, float]], None] | None = None,
    ) -> ASSS:
        """Train selector and task network in turn, then choose the subset.

        Args:
            x: [N, ...] floating-point inputs of the task network.
            y: [N] or [N, ...] targets.
            network: makes a fresh task network; it draws its starting values as it likes (torch's default
                generator, mostly).
            loss: from outputs and targets to a loss per sample [B]; default cross-entropy for integer ``y``,
                squared error for floating-point ``y``.
            selector_inputs: [N, ...] what a selector network sees; default ``x``.
            labels: integers [N]: in the final subset every class keeps its share.
            progress: called after each epoch with its number and its entry of ``history``.

        Returns:
            self.

        Raises:
            TypeError: ``x`` is not a floating-point tensor.
            ValueError: lengths differ, or ``loss`` does not return one number a sample.
        """
        _checks.tensor("ASSS", "x", x)
        n = x.size(0) if x.dim() else 0
        if n == 0:
            raise ValueError(f"ASSS: x must be [N, ...] with at least one row, got {list(x.shape)}")
        for argument, given in (("y", y), ("selector_inputs", selector_inputs), ("labels", labels)):
            if given is not None and (given.dim() == 0 or given.size(0) != n):
                raise ValueError(f"ASSS: {argument} must have {n} rows like x, got {list(given.shape)}")
        strata = Strata(n, subset_size(self.keep_ratio, n), labels, device=x.device)
        loss = _default_loss(y) if loss is None else loss
        gate = GumbelSelector(n) if self._network is None else GumbelSelector(network=self._network)
        gate.to(x.device)
        task = network().to(x.device)
        if gate.is_table:
            inputs = torch.arange(n, device=x.device)
            selector_optimiser: torch.optim.Optimizer = torch.optim.SparseAdam(gate.parameters(), lr=self.selector_lr)
        else:
            inputs = x if selector_inputs is None else selector_inputs
            selector_optimiser = torch.optim.Adam(gate.parameters(), lr=self.selector_lr)
        task_optimiser = torch.optim.Adam(task.parameters(), lr=self.task_lr)
        order_key, gate_key = split(self._key, 2)
        order_key = order_key.to(x.device)  # the order is made where it is used
        tau = torch.empty((), dtype=torch.float64)  # a tensor, so that annealing recompiles nothing
        equal = torch.ones(n, device=x.device)
        self.history = []
        step = 0
        for epoch in range(self.epochs):
            tau.fill_(exponential_decay(epoch, self.tau, self.tau_rate, self.tau_min))
            warm = epoch >= self.warmup_epochs
            running = torch.zeros((), device=x.device)
            for rows in ops.permutation(n, key=fold_in(order_key, epoch)).split(self.batch_size):
                # Task network: gates are given.
                w = equal[rows]
                if warm:
                    with torch.no_grad():
                        w = gate(inputs[rows], tau, self.hard, key=fold_in(gate_key, 2 * step))
                task_loss = self._task_loss(task, loss, x[rows], y[rows], w)
                task_optimiser.zero_grad()
                task_loss.backward()
                task_optimiser.step()
                running += task_loss.detach() * rows.numel()

                # Selector: the task network is given.
                if warm:
                    w = gate(inputs[rows], tau, self.hard, key=fold_in(gate_key, 2 * step + 1))
                    fidelity = self._task_loss(task, loss, x[rows], y[rows], w)
                    mean = gate.probabilities(inputs[rows]).mean()
                    sparsity = mean if self.sparsity == "mean" else (mean - self.keep_ratio).square()
                    sign = 1 if self.game == "cooperative" else -1
                    selector_optimiser.zero_grad()
                    (sign * fidelity + self.sparsity_weight * sparsity).backward(inputs=list(gate.parameters()))
                    selector_optimiser.step()
                step += 1
            self._logits = _all_logits(gate, inputs, self.batch_size)
            self.history.append(
                {
                    "task_loss": float(running) / n,
                    "mean_probability": float(torch.sigmoid(self._logits).mean()),
                    "tau": float(tau),
                }
            )
            if progress is not None:
                progress(epoch, self.history[-1])
        assert self._logits is not None
        # Logits rank as probabilities do, and do not tie where those have rounded to 1.
        self._subset = strata.best(self._logits)
        return self

    def _task_loss(self, task: nn.Module, loss: Loss, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        if self.attenuation == "input":
            x = x * w.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
        each = loss(task(x), y)
        if each.shape != w.shape:
            raise ValueError(f"ASSS: loss must return one number a sample, [{w.numel()}], got {list(each.shape)}")
        if self.attenuation == "input":
            return each.mean()
        total = (w * each).sum()
        return total / (w.sum().clamp_min(torch.finfo(w.dtype).tiny) if self.normalise else w.numel())

    @property
    def probabilities(self) -> Tensor:
        """[N] chance of each sample to be used, once fitted."""
        return torch.sigmoid(self._fitted(self._logits))

    def __len__(self) -> int:
        """Samples in the subset."""
        return self._fitted(self._subset).numel()

    def select(self, epoch: int = 0) -> Tensor:
        """The subset, int64 ascending indices; the same in every epoch.

        Raises:
            RuntimeError: before `fit`.
        """
        return self._fitted(self._subset).clone()

    @staticmethod
    def _fitted(value: Tensor | None) -> Tensor:
        if value is None:
            raise RuntimeError("ASSS: call fit first")
        return value

    def state_dict(self) -> dict[str, Any]:
        """Logits and subset."""
        return {"logits": self._fitted(self._logits).clone(), "subset": self._fitted(self._subset).clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a fitted state; no `fit` is needed then."""
        self._logits, self._subset = state_dict["logits"].clone(), state_dict["subset"].clone()


def _default_loss(y: Tensor) -> Loss:
    return _squared_error if y.is_floating_point() else _cross_entropy


def _squared_error(output: Tensor, target: Tensor) -> Tensor:
    each = F.mse_loss(output.reshape(target.shape), target, reduction="none")
    return each.reshape(each.size(0), -1).mean(1)


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none")


@torch.no_grad()
def _all_logits(gate: GumbelSelector, inputs: Tensor, batch_size: int) -> Tensor:
    gate.eval()
    logits = torch.cat([gate.logits(batch) for batch in inputs.split(batch_size)])
    gate.train()
    return logits.detach()
