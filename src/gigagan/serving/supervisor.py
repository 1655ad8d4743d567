"""A worker as the server sees it: a process that was started, answers, and may be gone."""

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from gigagan.errors import CheckpointError
from gigagan.serving import wire
from gigagan.serving.wire import Answer, Facts, Item, Upscale

STREAM_BYTES = 2**20  # held of an answer that is still arriving, beyond what was asked for


class WorkerGone(Exception):
    """The process died, or its connection broke."""


class Retired(WorkerGone):
    """Nothing went wrong: it isn't needed any more."""


class Drawer(Protocol):
    """A worker as the batcher sees it, wherever the model is."""

    facts: Facts

    async def draw(self, items: Sequence[Item | Upscale]) -> list[Answer]:
        """An answer for each item. Raises WorkerGone."""

    def stop(self) -> None:
        """Give up the picture that is being enlarged; `draw` then returns soon."""

    async def gone(self) -> WorkerGone:
        """Wait until it is gone; why it is."""

    async def end(self) -> None:
        """End it, whatever it does."""


Start = Callable[[], Awaitable[Drawer]]


class Worker:
    """A process with the model; `start` makes one."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        facts: Facts,
    ) -> None:
        self.facts = facts
        self.pid = process.pid
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, options: Mapping[str, Any], load_sec: float) -> "Worker":
        """Start one and wait until its model is warm. `options`: of `Pipeline.from_pretrained`.

        Raises CheckpointError where the model can't be had, WorkerGone where there is no process, where it dies
        before, or takes longer than `load_sec`.
        """
        try:
            process, reader, writer = await _begin(options)
        except OSError as error:  # files, memory or processes are short, perhaps for now
            raise WorkerGone(f"no process can be started: {error}") from None
        try:
            async with asyncio.timeout(load_sec):
                header, _ = await wire.read_async(reader)
            if "error" in header:
                raise CheckpointError(header["error"])
        except TimeoutError:
            await _end(process, writer)
            raise WorkerGone(f"its model wasn't loaded within {load_sec:g} s") from None
        except (asyncio.IncompleteReadError, OSError):
            await _end(process, writer)
            raise WorkerGone("before its model was loaded") from None
        except BaseException:
            await _end(process, writer)
            raise
        said = header["facts"]
        return cls(process, reader, writer, Facts(**{**said, "resolutions": tuple(said["resolutions"])}))

    async def draw(self, items: Sequence[Item | Upscale]) -> list[Answer]:
        """An answer for each item. Raises WorkerGone."""
        try:
            self._writer.write(wire.pack_items(items))
            await self._writer.drain()
            return wire.unpack_answers(*await wire.read_async(self._reader))
        except (asyncio.IncompleteReadError, OSError):
            raise WorkerGone(f"process {self.pid}") from None

    def stop(self) -> None:
        """Give up the picture that is being enlarged; `draw` then returns soon."""
        with contextlib.suppress(OSError):
            self._writer.write(wire.pack({"stop": True}))

    async def gone(self) -> WorkerGone:
        """Wait until the process has ended, for whatever reason."""
        await self._process.wait()
        return WorkerGone("while idle")

    async def end(self) -> None:
        """End the process, whatever it does."""
        await _end(self._process, self._writer)


async def _begin(
    options: Mapping[str, Any],
) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.StreamWriter]:
    """A process, and our end of its socket."""
    ours, theirs = socket.socketpair()
    try:
        reader, writer = await asyncio.open_connection(sock=ours, limit=STREAM_BYTES)
    except BaseException:
        ours.close()
        theirs.close()
        raise
    try:
        with theirs:
            command = [sys.executable, "-m", "gigagan.serving.worker", str(theirs.fileno()), json.dumps(options)]
            # A session of its own: Ctrl-C in the terminal is the server's to handle.
            process = await asyncio.create_subprocess_exec(
                *command, pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL, start_new_session=True
            )
    except BaseException:
        writer.close()
        raise
    return process, reader, writer


async def _end(process: asyncio.subprocess.Process, writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
