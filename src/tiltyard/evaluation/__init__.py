"""Evaluation on records: estimates with intervals, one summary a model, tables, samples, pictures.

Pure: nothing here samples or scores. Others make `Answer`s; this floor says what they add up to.
"""

from tiltyard.evaluation.plots import curves_png, read_metrics, reward_vs_kl_png
from tiltyard.evaluation.record import Answer, ModelResult, summarise
from tiltyard.evaluation.report import print_table, side_by_side, write_samples_markdown, write_summary

__all__ = [
    "Answer",
    "ModelResult",
    "curves_png",
    "print_table",
    "read_metrics",
    "reward_vs_kl_png",
    "side_by_side",
    "summarise",
    "write_samples_markdown",
    "write_summary",
]
