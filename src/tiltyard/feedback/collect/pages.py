"""The annotator's pages: guidelines, tasks, feedback of training items, and the end."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response

from tiltyard.feedback.collect.desk import Desk, GuidelinesFirst
from tiltyard.feedback.store.people import Session
from tiltyard.feedback.store.verdicts import CHOICES, FLAGS, SCALE, STRENGTHS
from tiltyard.feedback.web.pages import REFUSED, render
from tiltyard.feedback.web.sessions import needs, protected, session

router = APIRouter(default_response_class=HTMLResponse, responses=REFUSED)
LETTERS = "ABCDEFGHI"
ROLES = ("system", "user", "assistant", "tool", "text")
NOTES = ("stored", "missing_choice", "skipped", "flagged", "stopped", "undone", "nothing_to_undo")
SKIP_REASONS = ("language", "knowledge", "broken", "upsetting", "other")
FLAG_REASONS = ("private", "nonsense", "harmful", "other")
LARGEST = 2**31 - 1  # ids of the store

Labeller = Annotated[Session, Depends(needs("annotator", "simulated"))]
Note = Annotated[str, Query(max_length=40)]
Exposure = Annotated[int, Form(ge=1, le=LARGEST)]
changes = [Depends(protected)]


class VerdictForm(BaseModel):
    """The fields of a task's form; `rank_0`, `rating_0`, `helpful_0`, ... of each answer are among the others."""

    model_config = ConfigDict(extra="allow")

    exposure: int = Field(ge=1, le=LARGEST)
    key: str = Field(min_length=1, max_length=64)
    kind: str = Field(max_length=20)
    seconds: float | None = Field(None, ge=0, le=1e7)
    comment: str = Field("", max_length=10_000)
    choice: str | None = Field(None, max_length=20)
    strength: int | None = None
    best: int | None = None
    worst: int | None = None
    text: str | None = None
    edited: int | None = None

    def verdict(self) -> dict[str, Any]:
        """Returns the verdict about places on the page; the store checks it."""
        if self.kind == "pair":
            decided = self.choice in CHOICES[:2] and self.strength is not None
            return {"choice": self.choice} | ({"strength": self.strength} if decided else {})
        if self.kind == "ranking":
            return {"ranks": self._numbers("rank")}
        if self.kind == "best_worst":
            return {"best": self.best, "worst": self.worst}
        if self.kind == "rating":
            return self._ratings()
        return {"text": self.text} | ({} if self.edited is None else {"edited": self.edited})

    def _ratings(self) -> dict[str, Any]:
        given, ratings = self.model_extra or {}, self._numbers("rating")
        flags = [
            {flag: given[f"{flag}_{k}"] == "yes" for flag in FLAGS if given.get(f"{flag}_{k}") in ("yes", "no")}
            for k in range(len(ratings))
        ]
        return {"ratings": ratings, "flags": flags}

    def _numbers(self, name: str) -> list[int]:
        """The fields name_0, name_1, ... up to the first that is no small number."""
        given, numbers = self.model_extra or {}, []
        for k in range(len(LETTERS)):
            value = given.get(f"{name}_{k}")
            if not isinstance(value, str) or not (value.isascii() and value.isdigit()) or len(value) > 2:
                break
            numbers.append(int(value))
        return numbers


@router.get("/", include_in_schema=False)
def start(request: Request) -> Response:
    """Goes to the page of the visitor's role."""
    found = session(request)
    if found is None:
        return RedirectResponse("/in", 303)
    return RedirectResponse("/admin" if found.annotator.role == "admin" else "/label", 303)


@router.get("/guidelines")
def guidelines(request: Request, found: Labeller) -> Response:
    """Shows the newest guidelines."""
    version, text, accepted = desk(request).guidelines(found.annotator.id)
    return render(request, "guidelines.html", version=version, text=text, accepted=accepted)


@router.post("/guidelines", dependencies=changes)
def accept(request: Request, found: Labeller, version: Annotated[int, Form(ge=1, le=LARGEST)]) -> Response:
    """Accepts a version of the guidelines."""
    desk(request).accept(found.annotator.id, version)
    return RedirectResponse("/label", 303)


