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
    L_selector = fidelity + sparsity_weight * sparsity            game="cooperative"
               | -fidelity + sparsity_weight * sparsity           game="adversarial"
    fidelity = L_task                                             fidelity="task"
             | L_held_out(theta - lr grad L_task) / lr            fidelity="lookahead"
    sparsity = (mean(p) - r)^2 | |mean(p) - r| | mean(p)          p = sigmoid(s), r = the share to be found, see pool

The samples of the largest probabilities are also the easiest there are, and all alike; on clean data they train worse
networks than random ones do. What is wrong has left well before nothing but them is left. Hence the pool, which is
ours: the game finds the better part of the data, and the subset is a random part of that. How much is better off
outside is tried (`pysel.selection.learned.pool`): where nothing is, the subset is a random one.

Unless normalised, attenuating the loss rewards small weights as such, and only a sparsity term with a
target holds them up.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from tqdm import tqdm

from pysel import _checks
from pysel.nn import GumbelSelector
from pysel.random import as_key, fold_in
from pysel.selection.learned.batches import Batch, Given, Loader, Tensors, batch_of
from pysel.selection.learned.fitted import LearnedSelector
from pysel.selection.learned.game import Game, Optimiser, unwrapped
from pysel.selection.learned.lookahead import Loss, default_loss
from pysel.selection.learned.pool import Tried, try_pools
from pysel.selection.learned.replicas import Replicas
from pysel.selection.learned.settings import Settings
from pysel.selection.learned.trial import evaluating, outputs_of, strata_of, try_selector
from pysel.selection.schedule import Schedule

if TYPE_CHECKING:
    from typing_extensions import Self

Progress = bool | Callable[[int, dict[str, float]], None]


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


