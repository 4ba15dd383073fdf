"""Sphinx configuration: ``make docs`` builds the site into ``build/docs``, offline, with warnings as errors."""

import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS / "_ext"), str(ROOT / "src"), str(ROOT / "tests")]
os.environ["HF_HUB_OFFLINE"] = "1"

import gas  # noqa: E402 (found on the path that is set above)

project = "gas-solver"
author = copyright = "the gas-solver authors"
version = release = gas.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_design",
    "sphinx_copybutton",
    "api_pages",
    "browser",
    "cli_page",
    "support_matrix",
]
exclude_patterns = ["_ext"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
# MyST warns of a page that starts below a first-level heading, as pages included in others do.
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

# Help texts name options: two hyphens must stay two.
smartquotes = False

html_theme = "furo"
html_title = "gas-solver"
html_static_path = ["_static"]
html_css_files = ["gas.css"]
html_extra_path = ["llms.txt"]
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5394", "color-brand-content": "#0b5394"},
    "dark_css_variables": {"color-brand-primary": "#7fb3e6", "color-brand-content": "#7fb3e6"},
}
# Formulas stay readable as LaTeX where the script cannot be fetched; the build itself fetches nothing.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
