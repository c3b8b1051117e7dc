"""What is written: never over what is read, judged before any work, and nothing trained is lost."""

from pathlib import Path

import pytest
from tiny_training import train

from robust_ensembles._cli.output import check_outputs

TRAIN = "train data.npz --method vanilla --epochs 1"
# the models and data need not be readable: outputs are judged before
EVALUATE = "evaluate m.st data.npz --attacks transfer_fgsm --surrogate s.st"
REPORT = "report m.st n.st data.npz --attacks fgsm --path r.json"
DESTROYED = "is read, and would be destroyed"
BAD = [
    (f"{TRAIN} -o data.npz --overwrite", f"--output data.npz {DESTROYED}"),
    (f"{TRAIN} -o link.npz --overwrite", f"--output link.npz {DESTROYED}"),
    (f"{TRAIN} --test apart.npz -o apart.npz --overwrite", f"--output apart.npz {DESTROYED}"),
    ("train photos --method vanilla -o photos/cat/m.st", "lies among the images of photos"),
    (f"{TRAIN} -o m", "m cannot be written"),
    (f"{TRAIN} -o o.st --checkpoints m.st", "m.st cannot be a folder"),
    (f"{TRAIN} -o o.st --checkpoints m.st/runs", "m.st/runs cannot be a folder"),
    (f"{TRAIN} -o o.st --checkpoints o.st", "--checkpoints o.st is what --output is, too"),
    ("train photos --method vanilla -o o.st --checkpoints photos", f"photos {DESTROYED}"),
    (f"{EVALUATE} --json m.st", f"--json m.st {DESTROYED}"),
    (f"{EVALUATE} --json ./data.npz", f"--json data.npz {DESTROYED}"),
    (f"{EVALUATE} --json s.st", f"--json s.st {DESTROYED}"),
    (f"{EVALUATE} --json no/m.json", "the folder of no/m.json does not exist"),
    (f"{EVALUATE} --json m", "m cannot be written"),
    (f"{EVALUATE} --json /dev/null", "/dev/null cannot be written"),
    (f"{REPORT} --markdown n.st", f"--markdown n.st {DESTROYED}"),
    (f"{REPORT} --surrogate s.st --markdown s.st", f"--markdown s.st {DESTROYED}"),
    (f"{REPORT} --markdown no/r.md", "the folder of no/r.md does not exist"),
    (f"{REPORT} --markdown ../{{here}}/r.json", "is what --path is, too"),
    ("report m.st n.st data.npz --attacks fgsm --path m.st", f"--path m.st {DESTROYED}"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[line for line, _ in BAD])
def test_outputs_that_would_destroy_or_fail(command, photos, npz, line, message):
    for name in ("m.st", "n.st", "s.st", "apart.npz"):
        Path(name).write_text(name)
    Path("m").mkdir()
    Path("link.npz").symlink_to("data.npz")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    status, out, err = command(line.format(here=Path.cwd().name))
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert len(err.splitlines()) == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_outputs_that_are_fine(command, npz, photos):
    Path("m.st").touch()
    check_outputs(
        {"--output": Path("m.st"), "--json": None, "--markdown": Path("photos/m.md")},
        ["photos", "data.npz", "digits"],
        folders={"--checkpoints": Path("runs/a/b")},
    )
    train(command, f"{TRAIN} -o n.st")
    for _ in range(2):  # numbers may be written again, as they always could
        assert command("evaluate n.st data.npz --attacks fgsm --json n.json")[0] == 0


def test_a_folder_that_nobody_may_write_to(monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(OSError, match=r"m\.st cannot be written"):
        check_outputs({"--output": Path("m.st")}, [])
    with pytest.raises(OSError, match="runs cannot be written to"):
        check_outputs({}, [], folders={"--checkpoints": Path("runs")})
