"""In front of every request: whose it may be, and that the page takes nothing from elsewhere."""

import base64
import hmac
from collections.abc import Sequence

from gigagan.listening import App, Message, Receive, Send, without_port

# Scripts and styles in the page are Gradio's own; nothing but this server may be asked for anything.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
POLICY_VIOLATION = 1008  # RFC 6455, 7.4.1
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Gate:
    """ASGI: refuses other hosts' names (a page elsewhere whose name leads here) and, with a password, who lacks it."""

    def __init__(self, app: App, *, hosts: Sequence[str], password: str) -> None:
        """`hosts`: names this server goes by, empty = any; `password`: empty = none is asked for; any user will do."""
        self.app = app
        self.hosts = {host.encode() for host in hosts}
        self.password = password.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page has no use for websockets
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        headers = dict(scope["headers"])
        if self.hosts and without_port(headers.get(b"host", b"")) not in self.hosts:
            await _refuse(send, 421, b"this server goes by another name", [])
        elif self.password and not self._knows(headers.get(b"authorization", b"")):
            ask = (b"www-authenticate", b'Basic realm="gigagan", charset="UTF-8"')
            await _refuse(send, 401, b"the password, please", [ask])
        else:
            await self.app(scope, receive, _with_headers(send))

    def _knows(self, authorization: bytes) -> bool:
        kind, _, given = authorization.partition(b" ")
        try:
            password = base64.b64decode(given, validate=True).partition(b":")[2]
        except ValueError:
            return False
        return kind.lower() == b"basic" and hmac.compare_digest(password, self.password)


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return wrapped


async def _refuse(send: Send, status: int, text: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain"), *headers]}
    )
    await send({"type": "http.response.body", "body": text})
