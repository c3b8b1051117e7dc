"""How Sphinx builds the documentation: ``make docs``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "extensions")]
# the examples train small networks: further threads would wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib  # noqa: E402

import robust_ensembles  # noqa: E402
from robust_ensembles.datasets import load_fashion_mnist  # noqa: E402
from robust_ensembles.exceptions import DatasetNotFoundError  # noqa: E402

matplotlib.use("agg")

project = "robust_ensembles"
author = "The robust_ensembles developers"
copyright = f"2026, {author}"
version = release = robust_ensembles.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # equations are drawn without a network, too
    "numpydoc",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "benchmark_pages",
    "linked_names",
]
root_doc = "index"
templates_path = ["_templates"]
exclude_patterns = ["_build", "extensions", "**/GALLERY_HEADER.rst"]
default_role = "literal"  # and `linked_names` makes links of the names that are documented
nitpicky = True
# in the type that `Objective` is a name of
nitpick_ignore = [("py:class", "collections.abc.Callable"), ("py:class", "torch.Tensor")]
# of sphinx-gallery, which shows all examples and none by module
suppress_warnings = ["config.cache"]

# ------------------------------------------------------------------------------------- docstrings

autosummary_generate = True
autodoc_typehints = "none"  # types stand in the docstrings
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"
add_module_names = False
numpydoc_show_class_members = False  # the template lists them
numpydoc_attributes_as_param_list = True

# ------------------------------------------------------------------------------------------ pages

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"
linkcheck_anchors = True
linkcheck_timeout = 10


def fashion_mnist_is_here() -> bool:
    """Whether the example that needs the data set can run."""
    try:
        load_fashion_mnist("test", download=False)
    except DatasetNotFoundError:
        return False
    return True


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    # without its data set, an example is shown and not run
    "filename_pattern": r"/(plot|run)_" + ("" if fashion_mnist_is_here() else "(?!fashion_mnist)"),
    "ignore_pattern": r"(^|/)(?!(plot|run)_)[^/]+\.py$",
    "subsection_order": [
        f"../examples/{part}" for part in ("start", "evaluation", "search", "practice")
    ],
    "within_subsection_order": "ExampleTitleSortKey",
    "doc_module": ("robust_ensembles",),
    "backreferences_dir": None,
    "download_all_examples": False,
    "write_computation_times": False,
    "show_signature": False,
    "remove_config_comments": True,
    "min_reported_time": 1,
    "capture_repr": ("_repr_html_", "__repr__"),
    "show_memory": False,
    "abort_on_example_error": False,
}

# ------------------------------------------------------------------------------------------- HTML

html_theme = "pydata_sphinx_theme"
html_title = "robust_ensembles"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "robust_ensembles"},
    "header_links_before_dropdown": 6,
    "navbar_align": "left",
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "default",
    "pygments_dark_style": "github-dark",
}
# pages without a section of their own
SINGLE = ("index", "install", "start", "performance", "faq", "comparison", "layout", "changelog")
html_sidebars: dict[str, list[str]] = {page: [] for page in SINGLE}
