"""The documentation is complete, and what it shows runs."""

import ast
import contextlib
import functools
import importlib
import io
import re
import runpy
import shlex
import shutil
import sys
import warnings
from collections import Counter
from configparser import ConfigParser
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from fresh_process import ROOT, run_python

import robust_ensembles
from robust_ensembles.datasets import load_fashion_mnist
from robust_ensembles.exceptions import DatasetNotFoundError
from robust_ensembles.recipes import METHODS

DOCS = ROOT / "docs"
PACKAGES = ["", *(room for room in robust_ensembles._ROOMS if room != "exceptions")]
# made by the build
MADE = ("_build", "_templates", "generated", "gallery", "results")


def sources(*suffixes):
    """Pages as they are written, without what the build makes of other files."""
    found = (path for suffix in suffixes for path in DOCS.rglob(f"*{suffix}"))
    return sorted(p for p in found if not set(MADE) & set(p.relative_to(DOCS).parts[:-1]))


def python_blocks(path):
    text = path.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


PAGES = [ROOT / "README.md", *sources(".md")]
WITH_CODE = [path for path in sources(".md") if python_blocks(path)]
EXAMPLES = sorted(
    path for path in (ROOT / "examples").glob("*/*.py") if path.name.startswith(("plot_", "run_"))
)


def name_of(path):
    return str(path.relative_to(ROOT))


def run(arguments, folder):
    """Run Python in a folder."""
    # what MLflow's database library says about MLflow
    ignored = "ignore:The ``noload`` loader strategy"
    return run_python("-W", ignored, *arguments, cwd=folder, MPLBACKEND="agg")


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_block_of_code_compiles(path):
    for block in python_blocks(path):
        ast.parse(block)


def test_pages_have_code_at_all():
    assert len(WITH_CODE) > 15
    assert len(EXAMPLES) >= 14


def commands(path):
    """Lines of blocks for a shell, without their comments, and the languages of all blocks."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^ *```(\w+)\n(.*?)^ *```$", text, flags=re.MULTILINE | re.DOTALL)
    shell = [block for language, block in found if language != "python"]
    lines = [shlex.split(line, comments=True) for block in shell for line in block.splitlines()]
    return [words for words in lines if words], {language for language, _ in found}


@functools.cache
def options_of(module):
    """What a script says that it takes."""
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()) as shown,
        contextlib.suppress(SystemExit),
    ):
        warnings.simplefilter("ignore")  # that another test has imported it
        patch.syspath_prepend(ROOT)
        patch.setattr(sys, "argv", [module, "--help"])
        runpy.run_module(module, run_name="__main__")
    usage, _, _ = shown.getvalue().partition("\n\n")  # the examples below prove nothing
    return set(re.findall(r"--[\w-]+", usage))


def check_command(words):
    """Raise for a command that this repository does not have."""
    match words:
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["python", "-m", "pip", "install", what]:
            asked = what.removeprefix(".").strip("[]")
            extras = ConfigParser()
            extras.read(ROOT / "setup.cfg")
            assert set(filter(None, asked.split(","))) <= set(extras["options.extras_require"])
        case ["python", "-m", module, *options] if module.startswith("benchmarks."):
            asked = {word for word in options if word.startswith("--")}
            assert asked <= options_of(module)
        case ["robust-ensembles", command, *_]:
            assert command in ("train", "evaluate", "report", "recipes")
        case ["torchrun", _, script]:
            assert (ROOT / "examples" / script).is_file()
        case [*settings, "python", "train.py"]:
            assert all("=" in setting for setting in settings)
        case _:
            raise AssertionError(f"nothing checks {shlex.join(words)}")


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_command_exists(path):
    """They are run too: by the tests of the command line and of examples, by make and in CI."""
    lines, languages = commands(path)
    assert languages <= {"python", "sh", "text"}
    for words in lines:
        check_command(words)


def test_commands_that_do_not_exist():
    for line in (
        "make coffee",
        "python -m pip install '.[coffee]'",
        "python -m benchmarks.reproduce --coffee",
        "python -m benchmarks.coffee",
        "robust-ensembles coffee",
        "coffee",
    ):
        with pytest.raises((AssertionError, ImportError)):
            check_command(shlex.split(line))


def toctree_entries(path):
    """Pages that a page lists in its table of contents."""
    text = path.read_text(encoding="utf-8")
    markdown = re.findall(r"^```\{toctree\}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    rest = re.findall(r"^\.\. toctree::\n((?:[ ]+.*\n|\n)*)", text, flags=re.MULTILINE)
    lines = (line.strip() for block in markdown + rest for line in block.splitlines())
    entries = {line for line in lines if line and not line.startswith(":")}
    return {(path.parent / entry).resolve().relative_to(DOCS).as_posix() for entry in entries}


def test_every_page_is_in_a_table_of_contents():
    pages = {p.relative_to(DOCS).with_suffix("").as_posix() for p in sources(".md", ".rst")}
    listed = set().union(*(toctree_entries(path) for path in sources(".md", ".rst")))
    assert pages - {"index"} - listed == set()
    assert {e for e in listed if not set(MADE) & set(e.split("/"))} - pages == set()


def documented():
    """Full names in the tables of the API reference, as often as they stand there."""
    names = Counter()
    for path in (DOCS / "api").glob("*.rst"):
        text = path.read_text(encoding="utf-8")
        modules = re.findall(r"^\.\. currentmodule:: (\S+)$", text, flags=re.MULTILINE)
        if modules:
            (module,) = modules
            names.update(
                f"{module}.{n}" for n in re.findall(r"^   (\w+)$", text, flags=re.MULTILINE)
            )
    return names


def public():
    """What can be imported from the packages, under the name that it has there."""
    for package in PACKAGES:
        module = importlib.import_module(f"robust_ensembles.{package}".rstrip("."))
        for name in module.__all__:
            yield f"{module.__name__}.{name}", getattr(module, name)


def test_the_reference_lists_every_public_name_once():
    times = documented()
    assert {name: n for name, n in times.items() if n > 1} == {}
    listed = set(times)
    known = dict(public())
    exceptions = importlib.import_module("robust_ensembles.exceptions")
    known |= {
        f"robust_ensembles.exceptions.{name}": value
        for name, value in vars(exceptions).items()
        if getattr(value, "__module__", None) == exceptions.__name__
    }
    assert listed - set(known) == set()
    by_identity = {id(known[name]) for name in listed}
    # the same object may be importable from two places
    assert {name for name, value in known.items() if id(value) not in by_identity} == set()
    objects = [id(known[name]) for name in listed if isinstance(known[name], type)]
    assert len(objects) == len(set(objects))


def test_every_method_has_a_page_with_the_same_parts():
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "methods").glob("*")}
    assert set(pages) - {"index"} == set(METHODS)
    for method, kind in METHODS.items():
        headings = re.findall(r"^## (.+)$", pages[method], flags=re.MULTILINE)
        assert headings == ["Idea", "Equations", "Paper and code", "Cost", "When to use it", "Cite"]
        assert f"`{kind.__name__}`" in pages[method]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The pages, built without a warning and without running the gallery."""
    for library in ("sphinx_gallery", "numpydoc", "myst_parser", "pydata_sphinx_theme"):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("site")
    made = shutil.ignore_patterns("_build", "gallery", "generated")
    shutil.copytree(DOCS, folder / "docs", ignore=made)
    for path in ROOT.iterdir():
        if path.name in {"examples", "benchmarks", "robust_ensembles"} or path.suffix == ".md":
            (folder / path.name).symlink_to(path)
    # the warnings of other libraries are theirs
    arguments = ["-W", "default", "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q"]
    done = run([*arguments, "-D", "plot_gallery=0", "docs", "html"], folder)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(built):
    assert (built / "index.html").is_file()
    assert (built / "gallery" / "index.html").is_file()


