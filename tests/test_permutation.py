"""pysel.permutation: a bijection, the same in every part, and random by any statistic that a shuffle is used for."""

import importlib
import math

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import pysel
from pysel import reference
from tests import golden
from tests.statistics import accept, chi_square, kolmogorov_smirnov, reject, scipy_stats
from tests.tensors import opcheck
from tests.test_random import philox

KEYS = [(0, 0), (7, 0), (-1, -1), (3, 2**32 - 2), (-(2**63), 2**63 - 1), (2**63 - 1, -3)]
LARGEST = 2**63 - 1
THRESHOLD = importlib.import_module("pysel.reference.permutation").SHUFFLED  # the function has the module's name


def raw(n, key, start=0, stop=None):
    return pysel.permutation(n, key=key, start=start, stop=stop)


def plain(n, key, start=0, stop=None):
    return reference.OPS["permutation"](n, key, start, n if stop is None else stop)


both = pytest.mark.parametrize("permute", [raw, plain], ids=["native", "reference"])


# --- an oracle in numpy, which also makes bad permutations ---


def table_of(n):
    """Rows and columns of the network's table."""
    rows = math.isqrt(n - 1) + 1
    rows += rows % 2
    return rows, -(-n // rows)


def value(words, x, modulus, mix=True):
    """f_k of the words of its block [..., 4], at x: 64 bits of a line, of which the upper ones are mixed."""
    low32, u = np.uint64(0xFFFFFFFF), np.uint64
    slope, shift = (words[..., i] << u(32) | words[..., i + 1] for i in (0, 2))
    line = slope * x + shift
    high = line >> u(32)
    if mix:
        for bits, factor in ((16, 0xD2511F53), (15, 0xCD9E8D57)):
            high = (high ^ high >> u(bits)) * u(factor) & low32
    return (high * modulus + ((line & low32) * modulus >> u(32))) >> u(32)


def network(words, n, positions, table=None, mix=True):
    """Elements of a permutation for each of the words [..., rounds, 4] of Philox blocks, at positions [m]."""
    words = words[..., None, :]  # against positions
    rows, columns = map(np.uint64, table or table_of(n))
    row, column = np.broadcast_arrays(positions // columns, positions % columns, words[..., 0, :, 0])[:2]
    element = np.full(row.shape, n, dtype=np.uint64)
    while (past := element >= n).any():
        for k in range(words.shape[-3]):
            if k % 2 == 0:
                row = (row + value(words[..., k, :, :], column, rows, mix)) % rows
            else:
                column = (column + value(words[..., k, :, :], row, columns, mix)) % columns
        element = np.where(past, row * columns + column, element)
    return element


def own_words(key, n, blocks):
    """Words of stream 5, under the key that block n of it is."""

    def block(seed, offset, i):
        counter = (offset + i) % 2**64
        return philox((counter % 2**32, counter >> 32, 5, 0), (seed % 2**32, seed >> 32 & 0xFFFFFFFF))

    w = block(*key, n)
    return np.array([block(w[0] << 32 | w[1], w[2] << 32 | w[3], i) for i in range(blocks)], dtype=np.uint64)


@pytest.mark.parametrize("n", [1025, 1026, 1089, 4000, 10**6, 2**32 + 1, 10**15, LARGEST - 1, LARGEST])
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_network_is_the_numpy_oracle(n, key):
    words, key = own_words(key, n, 10), torch.tensor(key)
    for start in sorted({0, n // 3, n - 1000}):
        stop = min(start + 1000, n)
        positions = np.arange(start, stop).astype(np.uint64)
        wanted = network(words, n, positions).astype(np.int64).tolist()
        for permute in (raw, plain):
            assert permute(n, key, start, stop).tolist() == wanted


@pytest.mark.parametrize("n", [0, 1, 2, 3, 100, THRESHOLD])
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_few_elements_are_the_order_of_their_words(n, key):
    words = own_words(key, n, (n + 1) // 2).reshape(-1, 2).tolist()
    wanted = sorted(range(n), key=lambda i: words[i])  # stable: ties by index
    for permute in (raw, plain):
        assert permute(n, torch.tensor(key)).tolist() == wanted


@both
def test_golden_permutations(permute):
    for row in golden.load("permutations"):
        assert permute(row["n"], torch.tensor(row["key"]), row["start"], row["stop"]).tolist() == row["result"]


# --- a bijection, in parts ---


def assert_bijection(p, n):
    assert p.dtype == torch.int64
    assert p.shape == (n,)
    assert torch.equal(p.sort().values, torch.arange(n))


SOME = [1023, 1024, 1025, 1026, 1055, 1056, 1057, 1088, 1089, 1090, 1155, 1156, 1157, 1999, 4095, 4096, 4097, 65_537]


@both
def test_is_a_bijection(permute):
    for n in (*range(300), *SOME):
        assert_bijection(permute(n, pysel.key(n)), n)


def test_a_large_one_is_a_bijection_and_the_reference():
    for n in (99_991, 300_007):
        p = raw(n, pysel.key(n))
        assert_bijection(p, n)
        assert torch.equal(p, plain(n, pysel.key(n)))


@pytest.mark.parametrize("n", [0, 1, 5, 1000, 1025, 1090, 5000])
def test_a_part_of_the_whole_is_the_wholes_part(n, key):
    whole = raw(n, key)
    places = sorted({0, 1, 7, 31, 1023, 1024, 1025, 2048, n // 2, n - 1, n} & set(range(n + 1)))
    for start in places:
        for stop in places:
            if start <= stop:
                assert torch.equal(raw(n, key, start, stop), whole[start:stop])
                assert torch.equal(plain(n, key, start, stop), whole[start:stop])
    assert torch.equal(raw(n, key, n // 2), whole[n // 2 :])


def test_parts_of_a_huge_one(key):
    for n in (10**12, LARGEST):
        for start in (0, 12_345_678_901, n - 5000):
            whole = raw(n, key, start, start + 5000)
            cut = [raw(n, key, start + s, min(start + s + 777, start + 5000)) for s in range(0, 5000, 777)]
            assert torch.equal(torch.cat(cut), whole)
            assert len(whole.unique()) == 5000
            assert int(whole.min()) >= 0
            assert int(whole.max()) < n


def test_an_int_is_the_key_made_from_it():
    for seed in (0, 7, -3, 2**64 + 5):
        assert torch.equal(pysel.permutation(2000, key=seed), raw(2000, pysel.key(seed)))


def test_uint64_and_strided_keys_are_the_same():
    key = torch.tensor([-5, -(2**63)])
    for n in (50, 5000):
        for same in (key.view(torch.uint64), torch.stack([key, key], dim=1)[:, 0]):
            assert torch.equal(raw(n, same), raw(n, key))
            assert torch.equal(plain(n, same), raw(n, key))


# --- checks: functions of permutations of n under many keys, [keys, n], to p-values ---


def permutations(n, keys, first=0):
    """Of consecutive keys."""
    return np.stack([raw(n, pysel.key(first + k)).numpy() for k in range(keys)])


def of_rounds(rounds, table=None, mix=True):
    """A network of some other number of rounds, or table, or with no mixing."""

    def permutations(n, keys):
        words = np.random.default_rng(n + keys).integers(0, 2**32, (keys, rounds, 4), dtype=np.uint64)
        return network(words, n, np.arange(n, dtype=np.uint64), table, mix).astype(np.int64)

    return permutations


def affine(n, keys):
    """i -> m i + c mod n, for an m without a common factor."""
    rng = np.random.default_rng(n + keys)
    units = np.array([m for m in range(1, n) if math.gcd(m, n) == 1])
    m, c = rng.choice(units, (keys, 1)), rng.integers(0, n, (keys, 1))
    return (m * np.arange(n) + c) % n


def one_swap(n, keys):
    """Right, but with the first element exchanged for 0 in one key of eight."""
    p = np.random.default_rng(n + keys).permuted(np.tile(np.arange(n), (keys, 1)), axis=1)
    for q in p[::8]:
        at = int(np.flatnonzero(q == 0)[0])
        q[0], q[at] = q[at], q[0]
    return p


def check_orders(p):
    """All n! orders equally often."""
    n = p.shape[1]
    number = sum(p[:, i] * n**i for i in range(n))
    orders = np.unique(number, return_counts=True)[1]
    counts = np.pad(orders, (0, math.factorial(n) - len(orders)))
    return {f"orders of {n}": chi_square(counts, np.full(len(counts), 1 / len(counts)))}


def check_positions(p, bins=24):
    """Where elements land, in bins of positions and of elements; and the elements at some single positions.

    For a uniform permutation the counts of a table of bins have the covariance of a multinomial table with fixed
    margins, times n / (n - 1).
    """
    keys, n = p.shape
    bins = min(bins, n)
    bin_of = np.arange(n) * bins // n
    size = np.bincount(bin_of)
    counts = np.zeros((bins, bins))
    np.add.at(counts, (np.broadcast_to(bin_of, p.shape), bin_of[p]), 1)
    expected = keys * np.outer(size, size) / n
    statistic = ((counts - expected) ** 2 / expected).sum() * (n - 1) / n
    result = {"bins": float(scipy_stats().chi2.sf(statistic, (bins - 1) ** 2))}
    for at in (0, 1, table_of(n)[1], n - 1):
        result[f"position {at}"] = chi_square(np.bincount(bin_of[p[:, at]], minlength=bins), size / n)
    return result


def check_pairs(p):
    """Differences mod n of elements at distance 1, 2, and one row of the table: all but 0 equally often.

    Among them those that would keep the distance, which is what too few rounds do.
    """
    n = p.shape[1]
    result = {}
    for distance in (1, 2, table_of(n)[1]):
        counts = np.bincount(((p[:, distance:] - p[:, :-distance]) % n).ravel(), minlength=n)[1:]
        result[f"differences at {distance}"] = chi_square(counts, np.full(n - 1, 1 / (n - 1)))
        kept, total = int(counts[distance - 1]), int(counts.sum())
        result[f"kept {distance}"] = float(scipy_stats().binomtest(kept, total, 1 / (n - 1)).pvalue)
    first_two = (p[:, 1] - p[:, 0]) % n * 16 // n
    size = np.bincount(np.arange(n) * 16 // n)
    size[0] -= 1  # the difference 0
    result["first two"] = chi_square(np.bincount(first_two, minlength=16), size / (n - 1))
    return result


def check_triples(p):
    """Second differences of three neighbours, and the rank of the middle one among them."""
    n = p.shape[1]
    a, b, c = (p[:, i : n - 2 + i : 3] for i in range(3))
    middle = 2 * (b > np.minimum(a, c)) + (b > np.maximum(a, c))
    second = ((a - 2 * b + c) % n * 64 // n).ravel()
    size = np.bincount(np.arange(n) * 64 // n) / n
    return {
        "rank": chi_square(np.bincount(middle.ravel(), minlength=4)[[0, 2, 3]], np.full(3, 1 / 3)),
        "second differences": chi_square(np.bincount(second, minlength=64), size),
    }


def cycles_of(p):
    """Number of cycles of each permutation."""
    least, step = np.broadcast_to(np.arange(p.shape[1]), p.shape), p
    for _ in range(p.shape[1].bit_length()):  # the least element within reach of 2^k steps
        least = np.minimum(least, np.take_along_axis(least, step, 1))
        step = np.take_along_axis(step, step, 1)
    return (least == np.arange(p.shape[1])).sum(1)


def check_cycles(p):
    """Fixed points are a Poisson variable of mean 1, cycles have a known mean, even permutations are one half."""
    keys, n = p.shape
    fixed = np.minimum((p == np.arange(n)).sum(1), 5)
    poisson = [math.exp(-1) / math.factorial(k) for k in range(5)]
    cycles = cycles_of(p)
    i = np.arange(1, n + 1)
    z = (cycles.mean() - (1 / i).sum()) / math.sqrt(((i - 1) / i**2).sum() / keys)
    odd = int(((n - cycles) % 2).sum())
    return {
        "fixed points": chi_square(np.bincount(fixed, minlength=6), [*poisson, 1 - sum(poisson)]),
        "cycles": float(2 * scipy_stats().norm.sf(abs(z))),
        "parity": chi_square([odd, keys - odd], [0.5, 0.5]),
    }


CHECKS = (check_positions, check_pairs, check_triples, check_cycles)


def all_checks(p):
    return {name: x for check in CHECKS for name, x in check(p).items()}


@pytest.mark.parametrize("n", [3, 4, 5])
def test_all_orders_of_few_elements(n):
    accept(check_orders(permutations(n, 30_000)))
    reject(check_orders(one_swap(n, 30_000)))
    if n > 3:  # all orders of three are affine
        reject(check_orders(affine(n, 30_000)))


# 1,024 sorts; the smallest network, one whose table is full, one with a prime size, one of odd columns
@pytest.mark.parametrize("n", [1024, 1025, 1156, 1399, 2000, 4097])
def test_looks_uniform(n):
    accept(all_checks(permutations(n, 1500)))


def test_at_many_sizes_parity_and_fixed_points_are_right():
    """There are even and odd ones at every size: all that are just above the threshold, and a few more."""
    p = {}
    for n in (*range(1025, 1100), 1156, 33 * 33, 34 * 33, 41 * 41, 42 * 42, 1681, 1683, 2601):
        p |= {f"{n} {name}": x for name, x in check_cycles(permutations(n, 100)).items()}
    accept(p)


BAD = {
    "identity": lambda n, keys: np.tile(np.arange(n), (keys, 1)),
    "affine": affine,
    "2 rounds": of_rounds(2),
    "4 rounds": of_rounds(4),
    "no mixing in 4 rounds": of_rounds(4, mix=False),
    "one swap": one_swap,
}


@pytest.mark.parametrize("name", BAD)
def test_bad_permutations_are_seen(name):
    reject(all_checks(BAD[name](1025, 1500)))


def test_an_odd_table_would_make_even_permutations_only():
    assert check_cycles(of_rounds(10, (33, 33))(33 * 33, 200))["parity"] < 1e-9


# --- how many rounds ---


def distances(rows, columns, rounds, start):
    """Distribution of how two elements lie to each other after some rounds, in eight classes.

    The class is (row distance: none, the first one, another) by (column distance: the same), without (none, none);
    ``start`` is "column" (one row apart) or "row" (one column apart). A round that adds f(column) to the row leaves
    the row distance alone if the columns are equal, and makes it uniform if not.
    """
    classes = [(r, c) for r in range(3) for c in range(3) if (r, c) != (0, 0)]
    p = {x: float(x == {"column": (1, 0), "row": (0, 1)}[start]) for x in classes}
    for k in range(rounds):
        side, size = (0, rows) if k % 2 == 0 else (1, columns)
        share = (1 / size, 1 / size, (size - 2) / size)
        q = dict.fromkeys(classes, 0.0)
        for x, mass in p.items():
            if x[1 - side] == 0:
                q[x] += mass
                continue
            for distance in range(3):
                q[(distance, x[1]) if side == 0 else (x[0], distance)] += mass * share[distance]
        p = q
    return p


def uniform(rows, columns):
    weights = {(r, c): (1, 1, rows - 2)[r] * (1, 1, columns - 2)[c] for r in range(3) for c in range(3) if r or c}
    return {x: w / (rows * columns - 1) for x, w in weights.items()}


def elements_to_tell(n, rounds):
    """How many elements of whole permutations it takes until a class of pairs is off by one standard error."""
    rows, columns = table_of(n)
    least = math.inf
    for start, pairs in (("column", rows), ("row", columns)):  # each element has so many partners, shared by two
        p, u = distances(rows, columns, rounds, start), uniform(rows, columns)
        least = min(least, *(u[x] / (p[x] - u[x]) ** 2 * 2 / pairs for x in u if p[x] != u[x]))
    return least


def test_ten_rounds_are_beyond_statistics_of_pairs():
    for n in (1025, 1100, 5000, 10**5):
        assert 1.2 * n**3 < elements_to_tell(n, 10) < 3 * n**3
        assert 1.2 * n**2 < elements_to_tell(n, 8) < 3 * n**2
    assert elements_to_tell(1025, 10) > 1.5e9


@pytest.mark.parametrize(("rounds", "keys"), [(4, 100), (6, 3000)])
def test_networks_of_fewer_rounds_do_what_the_analysis_says(rounds, keys):
    """n = rows x columns, so that nothing walks; how often two of a column, one row apart, keep that distance."""
    rows, columns = 34, 34
    n = rows * columns
    kept = total = 0
    for part in range(0, keys, 300):
        p = of_rounds(rounds)(n, min(300, keys - part) + part % 7)
        same = (p[:, columns:] // columns - p[:, :-columns] // columns) % rows == 1
        kept, total = kept + int(same.sum()), total + same.size
    share, by_chance = (
        sum(p[1, c] for c in range(3)) for p in (distances(rows, columns, rounds, "column"), uniform(rows, columns))
    )
    expected, by_chance = total * share, total * by_chance
    assert abs(kept - expected) < 5 * math.sqrt(expected)
    assert kept - by_chance > 5 * math.sqrt(by_chance), "the test is too small to tell"


# --- keys, and large n ---


def correlated(agree, p, q):
    """p-values of two permutations of n being independent: agreements are Poisson of mean 1, ranks uncorrelated."""
    n = len(p)
    z = float(np.corrcoef(p, q)[0, 1]) * math.sqrt(n - 1)
    agree.append(int((p == q).sum()))
    return float(2 * scipy_stats().norm.sf(abs(z)))


def check_keys(permute):
    """Keys that differ in one bit, for all 128 bits."""
    agree, result = [], {}
    for base in ((0, 0), (20_240_601, 2**32 - 2), (-1, -1)):
        p = permute(torch.tensor(base))
        for bit in range(128):
            word = list(base)
            word[bit // 64] ^= (1 << bit % 64) - (2**64 if bit % 64 == 63 else 0)
            result[f"{base} bit {bit}"] = correlated(agree, p, permute(torch.tensor(word)))
    poisson = [math.exp(-1) / math.factorial(k) for k in range(4)]
    counts = np.bincount(np.minimum(agree, 4), minlength=5)
    return result | {"agreements": chi_square(counts, [*poisson, 1 - sum(poisson)])}


@pytest.mark.parametrize("n", [1000, 1025, 20_000])
def test_keys_that_differ_in_one_bit_are_independent(n):
    accept(check_keys(lambda key: raw(n, key).numpy()))
    reject(check_keys(lambda key: raw(n, key & ~4).numpy()))


def test_positions_are_no_shift_of_each_other(key):
    """Nor is a permutation that of another key, moved: offsets count blocks, of which every round takes one."""
    p, q = raw(5000, key).numpy(), raw(5000, key + torch.tensor([0, 1])).numpy()
    agree = []
    accept({str(s): correlated(agree, p, np.roll(r, s)) for r in (p, q) for s in (1, 2, 71, 72, -1)})
    assert max(agree) < 8


def check_huge(n, p):
    """Of consecutive elements: they, first and second differences mod n, and low bits are uniform."""
    cdf = scipy_stats().uniform.cdf
    result = {"elements": kolmogorov_smirnov(p / n, cdf)}
    p = [int(x) for x in p]
    for lag in (1, 2):
        differences = np.array([(a - b) % n for a, b in zip(p[lag:], p[:-lag], strict=True)], dtype=float)
        result[f"lag {lag}"] = kolmogorov_smirnov(differences / n, cdf)
    second = np.array([(a - 2 * b + c) % n for a, b, c in zip(p, p[1:], p[2:], strict=False)], dtype=float)
    result["second differences"] = kolmogorov_smirnov(second / n, cdf)
    result["low bits"] = chi_square(np.bincount(np.array([x % 16 for x in p]), minlength=16), np.full(16, 1 / 16))
    return result


@pytest.mark.parametrize("n", [10**7, 10**12, 2**48 + 1, 2**62, LARGEST])
def test_parts_of_huge_ones_look_uniform(n):
    m = 20_000
    accept(check_huge(n, raw(n, pysel.key(1), n // 7, n // 7 + m).numpy()))
    affine = np.array([(i * 0x9E3779B97F4A7C15 + 5) % n for i in range(m)])
    reject(check_huge(n, affine))


# --- arguments ---


@both
@pytest.mark.parametrize(
    ("n", "start", "stop", "error", "message"),
    [
        (-1, 0, 0, ValueError, "n must be at least 0, got -1"),
        (-1, 0, None, ValueError, "n must be at least 0, got -1"),
        (10, -1, 5, IndexError, "start must be between 0 and 10, got -1"),
        (10, 11, 12, IndexError, "start must be between 0 and 10, got 11"),
        (10, 3, 2, IndexError, "stop must be between 3 and 10, got 2"),
        (10, 3, -1, IndexError, "stop must be between 3 and 10, got -1"),
        (5000, 0, 5001, IndexError, "stop must be between 0 and 5000, got 5001"),
    ],
)
def test_bad_ranges_are_refused(permute, n, start, stop, error, message, key):
    with pytest.raises(error, match=f"permutation: {message}"):
        permute(n, key, start, stop)


def test_bad_arguments_are_refused(key):
    for bad in (1.0, True, "1", None):
        with pytest.raises(TypeError, match=f"permutation: n must be an int, got {type(bad).__name__}"):
            pysel.permutation(bad, key=key)
        with pytest.raises(TypeError, match=f"permutation: start must be an int, got {type(bad).__name__}"):
            pysel.permutation(5, key=key, start=bad)
    with pytest.raises(TypeError, match="permutation: stop must be an int, got float"):
        pysel.permutation(5, key=key, stop=3.0)
    with pytest.raises(ValueError, match=f"permutation: n must fit into 64 bits, got {2**63}"):
        pysel.permutation(2**63, key=key)
    for bad in (None, "1", 1.5, [1, 2], True):
        message = f"permutation: key must be a Tensor or an int, got {type(bad).__name__}"
        with pytest.raises(TypeError, match=message):
            pysel.permutation(5, key=bad)
    with pytest.raises(TypeError, match=r"permutation: key must be int64 or uint64, got torch.float32"):
        pysel.permutation(5, key=torch.zeros(2))
    with pytest.raises(ValueError, match=r"permutation: key must have shape \[2\], got \[3\]"):
        pysel.permutation(5, key=torch.arange(3))


# --- torch's machinery ---


def test_is_on_the_keys_device(device):
    for n in (100, 5000):
        p = raw(n, pysel.key(1, device=device))
        assert p.device.type == device
        assert torch.equal(p.cpu(), raw(n, pysel.key(1)))
    assert raw(5000, pysel.key(1).to("meta"), 3, 9).shape == (6,)


@pytest.mark.parametrize("n", [9, 5000])
def test_opcheck(n, key):
    opcheck(torch.ops.pysel.permutation.default, (n, key, 2, 7))


def test_vmap_over_keys_equals_a_loop(key, no_vmap_fallback):
    keys = pysel.split(key, 4)
    mapped = torch.vmap(lambda k: pysel.permutation(2000, key=k, start=5, stop=50))(keys)
    assert torch.equal(mapped, torch.stack([raw(2000, k, 5, 50) for k in keys]))


def test_compiles_to_one_graph(key):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def part(x, k, start, stop):
        return pysel.permutation(x.shape[0], key=k, start=start, stop=stop)

    for n, start, stop in ((2000, 5, 50), (3000, 7, 2500), (50, 4, 50)):
        assert torch.equal(part(torch.empty(n), key, start, stop), raw(n, key, start, stop))
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_same_bits_for_any_number_of_threads(threads, key):
    threads(1)
    one = raw(200_003, key, 5)
    for count in (2, 3):
        threads(count)
        assert torch.equal(raw(200_003, key, 5), one)
