"""The game of ASSS: a task network and a selector that train in turn. `ASSS` has the formulas."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pysel import ops
from pysel.nn import GumbelSelector
from pysel.random import fold_in
from pysel.selection.learned.batches import Batch
from pysel.selection.learned.gate import gumbel_khot
from pysel.selection.learned.lookahead import Loss, lookahead
from pysel.selection.learned.replicas import Replicas
from pysel.selection.learned.settings import Settings
from pysel.selection.subset import subset_size

Optimiser = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Game:
    """Both players, their optimisers, and how far they are.

    Args:
        settings: the arguments of `ASSS`.
        gate: the selector's logits, a table of ``num_samples`` or a network.
        tasks: one task network, or two, each trained on one half of the samples and judged on the other.
        optimiser: makes that of a task network.
        loss: from outputs and targets to one number a sample.
        num_samples: N.
        key: for gates, halves and held-out batches.
        held_out: inputs and targets that the lookahead is judged on.
        accumulate: batches a step of the optimisers.
        scaler: of gradients, for float16.
        replicas: the ranks that play this game together, each on a part of every batch.
    """

    def __init__(
        self,
        settings: Settings,
        gate: GumbelSelector,
        tasks: list[nn.Module],
        optimiser: Optimiser,
        loss: Loss,
        num_samples: int,
        key: Tensor,
        *,
        held_out: tuple[Tensor, Tensor] | None = None,
        accumulate: int = 1,
        scaler: torch.amp.GradScaler | None = None,
        replicas: Replicas,
    ) -> None:
        self.settings, self.gate, self.tasks, self.loss = settings, gate, tasks, loss
        self.num_samples, self.held_out, self.accumulate, self.scaler = num_samples, held_out, accumulate, scaler
        self.replicas = replicas
        self.device = next(gate.parameters()).device
        self.make_optimiser = optimiser
        self.task_optimisers = [optimiser(task.parameters()) for task in tasks]
        self._trained = [parameter for parameter in gate.parameters() if parameter.requires_grad]
        kind = torch.optim.SparseAdam if gate.is_table else torch.optim.Adam
        self.selector_optimiser: torch.optim.Optimizer = kind(self._trained, lr=settings.selector_lr)
        for made in (*self.task_optimisers, self.selector_optimiser):
            made.zero_grad()
        self._gate_key, half_key, self._held_out_key = fold_in(key, 1), fold_in(key, 3), fold_in(key, 4)
        self._second: Tensor | None = None  # bool [N], whose task network is the second one
        if len(tasks) == 2:
            self._second = (ops.permutation(num_samples, key=half_key) < num_samples // 2).to(self.device)
        # as last seen, of a network
        self.logits = torch.full((num_samples,), math.nan, dtype=torch.float32, device=self.device)
        if gate.is_table:
            self.logits = next(gate.parameters()).detach().view(-1)  # the table itself
        self.losses = torch.full((num_samples,), math.nan, dtype=torch.float32, device=self.device)
        self.epoch, self.position, self.rows = 0, 0, 0  # batches and samples of the epoch so far
        self.steps, self.turns = 0, 0
        self.running = torch.zeros((), dtype=torch.float32, device=self.device)  # summed task losses of the epoch
        self.history: list[dict[str, float]] = []
        self.untrained = copy.deepcopy(unwrapped(tasks[0]).state_dict()) if isinstance(settings.pool, str) else {}
        self.kept: Tensor | None = None  # the subset, had the last epoch been the end
        self.still = 0  # epochs in a row in which it hardly changed
        # tensors, so that annealing recompiles nothing
        self.tau = torch.full((), settings.temperature(0), dtype=torch.float64, device="cpu")

    @property
    def warm(self) -> bool:
        """Whether the selector plays yet."""
        return self.epoch >= self.settings.warmup_epochs

    # --- a step ---

    def step(self, batch: Batch) -> Tensor:
        """Move both players by one batch; the task loss, detached."""
        if self._second is None:
            total = self._turn(0, batch, self._held_out_batch(batch.rows))
        else:
            second = self._second[batch.indices.to(self.device)]
            halves = batch.at(~second), batch.at(second)
            total = torch.zeros((), dtype=torch.float32, device=self.device)
            for player, (own, other) in enumerate((halves, halves[::-1])):
                if own.rows > 1 and other.rows > 1:  # layers that normalise by the batch need two
                    total += self._turn(player, own, (other.x, other.y)) * (own.rows / batch.rows)
        self.steps += 1
        self.position += 1
        self.rows += batch.rows
        self.running += total * batch.rows
        return total

    def _turn(self, player: int, batch: Batch, held_out: tuple[Tensor, Tensor] | None) -> Tensor:
        """The task network with gates given, then the selector with the task network given."""
        task = self.tasks[player]
        gates_drawn = [fold_in(self._gate_key, 2 * self.turns + who) for who in (0, 1)]
        self.turns += 1
        seen = batch.indices.to(self.device) if self.gate.is_table else batch.seen

        w = torch.ones(batch.rows, dtype=torch.float32, device=self.device)
        if self.warm:
            with torch.no_grad():
                w = self._gates(self.gate.logits(seen), gates_drawn[0])
        each = self._losses(task, batch, w)
        task_loss = self._mean(each, w)
        self._descend(task_loss, self.task_optimisers[player])
        self.losses[batch.indices.to(self.device)] = each.detach().to(self.losses.dtype)

        if self.warm:
            logits = self.gate.logits(seen)
            w = self._gates(logits, gates_drawn[1])
            fidelity = self._fidelity(unwrapped(task), batch, w, each.detach(), held_out)
            sign = 1 if self.settings.game == "cooperative" else -1
            self._descend(sign * fidelity + self._sparsity(logits), self.selector_optimiser, self._trained)
            if not self.gate.is_table:
                self.logits[batch.indices.to(self.device)] = logits.detach().to(self.logits.dtype)
        return task_loss.detach()

    def _gates(self, logits: Tensor, key: Tensor) -> Tensor:
        n, hard = logits.numel(), self.settings.hard
        start = self.replicas.rank * n  # the gates of all ranks are those of one that has the whole batch
        if self.settings.gate == "khot":
            return gumbel_khot(logits, subset_size(self.settings.target, n), self.tau, hard, key=key, start=start)
        return ops.gumbel_sigmoid(logits, self.tau, hard, key=key, start=start)

    def _losses(self, task: nn.Module, batch: Batch, w: Tensor) -> Tensor:
        x = batch.x
        if self.settings.attenuation == "input":
            x = x * w.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
        return self.loss(task(x), batch.y)

    def _mean(self, each: Tensor, w: Tensor) -> Tensor:
        if self.settings.attenuation == "input":
            return each.mean()
        total = (w * each).sum()
        return total / (w.sum().clamp_min(torch.finfo(w.dtype).tiny) if self.settings.normalise else w.numel())

    def _fidelity(
        self, task: nn.Module, batch: Batch, w: Tensor, each: Tensor, held_out: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Something with the gradient of the selector's fidelity by the gates."""
        if self.settings.fidelity == "lookahead":
            assert held_out is not None
            scale = w.detach().mean().clamp_min(torch.finfo(w.dtype).tiny) if self.settings.normalise else 1.0
            lr = self.settings.task_lr
            by_weight, _ = lookahead(
                task,
                self.loss,
                (batch.x, batch.y),
                w / scale,
                held_out,
                lr,
                layers=self.settings.layers,
                trusted=self.settings.trusted or (0.5 if self.held_out is None else 1.0),
            )
            return (by_weight / lr / scale * w).sum()
        if self.settings.attenuation == "input":
            each = self._losses(task, batch, w)  # depend on the gates; otherwise they are as the task network saw them
        return self._mean(each, w)

    def _sparsity(self, logits: Tensor) -> Tensor | float:
        if self.settings.gate == "khot":
            return 0.0  # the budget is exact
        mean = self.replicas.mean(torch.sigmoid(logits).mean())
        if self.settings.sparsity != "mean":
            mean = mean - float(self.settings.target)
            mean = mean.square() if self.settings.sparsity == "target" else mean.abs()
        return self.settings.sparsity_weight * mean

    def _descend(
        self, loss: Tensor, optimiser: torch.optim.Optimizer, inputs: list[nn.Parameter] | None = None
    ) -> None:
        loss = loss / self.accumulate if self.accumulate > 1 else loss
        (loss if self.scaler is None else self.scaler.scale(loss)).backward(inputs=inputs)
        if (self.steps + 1) % self.accumulate:
            return
        if inputs is not None:  # those of the task network are its wrapper's to average
            self.replicas.average_gradients(inputs)
        if self.scaler is None:
            optimiser.step()
        else:
            self.scaler.step(optimiser)
            if inputs is not None or not self.warm:  # once for both players
                self.scaler.update()
        optimiser.zero_grad()

    def _held_out_batch(self, rows: int) -> tuple[Tensor, Tensor] | None:
        if self.held_out is None or not self.warm:
            return None
        x, y = self.held_out
        rows, n = min(rows, len(x)), len(x)
        # the held-out samples in one random order after another
        lap, place = divmod(self.turns * rows, n - n % rows)
        at = ops.permutation(n, key=fold_in(self._held_out_key, lap), start=place, stop=place + rows).to(x.device)
        return x[at], y[at]

    @torch.no_grad()
    def judge(self, batch: Batch) -> None:
        """Note logits and losses of samples; with two task networks the loss is that of the one not trained on them."""
        indices = batch.indices.to(self.device)
        if not self.gate.is_table:
            self.logits[indices] = self.gate.logits(batch.seen).to(self.logits.dtype)
        each = self.loss(self.tasks[0](batch.x), batch.y)
        if self._second is not None:
            each = torch.where(self._second[indices], each, self.loss(self.tasks[1](batch.x), batch.y))
        self.losses[indices] = each.to(self.losses.dtype)

    # --- epochs ---

    def begin(self, epoch: int) -> None:
        """Go on to an epoch, and close the one before; the same one again changes nothing."""
        if epoch != self.epoch:
            self.close()
            self.epoch = epoch
            self.tau.fill_(self.settings.temperature(epoch))

    def close(self) -> None:
        """Note in the history what came of the epoch, if it had any batch."""
        if self.rows == 0:
            return
        loss = float(self.replicas.mean(self.running / self.rows))
        if not math.isfinite(loss):
            raise ValueError(f"ASSS: loss must be finite, got {loss} in epoch {self.epoch}; a smaller task_lr may help")
        known = self.logits.isfinite()
        p = (
            torch.sigmoid(self.logits[known].double())
            if bool(known.any())
            else torch.full((1,), 0.5, dtype=torch.float32, device=self.device)
        )
        entry = {
            "task_loss": loss,
            "mean_probability": float(p.mean()),
            "information": information(p),
            "tau": float(self.tau),
        }
        kept = ops.select(self.logits.nan_to_num(0.0), subset_size(self.settings.target, self.num_samples))
        if self.kept is not None:
            gone = torch.zeros(self.num_samples, dtype=torch.bool, device=self.device)
            gone[self.kept] = True
            # ranks that have seen other samples must agree on when to stop
            entry["turnover"] = float(self.replicas.mean(1 - gone[kept].double().mean()))
            quiet = self.epoch > self.settings.warmup_epochs and entry["turnover"] <= self.settings.turnover
            self.still = self.still + 1 if quiet else 0
        self.kept = kept
        self.history.append(entry)
        self.position, self.rows = 0, 0
        self.running.zero_()

    @property
    def settled(self) -> bool:
        """Whether the subset has hardly changed for as long as ``patience`` wants."""
        return self.settings.patience is not None and self.still >= self.settings.patience

    # --- state ---

    _NUMBERS = ("epoch", "position", "rows", "steps", "turns", "still")

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return [*self._trained, *(parameter for task in self.tasks for parameter in task.parameters())]

    def state_dict(self) -> dict[str, Any]:
        """All that a game made from the same arguments needs to go on, independent of this one."""
        return copy.deepcopy(
            {
                "gate": self.gate.state_dict(),
                "selector_optimiser": self.selector_optimiser.state_dict(),
                "tasks": [task.state_dict() for task in self.tasks],
                "task_optimisers": [optimiser.state_dict() for optimiser in self.task_optimisers],
                "gradients": [parameter.grad for parameter in self._parameters] if self.accumulate > 1 else [],
                "scaler": None if self.scaler is None else self.scaler.state_dict(),
                "logits": None if self.gate.is_table else self.logits,
                "losses": self.losses,
                "untrained": self.untrained,
                "running": self.running,
                "kept": self.kept,
                "history": self.history,
                **{name: getattr(self, name) for name in self._NUMBERS},
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        state = copy.deepcopy(state)
        if len(state["losses"]) != self.num_samples or len(state["tasks"]) != len(self.tasks):
            raise ValueError(
                f"ASSS: state_dict must be of {self.num_samples} samples and {len(self.tasks)} task networks, "
                f"got {len(state['losses'])} and {len(state['tasks'])}"
            )
        self.gate.load_state_dict(state["gate"])
        self.selector_optimiser.load_state_dict(state["selector_optimiser"])
        for task, theirs in zip(self.tasks, state["tasks"], strict=True):
            task.load_state_dict(theirs)
        for optimiser, theirs in zip(self.task_optimisers, state["task_optimisers"], strict=True):
            optimiser.load_state_dict(theirs)
        for parameter, gradient in zip(self._parameters, state["gradients"], strict=False):
            parameter.grad = gradient if gradient is None else gradient.to(parameter.device)
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        if state["logits"] is not None:
            self.logits.copy_(state["logits"])
        self.losses.copy_(state["losses"])
        self.untrained = state["untrained"]
        self.running.copy_(state["running"])
        self.kept = None if state["kept"] is None else state["kept"].to(self.device)
        self.history = state["history"]
        for name in self._NUMBERS:
            setattr(self, name, state[name])
        self.tau.fill_(self.settings.temperature(self.epoch))


def unwrapped(task: nn.Module) -> nn.Module:
    """The network itself, where a wrapper averages its gradients over ranks."""
    return task.module if isinstance(task, nn.parallel.DistributedDataParallel) else task


def information(p: Tensor) -> float:
    """What a gate tells of its sample, in bits: H(mean p) - mean H(p_i), with H the entropy of a coin.

    That is the mutual information of the selection and the sample, equally likely ones; of the selection and the
    *inputs* where no two samples that get different probabilities have the same inputs, and more than that elsewhere.

    Example:
        >>> information(torch.tensor([0.0, 1.0])), information(torch.tensor([0.5, 0.5]))
        (1.0, 0.0)
    """
    p = p.double()
    of_mean, own = (torch.special.entr(q) + torch.special.entr(1 - q) for q in (p.mean(), p))
    return max(0.0, float(of_mean - own.mean()) / math.log(2))
