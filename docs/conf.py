"""The site of these pages: `make docs`. It is built without a network, and every warning is an error."""

from __future__ import annotations

import builtins
import operator
import re
import sys
import types
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.nodes import make_refnode

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import pysel  # noqa: E402

project = "pysel"
author = copyright = "pysel contributors"
version = release = re.search(r'^version = "(.+)"', (HERE.parent / "pyproject.toml").read_text(), re.MULTILINE)[1]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["made"]
nitpicky = True

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

default_role = "py:obj"  # `name` in a docstring is a name
autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_preprocess_types = False

html_theme = "furo"
html_title = f"pysel {release}"
html_static_path = ["pysel.css"]
html_css_files = ["pysel.css"]
html_copy_source = html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#b3261e",
        "color-brand-content": "#b3261e",
        "color-sidebar-link-text--top-level": "var(--color-foreground-primary)",
    },
    "dark_css_variables": {
        "color-brand-primary": "#ff8a80",
        "color-brand-content": "#ff8a80",
        "color-sidebar-link-text--top-level": "var(--color-foreground-primary)",
    },
}

# Napoleon reads "63 bits of a hash: ..." above a property as a type and what it is for. Here it is a sentence.
GoogleDocstring._parse_attribute_docstring = GoogleDocstring._consume_to_end

# --- links ---

# Pages that are read in the repository, too, link files there; the site has a page for some of them.
PAGES = {
    r"\.\./examples/(\w+)\.py": r"#\1",
    r"\.\./bench/results/README\.md": "speed.md",
    r"\.\./bench/results/EXPERIMENTS\.md": "experiments.md",
    r"\.\./bench/results/SUBSETS\.md": "subsets.md",
}

TORCH, MATPLOTLIB = "https://docs.pytorch.org/docs/stable/", "https://matplotlib.org/stable/api/"
ELSEWHERE = {
    "Tensor": TORCH + "tensors.html#torch.Tensor",
    "Generator": TORCH + "generated/torch.Generator.html#torch.Generator",
    "Module": TORCH + "generated/torch.nn.Module.html#torch.nn.Module",
    "Optimizer": TORCH + "optim.html#torch.optim.Optimizer",
    "dtype": TORCH + "tensor_attributes.html#torch.dtype",
    "device": TORCH + "tensor_attributes.html#torch.device",
    "ProcessGroup": TORCH + "distributed.html",
    "DeviceMesh": TORCH + "distributed.html#devicemesh",
    "Figure": MATPLOTLIB + "figure_api.html#matplotlib.figure.Figure",
    "Axes": MATPLOTLIB + "_as_gen/matplotlib.axes.Axes.html#matplotlib.axes.Axes",
    "ndarray": "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html#numpy.ndarray",
    "Path": "https://docs.python.org/3/library/pathlib.html#pathlib.Path",
}
ROOTS = ("pysel", "torch", "numpy", "typing", "collections", "fractions", "pathlib")


def lead_to_pages(app: Any, docname: str, source: list[str]) -> None:
    for file, page in PAGES.items():
        source[0] = re.sub(rf"\({file}\)", f"({page})", source[0])
    keep_together(app, None, docname, source)


def keep_together(app: Any, relative_path: Any, docname: str, source: list[str]) -> None:
    source[0] = source[0].replace(" ± ", "\u00a0±\u00a0")


def escape_letters(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """An argument that is but "N." is a letter, and no list of which it is the first item."""
    lines[:] = [re.sub(r"^(:param \w+:) (\w)\.", r"\1 \\\2.", line) for line in lines]


def found(name: str, *scopes: Any) -> Any:
    """What is called so, the name dotted or not, in the first of the scopes that has it; or None."""
    for scope in scopes:
        with suppress(AttributeError):
            return operator.attrgetter(name)(scope)
    return None


def resolve(app: Any, env: Any, node: Any, shown: Any) -> Any:
    """A name as docstrings cite it: seen from the class, the module, pysel or pysel.selection; linked where it is told.

    What is nowhere is left to Sphinx, which warns.
    """
    if node.get("refdomain") != "py":
        return None
    target, domain = node["reftarget"], env.get_domain("py")
    if (last := target.rpartition(".")[2]) in ELSEWHERE:
        return nodes.reference("", "", shown, internal=False, refuri=ELSEWHERE[last])
    roots = types.SimpleNamespace(**{root: sys.modules[root] for root in ROOTS})
    module = sys.modules.get(node.get("py:module"))
    here = found(node.get("py:class") or "", module)
    path, _, name = target.rpartition(".")
    everywhere = [sys.modules[room] for room in sorted(sys.modules) if room.startswith("pysel.")]
    scopes = [here, module, roots, pysel, pysel.selection, builtins, *everywhere]
    cited = found(target, *scopes) or found(name, sys.modules.get(path))
    if cited is None:
        return None
    told = {id(found(name, roots)): (name, entry) for name, entry in domain.objects.items()}
    if id(cited) not in told:
        return shown
    name, entry = told[id(cited)]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, shown, name)


# --- pictures ---


def make_pictures(app: Any) -> None:
    """Run the gallery's code, which saves its pictures; the site is made of whatever they then are."""
    code = re.findall(r"^```python\n(.*?)^```$", (HERE / "gallery.md").read_text(), re.MULTILINE | re.DOTALL)
    made = HERE / "made"
    made.mkdir(exist_ok=True)
    with chdir(made):
        exec(compile("\n".join(code), "gallery.md", "exec"), {})


def setup(app: Any) -> None:
    app.connect("builder-inited", make_pictures)
    app.connect("source-read", lead_to_pages)
    app.connect("include-read", keep_together)
    app.connect("autodoc-process-docstring", escape_letters, priority=900)  # after napoleon
    app.connect("missing-reference", resolve)
