"""Labels of people on pairs, for stages that compare judges with them: of a file, or of a feedback store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tiltyard.data import BadRows, parsed_rows, read_groups
from tiltyard.data.bad_rows import BadRowRule, parse_answers
from tiltyard.evaluation.people import GivenVerdict, preference_of_judge, verdicts_of_row
from tiltyard.stages.base import StageContext
from tiltyard.stats.judged import is_judge
from tiltyard.types import Group

Label = tuple[Group, dict[str, GivenVerdict]]


def labels_of_file(
    context: StageContext, data: str, *, split: str = "", limit: int = 0, bad_rows: BadRowRule = "error"
) -> Iterator[Label]:
    """Yields every row's pair with its label, and the published verdicts of judges that the row has."""
    path = context.resolve(data, want="")
    if str(path).endswith(".groups.jsonl"):
        yield from map(_label, read_groups(path))
        return
    bad = BadRows(bad_rows)
    for row, group in parsed_rows(path, parse_answers, bad, split=split or None, limit=limit or None):
        yield group, verdicts_of_row(row)
    if bad.count:
        context.report("data", bad.lines())


def labels_of_store(store: str) -> Iterator[Label]:
    """Yields the standing judgements of a store's real pairs: those of judges as verdicts, all others as labels."""
    from tiltyard.feedback.store.database import Database
    from tiltyard.feedback.store.export import groups

    yield from map(_label, groups(Database(store), kinds=("pair",), stages=("real",)))


def _label(group: Group) -> Label:
    """A judged pair as a label of a person, or as the verdict of a judge."""
    one = group.preference
    if one is not None and is_judge(one):
        return replace(group, preference=None), {one.annotator: preference_of_judge(one)}
    return group, {}


def is_store(name: str) -> bool:
    """True for the file or the URL of a feedback store."""
    return name.endswith(".db") or name.startswith(("sqlite:", "postgresql:"))


def labels_of(context: StageContext, name: str) -> Iterator[Label]:
    """Yields the labels of a file or a store, see the two above."""
    yield from labels_of_store(name) if is_store(name) else labels_of_file(context, name)
