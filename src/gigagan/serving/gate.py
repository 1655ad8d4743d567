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
from gigagan.serving.limits import MAX_HEAD_BYTES, MAX_UNREAD_BYTES, Limits
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
        """Requests that are being served, until their answer is read."""
        self.unread = 0
        """Bytes of whole answers that clients have yet to read."""
        self._by_key: Counter[bytes] = Counter()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One connection's request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websockets here: uvicorn then refuses the handshake
        answer = _Answer(self, send, scope.setdefault("state", {}).setdefault("request_id", _new_id()))
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
            self._note(answer.id, scope["method"], route, answer.status, seconds, scope["state"].get("said", ""))

    def malformed(self, error: ApiError) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Headers and content to answer bytes with that never became a request."""
        request_id = _new_id()
        self._note(request_id, "-", "other", error.status, 0.0)
        return answer_of(error, request_id)

    def _note(self, request_id: str, method: str, route: str, status: int, seconds: float, said: str = "") -> None:
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.request_sec.labels(route).observe(seconds)
        log.info("%s %s %s %d %.0f ms%s", request_id, method, route, status, 1000 * seconds, said)

    async def _serve(self, scope: Message, receive: Receive, answer: "_Answer") -> None:
        try:
            key = self._admit(scope)
            if _asks(scope) and self.unread > MAX_UNREAD_BYTES:
                message = "the server is busy: its clients have yet to read their answers; try again"
                raise ApiError(429, "queue_full", message, retry_ms=RETRY_MS)
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
        if _head_bytes(scope) > MAX_HEAD_BYTES:
            raise head_too_large()
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
        if _asks(scope) and self._by_key[known[0]] >= self.limits.per_key:
            message = f"this key has {self.limits.per_key} requests running, the most it may; wait for one"
            raise ApiError(429, "concurrency_limit", message, retry_ms=RETRY_MS)
        return known[0]


def _asks(scope: Message) -> bool:
    """Whether it is for the model, not for how the server fares."""
    return str(scope["path"]).startswith("/v1/")


def head_too_large() -> ApiError:
    """The request's line and headers together."""
    return ApiError(431, "head_too_large", f"the request's head has more than {MAX_HEAD_BYTES} bytes")


def answer_of(error: ApiError, request_id: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """An error's headers and content as they are sent."""
    content = error.content
    headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    return [*headers, (b"content-length", str(len(content)).encode()), *_own_headers(request_id)], content


def _own_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    """Of every answer."""
    return [*HEADERS, (b"x-request-id", request_id.encode())]


def _new_id() -> str:
    return f"req_{secrets.token_hex(12)}"


def _head_bytes(scope: Message) -> int:
    """Of the head as it came, but for spaces around values; the parser bounds only heads that come in pieces."""
    target = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
    line = len(scope["method"]) + target + len("  HTTP/1.1\r\n") + bool(scope["query_string"])
    return line + sum(len(name) + len(value) + len(": \r\n") for name, value in scope["headers"]) + len("\r\n")


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

    def __init__(self, gate: Gate, send: Send, request_id: str) -> None:
        self.id = request_id
        self._gate = gate
        self.status = 499  # until something is sent: the client left
        self._send = send

    @property
    def begun(self) -> bool:
        """Whether a status was sent."""
        return self.status != 499

    async def send(self, message: Message) -> None:
        """Pass on, with our headers."""
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_own_headers(self.id)]
        await self._pass(message)

    async def refuse(self, error: ApiError) -> None:
        """Send an error."""
        headers, content = answer_of(error, self.id)
        await self._pass({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._pass({"type": "http.response.body", "body": content})

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        size = len(message.get("body", b""))
        if not size or message.get("more_body"):
            await self._send(message)
            return
        # uvicorn is done with a message once it is in its buffer, and takes the next one when that is read.
        self._gate.unread += size
        try:
            await self._send({**message, "more_body": True})
            await self._send({"type": "http.response.body"})
        finally:
            self._gate.unread -= size
