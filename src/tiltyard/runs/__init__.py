"""Runs on disk: what a setting's text refers to, and what a stage leaves in its folder."""

from tiltyard.runs.groups import append_groups, group_from_dict, group_to_dict, read_groups, write_groups
from tiltyard.runs.ref import Ref, existing_path, written_by_stage

__all__ = [
    "Ref",
    "append_groups",
    "existing_path",
    "group_from_dict",
    "group_to_dict",
    "read_groups",
    "write_groups",
    "written_by_stage",
]
