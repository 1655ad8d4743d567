"""The service of gigagan serve on many machines: its own app in front of model replicas, under Ray Serve.

    client -- HTTP --> proxy --> Front: gate, app, batcher (one queue) --> Model, Model ...: a replica each

The queue is in one place, so its bound holds over all, and a batch leaves it only for a replica that is free: what is
still in it costs nothing where its client leaves. `serve run gigagan.ray_app:app`, or `gigagan serve --ray`.
"""

import asyncio
import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from ray.serve.schema import LoggingConfig

from gigagan.errors import ConfigError
from gigagan.listening import OWN_NAMES, App, Message, Receive, Send, check_keys
from gigagan.serving import wire
from gigagan.serving.app import make_app
from gigagan.serving.gate import Gate
from gigagan.serving.limits import Limits
from gigagan.serving.safety import load_checker
from gigagan.serving.service import Service
from gigagan.serving.supervisor import Drawer, Retired, WorkerGone
from gigagan.serving.wire import Answer, Facts, Item, Upscale

MOST_REPLICAS = 1000
POLL_SEC = 0.5
HEALTH_SEC = 2
"""Between two questions of Ray to a replica: what died is replaced after that."""
BUSY = 0.7
"""Share of its time that a replica draws at, from which on another is started."""
PACE = {"target_ongoing_requests": BUSY, "upscale_delay_s": 10, "downscale_delay_s": 120}
OPEN = 100_000  # requests in the front: its own limits refuse what is too much, and say so
MODEL = "Model"
REQUEST_ID = b"x-request-id"
LOGGING = LoggingConfig(enable_access_log=False, log_level="WARNING")  # the gate has a line for each request
log = logging.getLogger(__name__)


