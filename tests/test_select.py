"""select: from all of a long vector, and from each group of it."""

import numpy as np
import pytest
import torch

import pysel
from pysel import reference
from tests.tensors import assert_same_bits


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def order_words(n, key):
    """Unsigned words that decide between equal scores, from the stream of 32-bit halves."""
    halves = torch.ops.pysel.random_words(key, 2, 0, 2 * n).view(n, 2).numpy().astype(np.uint64)
    return halves[:, 0] << np.uint64(32) | halves[:, 1]


def oracle(scores, k, largest=True, *, groups=None, quotas=None, key=None):
    """A loop over groups, each sorted in numpy."""
    x = scores.double().numpy() if scores.is_floating_point() else scores.long().numpy()
    n = len(x)
    words = np.arange(n) if key is None else order_words(n, key)
    rank = np.unique(x, return_inverse=True)[1]
    ranked = np.lexsort((np.arange(n), words, -rank if largest else rank))
    if groups is None:
        return torch.from_numpy(np.sort(ranked[:k]))
    group_of_ranked = groups.numpy()[ranked]
    chosen = [ranked[group_of_ranked == g][:quota] for g, quota in enumerate(quotas.tolist())]
    return torch.from_numpy(np.sort(np.concatenate([*chosen, np.zeros(0, dtype=np.int64)])))


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


@pytest.mark.parametrize("key", [None, pysel.key(5), torch.tensor([-3, 2**40 + 1])], ids=["no key", "key", "offset"])
@pytest.mark.parametrize("scores", SCORES)
def test_reference_equals_a_loop(scores, key):
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
