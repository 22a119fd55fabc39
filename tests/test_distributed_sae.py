"""pysel/distributed/sae.py: a model and scores from features on any number of ranks, bit for bit one process's."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import pysel
import pysel.distributed
from pysel.distributed import sae as sharded
from pysel.sae import FactorTables, TopKSAE, factor_tables, train_sae
from tests.ranks import Ranks, ranks
from tests.test_distributed import ONE_BY_ONE, cuts

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:train_sae. the autoencoder explains only"),
]


@pytest.fixture(scope="module")
def four() -> Iterator[Ranks]:
    with ranks(4) as started:
        yield started


def features(n: int = 1003, d: int = 12, dtype: torch.dtype = torch.float32) -> Tensor:
    """Few of many directions at once."""
    generator = torch.Generator().manual_seed(n)
    codes = torch.randn(n, 40, generator=generator).relu() * (torch.rand(n, 40, generator=generator) < 0.1)
    noise = 0.1 * torch.randn(n, d, generator=generator)
    return (codes @ torch.randn(40, d, generator=generator) + noise + 3).to(dtype)


class Afresh:
    """Batches that are made anew at each iteration."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.x.split(77)


def held(kind: str, x: Tensor) -> Any:
    """The same rows as another kind of source."""
    if kind == "array":
        return x.numpy()
    if kind == "list" or (kind == "batches" and len(x) == 0):
        return list(x)
    return Afresh(x) if kind == "batches" else x


def train(rank: int, group: Any, kind: str, x: Tensor, at: list[int], given: dict[str, Any]) -> Any:
    shard = held(kind, x[at[rank] : at[rank + 1]])
    model, report = pysel.distributed.train_sae(shard, process_group=group, **given)
    assert not model.training
    return model.state_dict(), (report.explained_variance, report.l0, report.dead, report.rows, report.losses)


def same_as_one_process(answers: list[Any], x: Tensor, given: dict[str, Any]) -> None:
    model, report = train_sae(x, **given)
    for answer in answers:
        assert isinstance(answer, tuple), answer
        state, told = answer
        for name, wanted in model.state_dict().items():
            assert torch.equal(state[name], wanted), name
        assert told == (report.explained_variance, report.l0, report.dead, report.rows, report.losses)


SMALL = {"num_factors": 24, "k": 3, "batch_size": 64, "key": 5}
FORMS: list[tuple[torch.dtype, str, dict[str, Any]]] = [
    (torch.float32, "tensor", {"max_rows": 300, "epochs": 3}),
    (torch.float64, "array", {"max_rows": 700, "epochs": 2, "tied": True, "activation": "abs", "revive": "dead"}),
    (torch.float16, "batches", {"max_rows": None, "epochs": 1}),
    (torch.float32, "list", {"max_rows": 40, "epochs": 1, "dead_after": 30, "aux_k": 2}),
]


@pytest.mark.parametrize(("world", "how"), ONE_BY_ONE)
def test_train_sae(four: Ranks, world: int, how: str) -> None:
    for dtype, kind, options in FORMS:
        x, given = features(dtype=dtype), {**SMALL, **options}
        same_as_one_process(four(train, world, kind, x, cuts(len(x), world, how), given), x, given)


def test_more_rows_than_a_message_takes(four: Ranks) -> None:
    x, given = features(), {**SMALL, "max_rows": None, "epochs": 1}
    same_as_one_process(four(in_small_pieces, 3, x, cuts(len(x), 3, "random"), given), x, given)


def in_small_pieces(rank: int, group: Any, x: Tensor, at: list[int], given: dict[str, Any]) -> Any:
    sharded._PIECE, kept = 100, sharded._PIECE
    try:
        return train(rank, group, "tensor", x, at, given)
    finally:
        sharded._PIECE = kept


