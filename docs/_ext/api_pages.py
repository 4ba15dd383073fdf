"""API reference: a page for each group of public names, from ``__init__.pyi`` files and ``__all__``.

Every object is documented once, under its shortest public path; a reference by any other path, as docstrings write
them, leads there. A reference below ``gas`` that names nothing is a warning, and so is a public name of ``gas`` that
stands on no page.
"""

import importlib
import inspect
import types
import typing
from collections.abc import Mapping
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

# Page, title, and what is on it: a package means the names of its stub, a module those of its ``__all__``.
PAGES = {
    "sampling": ("Tables and sampling", ["gas.table", "gas.residual", "gas.sampling"]),
    "schedules": ("Noise schedules and time grids", ["gas.schedule", "gas.grids"]),
    "denoisers": ("Denoisers", ["gas.denoise"]),
    "models": ("Models", ["gas.models"]),
    "pipelines": ("Diffusers pipelines", ["gas.pipelines", "gas.pipelines.process"]),
    "classical": ("Classical solvers", ["gas.classical", "gas.classical.registry"]),
    "learned": ("Learned solvers", ["gas.learned"]),
    "pairs": ("Teacher pairs", ["gas.pairs"]),
    "training": ("Training", ["gas.training", "gas.losses"]),
    "adversarial": ("Adversarial training", ["gas.training.adversarial"]),
    "evaluation": ("Evaluation and metrics", ["gas.evaluation", "gas.metrics", "gas.features"]),
    "experiments": ("Experiments", ["gas.experiments", "gas.plotting"]),
    "solver_file": ("Solver files", ["gas.solver_file", "gas.compatibility"]),
    "integrations": (
        "Schedulers and runtimes",
        ["gas.integrations.diffusers.scheduler", "gas.integrations.diffusers.guider", "gas.integrations.k_diffusion",
         "gas.integrations.comfyui", "gas.integrations.onnx"],
    ),
    "zoo": ("Shipped models", ["gas.zoo"]),
    "support": ("Processes, errors, citation", ["gas.distributed", "gas.errors", "gas.references"]),
}  # fmt: skip

# Names of ``gas`` that serve another library, not a reader.
HIDDEN = {"SchedulerMixin"}


def public(path: str) -> dict[str, object]:
    """Return the public objects of a package or module by name; submodules and hidden names are left out."""
    module = importlib.import_module(path)
    values = {name: getattr(module, name) for name in module.__all__ if name not in HIDDEN}
    # An alias of a tuple has the documentation of tuples; signatures write it out.
    aliases = {name for name, value in values.items() if typing.get_origin(value) is tuple}
    return {
        n: value
        for n, value in values.items()
        if n not in aliases and not isinstance(value, types.ModuleType)
    }


def shortest_paths() -> dict[int, str]:
    """Return, by identity, the shortest dotted path of every public object."""
    paths: dict[int, str] = {}
    for source in ["gas", *(source for _, sources in PAGES.values() for source in sources)]:
        for name, value in public(source).items():
            if isinstance(value, type) or callable(value) or name.isupper():
                path = f"{source}.{name}"
                if path.count(".") < paths.get(id(value), path + ".").count("."):
                    paths[id(value)] = path
    return paths


def _entries() -> dict[str, list[tuple[str, object]]]:
    """Return the objects of every page, each on the first page that has it."""
    paths, entries, placed = shortest_paths(), {}, set()
    for page, (_, sources) in PAGES.items():
        entries[page] = []
        for source in sources:
            for name, value in public(source).items():
                path = paths.get(id(value), f"{source}.{name}")
                if path not in placed:
                    placed.add(path)
                    entries[page].append((path, value))
    missing = {f"gas.{name}" for name in public("gas")} - placed
    if missing:
        logger.warning("public names on no page of the API reference: %s", ", ".join(sorted(missing)))
    return entries


def _summary(value: object) -> str:
    """Return the first sentence of a docstring, on one line."""
    text = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
    return text.split(". ")[0].rstrip(".:") + "." if text else ""


def _documented(path: str, value: object) -> list[str]:
    if isinstance(value, type):
        members = [] if issubclass(value, BaseException) else ["   :members:"]
        return [f".. autoclass:: {path}", *members, ""]
    if callable(value):
        return [f".. autofunction:: {path}", ""]
    return [f".. py:data:: {path}", "", f"   {_constant(value)}", ""]


