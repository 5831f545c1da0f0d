"""The same desk as JSON, for simulated annotators and programs: sign in by a form at `/in`, then `/api/...`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from tiltyard.feedback.collect.desk import Desk
from tiltyard.feedback.collect.pages import LARGEST, Labeller
from tiltyard.feedback.web.sessions import protected


class Refused(BaseModel):
    """An error of the door: nothing was stored."""

    detail: str | list[str]
    expected: str | None = None


router = APIRouter(prefix="/api", responses={code: {"model": Refused} for code in (401, 403, 409, 413, 422, 503)})
changes = [Depends(protected)]
Exposure = Annotated[int, Field(ge=1, le=LARGEST)]


class Me(BaseModel):
    """The signed-in annotator; `csrf` must come back as the header `x-csrf-token`."""

    name: str
    role: str
    csrf: str
    guideline: int
    accepted: int
    judged: int


class Task(BaseModel):
    """A task: what is asked, and the texts in the order of the page."""

    exposure: int
    kind: str
    training: bool
    prompt: Any
    texts: list[str]
    remaining: int


class Verdict(BaseModel):
    """A verdict about places of the page; `key` makes sending it twice harmless."""

    exposure: Exposure
    key: str = Field(min_length=1, max_length=64)
    verdict: dict[str, Any]
    seconds: float | None = Field(None, ge=0, le=1e7)
    comment: str = Field("", max_length=10_000)


class Outcome(BaseModel):
    """A stored verdict; `right` and `explanation` of training items alone."""

    id: int
    right: bool | None = None
    explanation: str = ""


class Reason(BaseModel):
    """A reason to skip a task or flag its prompt."""

    exposure: Exposure
    reason: str = Field(min_length=1, max_length=2000)


class Accepted(BaseModel):
    """A version of the guidelines."""

    version: int = Field(ge=1, le=LARGEST)


def desk(request: Request) -> Desk:
    """Returns the desk of the application."""
    return request.app.state.desk


@router.get("/me")
def me(request: Request, found: Labeller) -> Me:
    """Returns the signed-in annotator."""
    who = found.annotator
    newest, _, accepted = desk(request).guidelines(who.id)
    judged = desk(request).progress(who.id).judged
    return Me(name=who.name, role=who.role, csrf=found.csrf, guideline=newest, accepted=accepted, judged=judged)


@router.post("/guidelines", dependencies=changes)
def accept(request: Request, found: Labeller, sent: Accepted) -> dict[str, bool]:
    """Accepts a version of the guidelines."""
    desk(request).accept(found.annotator.id, sent.version)
    return {"accepted": True}


@router.get("/task")
def task(request: Request, found: Labeller) -> Task | None:
    """Returns the annotator's task, null where there is none left."""
    given = desk(request).next(found.annotator.id)
    if given is None:
        return None
    return Task(
        exposure=given.exposure,
        kind=given.kind,
        training=given.stage == "training",
        prompt=given.prompt,
        texts=list(given.texts),
        remaining=given.remaining,
    )


@router.post("/judgements", dependencies=changes)
def judge(request: Request, found: Labeller, sent: Verdict) -> Outcome:
    """Stores a verdict. When this answers, it is on disk."""
    stored = desk(request).judge(
        found.annotator.id, sent.exposure, sent.verdict, key=sent.key, seconds=sent.seconds, comment=sent.comment
    )
    if stored.stage != "training":
        return Outcome(id=stored.id)
    return Outcome(id=stored.id, right=stored.right, explanation=stored.explanation)


@router.post("/skip", dependencies=changes)
def skip(request: Request, found: Labeller, sent: Reason) -> dict[str, bool]:
    """Gives a task to another annotator."""
    desk(request).skip(found.annotator.id, sent.exposure, sent.reason)
    return {"skipped": True}


@router.post("/flag", dependencies=changes)
def flag(request: Request, found: Labeller, sent: Reason) -> dict[str, bool]:
    """Marks the prompt of a task."""
    return {"flagged": True, "stopped": desk(request).flag(found.annotator.id, sent.exposure, sent.reason)}


@router.post("/undo", dependencies=changes)
def undo(request: Request, found: Labeller) -> dict[str, bool]:
    """Takes the last verdict back."""
    return {"undone": desk(request).undo(found.annotator.id)}
