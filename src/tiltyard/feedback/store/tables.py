"""The tables of the feedback store.

What was asked, shown and judged is append-only (`APPEND_ONLY`; triggers refuse changes): a correction is a new
judgement that supersedes an older one, a lease ends by a row of its own, no policy or guideline is taken back. Only
`task_state` (a count) and `leases` (exposures that last), which can be computed again, `annotators` and `sessions`
change.

Times are milliseconds since 1970 in UTC. Prompts and responses are named by digests of their content.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

prompts = Table(
    "prompts",
    metadata,
    Column("id", String(32), primary_key=True),  # types.prompt_digest
    Column("messages", JSON, nullable=False),  # a list of {role, content, ...}, or {"text": ...}
    Column("tools", Text, nullable=False, server_default=""),  # that the chat template is given, as JSON
    Column("source", String(200), nullable=False, server_default=""),
    Column("meta", JSON, nullable=False),
    Column("created", BigInteger, nullable=False),
)

policies = Table(
    "policies",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False),
    Column("version", String(200), nullable=False, server_default=""),
    Column("facts", JSON, nullable=False),  # run, stage, method, digest of the weights
    Column("created", BigInteger, nullable=False),
    UniqueConstraint("name", "version"),
)

responses = Table(
    "responses",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", String(32), nullable=False),  # types.response_id
    Column("prompt_id", ForeignKey("prompts.id"), nullable=False),
    Column("policy_id", ForeignKey("policies.id"), nullable=False),
    Column("text", Text, nullable=False),
    Column("meta", JSON, nullable=False),
    Column("created", BigInteger, nullable=False),
    UniqueConstraint("prompt_id", "policy_id", "digest"),
)

guidelines = Table(
    "guidelines",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("text", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
)

annotators = Table(
    "annotators",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("role", String(20), nullable=False),  # admin, annotator, judge, simulated
    Column("token", String(64), unique=True),  # SHA-256 of the personal link's token; null: cannot sign in
    Column("active", Integer, nullable=False, server_default="1"),
    Column("facts", JSON, nullable=False),  # of a judge: model, snapshot, digest of the template
    Column("created", BigInteger, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(64), primary_key=True),  # SHA-256 of the cookie
    Column("annotator_id", ForeignKey("annotators.id"), nullable=False),
    Column("csrf", String(64), nullable=False),
    Column("expires", BigInteger, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String(20), nullable=False),  # pair, ranking, best_worst, rating, write
    Column("stage", String(20), nullable=False),  # training, real, gold, attention, adjudication
    Column("prompt_id", ForeignKey("prompts.id"), nullable=False),
    Column("responses", JSON, nullable=False),  # ids, in the order to which verdicts refer
    Column("overlap", Integer, nullable=False),  # people who shall judge it
    Column("probability", Float, nullable=False),  # with which this set of responses was chosen among the possible ones
    Column("chooser", String(100), nullable=False),  # how it was chosen: random, active, all, adjudication
    Column("expected", JSON),  # the right verdict of a training, gold or attention item
    Column("explanation", Text, nullable=False, server_default=""),  # shown after a training item
    Column("parent_id", ForeignKey("tasks.id"), index=True),  # what an adjudication decides
    Column("place", Float, nullable=False),  # tasks are given out by increasing place
    Column("source", String(200), nullable=False, server_default=""),
    Column("created", BigInteger, nullable=False),
    Index("ix_tasks_stage_place", "stage", "place"),
)

task_state = Table(
    "task_state",
    metadata,
    Column("task_id", ForeignKey("tasks.id"), primary_key=True),
    Column("missing", Integer, nullable=False),  # judgements that are still wanted
    Column(
        "stage", String(20), nullable=False, server_default=""
    ),  # of the task, as `place`: the queue's index has both
    Column("begun", Integer, nullable=False, server_default="0"),  # missing - overlap: below 0 once someone has judged
    Column("place", Float, nullable=False, server_default="0"),
    Index("ix_task_state_missing", "missing"),
    Index(
        "ix_task_state_queue",  # open tasks in the order in which they are given out
        "stage",
        "begun",
        "place",
        "task_id",
        sqlite_where=text("missing > 0"),
        postgresql_where=text("missing > 0"),
    ),
)

# what an open task becomes when it is given to no one any more; `begun` stays `missing - overlap` of what is wanted
CLOSED = {"missing": 0, "begun": task_state.c.begun - task_state.c.missing}

exposures = Table(
    "exposures",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task_id", ForeignKey("tasks.id"), nullable=False, index=True),
    Column("annotator_id", ForeignKey("annotators.id"), nullable=False, index=True),
    Column("shown", JSON, nullable=False),  # shown[place on the page] = index into the task's responses
    Column("guideline", ForeignKey("guidelines.version"), nullable=False),
    Column("began", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),  # of the lease
    Index("ix_exposures_task_annotator", "task_id", "annotator_id"),
)

exposure_ends = Table(
    "exposure_ends",
    metadata,
    Column("exposure_id", ForeignKey("exposures.id"), primary_key=True),
    Column("reason", String(40), nullable=False),  # judged, skipped, released
    Column("note", Text, nullable=False, server_default=""),
    Column("ended", BigInteger, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("exposure_id", ForeignKey("exposures.id"), primary_key=True),
    Column("task_id", ForeignKey("tasks.id"), nullable=False, index=True),
    Column("annotator_id", ForeignKey("annotators.id"), nullable=False, index=True),
    Column("expires", BigInteger, nullable=False, index=True),
)

draws = Table(
    "draws",
    metadata,
    Column("exposure_id", ForeignKey("exposures.id"), primary_key=True),
    Column("probability", Float, nullable=False),  # with which this task was drawn
    Column("candidates", Integer, nullable=False),  # tasks it was drawn among, itself included
    Column("chooser", String(100), nullable=False),  # how
    Column("informed_by", BigInteger, nullable=False),  # id of the newest judgement that was known; 0: none
)

judgements = Table(
    "judgements",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key", String(64), nullable=False, unique=True),  # made by the page: sent twice, it is stored once
    Column("task_id", ForeignKey("tasks.id"), nullable=False, index=True),
    Column("annotator_id", ForeignKey("annotators.id"), nullable=False, index=True),
    Column("exposure_id", ForeignKey("exposures.id")),
    Column("verdict", JSON, nullable=False),  # refers to the task's responses, not to places on the page
    Column("comment", Text, nullable=False, server_default=""),
    Column("seconds", Float),  # between showing and judging
    Column("supersedes", ForeignKey("judgements.id"), unique=True),
    Column("created", BigInteger, nullable=False),
    Index("ix_judgements_task_annotator", "task_id", "annotator_id"),
    Index(
        "uq_judgements_once",
        "task_id",
        "annotator_id",
        unique=True,
        sqlite_where=text("supersedes IS NULL"),
        postgresql_where=text("supersedes IS NULL"),
    ),
)

imports = Table(
    "imports",
    metadata,
    Column("judgement_id", ForeignKey("judgements.id"), primary_key=True),
    Column("origin", Text, nullable=False),  # file:line
    Column("meta", JSON, nullable=False),  # what else the file says of the judgement
    Column("created", BigInteger, nullable=False),  # when it was imported
)

flags = Table(
    "flags",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("prompt_id", ForeignKey("prompts.id"), nullable=False),
    Column("annotator_id", ForeignKey("annotators.id"), nullable=False),
    Column("reason", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
)

acceptances = Table(
    "acceptances",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("annotator_id", ForeignKey("annotators.id"), nullable=False),
    Column("guideline", ForeignKey("guidelines.version"), nullable=False),
    Column("created", BigInteger, nullable=False),
    UniqueConstraint("annotator_id", "guideline"),
)

campaigns = Table(
    "campaigns",
    metadata,
    Column("task_id", ForeignKey("tasks.id"), primary_key=True),
    Column("name", String(200), nullable=False, index=True),  # under which the task was added, with others
)

APPEND_ONLY = (
    "prompts",
    "policies",
    "responses",
    "guidelines",
    "tasks",
    "exposures",
    "exposure_ends",
    "draws",
    "judgements",
    "imports",
    "flags",
    "acceptances",
    "campaigns",
)
