"""gigagan ui: the studio in a browser."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from gigagan.cli.cells import DEVICE, MODEL
from gigagan.errors import ConfigError
from gigagan.listening import LOOPBACK, names

MIN_PASSWORD = 8


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Any but this machine's own address needs a password.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="0 = any that is free.")
@click.option(
    "--password", envvar="GIGAGAN_PASSWORD", show_envvar=True, help="Asked of visitors; any user name will do."
)
@MODEL
@DEVICE
def ui(host: str, port: int, password: str | None, model: str, device: str) -> None:
    """Open the studio: generate, mix, explore, style tables and films in a browser.

    It listens on this machine alone, takes nothing from elsewhere and sends nothing away. Ctrl-C ends it.
    """
    if host not in LOOPBACK and not password:
        raise ConfigError(f"--host {host} lets others in; set GIGAGAN_PASSWORD, or listen on 127.0.0.1")
    if password is not None and len(password) < MIN_PASSWORD:
        raise ConfigError(f"the password has {len(password)} characters; expected at least {MIN_PASSWORD}")

    with _folder() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        from gigagan.card import shown_part
        from gigagan.checkpoint import find_model
        from gigagan.pipeline import Pipeline
        from gigagan.studio import app

        place = find_model(model)
        pipe = Pipeline.from_pretrained(place, device=device)
        card = place / "README.md"
        text = "This model has no card."
        if card.is_file():
            text = shown_part(card.read_text(encoding="utf-8", errors="replace"))
        studio = app.make_app(pipe, folder / "shelf", text, hosts=names(host), password=password or "")
        app.serve(studio, host, port, lambda address: print(address, flush=True))


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder that goes when the block ends, by SIGTERM too, which then ends the process as it does anyway."""
    asked: list[int] = []

    def leave(number: int, frame: object) -> None:
        if not asked:
            asked.append(number)
            raise SystemExit(128 + number)

    folder = Path(tempfile.mkdtemp(prefix="gigagan-ui-"))
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield folder
    finally:
        for _ in range(2):  # what is still being drawn may write into it meanwhile
            shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)
        if asked:
            signal.raise_signal(signal.SIGTERM)
