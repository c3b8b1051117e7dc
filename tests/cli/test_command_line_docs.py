"""What the guide says of the command line, run in its order."""

import re
import shlex
from pathlib import Path

import pytest

from robust_ensembles._cli import main

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guide" / "command_line.md").read_text(encoding="utf-8")


def blocks(text):
    """Language and content of the blocks of code."""
    return re.findall(r"^```(python|sh)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def make_data():
    """mine.npz and photos, as the guide makes them."""
    [code] = [block for language, block in blocks(GUIDE) if language == "python"]
    exec(compile(code, "command_line.md", "exec"), {})


def shell_lines(text):
    found = [block.splitlines() for language, block in blocks(text) if language == "sh"]
    return [line for lines in found for line in lines]


def run_commands(text, capsys):
    """Run all of our commands in a page; how many there are."""
    lines = shell_lines(text)
    ours = [shlex.split(line)[1:] for line in lines if line.startswith("robust-ensembles ")]
    for words in ours:
        assert main(words) == 0, capsys.readouterr().err
    return len(ours)


@pytest.mark.slow
def test_all_commands_of_the_guide(tmp_path, capsys):
    make_data()
    assert {shlex.split(line)[0] for line in shell_lines(GUIDE)} == {"robust-ensembles"}
    assert run_commands(GUIDE, capsys) == GUIDE.count("\nrobust-ensembles ") > 10
    assert {"ceat.safetensors", "vanilla.json", "report.md"} <= {p.name for p in tmp_path.iterdir()}
