"""Loss weights that are learned for the loss on other data: MW-Net and, with families of classes, CMW-Net.

With l_i the loss of sample i, y_i its label and f(y) the family of a class::

    w_i    = V(l_i, f(y_i))                                   a perceptron of one hidden layer, a head for each family
    theta' = theta - lr grad mean_i w_i l_i(theta)            a plain gradient step of the model
    V      descends  L_meta(theta'(V))                        then the model takes its real step with the new weights

`pysel.selection.learned.lookahead` gives d L_meta / d w_i without going back through the step twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from pysel import _checks, _inputs
from pysel.nn import normal
from pysel.random import as_key, fold_in
from pysel.selection.learned.lookahead import Loss, default_loss, lookahead
from pysel.selection.learned.replicas import Replicas


class MetaWeighter(nn.Module):
    """Weighs samples by their losses, by a function that is learned so that training helps on a meta set.

    It is a module with an optimiser of its own, which `state_dict` includes. In a training loop::

        weighter = MetaWeighter(families=class_families(class_sizes))
        for x, y in loader:
            weighter.meta_step(model, (x, y), meta_batch, lr=optimiser)
            losses = F.cross_entropy(model(x), y, reduction="none")
            (weighter.weigh(losses, y) * losses).mean().backward()
            optimiser.step()

    A meta set need not be clean: the samples of the smallest losses of each class, drawn anew in each epoch, will do
    (`low_loss`, as in CMW-Net), or ``trusted`` takes them from each meta batch. What will not do are labels that are as
    wrong as those of training: their pull cancels that of the weighted ones.

    Args:
        families: the family of each class, from 0 on, integers [C], see `class_families`; None weighs all classes by
            one function, as MW-Net does.
        hidden: width of the hidden layer.
        lr, weight_decay: Adam's, MW-Net's by default. CMW-Net's are 1e-4 and 1e-5 (imbalance) or 1e-4 (noise).
        normalise: scale weights to a mean of 1 in each batch, as CMW-Net does; otherwise they are in (0, 1).
        layers: "last" lets only the model's last ``nn.Linear`` take the step, at little more than the cost of forward
            passes; ours.
        key: int64 [2] or an int, for the first weights; drawn from torch's default generator when missing.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Example:
        >>> model, x, y = nn.Linear(3, 2), torch.randn(8, 3), torch.arange(8) % 2
        >>> weighter = MetaWeighter(key=0)
        >>> meta_loss = weighter.meta_step(model, (x, y), (x[:4], y[:4]), lr=0.1)
        >>> weighter.weigh(torch.rand(8)).shape
        torch.Size([8])

    Source: Shu et al., arXiv 1902.07379 (MW-Net) and arXiv 2202.05613 (CMW-Net).
    """

    families: Tensor | None

    def __init__(
        self,
        *,
        families: Any = None,
        hidden: int = 100,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        normalise: bool = False,
        layers: str = "all",
        key: Tensor | int | None = None,
    ) -> None:
        super().__init__()
        op = "MetaWeighter"
        hidden = _checks.in_range(op, "hidden", hidden, 1)
        lr = _checks.within(op, "lr", lr, "(0, inf)")
        weight_decay = _checks.within(op, "weight_decay", weight_decay, "[0, inf)")
        _checks.choice(op, "layers", layers, ("all", "last"))
        heads = 1
        if families is not None:
            families = _inputs.integers(op, "families", families).to("cpu", torch.int64, copy=True)
            if families.numel() == 0 or int(families.min()) < 0:
                raise ValueError(f"{op}: families must be 0 or more, for at least one class, got {families.tolist()}")
            heads = int(families.max()) + 1
        key = as_key(op, key)
        self.normalise, self.layers = bool(normalise), layers
        self.register_buffer("families", families)
        # as wide as torch's own layers: the first weights are all about a half
        self.weight = nn.Parameter(normal((hidden,), key=fold_in(key, 0)) / 3**0.5)
        self.bias = nn.Parameter(normal((hidden,), key=fold_in(key, 1)) / 3**0.5)
        self.heads = nn.Parameter(normal((heads, hidden), key=fold_in(key, 2)) / (3 * hidden) ** 0.5)
        self.head_biases = nn.Parameter(torch.zeros(heads, dtype=torch.float32, device="cpu"))
        self._lr, self._weight_decay = lr, weight_decay
        self._optimiser: torch.optim.Optimizer | None = None

    @property
    def optimiser(self) -> torch.optim.Optimizer:
        """Adam over the weighter's parameters, made when it is first asked for: move the module before."""
        if self._optimiser is None:
            self._optimiser = torch.optim.Adam(self.parameters(), lr=self._lr, weight_decay=self._weight_decay)
        return self._optimiser

    def forward(self, losses: Tensor, labels: Tensor | None = None) -> Tensor:
        """Weights [B] in (0, 1), differentiable by the weighter's parameters.

        Args:
            losses: [B], unweighted; taken as numbers.
            labels: integers [B], with families.

        Raises:
            ValueError: ``losses`` are not a vector, or labels are missing or out of range.
        """
        op = "MetaWeighter"
        _checks.tensor(op, "losses", losses)
        if losses.dim() != 1:
            raise ValueError(f"{op}: losses must be [B], got {list(losses.shape)}")
        seen = torch.relu(losses.detach().to(self.weight)[:, None] * self.weight + self.bias)
        if self.families is None:
            return torch.sigmoid(seen @ self.heads[0] + self.head_biases[0])
        if labels is None:
            raise ValueError(f"{op}: labels must be given with families, got None")
        labels = _inputs.integers(op, "labels", labels, losses.numel()).long().to(self.families.device)
        classes = self.families.numel()
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"{op}: labels must be between 0 and {classes - 1}, the classes in families")
        family = self.families[labels]
        return torch.sigmoid((seen * self.heads[family]).sum(1) + self.head_biases[family])

    @torch.no_grad()
    def weigh(self, losses: Any, labels: Any = None) -> Tensor:
        """Factors [B] for losses whose mean is then the loss of the step.

        Args:
            losses: [B], unweighted.
            labels: integers [B], with families.
        """
        losses = _inputs.vector("MetaWeighter", "losses", losses)
        w = self(losses, labels)
        return w * self._scale(w)

    def _scale(self, w: Tensor) -> Tensor | float:
        return w.mean().clamp_min(torch.finfo(w.dtype).tiny).reciprocal() if self.normalise else 1.0

    def meta_step(
        self,
        model: nn.Module,
        batch: tuple[Tensor, Tensor],
        meta_batch: tuple[Tensor, Tensor],
        lr: float | torch.optim.Optimizer,
        *,
        loss: Loss | None = None,
        trusted: float = 1.0,
        process_group: ProcessGroup | None = None,
    ) -> Tensor:
        """Move the weighter by what a step of the model on the weighted batch would do to the meta loss.

        The model is left as it is. It costs about two forward and backward passes and one directional derivative.

        Args:
            model: the one that is trained, as it stands.
            batch: inputs [B, ...] and targets of the coming step.
            meta_batch: inputs [M, ...] and targets.
            lr: of the model's step: a number, or its optimiser, whose present rate is taken.
            loss: from outputs and targets to a loss per sample; default cross-entropy for integer targets, squared
                error for real ones.
            trusted: the meta loss is the mean over this share of each class, those of the smallest losses (ours).
            process_group: of ranks that train together, each with batches of its own: the weighter's gradients are
                averaged, so that it stays the same on all of them.

        Returns:
            the meta loss after the step, 0-d.

        Raises:
            ValueError: an argument out of range, or a loss that is not finite; nothing has changed then.
        """
        op = "MetaWeighter.meta_step"
        if isinstance(lr, torch.optim.Optimizer):
            rates = {float(group["lr"]) for group in lr.param_groups}
            if len(rates) > 1:
                raise ValueError(f"{op}: lr must be a number where an optimiser has several, got {sorted(rates)}")
            lr = rates.pop()
        lr = _checks.within(op, "lr", lr, "[0, inf)")
        trusted = _checks.within(op, "trusted", trusted, "(0, 1]")
        (x, y), (meta_x, meta_y) = batch, meta_batch
        for name, one, other in (("batch", x, y), ("meta_batch", meta_x, meta_y)):
            if len(one) != len(other) or len(one) == 0:
                raise ValueError(f"{op}: {name} must have as many targets as inputs, got {len(other)} and {len(one)}")
        loss = default_loss(y) if loss is None else loss
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module  # here it is only looked at
        with torch.inference_mode(False), torch.enable_grad():
            with torch.no_grad():
                losses = loss(model(x), y)
            if losses.shape != (len(x),):
                raise ValueError(f"{op}: loss must return one number a sample, [{len(x)}], got {list(losses.shape)}")
            w = self(losses, None if self.families is None else y)
            scale = self._scale(w.detach())
            by_weight, meta_loss = lookahead(
                model, loss, (x, y), w * scale, (meta_x, meta_y), lr, layers=self.layers, trusted=trusted
            )
            if not bool(torch.isfinite(by_weight).all() & torch.isfinite(meta_loss)):
                raise ValueError(f"{op}: loss must be finite, got a meta loss of {float(meta_loss)}")
            self.optimiser.zero_grad()
            (by_weight * scale * w).sum().backward()
            Replicas(process_group).average_gradients(self.parameters())
            self.optimiser.step()
        return meta_loss

    def get_extra_state(self) -> dict[str, Any]:
        """The optimiser's state, for ``state_dict``."""
        return self.optimiser.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the optimiser's state."""
        self.optimiser.load_state_dict(state)


