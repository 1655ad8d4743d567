"""Listening, and ending well: what was accepted is answered, then the program ends with 0."""

import asyncio
import logging
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gigagan.listening import listen
from gigagan.serving.app import make_app
from gigagan.serving.limits import MAX_HEADER_BYTES
from gigagan.serving.service import Service

HEADER_SEC = 10
"""For a client to send a request's line and headers."""
POLL_SEC = 0.05
BACKLOG = 1024
log = logging.getLogger(__name__)


class Protocol(H11Protocol):
    """A connection that is closed where it doesn't come to a request in time, however slowly it drips."""

    _reaper: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; a whole head ends the waiting."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._reaper is None and not self.transport.is_closing():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more comes."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._reaper = self.loop.call_later(HEADER_SEC, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None


class Server(uvicorn.Server):
    """uvicorn, but the first signal lets what was accepted finish, and the second ends at once."""

    def __init__(self, service: Service, *, hosts: tuple[str, ...], keys: tuple[str, ...]) -> None:
        """`hosts` and `keys` as for `make_app`."""
        self.service = service
        self.error: BaseException | None = None
        """Why it ended by itself."""
        self.gate = make_app(service, hosts=hosts, keys=keys, stopped=self._stopped)
        config = uvicorn.Config(
            self.gate,
            http=Protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_graceful_shutdown=2,
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or Ctrl-C."""
        if self.service.batcher.draining:
            self.should_exit = True
            return
        self.service.batcher.draining = True
        log.warning("%s: ending once %d requests are answered", signal.Signals(sig).name, self.gate.active)

    async def main_loop(self) -> None:
        """Until a signal, then until everything accepted is answered or the grace is over."""
        loop = asyncio.get_running_loop()
        while not self.should_exit and not self.service.batcher.draining:
            await self.on_tick(int(loop.time() * 10) % 864_000)
            await asyncio.sleep(POLL_SEC)
        end = loop.time() + self.service.limits.grace_sec
        while self.gate.active and not self.should_exit and loop.time() < end:
            await asyncio.sleep(POLL_SEC)
        if self.gate.active:
            self.service.batcher.give_up("the server is about to end; try again")
            await asyncio.sleep(POLL_SEC)

    def _stopped(self, error: BaseException | None) -> None:
        self.error = error
        self.should_exit = True


def serve(server: Server, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until a signal; `ready` gets the address once a picture can be had. Port 0 = any free one.

    Raises ConfigError where the address can't be had, CheckpointError where the model can't.
    """
    listener, address = listen(host, port)

    async def announce() -> None:
        while not server.service.batcher.ready:
            await asyncio.sleep(POLL_SEC)
        ready(f"{address}/v1")

    async def run() -> None:
        announcing = asyncio.create_task(announce())
        await server.serve([listener])
        announcing.cancel()

    with listener:
        asyncio.run(run())
    if server.error is not None:
        raise server.error