class Settings(BaseModel):
    """What `serve run gigagan.ray_app:app NAME=VALUE ...` takes; `gigagan serve --ray` has an option for each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "emoji"
    """A model directory at the same place on every machine, or the name of one in the package."""
    device: str = "cpu"
    dtype: str = "float32"
    replicas: str = "1"
    """A number, or MIN-MAX: as many as the load asks for."""
    cpus: float = 1
    """Cores of a replica, which are its threads."""
    gpus: float = 0
    queue: int = Limits.queue
    per_key: int = Limits.per_key
    max_prompt: int = Limits.prompt_chars
    max_upscale: int = Limits.upscale_pixels
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = OWN_NAMES
    """Names that clients may call the service by; empty = any, which needs keys."""
    safety: str = ""
    log_prompts: bool = False

    @property
    def limits(self) -> Limits:
        """Of the front and, as far as they are times, of a replica."""
        return Limits(
            queue=self.queue,
            per_key=self.per_key,
            prompt_chars=self.max_prompt,
            upscale_pixels=self.max_upscale,
        )


def numbers(replicas: str) -> tuple[int, int]:
    """Of "2" or "1-4" the least and the most. Raises ConfigError for anything else."""
    match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", replicas, re.ASCII)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most <= MOST_REPLICAS:
        raise ConfigError(f"replicas {replicas!r} can't be; write a number, or the least and the most such as 1-4")
    return least, most


class Model:
    """A replica: the pipeline, a batch at a time, in the messages that a worker process speaks."""

    def __init__(self, options: dict[str, Any], limits: dict[str, Any]) -> None:
        """`options`: of `Pipeline.from_pretrained`."""
        from gigagan.pipeline import Pipeline
        from gigagan.serving.worker import facts

        self._limits = Limits(**limits)
        self._pipe = Pipeline.from_pretrained(**options)
        self._facts = asdict(facts(self._pipe))
        self._thread = ThreadPoolExecutor(1)
        self._late = math.inf

    async def facts(self) -> bytes:
        """What the front must know of the model."""
        return json.dumps(self._facts).encode()

    async def draw(self, message: bytes) -> bytes:
        """The answers to `wire.pack_items`."""
        given_up = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._draw, message, given_up.is_set)
        finally:
            given_up.set()

    def _draw(self, message: bytes, given_up: Callable[[], bool]) -> bytes:
        from gigagan.serving.enlarge import enlarged
        from gigagan.serving.worker import answer

        if given_up():
            return b""
        found = wire.read(BytesIO(message))
        assert found is not None
        header, file = found
        limit = self._limits.upscale_sec if "upscale" in header else self._limits.draw_sec
        self._late = time.monotonic() + limit
        try:
            if "upscale" in header:
                return wire.pack_answers([enlarged(self._pipe, wire.unpack_upscale(header, file), given_up)])
            return wire.pack_answers(answer(self._pipe, wire.unpack_items(header)))
        finally:
            self._late = math.inf

    def check_health(self) -> None:
        """Ray asks now and then, and replaces a replica that raises."""
        if time.monotonic() > self._late:
            raise RuntimeError("a batch takes too long: the replica is stuck")


class Fleet:
    """As many places to draw at as replicas run; each is a worker to the batcher."""

    def __init__(self, model: "DeploymentHandle[Any]", count: Callable[[], int]) -> None:
        """`count`: how many replicas run; called in a thread."""
        self._model = model
        self._count = count
        self._running = 0
        self._taken = 0
        self._changed = asyncio.Condition()
        self._watching: asyncio.Task[None] | None = None
        self._facts: Facts | None = None

    async def start(self) -> Drawer:
        """A place, once there is a replica more than places."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        async with self._changed:
            await self._changed.wait_for(lambda: self._running > self._taken)
            self._taken += 1
        try:
            if self._facts is None:
                said = json.loads(await self._model.facts.remote())
                self._facts = Facts(**{**said, "resolutions": tuple(said["resolutions"])})
        except (RayError, RayServeException) as error:
            self._taken -= 1
            raise WorkerGone(f"before it said what it holds: {type(error).__name__}") from None
        except BaseException:
            self._taken -= 1
            raise
        return Place(self, self._model, self._facts)

    async def too_many(self) -> None:
        """Wait until there are more places than replicas; one place less then."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._running < self._taken)
            self._taken -= 1

    async def leave(self) -> None:
        """A place less."""
        async with self._changed:
            self._taken -= 1
            self._changed.notify_all()

    async def _watch(self) -> None:
        while True:
            try:
                running = await asyncio.to_thread(self._count)
            except Exception as error:  # such as while the controller is started anew; replicas draw meanwhile
                log.warning("Ray doesn't say how many replicas run (%s)", type(error).__name__)
            else:
                async with self._changed:
                    self._running = running
                    self._changed.notify_all()
            await asyncio.sleep(POLL_SEC)


class Place:
    """A replica's worth of drawing; which replica draws a batch is Ray's choice: one that is free."""

    def __init__(self, fleet: Fleet, model: "DeploymentHandle[Any]", facts: Facts) -> None:
        self.facts = facts
        self._fleet = fleet
        self._model = model
        self._left = False
        self._response: DeploymentResponse[Any] | None = None

    async def draw(self, items: Sequence[Item | Upscale]) -> list[Answer]:
        """As `Drawer.draw`."""
        response = self._model.draw.remote(wire.pack_items(items))
        assert isinstance(response, DeploymentResponse)
        self._response, content = response, None
        try:
            content = await response
        except (RayError, RayServeException) as error:
            if response.cancelled():
                return [Answer(failure="given up") for _ in items]
            raise WorkerGone(type(error).__name__) from None
        finally:
            if content is None:
                response.cancel()  # type: ignore[no-untyped-call]
            self._response = None
        found = wire.read(BytesIO(content))
        if found is None:
            return [Answer(failure="given up") for _ in items]
        return wire.unpack_answers(*found)

    def stop(self) -> None:
        """As `Drawer.stop`."""
        if self._response is not None:
            self._response.cancel()  # type: ignore[no-untyped-call]

    async def gone(self) -> WorkerGone:
        """As `Drawer.gone`."""
        await self._fleet.too_many()
        self._left = True
        return Retired("fewer replicas run")

    async def end(self) -> None:
        """As `Drawer.end`; the replica is Ray's to end."""
        if not self._left:
            self._left = True
            await self._fleet.leave()