def _constant(value: object) -> str:
    """Describe a constant, which has no docstring: the names of a registry, or what it is."""
    if isinstance(value, Mapping):
        return f"Registry of {', '.join(f'``{key}``' for key in value)}."
    if isinstance(value, (tuple, frozenset)) and all(isinstance(item, str) for item in value):
        return f"Names: {', '.join(f'``{item}``' for item in value)}."
    return f"Instance of :class:`{shortest_paths().get(id(type(value)), type(value).__name__)}`."


def _page(title: str, entries: list[tuple[str, object]]) -> str:
    lines = [title, "=" * len(title), ""]
    lines += [".. list-table::", "   :class: api-summary", "   :widths: 38 62", ""]
    for path, value in entries:
        summary = _summary(value) if isinstance(value, type) or callable(value) else _constant(value)
        role = "class" if isinstance(value, type) else "func" if callable(value) else "data"
        lines += [f"   * - :{role}:`{path}`", f"     - {summary}"]
    lines.append("")
    for path, value in entries:
        lines += _documented(path, value)
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    """Write a page where its text has changed, so that Sphinx reads it again only then."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def generate(app: Sphinx) -> None:
    """Write the pages below ``reference/api``, and their index."""
    folder = Path(app.srcdir) / "reference" / "api"
    for page, entries in _entries().items():
        _write(folder / f"{page}.rst", _page(PAGES[page][0], entries))
    _write(folder / "index.rst", _index())
    for stale in set(folder.glob("*.rst")) - {folder / f"{page}.rst" for page in [*PAGES, "index"]}:
        stale.unlink()


INDEX = """Python API
==========

``import gas`` loads nothing heavy: names load when they are first used. The names of ``gas`` itself are the everyday
ones; each is documented on the page of its topic. Public names and their signatures are frozen by a test.

.. toctree::
   :maxdepth: 1

{pages}

Names of ``gas``
----------------

.. list-table::
   :class: api-summary
   :widths: 38 62

{names}
"""


def _index() -> str:
    """Return the index: the pages, and a table of the names of ``gas``."""
    names = []
    for name, value in public("gas").items():
        role = "class" if isinstance(value, type) else "func" if callable(value) else "data"
        summary = _constant(value) if role == "data" else _summary(value)
        names += [f"   * - :{role}:`gas.{name}`", f"     - {summary}"]
    return INDEX.format(pages="\n".join(f"   {page}" for page in PAGES), names="\n".join(names))


def _object_at(path: str) -> object:
    import gas

    value: object = gas
    for part in path.split(".")[1:]:
        value = getattr(value, part)
    return value


def resolve(app: Sphinx, env: object, node: nodes.Element, contents: nodes.Element) -> nodes.Element | None:
    """Lead a reference by any public or module path to the one place where the object is documented."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    # Docstrings of gas.denoise write :func:`gas.denoise.x`, or :func:`x` where x is beside them.
    candidates = [target, f"{node.get('py:module') or 'gas'}.{target}"]
    for candidate in candidates:
        if not candidate.startswith("gas."):
            continue
        owner, _, attribute = candidate.rpartition(".")
        for path, suffix in ((candidate, ""), (owner, f".{attribute}")):
            try:
                value = _object_at(path)
            except (AttributeError, ImportError):
                continue
            canonical = app.gas_paths.get(id(value))  # type: ignore[attr-defined]
            if canonical is None:
                continue
            domain = env.get_domain("py")  # type: ignore[attr-defined]
            if canonical + suffix in domain.objects:
                return domain.resolve_xref(
                    env, node["refdoc"], app.builder, "obj", canonical + suffix, node, contents
                )
            if canonical in domain.objects:
                return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", canonical, node, contents)
    if target.startswith("gas.") and "." in target:
        try:
            _object_at(target)
        except (AttributeError, ImportError):
            logger.warning("reference to %s, which does not exist", target, location=node)
    return None


def setup(app: Sphinx) -> dict:
    """Generate the pages before Sphinx looks for sources."""
    app.gas_paths = shortest_paths()  # type: ignore[attr-defined]
    app.connect("config-inited", lambda app, config: generate(app))
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
