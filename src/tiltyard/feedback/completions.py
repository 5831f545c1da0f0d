"""A chat completion as servers send it: its text, why it ended, the alternatives of its tokens, and what it cost.

An answer is a mapping of JSON values: `text` without separate reasoning; `finish`, the server's `finish_reason`;
`refusal`; `top`, for each generated token [[its text, log-prob], [alternative, log-prob], ...], empty where there are
no alternatives; `tokens_in`, `tokens_out`, and `metered`: whether the server reported them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tiltyard.feedback.replies import answer_part
from tiltyard.feedback.verdicts import Cause

Answer = Mapping[str, Any]

_TOKENS = 64  # tokens of an answer whose alternatives are kept
_DONE = ("", "stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token", "complete", "completed", "done")
_TOOLS = ("tool_calls", "function_call", "tool_use")  # ended; whether there is a text decides
_CUT = ("length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded", "incomplete")
_FILTERED = ("content_filter", "safety", "recitation", "refusal", "blocklist", "prohibited_content", "spii", "blocked")
_FAILED = (
    "error",
    "abort",
    "aborted",
    "cancelled",
    "canceled",
    "insufficient_system_resource",
    "network_error",
    "timeout",
)
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PIECES = str.maketrans({"\u2581": " ", "\u0120": " ", "\u010a": "\n", "\u0109": "\t"})  # of raw vocabularies


def read_completion(body: bytes) -> tuple[dict[str, Any] | None, str]:
    """Returns (answer, ""), or (None, what is wrong) for a reply that is no chat completion or reports a failure."""
    try:
        value = json.loads(body)
        if value.get("error"):
            return None, f"an error in place of a completion: {json.dumps(value['error'])[:300]}"
        choice = value["choices"][0]
        message = choice["message"]
        finish = choice.get("finish_reason")
        text, refusal = _text(message.get("content"))
        answer = {"text": text, "finish": "" if finish is None else str(finish)[:80]}
        answer["refusal"] = str(message.get("refusal") or refusal or "")[:2000]
        answer |= {"top": _top(choice.get("logprobs"), text)} | _tokens(value.get("usage"))
        answer |= {"served": _served(value)}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        shown = body[:200].decode(errors="replace")
        return None, f"a reply that is no chat completion ({type(error).__name__}: {str(error)[:80]}): {shown!r}"
    if answer["finish"].lower() in _FAILED or choice.get("error"):
        shown = json.dumps(choice.get("error"))[:300] if choice.get("error") else ""
        return None, f"the server gave up on its reply (finish_reason {answer['finish']!r}) {shown}".strip()
    return answer, ""


def is_cut(answer: Answer) -> bool:
    """True if the answer ended at a limit of its length."""
    return str(answer.get("finish", "")).lower() in _CUT


def no_answer(answer: Answer) -> tuple[Cause, str] | None:
    """Returns (cause, reason) of a completion that cannot hold a verdict, whatever its text; else None.

    A cut one is not among them: what was written before the cut may have log-probabilities.
    """
    if answer.get("cause"):
        return answer["cause"], str(answer.get("reason", ""))
    text, finish = str(answer["text"]), str(answer.get("finish", ""))
    if answer.get("refusal"):
        return "refused", f"the model refused: {str(answer['refusal'])[:200]!r}"
    if finish.lower() in _FILTERED:
        return "filtered", f"the reply was filtered (finish_reason {finish!r})"
    if finish.lower() not in (*_DONE, *_TOOLS, *_CUT):
        return "cut", f"the reply ended with finish_reason {finish!r}: {text[:80]!r}"
    if is_cut(answer):
        part = answer_part(text)
        if not (part or "").strip():
            return "cut", f"the reply was cut before an answer (finish_reason {finish!r}): raise max_tokens"
    elif not text.strip():
        return "empty", f"the reply has no text (finish_reason {finish!r})"
    return None


def _text(content: Any) -> tuple[str, str]:
    """Returns (text, refusal) of a message's content: a text, nothing, or a list of parts, of which texts count."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise TypeError(f"the content is a {type(content).__name__}")
    texts, refusals = [], []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif part.get("type") in ("text", "output_text", None):
            text = part["text"]
            texts.append(text["value"] if isinstance(text, dict) else text)
        elif part.get("type") == "refusal":
            refusals.append(str(part["refusal"]))
    return "".join(texts), " ".join(refusals)


