"""ShardedDynamicSelector: on any number of ranks, however the data lie, DynamicSelector's subsets."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint._state_dict_stager import StateDictStager

import pysel
from pysel.distributed import ShardedDynamicSelector, shards
from tests.ranks import Ranks, ranks
from tests.test_distributed import LAYOUTS, cuts, shard

WORLD = 6
EPOCHS = 8
long = pytest.mark.long


@pytest.fixture(scope="module")
def six() -> Iterator[Ranks]:
    with ranks(WORLD) as started:
        yield started


def tables(n: int = 1003, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Two scores with many ties."""
    at = torch.arange(n)
    return (at * 7919 % 101).to(dtype) * 3.7 - 50, (at * 104729 % 37).to(dtype) / 7


def labels(n: int = 1003) -> Tensor:
    """Uneven classes, in runs, so that shards know few of them."""
    return (torch.arange(n).double() / n * 5).exp().long() * 3 - 7


def make(rank: int, group: Any, at: list[int], given: dict[str, Any]) -> ShardedDynamicSelector:
    given = {"keep_ratio": 0.3, "epochs": EPOCHS, "key": 5, **given}
    rep, div = given.pop("tables", None) or tables()
    whole = given.pop("labels", None)
    of = shard(whole, at, rank)
    return ShardedDynamicSelector(shard(rep, at, rank), shard(div, at, rank), labels=of, process_group=group, **given)


def one(given: dict[str, Any]) -> pysel.selection.DynamicSelector:
    given = {"keep_ratio": 0.3, "epochs": EPOCHS, "key": 5, **given}
    return pysel.selection.DynamicSelector(*(given.pop("tables", None) or tables()), **given)


def run(rank: int, group: Any, at: list[int], given: dict[str, Any], epochs: list[int]) -> Any:
    selector = make(rank, group, at, given)
    found = [(selector.select(epoch) + at[rank], selector.bitmap(epoch)[:], selector.uses) for epoch in epochs]
    return found, (len(selector), selector.num_samples, selector.realised_ratio, selector.fingerprint)


def together(six: Ranks, world: int, how: str, given: dict[str, Any], epochs: list[int]) -> None:
    n = len(given["tables"][0] if "tables" in given else tables()[0])
    answers = six(run, world, cuts(n, world, how), given, epochs)
    for answer in answers:
        assert isinstance(answer, tuple), answer
    whole = one(given)
    for at, epoch in enumerate(epochs):
        wanted = whole.select(epoch)
        assert torch.equal(torch.cat([found[at][0] for found, _ in answers]), wanted), (epoch, "rows")
        assert torch.equal(torch.cat([found[at][2] for found, _ in answers]), whole.uses), (epoch, "uses")
        for found, _ in answers:
            assert torch.equal(found[at][1], wanted), (epoch, "bitmap")
    assert {figures[:3] for _, figures in answers} == {(len(whole), n, whole.realised_ratio)}
    assert len({figures[3] for _, figures in answers}) == 1


LAID = [(4, "random"), (1, "even"), (2, "all on one"), (2, "random"), (3, "even"), (4, "all on one"), (4, "even")]
ARGUMENTS = [
    {},
    {"labels": labels()},
    {"labels": labels(), "balance": "proportional", "penalty": "rate", "schedule": "cosine"},
    {"penalty": "linear", "gamma": 0.9, "refine": 0.0, "normalise": "clip"},
    {"temperature": 0.3, "labels": labels(), "normalise": "rank"},
    {"temperature": 0.3, "penalty": "exp", "schedule": 0.0, "tables": tables(dtype=torch.float64)},
    {"labels": labels(), "balance": None, "keep_ratio": 1.0},
    {"tables": (torch.full((70,), 2.0), torch.full((70,), -3.0)), "keep_ratio": 0.07, "normalise": "clip"},
    {"tables": (torch.full((70,), 2.0), torch.arange(70.0)), "normalise": "rank"},
    {"tables": (torch.linspace(0, 1, 3), torch.linspace(0, 1, 3)), "normalise": None},
]


