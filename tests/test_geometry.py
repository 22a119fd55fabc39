"""pysel/selection/static/geometry.py: each method against brute force, in any dtype, unit and place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pysel
from pysel.selection import Herding, KCentre, KMeans, Moderate, NearestNeighbourThinning, kmeans
from pysel.selection.static import geometry

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs() -> tuple[Tensor, Tensor]:
    """Multiples of 1/16, which float32 holds far from 0, too."""
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0]])
    which = torch.arange(400) % 4
    return centres[which] + (torch.randn(400, 2, generator=generator()) * 16).round() / 16, which


def lloyd(x: np.ndarray, centroids: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """k-means in numpy, from differences and in double."""
    x, centroids = x.astype(np.float64), centroids.astype(np.float64)
    squares = lambda: ((x[:, None] - centroids) ** 2).sum(-1)  # noqa: E731
    for _ in range(iterations):
        cluster = squares().argmin(1)
        centroids = np.stack([x[cluster == c].mean(0) if (cluster == c).any() else m for c, m in enumerate(centroids)])
    return centroids, squares().argmin(1), squares().min(1)


@pytest.mark.parametrize("offset", [0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kmeans_is_lloyds_algorithm(dtype: torch.dtype, offset: float) -> None:
    x, which = blobs()
    x = x.to(dtype) + offset
    clear = 0
    for seed in range(12):
        start, _, _ = kmeans(x, 4, iterations=0, key=seed)
        for iterations in (0, 1, 50):
            centroids, cluster, distance = kmeans(x, 4, iterations=iterations, key=seed, batch_size=64)
            wanted = lloyd(x.numpy(), start.numpy(), iterations)
            assert np.array_equal(cluster.numpy(), wanted[1])
            assert centroids.dtype == dtype
            np.testing.assert_allclose(centroids.numpy(), wanted[0], rtol=1e-12 if dtype == torch.float64 else 1e-7)
            np.testing.assert_allclose(distance.numpy(), wanted[2], rtol=1e-9, atol=1e-9)
        clear += len({(int(a), int(b)) for a, b in zip(which, cluster, strict=True)}) == 4
    assert clear >= 4, "four starts of twelve at least find the four blobs"


@pytest.mark.parametrize("power", [0, 63, -83])
def test_kmeans_in_any_unit(power: int) -> None:
    """A unit of 1e19 or 1e-25, whose squares float32 does not hold."""
    x = torch.randn(300, 5, generator=generator())
    centroids, cluster, distance = kmeans(x, 7, key=0)
    scaled = kmeans(x * 2.0**power, 7, key=0)
    assert torch.equal(scaled[1], cluster)
    assert torch.equal(scaled[0], centroids * 2.0**power)
    assert torch.equal(scaled[2], distance * 4.0**power)


def test_kmeans_of_half_features() -> None:
    """A sum of 6,000 rows around 20 is beyond float16, whose spacing there is 1/64."""
    x = torch.randn(6000, 3, generator=generator()).half() + 20
    centroids, cluster, _ = kmeans(x, 2, key=0)
    wanted = kmeans(x.double(), 2, key=0)
    assert torch.equal(cluster, wanted[1])
    torch.testing.assert_close(centroids.double(), wanted[0], rtol=1e-7, atol=0)
    assert torch.equal(kmeans(x.numpy(), 2, key=0)[1], cluster)


def test_kmeans_keeps_the_digits_of_double() -> None:
    x = torch.randn(200, 3, generator=generator(), dtype=torch.float64)
    x[100:] = x[:100] + 1e-9
    centroids, _, _ = kmeans(x, 200, iterations=0, key=0)
    assert len(torch.unique(centroids, dim=0)) == 200
    torch.testing.assert_close(centroids.sort(0).values, x.sort(0).values, rtol=0, atol=2e-15)


def test_kmeans_starts_from_rows_that_differ() -> None:
    x = torch.zeros(500, 2)
    x[490:] = torch.arange(20.0).view(10, 2)
    for seed in range(20):
        centroids, cluster, _ = kmeans(x, 10, iterations=0, key=seed)
        assert len(torch.unique(centroids, dim=0)) == len(cluster.unique()) == 10


def test_kmeans_of_fewer_rows_than_clusters() -> None:
    """Clusters for which there are no rows stay empty."""
    x = torch.tensor([[1.0], [1.0], [1.0], [5.0]])
    centroids, cluster, distance = kmeans(x, 3, key=0)
    assert sorted(centroids.flatten().tolist()) == [1, 1, 5]
    assert torch.equal(centroids[cluster], x)
    assert distance.tolist() == [0] * 4
    assert KMeans(x, 0.75, 3, key=0).select().tolist() == [0, 1, 3]


def test_kmeans_selector_keeps_the_middles() -> None:
    x, which = blobs()
    seed = next(s for s in range(50) if len(torch.unique(kmeans(x, 4, key=s)[1] * 4 + which)) == 4)
    for offset, unit in ((0, 1), (1e4, 1), (0, 2.0**63), (0, 2.0**-83)):
        chosen = KMeans((x + offset) * unit, 0.3, 4, key=seed).select(0)
        wanted = []
        for blob in range(4):
            rows = torch.nonzero(which == blob).flatten()
            distance = (x[rows].double() - x[rows].double().mean(0)).square().sum(1)
            wanted += rows[distance.argsort(stable=True)[:30]].tolist()
        assert chosen.tolist() == sorted(wanted)


# --- thinning --------------------------------------------------------------------------


def thin(x: np.ndarray, size: int) -> list[int]:
    """The rule of thinning in numpy, every round anew and from differences in double."""
    x = x.astype(np.float64)
    square = ((x[:, None] - x) ** 2).sum(-1)
    repeated = [i for i in range(len(x)) if (square[i, :i] == 0).any()]
    left = sorted(set(range(len(x))) - set(repeated[: len(x) - size]))
    while len(left) > size:
        near = {i: min((square[i, j], i ^ j, j) for j in left if j != i) for i in left}
        later = [(d, i) for i, (d, _, j) in near.items() if j < i and near[j][2] == i]
        left = sorted(set(left) - {i for _, i in sorted(later)[: len(left) - size]})
    return left


def near_duplicates(dtype: torch.dtype = torch.float32) -> Tensor:
    """Far from 0, with differences of a few last digits."""
    x = torch.randn(60, 4, generator=generator(), dtype=torch.float64).to(dtype) + 100
    again = torch.randint(-9, 10, (60, 4), generator=generator(1)).to(dtype) * torch.finfo(dtype).eps * 128
    return torch.cat([x, x + again])


CLOUDS: dict[str, Callable[[], Tensor]] = {
    "around 0": lambda: torch.randn(120, 4, generator=generator()),
    "far from 0": lambda: torch.randn(120, 4, generator=generator()) + 1e4,
    "near duplicates": near_duplicates,
    "near duplicates in double": lambda: near_duplicates(torch.float64),
    "float16 around 20": lambda: torch.randn(120, 6, generator=generator()).half() + 20,
    "bytes": lambda: torch.randint(4, (120, 4), generator=generator(), dtype=torch.uint8),
    "1e19": lambda: torch.randn(120, 4, generator=generator()) * 1e19,
    "1e-25": lambda: torch.randn(120, 4, generator=generator()) * 1e-25,
    "1e300": lambda: torch.randn(120, 4, generator=generator(), dtype=torch.float64) * 1e300,
    "one far away": lambda: torch.cat([torch.randn(119, 4, generator=generator()), torch.full((1, 4), 1e12)]),
    "all as far from each other": lambda: torch.eye(40),
    "a line": lambda: torch.arange(100.0).view(100, 1),
    "a line, shuffled": lambda: torch.randperm(100, generator=generator()).view(100, 1).float(),
    "gaps that grow": lambda: torch.arange(50.0).square().view(50, 1),
    "equal": lambda: torch.full((50, 3), 0.1),
    "images": lambda: torch.randn(50, 2, 3, 3, generator=generator()),
}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_thinning_against_brute_force(cloud: str) -> None:
    x = CLOUDS[cloud]()
    flat = x.double().flatten(1).numpy()
    flat = flat / 2.0 ** math.floor(math.log2(np.abs(flat).max()))  # squares of 1e300 overflow in double, too
    for ratio in (0.99, 0.8, 0.5, 0.1, 0.001):
        size = math.ceil(ratio * len(x))
        for batch_size in (1024, 7):
            chosen = NearestNeighbourThinning(x, ratio, batch_size=batch_size).select()
            assert chosen.tolist() == thin(flat, size)


def test_thinning_drops_near_duplicates() -> None:
    x = torch.randn(60, 4, generator=generator())
    doubled = torch.cat([x, x + 1e-4])
    chosen = NearestNeighbourThinning(doubled, 0.5).select(0)
    assert chosen.tolist() == list(range(60)), "of each pair the first stays"


def test_precision_that_torch_is_allowed_does_not_reach_distances() -> None:
    x = near_duplicates()
    wanted = NearestNeighbourThinning(x, 0.5).select(), kmeans(x, 9, key=0)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = NearestNeighbourThinning(x, 0.5).select(), kmeans(x, 9, key=0)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found[0], wanted[0])
    assert all(torch.equal(a, b) for a, b in zip(found[1], wanted[1], strict=True))


@pytest.mark.parametrize(
    ("x", "most"),
    [
        (torch.ones(1000, 2), 0),  # all at once, without a distance
        (torch.arange(1000.0).view(1000, 1), 4),  # halves
        (torch.eye(256), 4),
        (torch.randn(1000, 8, generator=generator()), 40),
    ],
)
def test_rounds_of_thinning(x: Tensor, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whoever has kept a neighbour does not ask again: in all, few times as many ask as there are samples."""
    asked: list[int] = []
    neighbours = geometry._neighbours

    def counted(rows: Tensor, centred: Tensor, norms: Tensor, asking: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(len(asking))
        return neighbours(rows, centred, norms, asking)

    monkeypatch.setattr(geometry, "_neighbours", counted)
    assert len(NearestNeighbourThinning(x, 0.1)) == math.ceil(0.1 * len(x))
    assert len(asked) <= most
    assert sum(asked) <= 4 * len(x)


def test_gaps_that_grow_cost_one_row_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every round drops a single sample, one alone has lost its neighbour."""
    asked: list[int] = []
    neighbours = geometry._neighbours
    monkeypatch.setattr(geometry, "_neighbours", lambda *a: (asked.append(len(a[3])), neighbours(*a))[1])
    NearestNeighbourThinning(torch.arange(200.0).square().view(200, 1), 0.05)
    assert len(asked) > 90
    assert sum(asked) < 200 + 3 * len(asked)


# --- moderate, k-centre, herding ---------------------------------------------------------


def moderate(x: np.ndarray, count: int) -> list[int]:
    distance = np.sqrt(((x - x.mean(0)) ** 2).sum(1))
    return np.argsort(np.abs(distance - np.median(distance)), kind="stable")[:count].tolist()


def k_centre(x: np.ndarray, count: int) -> list[int]:
    picked = [int(np.argmin(((x - x.mean(0)) ** 2).sum(1)))]
    while len(picked) < count:
        far = [(-min(((x[i] - x[j]) ** 2).sum() for j in picked), i) for i in range(len(x)) if i not in picked]
        picked.append(min(far)[1])
    return picked


def herding(x: np.ndarray, count: int) -> list[int]:
    picked: list[int] = []
    while len(picked) < count:
        left = [i for i in range(len(x)) if i not in picked]
        picked.append(min((((x[[*picked, i]].mean(0) - x.mean(0)) ** 2).sum(), i) for i in left)[1])
    return picked


RULES: list[tuple[Any, Callable[[np.ndarray, int], list[int]]]] = [
    (Moderate, moderate), (KCentre, k_centre), (Herding, herding),
]  # fmt: skip
rules = pytest.mark.parametrize(("method", "rule"), RULES, ids=[method.__name__ for method, _ in RULES])
# where neither rounding of a mean nor its place decides between samples equally far
GENERAL = [
    "around 0",
    "far from 0",
    "near duplicates",
    "float16 around 20",
    "1e19",
    "1e-25",
    "1e300",
    "images",
]


@rules
@pytest.mark.parametrize("cloud", GENERAL)
def test_rules_against_brute_force(method: Any, rule: Callable[[np.ndarray, int], list[int]], cloud: str) -> None:
    x = CLOUDS[cloud]()
    flat = x.double().flatten(1).numpy()
    flat = flat / 2.0 ** math.floor(math.log2(np.abs(flat).max()))
    labels = torch.randint(3, (len(x),), generator=generator(2)) * 7
    for ratio in (0.5, 0.1, 0.001):
        size = math.ceil(ratio * len(x))
        assert method(x, ratio).select().tolist() == sorted(rule(flat, size))
    shares = pysel.selection.quotas(torch.unique(labels, return_counts=True)[1], math.ceil(0.3 * len(x)))
    wanted = []
    for label, share in zip((0, 7, 14), shares.tolist(), strict=True):
        own = np.flatnonzero(labels.numpy() == label)
        wanted += own[rule(flat[own], share)].tolist()
    assert method(x, 0.3, labels=labels).select().tolist() == sorted(wanted)


@rules
def test_of_equal_samples_the_first_are_picked(method: Any, rule: object) -> None:
    assert method(torch.full((9, 2), 0.1), 0.5).select().tolist() == [0, 1, 2, 3, 4]
    assert method(torch.full((9, 2), 0.1), 1).select().tolist() == list(range(9))


def test_k_centre_takes_the_first_of_those_equally_far() -> None:
    """5 is nearest to the mean, then 0 and 10 lie at the same distance from it, then 2 and 8."""
    x = torch.tensor([10.0, 5, 0, 8, 2, 5]).view(6, 1)
    assert KCentre(x, 1 / 3).select().tolist() == [0, 1]
    assert KCentre(x, 2 / 3).select().tolist() == [0, 1, 2, 3]
    assert KCentre(x, 0.8).select().tolist() == [0, 1, 2, 3, 4], "and an equal sample last"


def test_k_centre_leaves_no_one_far() -> None:
    """Within twice the best radius, which for 8 blobs and 8 centres is at most that of the blobs."""
    centres = torch.randn(8, 3, generator=generator()) * 50
    x = (centres[:, None] + torch.rand(8, 50, 3, generator=generator(1))).flatten(0, 1)
    chosen = KCentre(x, 8 / 400).select()
    assert sorted((chosen // 50).tolist()) == list(range(8))


def test_herding_keeps_the_mean() -> None:
    x = torch.randn(500, 8, generator=generator())
    off = lambda chosen: float((x[chosen].mean(0) - x.mean(0)).norm())  # noqa: E731
    random = torch.randperm(500, generator=generator(1))[:50]
    assert off(Herding(x, 0.1).select()) < off(random) / 5


# --- bad input -------------------------------------------------------------------------


def with_nan() -> Tensor:
    x = torch.ones(20, 3)
    x[13, 1] = math.nan
    return x


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: kmeans(with_nan(), 2), ValueError, "kmeans: features must be finite, got nan in row 13"),
        (lambda: KMeans(with_nan(), 0.5, 2), ValueError, "KMeans: features must be finite, got nan in row 13"),
        (
            lambda: NearestNeighbourThinning(with_nan(), 0.5),
            ValueError,
            "NearestNeighbourThinning: features must be finite, got nan in row 13",
        ),
        (lambda: kmeans("abc", 2), TypeError, "kmeans: features must be a tensor, an array or a list of numbers"),
        (lambda: kmeans(torch.ones(5), 2), ValueError, r"kmeans: features must be \[N, ...\] .*got shape \[5\]"),
        (lambda: kmeans(torch.ones(5, 0), 2), ValueError, r"kmeans: features must be \[N, ...\] .*got shape \[5, 0\]"),
        (lambda: kmeans(torch.ones(5, 1), 6), ValueError, "kmeans: num_clusters must be between 1 and 5, got 6"),
        (lambda: kmeans(torch.ones(5, 1), 2.0), TypeError, "kmeans: num_clusters must be an int, got float"),
        (lambda: kmeans(torch.ones(5, 1), 2, iterations=-1), ValueError, "kmeans: iterations must be at least 0"),
        (lambda: kmeans(torch.ones(5, 1), 2, batch_size=0), ValueError, "kmeans: batch_size must be at least 1, got 0"),
        (lambda: kmeans(torch.ones(5, 1), 2, key="x"), TypeError, "kmeans: key must be a Tensor or an int, got str"),
        (
            lambda: KMeans(torch.ones(200, 1), 0.3),
            ValueError,
            "KMeans: num_clusters must be between 1 and 60, got 100",
        ),
        (lambda: KMeans(torch.ones(9, 1), 2, 3), ValueError, r"KMeans: keep_ratio, the fraction kept, must be in"),
        (lambda: KMeans(torch.ones(9, 1), 0.5, 3, iterations=1.5), TypeError, "KMeans: iterations must be an int"),
        (
            lambda: NearestNeighbourThinning(torch.ones(9, 1), 0),
            ValueError,
            r"NearestNeighbourThinning: keep_ratio, the fraction kept, must be in \(0, 1\], got 0",
        ),
        (lambda: Moderate(with_nan(), 0.5), ValueError, "Moderate: features must be finite, got nan in row 13"),
        (lambda: KCentre(with_nan(), 0.5), ValueError, "KCentre: features must be finite, got nan in row 13"),
        (lambda: KCentre(torch.ones(4), 0.5), ValueError, r"KCentre: features must be \[N, ...\] .*got shape \[4\]"),
        (lambda: Herding(torch.ones(9, 1), 2), ValueError, r"Herding: keep_ratio, the fraction kept, must be in"),
        (
            lambda: Herding(torch.ones(9, 1), 0.5, labels=[0.5] * 9),
            TypeError,
            "Herding: labels must be integers, got torch.float64",
        ),
        (
            lambda: Moderate(torch.ones(9, 1), 0.5, labels=[1] * 8),
            ValueError,
            r"Moderate: labels must have shape \[9\], got \[8\]",
        ),
        (
            lambda: KCentre(torch.ones(9, 1), 0.2, labels=range(9)),
            ValueError,
            "KCentre: keep_ratio must give at least one sample of each of the 9 classes",
        ),
        (
            lambda: NearestNeighbourThinning(torch.ones(9, 1), 0.5, batch_size=0),
            ValueError,
            "NearestNeighbourThinning: batch_size must be at least 1, got 0",
        ),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_features_are_neither_changed_nor_kept() -> None:
    x = torch.randn(40, 2, 2, generator=generator(), dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    centroids, _, distance = kmeans(x, 3, key=pysel.key(1))
    assert not centroids.requires_grad
    assert not distance.requires_grad
    selectors = [
        KMeans(x, 0.3, 3, key=1), NearestNeighbourThinning(x, 0.3), Moderate(x, 0.3), KCentre(x, 0.3), Herding(x, 0.3),
    ]  # fmt: skip
    chosen = [selector.select() for selector in selectors]
    assert torch.equal(x, before)
    x.data.zero_()
    for selector, subset in zip(selectors, chosen, strict=True):
        assert torch.equal(selector.select(), subset)
