"""Command ``recipes``: published settings."""

from __future__ import annotations

import argparse

import pandas as pd

from .. import recipes
from .output import say, show_table


def run(args: argparse.Namespace) -> int:
    """Print the settings."""
    table = recipes.list()
    if args.method is None and args.dataset is None:
        _show_overview(table)
        say()
        say(f"Values: {args.prog} recipes --method cldl --dataset fashion-mnist")
        return 0
    if args.dataset is not None:
        table = table[table.dataset == recipes.known_dataset(args.dataset)]
    if args.method is not None:
        table = table[table.method == args.method]
    if table.empty:
        raise ValueError(f"nobody has published settings for {args.method} on {args.dataset}")
    rows = table.astype(str).to_numpy().tolist()
    show_table(list(table.columns), rows, n_left=len(table.columns))
    return 0


def _show_overview(table: pd.DataFrame) -> None:
    sources = table.groupby(["method", "dataset"], sort=False)["source"].unique()
    rows = [
        [method, *(", ".join(sources.get((method, dataset), [])) for dataset in recipes.DATASETS)]
        for method in recipes.METHODS
    ]
    show_table(["method", *recipes.DATASETS], rows, n_left=1 + len(recipes.DATASETS))
