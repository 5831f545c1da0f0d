"""The report of runs as one HTML file."""

from tiltyard.report.html.page import page_data, render, write_report

__all__ = ["page_data", "render", "write_report"]
