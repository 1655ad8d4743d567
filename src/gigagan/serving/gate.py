"""In front of every request: whose it may be, how many at once, and that each gets an answer and a line in the log."""

import asyncio
import hmac
import logging
import secrets
import time
from collections import Counter
from collections.abc import Sequence

from gigagan.listening import App, Message, Receive, Send, without_port
from gigagan.serving.api_error import BUG, ApiError
from gigagan.serving.limits import Limits
from gigagan.serving.metrics import Metrics

OPEN = "/health/live"
"""The one route that needs no key."""
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
RETRY_MS = 1000
log = logging.getLogger("gigagan.serving")


class Gate:
    """ASGI: refuses other hosts' names, foreign pages and who lacks a key; limits keys; turns bugs into envelopes."""

    def __init__(
        self,
        app: App,
        *,
        hosts: Sequence[str],
        keys: Sequence[str],
        routes: Sequence[str],
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        """`hosts`: names this server goes by, empty = any; `keys`: empty = none is asked for; `routes`: all paths."""
        self.app = app
        self.hosts = {host.encode() for host in hosts}
        self.keys = [key.encode() for key in keys]
        self.routes = frozenset(routes)
        self.limits = limits
        self.metrics = metrics
        self.active = 0
        """Requests that are being served."""
        self._by_key: Counter[bytes] = Counter()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One connection's request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websockets here: uvicorn then refuses the handshake
        answer = _Answer(send, scope.setdefault("state", {}).setdefault("request_id", f"req_{secrets.token_hex(12)}"))
        started = time.monotonic()
        self.active += 1
        self.metrics.active.inc()
        try:
            await self._serve(scope, receive, answer)
        finally:
            self.active -= 1
            self.metrics.active.dec()
            seconds = time.monotonic() - started
            route = scope["path"] if scope["path"] in self.routes else "other"
            self.metrics.requests.labels(route, str(answer.status)).inc()
            self.metrics.request_sec.labels(route).observe(seconds)
            what = scope["state"].get("said", "")
            log.info("%s %s %s %d %.0f ms%s", answer.id, scope["method"], route, answer.status, 1000 * seconds, what)

    async def _serve(self, scope: Message, receive: Receive, answer: "_Answer") -> None:
        try:
            key = self._admit(scope)
            self._by_key[key] += 1
            try:
                await self.app(scope, receive, answer.send)
            finally:
                self._by_key[key] -= 1
        except ApiError as error:
            await answer.refuse(error)
        except (asyncio.CancelledError, OSError):
            raise
        except Exception:
            log.exception("%s failed", answer.id)
            if not answer.begun:  # else the app has told it, or the connection breaks
                await answer.refuse(ApiError(500, "internal_error", BUG))

    def _admit(self, scope: Message) -> bytes:
        """The key of a request that may come in. Raises ApiError."""
        headers = dict(scope["headers"])
        if self.hosts and without_port(headers.get(b"host", b"")) not in self.hosts:
            raise ApiError(421, "wrong_host", "this server goes by another name; use its address as it printed it")
        if not self.keys and (page := _foreign_page(scope)):
            raise ApiError(403, "foreign_origin", f"the page {page[:80]!r} may not use this server; a program may")
        if not self.keys or scope["path"] == OPEN:
            return b""
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Every key is compared, and each in constant time.
        known = [key for key in self.keys if hmac.compare_digest(key, given.strip())]
        if kind.lower() != b"bearer" or not known:
            ask = {"www-authenticate": "Bearer"}
            raise ApiError(401, "invalid_api_key", "no valid key came; send Authorization: Bearer KEY", headers=ask)
        if scope["path"].startswith("/v1/") and self._by_key[known[0]] >= self.limits.per_key:
            message = f"this key has {self.limits.per_key} requests running, the most it may; wait for one"
            raise ApiError(429, "concurrency_limit", message, retry_ms=RETRY_MS)
        return known[0]


def _foreign_page(scope: Message) -> str:
    """The Origin of a web page that isn't this server's own; empty where there is none.

    Browsers send it with each POST across sites, also with forms, which ask for no leave before. Without a key nothing
    else tells a page in a browser of this machine from a program.
    """
    host = dict(scope["headers"]).get(b"host", b"").lower()
    own = (b"http://" + host, b"https://" + host)
    for name, value in scope["headers"]:
        if name == b"origin" and value.lower() not in own:
            return value.decode("latin-1") or "null"
    return ""


class _Answer:
    """What is sent for a request; knows whether it began, and as what."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.id = request_id
        self.status = 499  # until something is sent: the client left
        self._send = send

    @property
    def begun(self) -> bool:
        """Whether a status was sent."""
        return self.status != 499

    async def send(self, message: Message) -> None:
        """Pass on, with our headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            ours = [*HEADERS, (b"x-request-id", self.id.encode())]
            message["headers"] = [*message.get("headers", []), *ours]
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        """Send an error."""
        headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
        length = (b"content-length", str(len(error.content)).encode())
        await self.send({"type": "http.response.start", "status": error.status, "headers": [*headers, length]})
        await self.send({"type": "http.response.body", "body": error.content})
