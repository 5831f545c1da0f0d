"""Data: from files to groups of token ids. `chat` is the one place where text becomes ids."""

from tiltyard.data.bad_rows import BadRowRule, BadRows, parsed_rows
from tiltyard.data.chat import Chat
from tiltyard.data.checks import CheckReport, LengthBias, check_data
from tiltyard.data.formats import Kind, parse_row
from tiltyard.data.group_file import GroupFile
from tiltyard.data.limit import Limit, LimitBy, Sample, limit_of, limited
from tiltyard.data.load import DataReport, GroupStream, TooLong, load_groups, load_prompts, stream_groups
from tiltyard.data.read import Row, read_rows
from tiltyard.data.templates import DEFAULT_TEMPLATE, PLAIN_TEMPLATE
from tiltyard.data.tokenizer import plain_texts, train_tokenizer
from tiltyard.runs.groups import group_from_dict, group_to_dict, group_to_line, read_groups, write_groups

__all__ = [
    "DEFAULT_TEMPLATE",
    "PLAIN_TEMPLATE",
    "BadRowRule",
    "BadRows",
    "Chat",
    "CheckReport",
    "DataReport",
    "GroupFile",
    "GroupStream",
    "Kind",
    "LengthBias",
    "Limit",
    "LimitBy",
    "Row",
    "Sample",
    "TooLong",
    "check_data",
    "group_from_dict",
    "group_to_dict",
    "group_to_line",
    "limit_of",
    "limited",
    "load_groups",
    "load_prompts",
    "parse_row",
    "parsed_rows",
    "plain_texts",
    "read_groups",
    "read_rows",
    "stream_groups",
    "train_tokenizer",
    "write_groups",
]
