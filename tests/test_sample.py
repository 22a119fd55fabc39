"""weighted_sample."""

import bisect
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import pysel
from bench.timing import peak_extra_memory
from pysel import reference
from tests.op_samples import RAW
from tests.statistics import accept, chi_square, independence, kolmogorov_smirnov, reject, scipy_stats
from tests.tensors import DTYPES, assert_same_bits, bits, name

sample = pysel.weighted_sample
WORD = np.array([2**32, 1], dtype=np.uint64)  # of a high half and a low one
ORDERS = ["draw", "index", "shuffled"]
orders = pytest.mark.parametrize("order", ORDERS)
with_or_without = pytest.mark.parametrize("replacement", [False, True], ids=["without", "with"])


def random_weights(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).exp().to(dtype)


def gumbel_noise(n, key, dtype, start=0):
    high, low = (torch.ops.pysel.random_words(key, stream, start, n) for stream in (0, 1))
    return torch.ops.pysel.noise(high << 32 | low, "gumbel", dtype == torch.float64)


def order_words(n, key, start=0):
    """The 64-bit words that decide between equal keys."""
    return torch.ops.pysel.random_words(key, 2, 2 * start, 2 * n).view(n, 2).numpy().astype(np.uint64) @ WORD


def uniforms(n, key, start=0):
    """The 64-bit integers that draws with replacement invert, in Python's integers."""
    words = torch.ops.pysel.random_words(key, 3, 2 * start, 2 * n).view(n, 2)
    return [high << 32 | low for high, low in words.tolist()]


# --- what it computes ---

N_LARGE = 300_000  # long enough for the selection to sample, bracket and refine