@pytest.mark.parametrize(
    ("world", "how", "given"),
    [  # by default every layout with the first arguments, and all arguments in the first layout
        pytest.param(*laid, given, marks=long if at and of else ())
        for at, laid in enumerate(LAID)
        for of, given in enumerate(ARGUMENTS)
    ],
)
def test_the_subsets_of_one_process(six: Ranks, world: int, how: str, given: dict[str, Any]) -> None:
    together(six, world, how, given, [0, 1, 5, EPOCHS + 1, 3])


@pytest.mark.parametrize("how", LAYOUTS)
def test_more_ranks_than_samples(six: Ranks, how: str) -> None:
    together(six, 6, how, {"tables": (torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 0.5]))}, [0, 1, 2, 3])


def test_all_dtypes_of_tables(six: Ranks) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64):
        together(six, 3, "random", {"tables": tables(dtype=dtype)}, [0, 3])
    wide, narrow = tables()[0].double(), tables()[1]
    together(six, 3, "random", {"tables": (wide, narrow)}, [0, 3])
    together(six, 3, "random", {"tables": (narrow, wide)}, [0, 3])


def count_type(rank: int, group: Any, epochs: int) -> Any:
    selector = make(rank, group, [0, 2, 4], {"tables": tables(4), "epochs": epochs})
    return selector._uses.dtype


def test_the_smallest_type_of_counts(six: Ranks) -> None:
    for epochs, dtype in ((255, torch.uint8), (256, torch.int16), (32767, torch.int16), (32768, torch.int32)):
        assert six(count_type, 2, epochs) == [dtype] * 2


def far(rank: int, group: Any) -> Any:
    selector = make(rank, group, [0, 2, 4], {"tables": tables(4)})
    selector.bitmap(254)
    return selector.bitmap(255)


def test_an_epoch_beyond_the_type_of_counts(six: Ranks) -> None:
    for answer in six(far, 2):
        assert "ShardedDynamicSelector: epoch must be between 0 and 254, got 255" in str(answer)


def fingerprints(rank: int, group: Any, at: list[int], given: dict[str, Any]) -> int:
    return make(rank, group, at, given).fingerprint


def test_a_fingerprint_is_of_the_tables_and_not_of_the_layout(six: Ranks) -> None:
    rep, div = tables(dtype=torch.float64)
    other = div.clone()
    other[517] = torch.nextafter(other[517], other[0] + 9)
    swapped = div.clone()
    swapped[[3, 900]] = div[[900, 3]]
    assert swapped[3] != div[3]
    kinds = [{}, {"tables": (rep, div)}, {"tables": (rep, other)}, {"tables": (rep, swapped)}, {"labels": labels()}]
    found = [
        {answer for world, how in LAID for answer in six(fingerprints, world, cuts(1003, world, how), given)}
        for given in kinds
    ]
    assert [len(one) for one in found] == [1] * len(kinds)
    assert len(set.union(*found)) == len(kinds)


@pytest.mark.parametrize("normalise", ["minmax", "clip", "rank", None])
def test_a_fingerprint_of_zeros_of_both_signs(six: Ranks, normalise: str | None) -> None:
    zeros = torch.tensor([0.0, -0.0, 0.0, -0.0, 0.0, 1.0, -0.0, 0.5, 0.0] * 3)
    given = {"tables": (zeros, zeros.flip(0)), "normalise": normalise}
    layouts = [(1, "even"), (3, "random"), (6, "even"), (2, "all on one")]
    assert len({one for world, how in layouts for one in six(fingerprints, world, cuts(27, world, how), given)}) == 1


# --- what is refused ---


def differing(rank: int, group: Any, argument: str, values: list[Any]) -> Any:
    return make(rank, group, [0, 300, 600, 1003], {argument: values[rank]})


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("keep_ratio", [0.3, 0.3, 0.4]),
        ("epochs", [8, 9, 8]),
        ("balance", ["equal", "equal", None]),
        ("gamma", [0.2, 0.3, 0.2]),
        ("penalty", ["log", "exp", "log"]),
        ("schedule", ["cosine", "cosine", "linear"]),
        ("refine", [0.1, 0.1, 0]),
        ("balance_losses", [True, True, False]),
        ("normalise", ["minmax", "clip", "clip"]),
        ("temperature", [None, None, 1.0]),
        ("key", [1, 1, 2]),
    ],
)
def test_ranks_that_disagree_are_named(six: Ranks, argument: str, values: list[Any]) -> None:
    other = next(r for r, value in enumerate(values) if value != values[0])
    wanted = f"ShardedDynamicSelector: {argument} must be the same on all ranks, but differs between rank 0 and rank"
    for answer in six(differing, 3, argument, values):
        assert isinstance(answer, ValueError), answer
        assert f"{wanted} {other}" in str(answer)