def class_families(class_sizes: Any, num_families: int = 3) -> Tensor:
    """Classes of about the same size together: the k-means of their sizes, exact as they lie on a line.

    Args:
        class_sizes: members of each class, integers [C].
        num_families: fewer come of fewer different sizes.

    Returns:
        int64 [C], 0 for the smallest classes.

    Raises:
        TypeError, ValueError: not a vector of integers, or a number below 1.

    Example:
        >>> class_families([5000, 40, 4800, 700, 50])
        tensor([2, 0, 2, 1, 0])

    Source: CMW-Net, arXiv 2202.05613, has k-means by Lloyd's iteration.
    """
    sizes = _inputs.integers("class_families", "class_sizes", class_sizes).cpu().numpy()
    num_families = _checks.in_range("class_families", "num_families", num_families, 1)
    values, place, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    n = len(values)
    if n == 0:
        raise ValueError("class_families: class_sizes must have at least one class, got none")
    value = values.astype(np.float64) - values.mean()
    total, first, second = (np.concatenate([[0], np.cumsum(counts * value**p)]) for p in (0, 1, 2))
    # best[j]: the least sum of squares of the first j values in so many families, the last of which begins at start[j]
    best, starts = np.full(n + 1, np.inf), []
    best[0] = 0
    for _ in range(min(num_families, n)):
        previous, best, start = best, np.full(n + 1, np.inf), np.zeros(n + 1, dtype=np.int64)
        for j in range(1, n + 1):
            spread = second[j] - second[:j] - (first[j] - first[:j]) ** 2 / (total[j] - total[:j])
            start[j] = np.argmin(previous[:j] + spread)
            best[j] = previous[start[j]] + spread[start[j]]
        starts.append(start)
    family, stop = np.zeros(n, dtype=np.int64), n
    for number, start in reversed(list(enumerate(starts))):
        family[start[stop] : stop] = number
        stop = start[stop]
    return torch.from_numpy(family[place])
