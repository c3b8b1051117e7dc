"""A page for each table in ``benchmarks/results``, and links to them that work everywhere.

The tables are written by ``python -m benchmarks...`` and stay where they are. Pages and docstrings
link to the files, as a reader of the repository needs it; here the links lead to the pages.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
LINK = re.compile(r"\]\((?:\.\./)*benchmarks/results/([\w./-]+\.md)(#[\w-]+)?\)")


def write_pages(app: Sphinx) -> None:
    """One page for each table, rewritten only if it has changed."""
    folder = Path(app.srcdir) / "results"
    wanted = {}
    for table in sorted(RESULTS.rglob("*.md")):
        name = table.relative_to(RESULTS)
        up = "../" * (len(name.parts) + 1)
        source = f"{up}benchmarks/results/{name.as_posix()}"
        wanted[folder / name] = f"```{{include}} {source}\n:relative-images:\n```\n"
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.rglob("*.md"):
        if path not in wanted and path.name != "index.md":
            path.unlink()


def lead_to_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Links to files of the repository become links to the pages made of them."""
    source[0] = LINK.sub(r"](/results/\1\2)", source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("source-read", lead_to_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
