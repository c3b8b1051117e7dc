"""`python -m robust_ensembles`: in process, with tiny networks, and once as a process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.model_selection import train_test_split
from skorch.callbacks import Callback
from tiny_training import TINY, train

from robust_ensembles import CEATEnsembleClassifier, recipes
from robust_ensembles._cli import main
from robust_ensembles._cli import output as _console
from robust_ensembles._cli.arguments import COMMANDS
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.inspection import RobustnessReport, report
from robust_ensembles.metrics import robust_accuracy_score
from robust_ensembles.persistence import load
from robust_ensembles.state.folder import CheckpointFolder
from robust_ensembles.training import EnsembleNet

ROOT = Path(__file__).parents[2]


def state(estimator):
    return estimator.module_.state_dict()


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(state(a).values(), state(b).values(), strict=True))


def test_trains_as_the_python_api_does(command):
    train(command, "train digits --method ceat --eps 0.1 --epochs 2 --seed 3 -o m.safetensors")
    X, y = load_digits_images()
    X, _, y, _ = train_test_split(X, y, test_size=0.2, stratify=y, random_state=3)
    clf = CEATEnsembleClassifier(
        module="mlp",
        module_params={"hidden_sizes": (16,)},
        attack=PGD(eps=0.1, n_steps=10, step_size=0.1 / 4),
        lr=0.01,
        max_epochs=2,
        device="cpu",
        random_state=3,
    ).fit(X, y)
    again = load("m.safetensors")
    assert same_weights(clf, again)
    assert again.get_params()["attack__eps"] == 0.1
    assert again.verbose == 0


def test_measures_as_the_python_api_does(command, npz):
    train(command, "train data.npz --method vanilla --epochs 2 -o m.safetensors")
    line = "evaluate m.safetensors data.npz --attacks fgsm pgd5 --eps 8/255 --json m.json"
    status, out, err = command(line)
    assert status == 0, err
    clf = load("m.safetensors")
    expected = robust_accuracy_score(
        clf,
        npz["test_images"][:, None],
        npz["test_labels"],
        attack=PGD(eps=8 / 255, n_steps=5),
    )
    written = json.loads(Path("m.json").read_text())
    rows = {row["attack"]: row for row in written["results"]}
    assert list(rows) == ["clean", "fgsm", "pgd5", "worst"]
    assert rows["pgd5"]["accuracy"] == pytest.approx(expected)
    assert f"| pgd5   | {100 * expected:>13.1f} |" in out
    assert "on 40 images: the test part of data.npz" in out
    assert "upper bound" in out
    assert written["n_samples"] == 40


def test_what_to_do_next_can_be_done(command):
    out, _ = train(command, "train digits --method adversarial --eps 8/255 --epochs 1 -o m.st")
    next_line = out.splitlines()[-1].strip().removeprefix("python -m robust_ensembles ")
    assert next_line == (
        "evaluate m.st digits --test-size 0.2 --seed 0 --attacks fgsm pgd20 autoattack --eps 8/255"
    )
    status, shown, err = command(next_line.replace("autoattack ", ""), "--samples", "20")
    assert status == 0, err
    assert "20 of 360 images, drawn with seed 0, from 20% of digits, held out with seed 0" in shown
    assert "note:" not in err


def test_the_accuracy_is_that_of_the_images_held_out(command):
    out, _ = train(command, "train digits --method vanilla --epochs 2 --test-size 0.5 -o m.st")
    X, y = load_digits_images()
    _, X, _, y = train_test_split(X, y, test_size=0.5, stratify=y, random_state=0)
    expected = load("m.st").score(X, y)
    assert f"clean accuracy {expected:.3f} on {len(y)} images: 50% of digits" in out
    _, _, err = command("evaluate m.st digits --samples 5 --attacks fgsm")
    assert "note: digits has no test part" in err
    line = "evaluate m.st digits --samples 5 --attacks fgsm --test-size 0.5 --seed 1"
    _, _, err = command(line)
    assert "m.st was trained with seed 0, so --seed 1 may hold out images that it" in err


def test_a_folder_of_images(command, photos):
    out, err = train(command, "train photos --method vanilla --epochs 5 --size 6 -o m.st")
    assert "on 32 images (3, 6, 6) of 2 classes: the other 80% of photos" in err
    assert load("m.st").classes_.tolist() == ["cat", "dog"]
    assert "evaluate m.st photos --size 6 --test-size 0.2 --seed 0" in out
    # a folder with one of the classes only: names, not numbers, are compared
    Path("photos/cat").rename("cats")
    line = "evaluate m.st photos --size 6 --attacks fgsm --eps 1/255 --json m.json"
    assert command(line)[0] == 0
    assert json.loads(Path("m.json").read_text())["results"][0]["accuracy"] == 1.0
    status, _, err = command("evaluate m.st photos --attacks fgsm")
    assert status == 2
    assert "images of shape (3, 8, 8), but m.st was trained on (3, 6, 6)" in err
    Path("photos/dog").rename("photos/wolf")
    status, _, err = command("evaluate m.st photos --size 6 --attacks fgsm")
    assert status == 2
    assert "labels ['wolf'], of which m.st knows nothing; it knows ['cat', 'dog']" in err


def test_grey_images_in_a_folder(command, photos):
    _, err = train(command, "train photos --method vanilla --epochs 1 -o m.st")
    assert "grey" not in err
    for file in Path("photos").rglob("*.png"):
        Image.open(file).convert("L").save(file)
    _, err = train(command, "train photos --method vanilla --epochs 1 -o n.st")
    assert "note: all images of photos are grey: --grey makes one channel" in err
    _, err = train(command, "train photos --method vanilla --grey --epochs 1 -o o.st")
    assert "note" not in err


def test_other_data_to_hold_out(command, photos):
    Path("apart").mkdir()
    Path("apart/dog").symlink_to(Path("photos/dog").absolute())
    out, err = train(
        command, "train photos --grey --method vanilla --epochs 1 --test apart -o m.st"
    )
    assert "on 40 images (1, 8, 8)" in err
    assert "on 20 images: apart" in out
    assert "evaluate m.st apart --grey --attacks" in out


def test_recipes_settings_and_epochs(command, npz):
    line = "train data.npz --method cldl --recipe fmnist --epochs 3 --set batch_size=64 -o m.st"
    more = ["--set", "module=mlp", "--set", "module_params={}", "--set", "attack=pgd2"]
    more += ["--eps", "2/255"]
    assert command(line, *more, "--device", "cpu", "--quiet")[0] == 0
    clf = load("m.st")
    published = recipes.get("cldl", "fashion-mnist", max_epochs=3)
    assert (clf.gamma, clf.lr_milestones) == (published.gamma, published.lr_milestones)
    assert (clf.batch_size, clf.module, clf.module_params) == (64, "mlp", {})
    assert repr(clf.attack) == repr(PGD(eps=2 / 255, n_steps=2))


def test_report_is_gone_on_with(command, npz, monkeypatch):
    cheap = {name: report.CHECKS[name] for name in ("unchanged", "norm_and_box")}
    monkeypatch.setattr(report, "CHECKS", cheap)
    for seed, name in ((0, "a"), (1, "b")):
        train(command, f"train data.npz --method vanilla --epochs 1 --seed {seed} -o {name}.st")
    rest = "data.npz --samples 10 --attacks fgsm transfer_pgd2 --surrogate b.st --path r.json"
    status, out, err = command(f"report a.st {rest} --markdown r.md")
    assert status == 0, err
    first = RobustnessReport.from_json(Path("r.json"))
    assert list(first.estimators) == ["a"]
    assert first.findings["a"]
    assert Path("r.md").read_text() == out
    assert "Images: 10 of 40 images, drawn with seed 0, from the test part of data.npz." in out
    # an attack on the surrogate itself is none of transfer: it has no number
    status, _, _ = command(f"report a.st b.st {rest}")
    second = RobustnessReport.from_json(Path("r.json"))
    assert list(second.estimators) == ["a", "b"]
    assert (status, list(second.errors["b"])) == (1, ["transfer_pgd2"])
    assert [c.seconds for c in second.cells if c.estimator == "a"] == [
        c.seconds for c in first.cells
    ]


def test_recipes(command):
    _, overview, _ = command("recipes")
    assert "| cldl        | cldl" in overview
    assert "recipes --method cldl --dataset fashion-mnist" in overview
    _, shown, _ = command("recipes --method cldl --dataset F-MNIST")
    table = recipes.list().query("method == 'cldl' and dataset == 'fashion-mnist'")
    rows = [line for line in shown.splitlines() if line.startswith("| cldl")]
    assert len(rows) == len(table)
    for row, (_, expected) in zip(rows, table.iterrows(), strict=True):
        assert [c.strip() for c in row.strip("|").split(" | ")] == [str(v) for v in expected]


BAD = [
    ("train nothing --method ceat -o m.st", "'nothing' is neither a folder, nor a .npz file"),
    ("train data.npz --method ceat -o no/m.st", "the folder of no/m.st does not exist"),
    ("train data.npz --method ceat -o old.st", "old.st exists: give another --output"),
    ("train data.npz --method ceat --eps 8 -o m.st", "did you mean 8/255?"),
    ("train data.npz --method ceat --set atack=1 -o m.st", "Did you mean 'attack'?"),
    ("train data.npz --method ceat --set attack__n_step=1 -o m.st", "Did you mean 'n_steps'?"),
    ("train data.npz --method ceat --set lr__x=1 -o m.st", "lr=0.001 has no parameters"),
    ("train data.npz --method ceat --set lr=1 --set lr=2 -o m.st", "lr=... is given twice"),
    ("train data.npz --method ceat --set max_epochs=2 -o m.st", "give it as --epochs 2"),
    ("train data.npz --method ceat --set lr=-1 -o m.st", "The 'lr' parameter of CEAT"),
    ("train data.npz --method ceat --set attack=pdg -o m.st", "Did you mean 'pgd'?"),
    (
        "train data.npz --method ceat --eps 0.1 --set attack__eps=1/9 -o m.st",
        "give --eps or --set attack__eps=..., not both",
    ),
    ("train data.npz --method gal --eps 0.1 -o m.st", "with --set attack=pgd10"),
    ("train data.npz --method vanilla --eps 0.1 -o m.st", "leave --eps out"),
    ("train data.npz --method ceat --source ceat -o m.st", "give --recipe, too"),
    ("train data.npz --method ceat --recipe mnist -o m.st", "there are no published settings"),
    ("train data.npz --method ceat --size 8 -o m.st", "--size 8: for a folder of images only"),
    (
        "train data.npz --method ceat --test data.npz --test-size 0.1 -o m.st",
        "give --test or --test-size, not both",
    ),
    ("train digits --method ceat --test-size 1e-9 -o m.st", "cannot be held out"),
    ("train digits --method ceat --test data.npz -o m.st", "images of shape (1, 6, 6)"),
    ("train one.npz --method ceat -o m.st", "but has ['images']"),
    ("evaluate none.st data.npz", "none.st does not exist; MODEL is a file that train wrote"),
    ("evaluate data.npz m.safetensors", "m.safetensors is a model, not images"),
    ("evaluate data.npz data.npz", "data.npz cannot be loaded"),
    ("evaluate m.st data.npz --device cuda:99", "torch finds no such device here"),
    ("report m.st m.st data.npz --path r.json", "m.st is given twice"),
    ("evaluate m.st data.npz --attacks pgdd20", "Did you mean 'pgd'?"),
    ("evaluate m.st data.npz --attacks transfer", "needs a surrogate"),
    ("report m.st data.npz --attacks fgsm --path no/r.json", "the folder of no/r.json does not"),
    # before files are read
    ("evaluate none.st none.npz --attacks fgsm --surrogate s.st", "--attacks has none"),
    ("train none.npz --method ceat --eps 8 -o m.st", "did you mean 8/255?"),
    ("evaluate none.st none.npz --eps 8", "did you mean 8/255?"),
    ("report none.st none.npz --eps 8 --path r.json", "did you mean 8/255?"),
    ("recipes --dataset cifar", "Did you mean 'cifar10'?"),
    ("recipes --method ceat --dataset mnist", "nobody has published settings"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[line for line, _ in BAD])
def test_errors_are_one_line(command, npz, line, message):
    np.savez("one.npz", images=npz["test_images"])
    Path("m.safetensors").touch()
    Path("old.st").touch()
    if " m.st data.npz" in line or "m.st m.st" in line:
        train(command, "train data.npz --method vanilla --epochs 1 -o m.st")
    if "cuda" in line and torch.cuda.device_count() > 99:
        pytest.skip("there is such a device")
    status, out, err = command(line)
    assert (status, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith(f"python -m robust_ensembles {line.split()[0]}: error: ")
    assert message in last
    assert "Traceback" not in err
    assert "m.st" not in os.listdir() or not line.startswith("train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train digits --method cate -o m.st", "invalid choice: 'cate'"),
        ("train digits --method ceat", "required: --output/-o"),
        ("train digits --method ceat -o m.st --eps 8/0", "neither a number nor a fraction"),
        ("train digits --method ceat -o m.st --epochs 0", "'0' is no whole number from 1"),
        ("train digits --method ceat -o m.st --set lr", "must be name=value"),
        ("train digits --method ceat -o m.st --test-size 2", "must lie between 0 and 1"),
        ("train digits --method ceat -o m.st --seed -1", "--seed"),
        ("evaluate m.st digits --samples some", "'some' is no whole number from 1"),
        ("", "required: COMMAND"),
    ],
)
def test_arguments_that_cannot_be_understood(capsys, line, message):
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_traceback_on_demand(npz):
    with pytest.raises(ValueError, match="did you mean"):
        main(["train", "data.npz", "--method", "ceat", "--eps", "8", "-o", "m.st", "--traceback"])


@pytest.mark.parametrize("name", ["", "train", "evaluate", "report", "recipes"])
def test_help_shows_examples_and_defaults(capsys, name):
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:\n" in shown
    assert "None" not in shown
    assert "{prog}" not in shown
    if name in ("evaluate", "report"):
        assert "by default 8/255 in linf, none in l2" in " ".join(shown.split())


def examples():
    for command in COMMANDS:
        text = command.examples.replace("\\\n", " ")
        for line in text.splitlines():
            if line.strip().startswith("{prog} "):
                yield line.strip().removeprefix("{prog} ")


@pytest.mark.parametrize("line", list(examples()))
def test_examples_of_the_help_can_be_understood(line):
    from robust_ensembles._cli.main import _parser
    from robust_ensembles._cli.train import make_estimator

    args = _parser("x").parse_args(line.split())
    if args.command == "train":
        make_estimator(args)


class Interrupt(Callback):
    """Ends the training in the middle of an epoch, as Ctrl-C or a signal would."""

    def __init__(self, epoch, end):
        self.epoch, self.end = epoch, end

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            self.end()


@contextlib.contextmanager
def interrupted(epoch, end):
    """Let trainings end in a certain epoch."""
    before = EnsembleNet._default_callbacks.fget
    added = [("interrupt", Interrupt(epoch, end))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnsembleNet, "_default_callbacks", property(lambda net: before(net) + added))
        yield


def ctrl_c():
    raise KeyboardInterrupt


LONG = "train data.npz --method adversarial --epochs 4 --set batch_size=32"


def test_interrupted_with_checkpoints_and_gone_on_with(command, npz):
    train(command, f"{LONG} -o whole.st")
    with interrupted(3, ctrl_c):
        status, _, err = command(f"{LONG} -o m.st --checkpoints runs", *TINY)
    assert status == 130
    assert "stopped: runs has what was finished; the same command goes on" in err
    assert not Path("m.st").exists()
    _, err = train(command, f"{LONG} -o m.st --checkpoints runs")
    assert "training goes on after epoch 2" in err
    assert same_weights(load("m.st"), load("whole.st"))
    # another fit is not mixed with it
    status, _, err = command(f"{LONG} -o n.st --checkpoints runs --seed 1", *TINY)
    assert status == 2
    assert "holds the training of another fit" in err
    assert "stopped" not in err


def test_interrupted_without_checkpoints(command, npz):
    with interrupted(3, ctrl_c):
        status, _, err = command(f"{LONG} -o m.st", *TINY)
    assert status == 130
    assert "m.partial.st has the ensemble as it was then, after 2 whole epochs" in err
    assert load("m.partial.st").n_iter_ == 2
    assert not Path("m.st").exists()
    # a worse one does not replace it
    for number, epoch in ((2, 2), (3, 3)):
        with interrupted(epoch, ctrl_c):
            _, _, err = command(f"{LONG} -o m.st", *TINY)
        assert f"m.partial-{number}.st has the ensemble as it was then, after {epoch - 1}" in err
        assert load(f"m.partial-{number}.st").n_iter_ == epoch - 1
    assert load("m.partial.st").n_iter_ == 2


@pytest.mark.parametrize("more", ["", "--checkpoints runs"])
def test_interrupted_before_anything_was_learned(command, npz, more):
    with interrupted(1, ctrl_c):
        status, _, err = command(f"{LONG} -o m.st {more}", *TINY)
    assert status == 130
    assert "stopped within the first epoch: nothing is kept" in err
    assert "has what was finished" not in err
    assert {"data.npz"} <= set(os.listdir()) <= {"data.npz", "runs"}


def test_checkpoints_that_cannot_be_written(command, npz, monkeypatch):
    def fail(self, epoch, *args, **kwargs):
        if epoch == 2:
            raise OSError("on purpose")
        return  # none is written

    monkeypatch.setattr(CheckpointFolder, "write", fail)
    status, _, err = command(f"{LONG} -o m.st --checkpoints runs", *TINY)
    assert status == 2
    assert "m.partial.st has the ensemble as it was then, after 2 whole epochs" in err
    assert load("m.partial.st").n_iter_ == 2


def test_sigterm(npz, capsys):
    end = interrupted(2, lambda: signal.raise_signal(signal.SIGTERM))
    with end, pytest.raises(SystemExit) as ended:
        main([*LONG.split(), "-o", "m.st", *TINY])
    assert ended.value.code == 143
    assert load("m.partial.st").n_iter_ >= 1


def test_an_attack_that_fails_has_no_number(command, npz, monkeypatch):
    train(command, "train data.npz --method vanilla --epochs 1 -o m.st")

    def fail(*args, **kwargs):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(PGD, "__call__", fail)
    line = "evaluate m.st data.npz --attacks fgsm pgd5 --json m.json"
    status, out, err = command(line)
    assert status == 1
    assert "| pgd5   |        failed |" in out
    assert "pgd5 failed, and has no number" in err
    rows = {row["attack"]: row for row in json.loads(Path("m.json").read_text())["results"]}
    assert rows["pgd5"]["accuracy"] is None


def test_warnings_are_one_line_each(capsys):
    import warnings

    with _console.messages_as_lines():
        warnings.simplefilter("always")
        warnings.warn("one\n two", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: one two\n"


def test_epochs_are_shown_beside_the_result(command, npz):
    line = "train data.npz --method vanilla --epochs 2 -o m.st"
    status, out, err = command(line, *TINY)
    assert status == 0
    assert "train_loss" in err
    assert "train_loss" not in out
    assert "\x1b" not in err


def test_as_a_process_on_a_terminal(npz):
    """Epochs are coloured there: skorch marks the best numbers, and a file has no use for that."""
    main, worker = os.openpty()
    line = "train data.npz --method vanilla --epochs 1 --output t.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "robust_ensembles", *line.split(), *TINY],
        stdout=subprocess.PIPE,
        stderr=worker,
        env={name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        | {"TERM": "xterm", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        text=True,
    )
    os.close(worker)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal closes with the process
        while part := os.read(main, 4096):
            shown += part
    os.close(main)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown
    assert b"train_loss" in shown
    assert b"\x1b[" in shown
    assert "evaluate t.safetensors data.npz" in out
    assert "\x1b" not in out


def test_samples_are_drawn_from_all(command, npz):
    train(command, "train data.npz --method vanilla --epochs 3 -o m.st")
    line = "evaluate m.st data.npz --attacks pgd3 --eps 50/255 --samples 13 --seed 5 --json m.json"
    assert command(line)[0] == 0
    rows = np.random.default_rng(5).choice(40, 13, replace=False)
    X, y = npz["test_images"][rows][:, None], npz["test_labels"][rows]
    attack = PGD(eps=50 / 255, n_steps=3)
    expected = robust_accuracy_score(load("m.st"), X, y, attack=attack)
    results = json.loads(Path("m.json").read_text())["results"]
    assert results[1]["accuracy"] == pytest.approx(expected)
    first = npz["test_images"][:13][:, None], npz["test_labels"][:13]
    assert robust_accuracy_score(load("m.st"), *first, attack=attack) != pytest.approx(expected)


def test_the_installed_command_is_this_one():
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    name, _, where = parser["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = where.partition(":")
    assert name == "robust-ensembles"
    assert getattr(import_module(module), function) is main
