"""A bounded queue in front of the workers: what waits while they draw is the next batch."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeAlias, TypeVar

from gigagan.errors import CheckpointError
from gigagan.serving.api_error import ApiError
from gigagan.serving.limits import Limits
from gigagan.serving.metrics import Metrics
from gigagan.serving.supervisor import Drawer, Retired, Start, WorkerGone
from gigagan.serving.wire import Answer, Facts, Item, Upscale

BACKOFF_SEC = (0, 0.5, 1, 2, 5)
"""Before a worker is started again after so many that died without a picture."""
FIRST_GUESS_SEC = 0.1  # of a batch, until one was drawn
LOOK_SEC = 0.05
"""Nobody looks sooner again whether a job waits too long."""
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


class Stopwatch:
    """Seconds in which it ran."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None

    def seconds(self) -> float:
        """Up to now."""
        return self._before + (0.0 if self._since is None else time.monotonic() - self._since)

    def run(self, on: bool) -> None:
        """From now on it runs, or rests."""
        self._before = self.seconds()
        self._since = time.monotonic() if on else None


def late() -> ApiError:
    """For a request that took all its time."""
    return ApiError(504, "generation_timeout", "the picture took too long")


class Batcher:
    """Owns the workers: `run` starts them, feeds them, and starts another where one is gone or stuck."""

    def __init__(
        self,
        start: Start,
        limits: Limits,
        metrics: Metrics,
        *,
        workers: int = 1,
        hindrance: Callable[[], str] = lambda: "",
    ) -> None:
        """`start` gives a worker, once there is one to be had; `workers`: the most at a time.

        `hindrance` says why no request can be served for a reason that lies elsewhere; empty = none.
        """
        self.facts: Facts | None = None
        """Of the model, once it was loaded."""
        self.draining = False
        self._start = start
        self._workers = workers
        self._fed = 0
        self._limits = limits
        self._metrics = metrics
        self._hindrance = hindrance
        self._accepted: dict[AnyJob, asyncio.TimerHandle] = {}
        """Until their request is over, with what ends it at the latest."""
        self._waits: dict[AnyJob, asyncio.TimerHandle] = {}
        """Until they have an answer, with what looks whether they wait too long."""
        self._queue: deque[AnyJob] = deque()
        self._running: set[AnyJob] = set()
        self._arrived = asyncio.Event()
        self._batch_sec = FIRST_GUESS_SEC
        self._alone = Stopwatch()
        """How long all workers were at upscales, which is nobody's time in the queue."""
        self._upscaling = 0

    @property
    def ready(self) -> bool:
        """Whether there is a worker."""
        return self._fed > 0

    @property
    def waiting(self) -> int:
        """Pictures and frames in the queue."""
        return sum(job.item.frames for job in self._queue)

    def submit(self, items: Sequence[ItemT], end: float) -> list[Job[ItemT]]:
        """Queue all the items or none; `release` them once their request is over, which it is at `end` (loop's clock).

        Raises ApiError: 503 while there is no model, 429 where there is no place or it would take too long to begin.
        """
        self.check_open()
        assert self.facts is not None
        new, waiting = sum(item.frames for item in items), self.waiting
        # What is drawn waits again, to be encoded and read: as many may as wait for the model, or memory had no bound.
        unanswered = sum(job.item.frames for job in self._accepted)
        most = 2 * self._limits.queue + self.facts.batch * self._fed
        if waiting + new > self._limits.queue or unanswered + new > most:
            retry_ms = max(50, round(1000 * self._batch_sec * max(1, waiting / self.facts.batch / self._fed / 2)))
            raise ApiError(429, "queue_full", "the server is busy: its queue is full; try again", retry_ms=retry_ms)
        before = sum(job.item.frames for job in self._queue if not job.item.alone) + new - items[-1].frames
        begins_sec = self._batch_sec * before / self.facts.batch / self._fed
        # Accepted, it would be refused after all that time. An idle server tries, or the estimate could never fall.
        if begins_sec > self._limits.queue_sec and (self._queue or self._running) and not items[0].alone:
            message = f"the server would take {begins_sec:.0f} s to begin the last picture; ask for fewer or try again"
            raise ApiError(
                429, "queue_full", message, retry_ms=round(1000 * (begins_sec - self._limits.queue_sec)) + 50
            )
        jobs = [Job(item) for item in items]
        for job in jobs:
            self._time(job, end)
        self._queue.extend(jobs)
        self._arrived.set()
        return jobs

    def release(self, jobs: Sequence[AnyJob]) -> None:
        """Their request is over: what waits isn't drawn, what is being drawn is dropped."""
        for job in jobs:
            job.answer.cancel()
            if job in self._accepted:
                self._accepted.pop(job).cancel()

    def _time(self, job: AnyJob, end: float) -> None:
        """Refuse it where it still waits after its time in the queue, or isn't released at the end of its request."""

        def is_over() -> None:
            job.fail(late())
            self.release([job])

        def leave(_: object) -> None:
            self._waits.pop(job).cancel()
            with contextlib.suppress(ValueError):  # it was taken
                self._queue.remove(job)

        loop = asyncio.get_running_loop()
        patience = loop.time() + self._limits.queue_sec
        self._look_later(job, patience if job.item.alone else patience - self._alone.seconds())
        self._accepted[job] = loop.call_at(end, is_over)
        job.answer.add_done_callback(leave)

    def _look_later(self, job: AnyJob, patience: float) -> None:
        """Refuse it where it still waits at `patience` and, for a picture, what upscales took, which isn't its time."""
        loop = asyncio.get_running_loop()
        latest = patience + (0.0 if job.item.alone else self._alone.seconds())
        if latest > loop.time():
            self._waits[job] = loop.call_at(max(latest, loop.time() + LOOK_SEC), self._look_later, job, patience)
        elif job not in self._running:
            job.fail(ApiError(503, "queue_timeout", "no picture was begun in time; try again", retry_ms=RETRY_MS))

    def check_open(self) -> None:
        """Raises ApiError while nothing is accepted."""
        if self.draining:
            raise ApiError(503, "shutting_down", "the server is about to end; try again", retry_ms=RETRY_MS)
        if not self.ready:
            raise ApiError(503, "not_ready", "the model is being loaded; try again", retry_ms=RETRY_MS)
        if why := self._hindrance():
            raise ApiError(503, "not_ready", f"{why}; try again", retry_ms=RETRY_MS)

    async def run(self) -> None:
        """Until canceled. Raises CheckpointError where the model can't be had at the first start."""
        feeding = [asyncio.create_task(self._feed()) for _ in range(self._workers)]
        try:
            await asyncio.gather(*feeding)
        finally:
            for task in feeding:
                task.cancel()
            self.give_up("the server ended")
            await asyncio.gather(*feeding, return_exceptions=True)

    async def _feed(self) -> None:
        """Start a worker, feed it while it lives, start another."""
        failures = 0
        while True:
            await asyncio.sleep(BACKOFF_SEC[min(failures, len(BACKOFF_SEC) - 1)])
            try:
                worker = await self._start()
            except (CheckpointError, WorkerGone) as error:
                if isinstance(error, CheckpointError) and self.facts is None:
                    raise
                log.error("the worker didn't start: %s", error)
                failures += 1
                continue
            failures = 0 if await self._use(worker) else failures + 1

    def give_up(self, why: str) -> None:
        """Fail everything that was accepted and has no answer."""
        for job in self._accepted:
            job.fail(ApiError(503, "shutting_down", why, retry_ms=RETRY_MS))

    async def _use(self, worker: Drawer) -> bool:
        """Feed it until it is gone; whether it did well."""
        self.facts = worker.facts
        self._count(1)
        drew = False
        jobs: list[AnyJob] = []
        watch = asyncio.create_task(worker.gone())
        try:
            while True:
                if not self._arrived.is_set():
                    # A worker that dies while idle is found out at once, not by the next request.
                    arrival = asyncio.create_task(self._arrived.wait())
                    await asyncio.wait({arrival, watch}, return_when=asyncio.FIRST_COMPLETED)
                    arrival.cancel()
                if watch.done():
                    raise watch.result()
                if jobs := self._take(worker.facts.batch):
                    self._running.update(jobs)
                    await self._draw(worker, jobs)
                    self._running.difference_update(jobs)
                    jobs = []  # while it is idle nothing is held
                    drew = True
        except Retired:
            return True
        except (WorkerGone, TimeoutError) as error:
            stuck = isinstance(error, TimeoutError)
            log.error("the worker is %s; another is started", "stuck" if stuck else f"gone ({error})")
            self._metrics.restarts.inc()
            for job in jobs:
                died = ApiError(503, "worker_died", "the model's process died; try again", retry_ms=RETRY_MS)
                job.fail(late() if stuck else died)
            return drew
        finally:
            self._count(-1)
            self._running -= {job for job in jobs if job.answer.done()}
            watch.cancel()
            await worker.end()

    def _count(self, change: int) -> None:
        self._fed += change
        self._metrics.ready.set(self.ready)
        self._count_upscales(0)

    def _count_upscales(self, change: int) -> None:
        self._upscaling += change
        self._alone.run(self._upscaling >= self._fed > 0)

    @contextlib.contextmanager
    def _at_upscale(self, upscale: bool) -> Iterator[None]:
        """Inside, a worker is at an upscale, or isn't."""
        self._count_upscales(upscale)
        try:
            yield
        finally:
            self._count_upscales(-upscale)

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

    async def _draw(self, worker: Drawer, jobs: Sequence[AnyJob]) -> None:
        started = time.monotonic()
        first = jobs[0]
        limit = self._limits.upscale_sec if first.item.alone else self._limits.draw_sec
        with _told_to_stop(worker, first), self._at_upscale(first.item.alone):
            async with asyncio.timeout(limit):
                answers = await worker.draw([job.item for job in jobs])
        seconds = time.monotonic() - started
        if not first.item.alone:
            batches = -(-sum(job.item.frames for job in jobs) // worker.facts.batch)  # of a long loop, several
            self._batch_sec += 0.2 * (seconds / batches - self._batch_sec)
        self._metrics.batch.observe(sum(job.item.frames for job in jobs))
        self._metrics.draw_sec.observe(seconds)
        for job, answer in zip(jobs, answers, strict=True):
            with contextlib.suppress(asyncio.InvalidStateError):  # its request is gone
                job.answer.set_result(answer)


@contextlib.contextmanager
def _told_to_stop(worker: Drawer, job: AnyJob) -> Iterator[None]:
    """An upscale, which may take a minute, is given up where its request goes away meanwhile."""

    def stop(_: object) -> None:
        worker.stop()

    if job.item.alone:
        job.answer.add_done_callback(stop)
    try:
        yield
    finally:
        job.answer.remove_done_callback(stop)
