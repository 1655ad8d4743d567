"""A bounded queue in front of one worker: what waits while it draws is the next batch."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from gigagan.errors import CheckpointError
from gigagan.serving.api_error import ApiError
from gigagan.serving.limits import Limits
from gigagan.serving.metrics import Metrics
from gigagan.serving.supervisor import Worker, WorkerGone
from gigagan.serving.wire import Answer, Facts, Item, Upscale

BACKOFF_SEC = (0, 0.5, 1, 2, 5)
"""Before a worker is started again after so many that died without a picture."""
FIRST_GUESS_SEC = 0.1  # of a batch, until one was drawn
RETRY_MS = 1000
ItemT = TypeVar("ItemT", Item, Upscale)
log = logging.getLogger(__name__)


class Job(Generic[ItemT]):
    """An item in the queue, and the answer that its request waits for."""

    def __init__(self, item: ItemT) -> None:
        self.item: ItemT = item
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def fail(self, error: ApiError) -> None:
        """Tell the request, unless it has its answer or is gone."""
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # a request that is gone reads no answer, which is no reason for a warning


AnyJob: TypeAlias = Job[Item] | Job[Upscale]


class Batcher:
    """Owns the worker: `run` starts it, feeds it, and starts another where it is gone or stuck."""

    def __init__(self, options: Mapping[str, Any], limits: Limits, metrics: Metrics) -> None:
        """`options`: of `Pipeline.from_pretrained`."""
        self.facts: Facts | None = None
        """Of the model, once it was loaded."""
        self.ready = False
        self.draining = False
        self._options = options
        self._limits = limits
        self._metrics = metrics
        self._queue: deque[AnyJob] = deque()
        self._running: list[AnyJob] = []
        self._arrived = asyncio.Event()
        self._batch_sec = FIRST_GUESS_SEC

    @property
    def waiting(self) -> int:
        """Pictures and frames in the queue that are still wanted."""
        return sum(job.item.frames for job in self._queue if not job.answer.done())

    def submit(self, items: Sequence[ItemT]) -> list[Job[ItemT]]:
        """Queue all the items or none. Raises ApiError: 503 while there is no model, 429 where the queue is full."""
        self.check_open()
        assert self.facts is not None
        waiting = self.waiting
        if waiting + sum(item.frames for item in items) > self._limits.queue:
            retry_ms = max(50, round(1000 * self._batch_sec * max(1, waiting / self.facts.batch / 2)))
            raise ApiError(429, "queue_full", "the server is busy: its queue is full; try again", retry_ms=retry_ms)
        jobs = [Job(item) for item in items]
        for job in jobs:
            self._time(job)
        self._queue.extend(jobs)
        self._arrived.set()
        return jobs

    def _time(self, job: AnyJob) -> None:
        """Refuse it where it still waits after its time in the queue."""

        def look() -> None:
            if job not in self._running:
                job.fail(ApiError(503, "queue_timeout", "no picture was begun in time; try again", retry_ms=RETRY_MS))

        timer = asyncio.get_running_loop().call_later(self._limits.queue_sec, look)
        job.answer.add_done_callback(lambda _: timer.cancel())

    def check_open(self) -> None:
        """Raises ApiError while nothing is accepted."""
        if self.draining:
            raise ApiError(503, "shutting_down", "the server is about to end; try again", retry_ms=RETRY_MS)
        if not self.ready:
            raise ApiError(503, "not_ready", "the model is being loaded; try again", retry_ms=RETRY_MS)

    async def run(self) -> None:
        """Until canceled. Raises CheckpointError where the model can't be had at the first start."""
        failures = 0
        try:
            while True:
                await asyncio.sleep(BACKOFF_SEC[min(failures, len(BACKOFF_SEC) - 1)])
                try:
                    worker = await Worker.start(self._options)
                except (CheckpointError, WorkerGone) as error:
                    if isinstance(error, CheckpointError) and self.facts is None:
                        raise
                    log.error("the worker didn't start: %s", error)
                    failures += 1
                    continue
                failures = 0 if await self._use(worker) else failures + 1
                self._metrics.restarts.inc()
        finally:
            self.give_up("the server ended")

    def give_up(self, why: str) -> None:
        """Fail everything that was accepted and has no answer."""
        for job in [*self._running, *self._queue]:
            job.fail(ApiError(503, "shutting_down", why, retry_ms=RETRY_MS))
        self._queue.clear()

    async def _use(self, worker: Worker) -> bool:
        """Feed it until it is gone; whether it ever drew."""
        self.facts = worker.facts
        self.ready = True
        self._metrics.ready.set(1)
        drew = False
        watch = asyncio.create_task(worker.gone())
        try:
            while True:
                if not self._arrived.is_set():
                    # A worker that dies while idle is found out at once, not by the next request.
                    arrival = asyncio.create_task(self._arrived.wait())
                    await asyncio.wait({arrival, watch}, return_when=asyncio.FIRST_COMPLETED)
                    arrival.cancel()
                if watch.done():
                    raise WorkerGone("while idle")
                self._running = self._take(worker.facts.batch)
                if self._running:
                    await self._draw(worker)
                    drew = True
        except (WorkerGone, TimeoutError) as error:
            stuck = isinstance(error, TimeoutError)
            log.error("the worker is %s; another is started", "stuck" if stuck else f"gone ({error})")
            for job in self._running:
                message = "the picture took too long" if stuck else "the model's process died; try again"
                code = ("generation_timeout", "worker_died")[not stuck]
                job.fail(ApiError(504 if stuck else 503, code, message, retry_ms=None if stuck else RETRY_MS))
            return drew
        finally:
            self.ready = False
            self._metrics.ready.set(0)
            self._running = [job for job in self._running if not job.answer.done()]
            watch.cancel()
            await worker.end()

    def _take(self, size: int) -> list[AnyJob]:
        """The next jobs that are still wanted, as many as are drawn at once; a long loop and an upscale come alone."""
        taken: list[AnyJob] = []
        while self._queue and not (taken and taken[0].item.alone):
            job = self._queue[0]
            if not job.answer.done():
                full = sum(one.item.frames for one in taken) + job.item.frames > size
                if taken and (full or job.item.alone):
                    break
                taken.append(job)
            self._queue.popleft()
        if not self._queue:
            self._arrived.clear()
        return taken

    async def _draw(self, worker: Worker) -> None:
        started = time.monotonic()
        first = self._running[0]
        limit = self._limits.upscale_sec if first.item.alone else self._limits.draw_sec
        with _told_to_stop(worker, first):
            async with asyncio.timeout(limit):
                answers = await worker.draw([job.item for job in self._running])
        seconds = time.monotonic() - started
        self._batch_sec += 0.2 * (seconds - self._batch_sec)
        self._metrics.batch.observe(sum(job.item.frames for job in self._running))
        self._metrics.draw_sec.observe(seconds)
        for job, answer in zip(self._running, answers, strict=True):
            with contextlib.suppress(asyncio.InvalidStateError):  # its request is gone
                job.answer.set_result(answer)
        self._running = []


@contextlib.contextmanager
def _told_to_stop(worker: Worker, job: AnyJob) -> Iterator[None]:
    """An upscale, which may take a minute, is given up where its request goes away meanwhile."""

    def stop(_: object) -> None:
        worker.stop()

    if job.item.alone:
        job.answer.add_done_callback(stop)
    try:
        yield
    finally:
        job.answer.remove_done_callback(stop)
