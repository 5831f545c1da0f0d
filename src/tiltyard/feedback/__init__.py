"""Judges that compare or grade responses, with controls for their bias, cost and errors."""

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
    identity,
)
from tiltyard.feedback.simulated import SimulatedJudge, SimulatedRater
from tiltyard.feedback.verdicts import Debiased, Grade, Judge, JudgeError, ScoreJudge, Usage, Verdict

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
    "Usage",
    "Verdict",
    "build_judge",
    "build_list_judge",
    "build_score_judge",
    "build_scorer",
    "identity",
]
