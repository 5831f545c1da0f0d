"""Judges that compare or grade responses, with controls for their bias, cost and errors.

Names are imported when they are first used: the pages for people and the stores need neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiltyard.lazy import lazy

if TYPE_CHECKING:
    from tiltyard.feedback.answers import AnswerCache
    from tiltyard.feedback.client import Client, Endpoint
    from tiltyard.feedback.identity import JudgeIdentity
    from tiltyard.feedback.listwise import BothLists, ListJudge, Ranking
    from tiltyard.feedback.local import ModelJudge, ModelPointsJudge, ModelScoreJudge
    from tiltyard.feedback.prompts import Exemplar
    from tiltyard.feedback.remote import ApiJudge, ApiPointsJudge, ApiScoreJudge
    from tiltyard.feedback.scorers import GradeScorer, JudgeScorer, ListScorer
    from tiltyard.feedback.service import ServiceScorer
    from tiltyard.feedback.settings import (
        ApiJudgeSettings,
        JudgeSettings,
        ModelJudgeSettings,
        SimulatedJudgeSettings,
        build_judge,
        build_list_judge,
        build_score_judge,
        build_scorer,
        judge_identity,
    )
    from tiltyard.feedback.simulated import SimulatedJudge, SimulatedRater
    from tiltyard.feedback.teacher import Teacher
    from tiltyard.feedback.verdicts import Debiased, Grade, Judge, JudgeError, ScoreJudge, Usage, Verdict

_SETTINGS = ("ApiJudgeSettings", "JudgeSettings", "ModelJudgeSettings", "SimulatedJudgeSettings")
_BUILDERS = ("build_judge", "build_list_judge", "build_score_judge", "build_scorer", "judge_identity")
__getattr__ = lazy(
    __name__,
    {
        "tiltyard.feedback.answers": ("AnswerCache",),
        "tiltyard.feedback.client": ("Client", "Endpoint"),
        "tiltyard.feedback.identity": ("JudgeIdentity",),
        "tiltyard.feedback.listwise": ("BothLists", "ListJudge", "Ranking"),
        "tiltyard.feedback.local": ("ModelJudge", "ModelPointsJudge", "ModelScoreJudge"),
        "tiltyard.feedback.prompts": ("Exemplar",),
        "tiltyard.feedback.remote": ("ApiJudge", "ApiPointsJudge", "ApiScoreJudge"),
        "tiltyard.feedback.scorers": ("GradeScorer", "JudgeScorer", "ListScorer"),
        "tiltyard.feedback.service": ("ServiceScorer",),
        "tiltyard.feedback.settings": (*_SETTINGS, *_BUILDERS),
        "tiltyard.feedback.simulated": ("SimulatedJudge", "SimulatedRater"),
        "tiltyard.feedback.teacher": ("Teacher",),
        "tiltyard.feedback.verdicts": (
            "Debiased",
            "Grade",
            "Judge",
            "JudgeError",
            "ScoreJudge",
            "Usage",
            "Verdict",
        ),
    },
)

__all__ = [
    "AnswerCache",
    "ApiJudge",
    "ApiJudgeSettings",
    "ApiPointsJudge",
    "ApiScoreJudge",
    "BothLists",
    "Client",
    "Debiased",
    "Endpoint",
    "Exemplar",
    "Grade",
    "GradeScorer",
    "Judge",
    "JudgeError",
    "JudgeIdentity",
    "JudgeScorer",
    "JudgeSettings",
    "ListJudge",
    "ListScorer",
    "ModelJudge",
    "ModelJudgeSettings",
    "ModelPointsJudge",
    "ModelScoreJudge",
    "Ranking",
    "ScoreJudge",
    "ServiceScorer",
    "SimulatedJudge",
    "SimulatedJudgeSettings",
    "SimulatedRater",
    "Teacher",
    "Usage",
    "Verdict",
    "build_judge",
    "build_list_judge",
    "build_score_judge",
    "build_scorer",
    "judge_identity",
]
