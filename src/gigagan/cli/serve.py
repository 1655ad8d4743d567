"""gigagan serve: the model as a service that OpenAI's clients can use."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from gigagan.cli.cells import DEVICE, MODEL
from gigagan.cli.signing import CERT, configured_signer
from gigagan.errors import ConfigError, MissingExtra
from gigagan.listening import LOOPBACK, check_keys, names
from gigagan.serving.limits import UPSCALE_PIXELS
from gigagan.serving.safety import load_checker


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Any but this machine's own address needs --key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 = any that is free.")
@click.option(
    "--key",
    "keys",
    multiple=True,
    envvar="GIGAGAN_API_KEYS",
    show_envvar=True,
    metavar="KEY",
    help="Asked of clients; more than once. The variable holds them with spaces between, and isn't seen in ps.",
)
@MODEL
@DEVICE
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True, help="Arithmetic."
)
@click.option(
    "--queue", type=click.IntRange(1, 10_000), default=64, show_default=True, help="Pictures that may wait; 429 beyond."
)
@click.option(
    "--per-key", type=click.IntRange(1, 10_000), default=32, show_default=True, help="Requests of a key at a time."
)
@click.option(
    "--max-prompt", type=click.IntRange(1, 32_000), default=4000, show_default=True, help="Characters of a prompt."
)
@click.option(
    "--max-upscale",
    type=click.IntRange(1, 2**30),
    default=UPSCALE_PIXELS,
    show_default=True,
    metavar="PIXELS",
    help="Of an enlarged picture; more allows as many times the time.",
)
@click.option(
    "--safety", metavar="MODULE:NAME", help="A gigagan.serving.safety.SafetyChecker of yours; a refusal is a 400."
)
@click.option("--log-prompts", is_flag=True, help="Log prompts themselves, not only their hashes.")
@click.option(
    "--ray", is_flag=True, help="By Ray Serve: model replicas on this machine, or on the cluster at RAY_ADDRESS."
)
@click.option(
    "--replicas", metavar="N|MIN-MAX", help="With --ray: how many, or as many as the load asks for.  [default: 1]"
)
def serve(
    host: str,
    port: int,
    keys: tuple[str, ...],
    model: str,
    device: str,
    dtype: str,
    queue: int,
    per_key: int,
    max_prompt: int,
    max_upscale: int,
    safety: str | None,
    log_prompts: bool,
    ray: bool,
    replicas: str | None,
) -> None:
    """Serve the OpenAI Images API: POST /v1/images/generations, with dynamic batching and a bounded queue.

    POST /v1/images/upscale enlarges pictures where the model has an upsampler.

    It prints its address once the model is warm; docs/serving.md has examples. SIGTERM or Ctrl-C lets what was
    accepted finish.
    """
    if host not in LOOPBACK and not keys:
        raise ConfigError(f"--host {host} lets others in; set GIGAGAN_API_KEYS, or listen on 127.0.0.1")
    check_keys(keys)
    if replicas is not None and not ray:
        raise ConfigError("--replicas came without --ray; give both, or leave it out")
    checker = load_checker(safety) if safety else None
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("gigagan").setLevel(logging.INFO)
    signer = configured_signer()
    if ray:
        if signer is not None:
            raise ConfigError(f"{CERT} is set, and --ray doesn't sign; unset it, or serve without --ray")
        limits = {"queue": queue, "per_key": per_key, "max_prompt": max_prompt, "max_upscale": max_upscale}
        asked = limits | {"model": model, "device": device, "dtype": dtype, "keys": keys, "hosts": names(host)}
        asked |= {"safety": safety or "", "log_prompts": log_prompts, "replicas": replicas or "1"}
        _serve_by_ray(asked, host, port)
        return
    with _extra():
        from gigagan.serving.limits import Limits
        from gigagan.serving.server import Server
        from gigagan.serving.server import serve as run
        from gigagan.serving.service import Service

    service = Service(
        Path(model).resolve().name,
        {"path": model, "device": device, "dtype": dtype},
        Limits(queue=queue, per_key=per_key, prompt_chars=max_prompt, upscale_pixels=max_upscale),
        safety=checker,
        signer=signer,
        log_prompts=log_prompts,
        threads=os.cpu_count() or 2,
    )
    run(Server(service, hosts=names(host), keys=keys), host, port, lambda address: print(address, flush=True))


def _serve_by_ray(asked: dict[str, Any], host: str, port: int) -> None:
    """The same service, its model in replicas: the machine's cores or GPUs are shared out among them."""
    from gigagan.cli.cluster import lent, prepare, serve_app

    prepare()
    with _extra():
        from gigagan.ray_app import Settings, numbers

    device, gpus = lent(asked["device"])
    cpus = max(1, (os.cpu_count() or 1) // numbers(asked["replicas"])[1])
    serve_app(Settings(**asked | {"device": device}, cpus=cpus, gpus=gpus), host, port)


@contextlib.contextmanager
def _extra() -> Iterator[None]:
    """Around imports: MissingExtra where a package of the server isn't there."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
            raise
        raise MissingExtra(error.name or "fastapi", "serve") from None
