"""A connection: how long a client may take to ask and to read, and what it is told where it speaks no HTTP."""

import asyncio
import logging
import socket
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle

from gigagan.serving.api_error import ApiError
from gigagan.serving.gate import Gate, answer_of, head_too_large
from gigagan.serving.limits import WRITE_BYTES

HEADER_SEC = 10
"""For a client to send a request's line and headers."""
ENDING = ApiError(503, "shutting_down", "the server ends; try again", retry_ms=1000)
NO_HTTP = ApiError(400, "invalid_http", "what came is no valid HTTP/1.1 request; TLS needs a proxy in front")
log = logging.getLogger(__name__)


class Protocol(H11Protocol):
    """A connection that is closed where no request comes in time, and cut where its answer isn't read."""

    _reaper: asyncio.TimerHandle | None = None
    _watch: asyncio.TimerHandle | None = None
    _unread = 0  # bytes

    def connection_made(self, transport: Any) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        # Paused is then what has anything left to send, not only what has much.
        transport.set_write_buffer_limits(0)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            # Else the kernel takes megabytes at a time, and a slow client seems to read nothing between two of them.
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, WRITE_BYTES)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; a whole head ends the waiting."""
        if self._broken:
            return  # what is left unread would reset the connection, and with it the answer
        super().data_received(data)
        if self._asked is not None and not self._broken:
            self._stop_waiting()
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more comes, and nothing more is read."""
        self._stop_waiting()
        self._stop_watching()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Bytes wait for the client to read: it has a time for them."""
        super().pause_writing()
        self._unread = self.transport.get_write_buffer_size()
        self._look_later()

    def resume_writing(self) -> None:
        """It has read them all."""
        self._stop_watching()
        super().resume_writing()

    def handle_events(self) -> None:
        """Requests begin here, each with a cycle of uvicorn's whose last words are ours."""
        super().handle_events()
        if (cycle := self._asked) is not None:

            async def send_500_response() -> None:  # only a server that ends leaves a request without an answer
                headers, content = answer_of(ENDING, cycle.scope["state"].get("request_id", ""))
                headers.append((b"connection", b"close"))
                await cycle.send({"type": "http.response.start", "status": ENDING.status, "headers": headers})
                await cycle.send({"type": "http.response.body", "body": content, "more_body": False})

            cycle.send_500_response = send_500_response  # type: ignore[method-assign]

    def send_400_response(self, msg: str) -> None:
        """Tell it as every error; uvicorn, which calls this where it catches one, would tell it as a line of text."""
        caught = sys.exception()
        long = isinstance(caught, h11.RemoteProtocolError) and caught.error_status_hint == 431
        error = head_too_large() if long else NO_HTTP
        cycle = self._asked
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # it has an answer, or the half of one
        else:
            assert isinstance(self.config.app, Gate)
            headers, content = self.config.app.malformed(error)
            headers += [*self.server_state.default_headers, (b"connection", b"close")]
            start = h11.Response(status_code=error.status, headers=headers, reason=STATUS_PHRASES[error.status])
            for event in (start, h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.write_eof()
            self._wait()  # for the client to close
        if cycle is not None:  # of a request whose body broke off: it has been answered
            cycle.disconnected = True
            cycle.message_event.set()

    @property
    def unsent(self) -> bool:
        """Whether part of an answer still waits for the client to read."""
        return self.flow.write_paused

    @property
    def _broken(self) -> bool:
        return self.conn.their_state is h11.ERROR

    @property
    def _asked(self) -> RequestResponseCycle | None:
        """The request that is being served."""
        return None if self.cycle is None or self.cycle.response_complete else self.cycle

    def _wait(self) -> None:
        if self._reaper is None and not self.transport.is_closing():
            self._reaper = self.loop.call_later(HEADER_SEC, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None

    def _look_later(self) -> None:
        assert isinstance(self.config.app, Gate)
        self._watch = self.loop.call_later(self.config.app.limits.write_sec, self._look)

    def _look(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left > self._unread - WRITE_BYTES:
            log.warning("a client doesn't read its answer; %d bytes are dropped", left)
            self.transport.abort()  # close() would wait for it for ever
            return
        self._unread = left
        self._look_later()

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
