"""Write the golden vectors from the reference: python -m tests.golden.write"""

import json

import torch

from pysel import reference
from tests.golden import HERE, INPUTS, SELECTIONS
from tests.op_samples import RAW
from tests.tensors import bits

KEYS = [(0, 0), (7, 0), (-1, -1), (20_240_601, 2**32 - 2), (-(2**63), 2**63 - 1)]
EDGES = [0, 1, 2, 2**20, 2**31, 2**32, 2**51, 2**52, 2**53, 2**62, 2**63, 2**64 - 2**52, 2**64]
OPS = [
    ("gumbel_argmax", "logits", (40, 23), {}),
    ("gumbel_argmax", "logits", (40, 23), {"dim": 0, "start": 9}),
    ("gumbel_argmax", "logits", (3000,), {}),
    ("gumbel_softmax", "logits", (3, 7), {"tau": 0.5}),
    ("gumbel_softmax", "logits", (3, 7), {"tau": 0.5, "dim": 0, "start": 2}),
    ("gumbel_softmax", "logits", (3, 7), {"hard": True}),
    ("gumbel_softmax", "logits", (3, 7), {}),
    ("gumbel_softmax", "logits", (3, 7), {"dim": 0, "start": 2}),
    ("gumbel_sigmoid", "logits", (20,), {"tau": 0.5}),
    ("gumbel_sigmoid", "logits", (20,), {"hard": True, "start": 3}),
    *(
        ("weighted_sample", "weights", shape, {"k": k, "replacement": replacement, "order": order})
        for shape, k in (((500,), 60), ((3, 100), 20))
        for replacement in (False, True)
        for order in ("draw", "index", "shuffled")
    ),
    ("weighted_sample", "logits", (500,), {"k": 60, "log_weights": True, "start": 5}),
    ("weighted_sample", "logits", (500,), {"k": 60, "log_weights": True, "replacement": True, "start": 5}),
]


def write(name, rows):
    lines = ",\n".join(json.dumps(row) for row in rows)
    (HERE / f"{name}.json").write_text(f"[\n{lines}\n]\n")


def hexadecimal(x):
    """Bit patterns of floats; integers as they are."""
    if not x.is_floating_point():
        return x.flatten().tolist()
    return [f"{i % 2 ** (8 * x.element_size()):x}" for i in bits(x).flatten().tolist()]


def words():
    for key in KEYS:
        k = torch.tensor(key)
        for stream in range(6):
            for start in (0, 5):
                yield {
                    "key": key,
                    "stream": stream,
                    "start": start,
                    "words": reference.random_words(k, stream, start, 10).tolist(),
                }


def children():
    for key in KEYS:
        k = torch.tensor(key)
        yield {
            "key": key,
            "split": reference.split(k, 3).tolist(),
            "fold_in_a_million": reference.fold_in(k, 10**6).tolist(),
        }


def permutations():
    for key in KEYS:
        for n, start in ((1, 0), (20, 0), (1024, 500), (1025, 0), (1_000_003, 999_990), (2**63 - 1, 2**62)):
            stop = min(start + 13, n)
            result = reference.OPS["permutation"](n, torch.tensor(key), start, stop).tolist()
            yield {"key": key, "n": n, "start": start, "stop": stop, "result": result}


def noise():
    edges = sorted({m + d for m in EDGES for d in (-1, 0, 1) if 0 <= m + d < 2**64})
    random = [m % 2**64 for m in reference.random.words64(torch.tensor([7, 0]), 0, torch.arange(40)).tolist()]
    for m in edges + random:
        word = torch.tensor([m - 2**64 if m >= 2**63 else m])
        row = {"M": f"{m:016x}"}
        for kind in ("exponential", "gumbel", "logistic"):
            row[kind] = [hexadecimal(reference.noise(word, kind, double))[0] for double in (False, True)]
        yield row


def ops():
    for op, source, shape, arguments in OPS:
        for dtype in ("float32", "float64"):
            key = torch.tensor(KEYS[3])
            x = INPUTS[source](shape).to(getattr(torch, dtype))
            out = reference.OPS[op](*RAW[op](x, key=key, **arguments))
            call = {"op": op, "input": source, "shape": shape, "dtype": dtype, "key": KEYS[3], "arguments": arguments}
            yield call | {"result": hexadecimal(out)}


def selections():
    """By group and by key: scores of few values, so that ties decide."""
    for name, arguments in SELECTIONS.items():
        result = reference.OPS[name.split()[0]](*arguments())
        yield {"name": name, "result": result.tolist()}


if __name__ == "__main__":
    for make in (words, children, permutations, noise, ops, selections):
        write(make.__name__, make())
