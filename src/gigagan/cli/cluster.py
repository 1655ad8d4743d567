"""Ray as the commands use it: a cluster of this machine alone unless RAY_ADDRESS names another, and quiet."""

import contextlib
import logging
import os
import secrets
import signal
import threading
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from gigagan.errors import CheckpointError, ConfigError, MissingExtra

if TYPE_CHECKING:
    from gigagan.ray_app import Settings

APP = "gigagan"


def prepare() -> None:
    """Set what Ray reads when it is imported. Raises MissingExtra where it isn't there."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")  # it tells of its plans, and of each option that was set
    if not os.environ.get("RAY_ADDRESS"):
        # Its processes listen on loopback, where any user of the machine could have them run code: a token stops that.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise MissingExtra("ray", "scale") from None


def lent(device: str) -> tuple[str, int]:
    """The device of a replica or an actor, and the GPUs each asks for: Ray shows each its own alone.

    Raises ConfigError for one GPU of several.
    """
    if device == "auto":
        from gigagan import dist

        device = dist.device().type
    if device.startswith("cuda:"):
        raise ConfigError(f"--device {device} came with Ray, which hands GPUs out itself; write --device cuda")
    return device, int(device == "cuda")


@contextlib.contextmanager
def cluster(cpus: int) -> Iterator[None]:
    """Ray with at least so many cores to lend, or the cluster at RAY_ADDRESS; `prepare` came before."""
    import ray

    # An accelerator's visibility is ours to set (num_gpus); Ray warns of a change of its own that is to come.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if os.environ.get("RAY_ADDRESS"):
                ray.init(logging_level=logging.WARNING)
            else:
                ray.init(
                    num_cpus=max(cpus, os.cpu_count() or 1), include_dashboard=False, logging_level=logging.WARNING
                )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"Ray can't be had ({error}); see RAY_ADDRESS, or leave it unset") from None
    try:
        yield
    finally:
        ray.shutdown()


def serve_app(settings: "Settings", host: str, port: int) -> None:
    """Serve until a signal, then let what was accepted finish. Raises as `ray_app.app`, and where no replica starts."""
    from ray import serve

    from gigagan.listening import listen
    from gigagan.ray_app import LOGGING, app, numbers

    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15: clients would wait for whatever else runs
    application = app(settings)
    # The port is known before the cluster is there, and a port in use is told in one line.
    listener, address = listen(host, port)
    port = listener.getsockname()[1]
    listener.close()
    ended = threading.Event()
    with cluster(round(numbers(settings.replicas)[1] * settings.cpus)):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start("HeadOnly", {"host": host, "port": port}, logging_config=LOGGING)
        try:
            try:
                front = serve.run(application, name=APP)
            except RuntimeError:
                raise CheckpointError(f"{settings.model}: no replica could be started ({_why()})") from None
            while not ended.is_set() and not front.ready.remote().result():
                ended.wait(0.1)
            if not ended.is_set():
                click.echo(f"{address}/v1")
            ended.wait()
            front.drain.remote().result()
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]


def _why() -> str:
    """The last line of what a replica said when it failed."""
    from ray import serve

    found = serve.status().applications[APP].deployments
    said = [line.strip() for one in found.values() for line in one.message.splitlines() if "Error" in line]
    return said[-1].rpartition("Error: ")[2] if said else "see its log"
