"""The report of `tiltyard sample --infer`, printed."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import Console

from tiltyard.numerals import plural
from tiltyard.posterior.infer.report import Report
from tiltyard.report.text import plain
from tiltyard.stats.intervals import Estimate


def print_report(report: Report, console: Console) -> None:
    """Prints the numbers of a sampler below its responses, one a line."""
    console.print()
    for line in report_lines(report):
        console.print(plain(line), markup=False, highlight=False, soft_wrap=True)


def report_lines(report: Report) -> Iterator[str]:
    """The lines of the report."""
    short = "" if report.given == report.wanted else f", {report.wanted - report.given:,} fewer than asked for"
    yield f"{report.sampler}: {plural(report.given, 'response')} to {plural(report.prompts, 'prompt')}{short}"
    yield (
        f"  accepted    {report.accept_rate:.1%} of {report.sampled:,.0f} sampled to a prompt; "
        f"effective number {report.ess:.1f}, different {report.unique:.0%}"
        + (f", resampled {report.resampled:.1f} times" if report.resampled else "")
    )
    yield (
        f"  cost        a response: {report.seconds:.2f} s, {plural(round(report.tokens), 'token')} of the model, "
        f"{plural(round(report.calls), 'call')} of the reward"
        + (f" ({plural(round(report.read), 'token')})" if report.read else "")
    )
    yield f"  reward      {_value(report.reward)}"
    most = " at most" if report.at_most else ""
    known = [
        (f"KL to the model{most}", report.kl_to_prior),
        (f"KL to pi*{most}", report.kl),
        (f"TV to pi*{most}", report.tv),
        ("log Z", report.log_z),
    ]
    bounds = known[:3] if report.at_most else []
    shown = [f"{name} {_most(value) if (name, value) in bounds else _value(value)}" for name, value in known if value]
    if shown:
        yield f"  distance    {', '.join(shown)}"
    for reason in report.refusals:
        yield f"  refused     KL and TV to pi*{'' if report.at_most else ', log Z'}: {reason}"


def _most(bound: Estimate) -> str:
    """The upper end of a bound's interval."""
    return f"{bound.value if math.isnan(bound.high) else bound.high:.3f}"


def _value(value: Estimate | None) -> str:
    if value is None:
        return "none"
    half = (value.high - value.low) / 2
    return f"{value.value:.3f}" if math.isnan(half) else f"{value.value:.3f}±{half:.3f}"
