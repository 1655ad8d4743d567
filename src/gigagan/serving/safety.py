"""The operator's say in what is drawn. A refusal is an error that says so, never a black picture."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from importlib import import_module
from typing import Protocol

from PIL import Image

from gigagan.errors import ConfigError
from gigagan.serving.api_error import invalid


class SafetyChecker(Protocol):
    """Called in threads, several at a time; both methods return the reason of a refusal, or nothing."""

    def check_prompt(self, prompt: str) -> str:
        """Before anything is drawn."""

    def check_picture(self, image: Image.Image) -> str:
        """Before the picture is sent."""


def load_checker(place: str) -> SafetyChecker:
    """The object that MODULE:NAME names; a class is called for one."""
    module, _, name = place.partition(":")
    try:
        found = getattr(import_module(module), name)
        checker: SafetyChecker = found() if isinstance(found, type) else found
    # TypeError: a name that begins with a dot, such as ./checker.py, is a relative one.
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"--safety {place}: {error}; expected MODULE:NAME of something that can be imported"
        ) from None
    for method in ("check_prompt", "check_picture"):
        if not callable(getattr(checker, method, None)):
            raise ConfigError(f"--safety {place}: has no {method}; see gigagan.serving.safety.SafetyChecker")
    return checker


class Checks:
    """Calls a checker in threads of its own: where it hangs, neither encoding nor the program's end hangs with it."""

    def __init__(self, checker: SafetyChecker | None, threads: int, patience_sec: float) -> None:
        """`threads`: checks at a time; `patience_sec`: of every request, after which a check is in vain."""
        self._checker = checker
        self._threads = threads
        self._patience_sec = patience_sec
        self._free = asyncio.Semaphore(threads)
        self._begun: dict[Future[str], float] = {}

    async def prompt(self, prompt: str, param: str) -> None:
        """Raises ApiError where it is refused."""
        if self._checker is not None:
            checker = self._checker
            _refuse(await self._call(lambda: checker.check_prompt(prompt)), param)

    async def pictures(self, images: Iterable[Image.Image], param: str) -> None:
        """Raises ApiError where one is refused; `images` is iterated in the thread."""
        if self._checker is not None:
            checker = self._checker

            def check() -> str:
                for image in images:
                    if reason := checker.check_picture(image):
                        return reason
                return ""

            _refuse(await self._call(check), param)

    def hindrance(self) -> str:
        """Why no request can be served: all threads are in checks that are in vain; empty where some aren't."""
        stuck = [begun for begun in self._begun.values() if time.monotonic() - begun > self._patience_sec]
        return "the operator's safety checker hangs" if len(stuck) == self._threads else ""

    async def _call(self, check: Callable[[], str]) -> str:
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        found: Future[str] = Future()
        found.set_running_or_notify_cancel()  # whoever stops waiting for it can't stop the thread

        def work() -> None:
            try:
                found.set_result(check())
            except BaseException as error:
                found.set_exception(error)

        def end() -> None:
            del self._begun[found]
            self._free.release()

        def tell(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(end)

        self._begun[found] = time.monotonic()
        found.add_done_callback(tell)
        # No executor: the interpreter waits at its end for an executor's threads.
        try:
            threading.Thread(target=work, name="check", daemon=True).start()
        except RuntimeError as error:  # no thread can be had
            found.set_exception(error)
        return await asyncio.wrap_future(found)


def _refuse(reason: str, param: str) -> None:
    if reason:
        raise invalid(param, reason, "content_policy_violation")