@router.get("/label")
def task(request: Request, found: Labeller, note: Note = "") -> Response:
    """Shows the annotator's task, or that there is none left."""
    who = found.annotator.id
    try:
        given = desk(request).next(who)
    except GuidelinesFirst:
        return RedirectResponse("/guidelines", 303)
    done = desk(request).progress(who)
    shared: dict[str, Any] = {"done": done.judged, "note": note if note in NOTES else ""}
    if given is None:
        return render(request, "done.html", minutes=round(done.seconds / 60), **shared)
    return render(
        request,
        "task.html",
        task=given,
        turns=turns(given.prompt),
        letters=LETTERS,
        key=secrets.token_urlsafe(24),
        strengths=range(STRENGTHS[0], STRENGTHS[1] + 1) if desk(request).settings.strength else (),
        scale=range(SCALE[0], SCALE[1] + 1),
        flags=FLAGS,
        skip_reasons=SKIP_REASONS,
        flag_reasons=FLAG_REASONS,
        **shared,
    )


@router.post("/label", dependencies=changes)
def judge(request: Request, found: Labeller, form: Annotated[VerdictForm, Form()]) -> Response:
    """Stores a verdict and goes on: after a training item to its feedback. Enter in a field is no choice."""
    if form.choice == "none":
        return RedirectResponse("/label?note=missing_choice", 303)
    stored = desk(request).judge(
        found.annotator.id, form.exposure, form.verdict(), key=form.key, seconds=form.seconds, comment=form.comment
    )
    return RedirectResponse(f"/feedback/{stored.id}" if stored.stage == "training" else "/label", 303)


@router.get("/feedback/{judgement}")
def feedback(request: Request, found: Labeller, judgement: int) -> Response:
    """Shows what was expected of a training item."""
    seen = desk(request).review(found.annotator.id, judgement) if 0 < judgement <= LARGEST else None
    if seen is None:
        raise HTTPException(404)
    return render(request, "feedback.html", seen=seen, turns=turns(seen.prompt), letters=LETTERS)


@router.get("/skip")
@router.get("/flag")
@router.get("/keys")
def small(
    request: Request, found: Labeller, exposure: Annotated[int, Query(ge=1, le=LARGEST)] = 1, kind: str = "pair"
) -> Response:
    """The pages of what opens above the task where scripts run."""
    del found
    return render(
        request,
        "small.html",
        what=request.url.path.lstrip("/"),
        exposure=exposure,
        kind=kind,
        skip_reasons=SKIP_REASONS,
        flag_reasons=FLAG_REASONS,
    )


@router.post("/skip", dependencies=changes)
def skip(
    request: Request,
    found: Labeller,
    exposure: Exposure,
    reason: Annotated[str, Form(max_length=40)],
    more: Annotated[str, Form(max_length=1500)] = "",
) -> Response:
    """Gives a task to another annotator."""
    desk(request).skip(found.annotator.id, exposure, ": ".join(filter(None, (reason, more))))
    return RedirectResponse("/label?note=skipped", 303)


@router.post("/flag", dependencies=changes)
def flag(
    request: Request,
    found: Labeller,
    exposure: Exposure,
    reason: Annotated[str, Form(max_length=40)],
    more: Annotated[str, Form(max_length=1500)] = "",
) -> Response:
    """Marks the prompt of a task."""
    stopped = desk(request).flag(found.annotator.id, exposure, ": ".join(filter(None, (reason, more))))
    return RedirectResponse(f"/label?note={'stopped' if stopped else 'flagged'}", 303)


@router.post("/undo", dependencies=changes)
def undo(request: Request, found: Labeller) -> Response:
    """Takes the last verdict back and shows its task again."""
    undone = desk(request).undo(found.annotator.id)
    return RedirectResponse(f"/label?note={'undone' if undone else 'nothing_to_undo'}", 303)


def desk(request: Request) -> Desk:
    """Returns the desk of the application."""
    return request.app.state.desk


def turns(prompt: Any) -> list[tuple[str, str]]:
    """Returns a stored prompt as (role, Markdown) of each turn; further fields of a turn follow it as JSON."""
    if isinstance(prompt, Mapping):
        return [("text", str(prompt.get("text", "")))]
    return [(str(one.get("role", "")), _turn(one)) for one in prompt if isinstance(one, Mapping)]


def _turn(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=1)
    more = {key: value for key, value in message.items() if key not in ("role", "content")}
    if not more:
        return text
    fence = "~" * 40  # longer than any in a text of a tool
    return f"{text}\n\n{fence}\n{json.dumps(more, ensure_ascii=False, indent=1)}\n{fence}"