class Links(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self):
        super().__init__()
        self.links, self.anchors = set(), set()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.links |= {values[name] for name in ("href", "src") if values.get(name)}
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}


@pytest.mark.slow
def test_links_between_pages_lead_somewhere(built):
    pages = {}
    for path in built.rglob("*.html"):
        if "_static" in path.parts:
            continue  # a template of the theme
        pages[path] = Links()
        pages[path].feed(path.read_text(encoding="utf-8"))
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].anchors if target in pages else set()
            if not target.exists() or (parts.fragment and parts.fragment not in anchors):
                broken.append(f"{path.relative_to(built)}: {link}")
    assert sorted(broken) == []
    assert sum(len(page.links) for page in pages.values()) > 1000


@pytest.mark.slow
def test_the_data_parallel_example_runs(tmp_path):
    example = ROOT / "examples" / "data_parallel.py"
    torchrun = ["-W", "default", "-m", "torch.distributed.run", "--standalone"]
    done = run([*torchrun, "--nproc-per-node=2", str(example)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "under attack" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_CODE, ids=name_of)
def test_the_code_of_a_page_runs_in_its_order(path, tmp_path):
    # with foolbox, which is installed for some tests only: tests/house/test_packaging.py
    blocks = [block for block in python_blocks(path) if "import foolbox" not in block]
    assert len(blocks) == len(python_blocks(path)) - (path.name == "comparison.md")
    done = run(["-c", "\n".join(blocks)], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_an_example_of_the_gallery_runs(path, tmp_path):
    for library in re.findall(r"^(?:import|from) (\w+)", path.read_text("utf-8"), re.MULTILINE):
        pytest.importorskip(library)
    if "fashion_mnist" in path.name:
        try:
            load_fashion_mnist("test", download=False)
        except DatasetNotFoundError as error:
            pytest.skip(str(error))
    done = run([str(path)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
