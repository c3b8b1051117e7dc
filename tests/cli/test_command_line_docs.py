"""What the guide says of the command line, run in its order."""

import re
import shlex
from pathlib import Path

import pytest

from robust_ensembles._cli import main

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "command_line.md"


@pytest.mark.slow
def test_all_commands_of_the_guide(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    commands = 0
    for language, block in blocks:
        if language == "python":
            exec(compile(block, str(PAGE), "exec"), {})
            continue
        for line in block.splitlines():
            program, *words = shlex.split(line)
            assert program == "robust-ensembles"
            assert main(words) == 0, capsys.readouterr().err
            commands += 1
    assert commands == text.count("\nrobust-ensembles ")
    assert {"ceat.safetensors", "vanilla.json", "report.md"} <= {p.name for p in tmp_path.iterdir()}