def spoilt(rank: int, group: Any, given: dict[str, Any]) -> Any:
    rep, div = torch.linspace(0, 1, 4), torch.linspace(0, 1, 4)
    given = {"representativeness": rep, "diversity": div, "keep_ratio": 0.5, "epochs": 3, "key": 0} | (
        given if rank == 1 else {}
    )
    return ShardedDynamicSelector(**given, process_group=group)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"representativeness": [0.0, 1.0, 0.5, torch.nan]}, "representativeness must be finite, got nan in row 3"),
        ({"diversity": torch.ones(3)}, "diversity must have shape [4] like representativeness, got [3]"),
        ({"diversity": torch.ones(4, 1)}, "diversity must be [N] with N > 0, got [4, 1]"),
        ({"labels": torch.ones(3, dtype=torch.int64)}, "labels must"),
        ({"temperature": 1e-40}, "temperature must be at least 1e-30 or None, got 1e-40"),
        ({"keep_ratio": 1.5}, "keep_ratio, the fraction kept, must be in (0, 1], got 1.5"),
        ({"normalise": None, "diversity": torch.arange(4.0)}, "diversity must lie in [0, 1], got 0 to 3"),
        ({"key": None}, "key must be given, the same on all ranks, got None"),
    ],
)
def test_a_shard_that_is_refused(six: Ranks, given: dict[str, Any], message: str) -> None:
    for rank, answer in enumerate(six(spoilt, 3, given)):
        if rank == 1:
            assert isinstance(answer, ValueError), answer
            assert message in str(answer)
        else:
            assert isinstance(answer, RuntimeError), answer
            assert "ShardedDynamicSelector: refused on rank 1, whose own error says why" in str(answer)


def two_epochs(rank: int, group: Any, epochs: list[int]) -> Any:
    selector = make(rank, group, [0, 300, 600, 1003], {})
    selector.select(1)
    try:
        selector.select(epochs[rank])
    except (ValueError, RuntimeError) as error:
        return str(error), selector.select(2), selector.uses


@pytest.mark.parametrize(
    ("epochs", "message"),
    [
        ([2, 2, 3], "epoch must be the same on all ranks"),
        ([0, -1, 0], "refused on rank 1"),
        ([3, 0, 3], "epoch must be"),
    ],
)
def test_another_epoch_on_another_rank(six: Ranks, epochs: list[int], message: str) -> None:
    at, whole = [0, 300, 600, 1003], one({})
    answers = six(two_epochs, 3, epochs)
    assert message in answers[0][0]
    assert torch.equal(torch.cat([rows + at[rank] for rank, (_, rows, _) in enumerate(answers)]), whole.select(2))
    assert torch.equal(torch.cat([uses for _, _, uses in answers]), whole.uses)


def weigh(rank: int, group: Any, indices: Tensor, of: Tensor | None, given: dict[str, Any]) -> Any:
    selector = make(rank, group, [0, 300, 1003], {"labels": labels(), **given})
    return [(selector.bitmap(epoch), selector.weights(indices, of))[1] for epoch in (0, EPOCHS)]


def test_weights_of_losses(six: Ranks) -> None:
    indices = torch.tensor([0, 500, 1002, 700, 0])
    for given in ({}, {"balance": "proportional"}, {"balance_losses": False}):
        whole = one({"labels": labels(), **given})
        wanted = [(whole.select(epoch), whole.weights(indices))[1] for epoch in (0, EPOCHS)]
        for answer in six(weigh, 2, indices, labels()[indices], given):
            assert all(map(torch.equal, answer, wanted)), answer
    for of, message in ((None, "labels must be given"), (labels()[indices] + 1, "labels must be those of samples")):
        assert all(message in str(answer) for answer in six(weigh, 2, indices, of, {}))
    assert all("call select() first" in str(answer) for answer in six(weigh_nothing, 2, {}))


def weigh_nothing(rank: int, group: Any, given: dict[str, Any]) -> Any:
    return make(rank, group, [0, 300, 1003], given).weights(torch.tensor([0] * rank, dtype=torch.int64))


