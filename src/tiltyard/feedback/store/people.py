"""Annotators, their personal links and sessions, and versions of the guidelines."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import bindparam, delete, func, insert, select, update

from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.database import Database, now

Role = Literal["admin", "annotator", "judge", "simulated", "visitor"]  # visitor: of the arena, without a link
ROLES: tuple[Role, ...] = ("admin", "annotator", "judge", "simulated", "visitor")
SESSION_HOURS = 12

# Statements of every request are made once: building one takes longer than running it.
_SESSION = (
    select(t.sessions, t.annotators)
    .join(t.annotators, t.annotators.c.id == t.sessions.c.annotator_id)
    .where(t.sessions.c.id == bindparam("digest"), t.sessions.c.expires >= bindparam("at"), t.annotators.c.active == 1)
)
_STATE = select(
    select(func.max(t.guidelines.c.version)).scalar_subquery(),
    select(func.max(t.acceptances.c.guideline))
    .where(t.acceptances.c.annotator_id == bindparam("annotator"))
    .scalar_subquery(),
)


@dataclass(frozen=True)
class Annotator:
    """An annotator: a person, an AI judge or a simulated one."""

    id: int
    name: str
    role: Role
    active: bool


@dataclass(frozen=True)
class Session:
    """A signed-in annotator; `csrf` must come back with every form."""

    annotator: Annotator
    csrf: str
    expires: int


def add_annotator(
    database: Database, name: str, role: Role = "annotator", facts: Mapping[str, Any] | None = None
) -> tuple[Annotator, str]:
    """Adds an annotator and returns it with the token of its personal link, which is shown once and stored as a hash.

    Args:
        facts: of a judge, what it is: model, snapshot, digest of the template.

    Raises:
        ConfigError: an empty name, one that exists, or an unknown role.
    """
    name = name.strip()
    if not name or len(name) > 200:
        raise ConfigError(
            "an annotator needs a name", where="annotator", got=repr(name), expected="1 to 200 characters"
        )
    if role not in ROLES:
        raise ConfigError("unknown role", where=f"annotator {name}", got=role, expected=", ".join(ROLES))
    token = secrets.token_urlsafe(32)
    row = {"name": name, "role": role, "token": digest(token), "facts": dict(facts or {}), "created": now()}
    with database.writing() as connection:
        if connection.scalar(select(t.annotators.c.id).where(t.annotators.c.name == name)) is not None:
            fix = "take another name, or make a new link for this one"
            raise ConfigError("an annotator of this name exists", where="annotator", got=name, fix=fix)
        key = connection.execute(insert(t.annotators).values(row)).inserted_primary_key
    assert key is not None
    return Annotator(key[0], name, role, True), token


def new_link(database: Database, name: str) -> str:
    """Returns a new token for an annotator; the old link and all sessions end.

    Raises:
        ConfigError: no annotator has this name.
    """
    token = secrets.token_urlsafe(32)
    with database.writing() as connection:
        found = connection.scalar(select(t.annotators.c.id).where(t.annotators.c.name == name))
        if found is None:
            raise ConfigError("no annotator has this name", where="annotator", got=name, fix="add the annotator first")
        connection.execute(update(t.annotators).where(t.annotators.c.id == found).values(token=digest(token)))
        connection.execute(delete(t.sessions).where(t.sessions.c.annotator_id == found))
    return token


def set_active(database: Database, name: str, active: bool) -> None:
    """Lets an annotator in or keeps it out; what it judged stays."""
    with database.writing() as connection:
        found = connection.scalar(select(t.annotators.c.id).where(t.annotators.c.name == name))
        if found is None:
            raise ConfigError("no annotator has this name", where="annotator", got=name)
        connection.execute(update(t.annotators).where(t.annotators.c.id == found).values(active=int(active)))
        if not active:
            connection.execute(delete(t.sessions).where(t.sessions.c.annotator_id == found))


def sign_in(database: Database, token: str) -> tuple[str, Session] | None:
    """Returns the cookie and the session of a personal link; None for a link that is unknown or shut."""
    cookie, csrf, at = secrets.token_urlsafe(32), secrets.token_urlsafe(32), now()
    with database.writing() as connection:
        row = connection.execute(
            select(t.annotators).where(t.annotators.c.token == digest(token), t.annotators.c.active == 1)
        ).one_or_none()
        if row is None:
            return None
        expires = at + SESSION_HOURS * 3_600_000
        connection.execute(delete(t.sessions).where(t.sessions.c.expires < at))
        connection.execute(
            insert(t.sessions).values(id=digest(cookie), annotator_id=row.id, csrf=csrf, expires=expires)
        )
    return cookie, Session(Annotator(row.id, row.name, row.role, True), csrf, expires)


def session_of(database: Database, cookie: str) -> Session | None:
    """Returns the session of a cookie; None where it is unknown, has expired, or its annotator is shut out."""
    with database.reading() as connection:
        row = connection.execute(_SESSION, {"digest": digest(cookie), "at": now()}).one_or_none()
    return None if row is None else Session(Annotator(row.id_1, row.name, row.role, True), row.csrf, row.expires)


def sign_out(database: Database, cookie: str) -> None:
    """Ends a session."""
    with database.writing() as connection:
        connection.execute(delete(t.sessions).where(t.sessions.c.id == digest(cookie)))


def annotators(database: Database) -> list[Annotator]:
    """Returns all annotators in the order in which they were added."""
    with database.reading() as connection:
        rows = connection.execute(select(t.annotators).order_by(t.annotators.c.id)).all()
    return [Annotator(row.id, row.name, row.role, bool(row.active)) for row in rows]


def add_guideline(database: Database, text: str) -> int:
    """Adds a version of the guidelines (Markdown) and returns its number; the same text again is the same version.

    Raises:
        DataError: an empty text.
    """
    if not text.strip():
        raise DataError("the guidelines are empty", where="guidelines", fix="write what annotators should prefer")
    with database.writing() as connection:
        newest = connection.execute(select(t.guidelines).order_by(t.guidelines.c.version.desc()).limit(1)).one_or_none()
        if newest is not None and newest.text == text:
            return int(newest.version)
        version = (connection.scalar(select(func.max(t.guidelines.c.version))) or 0) + 1
        connection.execute(insert(t.guidelines).values(version=version, text=text, created=now()))
    return int(version)


def guideline(database: Database) -> tuple[int, str] | None:
    """Returns the newest version of the guidelines and its text; None where there is none."""
    with database.reading() as connection:
        row = connection.execute(select(t.guidelines).order_by(t.guidelines.c.version.desc()).limit(1)).one_or_none()
    return None if row is None else (int(row.version), row.text)


def guideline_of(database: Database, text: str) -> int | None:
    """Returns the newest version of the guidelines that has this text; None where none has."""
    table = t.guidelines
    with database.reading() as connection:
        found = connection.scalar(select(func.max(table.c.version)).where(table.c.text == text))
    return None if found is None else int(found)


def accept_guideline(database: Database, annotator: int, version: int) -> None:
    """Notes that an annotator has read a version of the guidelines and accepts it; a second time changes nothing.

    Raises:
        DataError: there is no such version.
    """
    table = t.acceptances
    with database.writing() as connection:
        if connection.scalar(select(t.guidelines.c.version).where(t.guidelines.c.version == version)) is None:
            raise DataError("there is no such version of the guidelines", where="guidelines", got=version)
        known = select(table.c.id).where(table.c.annotator_id == annotator, table.c.guideline == version)
        if connection.scalar(known) is None:
            connection.execute(insert(table).values(annotator_id=annotator, guideline=version, created=now()))


def guideline_state(database: Database, annotator: int) -> tuple[int, int]:
    """Returns the newest version of the guidelines, 0 without any, and the newest that an annotator has accepted."""
    with database.reading() as connection:
        row = connection.execute(_STATE, {"annotator": annotator}).one()
    return int(row[0] or 0), int(row[1] or 0)


def accepted_guideline(database: Database, annotator: int) -> int:
    """Returns the newest version of the guidelines that an annotator has accepted; 0: none."""
    table = t.acceptances
    with database.reading() as connection:
        return int(connection.scalar(select(func.max(table.c.guideline)).where(table.c.annotator_id == annotator)) or 0)


def digest(token: str) -> str:
    """SHA-256 in hex: a token has 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(token.encode()).hexdigest()
