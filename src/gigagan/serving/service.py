"""A request's way: checked, queued, drawn, encoded, sent whole or as a stream."""

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import starmap
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.requests import ClientDisconnect

from gigagan.provenance import Signer
from gigagan.serving import generation, upscale
from gigagan.serving.api_error import BUG, ApiError, invalid
from gigagan.serving.batcher import RETRY_MS, AnyJob, Batcher, ItemT, Job, late
from gigagan.serving.encode import encoded, image_of, left_out, raster_encoded, raster_image
from gigagan.serving.generation import Order
from gigagan.serving.limits import MAX_BODY_BYTES, MAX_UPLOAD_BYTES, MAX_UPLOADS_BYTES, Limits
from gigagan.serving.metrics import Metrics
from gigagan.serving.safety import Checks, SafetyChecker
from gigagan.serving.supervisor import Start, Worker
from gigagan.serving.upscale import UpscaleOrder
from gigagan.serving.wire import Answer, Facts, Item, Upscale

T = TypeVar("T")
log = logging.getLogger(__name__)


class Service:
    """The model under a name, and all that its requests share."""

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        limits: Limits,
        *,
        safety: SafetyChecker | None = None,
        signer: Signer | None = None,
        log_prompts: bool = False,
        threads: int = 2,
        start: Start | None = None,
        workers: int = 1,
    ) -> None:
        """`options`: of `Pipeline.from_pretrained`; `signer`: of every picture; `threads`: that encode,
        and as many that check; `start`, `workers`: of `Batcher`.

        Without `start` a worker is a process on this machine.
        """
        self.name = name
        self.limits = limits
        self.metrics = Metrics()
        self._checks = Checks(safety, threads, limits.total_sec)
        self.batcher = Batcher(
            start or partial(Worker.start, options, limits.load_sec),
            limits,
            self.metrics,
            workers=workers,
            hindrance=self._checks.hindrance,
        )
        self.created = int(time.time())
        self._signer = signer
        self._log_prompts = log_prompts
        self._uploads = 0  # bytes
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="encode")

    async def generate(self, request: Request) -> Response:
        """The answer to POST /v1/images/generations. Raises ApiError."""
        self.batcher.check_open()
        asked = generation.parse(await self._body(request, "application/json", MAX_BODY_BYTES))
        facts = self.batcher.facts
        assert facts is not None
        order = generation.order(asked, facts, self.name, self.limits)
        prompts = [asked.prompt] + ([asked.mix.prompt] if asked.mix else [])
        request.state.said = f" n={len(order.items)} {order.kind} {order.side} px, prompt {self._shown(prompts)}"
        headers = {"x-ignored-params": ", ".join(order.ignored)} if order.ignored else {}
        end = asyncio.get_running_loop().time() + self.limits.total_sec
        async with _until(end):
            for param, prompt in zip(("prompt", "mix.prompt"), prompts, strict=False):
                await self._checks.prompt(prompt, param)
            if not order.stream:
                with self._accepted(order.items, end) as jobs:
                    content = await self._unless_gone(request, self._whole(jobs, order, facts))
                return Response(content, media_type="application/json", headers=headers)
            events = self._events(order, facts, end)
            # An error before the first event still has a status of its own; a cut stream would tell nothing.
            first = await self._unless_gone(request, anext(events))
            headers["x-accel-buffering"] = "no"  # else nginx holds events back until it has a page of them
            return StreamingResponse(_stream(first, events), media_type="text/event-stream", headers=headers)

    async def upscale(self, request: Request) -> Response:
        """The answer to POST /v1/images/upscale. Raises ApiError."""
        self.batcher.check_open()
        with self._room(request):
            body = await self._body(request, "multipart/form-data", MAX_UPLOAD_BYTES, "image")
            facts = self.batcher.facts
            assert facts is not None
            kind = request.headers["content-type"]
            order = await self._in_thread(upscale.order, body, kind, facts, self.name, self.limits)
            del body
            item = order.item
            request.state.said = f" {order.kind} of {len(item.file)} bytes, prompt {self._shown(item.prompt)}"
            end = asyncio.get_running_loop().time() + self.limits.queue_sec + self.limits.upscale_sec
            async with _until(end):
                if item.prompt:
                    await self._checks.prompt(item.prompt, "prompt")
                with self._accepted([item], end) as jobs:
                    content = await self._unless_gone(request, self._larger(jobs[0], order, facts))
        headers = {"x-ignored-params": ", ".join(order.ignored)} if order.ignored else {}
        return Response(content, media_type="application/json", headers=headers)

    def _shown(self, said: object) -> str:
        """What the log says of prompts."""
        return repr(said) if self._log_prompts else hashlib.sha256(repr(said).encode()).hexdigest()[:16]

    @contextlib.contextmanager
    def _accepted(self, items: Sequence[ItemT], end: float) -> Iterator[list[Job[ItemT]]]:
        """The items' jobs, as long as they are wanted. Raises ApiError as `Batcher.submit`."""
        jobs = self.batcher.submit(items, end)
        try:
            yield jobs
        finally:
            self.batcher.release(jobs)

    @contextlib.contextmanager
    def _room(self, request: Request) -> Iterator[None]:
        """A share of the memory for pictures that come in. Raises ApiError 429 where there is none."""
        length = request.headers.get("content-length", "")
        size = min(int(length[:20]), MAX_UPLOAD_BYTES) if length.isdecimal() else MAX_UPLOAD_BYTES
        if self._uploads + size > MAX_UPLOADS_BYTES:
            message = "the server is busy: it holds as many pictures as it may; try again"
            raise ApiError(429, "queue_full", message, retry_ms=RETRY_MS)
        self._uploads += size
        try:
            yield
        finally:
            self._uploads -= size

    async def _larger(self, job: Job[Upscale], order: UpscaleOrder, facts: Facts) -> bytes:
        """The enlarged picture in the envelope of all answers."""
        answer = await _drawn(job)
        raster = answer.raster
        assert raster is not None
        await self._checks.pictures(map(raster_image, [raster]), "image")

        def encode() -> bytes:
            started = time.monotonic()
            file = raster_encoded(raster, job.item, order, facts, self._signer)
            self.metrics.encode_sec.observe(time.monotonic() - started)
            said: dict[str, Any] = {
                "created": int(time.time()),
                "background": "transparent" if raster.channels in (2, 4) else "opaque",
                "output_format": order.kind,
                "size": f"{raster.width}x{raster.height}",
                "data": [{"b64_json": file, "seed": job.item.seed}],
                "usage": _usage(job),
                "model": self.name,
            }
            if warnings := [one for one in (answer.warning, left_out(raster, order)) if one]:
                said["warnings"] = warnings
            return json.dumps(said).encode()

        content = await self._in_thread(encode)
        self.metrics.pictures.labels(order.kind).inc()
        return content

    async def _body(self, request: Request, kind: str, most: int, largest: str | None = None) -> bytes:
        """All of it. `largest`: the field to name where it is too much. Raises ApiError."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != kind:
            raise ApiError(415, "unsupported_media_type", f"the body is {kind}; say so in content-type")
        length = request.headers.get("content-length", "0")
        too_large = ApiError(413, "body_too_large", f"the body has more than {most} bytes", param=largest)
        if length.isdecimal() and int(length[:20]) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_sec):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise ApiError(408, "body_timeout", "the body didn't arrive in time") from None
        except ClientDisconnect:
            self.metrics.abandoned.inc()
            raise ApiError(499, "client_left", "the client left") from None
        return bytes(body)

    async def _unless_gone(self, request: Request, work: Awaitable[T]) -> T:
        """The result of work that ends when the client leaves. Raises ApiError 499, which nobody reads."""
        task = asyncio.ensure_future(work)
        left = asyncio.create_task(_left(request))
        try:
            await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self.metrics.abandoned.inc()
                raise ApiError(499, "client_left", "the client left")
            return task.result()
        finally:
            for one in (task, left):
                one.cancel()
            await asyncio.gather(task, left, return_exceptions=True)

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def _file(self, job: Job[Item], order: Order, facts: Facts, *, level: int = -1) -> str:
        """A picture in base64: of a level of its pyramid, or of the frames of a loop."""
        answer = await _drawn(job)
        pictures = answer.pictures if order.kind == "gif" else [answer.pictures[level]]
        await self._checks.pictures(starmap(image_of, pictures), "prompt")

        def encode() -> str:
            images = [image_of(*picture) for picture in pictures]
            started = time.monotonic()
            file = encoded(images, job.item, order, facts, self._signer)
            self.metrics.encode_sec.observe(time.monotonic() - started)
            return file

        file = await self._in_thread(encode)
        if level == -1:
            self.metrics.pictures.labels(order.kind).inc()
        return file

    async def _whole(self, jobs: Sequence[Job[Item]], order: Order, facts: Facts) -> bytes:
        files = await asyncio.gather(*(self._file(job, order, facts) for job in jobs))
        answer = {
            "created": int(time.time()),
            "background": "opaque",
            "output_format": order.kind,
            "size": f"{order.side}x{order.side}",
            "data": [{"b64_json": file, "seed": job.item.seed} for file, job in zip(files, jobs, strict=True)],
            "usage": _usage(jobs[0]),
            "model": self.name,
            "truncation_psi": jobs[0].item.psi,
        }
        if order.safety_identifier:
            answer["safety_identifier"] = order.safety_identifier
        if warning := jobs[0].answer.result().warning:
            answer["warnings"] = [warning]
        return await self._in_thread(lambda: json.dumps(answer).encode())

    async def _events(self, order: Order, facts: Facts, end: float) -> AsyncGenerator[bytes, None]:
        """The smaller levels of each picture's pyramid, then the picture."""
        with self._accepted(order.items, end) as jobs:
            for index, job in enumerate(jobs):
                sides = job.item.resolutions
                for level in range(len(sides)):
                    async with _until(end):
                        file = await self._file(job, order, facts, level=level - len(sides))
                    event = _event(file, job, order, level) | {"image_index": index}
                    yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()

    def close(self) -> None:
        """After the last request."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _drawn(job: AnyJob) -> Answer:
    answer = await asyncio.shield(job.answer)
    if answer.refusal:
        raise invalid(answer.param, answer.refusal)
    if answer.late:
        raise ApiError(504, "generation_timeout", "the picture took too long; send a smaller one")
    if answer.failure:
        raise ApiError(500, "generation_failed", "the picture couldn't be drawn; the server's log says why")
    return answer


@contextlib.asynccontextmanager
async def _until(end: float) -> AsyncIterator[None]:
    """Raises ApiError 504 where what is inside isn't over by then (the loop's clock)."""
    try:
        async with asyncio.timeout_at(end) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise  # somebody else's, such as of a checker that asks a service
        raise late() from None


def _event(file: str, job: Job[Item], order: Order, level: int) -> dict[str, Any]:
    """What a stream says with a level of a picture's pyramid."""
    side = job.item.resolutions[level]
    last = level == len(job.item.resolutions) - 1
    event: dict[str, Any] = {
        "type": "image_generation.completed" if last else "image_generation.partial_image",
        "b64_json": file,
        "created_at": int(time.time()),
        "size": f"{side}x{side}",
        "quality": "auto",
        "background": "opaque",
        "output_format": order.kind,
        "seed": job.item.seed,
    }
    if not last:
        return event | {"partial_image_index": level}
    event["usage"] = _usage(job)
    if order.safety_identifier:
        event["safety_identifier"] = order.safety_identifier
    if warning := job.answer.result().warning:
        event["warnings"] = [warning]
    return event


async def _stream(first: bytes, events: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """Each event; what goes wrong now is an event too, since OpenAI's client takes a cut stream for a whole one."""
    try:
        async with contextlib.aclosing(events):
            yield first
            async for event in events:
                yield event
    except Exception as error:
        if not isinstance(error, ApiError):
            log.exception("a stream failed")
            error = ApiError(500, "internal_error", BUG)
        yield f"event: error\ndata: {json.dumps(error.body)}\n\n".encode()


def _usage(job: AnyJob) -> dict[str, Any]:
    """Tokens of the text encoder. A GAN draws no tokens, so there are none of output."""
    tokens = job.answer.result().tokens
    details = {"text_tokens": tokens, "image_tokens": 0}
    return {"input_tokens": tokens, "input_tokens_details": details, "output_tokens": 0, "total_tokens": tokens}