def scored(rank: int, group: Any, at: list[int], given: dict[str, Any], epochs: list[int]) -> Any:
    selector = make(rank, group, at, given)
    return [selector.scores(epoch) for epoch in epochs]


@pytest.mark.parametrize("penalty", ["log", pytest.param("rate", marks=long)])
def test_scores_to_the_last_bit(six: Ranks, penalty: str) -> None:
    n, generator = 20_000, torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        both = torch.rand(2, n, generator=generator, dtype=dtype).unbind()
        given = {"tables": both, "penalty": penalty, "epochs": 30}
        whole, epochs = one(given), [0, 9, 20, 28]
        answers = six(scored, 3, cuts(n, 3, "random"), given, epochs)
        for at, epoch in enumerate(epochs):
            assert torch.equal(torch.cat([answer[at] for answer in answers]), whole.scores(epoch)), epoch


# --- in a sampler ---


def walk(rank: int, group: Any, at: list[int], given: dict[str, Any], options: dict[str, Any], part: int) -> Any:
    """What a rank yields in epochs 0, 2 and the last, its lengths, and its epoch 3 from a state after ``part``."""
    sampler = pysel.SelectionSampler(make(rank, group, at, given), key=1, process_group=group, **options)
    found = []
    for epoch in (0, 2, EPOCHS - 1):
        sampler.set_epoch(epoch)
        if rank == 0:
            len(sampler), sampler.num_samples, sampler.stats()  # waits for nobody
        found.append(list(sampler))
        assert len(found[-1]) == len(sampler)
    sampler.set_epoch(3)
    going = iter(sampler)
    begun = [next(going) for _ in range(part)]
    state = sampler.state_dict()
    again = pysel.SelectionSampler(make(rank, group, at, given), key=1, process_group=group, **options)
    again.load_state_dict(state)
    rest = list(again)
    assert rest == list(going)
    assert isinstance(again._picked[1], pysel.selection.Bitmap)
    return [*found, begun + rest]


@pytest.mark.parametrize(
    ("world", "how", "options"),
    [
        pytest.param(*laid, options, marks=long if at and of else ())
        for at, laid in enumerate([(3, "random"), (1, "even"), (2, "all on one"), (4, "even")])
        for of, options in enumerate([{"round_to": 8, "drop_last": True}, {}, {"shuffle": False}])
    ],
)
def test_a_sampler_yields_what_one_process_does(six: Ranks, world: int, how: str, options: dict[str, Any]) -> None:
    given = {"labels": labels(), "temperature": 0.3}
    answers = six(walk, world, cuts(1003, world, how), given, options, 5)
    for answer in answers:
        assert isinstance(answer, list), answer
    whole = pysel.SelectionSampler(one(given), key=1, **options)
    for at, epoch in enumerate((0, 2, EPOCHS - 1, 3)):
        whole.set_epoch(epoch)
        wanted = list(whole)
        got = [index for together in zip(*(answer[at] for answer in answers), strict=True) for index in together]
        count = len(wanted) // world * world if options.get("drop_last") else -(-len(wanted) // world) * world
        assert got == (wanted + wanted)[:count], epoch


# --- state ---


def save(rank: int, group: Any, at: list[int], given: dict[str, Any], folder: str, epochs: int) -> Any:
    selector = make(rank, group, at, given)
    sampler = pysel.SelectionSampler(selector, key=1, process_group=group)
    for epoch in range(epochs):
        selector.bitmap(epoch)
    if epochs:
        sampler.set_epoch(epochs - 1)
    begun = iter(sampler)
    found = [next(begun) for _ in range(3)]
    state = sampler.state_dict()
    selector.bitmap(epochs + 2)  # goes on while the checkpoint is written
    dcp.save({"state": state}, checkpoint_id=f"{folder}/sampler", process_group=group)
    selector.save(f"{folder}/selector")
    return found


def load(rank: int, group: Any, at: list[int], given: dict[str, Any], folder: str) -> Any:
    sampler = pysel.SelectionSampler(make(rank, group, at, given), key=1, process_group=group)
    dcp.load({"state": sampler}, checkpoint_id=f"{folder}/sampler", process_group=group)
    selector = sampler.selector
    loaded = (selector._epoch, selector.uses)
    rest = list(sampler)
    made = ShardedDynamicSelector.load(f"{folder}/selector", process_group=group)
    same = made.fingerprint == selector.fingerprint and repr(made) == repr(selector)
    return loaded, rest, selector.bitmap(EPOCHS - 2)[:], (made._epoch, made.uses, made.bitmap(4)[:], same)


