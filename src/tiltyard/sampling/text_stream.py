"""The text of a response while it is sampled: what is shown of it is never taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tiltyard.data.chat import Chat

UNFINISHED = "\ufffd"  # what decoding gives for a character of which bytes are still to come


class TextStream:
    """Turns the tokens of one response, as they come, into pieces of its text.

    Text is held back while later tokens may change it or take it away: half a character, the beginning of a stop
    string, the words that the template puts before and after a response (`Chat.decode` leaves them out), and a carriage
    return. The pieces joined are a beginning of the response's text; `close` hands over the rest.

    Args:
        chat: of the model. stop: stop strings. show: is called with each piece, which is never empty.
    """

    def __init__(self, chat: Chat, stop: Sequence[str], show: Callable[[str], None]):
        self._chat, self._stop, self._show = chat, tuple(stop), show
        self._ids: list[int] = []
        self.shown = ""

    def __call__(self, row: int, token: int) -> None:  # noqa: ARG002 - there is one row
        """Takes the next token, as `sampling.sample` hands it to `stream`."""
        self._ids.append(token)
        if token not in self._chat.stop_ids:  # the whole text comes with `close`
            self._advance(self._safe(self._chat.decode(self._ids)))

    def close(self, text: str) -> bool:
        """Shows the rest of the response's final text; False if it does not begin with what was shown."""
        if not text.startswith(self.shown):
            return False
        self._advance(text)
        return True

    def _advance(self, text: str) -> None:
        if len(text) > len(self.shown) and text.startswith(self.shown):
            piece, self.shown = text[len(self.shown) :], text
            self._show(piece)

    def _safe(self, text: str) -> str:
        """The beginning of the text so far that no later token changes."""
        lead, tail = self._chat.shown_ends
        if lead.startswith(text):
            return ""
        found = [text.find(s) for s in self._stop if s in text]
        text = text[: min(found)] if found else text
        text = text.rstrip(UNFINISHED)
        held = max((_begun(text, s) for s in (*self._stop, tail, "\r\n")), default=0)
        return text[: len(text) - held]


def _begun(text: str, string: str) -> int:
    """Characters at the end of the text that are a beginning of the string."""
    longest = min(len(text), len(string))
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
