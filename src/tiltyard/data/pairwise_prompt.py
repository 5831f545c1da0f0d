"""Pairwise prompts: a prompt and two responses in one text, the input of a ranker.

A ranker is a scalar model s of a text with a prompt and two responses in an order, and

    logit rho(x, y1, y2) = s(x; y1 | y2) - s(x; y2 | y1)

As data, one comparison is a `Group` whose two "responses" are the two orders: the first shows the better answer first
and has rank 1, the second shows it second and has rank 2. The prompt is the policy's own and is computed once.

Swapping the answers swaps the two scores, so rho(x, y1, y2) = 1 - rho(x, y2, y1) whatever the model has learnt. The
order is therefore not randomised here, as RSO and SLiC-HF do for a ranker that reads one order: positions cancel in
the verdict. The position bias of the raw s is measured all the same (`position_bias`).
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace

from tiltyard.data.chat import Chat
from tiltyard.data.load import GroupStream, TooLong
from tiltyard.data.turns import turn_text, turns_of
from tiltyard.errors import DataError
from tiltyard.numerals import plural
from tiltyard.types import Group, Preference, Prompt, Response, pairs_of, ranks_of, shares_of

PAIRS = "pairs_of_row"  # key of Response.meta: how many comparisons the row it came from gave

LABELS = ("[Answer 1]", "[Answer 2]")
CUT = "[cut]"  # stands after an answer that the token limit ended
_LEAST = 4  # tokens of a prompt that is cut
_MARKS = re.compile(r"\[(Answer [12]|cut)\]", re.IGNORECASE)


def both_orders(prompt: Prompt, one: Response, other: Response) -> tuple[Response, Response]:
    """Returns the ranker's texts for both orders: (`one` first, `other` first).

    A response that spells out a label could imitate the other response, so its labels get round brackets. Special
    tokens are broken up by `Chat` as in any response.

    """
    if not prompt.messages and prompt.text is None:
        raise DataError("a prompt with neither messages nor text cannot be compared on", where=prompt.id)
    before = "" if prompt.messages else "\n"  # a plain text goes right on into what follows
    return _pair_text(one, other, before), _pair_text(other, one, before)


def _response_text(answer: Response) -> str:
    """Returns the response's text; of several turns all of them, each after its role."""
    turns = turns_of(answer)
    return turn_text(turns[0]) if len(turns) == 1 else "\n".join(f"{turn.role}: {turn_text(turn)}" for turn in turns)


def _pair_text(first: Response, second: Response, before: str) -> Response:
    parts = []
    for label, answer in zip(LABELS, (first, second), strict=True):
        words = _MARKS.sub(r"(\1)", _response_text(answer))
        parts.append(f"{label}\n{words} {CUT}" if answer.finish == "length" else f"{label}\n{words}")
    return Response(text=before + "\n".join(parts))


def pairwise_groups(group: Group) -> list[Group]:
    """Returns every untied pair of a ranked group as a comparison to be encoded, the better response first.

    Ranks leave ties out. Soft labels (`shares`) leave nothing out: the share of i among i and j is the probability that
    i is the better of the two.
    """
    if ranks_of(group.preference) is None:
        raise DataError(
            "a comparison without ranks",
            where=group.origin or group.prompt.id,
            fix="give rows with chosen and rejected, ranks or scores",
        )
    prompt = replace(group.prompt, ids=())
    soft = shares_of(group.preference)
    pairs = sorted(p for p in pairs_of(group.preference) if (p.p > 0.5 if soft is None else soft[p.better] > 0))
    return [
        replace(
            group,
            prompt=prompt,
            responses=tuple(
                replace(r, meta={PAIRS: len(pairs)})
                for r in both_orders(prompt, group.responses[pair.better], group.responses[pair.worse])
            ),
            scores=None,
            preference=Preference(ranks=(1, 2)) if soft is None else Preference(shares=(pair.p, 1 - pair.p)),
            origin=f"{group.origin} {pair.better}>{pair.worse}",
        )
        for pair in pairs
    ]


def encode_pairwise(
    chat: Chat, groups: Iterable[Group], max_length: int, too_long: TooLong = "drop"
) -> GroupStream[list[str]]:
    """Streams ranked groups as encoded comparisons, one per pair; `report` is then a list of lines.

    A row of K ranked responses yields a comparison for each untied pair. Its meta counts the comparisons of its row, so
    that the loss can weigh rows equally for any K.

    Args:
        max_length: tokens of the prompt with both answers.
        too_long: `drop` a comparison that is longer, or `truncate`: its prompt keeps its last tokens. A comparison
            whose answers alone are too long is dropped in either case, because both must be complete to be judged.

    Raises:
        DataError: at the end, where there was no comparison to make.
    """

    def stream() -> Generator[Group, None, list[str]]:
        rows = made = tied = dropped = cut = 0
        for group in groups:
            pairs = pairwise_groups(group)
            rows += 1
            tied += not pairs
            for pair in chat.encode_groups(pairs):
                room = max_length - max(len(r.ids) for r in pair.responses)
                if len(pair.prompt.ids) <= room:
                    made += 1
                    yield pair
                elif too_long == "truncate" and room >= _LEAST:
                    made, cut = made + 1, cut + 1
                    yield replace(pair, prompt=replace(pair.prompt, ids=pair.prompt.ids[-room:]))
                else:
                    dropped += 1
        if not made:
            raise DataError(
                "no comparison fits",
                got=f"{rows:,} rows: {tied:,} all tied, {dropped:,} comparisons longer than {max_length} tokens",
                expected=f"a prompt and two answers within {max_length} tokens",
                fix="raise max_length, or cut prompts with too_long=truncate",
            )
        return list(_report_lines(rows, made, tied, dropped, cut, max_length))

    return GroupStream(stream())


def _report_lines(rows: int, made: int, tied: int, dropped: int, cut: int, max_length: int) -> Iterator[str]:
    yield f"{plural(made, 'comparison')} of two answers from {plural(rows, 'row')}"
    if tied:
        yield f"note {tied:,}: rows without an untied pair"
    if dropped:
        yield f"dropped {dropped:,}: prompt and both answers longer than {max_length} tokens"
    if cut:
        yield f"cut {cut:,}: prompts cut at the front"
