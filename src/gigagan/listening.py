"""What the studio and the server listen by: their address, and the names that a request may ask them by."""

import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from gigagan.errors import ConfigError

# ASGI's.
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")
"""The same as a Host header has them."""
MIN_KEY = 16


def names(host: str) -> tuple[str, ...]:
    """What a request to a server on `host` may call it; empty = anything, where others are let in by their names."""
    return OWN_NAMES if host in LOOPBACK else ()


def check_keys(keys: Sequence[str]) -> None:
    """Raises ConfigError for a key that can be guessed or that no header can carry."""
    for key in keys:
        if len(key) < MIN_KEY or not key.isascii() or not key.isprintable():
            raise ConfigError(f"a key has {len(key)} characters; expected at least {MIN_KEY}, printable ASCII")


def without_port(host: bytes) -> bytes:
    """The name in a Host header."""
    return host.partition(b"]")[0] + b"]" if host.startswith(b"[") else host.partition(b":")[0]


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A socket to serve from and its address, http://HOST:PORT. Port 0 = any free one.

    Raises ConfigError where the address can't be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without its protocol asyncio doesn't set TCP_NODELAY, and each answer waits 40 ms for the client's ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"{host} port {port}: {error.strerror or error}; give another --host or --port") from None
    shown = f"[{host}]" if ":" in host else host
    return listener, f"http://{shown}:{listener.getsockname()[1]}"
