"""Command ``evaluate``: robust accuracy of one model under attacks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from .._system import write_whole
from ..attacks import Transfer
from ..inspection import RobustnessReport, robustness_report
from ..metrics import attack_from_name
from .data import Images, load_models, load_surrogates, read_for_measuring
from .output import check_outputs, say, show_table, tell
from .threat import settle_threat, shown


def run(args: argparse.Namespace) -> int:
    """Measure the robust accuracy and print it."""
    settle_threat(args)
    _refuse_idle_surrogates(args)
    inputs = [args.model, args.data, *(args.surrogate or [])]
    check_outputs({"--json": args.json}, inputs)
    images, report = measure([args.model], args, sanity_checks=False, path=None)
    frame = report.to_frame()
    say(f"{next(iter(report.estimators.values()))['type']} from {args.model}")
    say(f"on {len(images.y)} images: {images.about}")
    say(f"{args.norm}, eps {shown(args.eps, args.norm)} for pixels from 0 to 1")
    say()
    show_table(
        ["attack", "accuracy in %", "95% interval", "images right", "seconds"],
        [_row(row) for row in frame.to_dict("records")],
    )
    say()
    say(
        "Robust accuracy is an upper bound: a stronger attack may break more. worst: right under "
        f"every attack. Names with a norm and eps of their own keep them. {_seeds(report)}"
    )
    if args.json is not None:
        write_whole(args.json, _as_json(args, images, report, frame).encode())
    failed = {a: e for errors in report.errors.values() for a, e in errors.items()}
    for attack, error in failed.items():
        tell(f"{attack} failed, and has no number: {' '.join(error.split())}")
    return 1 if failed else 0


def _refuse_idle_surrogates(args: argparse.Namespace) -> None:
    """Raise for surrogates that no attack uses; the checks of a report do use them."""
    transfers = (
        isinstance(attack_from_name(name, surrogate=args.surrogate), Transfer)
        for name in args.attacks
    )
    if args.surrogate is not None and not any(transfers):
        raise ValueError(
            "--surrogate: examples are made on it by attacks named transfer only, and --attacks "
            "has none: add transfer_pgd20, or leave --surrogate out"
        )


def measure(
    paths: list[Path], args: argparse.Namespace, *, sanity_checks: bool, path: Path | None
) -> tuple[Images, RobustnessReport]:
    """Robust accuracies of models, and the images they were measured on.

    Parameters
    ----------
    paths : list of Path
        Of the models.
    args : Namespace
    sanity_checks : bool
    path : Path or None
        Where to save the report.

    Returns
    -------
    images : Images
    report : RobustnessReport
    """
    images, doubt = read_for_measuring(args)
    if doubt is not None:
        tell(f"note: {doubt}")
    models = load_models(paths, images, args)
    report = robustness_report(
        models,
        images.X,
        images.y,
        args.attacks,
        eps=args.eps,
        norm=args.norm,
        surrogate=load_surrogates(models, images, args),
        sanity_checks=sanity_checks,
        path=path,
        progress=True,
    )
    return images, report


def _row(row: dict[Any, Any]) -> list[str]:
    if pd.isna(row["accuracy"]):
        return [row["attack"], "failed", "", "", f"{row['seconds']:.1f}"]
    interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
    right = f"{row['n_robust']:.0f} of {row['n_samples']}"
    accuracy = f"{100 * row['accuracy']:.1f}"
    return [row["attack"], accuracy, interval, right, f"{row['seconds']:.1f}"]


def _seeds(report: RobustnessReport) -> str:
    seeds = {seed for attack in report.attacks.values() for seed in _seeds_of(attack)}
    return f"Seed of the attacks: {', '.join(sorted(seeds))}."


def _seeds_of(attack: Any) -> set[str]:
    """Seeds of a described attack, or of the attacks it runs."""
    if isinstance(attack, list):
        return {seed for one in attack for seed in _seeds_of(one)}
    params = attack.get("params", {}) if isinstance(attack, dict) else {}
    if "random_state" in params:
        return {str(params["random_state"])}
    return {seed for value in params.values() for seed in _seeds_of(value)}


def _as_json(
    args: argparse.Namespace, images: Images, report: RobustnessReport, frame: pd.DataFrame
) -> str:
    rows = json.loads(frame.drop(columns="estimator").to_json(orient="records"))
    about = {"model": str(args.model), "data": args.data, "images": images.about}
    threat = {"n_samples": len(images.y), "seed": args.seed, "eps": args.eps, "norm": args.norm}
    measured = {"attacks": report.attacks, "versions": report.versions}
    return json.dumps({**about, **threat, "results": rows, **measured}, indent=1) + "\n"
