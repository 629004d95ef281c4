"""The documentation site's settings: Sphinx with MyST's markdown. `make docs` builds it.

What is made from code is made first, by `generate.py`, into `reference/generated/`, which Git ignores.
"""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE.parent)]

import generate  # noqa: E402

generate.write(_HERE / "reference" / "generated")

project = "Dash Pipeline"
copyright = "the authors of Dash Pipeline, Apache-2.0"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
# Headings are link targets as on GitHub, so that links work in both places.
myst_heading_anchors = 3
html_theme = "furo"
html_title = project
html_show_sphinx = False
html_copy_source = False
pygments_style = "default"
# Blocks without a language are commands and output.
highlight_language = "none"
