"""Runs on disk: what a setting's text refers to, and what a stage leaves in its folder."""

from tiltyard.runs.groups import group_from_dict, group_to_dict, group_to_line, read_groups, write_groups
from tiltyard.runs.journal import Journal, JsonlFile
from tiltyard.runs.ref import Ref, existing_path, written_by_stage

__all__ = [
    "Journal",
    "JsonlFile",
    "Ref",
    "existing_path",
    "group_from_dict",
    "group_to_dict",
    "group_to_line",
    "read_groups",
    "write_groups",
    "written_by_stage",
]
