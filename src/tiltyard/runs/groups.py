"""Groups as lossless JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from tiltyard.errors import DataError
from tiltyard.files import atomic_write, reading
from tiltyard.types import Group, Message, Preference, Prompt, Response, response_id

Item = TypeVar("Item")


def write_groups(path: str | Path, groups: Iterable[Group]) -> None:
    """Writes groups, one per line, replacing the file atomically.

    Raises:
        DataError: a group's meta holds something that JSON cannot.
    """
    with atomic_write(path, "wb") as stream:
        for group in groups:
            stream.write(group_to_line(group))


def read_groups(path: str | Path) -> Iterator[Group]:
    """Reads the groups of a file lazily. An incomplete last line, left by a kill, is skipped.

    Raises:
        DataError: no such file, or a line that is not a group.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("no such file of groups", where=str(path), fix="check the path")
    return _read(path, group_from_dict)


def read_step_groups(path: str | Path) -> Iterator[tuple[int, Group]]:
    """Yields (step, group) of the `groups.jsonl` of a stage that samples. An incomplete last line is skipped.

    Raises:
        DataError: no such file, or a line that is not a group with its step.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            "no responses are stored here",
            where=str(path),
            fix="name the folder of a stage that sampled (runs/NAME/ppo)",
        )
    return _read(path, lambda row: (int(row["step"]), group_from_dict(row)), line_ends=True)


def read_judgements(path: str | Path) -> Iterator[Preference]:
    """Reads the lines of a `judgements.jsonl` lazily. An incomplete last line, left by a kill, is skipped.

    Raises:
        DataError: no such file, or a line that is not a judgement.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            "no judgements are stored here", where=str(path), fix="name the folder of a stage that judged or labelled"
        )
    return _read(path, preference_from_dict)


def group_to_dict(group: Group) -> dict[str, Any]:
    """Converts a group to JSON-ready values. Empty and default fields are left out."""
    value: dict[str, Any] = {
        "prompt": _prompt_to_dict(group.prompt),
        "responses": [_response_to_dict(r) for r in group.responses],
    }
    if group.scores is not None:
        value["scores"] = list(group.scores)
    if group.preference is not None:
        value["preference"] = preference_to_dict(group.preference)
    return value | {"origin": group.origin}


def group_from_dict(value: Mapping[str, Any]) -> Group:
    """The inverse of `group_to_dict`."""
    prompt = dict(value["prompt"])
    if prompt.get("messages") is not None:
        prompt["messages"] = tuple(Message(*m) for m in prompt["messages"])
    if "ids" in prompt:
        prompt["ids"] = tuple(prompt["ids"])
    responses = []
    for given in value["responses"]:
        response = dict(given)
        for name in ("ids", "logps"):
            if response.get(name) is not None:
                response[name] = tuple(response[name])
        if response.get("loss_spans") is not None:
            response["loss_spans"] = tuple((start, stop) for start, stop in response["loss_spans"])
        responses.append(Response(**response))
    scores = None if value.get("scores") is None else tuple(value["scores"])
    return Group(Prompt(**prompt), tuple(responses), scores, _preference_of(value), value.get("origin", ""))


def signed(preference: Preference, group: Group) -> Preference:
    """Returns the preference as a line of `judgements.jsonl`: with the ids of the judged responses, and the time."""
    return replace(
        preference,
        prompt=group.prompt.id or group.origin,
        responses=tuple(map(response_id, group.responses)),
        when=datetime.now(UTC).isoformat(),
    )


def preference_to_dict(preference: Preference) -> dict[str, Any]:
    """Returns a preference as JSON-ready values; fields that have their default are left out."""
    empty = Preference()
    values = {f.name: getattr(preference, f.name) for f in fields(preference)}
    return {name: value for name, value in values.items() if value != getattr(empty, name)}


def preference_from_dict(value: Mapping[str, Any]) -> Preference:
    """The inverse of `preference_to_dict`."""
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}
    return Preference(**values)


def _preference_of(value: Mapping[str, Any]) -> Preference | None:
    if "preference" in value:
        return preference_from_dict(value["preference"])
    if value.get("shares") is not None:  # older files have both; the shares give the ranks
        return Preference(shares=tuple(value["shares"]))
    return None if value.get("ranks") is None else Preference(ranks=tuple(value["ranks"]))


def group_to_line(group: Group) -> bytes:
    """Returns a group as one line of a JSON-lines file.

    Raises:
        DataError: it holds a value that JSON cannot.
    """
    try:
        text = json.dumps(group_to_dict(group), ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise group_error(group, error) from error
    return text.encode() + b"\n"


def group_error(group: Group, error: Exception) -> DataError:
    """The error for a group that cannot be stored."""
    return DataError(
        "a group holds something that JSON cannot",
        where=group.origin or group.prompt.id,
        got=str(error),
        expected="strings, numbers, lists and objects in meta; plain numbers in scores and ids",
        fix="convert it first (float(x), str(x), x.tolist())",
    )


def _prompt_to_dict(prompt: Prompt) -> dict[str, Any]:
    value: dict[str, Any] = {}
    if prompt.messages is not None:
        value["messages"] = [m.to_list() for m in prompt.messages]
    if prompt.text is not None:
        value["text"] = prompt.text
    if prompt.id:
        value["id"] = prompt.id
    if prompt.meta:
        value["meta"] = dict(prompt.meta)
    if prompt.ids:
        value["ids"] = list(prompt.ids)
    if prompt.tools:
        value["tools"] = prompt.tools
    return value


def _response_to_dict(response: Response) -> dict[str, Any]:
    value: dict[str, Any] = {}
    if response.ids:
        value["ids"] = list(response.ids)
    if response.text:
        value["text"] = response.text
    if response.logps is not None:
        value["logps"] = list(response.logps)
    if response.policy_version is not None:
        value["policy_version"] = response.policy_version
    if response.finish != "given":
        value["finish"] = response.finish
    if response.loss_spans is not None:
        value["loss_spans"] = [list(span) for span in response.loss_spans]
    if response.meta:
        value["meta"] = dict(response.meta)
    return value


def _read(path: Path, parse: Callable[[dict[str, Any]], Item], *, line_ends: bool = False) -> Iterator[Item]:
    """Yields the parsed lines; `line_ends`: a last line without its end is incomplete, even if it can be parsed."""
    with reading(path), path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            if line_ends and not line.endswith(b"\n"):
                return
            try:
                yield parse(json.loads(line))
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    return
                raise DataError(
                    "this line is not a group",
                    where=f"{path}:{number}",
                    got=f"{type(error).__name__}: {error}",
                    expected="a line written by write_groups",
                    fix="rows of training data are read with load_groups; a damaged line may be deleted",
                ) from error