def _served(value: Mapping[str, Any]) -> str:
    """The model that answered, as the server names it, with the fingerprint of its configuration where it has one."""
    names = [value.get("model"), value.get("system_fingerprint")]
    return "-".join(name[:80] for name in names if isinstance(name, str) and name)


def _tokens(usage: Any) -> dict[str, Any]:
    reported = usage if isinstance(usage, dict) else {}
    read, written = (_count(reported.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    if not read or written is None:
        return {"tokens_in": 0, "tokens_out": 0, "metered": False}
    return {"tokens_in": read, "tokens_out": written, "metered": True}


def _count(value: Any) -> int | None:
    known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
    return int(value) if known else None


# ------------------------------------------------------------------------------------------------------- alternatives


def _top(logprobs: Any, text: str) -> list[list[list[Any]]]:
    """Returns the alternatives of the answer's first tokens; empty if the server returns none that can be read."""
    if not isinstance(logprobs, dict):
        return []
    try:
        tokens = logprobs.get("content")
        if tokens is None and isinstance(logprobs.get("tokens"), list):  # of the older completions
            columns = (logprobs[key] for key in ("tokens", "token_logprobs", "top_logprobs"))
            tokens = [
                {"token": t, "logprob": p, "top_logprobs": [{"token": k, "logprob": v} for k, v in (top or {}).items()]}
                for t, p, top in zip(*columns, strict=True)
            ]
        if not isinstance(tokens, list):
            return []
        return [_row(token) for token in _after_reasoning(tokens, text)[:_TOKENS]]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return []


def _after_reasoning(tokens: Sequence[Any], text: str) -> Sequence[Any]:
    """The tokens of the answer, without those of the reasoning before it, be it in the text or in another field."""
    written, start = "", 0
    for number, token in enumerate(tokens, start=1):
        written = (written + _piece(token))[-40:]
        if re.search(r"(</\w{5,10}>|\[/THINK\])\s*$", written):
            start = number
    return tokens[start:] if start or answer_part(text) == text else []


def _row(token: Mapping[str, Any]) -> list[list[Any]]:
    """Returns [text, log-prob] of a token and of its alternatives; of a token without alternatives only the first.

    Without the other labels nothing is known of their probabilities.
    """
    own, logp = _piece(token), _finite(token["logprob"])
    others: list[list[Any]] = []
    for one in (token.get("top_logprobs") or [])[:_TOKENS]:
        pair = [_piece(one), _finite(one["logprob"])]
        if pair[1] is not None and pair not in others:
            others.append(pair)
    if logp is None:
        return [[own, -1e4]]
    # one piece can be spelled in two ways in one reply, decoded and raw: "1" and "\u01201" with the same log-prob
    same = [o for o in others if o[0].strip() == own.strip() and abs(o[1] - logp) < 1e-6]
    return [[own, logp], *(o for o in others if not same or o is not same[0])]


def _piece(token: Mapping[str, Any]) -> str:
    """Returns a token as text: its bytes where the server has them; else raw pieces of a vocabulary are decoded."""
    raw = token.get("bytes")
    if isinstance(raw, list) and raw:
        try:
            return bytes(raw).decode()
        except (ValueError, TypeError):
            pass  # a part of a character
    text = str(token["token"])
    if byte := _BYTE.fullmatch(text):
        return chr(int(byte[1], 16))
    return text.translate(_PIECES).removesuffix("</w>").removeprefix("##")


def _finite(logp: Any) -> float | None:
    """Returns a log-probability; None for what is none, and for values that stand for no probability (-9999)."""
    value = float(logp) if isinstance(logp, int | float) and not isinstance(logp, bool) else math.nan
    return min(value, 0.0) if math.isfinite(value) and value > -9000 else None
