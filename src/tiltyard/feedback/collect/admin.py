"""The admin's pages: where the labels stand, how far they can be trusted, disagreements, and the export."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from sqlalchemy import func, select
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response, StreamingResponse

from tiltyard.feedback.collect import charts
from tiltyard.feedback.collect.overview import Overview, overview
from tiltyard.feedback.collect.pages import LARGEST, LETTERS, turns
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.export import groups
from tiltyard.feedback.store.people import Session
from tiltyard.feedback.web.pages import REFUSED, render
from tiltyard.feedback.web.sessions import needs
from tiltyard.runs.groups import group_to_line
from tiltyard.stats.agreement import Agreement, percent_agreement
from tiltyard.stats.annotations import Annotations
from tiltyard.stats.habits import biases
from tiltyard.stats.intervals import Estimate
from tiltyard.stats.label_quality import Label, LabelReport, label_report, labels_of
from tiltyard.types import Preference

router = APIRouter(default_response_class=HTMLResponse, responses=REFUSED)
Admin = Annotated[Session, Depends(needs("admin"))]
STAGES = ("real", "adjudication", "gold", "attention")
ROUNDS = 400  # of the bootstrap: a page is waited for
FLOOR = 0.3  # of the competence, as `tiltyard agreement` has it
SHOWN = 15  # disagreements on the page


@dataclass(frozen=True)
class Found:
    """The figures of a store; `report` is None while nothing was judged.

    `tasks`: of each disagreement, in order. `by_version`: agreement of pairs by the version of the guidelines.
    """

    counts: Overview
    report: LabelReport | None
    tasks: tuple[int, ...] = ()
    by_version: Mapping[int, Agreement] = field(default_factory=dict)

    @property
    def poor(self) -> list[str]:
        """Names of the annotators whose quality is found poor."""
        return [one.name for one in self.report.annotators if one.standing == "poor"] if self.report else []

    @property
    def biases(self) -> dict[str, tuple[str, ...]]:
        """{annotator: biases that its habits show}."""
        people = self.report.annotators if self.report else ()
        return dict(biases({one.name: (one.first, one.longer) for one in people}))


class Figures:
    """The figures of a store, computed again when there is something new in it."""

    def __init__(self, database: Database):
        self.database = database
        self._lock = threading.Lock()
        self._state: Any = None
        self._found: Found | None = None

    def get(self) -> Found:
        """Returns the figures of what the store holds now."""
        with self._lock:
            with self.database.reading() as connection:
                tables = (t.judgements, t.tasks, t.acceptances, t.flags, t.exposures)
                state = [connection.scalar(select(func.max(table.c.id))) for table in tables]
                state.append(connection.scalar(select(func.max(t.guidelines.c.version))))
            if state != self._state or self._found is None:
                self._found, self._state = figures(self.database), state
            return self._found


def figures(database: Database) -> Found:
    """Computes the figures: counts of the store, and the report that `tiltyard agreement` prints."""
    counts = overview(database)
    found = list(groups(database, stages=STAGES))
    labels = labels_of(found)
    if not labels:
        return Found(counts, None)
    report = label_report(found, floor=FLOOR, rounds=ROUNDS)
    task = {x.item: int(x.group.preference.meta["task"]) for x in labels if x.group.preference is not None}
    shown = tuple(task[one.item] for one in report.disagreements[:SHOWN])
    return Found(counts, report, shown, _by_version(labels))


def _by_version(labels: Sequence[Label]) -> dict[int, Agreement]:
    """Percent agreement of pairs of which two people judged under the same version."""
    rows: dict[int, dict[Any, Any]] = defaultdict(dict)
    for label in labels:
        preference = label.group.preference
        if preference is None or not preference.guideline or "imported" in preference.meta:
            continue  # an imported judgement names guidelines of its own
        if label.kind == "pair" and label.stage == "real":
            rows[int(preference.guideline)][label.item, label.annotator] = (label.item, label.annotator, label.label)
    return {version: percent_agreement(Annotations.of(one.values()), rounds=ROUNDS) for version, one in rows.items()}


@router.get("/admin")
def admin(request: Request, found: Admin) -> Response:
    """Shows the whole on one page."""
    del found
    figures_now: Found = request.app.state.figures.get()
    return render(request, "admin.html", found=figures_now, charts=charts, floor=FLOOR, known=known)


@router.get("/admin/task/{task}")
def one(request: Request, found: Admin, task: int) -> Response:
    """Shows a task with its responses, their policies, and everyone's verdicts."""
    del found
    stored = _task(request.app.state.site.database, task) if 0 < task <= LARGEST else None
    if stored is None:
        raise HTTPException(404)
    return render(request, "admin_task.html", letters=LETTERS, **stored)


@router.get("/admin/labels.groups.jsonl")
def export(request: Request, found: Admin) -> Response:
    """Sends the judgements that stand as groups."""
    del found
    lines = (group_to_line(group) for group in groups(request.app.state.site.database))
    name = 'attachment; filename="labels.groups.jsonl"'
    return StreamingResponse(lines, media_type="application/jsonl", headers={"content-disposition": name})


def _task(database: Database, task: int) -> dict[str, Any] | None:
    with database.reading() as connection:
        row = connection.execute(
            select(t.tasks, t.prompts.c.messages)
            .join(t.prompts, t.prompts.c.id == t.tasks.c.prompt_id)
            .where(t.tasks.c.id == task)
        ).one_or_none()
        if row is None:
            return None
        stored = connection.execute(
            select(t.responses.c.id, t.responses.c.text, t.policies.c.name, t.policies.c.version)
            .join(t.policies, t.policies.c.id == t.responses.c.policy_id)
            .where(t.responses.c.id.in_(row.responses))
        ).all()
        children = connection.scalars(select(t.tasks.c.id).where(t.tasks.c.parent_id == task)).all()
    by_id = {response.id: response for response in stored}
    wanted = {task, *children}
    opinions = [
        (g.preference, spelled(g.preference), g.preference.meta["stage"])
        for g in groups(database, stages=(*STAGES, "training"), tasks=wanted)
        if g.preference is not None
    ]
    return {
        "task": row,
        "turns": turns(row.messages),
        "responses": [by_id[key] for key in row.responses],
        "opinions": opinions,
    }


def spelled(preference: Preference) -> str:
    """Returns a verdict in a few characters: `1 > 2`, `1 = 2`, `3 > 1 = 2 > 4`, ratings; responses count from 1."""
    if preference.ratings is not None:
        return " ".join(f"{rating:g}" for rating in preference.ratings)
    if preference.ranks is None:
        return str(preference.meta.get("reason", ""))
    by_rank: dict[int, list[str]] = defaultdict(list)
    for k, rank in enumerate(preference.ranks):
        by_rank[rank].append(str(k + 1))
    return " > ".join(" = ".join(by_rank[rank]) for rank in sorted(by_rank))


def known(estimate: Estimate | Agreement | None) -> bool:
    """True for a value that is there and a number."""
    return estimate is not None and not math.isnan(estimate.value)
