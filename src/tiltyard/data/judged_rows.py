"""Judged rows: comparisons with who wrote the responses and who judged them, the form that ratings are read from.

A row of comparisons with `models` (a name for each response) and `judgement`, an object with any of `annotator`,
`when`, `guideline`, `run`, `model`, and of what the feedback store keeps: `chosen_with`, `shown`, `role`, `source`,
`seconds`, `comment`, `reason`, ... A plain `annotator` column is read too. `reason: both_bad` makes the ranks of a pair
no tie. A battle without texts (models and ranks alone) is a judged row, too, but nothing that can be trained on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tiltyard.data.conversations import is_transcript
from tiltyard.data.formats import parse_row
from tiltyard.data.row import Row
from tiltyard.errors import DataError
from tiltyard.types import Group, Message, Preference, Prompt, Response, ranks_of

OWN = ("annotator", "when", "guideline", "run", "model")  # of `judgement`, fields of the preference itself
BOTH_BAD = "both_bad"


def parse_judged(row: Row) -> Group:
    """Parses a judged row; `response.meta["policy"]` is the name of the model, the preference has its provenance.

    Raises:
        DataError: as `parse_row` for comparisons, or `models` or `judgement` do not fit the responses.
    """
    value = row.value
    given = _judgement(row)
    if "responses" not in value and "chosen" not in value and isinstance(value.get("models"), list):
        group = _without_texts(row)
    else:
        group = parse_row(row, "comparisons")
    names = _models(row, len(group.responses))
    lengths = value.get("lengths")
    responses = [
        replace(response, meta={**response.meta, **({"policy": names[k]} if names else {})})
        for k, response in enumerate(group.responses)
    ]
    if isinstance(lengths, list) and len(lengths) == len(responses):
        responses = [
            replace(r, meta={**r.meta, "length": float(n)}) if not r.text else r
            for r, n in zip(responses, lengths, strict=True)
        ]
    drop = ("models", "judgement", "annotator", "lengths")
    meta = {key: item for key, item in group.prompt.meta.items() if key not in drop}
    prompt = replace(group.prompt, meta=meta)
    preference = _preference(row, group, given, prompt)
    return replace(group, prompt=prompt, responses=tuple(responses), preference=preference)


def _judgement(row: Row) -> dict[str, Any]:
    given: Any = row.value.get("judgement")
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        raise DataError(
            "field 'judgement' is no object",
            where=row.where,
            got=f"{type(given).__name__} {str(given)[:60]}",
            expected='{"annotator": "...", "when": "...", ...}',
        )
    found = {str(key): item for key, item in given.items() if item is not None}
    if row.value.get("annotator") is not None:
        found.setdefault("annotator", row.value["annotator"])
    _check_probability(row, found)
    _check_shown(row, found)
    return found


def _check_probability(row: Row, found: Mapping[str, Any]) -> None:
    p = found.get("chosen_with", 1.0)
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 < p <= 1:
        raise DataError(
            "'judgement.chosen_with' is no probability of a choice",
            where=row.where,
            got=p,
            expected="above 0, at most 1",
            fix="give the probability with which these responses were chosen; leave it out if there was no choice",
        )


def _check_shown(row: Row, found: Mapping[str, Any]) -> None:
    shown = found.get("shown")
    if shown is None:
        return
    responses = row.value.get("responses", row.value.get("models"))
    count = len(responses) if isinstance(responses, list) else 2
    if not isinstance(shown, list | tuple) or sorted(map(str, shown)) != sorted(map(str, range(count))):
        raise DataError(
            "'judgement.shown' is no order of the responses",
            where=row.where,
            got=shown,
            expected=f"each of 0 to {count - 1} once: the response that stood at each place of the page",
        )


def _models(row: Row, count: int) -> list[str]:
    names: Any = row.value.get("models")
    if names is None:
        return []
    if not isinstance(names, list) or len(names) != count or not all(isinstance(n, str) and n for n in names):
        raise DataError(
            "'models' does not name the model of each response",
            where=row.where,
            got=str(names)[:80],
            expected=f"{count} names",
            fix="give one name for each response, in the same order",
        )
    return names


def _preference(row: Row, group: Group, given: Mapping[str, Any], prompt: Prompt) -> Preference:
    preference = group.preference or Preference()
    meta = {key: item for key, item in given.items() if key not in OWN}
    own: dict[str, Any] = {key: str(given[key]) for key in OWN if key in given}
    if meta.get("reason") == BOTH_BAD:
        if len(group.responses) != 2 or len(set(ranks_of(preference) or ())) != 1:
            raise DataError(
                "'both_bad' is a verdict on two responses that nothing orders",
                where=row.where,
                got=f"ranks {ranks_of(preference)}",
                expected="two responses with equal ranks",
            )
        preference = Preference()
    return replace(preference, prompt=prompt.id, meta=meta, **own)


def _without_texts(row: Row) -> Group:
    """A battle of which the models and the verdict alone are known; its prompt has no words."""
    value = row.value
    ranks: Any = value.get("ranks")
    count = len(value["models"])
    if not isinstance(ranks, list) or len(ranks) != count or not all(_whole(rank) for rank in ranks) or count < 2:
        raise DataError(
            "a judgement without responses needs the rank of each model",
            where=row.where,
            got=f"models {str(value['models'])[:60]}, ranks {str(ranks)[:60]}",
            expected="as many ranks as models, 1 for the best",
            fix="give 'ranks' with 'models', or prompt and responses",
        )
    used = ("ranks", "id", "meta")
    meta = {**{key: item for key, item in value.items() if key not in used}, **(value.get("meta") or {})}
    name = str(value["id"]) if value.get("id") is not None else ""
    prompt = Prompt(text="", id=name, meta=meta)
    preference = Preference(ranks=tuple(int(rank) for rank in ranks))
    return Group(prompt, tuple(Response() for _ in ranks), preference=preference, origin=row.where)


def _whole(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 1


def judged_row(group: Group) -> dict[str, Any]:
    """Returns a judged group as a row that `parse_judged` and every stage for comparisons read.

    A preference without an order (both bad) becomes equal ranks with its `reason`. Token ids, log-probs and scores
    beside the preference's own numbers are not kept: files of groups (`write_groups`) have those.

    Raises:
        DataError: a group without a preference, or one without an order that is not "both bad".
    """
    preference = group.preference
    ranks = ranks_of(preference)
    both_bad = preference is not None and preference.meta.get("reason") == BOTH_BAD and len(group.responses) == 2
    if preference is None or (ranks is None and not both_bad):
        raise DataError(
            "a group without a verdict",
            where=group.origin or group.prompt.id,
            got="no preference" if preference is None else f"reason {preference.meta.get('reason', '')!r}",
            expected="ranks, shares or ratings of its responses",
            fix="leave it out: it compares nothing",
        )
    row = group.prompt.to_row()
    row["prompt"] = asked_of(group.prompt)
    row["responses"] = [answer_of(response) for response in group.responses]
    if preference.shares is not None:
        row["shares"] = list(preference.shares)
    elif preference.ratings is not None:
        row["scores"] = list(preference.ratings)
    else:
        row["ranks"] = list(ranks or [1] * len(group.responses))
    names = [str(response.meta.get("policy", "")) for response in group.responses]
    versions = [str(response.meta.get("version", "")) for response in group.responses]
    if all(names):
        row["models"] = [f"{n}@{v}" if v else n for n, v in zip(names, versions, strict=True)]
    own = {key: getattr(preference, key) for key in OWN if getattr(preference, key)}
    if own or preference.meta:
        row["judgement"] = {**own, **preference.meta}
    if group.prompt.meta:
        row["meta"] = dict(group.prompt.meta)
    return {key: item for key, item in row.items() if item or key in ("prompt", "responses")}


def asked_of(prompt: Prompt) -> Any:
    """Returns a prompt as the value of a row's `prompt`: a string where it is one user's turn, else messages.

    Raises:
        DataError: a prompt without messages.
    """
    if not prompt.messages:
        raise DataError(
            "a prompt that is no conversation",
            where=prompt.id,
            got="a text to be continued" if prompt.text else "no words",
            expected="messages",
            fix="files of groups (.groups.jsonl) hold such prompts",
        )
    first = prompt.messages[0]
    return first.content if _plain(prompt.messages) else [m.to_dict() for m in prompt.messages]


def _plain(messages: tuple[Message, ...]) -> bool:
    """True for one turn of a user that no reader takes for a transcript or for messages in quotes."""
    one = messages[0]
    text = one.content.lstrip()
    return (
        len(messages) == 1
        and one.role == "user"
        and not one.more
        and not is_transcript(one.content)
        and not text.startswith(("[", "{", "<"))
    )


def answer_of(response: Response) -> Any:
    """Returns a response as an element of a row's `responses`: its text, or its turns where it has several."""
    turns = response.meta.get("turns")
    if turns:
        return [dict(turn) for turn in turns]
    if is_transcript(response.text, answer=True) or response.text.lstrip().startswith(("[", "{")):
        return [{"role": "assistant", "content": response.text}]
    return response.text
