"""Tables and plots of runs and evaluations."""

from tiltyard.report.plots import curves_png, reward_vs_kl_png
from tiltyard.report.policy_tables import print_table, side_by_side, write_samples_markdown, write_summary
from tiltyard.runs import read_metrics

__all__ = [
    "curves_png",
    "print_table",
    "read_metrics",
    "reward_vs_kl_png",
    "side_by_side",
    "write_samples_markdown",
    "write_summary",
]
