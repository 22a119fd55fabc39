"""One subset for all of training: what a model knows least, by how early in it a sample's hidden state settles.

After KAMIR (Sihyun Park, 2509.07311), which chooses data for fine-tuning. Known to us of it are the vector of cosines,
a small classifier of familiar and unfamiliar content, and that training on the less familiar is better for short
answers. Which classifier, where its labels come from and what it gained we do not know: the logistic regression here is
ours. In a network of six blocks it told classes never trained on from others about as well as softmax confidence does
(AUC 0.80 to 0.86, and 0.74 to 0.85, Fashion-MNIST), and samples trained on from others of the same classes not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pysel import _checks, _inputs
from pysel.selection.features import unit_length
from pysel.selection.state import lasting
from pysel.selection.static.scores import FixedSelector
from pysel.selection.subset import Strata, subset_size

if TYPE_CHECKING:
    from typing_extensions import Self


@lasting
def hidden_states(model: nn.Module, x: Any, layers: Sequence[str], *, batch_size: int = 256) -> list[Tensor]:
    """What each of a model's layers gives, in one pass over the inputs.

    Of an output [B, T, d] the last position is taken, of one with more dimensions all of it, flattened; of a tuple its
    first tensor. The model runs in evaluation mode without gradients; hooks are removed and every part of it is left in
    the mode it was in, whatever happens.

    Args:
        model: any module, all of it on one device.
        x: [N, ...] inputs as the model takes them, a tensor.
        layers: names as in ``model.named_modules()``, at least two for `awareness`.
        batch_size: rows at a time.

    Returns:
        for each layer [N, d], on the model's device.

    Raises:
        TypeError: an argument of the wrong type, or a layer gives no tensor.
        ValueError: no such layer, or one that does not run exactly once in a pass; or no inputs.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
        >>> [h.shape for h in hidden_states(model, torch.ones(5, 4), ["0", "1", "2"])]
        [torch.Size([5, 3]), torch.Size([5, 3]), torch.Size([5, 3])]
    """
    op = "hidden_states"
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a Module, got {type(model).__name__}")
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: x must be a Tensor, got {type(x).__name__}")
    if x.dim() == 0 or len(x) == 0:
        raise ValueError(f"{op}: x must be [N, ...] with N > 0, got {list(x.shape)}")
    batch_size = _checks.in_range(op, "batch_size", batch_size, 1)
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise TypeError(f"{op}: layers must be a list of names, got {layers!r}")
    modules = dict(model.named_modules())
    for name in layers:
        if not isinstance(name, str) or name not in modules:
            raise ValueError(f"{op}: layers must be names in model.named_modules(), got {name!r}")
    if len(set(layers)) < len(layers):
        raise ValueError(f"{op}: layers must be distinct, got {list(layers)}")

    captured: dict[str, list[Tensor]] = {name: [] for name in layers}

    def capture(name: str, output: Any) -> None:
        first = output[0] if isinstance(output, list | tuple) and output else output
        if not isinstance(first, Tensor):
            raise TypeError(f"{op}: layers must give tensors, got a {type(first).__name__} from {name!r}")
        captured[name].append(first[:, -1] if first.dim() == 3 else first.flatten(1))

    device = next((t.device for t in (*model.parameters(), *model.buffers())), None)
    training = {module: module.training for module in model.modules()}
    hooks = [
        modules[name].register_forward_hook(lambda _, __, output, name=name: capture(name, output)) for name in layers
    ]
    model.eval()
    passes = 0
    try:
        with torch.no_grad():
            for batch in x.detach().split(batch_size):
                model(batch.to(device))
                passes += 1
                for name, found in captured.items():
                    if len(found) != passes:
                        how = "does not run" if len(found) < passes else "runs more than once"
                        raise ValueError(f"{op}: layers must run once in a pass, but {name!r} {how}")
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    return [torch.cat(captured[name]) for name in layers]


def awareness(hidden: Any) -> Tensor:
    """The cosine of each block's hidden state with the last one's: near 1 early where a model has settled early.

    Args:
        hidden: L tensors or arrays [B, d], first block first, L at least 2; or one [L, B, d].

    Returns:
        float64 [B, L - 1]; 0 for a state of zeros.

    Raises:
        TypeError: they are not real numbers.
        ValueError: fewer than two, of different shapes, or not finite.

    Example:
        >>> awareness([[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 1.0]]])
        tensor([[0.0000, 0.7071]], dtype=torch.float64)
    """
    op = "awareness"
    if not isinstance(hidden, Sequence) or isinstance(hidden, str | bytes):
        hidden = _inputs.tensor(op, "hidden", hidden)
        hidden = list(hidden) if hidden.dim() == 3 else [hidden]
    if len(hidden) < 2:
        raise ValueError(f"{op}: hidden must be of two blocks or more, [L, B, d], got {len(hidden)}")
    states = [_inputs.matrix(op, f"hidden[{block}]", state) for block, state in enumerate(hidden)]
    for block, state in enumerate(states):
        if state.shape != states[-1].shape:
            wanted, got = list(states[-1].shape), list(state.shape)
            raise ValueError(f"{op}: hidden[{block}] must have the shape of the last, {wanted}, got {got}")
    last = unit_length(states[-1].double())
    return torch.stack([(unit_length(state.double()) * last).sum(1) for state in states[:-1]], 1)


class Familiarity:
    """Logistic regression of "seen" on awareness vectors, in double; it is convex, and takes no random numbers.

    Columns are standardised first; coefficients, but not the intercept, are shrunk, so that even groups that are fully
    apart give finite ones.

    Args:
        shrinkage: half of it times the sum of squared coefficients is added to the log-loss, summed; positive.

    Raises:
        TypeError, ValueError: it is no positive number.

    Example:
        >>> known = Familiarity().fit([[0.9], [0.8], [0.1], [0.2]], [1, 1, 0, 0])
        >>> (known.scores([[0.85], [0.15]]) > 0).tolist()
        [True, False]
    """

    def __init__(self, shrinkage: float = 1.0) -> None:
        self.shrinkage = _checks.within(type(self).__name__, "shrinkage", shrinkage, "(0, inf)")
        self._fitted: tuple[Tensor, Tensor, Tensor] | None = None  # mean, scale, coefficients with the intercept last

    @lasting
    def fit(self, awareness: Any, seen: Any) -> Self:
        """Learn from samples of which it is known.

        Args:
            awareness: [N, L - 1] of any real dtype, as `awareness` gives it; other columns, such as losses, will do.
            seen: booleans or 0 and 1 [N], of both kinds.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: a row that is not finite, or ``seen`` of another shape or of one kind alone.
        """
        op = f"{type(self).__name__}.fit"
        x = _inputs.matrix(op, "awareness", awareness).double()
        y = _inputs.integers(op, "seen", seen, len(x)).to(x.device, torch.float64)
        if set(y.unique().tolist()) != {0.0, 1.0}:
            raise ValueError(f"{op}: seen must hold both 0 and 1 and nothing else, got {y.unique().tolist()[:5]}")
        mean, scale = x.mean(0), x.std(0, correction=0)
        scale = torch.where(scale > 0, scale, torch.inf)
        rows = torch.cat([(x - mean) / scale, torch.ones_like(x[:, :1])], 1)
        shrink = torch.full_like(rows[0], self.shrinkage)
        shrink[-1] = 0
        sign = 1 - 2 * y

        def loss(weights: Tensor) -> Tensor:
            return nn.functional.softplus(sign * (rows @ weights)).sum() + (shrink * weights.square()).sum() / 2

        weights = torch.zeros_like(rows[0])
        for _ in range(100):  # Newton's steps, halved while they overshoot
            p = torch.sigmoid(rows @ weights)
            gradient = rows.mT @ (p - y) + shrink * weights
            curvature = (rows * (p * (1 - p))[:, None]).mT @ rows + torch.diag(shrink)
            step = torch.linalg.solve(curvature, gradient)
            before = loss(weights)
            while not bool(loss(weights - step) <= before) and float(step.abs().max()) > 1e-12:
                step = step / 2
            weights = weights - step
            if float(step.abs().max()) < 1e-10:
                break
        self._fitted = mean, scale, weights
        return self

    @lasting
    def scores(self, awareness: Any) -> Tensor:
        """Log-odds of having been seen, float64 [N], for awareness vectors [N, L - 1]: the familiar are the largest.

        Raises:
            RuntimeError: before `fit`.
            TypeError, ValueError: not as many finite real columns as were fitted.
        """
        op = f"{type(self).__name__}.scores"
        if self._fitted is None:
            raise RuntimeError(f"{op}: nothing has been fitted: call fit(awareness, seen) first")
        mean, scale, weights = self._fitted
        x = _inputs.matrix(op, "awareness", awareness).to(mean.device, torch.float64)
        if x.size(1) != len(mean):
            raise ValueError(f"{op}: awareness must have {len(mean)} columns, as were fitted, got {x.size(1)}")
        return ((x - mean) / scale) @ weights[:-1] + weights[-1]


class FamiliaritySelector(FixedSelector):
    """The samples least familiar to a model, throughout.

    Args:
        awareness: [N, L - 1] of any real dtype, of the samples to choose from.
        keep_ratio: fraction kept.
        classifier: a fitted `Familiarity`.
        labels: integers [N]: each class keeps its share.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a row that is not finite, an argument out of range, or a classifier that is not fitted, or to other
            columns.

    Example:
        >>> known = Familiarity().fit([[0.9], [0.8], [0.1], [0.2]], [1, 1, 0, 0])
        >>> FamiliaritySelector([[0.3], [0.9], [0.2], [0.7]], 0.5, known).select()
        tensor([0, 2])
    """

    def __init__(self, awareness: Any, keep_ratio: float, classifier: Familiarity, *, labels: Any = None) -> None:
        name = type(self).__name__
        x = _inputs.matrix(name, "awareness", awareness)
        size = subset_size(keep_ratio, len(x), op=name)
        if not isinstance(classifier, Familiarity):
            raise TypeError(f"{name}: classifier must be a Familiarity, got {type(classifier).__name__}")
        columns = None if classifier._fitted is None else len(classifier._fitted[0])
        if columns != x.size(1):
            raise ValueError(
                f"{name}: classifier must be fitted to {x.size(1)} columns, as awareness has, got {columns}"
            )
        scores = classifier.scores(x).to(x.device)
        strata = Strata(len(x), size, labels, device=x.device, op=name, name="keep_ratio")
        super().__init__(strata.best(-scores), len(x), arguments={"keep_ratio": keep_ratio})
