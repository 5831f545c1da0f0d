"""Runs on disk: resolution of references in settings, and readers of stage folders."""

from tiltyard.runs.groups import (
    group_from_dict,
    group_to_dict,
    group_to_line,
    read_groups,
    read_step_groups,
    write_groups,
)
from tiltyard.runs.journal import Journal, JsonlFile
from tiltyard.runs.reader import (
    RunReader,
    StageConfig,
    StageDone,
    StageReader,
    find_run,
    read_alarms,
    read_metric_rows,
    read_metrics,
)
from tiltyard.runs.ref import Ref, existing_path, written_by_stage

__all__ = [
    "Journal",
    "JsonlFile",
    "Ref",
    "RunReader",
    "StageConfig",
    "StageDone",
    "StageReader",
    "existing_path",
    "find_run",
    "group_from_dict",
    "group_to_dict",
    "group_to_line",
    "read_alarms",
    "read_groups",
    "read_metric_rows",
    "read_metrics",
    "read_step_groups",
    "write_groups",
    "written_by_stage",
]
