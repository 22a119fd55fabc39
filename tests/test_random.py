"""The random stream and keys."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import pysel
from pysel import reference
from tests import golden
from tests.statistics import accept, chi_square, independence, kolmogorov_smirnov, reject, scipy_stats
from tests.tensors import opcheck

random_words = torch.ops.pysel.random_words
STREAMS = range(6)
KEYS = [(0, 0), (7, 0), (-1, -1), (3, 2**32 - 2), (-(2**63), 2**63 - 1), (2**63 - 1, -3), (5, -(2**63))]
both = pytest.mark.parametrize("words", [random_words, reference.random_words], ids=["native", "reference"])


# --- Philox ---

# counter, key -> result, from tests/kat_vectors of Random123 (github.com/DEShawResearch/random123), philox4x32 10
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox(counter, key):
    """Philox4x32-10 in Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 % 2**32, p0 >> 32 ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_philox_gives_the_published_known_answers(counter, key, result):
    assert philox(counter, key) == result
    seed = key[1] << 32 | key[0]
    seed = torch.tensor(seed - 2**64 if seed >= 2**63 else seed)
    got = reference.random.philox(tuple(torch.tensor([c]) for c in counter), seed)
    assert tuple(int(word) for word in got) == result


def test_first_block_of_key_zero_is_the_published_answer():
    # of the published counters only this one has a third word that is a stream and a fourth that is 0
    assert random_words(torch.tensor([0, 0]), 0, 0, 4).tolist() == list(KNOWN_ANSWERS[0][2])


@both
@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("stream", STREAMS)
def test_element_i_is_word_i_mod_4_of_block_offset_plus_i_div_4(words, key, stream):
    seed, offset = (part % 2**64 for part in key)
    for start in (0, 3, 10, 2**34 + 1, 2**63 - 20):
        wanted = []
        for i in range(start, start + 13):
            counter = (offset + i // 4) % 2**64
            block = (counter % 2**32, counter >> 32, stream, 0)
            wanted.append(philox(block, (seed % 2**32, seed >> 32))[i % 4])
        assert words(torch.tensor(key), stream, start, 13).tolist() == wanted


@both
def test_words_do_not_depend_on_where_a_range_is_cut(words, key):
    whole = words(key, 1, 0, 100_003)
    cut = [words(key, 1, start, min(33_337, 100_003 - start)) for start in range(0, 100_003, 33_337)]
    assert torch.equal(torch.cat(cut), whole)
    assert words(key, 1, 5, 0).tolist() == []


def test_native_words_are_the_reference_over_many_chunks(key):
    n = 1 << 16
    for stream in STREAMS:
        whole = random_words(key, stream, 3, 4 * n)
        for part in range(4):
            assert torch.equal(whole[part * n :][:n], reference.random_words(key, stream, 3 + part * n, n))


@pytest.mark.slow
def test_sixteen_million_words_are_the_reference(key):
    n = 1 << 16
    whole = random_words(key, 0, 0, 256 * n)
    for part in range(256):
        assert torch.equal(whole[part * n :][:n], reference.random_words(key, 0, part * n, n))


@both
def test_golden_words(words):
    for row in golden.load("words"):
        assert words(torch.tensor(row["key"]), row["stream"], row["start"], 10).tolist() == row["words"]


@both
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 4), "stream must be between 0 and 5, got -1"),
        ((6, 0, 4), "stream must be between 0 and 5, got 6"),
        ((0, -1, 4), "start must be at least 0, got -1"),
        ((0, 0, -4), "n must be at least 0, got -4"),
    ],
)
def test_bad_range_of_words_is_refused(words, arguments, message, key):
    with pytest.raises(ValueError, match=f"random_words: {message}"):
        words(key, *arguments)


# --- words are uniform and independent ---


def check_words(words):
    """p-values of words of 32 bits: their distribution, every byte's, and independence of neighbours."""
    w = words.numpy().astype(np.uint64)
    p = {"uniform": kolmogorov_smirnov((w + 0.5) / 2**32, scipy_stats().uniform.cdf)}
    for byte in range(4):
        values = (w >> np.uint64(8 * byte)) & np.uint64(255)
        p[f"byte {byte}"] = chi_square(np.bincount(values.astype(int), minlength=256), np.full(256, 1 / 256))
    for lag in (1, 2, 3, 4, 8):
        p[f"lag {lag}"] = check_pair(words[:-lag], words[lag:])["independent"]
    return p


def check_pair(a, b):
    """p-value of the independence of two sequences, by their four highest bits."""
    pairs = ((a >> 28) * 16 + (b >> 28)).numpy()
    return {"independent": independence(np.bincount(pairs, minlength=256).reshape(16, 16))}


N_WORDS = 400_000


@pytest.mark.parametrize("stream", STREAMS)
def test_words_are_uniform_and_independent(stream, key):
    accept(check_words(random_words(key, stream, 0, N_WORDS)))


