"""The socket of a page: small answers are sent at once."""

from __future__ import annotations

import asyncio
import socket

from tiltyard.feedback.web.server import bound


def test_answers_are_sent_at_once():
    """Without TCP_NODELAY the body of a page waits 40 ms for the acknowledgement of its head."""

    async def option() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken = writer.get_extra_info("socket")
            found.set_result(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = bound("127.0.0.1", 0)
        server = await asyncio.start_server(connected, sock=listening)
        async with server:
            _, writer = await asyncio.open_connection(*listening.getsockname())
            value = await found
            writer.close()
            return value

    assert asyncio.run(option()) != 0