@pytest.mark.parametrize(
    ("how", "epochs", "given"),
    [
        pytest.param(how, epochs, given, marks=() if how == quick else long)
        for how in LAYOUTS
        for quick, epochs, given in (
            ("random", 4, {"labels": labels()}),
            ("all on one", 1, {"epochs": 300, "temperature": 0.1}),
        )
    ],
)
def test_a_checkpoint_of_four_ranks_loads_on_any_number(
    six: Ranks, tmp_path: Path, how: str, epochs: int, given: dict[str, Any]
) -> None:
    begun = six(save, 4, cuts(1003, 4, how), given, str(tmp_path), epochs)
    whole = one(given)
    sampler = pysel.SelectionSampler(whole, key=1)
    sampler.set_epoch(epochs - 1)
    sequence = list(sampler)
    assert [index for together in zip(*begun, strict=True) for index in together] == sequence[:12]
    uses = whole.uses
    for world, layout in ((1, "even"), (3, "random"), (6, "even"), (5, "all on one")):
        answers = six(load, world, cuts(1003, world, layout), given, str(tmp_path))
        for answer in answers:
            assert isinstance(answer, tuple), answer
        assert {answer[0][0] for answer in answers} == {epochs - 1}
        assert torch.equal(torch.cat([answer[0][1] for answer in answers]), uses)
        rest = [index for together in zip(*(answer[1] for answer in answers), strict=True) for index in together]
        assert rest[: len(sequence) - 12] == sequence[12:]
        later = one(given)
        assert all(torch.equal(answer[2], later.select(EPOCHS - 2)) for answer in answers)
        saved = one(given)
        saved.select(epochs + 2)
        assert {(answer[3][0], answer[3][3]) for answer in answers} == {(epochs + 2, True)}
        assert torch.equal(torch.cat([answer[3][1] for answer in answers]), saved.uses)
        assert all(torch.equal(answer[3][2], saved.select(4)) for answer in answers)


def in_the_background(rank: int, group: Any, at: list[int], folder: str) -> Any:
    selector = make(rank, group, at, {})
    selector.bitmap(3)
    uses = selector.uses
    apart = dist.new_group(list(range(WORLD)))  # from the selector's collectives, which go on
    saving = dcp.async_save({"selector": selector}, checkpoint_id=folder, process_group=apart)
    for epoch in (4, 5, 6):
        selector.bitmap(epoch)
    saving.result()
    return uses


def from_the_background(rank: int, group: Any, at: list[int], folder: str) -> Any:
    selector = make(rank, group, at, {})
    dcp.load({"selector": selector}, checkpoint_id=folder, process_group=group)
    return selector.uses


def test_an_asynchronous_checkpoint(six: Ranks, tmp_path: Path) -> None:
    saved = six(in_the_background, WORLD, cuts(1003, WORLD, "random"), str(tmp_path))
    answers = six(from_the_background, 3, cuts(1003, 3, "random"), str(tmp_path))
    assert all(isinstance(answer, Tensor) for answer in (*saved, *answers)), answers
    assert torch.equal(torch.cat(answers), torch.cat(saved))


def through_torch_save(shard: Any, safe: bool) -> Any:
    file = io.BytesIO()
    torch.save(shard, file)
    file.seek(0)
    return torch.load(file, weights_only=safe)


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        torch.clone,
        lambda shard: pickle.loads(pickle.dumps(shard)),
        lambda shard: through_torch_save(shard, safe=True),
        lambda shard: through_torch_save(shard, safe=False),
        lambda shard: StateDictStager().stage({"shard": shard})["shard"],
        lambda shard: shard.detach().to(torch.device("cpu"), copy=True),
        lambda shard: shard.new_empty(shard.size()).copy_(shard),
    ],
)
def test_a_copy_of_a_shard_is_of_its_part(copied: Any) -> None:
    given = torch.arange(3, dtype=torch.uint8)
    made = copied(shards.VectorShard(given, 2, 10))
    assert isinstance(made, shards.VectorShard)
    assert (made.size(), made.dtype, made.offset, made.total) == (torch.Size([10]), torch.uint8, 2, 10)
    assert torch.equal(made.local, given) and type(made.local) is Tensor
    with pytest.raises(TypeError, match="needs the whole vector, of which this rank has a part"):
        made.sum()


