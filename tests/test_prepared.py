"""pysel/ops/prepared.py: draws from weights that change are those from the weights as they stand."""

import copy
import pickle
from fractions import Fraction

import pytest
import torch

import pysel
from pysel import reference
from tests.tensors import assert_same_bits, laid_out

SIZES = [1, 63, 64, 65, 4096, 4097, 64**3 + 1]


def random(n, dtype=torch.float32, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def check(prepared, weights):
    """As if prepared of the weights just now."""
    assert_same_bits(prepared.weights, weights)
    for got, wanted in zip(prepared.tables[1:], reference.OPS["prepare"](weights), strict=True):
        assert_same_bits(got, wanted)
    for order in ("draw", "index", "shuffled"):
        given = {"replacement": True, "order": order, "key": 3, "start": 7}
        assert torch.equal(pysel.weighted_sample(prepared, 500, **given), pysel.weighted_sample(weights, 500, **given))


@pytest.mark.parametrize("n", SIZES)
def test_draws_are_those_from_the_plain_weights(n, dtype, layout, device):
    weights = random(n, dtype).to(device)
    check(pysel.prepare(laid_out(weights, layout)), weights)


CHANGES = {
    "smaller": lambda w: w * 0.9,
    "larger": lambda w: w * 1.5,
    "none": lambda w: w,
    "zeros": torch.zeros_like,
    "a higher power of two": lambda w: w * 1000,
    "a lower power of two": lambda w: w / 1000,
    "subnormal": lambda w: (w.double() * torch.finfo(w.dtype).smallest_normal / 4).to(w.dtype),
    "the largest there are": lambda w: torch.full_like(w, torch.finfo(w.dtype).max),
}


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("n", [50, 5000])
def test_changes_leave_the_sums_of_the_weights_as_they_stand(n, change, share, dtype, device):
    original = random(n, dtype).to(device)
    weights, prepared = original.clone(), pysel.prepare(original)
    for seed in range(3):
        at = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: max(1, int(share * n))].to(device)
        if change == "zeros":
            at = at[at > 0]
        weights[at] = CHANGES[change](original[at])
        assert prepared.update_(at, weights[at]) is prepared
        check(prepared, weights)


def test_the_largest_of_a_block_goes_and_an_equal_one_stays(device):
    weights = torch.ones(300, device=device)
    weights[[3, 70, 71]] = 8.0
    prepared = pysel.prepare(weights)
    for at in (70, 71, 3):
        weights[at] = 0.5
        check(prepared.update_(torch.tensor([at], device=device), weights[at : at + 1]), weights)


def test_of_an_index_listed_twice_the_last_weight_stands(device):
    weights = random(200).to(device)
    prepared = pysel.prepare(weights)
    at = torch.tensor([5, 150, 5, 5, 150], device=device)
    prepared.update_(at, torch.tensor([900.0, 2.0, 0.0, 0.25, 3.0], device=device))
    weights[5], weights[150] = 0.25, 3.0
    check(prepared, weights)


def test_the_reference_changes_weights_as_the_kernel_does(dtype):
    at = torch.tensor([5, 150, 5, 5, 199, 150])
    changed = torch.tensor([900.0, 2.0, 0.0, 0.25, 7.0, 3.0], dtype=dtype)
    native, other = pysel.prepare(random(200, dtype)), pysel.prepare(random(200, dtype))
    native.update_(at, changed)
    reference.OPS["update_prepared_"](*other.tables, at, changed)
    for one, two in zip(native.tables, other.tables, strict=True):
        assert_same_bits(one, two)


def test_many_small_changes_do_not_add_up_to_an_error():
    weights = random(3000)
    prepared = pysel.prepare(weights)
    generator = torch.Generator().manual_seed(1)
    for _ in range(500):
        at = torch.randint(3000, (16,), generator=generator).unique()
        weights[at] = torch.rand(len(at), generator=generator) ** 8
        prepared.update_(at, weights[at])
    check(prepared, weights)


def test_wide_ranges_and_zeros_are_drawn_as_they_should(device):
    weights = torch.zeros(1000, dtype=torch.float64, device=device)
    weights[[7, 500]] = torch.tensor([1e300, 1e-300], dtype=torch.float64, device=device)
    check(pysel.prepare(weights), weights)
    drawn = pysel.weighted_sample(pysel.prepare(weights), 1000, replacement=True, key=0)
    assert drawn.unique().tolist() == [7]