def counted(rank: int, group: Any, x: Tensor, at: list[int], given: dict[str, Any]) -> tuple[Any, int]:
    """What a rank trains, and the bytes of rows that it sends."""
    sent, send = 0, dist.send

    def counting(message: Tensor, *args: Any, **kwargs: Any) -> None:
        nonlocal sent
        sent += message.nbytes
        send(message, *args, **kwargs)

    dist.send = counting
    try:
        return train(rank, group, "tensor", x, at, given), sent
    finally:
        dist.send = send


def test_only_the_rows_drawn_are_sent(four: Ranks) -> None:
    x, given = features(20_000), {**SMALL, "max_rows": 300, "epochs": 1}
    at = cuts(len(x), 4, "even")
    answers = four(counted, 4, x, at, given)
    same_as_one_process([answer for answer, _ in answers], x, given)
    sent = [size for _, size in answers]
    assert sent[0] == 0 and all(sent[1:])
    assert sum(sent) <= 600 * 12 * 4, "trained and judged on, and nothing else"


def test_signatures_agree() -> None:
    """Defaults in one are defaults in the other."""
    for alone, spread in ((train_sae, pysel.distributed.train_sae), (factor_tables, pysel.distributed.factor_tables)):
        ours = dict(inspect.signature(spread).parameters)
        assert ours.pop("process_group").default is None
        for name, parameter in inspect.signature(alone).parameters.items():
            assert ours.pop(name).default == (inspect.Parameter.empty if name == "key" else parameter.default), name
        assert not ours


# --- scores ---


def score(rank: int, group: Any, kind: str, x: Tensor, labels: Any, at: list[int], given: dict[str, Any]) -> Any:
    part = slice(at[rank], at[rank + 1])
    sae = TopKSAE(x.size(1), 300, 5, key=3, dtype=given.get("dtype"))
    own = None if labels is None else labels[part]
    options = {name: value for name, value in given.items() if name != "dtype"}
    return tuple(pysel.distributed.factor_tables(sae, held(kind, x[part]), labels=own, process_group=group, **options))


