"""Names of the package in literals become links to their page, in docstrings and in Markdown.

A docstring says `PGD`, a page says ``robust_accuracy_score``, and neither has to know where that
stands: a literal whose text is the name of one documented class, function, method or constant is
linked. Parameters and words of everyday life are left alone, so nothing can be missing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

NAME = re.compile(r"([A-Za-z_][\w.]*?)(\(.*\))?", flags=re.DOTALL)
KINDS = {"class", "exception", "function", "method", "data"}


def documented(objects: dict[str, Any]) -> dict[str, str]:
    """Full names by every ending that belongs to one object alone."""
    endings: defaultdict[str, set[str]] = defaultdict(set)
    for full, entry in objects.items():
        if entry.objtype not in KINDS or entry.aliased:
            continue
        parts = full.split(".")
        # a bare name of a method belongs to many classes
        first = 2 if entry.objtype == "method" else 1
        for length in range(first, len(parts) + 1):
            endings[".".join(parts[-length:])].add(full)
    return {ending: names.pop() for ending, names in endings.items() if len(names) == 1}


def is_word(text: str) -> bool:
    """Whether a name might be meant as a word, such as "load" or "list"."""
    return text.islower() and not set("._") & set(text)


def is_inside(node: nodes.Node, *kinds: type[nodes.Node]) -> bool:
    """Whether a node stands in one of some kinds."""
    above: Any = node.parent
    while above is not None and not isinstance(above, kinds):
        above = above.parent
    return above is not None


def link_names(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put a reference around each literal that is a documented name."""
    objects = app.env.domains.python_domain.objects
    full_names = documented(objects)
    for literal in list(doctree.findall(nodes.literal)):
        name = NAME.fullmatch(literal.astext())
        full = full_names.get(name[1]) if name and not is_word(name[1]) else None
        if full is None or is_inside(literal, nodes.reference, nodes.title):
            continue
        page, anchor = objects[full].docname, objects[full].node_id
        link = make_refnode(app.builder, docname, page, anchor, literal.deepcopy(), full)
        literal.replace_self(link)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-resolved", link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
