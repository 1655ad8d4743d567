"""Listening, and ending well: what was accepted is answered, then the program ends with 0."""

import asyncio
import logging
import signal
from collections.abc import Callable
from types import FrameType

import uvicorn

from gigagan.listening import listen
from gigagan.serving.app import make_app
from gigagan.serving.connection import Protocol
from gigagan.serving.limits import MAX_HEAD_BYTES
from gigagan.serving.service import Service

POLL_SEC = 0.05
KEEP_ALIVE_SEC = 75
"""Longer than clients keep idle connections (httpx 5 s, nginx 60 s), so that none asks on one that is being closed."""
BACKLOG = 1024
log = logging.getLogger(__name__)


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
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_keep_alive=KEEP_ALIVE_SEC,
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
        """Until a signal, then until everything accepted is answered and read, or the grace is over."""
        loop = asyncio.get_running_loop()
        while not self.should_exit and not self.service.batcher.draining:
            await self.on_tick(int(loop.time() * 10) % 864_000)
            await asyncio.sleep(POLL_SEC)
        end = loop.time() + self.service.limits.grace_sec
        while (self.gate.active or self._unsent()) and not self.should_exit and loop.time() < end:
            await asyncio.sleep(POLL_SEC)
        if self.gate.active:
            self.service.batcher.give_up("the server is about to end; try again")
            await asyncio.sleep(POLL_SEC)

    def _unsent(self) -> bool:
        """Whether a client is still reading an answer to what was no request, which is none of the gate's."""
        return any(isinstance(one, Protocol) and one.unsent for one in self.server_state.connections)

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
