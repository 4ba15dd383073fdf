"""``{gas-support}``: support matrices from the library's registries and the tests; ``{gas-schema}``: the file's schema.

Every test that a matrix names must exist: a renamed or deleted test breaks the build.
"""

import json
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)
ROOT = Path(__file__).parents[2]
SCHEMA = "solver-file.schema.json"
PIPELINES = ROOT / "docs/reference/pipelines.json"

# Runtime, what runs there, NFE, and the tests that hold it to gas.sample.
RUNTIMES = [
    (
        "`gas.sample`, `gas sample`", "every table", "1 to {max_nfe}",
        ["tests/laws/test_golden.py", "tests/laws/test_tables.py", "tests/laws/test_order.py",
         "tests/laws/test_stepper.py"],
    ),
    (
        "diffusers 0.35 and later, `gas.GASScheduler`", "every table", "1 to {max_nfe}",
        ["tests/integrations/test_scheduler.py", "tests/integrations/test_scheduler_contract.py",
         "tests/integrations/test_scheduler_classes.py", "tests/pipelines/test_pipelines.py"],
    ),
    (
        "k-diffusion's `sample_*` form", "one call a step", "1 to {max_nfe}",
        ["tests/integrations/test_k_diffusion.py::test_equals_sample"],
    ),
    (
        "ComfyUI node", "one call a step", "1 to 100",
        ["tests/integrations/test_k_diffusion.py::test_comfyui_node"],
    ),
    (
        "ONNX Runtime, one row", "every table", "1 to {max_nfe}",
        ["tests/integrations/test_onnx.py::test_one_row_from_the_command_line"],
    ),
    (
        "ONNX Runtime, sampler with network", "`digits`, `mnist`", "1 to {max_nfe}",
        ["tests/integrations/test_onnx.py::test_the_whole_guided_sampler_from_the_command_line"],
    ),
    ("JavaScript", "every table", "1 to {max_nfe}", ["tests/integrations/test_javascript.py"]),
    ("CUDA", "every table", "1 to {max_nfe}", ["tests/models/test_cuda.py"]),
]  # fmt: skip

# Where the families' end-to-end test stands, and those of the pipelines with trained weights.
END_TO_END = "tests/pipelines/test_pipelines.py::test_the_unmodified_pipeline_makes_what_gas_sample_makes"
SHIPPED = "tests/zoo/test_zoo_latent.py::test_a_solver_in_the_pipeline_is_gas_sample"


def check_test(test: str) -> str:
    """Return a test's file in monospace; warn where the test does not exist."""
    path, _, function = test.partition("::")
    file = ROOT / path
    if not file.exists() or (function and f"def {function}(" not in file.read_text()):
        logger.warning("the support matrix names %s, which does not exist", test)
    return f"`{path.removeprefix('tests/')}`"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def pipelines() -> str:
    """Return the matrix of diffusers pipelines, from the rows that the end-to-end test wrote and checks."""
    check_test(END_TO_END), check_test(SHIPPED)
    shipped = {"sd2": "`mnist-latent`", "sd3": "`mnist-flow`"}
    predictions = {"epsilon": "noise", "v_prediction": "v", "flow_prediction": "flow"}
    rows = [
        [
            f"`{row['pipeline']}`",
            "yes",
            "yes",
            "to the bit" if row["exact"] else "to 1e-5",
            predictions[row["predicts"]],
            "x".join(map(str, row["sample_shape"])),
            ", ".join(row["networks"]),
            row["guidance"] or "",
            family,
            shipped.get(family, ""),
        ]
        for family, row in sorted(
            json.loads(PIPELINES.read_text()).items(), key=lambda item: item[1]["pipeline"]
        )
    ]
    header = ["pipeline", "teacher", "student", "served as `gas.sample`", "predicts", "state", "networks"]
    return _table([*header, "guidance", "test", "trained weights"], rows)


def runtimes() -> str:
    """Return the matrix of runtimes."""
    from gas.arguments import MAX_NFE

    rows = [
        [name, solvers, nfe.format(max_nfe=MAX_NFE), "<br>".join(map(check_test, tests))]
        for name, solvers, nfe, tests in RUNTIMES
    ]
    return _table(["runtime", "solvers", "NFE", "tests"], rows)


def solvers() -> str:
    """Return the classical and learned solvers that commands take by name."""
    from gas.classical import registry as classical
    from gas.learned.registry import SOLVERS

    classical_names = ", ".join(f"`{name}`" for name in classical.SOLVERS)
    grids = ", ".join(f"`{name}`" for name in classical.NAMED_GRIDS)
    rows = [
        ["classical solvers", classical_names],
        ["grids", grids],
        ["learned solvers", ", ".join(f"`{name}`" for name in SOLVERS)],
    ]
    return _table(["registry", "names"], rows)


class Support(SphinxDirective):
    """One of the matrices, by name."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        made = {"pipelines": pipelines, "runtimes": runtimes, "solvers": solvers}[self.arguments[0]]()
        return self.parse_text_to_nodes(made)


def schema() -> str:
    """Return the JSON Schema of a solver file, from the model that validates it."""
    from gas.solver_schema import Document

    content = Document.model_json_schema()
    content = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **content,
        "title": "gas-solver file",
    }
    # Written beside the document's own fields, over all of them.
    content["properties"]["checksum"] = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
    content["required"] = ["format", *content["required"]]
    return json.dumps(content, indent=2)


class Schema(SphinxDirective):
    """The schema, as a listing."""

    def run(self) -> list[nodes.Node]:
        """Return the listing."""
        text = schema()
        return [nodes.literal_block(text, text, language="json")]


def _write_schema(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        (Path(app.outdir) / SCHEMA).write_text(schema() + "\n")


def setup(app: Sphinx) -> dict:
    """Add both directives; the schema is also a file of the site."""
    app.add_directive("gas-support", Support)
    app.add_directive("gas-schema", Schema)
    app.connect("build-finished", _write_schema)
    return {"parallel_read_safe": True}
