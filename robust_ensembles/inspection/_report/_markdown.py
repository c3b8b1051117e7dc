"""A robustness report as text that a paper could take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from scipy.stats import binomtest

from ..cells import CLEAN, WORST
from ..sanity import Finding

if TYPE_CHECKING:
    from ..results import RobustnessReport

_SHOWN_SAMPLES = 10
_ABOUT = (
    "Accuracies in percent of all {n} samples; in brackets the binomial 95% interval "
    "(Clopper-Pearson). A sample counts as robust if it is right both before and after the "
    "attack; worst: after every attack; conditional: worst, in percent of the samples that are "
    "right without an attack. **Robust accuracy is an upper bound**: a stronger attack may break "
    "more samples."
)


def binomial_interval(successes: int, n: int) -> tuple[float, float]:
    """Clopper-Pearson 95% interval of a fraction; (0, 1) of nothing."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(successes, n).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)


def to_markdown(report: RobustnessReport) -> str:
    """Table, findings, settings.

    Parameters
    ----------
    report : RobustnessReport

    Returns
    -------
    text : str
    """
    parts = [
        "# Robustness report",
        _table(report),
        _ABOUT.format(n=report.data["n_samples"]),
        *_failures(report),
        "## Sanity checks",
        *_findings(report),
        "## Settings",
        _settings(report),
    ]
    return "\n\n".join(parts) + "\n"


def _table(report: RobustnessReport) -> str:
    header = ["estimator", "n", CLEAN, *report.attacks, WORST, "conditional"]
    rows = [_row(report, name) for name in report.estimators]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _row(report: RobustnessReport, name: str) -> list[str]:
    masks, errors = report.masks[name], report.errors[name]
    shown = [name, str(report.data["n_samples"])]
    for attack in (CLEAN, *report.attacks):
        missing = "failed" if attack in errors else "not measured"
        shown.append(f"{100 * masks[attack].mean():.1f}" if attack in masks else missing)
    if WORST not in masks:
        return [*shown, "none", "none"]
    worst = int(masks[WORST].sum())
    low, high = binomial_interval(worst, len(masks[WORST]))
    text = f"{100 * masks[WORST].mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    n_measured = sum(attack in masks for attack in report.attacks)
    if n_measured < len(report.attacks):
        text += f" (of {n_measured} of {len(report.attacks)} attacks)"
    right = int(masks[CLEAN].sum()) if CLEAN in masks else 0
    return [*shown, text, f"{100 * worst / right:.1f}" if right else "none"]


def _failures(report: RobustnessReport) -> list[str]:
    lines = [
        f"- `{name}`, `{attack}`: failed: {' '.join(error.split())}"
        for name, errors in report.errors.items()
        for attack, error in errors.items()
    ]
    return ["These have no number:", "\n".join(lines)] if lines else []


def _findings(report: RobustnessReport) -> list[str]:
    if not any(report.findings.values()):
        return ["None were run, so nothing is known of whether gradients mislead the attacks."]
    head = (
        f"On the first {report.settings['n_sanity']} samples at most, with "
        f"eps={report.settings['eps']:.4g} in the {report.settings['norm']} norm."
    )
    return [head, *(_of_estimator(name, found) for name, found in report.findings.items())]


def _of_estimator(name: str, findings: Sequence[Finding]) -> str:
    order = ("failure", "warning", "information")
    failed = sorted(
        (f for f in findings if f.passed is False), key=lambda f: order.index(f.severity)
    )
    lines = [f"- **{f.severity}: {f.check}.** {f.message}{_samples(f.samples)}" for f in failed]
    lines += [f"- passed: {f.check}. {f.message}" for f in findings if f.passed]
    lines += [f"- not run: {f.check}. {f.message}" for f in findings if f.passed is None]
    n_failed = len(failed)
    verdict = f"{n_failed} of {len(findings)} checks failed" if n_failed else "no check failed"
    return f"### {name}: {verdict}\n\n" + "\n".join(lines)


def _samples(samples: Sequence[int]) -> str:
    if not samples:
        return ""
    shown = ", ".join(map(str, samples[:_SHOWN_SAMPLES]))
    more = len(samples) - _SHOWN_SAMPLES
    return f" Samples: {shown}{f' and {more} more' if more > 0 else ''}."


def _settings(report: RobustnessReport) -> str:
    lines = [f"- attack `{name}`: {_call(attack)}" for name, attack in report.attacks.items()]
    for name, estimator in report.estimators.items():
        devices = dict.fromkeys(cell.device for cell in report.cells if cell.estimator == name)
        lines.append(
            f"- estimator `{name}`: {estimator['type']}, random_state="
            f"{_value(estimator['random_state'])}, device {', '.join(devices)}, weights "
            f"{estimator['digest'][:12]}"
        )
    data = report.data
    lines.append(f"- data: X of shape {tuple(data['shape'])}, {data['X'][:12]}; y {data['y'][:12]}")
    seconds = sum(cell.seconds for cell in report.cells)
    lines.append(f"- time of the attacks: {seconds:.1f} s")
    lines.append(f"- versions: {_joined(f'{k} {v}' for k, v in report.versions.items())}")
    return "\n".join(lines)


def _call(description: dict[str, Any]) -> str:
    params = _joined(f"{name}={_value(value)}" for name, value in description["params"].items())
    return f"{description['type']}({params})"


def _value(value: Any) -> str:
    if isinstance(value, dict) and "type" in value and isinstance(value.get("params"), dict):
        return _call(value)
    if isinstance(value, list):
        return f"[{_joined(map(_value, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(texts)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