def test_words_of_wrong_generators_are_seen(key):
    good = random_words(key, 0, 0, N_WORDS)
    low_bits_short = good & ~1  # one bit of 32 always zero
    reject(check_words(low_bits_short))
    a_little_biased = torch.where(torch.arange(N_WORDS) % 100 == 0, good & 0x7FFFFFFF, good)
    reject(check_words(a_little_biased))
    repeated_blocks = good.view(-1, 4).repeat_interleave(2, dim=0).flatten()[:N_WORDS]
    reject(check_words(repeated_blocks))


def test_streams_children_and_seeds_are_independent(key):
    sequences = [random_words(key, stream, 0, N_WORDS) for stream in STREAMS]
    sequences += [random_words(child, 0, 0, N_WORDS) for child in pysel.split(key, 3)]
    sequences += [random_words(pysel.fold_in(pysel.fold_in(key, 0), i), 0, 0, N_WORDS) for i in (0, 1)]
    sequences += [random_words(torch.tensor([seed, 0]), 0, 0, N_WORDS) for seed in (0, 1, 2**32, 2**63 - 1)]
    p = {}
    for i, a in enumerate(sequences):
        for j, b in enumerate(sequences[:i]):
            p[f"{j} and {i}"] = check_pair(a, b)["independent"]
    accept(p)
    shared_sometimes = torch.where(torch.arange(N_WORDS) % 50 == 0, sequences[0], sequences[1])
    reject(check_pair(sequences[0], shared_sometimes))


def test_drawn_keys_are_uniform_in_all_128_bits():
    torch.manual_seed(0)

    def check(keys):
        ones = ((keys.unsqueeze(-1) >> torch.arange(64)) & 1).sum(0).flatten().tolist()
        return {str(bit): chi_square([n, len(keys) - n], [0.5, 0.5]) for bit, n in enumerate(ones)}

    keys = torch.stack([pysel.key() for _ in range(4000)])
    accept(check(keys))
    reject(check(keys & (2**63 - 1)))


# --- keys ---


@pytest.mark.parametrize(
    ("seed", "word"),
    [(0, 0), (7, 7), (-1, -1), (2**63 - 1, 2**63 - 1), (2**63, -(2**63)), (2**64 - 1, -1), (2**64 + 5, 5)],
)
def test_seed_is_taken_modulo_two_to_the_64(seed, word):
    key = pysel.key(seed)
    assert key.dtype == torch.int64
    assert key.tolist() == [word, 0]


def test_key_is_on_the_device_asked_for(device):
    assert pysel.key(1, device=device).device.type == device
    assert pysel.key(device=device).device.type == device
    assert pysel.key(generator=torch.Generator(device)).device.type == device


def test_manual_seed_governs_keys():
    torch.manual_seed(1)
    first, second = pysel.key(), pysel.key()
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(pysel.key(), first)


