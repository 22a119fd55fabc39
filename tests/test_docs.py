"""What the documentation shows: every example runs, every public name is documented, signatures are as promised."""

import ast
import contextlib
import doctest
import importlib
import inspect
import operator
import pkgutil
import re
import types
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


REFERENCE = Path(__file__).parent.parent / "docs" / "reference"


def test_the_reference_lists_every_op_in_a_table():
    named = set(re.findall(r"`(\w+)(?:\(|`)", (REFERENCE / "ops.md").read_text()))
    assert set(pysel.ops.__all__) <= named


def referred():
    """Everything that the reference's pages have the docstring of."""
    for page in REFERENCE.glob("*.md"):
        scope = None
        for directive, name in re.findall(r"^\.\. (\w+):: ([\w.]+)$", page.read_text(), re.MULTILINE):
            if directive in ("currentmodule", "automodule"):
                scope = importlib.import_module(name)
                yield from vars(scope).values() if directive == "automodule" and scope.__name__ in WHOLE else ()
            else:
                yield operator.attrgetter(name.removeprefix("pysel."))(pysel if name.startswith("pysel.") else scope)


WHOLE = ("pysel.selection.features", "pysel.selection.schedule")  # of these all functions are shown


@pytest.mark.parametrize("name", ["pysel", *MODULES])
def test_public_names_are_in_the_reference(name):
    module = importlib.import_module(name)
    there = {id(one) for one in referred()}
    public = {one: getattr(module, one) for one in getattr(module, "__all__", ())}
    assert [
        one for one, value in public.items() if not isinstance(value, types.ModuleType) and id(value) not in there
    ] == []


def docstrings(module):
    """Every docstring of a module's source, and the class that it is in or of."""

    def walk(node, scope):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            scope = getattr(scope, node.name) if isinstance(node, ast.ClassDef) else scope
            if text := ast.get_docstring(node):
                yield scope, text
        if not isinstance(node, ast.FunctionDef):
            for child in ast.iter_child_nodes(node):
                yield from walk(child, scope)

    return walk(ast.parse(inspect.getsource(module)), module)


def found(name, *scopes):
    """Whether one of them has that name, which may be dotted."""
    for scope in scopes:
        with contextlib.suppress(AttributeError):
            operator.attrgetter(name)(scope)
            return True
    return False


ALL_MODULES = ["pysel", *(m.name for m in pkgutil.walk_packages(pysel.__path__, "pysel."))]


@pytest.mark.parametrize("name", ALL_MODULES)
def test_names_that_docstrings_cite_exist(name):
    module = importlib.import_module(name)
    everywhere = types.SimpleNamespace(pysel=pysel, torch=torch)
    cited = [
        (cite, found(cite, scope, module, everywhere, pysel, pysel.selection))
        for scope, text in docstrings(module)
        for cite in re.findall(r"(?<!`)`([^`\n]+)`(?!`)|``(pysel\.[\w.]+)", text)
        for cite in filter(None, cite)
    ]
    assert [cite for cite, exists in cited if not exists] == []


def test_a_name_that_does_not_exist_is_found_out():
    everywhere = types.SimpleNamespace(pysel=pysel)
    assert found("pysel.selection.Selector", everywhere) and found("Selector.save", pysel, pysel.selection)
    assert not found("pysel.Selector", everywhere) and not found("Selector.keep", pysel, pysel.selection)
