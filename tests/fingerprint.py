"""Hashes of what the ops give on this machine, for comparison between CPU variants and thread counts.

`python -m tests.fingerprint` prints them as JSON, under the variant that PYSEL_CPU_VARIANT names.
"""

import hashlib
import json

import torch

import pysel
from tests.op_samples import OpSample
from tests.tensors import DTYPES, bits, name

KEY = (-3, 2**32 - 3000)  # the block counter's low word overflows on the way

# One row for all threads, rows shared among threads, and rows that are not contiguous.
SHAPES = [(70_001,), (20, 2_049), (2_049, 40)]


def _samples():
    for shape in SHAPES:
        dims = {"dim": 0 if shape == SHAPES[-1] else -1}
        for hard in (False, True):
            yield OpSample("gumbel_softmax", shape, {"tau": 0.3, "hard": hard, "start": 1, **dims})
        yield OpSample("gumbel_softmax", shape, {"start": 1, **dims})
        yield OpSample("gumbel_argmax", shape, {"start": 2, **dims})
        yield OpSample("gumbel_sigmoid", shape, {"tau": 0.3, "start": 3})
        yield OpSample("weighted_sample", shape, {"k": 30, "order": "draw", "start": 1})
        yield OpSample("weighted_sample", shape, {"k": shape[-1] // 2, "order": "draw", "start": 1})
        yield OpSample("weighted_sample", shape, {"k": 30, "log_weights": True, "order": "shuffled"})
        draws = 40_000 // shape[0] if len(shape) > 1 else 40_000
        yield OpSample("weighted_sample", shape, {"k": draws, "replacement": True})
        yield OpSample("weighted_sample", shape, {"k": draws, "replacement": True, "log_weights": True})


SAMPLES = list(_samples())


def outputs(sample, dtype):
    """What a call gives: result and, for ops that have one, the gradient."""
    key = torch.tensor(KEY)
    x = sample.input(dtype)
    if not sample.differentiable:
        return [sample.call(x, key)]
    y = sample.call(x.requires_grad_(), key)
    weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(dtype)
    (gradient,) = torch.autograd.grad(y, x, weight)
    return [y.detach(), gradient]


def fingerprint():
    """{sample and dtype: hash}."""
    result = {}
    for sample in SAMPLES:
        for dtype in DTYPES:
            digest = hashlib.sha256()
            for out in outputs(sample, dtype):
                digest.update((bits(out) if out.is_floating_point() else out).numpy().tobytes())
            result[f"{sample} {name(dtype)}"] = digest.hexdigest()
    for n, start in ((1000, 3), (1025, 3), (70_001, 0), (2**40 + 9, 2**39), (2**63 - 1, 2**62)):
        elements = pysel.permutation(n, key=torch.tensor(KEY), start=start, stop=min(n, start + 70_001))
        result[f"permutation {n}"] = hashlib.sha256(elements.numpy().tobytes()).hexdigest()
    result.update(selections())
    return result


def selections():
    """Hashes of what is selected by group and by key: from few groups, from many, and with many ties."""
    n, key, g = 150_001, torch.tensor(KEY), torch.Generator().manual_seed(0)
    result = {}
    for scores_name, scores in (
        ("distinct", torch.randn(n, generator=g)),
        ("ties", torch.randint(9, (n,), generator=g) / 8),
        ("double", torch.randn(n, generator=g, dtype=torch.float64)),
    ):
        found = {"select": pysel.select(scores, n // 3, key=key)}
        for count in (5, 300, 20_000):
            groups = torch.randint(count, (n,), generator=g)
            quotas = torch.bincount(groups, minlength=count) // 3
            of = {"groups": groups, "quotas": quotas, "key": key}
            k = int(quotas.sum())
            found[f"select {count}"] = pysel.select(scores, k, **of)
            found[f"draw {count}"] = pysel.weighted_sample(scores, k, log_weights=True, **of)
            counts = torch.randint(5, (n,), generator=g).to(scores.dtype)
            found[f"epoch {count}"] = pysel.usage_select_(counts, scores, scores.flip(0), 0.3, k, 0.2, **of)
            found[f"counts {count}"] = counts.long()
        for call, indices in found.items():
            result[f"{call}, {scores_name}"] = hashlib.sha256(indices.numpy().tobytes()).hexdigest()
    return result


if __name__ == "__main__":
    print(json.dumps({"variant": pysel.build_info()["cpu_variant"], "hashes": fingerprint()}))
