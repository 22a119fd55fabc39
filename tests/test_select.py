"""select: from all of a long vector, and from each group of it."""

import numpy as np
import pytest
import torch

import pysel
from pysel import reference
from tests import golden
from tests.tensors import assert_same_bits, laid_out

FORMS = ["log", "linear", "exp", "rate"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def order_words(n, key):
    """Unsigned words that decide between equal scores, from the stream of 32-bit halves."""
    halves = torch.ops.pysel.random_words(key, 2, 0, 2 * n).view(n, 2).numpy().astype(np.uint64)
    return halves[:, 0] << np.uint64(32) | halves[:, 1]


def oracle(scores, k, largest=True, *, groups=None, quotas=None, key=None):
    """By numpy's sort: group, score, word, index; then each group's first."""
    x = scores.double().numpy() if scores.is_floating_point() else scores.long().numpy()
    n = len(x)
    words = np.arange(n) if key is None else order_words(n, key)
    rank = np.unique(x, return_inverse=True)[1]
    of = np.zeros(n, dtype=np.int64) if groups is None else groups.numpy()
    ranked = np.lexsort((np.arange(n), words, -rank if largest else rank, of))
    sizes = np.bincount(of, minlength=1 if quotas is None else len(quotas))
    place = np.arange(n) - (np.cumsum(sizes) - sizes)[of[ranked]]
    return torch.from_numpy(np.sort(ranked[place < (k if quotas is None else quotas.numpy()[of[ranked]])]))


def shares(groups, num_groups, share, seed=0):
    """Quotas of about a share of each group's size, some 0 and some all of it."""
    sizes = torch.bincount(groups, minlength=num_groups)
    quotas = (sizes * share).long()
    edge = torch.randint(8, (num_groups,), generator=generator(seed))
    return torch.where(edge == 0, 0, torch.where(edge == 1, sizes, quotas))


SCORES = {
    "normal": lambda n: torch.randn(n, generator=generator(1)),
    "few values": lambda n: torch.randint(6, (n,), generator=generator(2)).float() / 7,
    "equal": lambda n: torch.zeros(n),
    "ascending": lambda n: torch.arange(n).float(),
}
GROUPS = {
    "one": lambda n: (torch.zeros(n, dtype=torch.int64), 1),
    "ten": lambda n: (torch.randint(10, (n,), generator=generator(3)), 10),
    "a hundred, every other empty": lambda n: (torch.randint(50, (n,), generator=generator(4)) * 2, 101),
    "one holds nearly all": lambda n: ((torch.rand(n, generator=generator(5)) ** 40 * 7).long(), 7),
    "each its own": lambda n: (torch.randperm(n, generator=generator(6)), n),
}


KEYS = pytest.mark.parametrize(
    "key", [None, pysel.key(5), torch.tensor([-3, 2**32 - 20])], ids=["no key", "key", "offset"]
)


@KEYS
@pytest.mark.parametrize("scores", SCORES)
def test_reference_equals_a_sort(scores, key):
    n = 700
    x = SCORES[scores](n)
    for largest in (True, False):
        for k in (0, 1, 300, n):
            got = reference.select(x, k, largest, None, None, key, None)
            assert torch.equal(got, oracle(x, k, largest, key=key)), (largest, k)
    for name, make in GROUPS.items():
        groups, num_groups = make(n)
        for share in (0.0, 0.3, 1.0):
            quotas = shares(groups, num_groups, share)
            k = int(quotas.sum())
            got = reference.select(x, k, True, groups, quotas, key, None)
            assert torch.equal(got, oracle(x, k, groups=groups, quotas=quotas, key=key)), (name, share)


# Groups that are sampled from, counted between quantiles, and kept whole; and what is hard about them.
LARGE = {
    "ten": lambda n: (torch.randint(10, (n,), generator=generator(3)), 10),
    "of 2000": lambda n: (torch.randint(n // 2000, (n,), generator=generator(3)), n // 2000),
    "of 300": lambda n: (torch.randint(n // 300, (n,), generator=generator(3)), n // 300),
    "of 20": lambda n: (torch.randint(n // 20, (n,), generator=generator(3)), n // 20),
    "sorted": lambda n: (torch.randint(40, (n,), generator=generator(3)).sort().values, 40),
    "one holds nearly all": lambda n: ((torch.rand(n, generator=generator(5)) ** 40 * 70).long(), 70),
    "each its own": lambda n: (torch.randperm(n, generator=generator(6)), n),
}


@KEYS
@pytest.mark.parametrize("scores", [*SCORES, "by group"])
@pytest.mark.parametrize("groups", LARGE)
def test_large_groups_equal_a_sort(groups, scores, key):
    n = 120_000
    of, num_groups = LARGE[groups](n)
    x = SCORES["normal"](n) + 9.0 * of if scores == "by group" else SCORES[scores](n)
    for share in (0.004, 0.3):
        quotas = shares(of, num_groups, share)
        k = int(quotas.sum())
        given = {"groups": of, "quotas": quotas, "key": key}
        assert_same_bits(pysel.select(x, k, **given), oracle(x, k, **given))
    assert_same_bits(pysel.select(x, k, False, **given | {"groups": of.int()}), oracle(x, k, False, **given))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int64], ids=str
)
def test_groups_of_every_dtype_in_any_memory(dtype, layout):
    n = 20_000
    x = torch.randn(n, generator=generator(1)).mul(40).to(dtype)
    groups, num_groups = GROUPS["ten"](n)
    quotas = shares(groups, num_groups, 0.4)
    k = int(quotas.sum())
    for key in (None, 7):
        wanted = oracle(x, k, groups=groups, quotas=quotas, key=None if key is None else pysel.key(key))
        given = {"groups": laid_out(groups, layout), "quotas": laid_out(quotas, layout)}
        assert_same_bits(pysel.select(laid_out(x, layout), k, key=key, **given), wanted)


@KEYS
@pytest.mark.parametrize("scores", ["normal", "few values"])
def test_groups_survive_a_wrong_guess(scores, key):
    n = 200_000
    # what is seen of group 0 is below, and of group 1 above the rest
    x, groups, order = SCORES[scores](n), torch.randint(3, (n,), generator=generator(8)), torch.arange(n)
    for period in (64, 512, 4096):
        far = torch.where(order % period < period // 2, 100.0, 0.0) * torch.tensor([1.0, -1.0, 0.0])[groups]
        quotas = shares(groups, 3, 0.5)
        k = int(quotas.sum())
        got = pysel.select(x + far, k, groups=groups, quotas=quotas, key=key)
        assert_same_bits(got, oracle(x + far, k, groups=groups, quotas=quotas, key=key))


@pytest.mark.parametrize("op", ["select", "weighted_sample", "usage_select_"])
@pytest.mark.parametrize("source", ["public", "raw", "reference"])
@pytest.mark.parametrize("n", [6, 60_000])
def test_bad_groups_are_refused(op, source, n):
    x, groups = torch.ones(n), torch.arange(n) % 3
    quotas = torch.tensor([1, 0, 2])

    def call(groups=groups, quotas=quotas, k=3, validate=None, **more):
        given = {"groups": groups, "quotas": quotas, "validate": validate, **more}
        if source == "public":
            if op == "usage_select_":
                return pysel.usage_select_(torch.zeros(n), x, x, 0.5, k, 0.1, **given)
            return getattr(pysel, op)(x, k, **given)
        if op == "select":
            args = (x, k, True, groups, quotas, None, validate)
        elif op == "weighted_sample":
            args = (x, k, False, False, "draw", groups, quotas, pysel.key(0), 0, validate)
        else:
            args = (torch.zeros(n), x, x, 0.5, 0.1, "linear", 1, k, groups, quotas, None, validate)
        return (reference.OPS[op] if source == "reference" else getattr(torch.ops.pysel, op))(*args)

    size = "the number of nonzero weights" if op == "weighted_sample" else "the size"
    like = {"select": "scores", "weighted_sample": "weights", "usage_select_": "counts"}[op]
    wrong = TypeError if source == "public" else (TypeError, ValueError)
    with_one = groups.clone()
    with_one[n // 2] = 3
    for error, message, given in (
        (ValueError, "quotas must be given with groups, got None", {"quotas": None}),
        (ValueError, "groups must be given with quotas, got None", {"groups": None}),
        (ValueError, rf"groups must have the shape of {like}, \[{n}\], got \[2\]", {"groups": groups[:2]}),
        (ValueError, r"quotas must have shape \[G\], got \[1, 3\]", {"quotas": quotas.unsqueeze(0)}),
        (wrong, "groups must be int64 or int32", {"groups": groups.short()}),
        (wrong, "quotas must be int64", {"quotas": quotas.int()}),
        (ValueError, "quotas must be at least 0, got -1 for group 1", {"quotas": torch.tensor([2, -1, 2])}),
        (ValueError, "quotas must sum to k, 4, got a sum of 3", {"k": 4}),
        (IndexError, "groups must be between 0 and 2, got 3", {"groups": with_one}),
        (IndexError, "groups must be between 0 and 2, got 3", {"groups": with_one, "validate": False}),
        (IndexError, "groups must be between 0 and 2, got -2", {"groups": torch.full((n,), -2, dtype=torch.int32)}),
        (IndexError, "groups must be empty for empty quotas, got 7",
         {"groups": torch.full((n,), 7), "quotas": quotas[:0], "k": 0}),
        (ValueError, f"quotas must be at most {size} of each group, {n // 3} for group 1, got {n // 3 + 1}",
         {"quotas": torch.tensor([0, n // 3 + 1, 0]), "k": n // 3 + 1}),
        (ValueError, f"quotas must be at most {size} of each group, 0 for group 3, got 1",
         {"quotas": torch.tensor([1, 1, 1, 1]), "k": 4, "validate": False}),
    ):  # fmt: skip
        with pytest.raises(error, match=f"^{op}: {message}"):
            call(**given)


@pytest.mark.parametrize("bad", [[1.0, 2.0], torch.ones(4).bool(), torch.ones(4).to_sparse()])
def test_scores_of_another_type_are_refused(bad):
    with pytest.raises(TypeError, match=r"^select: scores must be .* got (list|torch.bool|torch.sparse_coo)"):
        pysel.select(bad, 1)


def test_refused_groups_leave_counts_alone():
    counts = torch.zeros(9)
    with pytest.raises(ValueError, match="quotas must be at most the size"):
        pysel.usage_select_(
            counts,
            torch.ones(9),
            torch.ones(9),
            0.5,
            4,
            1.0,
            groups=torch.arange(9) // 3,
            quotas=torch.tensor([4, 0, 0]),
        )
    assert (counts == 0).all()


def test_nan_is_refused_by_group_too():
    n = 200_000
    for at in (0, 100_000, n - 1):
        x = torch.randn(n, generator=generator(1))
        x[at] = torch.nan
        groups = torch.arange(n) % 5
        for k in (0, 3):
            quotas = torch.tensor([0, k, 0, 0, 0])
            with pytest.raises(ValueError, match="select: scores must not be NaN"):
                pysel.select(x, k, groups=groups, quotas=quotas)
        quotas = torch.zeros(5, dtype=torch.int64)
        quotas[at % 5] = 1
        assert pysel.select(x, 1, groups=groups, quotas=quotas, validate=False).tolist() == [at]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("n", [1, 50, 3000, 200_000])
def test_key_orders_equal_scores(n, dtype):
    x = torch.randint(7, (n,), generator=generator(n)).to(dtype)
    for key in (pysel.key(1), torch.tensor([-3, 2**32 - 20])):
        for k in {0, 1, n // 3, n // 2, n - 1, n}:
            assert_same_bits(pysel.select(x, k, key=key), oracle(x, k, key=key))
    zeros = torch.zeros(n, dtype=dtype)
    assert_same_bits(pysel.select(zeros, n // 2, key=9), oracle(zeros, n // 2, key=pysel.key(9)))


def test_key_changes_nothing_where_scores_differ():
    x = torch.randperm(100_000, generator=generator()).float()
    assert torch.equal(pysel.select(x, 30_000, key=1), pysel.select(x, 30_000))


def test_an_int_is_a_key():
    x = torch.zeros(100)
    assert torch.equal(pysel.select(x, 9, key=-7), pysel.select(x, 9, key=pysel.key(-7)))
    assert torch.equal(
        pysel.weighted_sample(x + 1, 9, key=2**70), pysel.weighted_sample(x + 1, 9, key=pysel.key(2**70))
    )
    assert torch.equal(pysel.gumbel_softmax(x, key=3), pysel.gumbel_softmax(x, key=pysel.key(3)))
    for bad in (1.0, True, "1"):
        with pytest.raises(TypeError, match="select: key must be a Tensor or an int, got"):
            pysel.select(x, 9, key=bad)


# --- usage_select_ ---


def steps(counts, first, second, mix, k, gamma, form, step, **given):
    """What usage_select_ stands for."""
    shares = torch.tensor([1 - mix, mix], dtype=torch.float64).to(first.dtype)
    scores = pysel.usage_penalty(first * shares[0] + second * shares[1], counts, gamma, form, step)
    selected = pysel.select(scores, k, **given)
    pysel.usage_update_(counts, selected)
    return selected


@KEYS
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("counts_dtype", [torch.float32, torch.float64, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_usage_select_is_its_steps(dtype, counts_dtype, form, key):
    n, k = 9_000, 3_000
    first = torch.rand(n, generator=generator(1), dtype=torch.float64).to(dtype)
    second = torch.randint(9, (n,), generator=generator(2)).to(dtype) / 9
    groups, num_groups = LARGE["of 2000"](n)
    quotas = torch.bincount(groups, minlength=num_groups) // 3
    for given in ({}, {"groups": groups.int(), "quotas": quotas}):
        counts = torch.zeros(n).to(counts_dtype)
        strided = torch.zeros(n, 2).to(counts_dtype)[:, 1]
        oracle_counts, plain_counts = counts.clone(), counts.clone()
        for epoch in range(4):
            mix, many = (0.0, 0.3, 1.0, 1 / 3)[epoch], int(quotas.sum()) if given else k
            arguments = (first, second, mix, many, 0.2, form, epoch + 1)
            wanted = steps(oracle_counts, *arguments, key=key, **given)
            assert_same_bits(pysel.usage_select_(counts, *arguments, key=key, **given), wanted)
            assert_same_bits(pysel.usage_select_(strided, *arguments, key=key, **given), wanted)
            if epoch > 1:
                continue
            plain = reference.usage_select_(
                plain_counts,
                first,
                second,
                mix,
                0.2,
                form,
                epoch + 1,
                many,
                given.get("groups"),
                given.get("quotas"),
                key,
                None,
            )
            assert_same_bits(plain, wanted)
        assert counts.sum() > 0
        for got in (counts, strided.contiguous()):
            assert_same_bits(got, oracle_counts)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("values", [1, 3, 50, 10**6])
def test_usage_select_keeps_little_and_is_its_steps_even_so(values, grouped):
    # more ties than are kept
    n, k = 600_000, 200_000
    first = torch.randint(values, (n,), generator=generator(1)).float() / 7
    groups = torch.randint(10, (n,), generator=generator(2))
    quotas = torch.bincount(groups) // 3
    given = {"groups": groups, "quotas": quotas} if grouped else {}
    k = int(quotas.sum()) if grouped else k
    counts, oracle_counts = torch.zeros(n), torch.zeros(n)
    for epoch, key in enumerate((None, 1, 2)):
        arguments = (first, first, 0.25, k, 0.3, "linear", epoch + 1)
        wanted = steps(oracle_counts, *arguments, key=key, **given)
        assert_same_bits(pysel.usage_select_(counts, *arguments, key=key, **given), wanted)
    assert_same_bits(counts, oracle_counts)


@pytest.mark.parametrize("source", ["public", "raw", "reference"])
def test_usage_select_refuses(source):
    counts, table = torch.zeros(4), torch.rand(4)

    def call(counts=counts, first=table, second=table, mix=0.5, k=2, gamma=0.1, form="linear", step=1, validate=None):
        if source == "public":
            return pysel.usage_select_(counts, first, second, mix, k, gamma, form, step, validate=validate)
        op = torch.ops.pysel.usage_select_ if source == "raw" else reference.usage_select_
        return op(counts, first, second, mix, gamma, form, step, k, None, None, None, validate)

    with_nan = table.clone()
    with_nan[2] = torch.nan
    wrong = TypeError if source == "public" else (TypeError, ValueError)
    for error, message, given in (
        (
            ValueError,
            r"first must have the shape of counts, \[4\], got \[3\]",
            {"first": table[:3], "second": table[:3]},
        ),
        (ValueError, r"second must have the shape of counts, \[4\], got \[3\]", {"second": table[:3]}),
        (wrong, "first must be float32 or float64", {"first": table.half(), "second": table.half()}),
        (wrong, "second must have the dtype of first", {"second": table.double()}),
        (ValueError, "mix must be between 0 and 1, got 1.5", {"mix": 1.5}),
        (ValueError, "mix must be between 0 and 1, got nan", {"mix": float("nan")}),
        (ValueError, "gamma must be finite and at least 0, got -1", {"gamma": -1.0}),
        (ValueError, "form must be", {"form": "square"}),
        (ValueError, "step must be at least 1, got 0", {"step": 0}),
        (IndexError, "k must be between 0 and 4, got 5", {"k": 5}),
        (wrong, "counts must be float32, float64, int32 or int64", {"counts": counts.half()}),
        (ValueError, "counts must not be an expanded tensor", {"counts": torch.zeros(1).expand(4)}),
        (ValueError, "scores of first, second and counts must not be NaN, got NaN", {"first": with_nan}),
    ):
        with pytest.raises(error, match=f"^usage_select_: {message}"):
            call(**given)
    assert (counts == 0).all()
    assert 2 in call(first=with_nan, validate=False)


def test_opcheck():
    n = 50
    x, counts = torch.rand(n, generator=generator(1)), torch.zeros(n)
    groups, quotas = torch.arange(n) % 3, torch.tensor([4, 0, 5])
    for op, args in (
        ("select", (x, 9, True, groups, quotas, pysel.key(1), None)),
        ("weighted_sample", (x, 9, False, False, "draw", groups, quotas, pysel.key(1), 2, None)),
        ("usage_select_", (counts, x, x, 0.25, 0.1, "linear", 1, 9, groups, quotas, pysel.key(1), None)),
        ("usage_select_", (counts, x, x, 0.25, 0.1, "linear", 1, 9, None, None, None, None)),
    ):
        utilities = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
        torch.library.opcheck(getattr(torch.ops.pysel, op).default, args, test_utils=utilities)


def test_compiled_is_the_same():
    n = 3000
    x, groups, quotas = torch.rand(n, generator=generator(1)), torch.arange(n) % 3, torch.tensor([400, 0, 500])

    def epoch(counts, x):
        chosen = pysel.select(x, 900, groups=groups, quotas=quotas, key=5)
        again = pysel.usage_select_(counts, x, x * x, 0.5, 900, 0.1, groups=groups, quotas=quotas, key=6)
        return chosen, again, pysel.weighted_sample(x, 900, groups=groups, quotas=quotas, key=7)

    plain, compiled = torch.zeros(n), torch.zeros(n)
    wanted, got = epoch(plain, x), torch.compile(epoch, fullgraph=True, backend="aot_eager")(compiled, x)
    for a, b in zip(got, wanted, strict=True):
        assert_same_bits(a, b)
    assert_same_bits(compiled, plain)


# --- weighted_sample by group ---


@pytest.mark.parametrize("log_weights", [False, True], ids=["weights", "logs"])
@pytest.mark.parametrize("groups", LARGE)
def test_groups_race_as_the_reference_says(groups, log_weights):
    n = 20_000
    of, num_groups = LARGE[groups](n)
    w = torch.randn(n, generator=generator(1)).exp()
    w[::7] = 0
    quotas = torch.bincount(of[w > 0], minlength=num_groups) * 2 // 5
    k, x = int(quotas.sum()), w.log() if log_weights else w
    for order in ("draw", "index", "shuffled"):
        got = pysel.weighted_sample(
            x, k, log_weights=log_weights, order=order, groups=of, quotas=quotas, key=3, start=11
        )
        wanted = reference.weighted_sample(x, k, False, log_weights, order, of, quotas, pysel.key(3), 11, None)
        assert_same_bits(got, wanted)


def test_every_nonzero_weight_of_a_group_can_be_drawn_and_no_other():
    n = 90_000
    w = torch.zeros(n)
    w[::9] = 1e-30
    groups = torch.arange(n) % 10
    quotas = torch.bincount(groups[w > 0], minlength=10)
    got = pysel.weighted_sample(w, int(quotas.sum()), order="index", groups=groups, quotas=quotas, key=1)
    assert torch.equal(got, torch.arange(0, n, 9))
    quotas[3] += 1
    with pytest.raises(ValueError, match="nonzero weights of each group, 1000 for group 3, got 1001"):
        pysel.weighted_sample(w, int(quotas.sum()), groups=groups, quotas=quotas, key=1)
    unchecked = pysel.weighted_sample(
        w, int(quotas.sum()), order="index", groups=groups, quotas=quotas, key=1, validate=False
    )
    assert torch.equal(torch.bincount(groups[unchecked]), quotas)


def test_a_group_drawn_from_alone_is_a_draw_of_its_own():
    # with weights 0 elsewhere the plain race has the same keys
    n = 5000
    w = torch.rand(n, generator=generator(1)) + 0.1
    groups = torch.randint(4, (n,), generator=generator(2))
    quotas = torch.tensor([100, 0, 7, 900])
    got = pysel.weighted_sample(w, 1007, order="index", groups=groups, quotas=quotas, key=1)
    for g, quota in enumerate(quotas.tolist()):
        alone = pysel.weighted_sample(torch.where(groups == g, w, 0.0), quota, order="index", key=1)
        assert torch.equal(got[groups[got] == g], alone)


def test_rows_and_replacement_have_no_groups():
    groups, quotas = torch.tensor([0, 1]), torch.tensor([1, 1])
    with pytest.raises(ValueError, match="weighted_sample: replacement must be False with groups, got True"):
        pysel.weighted_sample(torch.ones(2), 2, True, groups=groups, quotas=quotas)
    with pytest.raises(ValueError, match=r"weighted_sample: weights must have shape \[n\] with groups, got \[3, 2\]"):
        pysel.weighted_sample(torch.ones(3, 2), 2, groups=groups, quotas=quotas)


@pytest.mark.parametrize("row", golden.load("selections"), ids=lambda row: row["name"])
def test_golden_selections(row):
    op = row["name"].split()[0]
    for call in (reference.OPS[op], getattr(torch.ops.pysel, op)):
        assert call(*golden.SELECTIONS[row["name"]]()).tolist() == row["result"]


@pytest.mark.parametrize("start", [1, 7, 2**40 + 3])
def test_a_shard_says_where_it_begins(start: int) -> None:
    """Its ties are ordered by the words of its elements' numbers in the whole."""
    x = torch.randint(3, (3000,), generator=torch.Generator().manual_seed(0)).float()
    wanted = reference.select(x, 1000, True, None, None, pysel.key(5), None, start)
    assert_same_bits(pysel.select(x, 1000, key=5, start=start), wanted)
    assert not torch.equal(wanted, pysel.select(x, 1000, key=5))
    groups, quotas = torch.arange(3000) % 2, torch.tensor([300, 700])
    wanted = reference.select(x, 1000, True, groups, quotas, pysel.key(5), None, start)
    assert_same_bits(pysel.select(x, 1000, groups=groups, quotas=quotas, key=5, start=start), wanted)
    with pytest.raises(ValueError, match="select: start must be at least 0, got -1"):
        pysel.select(x, 3, start=-1)


def test_a_part_is_selected_as_in_the_whole() -> None:
    x = torch.ones(1000)
    whole = pysel.select(x, 600, key=5)
    part = whole[whole >= 300] - 300
    assert_same_bits(pysel.select(x[300:], len(part), key=5, start=300), part)
