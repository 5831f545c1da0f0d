"""The identity of a judge: its model, the snapshot of it that answered, and the digest of the texts of its question.

Another snapshot of one model, or another wording, is another judge: verdicts of the two are not mixed in one row of a
table (in JudgeArena's measurements a second snapshot of one judge moved win rates by 11 points).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tiltyard.feedback.answers import content_key
from tiltyard.feedback.prompts import Exemplar, Template, template_of

MAX_NAME = 200  # characters, of an annotator in a store


@dataclass(frozen=True)
class JudgeIdentity:
    """A judge's model, snapshot and template.

    Attributes:
        model: the name it is served under, a folder, or the kind of a judge that has no model.
        snapshot: the version that answered: what the server names, or the digest of a folder's weights; "" if unknown.
        template: name and version of the wording, e.g. `pair-1`. digest: of all texts and settings of the question.
        source: of the wording.
    """

    model: str
    snapshot: str
    template: str
    digest: str
    source: str

    @property
    def name(self) -> str:
        """The name of the annotator: `judge:MODEL@SNAPSHOT#DIGEST`, as short as a store's names may be."""
        at = f"@{self.snapshot}" if self.snapshot and self.snapshot != self.model else ""
        return f"judge:{self.model}"[: MAX_NAME - len(at) - 14] + f"{at}#{self.digest}"

    def facts(self) -> dict[str, str]:
        """The parts, for the annotator's record of a store and the result of a stage."""
        return asdict(self)


def identity_of(
    model: str,
    ask: str,
    instruction: object,
    exemplars: Sequence[Exemplar] = (),
    *,
    snapshot: str = "",
    **further: object,
) -> JudgeIdentity:
    """Returns the identity of a judge.

    Args:
        instruction: in place of the template's own beginning; empty: the template's.
        further: other settings on which its verdicts depend (debias, style, reasoning, ...).
    """
    template: Template = template_of(ask)
    texts = [template.text, str(instruction or ""), [one.model_dump() for one in exemplars]]
    digest = content_key(texts, {key: str(value) for key, value in further.items()})[:12]
    return JudgeIdentity(model, snapshot, f"{template.name}-{template.version}", digest, template.source)