class ASSS(LearnedSelector):
    """Learns which samples a task needs, then keeps the best ``ceil(keep_ratio * N)``.

    After arXiv 2601.02081; this module's docstring says what is the paper's and what is ours. Once fitted it
    is a static `pysel.selection.Selector`; `published` gives the published form.

    The cooperative game keeps samples that the task network fits, and so drops wrong labels first. The
    adversarial one keeps those that it does not fit. Sources speak of an adversarial game while the published
    objective is cooperative, hence both. The attenuations have opposite tastes, too: weighting the loss drops what
    cannot be fitted, attenuating the input drops what is fitted without looking, and keeps what lies near decision
    boundaries.

    Args:
        keep_ratio: fraction of samples **kept**, in (0, 1].
        pool: share of the samples that the subset is a random part of (ours), from ``keep_ratio`` to 1. "auto" has the
            game find 80 %, or ``keep_ratio`` if that is more. At its end networks are trained on subsets from pools
            of 100, 80 and 60 % (and of ``keep_ratio`` above that) of either half of the data, for ``epochs`` all in the
            same passes, and judged on the other half. A smaller pool is taken if it is better than a larger one by two
            standard errors; see ``tried``. None keeps the samples of the largest logits, as published.
        epochs: passes over the data.
        batch_size: rows a step, where `fit` makes the batches.
        task_lr, selector_lr: Adam's learning rates; the selector's is 0.2 for a table, 0.01 for a network by default.
        warmup_epochs: the first epochs train the task network only, for its losses to mean something.
        attenuation: "loss" or "input".
        normalise: divide by the sum of the weights; only with "loss", and there the default.
        fidelity: "task", the task's own loss; or "lookahead" (ours), what a step of the task network on the weighted
            batch does to the loss on other data: held-out ones if `fit` is given some, else every sample is judged by
            the half of the data that its task network is not trained on.
        trusted: the loss on other data is the mean over this share of each class, those of the smallest losses. Wrong
            labels among them must not count: they pull the network towards them as the weighted ones do, and nothing
            would be learned. Default half of the other half of the data, and all of held-out ones.
        layers: "last" takes that step with the network's last ``nn.Linear`` alone.
        game: "cooperative" or "adversarial".
        gate: "sigmoid", gates of their own; or "khot", that add up to ``ceil(pool B)`` in each batch, and need no
            sparsity term (`pysel.selection.learned.gumbel_khot`; ours).
        sparsity: "target", squared distance of the mean probability to ``pool``, "absolute", that distance, or
            "mean", the mean probability.
        sparsity_weight: its factor.
        tau, tau_rate, tau_min: temperature ``max(tau_min, tau * exp(-tau_rate * epoch))``.
        tau_schedule: "exponential", as just said; or "linear", "cosine", or a function from progress in (0, 1] to
            [0, 1], for a temperature from ``tau``, at 1, to ``tau_min``, at 0.
        hard: gates of 0 or 1 with the soft gate's gradient.
        selector: "table" for one free logit a sample, "network" for a perceptron over the inputs, or your own network
            from inputs [B, ...] to logits [B] or [B, 1], which is trained in place. Networks can judge samples that
            they were not fitted on.
        hidden: width of the perceptron's one hidden layer.
        see_labels: a network sees the inputs, flattened, and the label beside them: one-hot, or a real target itself.
            A cooperative game may then end with one class kept, the easiest of all tasks: look at ``importances``.
        patience: stop early, when for so many epochs at most the share ``turnover`` of the subset has changed.
        turnover: that share.
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
        pool: str | float | None = "auto",
        epochs: int = 10,
        batch_size: int = 256,
        task_lr: float = 1e-2,
        selector_lr: float | None = None,
        warmup_epochs: int = 2,
        attenuation: str = "loss",
        normalise: bool | None = None,
        fidelity: str = "task",
        layers: str = "all",
        trusted: float | None = None,
        game: str = "cooperative",
        gate: str = "sigmoid",
        sparsity: str = "target",
        sparsity_weight: float = 10.0,
        tau: float = 1.0,
        tau_rate: float = 0.1,
        tau_min: float = 0.2,
        tau_schedule: str | Schedule = "exponential",
        hard: bool = False,
        selector: str | nn.Module | None = "table",
        hidden: int = 64,
        see_labels: bool = False,
        patience: int | None = None,
        turnover: float = 0.01,
        key: Tensor | int | None = None,
    ) -> None:
        given = dict(locals())
        selector = "table" if selector is None else selector
        if isinstance(selector, str):
            _checks.choice("ASSS", "selector", selector, ("table", "network"))
        elif not isinstance(selector, nn.Module):
            raise TypeError(f"ASSS: selector must be 'table', 'network' or a Module, got {type(selector).__name__}")
        elif not any(parameter.requires_grad for parameter in selector.parameters()):
            raise ValueError("ASSS: selector must have parameters that require grad, got a network with none")
        see_labels = _checks.flag("ASSS", "see_labels", see_labels)
        if see_labels and selector == "table":
            raise ValueError("ASSS: see_labels must be False with selector='table', which sees nothing, got True")
        if selector_lr is None:
            given["selector_lr"] = 0.2 if selector == "table" else 1e-2
        settings = Settings(**{field.name: given[field.name] for field in fields(Settings)})
        hidden = _checks.in_range("ASSS", "hidden", hidden, 1)
        super().__init__(settings, selector, hidden, see_labels, as_key("ASSS", key))
        self._make: Callable[..., Game] | None = None  # the game, once there is a batch to look at; set by start
        self._game: Game | None = None
        self._epoch = 0
        self._training: dict[str, Any] | None = None  # a loaded game that was not over
        self._history: list[dict[str, float]] = []

    @classmethod
    def published(cls, keep_ratio: float, **options: Any) -> Self:
        """The form that arXiv 2601.02081 publishes, as far as it is known: a selector *network* over the inputs, which
        are attenuated by its soft gates, in a game with the task network. Constants are ours; ``options`` change them.

        Example:
            >>> x, y = torch.randn(64, 4), torch.randint(2, (64,))
            >>> selector = ASSS.published(0.25, epochs=3, key=0).fit(x, y, lambda: nn.Linear(4, 2))
            >>> selector.score(torch.randn(5, 4)).shape
            torch.Size([5])
        """
        return cls(keep_ratio, **{"selector": "network", "attenuation": "input", "pool": None, "epochs": 20, **options})

    # --- training ---

    def fit(
        self,
        x: Any,
        y: Any = None,
        network: Callable[[], nn.Module] | None = None,
        *,
        loss: Loss | None = None,
        optimiser: Optimiser | None = None,
        selector_inputs: Any = None,
        labels: Any = None,
        quantiles: int = 4,
        held_out: tuple[Any, Any] | None = None,
        num_samples: int | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Train selector and task network in turn, then choose the subset.

        After `load_state_dict` of a state taken while `fit` ran it goes on from there, in the middle of an epoch too,
        to the same bits: with the same data, a loader in the same order, and a network that draws nothing from torch's
        generator as it trains.

        Args:
            x: [N, ...] inputs of the task network: a tensor, array or column; or a loader that yields
                (indices, x, y), with what the selector sees as a fourth where that is not x.
            y: [N] or [N, ...] targets; not with a loader.
            network: makes a fresh task network; it draws its starting values as it likes (torch's default
                generator, mostly).
            loss: from outputs and targets to a loss per sample [B]; default cross-entropy for integer ``y``,
                squared error for floating-point ``y``.
            optimiser: makes the task network's optimiser of its parameters; default Adam.
            selector_inputs: [N, ...] what a selector network sees; default ``x``.
            labels: [N]. Integers: in the final subset every class keeps its share. Real numbers, a target of regression
                for instance: every quantile does. A pool is found without regard to classes, and one with too few in it
                is filled up with its best others.
            quantiles: how many there are.
            held_out: inputs and targets for ``fidelity="lookahead"``.
            num_samples: N, where a loader's data set has no length.
            progress: True shows a bar where standard error is a terminal; a function is called after each epoch with
                its number and its entry of ``history``.

        Returns:
            self.

        Raises:
            TypeError: data or functions of another kind.
            ValueError: lengths differ, numbers are not finite, a stratum is empty, or ``loss`` does not return one
                number a sample; before anything is trained. Or losses stop being finite in training.
        """
        if not (progress is None or isinstance(progress, bool) or callable(progress)):
            raise TypeError(f"ASSS: progress must be True, False or a function, got {type(progress).__name__}")
        # nothing of the caller's surroundings reaches the training
        with torch.inference_mode(False), torch.enable_grad():
            data: Tensors | Loader
            if y is not None:
                batch_size = self.settings.batch_size
                data = Tensors(x, y, selector_inputs, batch_size, fold_in(self._key, 0))
            elif hasattr(x, "__array__"):
                raise TypeError(
                    f"ASSS: y must be given with x, unless x is a loader, got None and a {type(x).__name__}"
                )
            elif selector_inputs is None:
                data = Loader(x, num_samples)
            else:
                raise ValueError("ASSS: selector_inputs must come from the loader, as the fourth part of its batches")
            self.start(
                network,
                data.num_samples,
                loss=loss,
                optimiser=optimiser,
                labels=labels,
                quantiles=quantiles,
                held_out=held_out,
                device=data.device,
            )
            if isinstance(data, Tensors) and loss is None and self._make is not None:
                self._make = partial(self._make, targets=data.y)
            self._train(data, progress)
            self.finish(data)
        return self

    def _train(self, data: Tensors | Loader, progress: Progress | None) -> None:
        start = 0
        if self._training is not None:  # there may be no step left to make the game on
            start, self._game = self._training["position"], self._first(next(iter(data.all())))
        with tqdm(
            total=self.settings.epochs, desc="ASSS", unit="epoch", disable=None if progress is True else True
        ) as bar:
            bar.update(self._epoch)
            for epoch in range(self._epoch, self.settings.epochs):
                if self.settled:
                    break
                for batch in data.epoch(epoch, start):
                    self._step(batch)
                start = 0
                self.set_epoch(epoch + 1)
                last = self.history[-1]
                bar.set_postfix(loss=last["task_loss"], p=last["mean_probability"], refresh=False)
                bar.update()
                if callable(progress):
                    progress(epoch, last)

    def start(
        self,
        network: Callable[[], nn.Module] | None,
        num_samples: int,
        *,
        loss: Loss | None = None,
        optimiser: Optimiser | None = None,
        labels: Any = None,
        quantiles: int = 4,
        held_out: tuple[Any, Any] | None = None,
        device: torch.device | str | None = None,
        accumulate: int = 1,
        scaler: torch.amp.GradScaler | None = None,
        process_group: ProcessGroup | None = None,
    ) -> Self:
        """Get ready for a training loop of your own, in place of `fit`.

        ::

            selector.start(make_network, len(dataset), accumulate=4)
            for epoch in range(selector.settings.epochs):
                selector.set_epoch(epoch)
                for batch in loader:  # indices, x, y
                    with torch.autocast("cuda"):
                        selector.step(batch)
                if selector.settled:
                    break
            selector.finish(loader)

        Args:
            network, loss, optimiser, labels, quantiles, held_out: as for `fit`. A network may come wrapped, by
                ``DistributedDataParallel`` for instance.
            num_samples: N.
            device: where networks and batches go; default where ``network`` puts its first parameter.
            accumulate: batches whose gradients make a step of the optimisers.
            scaler: scales losses, for float16.
            process_group: of ranks that each step on a part of every batch, equally large ones, as
                ``DistributedDataParallel`` wants. Their gates, the sparsity and the selector's gradient are then those
                of one process with the whole batch, but for sums of weights (``normalise``) and budgets ("khot"), which
                are each rank's own. Every rank must be given the same key, and all samples to `finish`.

        Raises:
            TypeError, ValueError: as `fit`.
        """
        if not callable(network) or isinstance(network, nn.Module):
            got = f"the network itself, a {type(network).__name__}" if callable(network) else type(network).__name__
            raise TypeError(f"ASSS: network must be a function that makes a fresh task network, got {got}")
        n = _checks.in_range("ASSS", "num_samples", num_samples, 1)
        accumulate = _checks.in_range("ASSS", "accumulate", accumulate, 1)
        strata = strata_of(labels, quantiles, n, self.settings.keep_ratio)
        if held_out is not None:
            if self.settings.fidelity != "lookahead":
                raise ValueError("ASSS: held_out must be None unless fidelity='lookahead', which judges by it")
            pair = Tensors(*held_out, None, 1, self._key)
            held_out = pair.x, pair.y
        self.num_samples, self._groups, self._game, self._gate = n, strata.groups, None, None
        self._subset = self._subset.new_empty(0)
        self._epoch = 0 if self._training is None else self._training["epoch"]
        self._make = partial(
            self._make_game,
            network=network,
            loss=loss,
            optimiser=optimiser or partial(torch.optim.Adam, lr=self.settings.task_lr, fused=True),
            device=None if device is None else torch.device(device),
            held_out=held_out,
            accumulate=accumulate,
            scaler=scaler,
            replicas=Replicas(process_group),
        )
        return self

    def _make_game(
        self,
        batch: Batch,
        *,
        network: Callable[[], nn.Module],
        loss: Loss | None,
        optimiser: Optimiser,
        device: torch.device | None,
        held_out: tuple[Tensor, Tensor] | None,
        targets: Tensor | None = None,
        **options: Any,
    ) -> Game:
        """Both players, tried out on the first batch."""
        crossed = self.settings.fidelity == "lookahead" and held_out is None
        with torch.device(device) if device is not None else nullcontext():  # layers are made where they are used
            tasks = [network() for _ in range(2 if crossed else 1)]
        if not isinstance(tasks[0], nn.Module) or not any(p.requires_grad for p in tasks[0].parameters()):
            raise TypeError(f"ASSS: network must make a Module that can be trained, got {type(tasks[0]).__name__}")
        device = device or next(tasks[0].parameters()).device
        tasks = [task.to(device) for task in tasks]
        batch = batch.to(device)
        loss = loss or default_loss(batch.y)
        if self.settings.attenuation == "input":
            _checks.tensor("ASSS", "x", batch.x)  # there is no half of a whole number
        outputs, *_ = [outputs_of(task, loss, batch, targets) for task in tasks]  # lazy layers are made here
        if self._selector == "table":
            gate = GumbelSelector(self.num_samples)
        else:
            if self._see_labels and not batch.y.is_floating_point():
                self._classes = outputs.size(1) if outputs.dim() > 1 else int(batch.y.max()) + 1
            seen = self._seen(batch)
            self._width = seen[0].numel()
            gate = self._network(self._width)
            try_selector(gate, seen)
        game = Game(
            self.settings,
            gate.to(device),
            tasks,
            optimiser,
            loss,
            self.num_samples,
            self._key,
            held_out=None if held_out is None else (held_out[0].to(device), held_out[1].to(device)),
            **options,
        )
        if self._training is not None:
            game.load_state_dict(self._training)
            self._training = None
        return game

    def set_epoch(self, epoch: int) -> None:
        """Go on to an epoch, counted from 0: the temperature follows, and the one before is noted in ``history``.

        Raises:
            ValueError: the losses of the one before are not finite.
        """
        self._epoch = _checks.in_range("ASSS", "epoch", epoch, 0)
        if self._game is not None:
            self._game.begin(self._epoch)

    def step(self, batch: Any) -> Tensor:
        """Train both players on a batch, in `start`'s loop, under whatever autocast is on.

        Args:
            batch: (indices, x, y), int64 [B], [B, ...] and [B, ...], and what a selector network sees, where that is
                not x.

        Returns:
            the task loss, 0-d, detached.

        Raises:
            RuntimeError: before `start`.
            TypeError, ValueError: not such a batch.
        """
        with torch.inference_mode(False), torch.enable_grad():
            if self._game is None and self._make is None:
                raise RuntimeError("ASSS: call start first, or fit")
            return self._step(batch_of(batch, self.num_samples))

    def _first(self, batch: Batch) -> Game:
        assert self._make is not None
        return self._make(batch)

    def _step(self, batch: Batch) -> Tensor:
        game = self._game = self._first(batch) if self._game is None else self._game
        game.begin(self._epoch)
        batch = batch.to(game.device)
        return game.step(batch._replace(seen=self._seen(batch)))

    @property
    def history(self) -> list[dict[str, float]]:
        """An entry an epoch: ``task_loss``, the fidelity; ``mean_probability``, the sparsity; ``information``, what a
        gate tells of its sample, in bits (see `pysel.selection.learned.information`); ``tau``; and, from the second on,
        ``turnover``, the share of the subset that was not in the one before."""
        return [dict(entry) for entry in (self._history if self._game is None else self._game.history)]

    @property
    def settled(self) -> bool:
        """Whether the subset has changed as little, for as long, as ``patience`` wants."""
        return self._game is not None and self._game.settled

    def finish(self, batches: Iterable[Any] | Tensors | Loader) -> Self:
        """End the game, judge every sample once more, and choose the subset.

        Args:
            batches: (indices, x, y), as for `step`; a sample that is not among them keeps what was seen last of it.
                With ``pool="auto"`` they are gone through several times, and must be all samples.

        Raises:
            RuntimeError: nothing has been trained.
            TypeError: ``batches`` can be gone through only once, with ``pool="auto"``.
            ValueError: some samples have never been seen.
        """
        game = self._game
        if game is None:
            raise RuntimeError("ASSS: finish must follow a step")
        auto = isinstance(self.settings.pool, str)
        if auto and isinstance(batches, Iterator):
            raise TypeError(
                "ASSS: batches must be what can be gone through many times with pool='auto', a loader for instance, "
                f"got a {type(batches).__name__}; finish with one, and nothing is lost"
            )
        data = batches if isinstance(batches, Tensors | Loader) else Given(batches, self.num_samples)
        with torch.inference_mode(False), torch.no_grad():
            game.begin(game.epoch + 1)
            self._judge(game, data, complete=auto)
            self._tried = self._try_pools(game, data) if auto else []
            self._logits, self._losses, self._history = game.logits.clone(), game.losses.clone(), game.history
            self._groups = None if self._groups is None else self._groups.to(game.device)
            self._subset = self._choose()
        self._gate = None if game.gate.is_table else game.gate
        self._game = self._make = None
        return self

    def _judge(self, game: Game, data: Tensors | Loader | Given, *, complete: bool) -> None:
        """See every sample once more; unless ``complete``, one that was seen before may be missing."""
        missing = torch.ones(self.num_samples, dtype=torch.bool, device=game.device)
        with evaluating(game.gate, *game.tasks):
            for given in data.all():
                batch = given.to(game.device)
                game.judge(batch._replace(seen=self._seen(batch)))
                missing[batch.indices] = False
        unknown = int((missing if complete else game.losses.isnan() | game.logits.isnan()).sum())
        if unknown:
            raise ValueError(
                f"ASSS: batches must have every one of the {self.num_samples} samples"
                f"{' with pool=' + repr(self.settings.pool) if complete else ', or those of training'}: {unknown} "
                f"were {'missing' if complete else 'in neither'}; finish with those, and nothing is lost"
            )

    def _try_pools(self, game: Game, data: Tensors | Loader | Given) -> list[Tried]:
        network = copy.deepcopy(unwrapped(game.tasks[0]))
        network.load_state_dict(game.untrained)
        return try_pools(
            game.logits,
            self.settings.keep_ratio,
            None if self._groups is None else self._groups.to(game.device),
            network,
            game.make_optimiser,
            game.loss,
            lambda epoch: (batch.to(game.device) for batch in data.epoch(epoch)),
            lambda: (batch.to(game.device) for batch in data.all()),
            epochs=self.settings.epochs,
            batch_size=self.settings.batch_size,
            replicas=game.replicas,
            key=fold_in(self._key, 7),
        )

    # --- state ---

    def _state(self) -> dict[str, Any]:
        return {
            **super()._state(),
            "history": self.history,
            "training": self._training if self._game is None else self._game.state_dict(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        history, training = [dict(entry) for entry in state["history"]], state["training"]
        if not (training is None or isinstance(training, dict)):
            raise TypeError(f"ASSS: state_dict['training'] must be a dictionary, got {type(training).__name__}")
        super()._load_state(state)
        self._history, self._game, self._training = history, None, training