def test_a_longer_run_begins_with_the_shorter_one():
    prepared = pysel.prepare(random(1000))
    long = pysel.weighted_sample(prepared, 2000, replacement=True, key=1)
    assert torch.equal(long[:300], pysel.weighted_sample(prepared, 300, replacement=True, key=1))
    assert torch.equal(long[300:], pysel.weighted_sample(prepared, 1700, replacement=True, key=1, start=300))
    assert pysel.weighted_sample(prepared, 0, replacement=True).shape == (0,)


def test_same_bits_for_any_number_of_threads_and_with_subnormals_flushed(threads):
    weights = random(300_000) * 2.0**-140
    at = torch.arange(0, 300_000, 7)
    changed = weights[at] * 8
    found = []
    for count in (1, 2, 3):
        threads(count)
        torch.set_flush_denormal(count == 2)
        try:
            prepared = pysel.prepare(weights).update_(at, changed)
            found.append((*prepared.tables, pysel.weighted_sample(prepared, 5000, replacement=True, key=0)))
        finally:
            torch.set_flush_denormal(False)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert_same_bits(one, two)


def test_probabilities_are_those_of_the_draws(dtype, device):
    weights = random(700, dtype).to(device)
    weights[3] = 0
    prepared = pysel.prepare(weights)
    total = sum(Fraction(w) for w in weights.tolist())
    at = torch.tensor([[0, 3], [699, 0]], device=device)
    wanted = [[float(Fraction(w) / total) for w in row] for row in weights[at].tolist()]
    got = prepared.probabilities(at)
    torch.testing.assert_close(got.cpu(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)
    assert prepared.probabilities(at[:0]).shape == (0, 2)


def test_without_replacement_the_weights_themselves_are_raced():
    weights = random(500)
    prepared = pysel.prepare(weights)
    assert torch.equal(pysel.weighted_sample(prepared, 40, key=0), pysel.weighted_sample(weights, 40, key=0))
    groups, quotas = torch.arange(500) % 2, torch.tensor([3, 4])
    given = {"groups": groups, "quotas": quotas, "key": 0}
    assert torch.equal(pysel.weighted_sample(prepared, 7, **given), pysel.weighted_sample(weights, 7, **given))
    out = torch.empty(40, dtype=torch.int64)
    pysel.weighted_sample(prepared, 40, replacement=True, key=0, out=out)
    assert torch.equal(out, pysel.weighted_sample(weights, 40, replacement=True, key=0))


def test_nothing_is_shared_with_the_caller():
    weights = random(100)
    before = weights.clone()
    prepared = pysel.prepare(weights)
    prepared.update_(torch.tensor([0]), torch.tensor([5.0]))
    assert torch.equal(weights, before)
    prepared.weights.zero_()
    prepared.state_dict()["weights"].zero_()
    weights.zero_()
    before[0] = 5.0
    check(prepared, before)


def test_state_copies_and_pickles(device):
    weights = random(300).to(device)
    prepared = pysel.prepare(random(300, seed=1).to(device))
    prepared.load_state_dict(pysel.prepare(weights).state_dict())
    check(prepared, weights)
    for other in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        other.update_(torch.tensor([1], device=device), torch.tensor([2.0], device=device))
        check(prepared, weights)
    assert len(prepared) == 300 and prepared.device == weights.device
    assert repr(prepared) == "PreparedWeights(300 weights, torch.float32)"


def test_inference_mode_and_gradients_do_not_matter():
    weights = random(100).requires_grad_()
    with torch.inference_mode():
        prepared = pysel.prepare(weights)
    prepared.update_(torch.tensor([2]), weights[:1])
    expected = weights.detach().clone()
    expected[2] = expected[0]
    check(prepared, expected)


REFUSED = [
    (lambda: pysel.prepare([1.0]), TypeError, "prepare: weights must be a Tensor, got list"),
    (lambda: pysel.prepare(torch.ones(3).long()), TypeError, "prepare: weights must be float32"),
    (
        lambda: pysel.prepare(torch.ones(2, 3)),
        ValueError,
        r"prepare: weights must have shape \[n\] with n > 0, got \[2",
    ),
    (lambda: pysel.prepare(torch.ones(0)), ValueError, r"prepare: weights must have shape \[n\] with n > 0, got \[0\]"),
    (lambda: pysel.prepare(torch.tensor([1.0, -1.0])), ValueError, "prepare: weights must be finite and at least 0"),
    (lambda: pysel.prepare(torch.tensor([1.0, torch.inf])), ValueError, "prepare: weights must be finite"),
    (lambda: pysel.prepare(torch.tensor([1.0, torch.nan])), ValueError, "prepare: weights must be finite"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_bad_weights_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


ODD = [
    ([1], [1.0], TypeError, "update_: index must be a Tensor"),
    (torch.tensor([1], dtype=torch.int32), torch.ones(1), TypeError, "update_: index must be int64"),
    (torch.tensor([1]), torch.ones(1).double(), TypeError, "update_: weight must be float32"),
    (
        torch.tensor([0, 1]),
        torch.ones(1),
        ValueError,
        r"update_: weight must have the shape of index, \[2\], got \[1\]",
    ),
    (torch.tensor(1), torch.tensor(1.0), ValueError, r"update_: index must have shape \[m\], got \[\]"),
    (torch.tensor([0, 10]), torch.ones(2), IndexError, "update_: index must be between 0 and 9, got 10"),
    (torch.tensor([0, -1]), torch.ones(2), IndexError, "update_: index must be between 0 and 9, got -1"),
    (torch.tensor([0, 1]), torch.tensor([2.0, -2.0]), ValueError, "update_: weight must be finite and at least 0"),
    (torch.tensor([0, 1]), torch.tensor([2.0, torch.nan]), ValueError, "update_: weight must be finite"),
]


@pytest.mark.parametrize("reference_too", [False, True])
@pytest.mark.parametrize(("index", "weight", "error", "message"), ODD, ids=[message for *_, message in ODD])
def test_a_refused_change_changes_nothing(index, weight, error, message, reference_too, monkeypatch):
    prepared = pysel.prepare(random(10))
    before = [table.clone() for table in prepared.tables]
    with pytest.raises(error, match=message):
        if reference_too and isinstance(index, torch.Tensor) and error is not TypeError:
            reference.OPS["update_prepared_"](*prepared.tables, index, weight)
        else:
            prepared.update_(index, weight)
    for table, old in zip(prepared.tables, before, strict=True):
        assert_same_bits(table, old)


def test_what_cannot_be_drawn_is_refused():
    prepared = pysel.prepare(torch.zeros(10))
    with pytest.raises(ValueError, match="weighted_sample: weights must have at least one above 0"):
        pysel.weighted_sample(prepared, 1, replacement=True)
    with pytest.raises(ValueError, match="probabilities: weights must have at least one above 0"):
        prepared.probabilities(torch.tensor([0]))
    prepared.update_(torch.tensor([4]), torch.tensor([1e-30]))
    assert pysel.weighted_sample(prepared, 3, replacement=True).tolist() == [4, 4, 4]
    for given, error, message in (
        ({"log_weights": True}, ValueError, "log_weights must be False with prepared weights, got True"),
        ({"k": -1}, IndexError, "k must be at least 0, got -1"),
        ({"order": "any"}, ValueError, "order must be draw, index or shuffled"),
        ({"start": -1}, ValueError, "start must be at least 0, got -1"),
        ({"groups": torch.zeros(10).long()}, ValueError, "quotas must be given with groups, got None"),
    ):
        with pytest.raises(error, match=f"weighted_sample: {message}"):
            pysel.weighted_sample(prepared, **{"k": 1, "replacement": True, **given})
    for at, error in ((10, IndexError), (-1, IndexError)):
        with pytest.raises(error, match=f"probabilities: index must be between 0 and 9, got {at}"):
            prepared.probabilities(torch.tensor([at]))
    with pytest.raises(ValueError, match=r"load_state_dict: weights must have shape \[10\], got \[9\]"):
        prepared.load_state_dict({"weights": torch.ones(9)})
    with pytest.raises(ValueError, match="prepare: weights must be finite"):
        prepared.load_state_dict({"weights": torch.full((10,), torch.nan)})
    assert pysel.weighted_sample(prepared, 1, replacement=True).tolist() == [4]


def test_opcheck(key):
    weights, sums, largest = pysel.prepare(random(200)).tables
    at, changed = torch.tensor([3, 9]), torch.tensor([1.0, 0.5])
    torch.library.opcheck(torch.ops.pysel.prepare.default, (weights,))
    torch.library.opcheck(torch.ops.pysel.update_prepared_.default, (weights, sums, largest, at, changed))
    torch.library.opcheck(torch.ops.pysel.sample_prepared.default, (weights, sums, largest, 5, "draw", key, 0))