def _with_proxys_id(gate: Gate) -> App:
    """A request has one number: the proxy's, which it puts on the answer by itself."""

    async def answer(scope: Message, receive: Receive, send: Send) -> None:
        given = dict(scope.get("headers", [])).get(REQUEST_ID, b"").decode("latin-1")
        if re.fullmatch(r"[\w-]{1,64}", given, re.ASCII):  # a client may have sent it
            scope.setdefault("state", {})["request_id"] = given

        async def pass_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [header for header in message["headers"] if header[0] != REQUEST_ID]
            await send(message)

        await gate(scope, receive, pass_on)

    return answer


@serve.ingress()
class Front:
    """The app of `gigagan serve`; one of it, since the queue is in it."""

    def __init__(self, settings: dict[str, Any], model: "DeploymentHandle[Any]") -> None:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
        logging.getLogger("gigagan").setLevel(logging.INFO)
        self._settings = Settings(**settings)
        self._model = model
        self._error: BaseException | None = None

    def __serve_build_asgi_app__(self) -> App:
        """What Ray calls for each request."""
        asked = self._settings
        name = serve.get_replica_context().app_name

        def count() -> int:
            application = serve.status().applications.get(name)
            model = application.deployments.get(MODEL) if application else None
            found = model.replica_states if model else {}
            return sum(number for state, number in found.items() if state == "RUNNING")

        self._service = Service(
            Path(asked.model).name,
            {},
            asked.limits,
            safety=load_checker(asked.safety) if asked.safety else None,
            log_prompts=asked.log_prompts,
            start=Fleet(self._model, count).start,
            workers=numbers(asked.replicas)[1],
        )
        self._gate = make_app(self._service, hosts=asked.hosts, keys=asked.keys, stopped=self._stopped)
        return _with_proxys_id(self._gate)

    def _stopped(self, error: BaseException | None) -> None:
        self._error = error or RuntimeError("the batcher ended")

    def check_health(self) -> None:
        """A front whose batcher ended is replaced."""
        if self._error is not None:
            raise self._error

    async def ready(self) -> bool:
        """Whether a picture can be had."""
        return self._service.batcher.ready

    async def drain(self) -> None:
        """Accept nothing more; return once what was accepted is answered or the grace is over."""
        self._service.batcher.draining = True
        end = time.monotonic() + self._service.limits.grace_sec
        while self._gate.active and time.monotonic() < end:
            await asyncio.sleep(0.05)
        self._service.batcher.give_up("the server is about to end; try again")


def app(settings: Settings) -> serve.Application:
    """The application. Raises ConfigError for settings that can't be, CheckpointError where there is no model."""
    from gigagan.checkpoint import find_model, portable
    from gigagan.model_files import read_index, verify_hashes

    least, most = numbers(settings.replicas)
    check_keys(settings.keys)
    if not settings.hosts and not settings.keys:
        raise ConfigError("hosts is empty, which lets others in; give keys, or the names that it goes by")
    if settings.safety:
        load_checker(settings.safety)
    # A damaged model is told here and at once, in one line, and not by each replica that fails.
    place = find_model(settings.model)
    verify_hashes(place, read_index(place)["sha256"], parts=(), skip=("discriminator/",))
    path = portable(settings.model)
    settings = settings.model_copy(update={"model": path})
    actor = {"num_cpus": settings.cpus, "num_gpus": settings.gpus}
    common: dict[str, Any] = {"health_check_period_s": HEALTH_SEC, "logging_config": LOGGING}
    size: dict[str, Any] = {"num_replicas": least}
    if least < most:
        size = {"autoscaling_config": AutoscalingConfig(min_replicas=least, max_replicas=most, **PACE)}
    model: Any = serve.deployment(
        Model,
        name=MODEL,
        max_ongoing_requests=1,
        ray_actor_options=actor,
        max_constructor_retry_count=3,
        **size,
        **common,
    )
    front: Any = serve.deployment(
        Front, name="Front", max_ongoing_requests=OPEN, ray_actor_options={"num_cpus": 0}, **common
    )
    options = {"path": path, "device": settings.device, "dtype": settings.dtype}
    return front.bind(settings.model_dump(), model.bind(options, asdict(settings.limits)))
