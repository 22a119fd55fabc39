"""What the documentation shows: every example runs, every public name is documented, signatures are as promised."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import pysel

MODULES = sorted(
    m.name for m in pkgutil.walk_packages(pysel.__path__, "pysel.") if not m.name.rpartition(".")[2].startswith("_")
)
PUBLIC = [name for name in pysel.__all__ if callable(getattr(pysel, name))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    names = {"torch": torch, "pysel": pysel, "nn": torch.nn, **vars(module)}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    finder = doctest.DocTestFinder(recurse=True)
    with torch.random.fork_rng():
        for example in finder.find(module, name, globs=names):
            torch.manual_seed(0)
            runner.run(example)
    assert runner.failures == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented_with_an_example(name):
    doc = inspect.getdoc(getattr(pysel, name)) or ""
    if name == "build_info":
        assert "built" in doc
        return
    assert "Example:" in doc
    assert ">>>" in doc


SIGNATURES = {
    "key": "(seed=None, *, generator=None, device=None)",
    "split": "(key, n)",
    "fold_in": "(key, data)",
    "check": "()",
    "permutation": "(n, *, key, start=0, stop=None)",
    "gumbel_softmax": "(logits, tau=1.0, hard=False, *, dim=-1, key=None, generator=None, start=0",
    "gumbel_sigmoid": "(logits, tau=1.0, hard=False, *, key=None, generator=None, start=0",
    "gumbel_argmax": "(logits, *, dim=-1, key=None, generator=None, start=0",
    "topk": "(x, k)",
    "topk_encode": "(x, weight, bias=None, k=32, *, activation='relu')",
    "sparse_decode": "(values, indices, weight, bias=None",
    "factor_counts": "(values, indices, num_factors, *, groups=None, num_groups=None)",
    "factor_scores": "(values, indices, tables, *, reduce='sum', weighted=False)",
    "usage_update_": "(counts, selected, decay=1.0)",
    "usage_penalty": "(scores, counts, gamma, form='log', step=1",
    "usage_step_": "(counts, selected, scores, gamma, decay=1.0, form='log', step=1",
    "weighted_sample": "(weights, k, replacement=False, *, log_weights=False, order='draw', groups=None, quotas=None, "
    "key=None, generator=None, start=0",
    "select": "(scores, k, largest=True, *, groups=None, quotas=None, key=None",
    "usage_select_": "(counts, first, second, mix, k, gamma, form='log', step=1, *, groups=None, quotas=None, key=None",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_those_promised(name):
    signature = inspect.signature(getattr(pysel, name))
    bare = signature.replace(
        parameters=[p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()],
        return_annotation=inspect.Signature.empty,
    )
    assert str(bare).startswith(SIGNATURES[name])


def test_readme_lists_every_op():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    named = set(re.findall(r"`(\w+)(?:\(|`)", readme))
    assert set(pysel.ops.__all__) <= named
