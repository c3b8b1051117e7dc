"""What the commands measure, on which images, against the Python API."""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_training import train

from robust_ensembles._cli.data import Images, load_models
from robust_ensembles.attacks import PGD
from robust_ensembles.inspection import robustness_report
from robust_ensembles.metrics import robust_accuracy_score
from robust_ensembles.persistence import load


@pytest.mark.parametrize(
    ("norm", "eps", "threat"),
    [("linf", "60/255", "linf, eps 0.2353 (60/255)"), ("l2", "1.4", "l2, eps 1.4")],
)
def test_the_table_of_evaluate(command, npz, norm, eps, threat):
    train(command, "train data.npz --method vanilla --epochs 10 --set batch_size=8 -o m.st")
    line = f"evaluate m.st data.npz --attacks fgsm pgd5 --norm {norm} --eps {eps} --json m.json"
    status, out, err = command(line)
    assert status == 0, err
    X, y, clf = npz["test_images"][:, None], npz["test_labels"], load("m.st")
    radius = 60 / 255 if norm == "linf" else 1.4
    pgd = robust_accuracy_score(clf, X, y, attack=PGD(eps=radius, norm=norm, n_steps=5))
    assert 0 < pgd < clf.score(X, y)  # so that the rows differ
    report = robustness_report(
        clf, X, y, ["fgsm", "pgd5"], eps=radius, norm=norm, sanity_checks=False
    )
    frame = report.to_frame().set_index("attack")
    assert frame.accuracy["pgd5"] == pytest.approx(pgd)
    lines = out.splitlines()
    assert lines[:3] == [
        "VanillaEnsembleClassifier from m.st",
        "on 40 images: the test part of data.npz",
        f"{threat} for pixels from 0 to 1",
    ]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    assert cells[0] == ["attack", "accuracy in %", "95% interval", "images right", "seconds"]
    rows = cells[2:]
    assert [row[:4] for row in rows] == [
        [
            name,
            f"{100 * row.accuracy:.1f}",
            f"{100 * row.low:.1f} to {100 * row.high:.1f}",
            f"{round(40 * row.accuracy)} of 40",
        ]
        for name, row in frame.iterrows()
    ]
    assert [row[0] for row in rows] == ["clean", "fgsm", "pgd5", "worst"]
    assert all(re.fullmatch(r"\d+\.\d", row[4]) for row in rows)
    assert (frame.low <= frame.accuracy).all()
    assert (frame.accuracy <= frame.high).all()
    written = json.loads(Path("m.json").read_text())
    assert (written["eps"], written["norm"]) == (radius, norm)
    assert "Seed of the attacks: 0." in out


def test_other_data_are_measured_on_their_test_part(command, npz):
    wrong = 1 - npz["test_labels"][:30]
    wrong[:10] = npz["test_labels"][:10]
    np.savez("other.npz", **npz | {"test_images": npz["test_images"][:30], "test_labels": wrong})
    out, err = train(
        command,
        "train data.npz --method vanilla --epochs 10 --set batch_size=8 --test other.npz -o m.st",
    )
    score = load("m.st").score(npz["test_images"][:30, None], wrong)
    assert score < 0.5
    assert f"clean accuracy {score:.3f} on 30 images: the test part of other.npz" in out
    assert "on 100 images (1, 6, 6) of 2 classes: the train part of data.npz" in err
    # of data without a test part, all
    np.savez("train.npz", train_images=npz["test_images"], train_labels=npz["test_labels"])
    out, _ = train(command, "train data.npz --method vanilla --epochs 1 --test train.npz -o n.st")
    assert "on 40 images: the train part of train.npz" in out


def test_the_share_that_is_held_out_is_told_to_the_last_digit(command, npz):
    np.savez("d.npz", train_images=npz["train_images"][:30], train_labels=npz["train_labels"][:30])
    out, _ = train(command, "train d.npz --method vanilla --epochs 1 --test-size 2/3 -o m.st")
    assert "on 20 images: 66.6667% of" in out
    words = out.splitlines()[-1].split()
    assert words[words.index("--test-size") + 1] == repr(2 / 3)
    _, shown, _ = command("evaluate m.st d.npz --attacks fgsm --test-size", repr(2 / 3))
    assert "on 20 images: 66.6667% of" in shown