def test_generator_governs_keys_and_the_global_one_stays():
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(1)
    first, second = pysel.key(generator=generator), pysel.key(generator=generator)
    assert not torch.equal(first, second)
    assert torch.equal(pysel.key(generator=torch.Generator().manual_seed(1)), first)
    assert torch.equal(torch.get_rng_state(), before)
    pysel.key(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_arguments_of_key_are_refused():
    with pytest.raises(ValueError, match="key: give seed or generator, not both"):
        pysel.key(1, generator=torch.Generator())
    for bad in (1.0, True, "1", torch.tensor([1])):
        with pytest.raises(TypeError, match=f"key: seed must be an int, got {type(bad).__name__}"):
            pysel.key(bad)
    for bad in (5, "cpu"):
        with pytest.raises(TypeError, match=f"key: generator must be a torch.Generator, got {type(bad).__name__}"):
            pysel.key(generator=bad)


def test_keys_survive_pickling(key):
    assert torch.equal(pickle.loads(pickle.dumps(key)), key)
    assert pickle.loads(pickle.dumps(pysel.weighted_sample)) is pysel.weighted_sample


# --- split and fold_in ---

SPLITTERS = [(pysel.split, pysel.fold_in), (reference.split, reference.fold_in)]
both_splitters = pytest.mark.parametrize(("split", "fold_in"), SPLITTERS, ids=["native", "reference"])


@both_splitters
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_children_are_blocks_of_stream_4(split, fold_in, key):
    seed, offset = (part % 2**64 for part in key)
    key = torch.tensor(key)
    children = split(key, 5)
    assert children.dtype == torch.int64
    assert children.shape == (5, 2)
    for i, child in enumerate(children.tolist()):
        counter = (offset + i) % 2**64
        w = philox((counter % 2**32, counter >> 32, 4, 0), (seed % 2**32, seed >> 32))
        assert [part % 2**64 for part in child] == [w[0] << 32 | w[1], w[2] << 32 | w[3]]
    assert torch.equal(torch.stack([fold_in(key, i) for i in range(5)]), children)
    assert split(key, 0).shape == (0, 2)


@both_splitters
def test_golden_children(split, fold_in):
    for row in golden.load("children"):
        key = torch.tensor(row["key"])
        assert split(key, 3).tolist() == row["split"]
        assert fold_in(key, 10**6).tolist() == row["fold_in_a_million"]


@both_splitters
def test_children_of_uint64_and_strided_keys_are_the_same(split, fold_in):
    key = torch.tensor([-5, -7])
    for same in (key.view(torch.uint64), torch.tensor([[-5, 0], [-7, 0]])[:, 0]):
        assert torch.equal(split(same, 3), split(key, 3))
        assert torch.equal(fold_in(same, 2**62), fold_in(key, 2**62))


def test_children_are_all_different(key):
    children = pysel.split(key, 50_000)
    assert len(torch.unique(children[:, 0])) == len(torch.unique(children[:, 1])) == 50_000


@both_splitters
def test_negative_children_are_refused(split, fold_in, key):
    with pytest.raises(ValueError, match="split: n must be at least 0, got -1"):
        split(key, -1)
    with pytest.raises(ValueError, match="fold_in: data must be at least 0, got -1"):
        fold_in(key, -1)


@pytest.mark.parametrize("derive", [pysel.split, pysel.fold_in], ids=["split", "fold_in"])
def test_bad_arguments_of_split_and_fold_in_are_refused(derive, key):
    argument = "n" if derive is pysel.split else "data"
    for bad in (1.0, True, "1", None):
        with pytest.raises(TypeError, match=f"{derive.__name__}: {argument} must be an int"):
            derive(key, bad)
    with pytest.raises(ValueError, match=f"{derive.__name__}: {argument} must fit into 64 bits, got {2**64}"):
        derive(key, 2**64)
    for bad in (None, "7", True, 7.0):
        with pytest.raises(TypeError, match=f"{derive.__name__}: key must be a Tensor or an int, got"):
            derive(bad, 1)
    assert torch.equal(derive(7, 1), derive(pysel.key(7), 1))
    with pytest.raises(TypeError, match=f"{derive.__name__}: key must be int64 or uint64, got torch.int32"):
        derive(key.int(), 1)
    with pytest.raises(ValueError, match=rf"{derive.__name__}: key must have shape \[2\], got \[1, 2\]"):
        derive(key.unsqueeze(0), 1)


def test_vmap_over_keys_equals_a_loop(key, no_vmap_fallback):
    keys = pysel.split(key, 4)
    assert torch.equal(torch.vmap(lambda k: pysel.split(k, 3))(keys), torch.stack([pysel.split(k, 3) for k in keys]))
    folded = torch.stack([pysel.fold_in(k, 9) for k in keys])
    assert torch.equal(torch.vmap(lambda k: pysel.fold_in(k, 9))(keys), folded)


def test_keys_derive_inside_a_compiled_graph(key):
    torch._dynamo.reset()

    @torch.compile(fullgraph=True)
    def derived(key, x):
        first, second = pysel.split(key, 2)
        return pysel.gumbel_argmax(x, key=first), pysel.gumbel_argmax(x, key=pysel.fold_in(second, 3))

    x = torch.zeros(50, 3)
    first, second = pysel.split(key, 2)
    a, b = derived(key, x)
    assert torch.equal(a, pysel.gumbel_argmax(x, key=first))
    assert torch.equal(b, pysel.gumbel_argmax(x, key=pysel.fold_in(second, 3)))


# --- the raw ops ---


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        (torch.ops.pysel.random_words, (1, 3, 11)),
        (torch.ops.pysel.split, (3,)),
        (torch.ops.pysel.fold_in, (3,)),
    ],
    ids=["random_words", "split", "fold_in"],
)
def test_opcheck(op, arguments, key):
    opcheck(op.default, (key, *arguments))


# --- worker processes ---


class Samples(Dataset):
    """Item i is what the ops give under the key folded with i."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        key = pysel.fold_in(pysel.key(11), i)
        x = torch.linspace(-3, 3, 50_000)
        return {
            "argmax": pysel.gumbel_argmax(x, key=key),
            "soft": pysel.gumbel_softmax(x, key=key)[::1000],
            "gates": pysel.gumbel_sigmoid(x, key=key)[::1000],
            "sample": pysel.weighted_sample(x.exp(), 20, key=key),
            "again": pysel.weighted_sample(x, 20, True, log_weights=True, key=key),
        }


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_worker_processes_draw_the_same(start_method):
    data = Samples()
    pysel.gumbel_softmax(torch.zeros(100_000))  # the parent's threads are running when it forks
    loader = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context=start_method, timeout=120)
    for i, got in enumerate(loader):
        for name, value in data[i].items():
            assert torch.equal(got[name], value), name


@pytest.mark.parametrize("stream", range(6))
def test_words_by_number_are_those_of_the_stream(stream, key):
    items = torch.tensor([[5, 0, 2**40], [5, 7, 2**62 - 1]])
    got = torch.ops.pysel.words64(key, stream, items)
    assert torch.equal(got, reference.OPS["words64"](key, stream, items))
    pairs = torch.ops.pysel.random_words(key, stream, 2 * 5, 6).view(3, 2)
    assert got[0, 0] == got[1, 0] == pairs[0, 0] << 32 | pairs[0, 1]
    assert got[1, 1] == pairs[2, 0] << 32 | pairs[2, 1]