def spoil(rank: int, group: Any, how: str) -> Any:
    """Load a state that is spoilt on rank 1 or on all; the error, and what is selected then."""
    at = [0, 300, 600, 1003]
    selector = make(rank, group, at, {})
    selector.bitmap(2)
    state = selector.state_dict()
    selector.bitmap(3)
    counts = state["uses"].local
    if how == "fingerprint":
        state["fingerprint"] += 1
    elif rank == 1 and how == "one count":
        counts[counts.nonzero()[0]] -= 1
    elif rank == 1 and how == "moved":
        state["uses"].offset += 1
    elif rank == 1 and how == "missing":
        del state["uses"]
    elif rank == 1 and how == "epoch":
        state["epoch"] = 1
        counts.clamp_(max=1)
    elif rank == 1 and how == "high":
        counts[0] = 9
    elif rank == 1 and how == "key":
        state["key"] = pysel.key(77)
    elif rank == 1 and how == "dtype":
        state["uses"] = shards.VectorShard(counts.int(), state["uses"].offset, state["uses"].total)
    try:
        selector.load_state_dict(state)
    except (ValueError, TypeError, RuntimeError) as error:
        return str(error), selector._epoch, selector.uses, selector.select(4) + at[rank]


@pytest.mark.parametrize(
    ("how", "message", "everywhere"),
    [
        ("fingerprint", "state_dict must be of a selector with the same tables", True),
        ("one count", "state_dict['uses'] must add up to 602, the subsets before epoch 2, got 601", True),
        ("moved", "state_dict['uses'] must begin at sample 300 of 1003, got 301 of 1003", False),
        ("missing", "state_dict must have uses", False),
        ("epoch", "state_dict['epoch'] must be the same on all ranks", True),
        ("high", "state_dict['uses'] must be between 0 and 2 before epoch 2, got 0 to 9", False),
        ("key", "state_dict['key'] must be the same on all ranks", True),
        ("dtype", "state_dict['uses'] must be uint8, got torch.int32", False),
    ],
)
def test_a_refused_state_changes_nothing_on_any_rank(six: Ranks, how: str, message: str, everywhere: bool) -> None:
    whole = one({})
    whole.select(3)
    answers = six(spoil, 3, how)
    for rank, answer in enumerate(answers):
        assert isinstance(answer, tuple), answer
        wanted = message if everywhere or rank == 1 else "refused on rank 1, whose own error says why"
        assert wanted in answer[0]
        assert answer[1] == 3
    assert torch.equal(torch.cat([uses for _, _, uses, _ in answers]), whole.uses)
    assert torch.equal(torch.cat([rows for _, _, _, rows in answers]), whole.select(4))


def failing(rank: int, group: Any) -> Any:
    """A schedule that fails in one epoch, asked for directly and by a state."""
    at, broken = [0, 300, 600, 1003], []

    def schedule(progress: float) -> float:
        if progress in broken:
            raise ValueError("out of order")
        return 0.5

    selector = make(rank, group, at, {"schedule": schedule})
    selector.bitmap(5)
    state = selector.state_dict()
    selector.bitmap(2)
    broken.append(6 / EPOCHS)

    def tried(act: Any, given: Any) -> Any:
        with pytest.raises(ValueError) as raised:
            act(given)
        return str(raised.value), selector._epoch, selector.uses

    return [tried(selector.bitmap, 5), tried(selector.load_state_dict, state)], selector.select(3) + at[rank]


def test_a_failure_on_the_way_changes_nothing(six: Ranks) -> None:
    whole = one({"schedule": 0.5})
    whole.select(2)
    answers = six(failing, 3)
    for try_ in (0, 1):
        assert {answer[0][try_][:2] for answer in answers} == {("out of order", 2)}
        assert torch.equal(torch.cat([answer[0][try_][2] for answer in answers]), whole.uses)
    assert torch.equal(torch.cat([answer[1] for answer in answers]), whole.select(3))
