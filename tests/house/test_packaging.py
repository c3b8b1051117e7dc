"""What a user gets: the wheel, the source distribution, and a README whose code runs."""

import re
import subprocess
import sys
import tarfile
import zipfile

import pytest
from fresh_process import ROOT, run_python

import robust_ensembles

PACKAGE = ROOT / "robust_ensembles"


def python_blocks(name="README.md"):
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def table(name):
    """Rows of the README's table between its two markers, without the heading."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [part] = re.findall(rf"<!-- {name}: begin -->\n(.*?)<!-- {name}: end -->", text, re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()]
    assert rows[1] == ["---"] * 3
    return rows[2:]


def test_first_code_of_the_readme_runs_without_a_warning(tmp_path):
    done = run_python("-c", python_blocks()[0], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    clean, robust = (float(number) for number in re.findall(r"0\.\d{3}", done.stdout))
    assert clean > 0.9
    assert 0.5 < robust < clean
    assert list(tmp_path.iterdir()) == []


def test_the_readme_is_short_and_its_code_is_one_example():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 180
    assert "\nrobust-ensembles " not in text  # the guide's commands are run, by tests/cli
    [block] = python_blocks()  # which the test above runs
    assert len([line for line in block.splitlines() if line]) <= 15


@pytest.mark.oracle
def test_foolbox_finds_about_what_our_attack_finds(tmp_path):
    pytest.importorskip("foolbox")
    first, block = python_blocks("docs/comparison.md")
    assert "import foolbox" in block
    # what foolbox warns of is its own
    done = run_python("-c", "\n".join([first, block]), cwd=tmp_path, warnings="default")
    assert done.returncode == 0, done.stderr
    ours, theirs = re.findall(r"^0\.\d+$", done.stdout, re.MULTILINE)
    assert 0.5 < float(ours) < 1
    # the same ensemble under the same kind of attack
    assert float(theirs) == pytest.approx(float(ours), abs=0.1)


def test_the_citation_has_the_version_of_the_package():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {robust_ensembles.__version__}\n" in text
    assert robust_ensembles.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Names of the files in the source distribution and in the wheel that is built from it."""
    pytest.importorskip("build")
    # build/ and the egg-info of another build would leak into this one
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    tracked = ["robust_ensembles", "tests", "examples", ".ci", "setup.cfg", "pyproject.toml"]
    tracked += ["README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff"]
    tracked += ["Makefile", "MANIFEST.in"]
    subprocess.run(["cp", "-r", *(ROOT / name for name in tracked), source], check=True)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "Deprecat" not in built.stdout + built.stderr
    (wheel,) = out.glob("*.whl")
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as tar, zipfile.ZipFile(wheel) as archive:
        in_sdist = {name.partition("/")[2] for name in tar.getnames()}
        return in_sdist, set(archive.namelist())


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(distributions):
    _, wheel = distributions
    sources = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
    installed = {name for name in wheel if ".dist-info/" not in name}
    assert installed == sources | {"robust_ensembles/py.typed"}
    assert any(re.search(r"\.dist-info/(licenses/)?LICENSE$", name) for name in wheel)


@pytest.mark.slow
def test_source_distribution_holds_what_a_developer_needs(distributions):
    sdist, _ = distributions
    wanted = {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "CITATION.cff",
        "Makefile",
        ".ci/run",
        "examples/quickstart.py",
        "tests/house/test_packaging.py",
        "robust_ensembles/py.typed",
    }
    assert wanted <= sdist
    assert not any("__pycache__" in name for name in sdist)
