"""What stands beside every number: machine, versions, date, settings."""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from robust_ensembles._system import versions

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Machine and versions of this run."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        **versions(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as a Markdown table."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(str(row[column]) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def write(name: str, title: str, command: str, rows: list[dict[str, Any]], **details: Any) -> None:
    """Write ``results/name.json`` and ``results/name.md``.

    Parameters
    ----------
    name : str
        May name a folder too.
    title : str
    command : str
        That makes these files again.
    rows : list of dict
        The table.
    **details
        Settings and notes; strings become paragraphs of the Markdown.
    """
    (RESULTS / name).parent.mkdir(parents=True, exist_ok=True)
    machine = environment()
    payload = {"title": title, "command": command, "environment": machine, "rows": rows, **details}
    (RESULTS / f"{name}.json").write_text(json.dumps(payload, indent=1) + "\n")
    notes = "\n\n".join(value for value in details.values() if isinstance(value, str))
    where = ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)
    text = f"# {title}\n\n`{command}`\n\n{markdown_table(rows)}\n\n{notes}\n\n{where}\n"
    (RESULTS / f"{name}.md").write_text(text)
