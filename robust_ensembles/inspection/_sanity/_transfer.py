"""The check of black-box transfer against the white box."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...attacks import PGD, Transfer
from ..cells import Mask
from ..subject import Subject
from ._finding import Finding, NotApplicableError, bad, good


def transfer(subject: Subject) -> Finding:
    """Whether examples made on other models break nothing that gradient attacks leave."""
    if not subject.rivals:
        raise NotApplicableError("give a surrogate, or several estimators, to transfer from")
    union = subject.gradient_union
    alone = {name: _broken(subject, rival, union) for name, rival in subject.rivals.items()}
    tried = {name: mask for name, mask in alone.items() if isinstance(mask, np.ndarray)}
    skipped = "".join(f" {n} was not used: {why}" for n, why in alone.items() if n not in tried)
    if not tried:
        raise NotApplicableError(f"no other model could be used.{skipped}")
    broken: Mask = np.logical_or.reduce(list(tried.values()))
    counts = ", ".join(f"{name} {mask.sum()}" for name, mask in tried.items())
    found = (
        f"Of the {union.sum()} samples that gradient attacks on the target leave, examples made "
        f"on other models break: {counts}."
    )
    if broken.sum() <= 1:
        return good(found + skipped)
    return bad(
        f"{found} A black box cannot know more than the white box, so the target's own gradients "
        "are obstructed and its white-box accuracy is too high. Count the worst over white box and "
        f"transfer, and attack with EnsembleAutoAttack.{skipped}",
        broken,
    )


def _broken(subject: Subject, rival: Any, union: Mask) -> Mask | str:
    """Samples that a rival's examples break, or why it cannot be asked."""
    classes = getattr(rival, "classes_", subject.target.classes)
    if not np.array_equal(classes, subject.target.classes):
        return "it has other classes."
    # in the target's box, whatever the rival's own is
    shared = {**subject.shared, "clip_values": subject.box}
    try:
        robust = subject.robust(Transfer(rival, PGD(**shared)), among=union)
    except NotApplicableError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}."
    return union & ~robust