def adversaries(n):
    """Log weights that are hard to select from, by name."""
    i = torch.arange(n, dtype=torch.float64)
    return {
        "equal": torch.zeros(n),
        "normal": torch.randn(n, generator=torch.Generator().manual_seed(1)),
        "ascending": i * (100 / n),
        "descending": -i * (100 / n),
        "one part holds all winners": torch.where((i >= n // 2) & (i < n // 2 + 3000), 50.0, 0.0),
        "every 64th is heavy": torch.where(i % 64 == 0, 60.0, 0.0),
        "heavy tail": torch.randn(n, generator=torch.Generator().manual_seed(2)) ** 5,
        "all keys tie": torch.full((n,), 1e30),
        "two values that tie": torch.where(i % 3 == 0, 1e30, -1e30),
        "ties beside normal": torch.where(i % 5 == 0, 1e30, torch.randn(n, generator=torch.Generator().manual_seed(3))),
        "mostly impossible": torch.where(i % 7 == 0, 0.0, -torch.inf),
        "extremes of the type": torch.where(i % 2 == 0, 3e38, -3e38),
    }


@pytest.mark.parametrize("case", adversaries(1))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_the_k_largest_keys_win_with_ties_in_draw_order(case, dtype, key):
    x = adversaries(N_LARGE)[case].to(dtype)
    z = x + gumbel_noise(N_LARGE, key, dtype, start=9)
    by_rank = np.lexsort((order_words(N_LARGE, key, start=9), -z.double().numpy()))
    possible = int((x > -torch.inf).sum())
    for k in {1, 2, 100, N_LARGE // 50, possible // 2, possible - 1, possible}:
        got = sample(x, k, log_weights=True, order="index", key=key, start=9)
        assert np.array_equal(got.numpy(), np.sort(by_rank[:k])), k
    assert sample(x, 0, log_weights=True, key=key).shape == (0,)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-12, 1.0, 1e12, 1e30])
@pytest.mark.parametrize("spread", [0.01, 1.0, 20.0])
def test_weights_of_any_size_win_by_their_keys(spread, scale, key):
    x = torch.randn(N_LARGE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    w = ((x * spread).exp() * scale).float().clamp(max=1e38)
    w[::7] = 0
    z = torch.ops.pysel.race_keys(w, False, key, 0)
    by_rank = np.lexsort((order_words(N_LARGE, key), -z.double().numpy()))
    possible = int((w > 0).sum())
    for k in {1000, possible // 8, possible // 2, possible - 100, possible}:
        got = sample(w, k, order="index", key=key)
        assert np.array_equal(got.numpy(), np.sort(by_rank[:k])), k
        assert torch.equal(z[sample(w, k, order="draw", key=key)], z[by_rank[:k].copy()]), k


@pytest.mark.parametrize("k", [5, 3000])
def test_draw_order_is_by_key_and_shuffles_ties(k, dtype, key):
    x = torch.zeros(20_000, dtype=dtype)
    x[::2] = 6e4  # float32 keys of these are 2^-7 apart, so that many are equal
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    z = x.to(compute) + gumbel_noise(20_000, key, compute)
    got = sample(x, k, log_weights=True, order="draw", key=key)
    keys = z[got]
    assert (keys.diff() <= 0).all()
    assert torch.equal(got.sort().values, sample(x, k, log_weights=True, order="index", key=key))
    if compute == torch.float32 and k > 5:
        tied = keys[1:] == keys[:-1]
        ascending = (got.diff() > 0)[tied].double().mean()
        assert tied.sum() > 1000
        assert 0.45 < ascending < 0.55  # neither by index nor against it (ten standard deviations)


@orders
@pytest.mark.parametrize(("n", "k"), [(100_000, 50_000), (100_000, 100), (3000, 1500)])
def test_a_longer_draw_begins_with_the_shorter_one_where_keys_tie(order, n, k, device):
    for seed in (31, 32):
        x = torch.zeros(n, device=device)
        x[::2] = 6e4 + torch.arange(0, n, 2, device=device) % 3  # float32 keys of these are 2^-7 apart
        first = sample(x, k + 1, log_weights=True, key=seed)[:-1]
        got = sample(x, k, log_weights=True, order=order, key=seed)
        assert torch.equal(got.sort().values, first.sort().values)
        if order == "draw":
            assert torch.equal(got, first)
    zeros = torch.zeros(100_000)
    assert torch.equal(
        sample(zeros, 50_000, log_weights=True, order="index", key=pysel.key(31)),
        sample(zeros, 50_001, log_weights=True, key=pysel.key(31))[:-1].sort().values,
    )


@orders
def test_every_order_is_of_the_same_set(order, dtype, key):
    for shape, k in (((5000,), 700), ((6, 400), 30)):
        w = random_weights(*shape, dtype=dtype)
        got = sample(w, k, order=order, key=key)
        assert torch.equal(got.sort(-1).values, sample(w, k, order="index", key=key))
        if order == "index":
            assert (got.diff() > 0).all()
        else:
            assert not (got.diff() > 0).all()
        again = sample(w, 5 * k, True, order=order, key=key)
        assert torch.equal(again.sort(-1).values, sample(w, 5 * k, True, order="index", key=key))
        assert (again.diff() >= 0).all() == (order == "index")


def test_log_weights_are_logarithms(key):
    w = random_weights(1000, dtype=torch.float64)
    w[::10] = 0
    for k, replacement in ((300, False), (3000, True)):
        plain = sample(w, k, replacement, key=key)
        assert torch.equal(sample(w.log(), k, replacement, log_weights=True, key=key), plain)
        # a common factor means nothing, however large
        shifted = sample(w.log() + 20_000, k, replacement, log_weights=True, key=key)
        assert (shifted == plain).double().mean() > 0.95


def test_zero_weights_are_never_drawn(dtype, key):
    w = torch.zeros(2000, dtype=dtype)
    heavy = torch.tensor([0, 17, 500, 1024, 1999])
    w[heavy] = torch.tensor([1.0, 1e-3, 2.0, 0.5, 1.0], dtype=dtype)
    w[5] = -0.0
    assert torch.equal(sample(w, 5, order="index", key=key), heavy)
    assert torch.equal(sample(w.log(), 5, log_weights=True, order="index", key=key), heavy)
    many = sample(w, 50_000, True, key=key)
    assert torch.equal(many.unique(), heavy)


@pytest.mark.parametrize("scale", ["subnormal", "largest"])
def test_weights_at_the_ends_of_their_range_count_in_full(scale, dtype, key):
    # ten weights in ratio 1 : 2 : ... : 10, the sum of which would under- or overflow
    info = torch.finfo(dtype)
    unit = info.smallest_normal * info.eps if scale == "subnormal" else info.max / 16
    w = torch.arange(1, 11, dtype=torch.float64).mul(unit).to(dtype)
    assert (w > 0).all()
    assert torch.isfinite(w).all()
    p = np.arange(1, 11) / 55
    drawn = sample(w, 50_000, True, key=key)
    first = sample(w.expand(50_000, 10), 1, key=key)
    got = {
        which: chi_square(np.bincount(i.flatten(), minlength=10), p) for which, i in (("with", drawn), ("first", first))
    }
    accept(got)


# --- shards, batches, prefixes ---


@pytest.mark.parametrize("cuts", [[1], [5_000], [3, 1_024, 40_001, 69_999]], ids=str)
def test_winners_within_a_shard_are_the_shards_own_winners(cuts, dtype, key):
    n = 70_000
    w = random_weights(n, dtype=dtype)
    whole = sample(w, 2000, order="index", key=key, start=7)
    found = []
    edges = [0, *cuts, n]
    for begin, end in itertools.pairwise(edges):
        mine = int(((whole >= begin) & (whole < end)).sum())
        found.append(begin + sample(w[begin:end], mine, order="index", key=key, start=7 + begin))
    assert torch.equal(torch.cat(found), whole)


@orders
def test_rows_are_single_samples_that_start_where_the_row_does(order, dtype, key):
    w = random_weights(5, 300, dtype=dtype)
    together = sample(w, 40, order=order, key=key, start=3)
    for row in range(5):
        assert torch.equal(together[row], sample(w[row], 40, order=order, key=key, start=3 + 300 * row))
    together = sample(w, 777, True, order=order, key=key, start=3)
    for row in range(5):
        assert torch.equal(together[row], sample(w[row], 777, True, order=order, key=key, start=3 + 777 * row))


def test_a_longer_run_with_replacement_begins_with_the_shorter(dtype, key):
    w = random_weights(1000, dtype=dtype)
    long = sample(w, 100_000, True, key=key)
    for k in (0, 1, 2, 99, 50_000):
        assert torch.equal(sample(w, k, True, key=key), long[:k])
    for start, k in ((1, 10), (33_333, 66_667)):
        assert torch.equal(sample(w, k, True, key=key, start=start), long[start : start + k])


# --- inversion is exact ---


@pytest.mark.parametrize("n", [1, 2, 3, 64, 65, 1000])
def test_draws_invert_integers(n, dtype, key):
    w = random_weights(n, dtype=dtype)
    if n > 2:
        w[1] = 0
    fixed = [i % 2**64 for i in reference.OPS["fixed_weights"](w, False, float(w.max()), w.numel()).tolist()]
    cumulative = list(itertools.accumulate(fixed))
    total = cumulative[-1]
    assert total < 2**64
    wanted = [bisect.bisect_right(cumulative, u * total >> 64) for u in uniforms(2000, key, start=5)]
    assert sample(w, 2000, True, key=key, start=5).tolist() == wanted
    # probabilities are right to (1 + n p) n 2^-63
    exact = [Fraction(v) for v in w.double().tolist()]
    for integer, weight in zip(fixed, exact, strict=True):
        p = weight / sum(exact)
        assert abs(Fraction(integer, total) - p) <= (1 + n * p) * n * Fraction(1, 2**63)


def test_draws_see_a_difference_of_two_to_the_minus_50(key):
    # two weights whose boundary lies just below, then just above, the uniform of draw j
    for j, u in enumerate(uniforms(200, key)):
        p = round(Fraction(u, 2**64) * 2**53)
        for nudge, wanted in ((-8, 1), (8, 0)):
            q = min(max(p + nudge, 0), 2**53) / 2**53
            w = torch.tensor([q, 1 - q], dtype=torch.float64)
            assert sample(w, 1, True, key=key, start=j).tolist() == [wanted]


@pytest.mark.parametrize("factor", [2.0**-100, 2.0**-1, 2.0**90])
def test_a_power_of_two_changes_no_draw_with_replacement(factor, key):
    w = random_weights(5000)
    assert torch.equal(sample(w * factor, 9000, True, key=key), sample(w, 9000, True, key=key))


def test_a_tiny_probability_is_not_lost_among_many(key):
    # Half of the mass is in 2^20 weights that a float32 running sum beside a large one would drop.
    n = 2**20
    w = torch.cat([torch.ones(n), torch.full((1,), float(n)), torch.full((n,), 2.0**-30)])
    drawn = sample(w, 200_000, True, key=key)
    counts = [int((drawn < n).sum()), int((drawn == n).sum()), int((drawn > n).sum())]
    mass = np.array([n, n, n * 2.0**-30])
    accept({"thirds": chi_square(counts, mass / mass.sum())})
    assert len(drawn.unique()) > 80_000


# --- every path gives what the reference gives ---


def profiles(n):
    """Weights that take a kernel's rarer paths, by name."""
    w = random_weights(n)
    gaps, steep = w.clone(), w.clone()
    gaps[2_000 : n // 2] = 0  # whole chunks and spans of them
    gaps[-1500:] = 0
    steep[n // 3] = 1e9  # nearly every draw
    steep[: n // 4] *= 1e-30
    return {"plain": w, "gaps": gaps, "steep": steep, "subnormal": w * 1e-42, "equal": torch.ones(n)}


@with_or_without
@pytest.mark.parametrize("profile", profiles(1))
def test_long_vectors_equal_the_reference(replacement, profile, key):
    n = 40_000  # more chunks than a bucket's span holds
    # singles, few of many, buckets
    for dtype, k, order in (
        (torch.float32, 15, "draw"),
        (torch.float32, 12_000, "draw" if replacement else "shuffled"),
        (torch.float64, 12_000, "draw"),
    ):
        w = profiles(n)[profile].to(dtype)
        got = sample(w, k, replacement, order=order, key=key, start=3)
        wanted = reference.OPS["weighted_sample"](w, k, replacement, False, order, None, None, key, 3, None)
        assert torch.equal(got, wanted), (dtype, k)
        assert torch.equal(sample(w, k, replacement, order="index", key=key, start=3), wanted.sort().values), (dtype, k)


@pytest.mark.parametrize("log_weights", [False, True], ids=["weights", "logs"])
def test_unchecked_weights_equal_the_reference(log_weights, dtype, key):
    w = random_weights(30_000, dtype=dtype)
    w[::3000] = torch.nan
    w[1::3000] = -1.0
    w[2::3000] = torch.inf
    w[3::3000] = -0.0
    w[4::3000] = -1e-40
    for k in (5, 25, 100, 3_000, 15_000, 29_000):
        got = sample(w, k, log_weights=log_weights, order="index", key=key, validate=False)
        wanted = reference.OPS["weighted_sample"](w, k, False, log_weights, "index", None, None, key, 0, False)
        assert torch.equal(got, wanted), k


# --- size ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "replacement", "bytes_a_weight", "bytes_a_draw"),
    [("index", False, 1 / 8, 0), ("draw", False, 1 / 8, 8), ("index", True, 1 / 128, 0), ("draw", True, 1 / 128, 8)],
)
def test_extra_memory_is_small(order, replacement, bytes_a_weight, bytes_a_draw, key):
    # 1e9 weights then take 4 GB, their mask 125 MB, and 1e8 draws in draw order 0.8 GB twice.
    n, k = 200_000_000, 20_000_000
    w = torch.rand(n).add_(1e-3)
    peak = peak_extra_memory(lambda: sample(w, k, replacement, order=order, key=key))
    if peak is None:
        pytest.skip("this system does not tell")
    kept = 0.02 * n * 8 if not replacement else 0  # keys near the k-th largest
    assert peak < 8 * k + bytes_a_draw * k + bytes_a_weight * n + kept + 50e6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_more_than_two_to_the_24_weights(dtype, key):
    n = 2**24 + 100
    w = torch.zeros(n, dtype=dtype)
    w[2**24 :] = 1
    beyond = list(range(2**24, n))
    assert sample(w, 100, order="index", key=key).tolist() == beyond
    assert sample(w, 100_000, True, key=key).unique().tolist() == beyond
    for order in ORDERS:
        assert sample(w, 50, order=order, key=key).min() >= 2**24
    w.fill_(1)
    for replacement in (False, True):
        drawn = sample(w, 50_000, replacement, key=key)
        accept({"uniform": kolmogorov_smirnov(drawn.double() / n, scipy_stats().uniform.cdf)})
    reject({"uniform": kolmogorov_smirnov(drawn[drawn < n // 2].double() / n, scipy_stats().uniform.cdf)})


# --- bad input ---

ONES = torch.ones(5)


def with_weight(value):
    w = torch.ones(3, 5)
    w[2, 4] = value
    return w


WEIGHTS = "weights must be finite and at least 0, got a negative, infinite or NaN weight"
LOGS = r"weights must be below \+inf and not NaN \(log_weights=True\), got \+inf or NaN"
BAD = {
    "negative weight": (with_weight(-1.0), 2, {}, ValueError, WEIGHTS),
    "tiny negative weight": (with_weight(-6e-8), 2, {}, ValueError, WEIGHTS),
    "infinite weight": (with_weight(torch.inf), 2, {}, ValueError, WEIGHTS),
    "NaN weight": (with_weight(torch.nan), 2, {}, ValueError, WEIGHTS),
    "-inf weight": (with_weight(-torch.inf), 2, {}, ValueError, WEIGHTS),
    "infinite log weight": (with_weight(torch.inf), 2, {"log_weights": True}, ValueError, LOGS),
    "NaN log weight": (with_weight(torch.nan), 2, {"log_weights": True}, ValueError, LOGS),
    "k above nonzero": (
        torch.tensor([1.0, 0.0, 1.0, 0.0]), 3, {}, ValueError,
        "k must be at most the number of nonzero weights, 2, got 3",
    ),
    "k above nonzero in a row": (
        torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]), 2, {}, ValueError,
        "k must be at most the number of nonzero weights, 1, got 2",
    ),
    "k above possible": (
        torch.tensor([1.0, -torch.inf, 1.0]), 3, {"log_weights": True}, ValueError,
        "k must be at most the number of nonzero weights, 2, got 3",
    ),
    "zeros": (
        torch.zeros(2, 4), 3, {"replacement": True}, ValueError,
        "weights must have at least one above 0 in every row, got a row of zeros",
    ),
    "logs of zeros": (
        torch.full((4,), -torch.inf), 3, {"replacement": True, "log_weights": True}, ValueError,
        "weights must have at least one above 0 in every row, got a row of zeros",
    ),
    "no weights": (torch.zeros(0), 3, {"replacement": True}, ValueError, "weights must have at least one"),
    "k above n": (ONES, 6, {}, IndexError, "k must be between 0 and 5, got 6"),
    "k negative": (ONES, -1, {}, IndexError, "k must be between 0 and 5, got -1"),
    "k negative with": (ONES, -1, {"replacement": True}, IndexError, "k must be at least 0, got -1"),
    "0-d": (torch.tensor(1.0), 1, {}, ValueError, r"weights must have shape \[n\] or \[B, n\], got \[\]"),
    "3-d": (torch.ones(2, 2, 2), 1, {}, ValueError, r"weights must have shape \[n\] or \[B, n\], got \[2, 2, 2\]"),
    "order": (ONES, 2, {"order": "sorted"}, ValueError, "order must be draw, index or shuffled, got '?sorted'?"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=str)
@pytest.mark.parametrize("source", ["public", "raw", "reference"])
def test_bad_arguments_are_refused_and_left_alone(case, source, dtype, device, key):
    w, k, arguments, error, message = BAD[case]
    w = w.to(dtype).to(device)
    before = bits(w).clone()
    with pytest.raises(error, match=f"weighted_sample: {message}"):
        if source == "public":
            sample(w, k, key=key, validate=True, **arguments)
        else:
            raw = RAW["weighted_sample"](w, k, key=key, validate=True, **arguments)
            (reference.weighted_sample if source == "reference" else torch.ops.pysel.weighted_sample)(*raw)
    assert torch.equal(bits(w), before)


@with_or_without
def test_a_bad_weight_that_another_thread_finds_is_refused(replacement, dtype, key):
    w = torch.ones(300_000, dtype=dtype)
    for value in (-1, torch.nan, torch.inf):
        for at in (0, 150_000, -1):
            bad = w.clone()
            bad[at] = value
            with pytest.raises(ValueError, match=WEIGHTS):
                sample(bad, 3, replacement, key=key)


@pytest.mark.parametrize("bad", [1.0, True, "2", None, torch.tensor([1.0])], ids=repr)
def test_k_that_is_no_int_is_refused(bad, key):
    with pytest.raises(TypeError, match=f"weighted_sample: k must be an int, got {type(bad).__name__}"):
        sample(ONES, bad, key=key)


@orders
@with_or_without
@pytest.mark.parametrize("log_weights", [False, True], ids=["weights", "logs"])
def test_unchecked_weights_never_give_a_foreign_index(order, replacement, log_weights, dtype, key):
    inf, nan, top = torch.inf, torch.nan, torch.finfo(dtype).max
    rows = [[inf], [nan], [0.0], [-1.0], [-inf]]
    rows += [[inf, inf, 1.0], [nan, nan, nan], [nan, 1.0, 2.0], [-1.0, 3.0, -5.0], [0.0, 0.0, 0.0], [1.0, inf, nan]]
    rows += [[inf] * 100, [top] * 100, [-top] * 100, [nan, inf, -inf, 0.0, -0.0, top, -top] * 20]
    for row in rows:
        w = torch.tensor(row, dtype=torch.float64).to(dtype)
        k = 500 if replacement else len(row)
        got = sample(w, k, replacement, log_weights=log_weights, order=order, key=key, validate=False)
        assert got.shape == (k,)
        assert ((got >= -1) & (got < len(row))).all(), row


def test_validate_does_not_change_a_sample(key):
    w = random_weights(1000)
    for replacement in (False, True):
        plain = sample(w, 300, replacement, key=key)
        for validate in (True, False):
            assert torch.equal(sample(w, 300, replacement, key=key, validate=validate), plain)


def test_takes_what_torch_multinomial_takes(key):
    w = torch.nn.Parameter(random_weights(2, 10))
    for arguments in ((3,), (3, False), (30, True)):
        got = sample(w, *arguments)
        wanted = torch.multinomial(w, *arguments)
        assert got.shape == wanted.shape
        assert got.dtype == wanted.dtype
        assert not got.requires_grad


# --- distribution ---

SMALL = torch.tensor([3.0, 1.0, 0.0, 2.0, 0.5])
K = 3
N = 60_000


def successive(weights, k):
    """{ordered k-tuple: probability} of draws one after another without replacement."""
    w = [Fraction(v) for v in weights.double().tolist()]
    result = {}
    for items in itertools.permutations(range(len(w)), k):
        p, left = Fraction(1), sum(w)
        for i in items:
            p, left = p * w[i] / left, left - w[i]
            if left == 0:
                break
        result[items] = float(p)
    return result


def sets(ordered):
    """{set: probability} from ordered tuples."""
    result = {}
    for items, p in ordered.items():
        result[frozenset(items)] = result.get(frozenset(items), 0) + p
    return result


ORDERED = successive(SMALL, K)
SETS = sets(ORDERED)
EXPECTED = {
    "draw": ORDERED,
    "index": {items: SETS[frozenset(items)] * (items == tuple(sorted(items))) for items in ORDERED},
    "shuffled": {items: SETS[frozenset(items)] / math.factorial(K) for items in ORDERED},
}


def check_without(index, order):
    """p-values of [N, K] samples of SMALL: the whole tuple, its first item, and each item's inclusion."""
    expected = EXPECTED[order]
    counts = dict.fromkeys(expected, 0)
    tuples, number = np.unique(index.numpy(), axis=0, return_counts=True)
    for items, n in zip(map(tuple, tuples.tolist()), number.tolist(), strict=True):
        counts[items] += n
    p = {"tuples": chi_square(list(counts.values()), list(expected.values()))}
    for i in range(len(SMALL)):
        included = sum(q for items, q in SETS.items() if i in items)
        drawn = int((index == i).any(-1).sum())
        if 0 < included < 1:
            p[f"inclusion of {i}"] = chi_square([drawn, len(index) - drawn], [included, 1 - included])
    if order == "draw":
        p["first"] = chi_square(np.bincount(index[:, 0], minlength=len(SMALL)), SMALL.double() / SMALL.double().sum())
    return p


def rows_of(weights, dtype=torch.float32):
    return weights.to(dtype).expand(N, len(weights))


RIGHT = {
    "float32": lambda order, key: sample(rows_of(SMALL), K, order=order, key=key),
    "float64": lambda order, key: sample(rows_of(SMALL, torch.float64), K, order=order, key=key),
    "bfloat16": lambda order, key: sample(rows_of(SMALL, torch.bfloat16), K, order=order, key=key),
    "logs": lambda order, key: sample(rows_of(SMALL.log() + 3), K, log_weights=True, order=order, key=key),
    "tiny": lambda order, key: sample(rows_of(SMALL * 2.0**-148), K, order=order, key=key),
    "one key a row": lambda order, key: torch.vmap(lambda k: sample(SMALL, K, order=order, key=k))(
        pysel.split(key, 6000)
    ),
}


def drawn_without(weights, key):
    """Plain torch: the race, with whatever weights."""
    generator = torch.Generator().manual_seed(int(key[0]))
    race = torch.rand(N, len(weights), generator=generator, dtype=torch.float64).log().neg() / weights
    return race.argsort(-1)[:, :K]


WRONG = {
    "draw": {
        "a little flat": lambda key: drawn_without(SMALL.double() ** 0.95, key),
        "uniform": lambda key: drawn_without((SMALL > 0).double(), key),
        "last first": lambda key: sample(rows_of(SMALL), K, key=key).flip(-1),
        "shuffled": lambda key: sample(rows_of(SMALL), K, order="shuffled", key=key),
        "a zero weight": lambda key: drawn_without(SMALL.clamp_min(1e-3).double(), key),
        "weight times uniform": lambda key: (
            SMALL * torch.rand(N, 5, generator=torch.Generator().manual_seed(0))
        ).topk(K).indices,
    },
    "index": {
        "a little flat": lambda key: drawn_without(SMALL.double() ** 0.95, key).sort(-1).values,
        "uniform": lambda key: drawn_without((SMALL > 0).double(), key).sort(-1).values,
        "unsorted": lambda key: sample(rows_of(SMALL), K, key=key),
    },
    "shuffled": {
        "draw order": lambda key: sample(rows_of(SMALL), K, order="draw", key=key),
        "index order": lambda key: sample(rows_of(SMALL), K, order="index", key=key),
        "rotated": lambda key: sample(rows_of(SMALL), K, key=key).roll(1, -1),
        "only swapped": lambda key: torch.where(
            torch.rand(N, 1, generator=torch.Generator().manual_seed(0)) < 0.5,
            sample(rows_of(SMALL), K, key=key),
            sample(rows_of(SMALL), K, key=key).flip(-1),
        ),
    },
}  # fmt: skip


@orders
@pytest.mark.parametrize("sampler", RIGHT)
def test_samples_without_replacement_have_their_exact_probabilities(order, sampler, key):
    accept(check_without(RIGHT[sampler](order, key), order))


@pytest.mark.parametrize(("order", "sampler"), [(order, s) for order in ORDERS for s in WRONG[order]])
def test_wrong_samplers_without_replacement_are_seen(order, sampler, key):
    reject(check_without(WRONG[order][sampler](key), order))


def test_the_oracle_of_this_test_agrees_with_itself(key):
    assert sum(ORDERED.values()) == pytest.approx(1)
    accept(check_without(drawn_without(SMALL.double(), key), "draw"))


def check_inclusion(drawn, weights, k):
    """p-values of how often items of many are drawn, against the race's own integral for inclusion probabilities."""
    # given the race's k-th key among the others, item i is in with 1 - exp(-w t); to order 1/n, t solves sum = k
    w = weights.double().numpy()
    low, high = 0.0, 1e6
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if (1 - np.exp(-w * t)).sum() < k else (low, t)
    p = 1 - np.exp(-w * t)
    group = np.argsort(w).reshape(20, -1)  # items of like weight
    counts = np.bincount(drawn.flatten(), minlength=len(w))
    trials = len(drawn)
    result = {}
    for g, items in enumerate(group):
        deviation = (counts[items].sum() - trials * p[items].sum()) / np.sqrt(trials * (p * (1 - p))[items].sum())
        result[f"group {g}"] = 2 * scipy_stats().norm.sf(abs(deviation))
    return result


def test_inclusion_among_many_items_follows_their_weights(key):
    w = random_weights(2000)
    rows = w.expand(400, 2000)
    accept(check_inclusion(sample(rows, 300, order="index", key=key), w, 300))
    reject(check_inclusion(sample(rows**0.95, 300, order="index", key=key), w, 300))


@pytest.mark.parametrize("k", [2, 40, 3000])
def test_shuffled_order_is_independent_of_weight_and_index(k, key):
    # each item's place is uniform: heavy or light, early or late
    w = random_weights(3000)
    heavy = w > w.median()

    def check(order):
        result = {}
        rows = sample(w.expand(40_000 // k + 20, 3000), k, order=order, key=key)
        place = (torch.arange(k) * min(k, 10) // k).expand_as(rows)
        for question, answer in (("weight", heavy[rows]), ("index", rows >= 1500)):
            table = np.bincount((place * 2 + answer).flatten(), minlength=2 * min(k, 10))
            result[question] = independence(table.reshape(-1, 2))
        return result

    accept(check("shuffled"))
    reject(check("index"))
    if k == 3000:  # the first few of many draws differ too little
        reject(check("draw"))


def check_with(drawn, weights):
    """p-values of draws with replacement: their frequencies, and independence of draws j and j + lag."""
    n, p = len(weights), (weights.double() / weights.double().sum()).numpy()
    result = {"frequencies": chi_square(np.bincount(drawn, minlength=n), p)}
    possible = p > 0
    for lag in (1, 2, 4):
        table = np.bincount(drawn[:-lag] * n + drawn[lag:], minlength=n * n).reshape(n, n)
        result[f"lag {lag}"] = independence(table[possible][:, possible])
    return result


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("order", ["draw", "shuffled"])
def test_draws_with_replacement_are_independent_and_have_their_probabilities(order, dtype, key):
    w = SMALL.to(dtype)
    accept(check_with(sample(w, N, True, order=order, key=key), SMALL))
    accept(check_with(sample(w.log(), N, True, log_weights=True, order=order, key=key), w.log().double().exp()))


def test_wrong_samplers_with_replacement_are_seen(key):
    for wrong in (
        sample(SMALL**0.95, N, True, key=key),
        sample(SMALL.clamp_min(1e-3), N, True, key=key),
        sample(SMALL, N, True, order="index", key=key),
        sample(SMALL, N // 2, True, key=key).repeat_interleave(2),
        sample(rows_of(SMALL)[: N // K], K, key=key).flatten(),  # without replacement within threes
    ):
        reject(check_with(wrong, SMALL))


def test_many_weights_with_replacement_have_their_probabilities(key):
    w = random_weights(5000, dtype=torch.float64)

    def check(weights):
        drawn = sample(weights, 500_000, True, key=key)
        return {"all": chi_square(np.bincount(drawn, minlength=5000), w / w.sum())}

    accept(check(w))
    reject(check(w**0.97))


# --- for shards ---


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("log_weights", [False, True])
def test_race_keys(dtype, log_weights, key):
    w = (random_weights(3001) - 5 * log_weights).to(dtype)
    w[7] = -torch.inf if log_weights else 0
    for start in (0, 5, 2**40 + 3):
        z = torch.ops.pysel.race_keys(w, log_weights, key, start)
        assert_same_bits(z, reference.OPS["race_keys"](w, log_weights, key, start))
        drawn = pysel.weighted_sample(w, 500, log_weights=log_weights, order="index", key=key, start=start)
        assert_same_bits(drawn, pysel.select(z, 500, key=key, start=start))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("log_weights", [False, True])
def test_shards_of_draws_with_replacement(dtype, log_weights, key):
    w = (random_weights(3001) - 5 * log_weights).to(dtype)
    most, n = float(w.max()), w.numel()
    fixed = torch.ops.pysel.fixed_weights(w, log_weights, most, n)
    assert_same_bits(fixed, reference.OPS["fixed_weights"](w, log_weights, most, n))
    parts = [torch.ops.pysel.fixed_weights(part, log_weights, most, n) for part in w.split(1000)]
    assert_same_bits(torch.cat(parts), fixed)
    total = int(fixed.sum())
    assert total > 2**50
    target = torch.ops.pysel.draw_targets(key, 9, 4000, total)
    assert_same_bits(target, reference.OPS["draw_targets"](key, 9, 4000, total))
    exact = [(int(t) % 2**64) for t in target]
    upto = [0]
    for f in fixed.tolist():
        upto.append(upto[-1] + f % 2**64)
    drawn = [bisect.bisect_right(upto, t) - 1 for t in exact]
    got = pysel.weighted_sample(w, 4000, True, log_weights=log_weights, key=key, start=9)
    assert got.tolist() == drawn


@pytest.mark.parametrize("order", ["index", "draw"])
def test_draws_of_many_weights_are_those_that_each_looks_up_alone(order, key):
    # so many that a bucket's draws are brought into parts, and half as many draws as are brought into buckets
    n = 2**25 + 5000
    weights = torch.rand(n, generator=torch.Generator().manual_seed(1))
    weights[n // 4 : n // 2] = 0
    few = n // 1024
    alone = [pysel.weighted_sample(weights, few, True, key=key, start=start) for start in (0, few, 2 * few)]
    wanted = torch.cat(alone)
    got = pysel.weighted_sample(weights, 3 * few, True, order=order, key=key)
    assert_same_bits(got, wanted.sort().values if order == "index" else wanted)