@pytest.mark.parametrize(("world", "how"), ONE_BY_ONE)
def test_factor_tables(four: Ranks, world: int, how: str) -> None:
    n = 5003
    labels = torch.arange(n) * 7919 % 10_007 % 37 * 5 - 60
    labels[: n // 2] //= 2  # not all classes on all ranks
    # Of a copy: a tensor that is sent to other processes moves, from under arrays that share its memory.
    for kind, dtype, classes, options in (
        ("tensor", torch.float32, labels, {"batch_size": 512}),
        (
            "array",
            torch.float64,
            labels.numpy().copy(),
            {"batch_size": 1000, "class_coverage": "effective", "common": 0.3},
        ),
        ("batches", torch.float16, labels.tolist(), {"batch_size": 64, "class_coverage": "effective"}),
        ("list", torch.float32, None, {}),
    ):
        x, at = features(n, dtype=dtype), cuts(n, world, how)
        wanted = factor_tables(TopKSAE(12, 300, 5, key=3), x, labels=classes, **options)
        answers = [FactorTables(*answer) for answer in four(score, world, kind, x, classes, at, options)]
        for name in ("representativeness", "diversity"):
            assert torch.equal(torch.cat([getattr(answer, name) for answer in answers]), getattr(wanted, name)), name
        for answer in answers:
            assert all(map(torch.equal, answer[2:], wanted[2:]))


def test_codes_are_made_among_as_many_rows_as_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever matrix products do: each row is where it is in one process, of batches of the same sizes."""
    x, sae = torch.arange(1.0, 24.0)[:, None].expand(23, 2).contiguous(), TopKSAE(2, 6, 1, key=0)
    seen: list[Tensor] = []
    encode = TopKSAE.encode
    monkeypatch.setattr(TopKSAE, "encode", lambda self, batch: (seen.append(batch), encode(self, batch))[1])
    for first, last in ((0, 23), (0, 3), (3, 9), (9, 10), (10, 23), (16, 23), (4, 8)):
        seen.clear()
        codes = list(sharded.Codes(sae, pysel.sae.Rows(x[first:last], "f", "x"), first, 23, 4))
        assert sum(len(values) for values, _ in codes) == last - first
        for number, batch in enumerate(seen, first // 4):
            whole = x[4 * number : 4 * number + 4]
            own = (whole[:, 0] > first) & (whole[:, 0] <= last)
            assert torch.equal(batch, whole * own[:, None])


# --- what is refused ---


def spoilt(rank: int, group: Any, name: str, at: int, x: Any, given: dict[str, Any]) -> Any:
    """``x`` on one rank."""
    mine = x if rank == at else features(200)
    if name == "factor_tables":
        return pysel.distributed.factor_tables(TopKSAE(12, 24, 3, key=0), mine, process_group=group, **given)
    return pysel.distributed.train_sae(mine, process_group=group, **{**SMALL, "epochs": 1, **given})


class Once:
    """An iterator, which can be sent to another process."""

    def __iter__(self) -> Once:
        return self

    def __next__(self) -> Tensor:
        return torch.ones(4, 12)


NAN = features(200).index_put((torch.tensor([137]), torch.tensor([5])), torch.tensor(torch.nan))


@pytest.mark.parametrize(
    ("name", "x", "given", "error", "message"),
    [
        ("train_sae", NAN, {"max_rows": 100}, ValueError, "features must be finite, got nan in row 137"),
        ("train_sae", NAN, {"max_rows": None}, ValueError, "features must be finite, got nan in row 137"),
        ("train_sae", torch.ones(4, 12, dtype=torch.int64), {}, TypeError, "features must be float32"),
        ("train_sae", torch.ones(12), {}, ValueError, r"features must be a matrix [N, d]"),
        ("train_sae", Once(), {}, TypeError, "can be read only once"),
        ("train_sae", None, {}, TypeError, "features must be a tensor or array [N, d]"),
        ("train_sae", torch.tensor(1.0), {}, ValueError, r"features must be a matrix [N, d]"),
        ("factor_tables", NAN, {}, ValueError, "features must be finite, got nan in row 137"),
        ("factor_tables", torch.ones(4, 5), {}, ValueError, "features must be [n, 12] like the model's, got [4, 5]"),
        ("factor_tables", features(9), {"labels": [0] * 200}, ValueError, "labels must have shape [9], got [200]"),
    ],
)
def test_a_shard_that_is_refused(
    four: Ranks, name: str, x: Any, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    for rank, answer in enumerate(four(spoilt, 3, name, 1, x, given)):
        if rank == 1:
            assert type(answer) is error and message in str(answer), answer
        else:
            assert type(answer) is RuntimeError, answer
            assert f"{name}: refused on rank 1, whose own error says why" in str(answer)


class Failing:
    """Rows that are there when they are counted, and cannot be read again."""

    def __init__(self, passes: int) -> None:
        self.left = passes

    def __iter__(self) -> Iterator[Tensor]:
        yield features(200)
        self.left -= 1
        if self.left < 0:
            raise OSError("the disk is gone")


@pytest.mark.parametrize(("name", "passes"), [("train_sae", 1), ("factor_tables", 1), ("factor_tables", 2)])
def test_a_source_that_fails_in_the_middle(four: Ranks, name: str, passes: int) -> None:
    answers = four(spoilt, 3, name, 2, Failing(passes), {})
    assert "OSError: the disk is gone" in str(answers[2])
    for answer in answers[:2]:
        assert f"{name}: refused on rank 2, whose own error says why" in str(answer)


def test_a_training_that_fails_tells_all(four: Ranks) -> None:
    x = features(200).double() * 1e-35  # which only the rank that trains can see
    answers = four(everywhere, 3, x, {})
    assert "train_sae: features must lie within 1e30" in str(answers[0])
    for answer in answers[1:]:
        assert "train_sae: refused on rank 0, whose own error says why" in str(answer)


def everywhere(rank: int, group: Any, x: Any, given: dict[str, Any]) -> Any:
    """The same on all ranks."""
    return pysel.distributed.train_sae(x, process_group=group, **{**SMALL, "epochs": 1, **given})


def test_shards_of_different_kinds(four: Ranks) -> None:
    for x, message in (
        (torch.ones(4, 5), "train_sae: features must be equally wide on all ranks, got 12 on rank 0 and 5 on rank 1"),
        (
            torch.ones(4, 12, dtype=torch.float64),
            "train_sae: features must be of one dtype on all ranks, got torch.float32 on rank 0 and torch.float64 on "
            "rank 1",
        ),
    ):
        for answer in four(spoilt, 3, "train_sae", 1, x, {}):
            assert type(answer) is ValueError and str(answer) == message


@pytest.mark.parametrize(
    ("x", "given", "error", "message"),
    [
        (features(20), {}, ValueError, "num_factors must be at most max_rows, 10, got 24"),
        (torch.ones(0, 12), {}, ValueError, "features must have at least one row, got none on all ranks"),
        ([], {}, ValueError, "features must have at least one row, got none on all ranks"),
        (features(20), {"key": None}, ValueError, "key must be given, the same on all ranks, got None"),
        (features(20), {"k": 25}, ValueError, "k must be between 1 and 24, got 25"),
        (features(20), {"lr": "x"}, TypeError, "lr must be a number, got str"),
    ],
)
def test_refused_on_all_ranks(four: Ranks, x: Any, given: dict[str, Any], error: type[Exception], message: str) -> None:
    for answer in four(everywhere, 2, x, {"max_rows": 10, **given}):
        assert type(answer) is error and message in str(answer), answer


def differing(rank: int, group: Any, name: str, argument: str, values: list[Any]) -> Any:
    if name == "train_sae":
        return everywhere(rank, group, features(200), {argument: values[rank]})
    given: dict[str, Any] = {"sae": TopKSAE(12, 24, 3, key=0), argument: values[rank]}
    return pysel.distributed.factor_tables(given.pop("sae"), features(200), process_group=group, **given)


@pytest.mark.parametrize(
    ("name", "argument", "values"),
    [
        ("train_sae", "num_factors", [24, 24, 25]),
        ("train_sae", "max_rows", [None, None, 100]),
        ("train_sae", "key", [0, 1, 0]),
        ("train_sae", "aux_weight", [0.5, 0.25, 0.5]),
        ("train_sae", "dead_after", [3, None, 3]),
        ("factor_tables", "common", [0.1, 0.2, 0.1]),
        ("factor_tables", "class_coverage", ["once", "once", "effective"]),
        ("factor_tables", "batch_size", [100, 200, 100]),
        ("factor_tables", "sae", [TopKSAE(12, 24, 3, key=key) for key in (0, 0, 1)]),
        ("factor_tables", "sae", [TopKSAE(12, 24, k, key=0) for k in (3, 4, 3)]),
    ],
)
def test_ranks_that_disagree_are_named(four: Ranks, name: str, argument: str, values: list[Any]) -> None:
    for answer in four(differing, 3, name, argument, values):
        assert type(answer) is ValueError, answer
        assert f"{name}: {argument} must be the same on all ranks, but differs between rank 0 and rank " in str(answer)


def test_labels_on_some_ranks_alone(four: Ranks) -> None:
    for answer in four(differing, 3, "factor_tables", "labels", [None, [0] * 200, None]):
        assert "factor_tables: whether labels are given must be the same on all ranks" in str(answer)


def test_equal_numbers_of_different_kinds_are_equal(four: Ranks) -> None:
    for answer in four(differing, 3, "train_sae", "num_factors", [24, np.int64(24), torch.tensor(24)]):
        assert isinstance(answer, tuple), answer


def test_without_a_process_group() -> None:
    with pytest.raises(RuntimeError, match=r"train_sae: torch.distributed must be initialised"):
        pysel.distributed.train_sae(torch.ones(3, 2), 2, 1, key=0)