def test_training_images_beside_a_test_part_are_doubtful(command, npz):
    train(command, "train data.npz --method vanilla --epochs 1 -o m.st")
    _, _, err = command("evaluate m.st data.npz --attacks fgsm")
    assert "note:" not in err
    _, _, err = command("evaluate m.st data.npz --attacks fgsm --test-size 0.2")
    assert "note: data.npz has a test part, and only a training with --test-size 0.2 held" in err
    assert "has no test part" not in err


def test_examples_are_made_on_all_surrogates(command, npz):
    for seed, name in enumerate("abm"):
        train(command, f"train data.npz --method vanilla --epochs 1 --seed {seed} -o {name}.st")
    line = "evaluate m.st data.npz --attacks transfer_pgd2 --surrogate a.st b.st --json m.json"
    status, out, err = command(line)
    assert status == 0, err
    [described] = json.loads(Path("m.json").read_text())["attacks"].values()
    digests = [one["digest"] for one in described["params"]["surrogate"]]
    assert len(set(digests)) == 2
    assert "Seed of the attacks: 0." in out  # of the attack on the surrogates


def test_models_of_one_name_are_told_apart(command, npz):
    for folder in "ab":
        Path(folder).mkdir()
        train(command, f"train data.npz --method vanilla --epochs 1 -o {folder}/m.st")
    train(command, "train data.npz --method vanilla --epochs 1 -o n.st")
    images = Images(npz["test_images"][:, None], npz["test_labels"], "", ())
    args = argparse.Namespace(device="cpu", test_size=None, seed=0)
    models = load_models([Path("a/m.st"), Path("n.st"), Path("b/m.st")], images, args)
    assert list(models) == [str(Path("a/m.st")), "n", str(Path("b/m.st"))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": lambda a: np.repeat(a[:, None], 3, 1)}, "images of shape (1, 6, 6), but"),
        ({"train_labels": lambda a: a + 1}, "labels [0], of which the surrogate s.st knows"),
        ({"train_labels": lambda a: np.arange(100) % 3}, "the surrogate s.st knows the classes [0"),
    ],
)
def test_surrogates_of_other_images_or_classes(command, npz, change, message):
    train(command, "train data.npz --method vanilla --epochs 1 -o m.st")
    arrays = {key: npz[key] for key in ("train_images", "train_labels")}
    np.savez("s.npz", **arrays | {key: made(arrays[key]) for key, made in change.items()})
    train(command, "train s.npz --method vanilla --epochs 1 -o s.st")
    line = "evaluate m.st data.npz --attacks fgsm transfer_pgd2 --surrogate s.st"
    status, out, err = command(line)
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]


def test_models_of_other_pixels(command, npz):
    train(command, "train data.npz --method vanilla --epochs 1 -o m.st")
    clf, X = load("m.st"), npz["train_images"][:, None].astype(np.float32)
    for box, name in (((0, 255), "bytes.st"), (None, "none.st")):
        clf.set_params(clip_values=box).fit(X, npz["train_labels"])
        clf.save(name)
        for line in (
            f"evaluate {name} data.npz --attacks fgsm",
            f"evaluate m.st data.npz --attacks transfer_pgd2 --surrogate {name}",
        ):
            status, _, err = command(line)
            assert status == 2
            assert f"{name} was trained with clip_values=" in err


def test_an_empty_part_is_found_before_training(command, npz):
    empty = {"test_images": npz["test_images"][:0], "test_labels": npz["test_labels"][:0]}
    np.savez("data.npz", **npz | empty)
    status, _, err = command("train data.npz --method vanilla -o m.st")
    assert status == 2
    assert "data.npz: test_labels is empty" in err
    assert "training" not in err
