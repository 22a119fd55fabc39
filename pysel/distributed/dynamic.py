"""Dynamic selection over more samples than one process holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load as load_checkpoint
from torch.distributed.checkpoint.state_dict_saver import save as save_checkpoint

from pysel import _checks, _inputs, ops
from pysel.distributed import shards
from pysel.distributed.agree import Meeting, add, gather, meet, together
from pysel.distributed.race import PIECE
from pysel.distributed.sample import drawn
from pysel.distributed.select import chosen
from pysel.ops.sample import best_losers
from pysel.random import as_key, fold_in
from pysel.selection.bitmap import Bitmap, packed
from pysel.selection.dynamic.plan import Planned
from pysel.selection.schedule import Schedule
from pysel.selection.state import FORMAT, exact, lasting, like
from pysel.selection.subset import inclusion, quotas

if TYPE_CHECKING:
    from typing_extensions import Self


class ShardedDynamicSelector(Planned):
    """`pysel.selection.DynamicSelector` of which each rank holds a shard: in each epoch the same subset, bit for bit.

    Shards are consecutive parts of the data set in the order of the ranks, of any lengths, empty ones included. Every
    rank makes the selector from its shard and equal other arguments, and asks for the same epochs; making it, asking
    for another epoch than the last, loading a state, `explain` and, with a ``temperature``, `weights` are collective,
    the rest is not. `pysel.SelectionSampler` takes it as it is: each rank then yields samples of the whole data set,
    the same as with one process's selector.

    For each sample of its shard a rank holds two scores (8 bytes in float32), how often it was used (1 byte for up to
    255 epochs, 2 for up to 32,767, else 4), with labels its class (4), and while it selects a third score. For each
    sample of the whole every rank holds the epoch's subset, as a `pysel.selection.Bitmap` (a bit, and an eighth of one
    for finding the j-th), which is exchanged once an epoch.

    Args:
        representativeness: [n] floating point, this rank's shard, tensor or numpy array; n may differ and be 0.
        diversity: [n].
        keep_ratio, epochs: see `DynamicSelector`; the same on all ranks, as all that follow.
        labels: integers [n], those of the shard; on all ranks or on none.
        balance, gamma, penalty, schedule, refine, balance_losses, normalise, temperature: see `DynamicSelector`.
        key: int64 [2] or an int, for the order of equal scores and the draws.
        process_group: the ranks, in whose order the shards follow each other; default all.

    Raises:
        TypeError, ValueError: as `DynamicSelector`, on the rank that holds the cause; ranks that differ in an argument,
            on all.
        RuntimeError: torch.distributed is not initialised, or another rank has refused its shard.

    Example:
        >>> import tempfile, torch, pysel.distributed
        >>> store = torch.distributed.FileStore(tempfile.mktemp(), 1)
        >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> common = torch.tensor([0.9, 0.1, 0.5, 0.2])
        >>> selector = pysel.distributed.ShardedDynamicSelector(common, 1 - common, 0.5, epochs=10, key=0)
        >>> selector.select(0), selector.bitmap(1)
        (tensor([0, 2]), Bitmap(2 of 4))
        >>> torch.distributed.destroy_process_group()

    Source: as `DynamicSelector`; sharding as in `pysel.distributed.select`.
    """

    def __init__(
        self,
        representativeness: Any,
        diversity: Any,
        keep_ratio: float,
        epochs: int,
        *,
        labels: Any = None,
        balance: str | None = "equal",
        gamma: float = 0.2,
        penalty: str = "log",
        schedule: str | float | Schedule = "sigmoid",
        refine: float = 0.15,
        balance_losses: bool = True,
        normalise: str | None = "minmax",
        temperature: float | None = None,
        key: Tensor | int,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        name = type(self).__name__
        plan: dict[str, Any] = {
            "balance": balance,
            "gamma": gamma,
            "penalty": penalty,
            "schedule": schedule,
            "refine": refine,
            "balance_losses": balance_losses,
            "normalise": normalise,
            "temperature": temperature,
        }
        tables: list[Tensor] = []
        own_key = torch.empty(0, dtype=torch.int64, device="cpu")
        own_classes: _inputs.Classes | None = None

        def prepare() -> tuple[dict[str, Any], int]:
            nonlocal own_key, own_classes
            Planned.__init__(self, 1, keep_ratio, epochs, **plan)  # looks at the arguments alone
            if key is None:
                raise ValueError(f"{name}: key must be given, the same on all ranks, got None")
            own_key = as_key(name, key)
            tables.extend(_shard(name, representativeness, diversity, normalise))
            if labels is not None:
                own_classes = _classes(name, labels, tables[0])
            shown = {"key": own_key, "labels (given or not)": labels is not None}
            dtypes = {"representativeness' dtype": str(tables[0].dtype), "diversity's dtype": str(tables[1].dtype)}
            return {**self._described(), **shown, **dtypes}, len(tables[0])

        given = representativeness if isinstance(representativeness, Tensor) else own_key
        meeting = meet(name, given, prepare, process_group)
        meeting = meeting._replace(rows=meeting.notes)
        n = sum(meeting.rows)
        if n == 0:
            raise ValueError(f"{name}: representativeness must be [n] with n > 0 on some rank, got [0] on all")
        super().__init__(n, keep_ratio, epochs, **plan)
        self._group, self._rank, self._offset, self._rows = process_group, meeting.rank, meeting.offset, len(tables[0])
        self._key, self._epoch, self._bitmap = own_key, -1, _none_of(n)
        with torch.inference_mode(False):  # it is written to, wherever the caller is then
            # the subset is in it
            self._uses = torch.zeros(self._rows, dtype=_count_dtype(self.epochs), device=tables[0].device)

        self._classes: Tensor | None = None  # int32 [n], the class of each sample of the shard among all ranks
        self._labels: Tensor | None = None  # int64 [C], ascending
        self._groups: Tensor | None = None  # the classes, if each has a share of its own
        self._quotas: Tensor | None = None  # int64 [C], with groups
        self._loss_weights: tuple[Tensor, Tensor] | None = None
        self._inverse_chance: Tensor | None = None  # of the shard's samples in the subset, as in `DynamicSelector`
        if own_classes is not None:
            self._classes, self._labels, self._sizes = shards.classes(own_classes, meeting)
        if self._classes is not None and balance is not None:
            self._groups = self._classes
            self._quotas = quotas(self._sizes, self._size, balance, op=name, name="keep_ratio")
            self._loss_weights = self._class_weights(self._quotas, self._sizes)
        self.representativeness = shards.unit_interval(name, meeting, tables[0], normalise)
        self.diversity = shards.unit_interval(name, meeting, tables[1], normalise).to(self.representativeness.dtype)
        self._tables = {"representativeness": self.representativeness, "diversity": self.diversity}
        if self._classes is not None:
            self._tables["classes"] = self._classes
        self._digest = shards.fingerprint(self._tables, meeting)

    # --- selection ---

    @lasting
    def bitmap(self, epoch: int = 0) -> Bitmap:
        """The subset of an epoch, of all ranks. Collective where it is another epoch than the last.

        Raises:
            TypeError, ValueError: ``epoch`` is not an int of 0 or more, or not the same on all ranks; nothing has
                changed.
        """
        name = type(self).__name__
        if isinstance(epoch, int) and not isinstance(epoch, bool) and epoch == self._epoch >= 0:
            return self._bitmap
        asked = first = 0

        def prepare() -> tuple[dict[str, Any], int]:
            nonlocal asked, first
            asked = _checks.in_range(name, "epoch", epoch, 0, torch.iinfo(self._uses.dtype).max - 1)
            first = self._epoch + 1 if asked > self._epoch else 0
            return {"epoch": asked, "the epoch before": self._epoch, **self._weighed(first, asked)}, 0

        meeting = meet(name, self._uses, prepare, self._group)
        uses = self._uses if first else torch.zeros_like(self._uses)
        if 0 < first < asked:
            uses = uses.clone()  # the last epoch alone changes them, after all else
        self._uses, self._bitmap = self._played(meeting, uses, first, asked, self._key)
        self._epoch, self._inverse_chance = asked, None
        return self._bitmap

    def _weighed(self, first: int, last: int) -> dict[str, Any]:
        """What the schedule, anybody's function, says of some epochs: it could fail on one rank alone, or differ."""
        return {"the schedule": [self.weight(epoch) for epoch in range(first, last + 1) if not self._is_full(epoch)]}

    @lasting
    def select(self, epoch: int = 0) -> Tensor:
        """The rows of this rank's shard that are in an epoch's subset: int64 ascending. Collective as `bitmap` is."""
        rows = self.bitmap(epoch).between(self._offset, self._offset + self._rows) - self._offset
        return rows.to(self._uses.device)

    def _played(self, meeting: Meeting, uses: Tensor, first: int, last: int, key: Tensor) -> tuple[Tensor, Bitmap]:
        """Select epochs ``first`` to ``last``, counting in ``uses``; the counts and the last epoch's subset.

        The last epoch is counted after the last collective.
        """
        for epoch in range(first, last + 1):
            rows = None if self._is_full(epoch) else self._choose(meeting, uses, epoch, fold_in(key, epoch))
            if epoch == last:
                bitmap = self._exchanged(meeting, rows)
            if rows is None:
                uses += 1
            else:
                uses.index_add_(0, rows, uses.new_ones(()).expand(len(rows)))
        return uses, bitmap

    def _choose(self, meeting: Meeting, uses: Tensor, epoch: int, key: Tensor) -> Tensor:
        """The rows of this shard in the subset of an epoch before which samples have been used so often."""
        name = type(self).__name__
        scores = self._scored(epoch, uses)
        if self.temperature is None:
            return chosen(name, meeting, scores, self._size, True, self._groups, self._quotas, key)
        scores.div_(self.temperature)
        return drawn(name, meeting, scores, self._size, True, self._groups, self._quotas, key)

    def _scored(self, epoch: int, uses: Tensor) -> Tensor:
        """H [n], in the arithmetic of `DynamicSelector`: counts are float32 there."""
        mix = 1 - self.weight(epoch)
        first, second = self.diversity.new_tensor([1 - mix, mix])
        scores = torch.empty_like(self.diversity)
        for at in range(0, self._rows, PIECE):
            part = slice(at, at + PIECE)
            scores[part] = self.representativeness[part] * first + self.diversity[part] * second
            counts = uses[part].float()
            ops.usage_penalty(scores[part], counts, self.gamma, self.penalty, max(epoch, 1), out=scores[part])
        return scores

    def _exchanged(self, meeting: Meeting, rows: Tensor | None) -> Bitmap:
        """The subset of which this rank has chosen ``rows``; None are all."""
        if rows is None:
            return Bitmap(None, self.num_samples)
        octets = packed(rows, self._offset, self._rows, self.num_samples)
        # a bit is set on one rank at most, so that the sum has them all
        return Bitmap(add(octets, meeting.group).cpu().view(torch.int64), self.num_samples)

    @lasting
    def weights(self, indices: Any, labels: Any = None) -> Tensor:
        """Factors for the losses of samples of the current subset, see `DynamicSelector.weights`.

        With a ``temperature`` collective, for a sample's factor comes from the rank that holds it: three exchanges, of
        16 bytes for each sample in a batch, and in an epoch's first call one more.

        Args:
            indices: integers [B], samples of the whole data set; B may differ between ranks and be 0.
            labels: integers [B], theirs: a rank knows those of its shard alone. Needed with ``balance_losses`` unless
                there is a ``temperature``.

        Raises:
            TypeError, ValueError: see `DynamicSelector.weights`; no labels where they are needed, or one that no sample
                has.
            RuntimeError: with a ``temperature``, another rank's indices are refused.
        """
        name = type(self).__name__
        if self.temperature is not None:
            return self._weights_of_draws(indices)
        self._check_selected()
        weights = super().weights(indices)
        if self._loss_weights is None or self._labels is None:
            return weights
        if labels is None:
            raise ValueError(f"{name}: labels must be given with balance_losses, got None")
        labels = _inputs.integers(f"{name}.weights", "labels", labels, len(weights)).to(self._labels.device).long()
        of = torch.searchsorted(self._labels, labels).clamp_max(len(self._labels) - 1)
        unknown = self._labels[of] != labels
        if bool(unknown.any()):
            raise ValueError(f"{name}: labels must be those of samples, got {int(labels[unknown][0])}")
        return self._loss_weights[self._is_full(self._epoch)][of].to(weights.device)

    def _check_selected(self) -> None:
        if self._epoch < 0:
            raise ValueError(f"{type(self).__name__}: weights are those of a selected subset: call select() first")

    def _weights_of_draws(self, indices: Any) -> Tensor:
        name = type(self).__name__
        given = torch.empty(0, dtype=torch.int64, device="cpu")

        def prepare() -> tuple[dict[str, Any], int]:
            nonlocal given
            self._check_selected()
            given = self._samples("weights", indices)
            outside = ~self._bitmap.has(given.cpu())
            if bool(outside.any()):
                raise ValueError(
                    f"{name}: indices must be of the subset of epoch {self._epoch}, got {int(given.cpu()[outside][0])}"
                )
            return {"the epoch": self._epoch, **self._weighed(self._epoch, self._epoch)}, len(given)

        meeting = meet(f"{name}.weights", self._uses, prepare, self._group)
        message = self._uses.new_full((max(meeting.notes),), -1, dtype=torch.int64)
        message[: len(given)] = given
        rows = gather(message, meeting.group) - self._offset
        mine = (rows >= 0) & (rows < self._rows)
        weights = torch.zeros(rows.shape, dtype=torch.float64, device=rows.device)
        full = self._is_full(self._epoch)
        own = torch.ones_like(rows[mine], dtype=torch.float32)
        if self._loss_weights is not None and self._groups is not None:
            own = self._loss_weights[full][self._groups[rows[mine]].long()]
        if not full:
            if self._inverse_chance is None:
                self._inverse_chance = self._importance(meeting)
            place = torch.searchsorted(self.select(self._epoch), rows[mine])
            own = own * self._inverse_chance[place]
        weights[mine] = own.double()
        # one rank has each sample's, the others 0
        return add(weights, meeting.group)[meeting.rank, : len(given)].to(given.device, own.dtype)

    def _importance(self, meeting: Meeting) -> Tensor:
        """What makes this shard's samples of the current subset stand for all of their class, 1 on average."""
        assert self.temperature is not None
        log_weights = self._scored(self._epoch, self._before()).div_(self.temperature)
        rows, key = self.select(self._epoch), fold_in(self._key, self._epoch)
        num_groups = 1 if self._quotas is None else len(self._quotas)
        threshold = best_losers(log_weights, rows, key, self._groups, num_groups, offset=self._offset)
        threshold = gather(threshold, meeting.group).amax(0)
        if self._groups is None or self._quotas is None:
            return self._size / self.num_samples / inclusion(log_weights[rows], threshold)
        of = self._groups[rows].long()
        chance = inclusion(log_weights[rows], threshold[of])
        return (self._quotas.to(chance.dtype) / self._sizes)[of] / chance

    @lasting
    def explain(self, i: int) -> dict[str, Any]:
        """Why a sample of the whole is in the current subset, or why not: see `DynamicSelector.explain`.

        Collective, and the same on all ranks. ``factors`` is None.

        Raises:
            TypeError, IndexError: ``i`` is not an int in [0, N).
            ValueError: it differs between ranks.
        """
        name = f"{type(self).__name__}.explain"
        sample, epoch = 0, max(self._epoch, 0)

        def prepare() -> tuple[dict[str, Any], int]:
            nonlocal sample
            sample = _checks.integer(name, "i", i)
            if not 0 <= sample < self.num_samples:
                raise IndexError(f"{name}: i must be between 0 and {self.num_samples - 1}, got {sample}")
            return {"i": sample, "the epoch": self._epoch, **self._weighed(epoch, epoch)}, 0

        meeting = meet(name, self._uses, prepare, self._group)
        chosen_here = torch.zeros_like(self.diversity, dtype=torch.bool)
        chosen_here[self.select(epoch)] = True
        taken = bool(self._bitmap.has(torch.tensor([sample], device="cpu")))
        uses = self._before()
        scores, row = self._scored(epoch, uses), sample - self._offset

        # what the rank that holds it knows; 0 on the others
        own = torch.zeros(6, dtype=torch.float64, device=scores.device)
        if 0 <= row < self._rows:
            base = self._scored(epoch, torch.zeros_like(uses))
            held = (self.representativeness, self.diversity, scores, base - scores, uses, self._classes)
            own = torch.stack([own[0] if x is None else x[row].double() for x in held])
        rep, div, score, penalty, used, of = add(own, meeting.group).tolist()

        rivals = chosen_here != taken
        if self._groups is not None:
            rivals &= self._groups == int(of)
        others = scores[rivals].double()
        best = (others.max() if taken else others.min()) if len(others) else own.new_zeros(())
        above = ((self.representativeness > rep).sum(), (self.diversity > div).sum(), rivals.sum())
        told = gather(torch.stack([*(count.double() for count in above), best]), meeting.group)
        before, ahead, count = told[:, :3].sum(0).long().tolist()
        margin = None
        if count:
            ends = told[told[:, 2] > 0, 3]
            nearest = float(ends.max() if taken else ends.min())
            margin = float(scores.new_tensor(score) - scores.new_tensor(nearest))
        return {
            "sample": sample,
            "epoch": epoch,
            "label": None if self._labels is None else int(self._labels[int(of)]),
            "representativeness": rep,
            "representativeness_rank": 1 + before,
            "diversity": div,
            "diversity_rank": 1 + ahead,
            "weight": self.weight(epoch),
            "uses": int(used),
            "penalty": penalty,
            "score": score,
            "taken": taken,
            "margin": margin,
            "factors": None,
        }

    @lasting
    def scores(self, epoch: int) -> Tensor:
        """H [n] of the shard in an epoch, the penalty included. Collective as `bitmap` is."""
        self.bitmap(epoch)
        return self._scored(self._epoch, self._before())

    def _before(self) -> Tensor:
        """Uses [n] before the current epoch, a copy."""
        uses = self._uses.clone()
        if self._epoch >= 0:
            uses[self.select(self._epoch)] -= 1
        return uses

    @property
    def uses(self) -> Tensor:
        """int64 [n]: how many epochs have used each sample of the shard, the current one included."""
        return self._uses.long()

    def stats(self) -> dict[str, Any]:
        """``epochs`` so far and the ``realised_ratio``: what a rank knows without the others."""
        epochs = self._epoch + 1
        seen = sum(map(self.size, range(epochs)))
        return {"epochs": epochs, "realised_ratio": seen / (self.num_samples * max(epochs, 1))}

    # --- state ---

    def _state(self) -> dict[str, Any]:
        uses = shards.VectorShard(self._before(), self._offset, self.num_samples)
        return {"epoch": self._epoch, "key": self._key.clone(), "uses": uses}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`; collective, and costs the selection of one epoch.

        A state loads at any world size and in any layout through torch.distributed.checkpoint, which brings each rank
        the counts of its shard.

        Raises:
            TypeError, ValueError: see `Selector.load_state_dict`; the state's counts are those of another shard, or do
                not add up to the subsets of its epochs. Nothing has changed then, on any rank.
            RuntimeError: another rank has refused its part.
        """
        name = type(self).__name__
        epoch, key, uses = -1, self._key, self._uses

        def prepare() -> tuple[dict[str, Any], int]:
            nonlocal epoch, key, uses
            self._check_origin(state_dict, ("epoch", "key", "uses"))
            most = torch.iinfo(self._uses.dtype).max - 1
            epoch = _checks.in_range(name, "state_dict['epoch']", state_dict["epoch"], -1, most)
            key = like(name, "key", state_dict["key"], self._key)
            part = state_dict["uses"]
            if not isinstance(part, shards.VectorShard):
                raise TypeError(f"{name}: state_dict['uses'] must be a VectorShard, got {type(part).__name__}")
            if (part.offset, part.total) != (self._offset, self.num_samples):
                raise ValueError(
                    f"{name}: state_dict['uses'] must begin at sample {self._offset} of {self.num_samples}, "
                    f"got {part.offset} of {part.total}: torch.distributed.checkpoint loads it at another world size"
                )
            uses = like(name, "uses", part.local, self._uses)
            if self._rows and not 0 <= int(uses.min()) <= int(uses.max()) <= max(epoch, 0):
                raise ValueError(
                    f"{name}: state_dict['uses'] must be between 0 and {max(epoch, 0)} before epoch {epoch}, "
                    f"got {int(uses.min())} to {int(uses.max())}"
                )
            shown = {"state_dict['epoch']": epoch, "state_dict['key']": key, **self._weighed(max(epoch, 0), epoch)}
            return shown, int(uses.sum(dtype=torch.int64))

        meeting = meet(f"{name}.load_state_dict", self._uses, prepare, self._group)
        wanted, got = sum(map(self.size, range(epoch))), sum(meeting.notes)
        if got != wanted:
            raise ValueError(
                f"{name}: state_dict['uses'] must add up to {wanted}, the subsets before epoch {epoch}, got {got}"
            )
        with torch.inference_mode(False):
            bitmap = _none_of(self.num_samples)
            if epoch >= 0:
                uses, bitmap = self._played(meeting, uses, epoch, epoch, key)
        self._uses, self._bitmap, self._epoch, self._key, self._inverse_chance = uses, bitmap, epoch, key, None

    def save(self, path: str | Path) -> None:
        """Write arguments, tables and state into a folder that all ranks see; collective.

        The tensors are a checkpoint of torch.distributed.checkpoint, each rank's shard in a file of its own. The folder
        holds a selector when all of it is written: a rank that is lost before leaves one that `load` does not take, so
        save each state into a folder of its own.

        Raises:
            ValueError: an argument is a function, which cannot be written; nothing has been.
            OSError: on the first rank; RuntimeError then on the others.
        """
        name = f"{type(self).__name__}.save"
        self._check_writable()
        folder, state = Path(path), self._state()
        entries = {
            "format": FORMAT,
            "selector": type(self).__name__,
            "num_samples": self.num_samples,
            "dtype": str(self.diversity.dtype).removeprefix("torch."),
            "labels": None if self._labels is None else self._labels.tolist(),
            "arguments": self._arguments,
            "fingerprint": self.fingerprint,
            "epoch": state["epoch"],
            "key": state["key"].tolist(),
        }

        def begin() -> None:
            if self._rank == 0:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "selector.json").unlink(missing_ok=True)  # what it speaks of is about to be overwritten

        def finish() -> None:
            if self._rank == 0:
                (folder / "selector.part").write_text(json.dumps(entries, indent=2) + "\n")
                (folder / "selector.part").replace(folder / "selector.json")

        together(name, begin, self._group)
        vectors = {name: shards.VectorShard(x, self._offset, self.num_samples) for name, x in self._tables.items()}
        save_checkpoint({**vectors, "uses": state["uses"]}, checkpoint_id=path, process_group=self._group)
        together(name, finish, self._group)

    @classmethod
    def load(
        cls, path: str | Path, *, device: torch.device | str = "cpu", process_group: dist.ProcessGroup | None = None
    ) -> Self:
        """Make the selector again that `save` wrote, on any number of ranks, whose shards are even; collective.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it holds another kind of selector, or tables that do not belong to its fingerprint.
            RuntimeError: another rank has failed.
        """
        saved = together(f"{cls.__name__}.load", lambda: cls._read(Path(path)), process_group)
        n, rank, world = saved["num_samples"], dist.get_rank(process_group), dist.get_world_size(process_group)
        first, stop = n * rank // world, n * (rank + 1) // world
        arguments = {name: exact(value) for name, value in saved["arguments"].items()}
        dtypes = dict.fromkeys(("representativeness", "diversity"), getattr(torch, saved["dtype"]))
        dtypes["uses"] = _count_dtype(arguments["epochs"])
        if saved["labels"] is not None:
            dtypes["classes"] = torch.int32
        vectors = {
            name: shards.VectorShard(torch.empty(stop - first, dtype=dtype, device=device), first, n)
            for name, dtype in dtypes.items()
        }
        load_checkpoint(vectors, checkpoint_id=path, process_group=process_group)
        key = torch.tensor(saved["key"], dtype=torch.int64, device="cpu")
        labels = None
        if saved["labels"] is not None:
            known = torch.tensor(saved["labels"], device=device)
            labels = together(f"{cls.__name__}.load", lambda: known[vectors["classes"].local.long()], process_group)
        selector = cls(
            vectors["representativeness"].local,
            vectors["diversity"].local,
            labels=labels,
            key=key,
            process_group=process_group,
            **{**arguments, "normalise": None},  # they are already
        )
        selector._arguments["normalise"] = arguments["normalise"]
        selector.load_state_dict({**saved, "key": key, "uses": vectors["uses"]})
        return selector


def _count_dtype(epochs: int) -> torch.dtype:
    """The smallest that counts so many uses."""
    return next(t for t in (torch.uint8, torch.int16, torch.int32) if epochs <= torch.iinfo(t).max)


def _none_of(num_samples: int) -> Bitmap:
    return Bitmap(torch.zeros(-(-num_samples // 64), dtype=torch.int64, device="cpu"), num_samples)


def _shard(name: str, representativeness: Any, diversity: Any, normalise: str | None) -> list[Tensor]:
    """The two tables of this rank, checked."""
    first = _inputs.vector(name, "representativeness", representativeness, may_be_empty=True)
    second = _inputs.vector(name, "diversity", diversity, may_be_empty=True)
    _checks.same_device(name, "diversity", second, "representativeness", first)
    if second.shape != first.shape:
        raise ValueError(
            f"{name}: diversity must have shape [{len(first)}] like representativeness, got [{len(second)}]"
        )
    for argument, table in (("representativeness", first), ("diversity", second)):
        if normalise is None and len(table) and not 0 <= float(table.min()) <= float(table.max()) <= 1:
            raise ValueError(
                f"{name}: {argument} must lie in [0, 1], got {float(table.min()):g} to {float(table.max()):g} "
                "(normalise=None)"
            )
    return [first, second]


def _classes(name: str, labels: Any, like: Tensor) -> _inputs.Classes:
    """The classes of this rank's labels, which may be none, on the tables' device."""
    if len(like):
        return _inputs.Classes(*(x.to(like.device) for x in _inputs.classes(name, "labels", labels, len(like))))
    given = _inputs.tensor(name, "labels", labels)
    if given.shape != (0,):
        raise ValueError(f"{name}: labels must have shape [0], got {list(given.shape)}")
    none = torch.zeros(0, dtype=torch.int64, device=like.device)
    return _inputs.Classes(none.int(), none, none)
