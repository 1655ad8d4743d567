"""The studio as a server: the page, the frames of Explore, and the gate before both."""

import logging
import socket
from collections.abc import Callable
from pathlib import Path

from gigagan.errors import GigaGANError, MissingExtra
from gigagan.listening import OWN_NAMES, listen
from gigagan.pipeline import Pipeline
from gigagan.studio.desk import Desk
from gigagan.studio.gate import Gate
from gigagan.studio.page import asset, build

MAX_FRAME_PX = 1024
FONTS = ["system-ui", "sans-serif"]
MONO = ["ui-monospace", "monospace"]


def make_app(
    pipe: Pipeline, folder: Path, card: str, *, hosts: tuple[str, ...] = OWN_NAMES, password: str = ""
) -> Gate:
    """The studio, ASGI. `folder`: for its files, not in GRADIO_TEMP_DIR, where Gradio deletes what is old.

    Raises MissingExtra without gradio.
    """
    try:
        import gradio as gr
    except ImportError:
        raise MissingExtra("gradio", "ui") from None
    from fastapi import FastAPI
    from fastapi.responses import PlainTextResponse, Response

    desk = Desk(pipe, folder)
    app = FastAPI(openapi_url=None)

    @app.get("/explore/{name}")
    def frame(name: str, x: float, y: float, size: int = 0) -> Response:
        try:
            content = desk.frame(name, x, y, min(size, MAX_FRAME_PX))
        except GigaGANError as error:
            return PlainTextResponse(str(error), 404)
        return Response(content, media_type="image/png", headers={"cache-control": "private, max-age=600"})

    gr.mount_gradio_app(
        app,
        build(desk, card),
        path="/",
        allowed_paths=[str(folder)],
        footer_links=[],
        show_error=True,
        ssr_mode=False,
        # Fonts by name: a theme's own would be fetched from Google.
        theme=gr.themes.Default(font=FONTS, font_mono=MONO),
        css=asset("studio.css"),
        head=f"<script>{asset('explore.js')}</script>",
        max_file_size="50mb",
    )
    return Gate(app, hosts=hosts, password=password)


def serve(app: Gate, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; `ready` gets the address once it can be opened. Port 0 = any free one.

    Raises ConfigError where the address can't be had.
    """
    import uvicorn

    listener, address = listen(host, port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3))
    own_startup = server.startup

    async def startup(sockets: list[socket.socket] | None = None) -> None:
        await own_startup(sockets)
        if server.started:
            ready(f"{address}/")

    server.startup = startup  # type: ignore[method-assign]

    # A page that is open at the end holds a connection, which is cut: of that there is nothing to tell.
    def running(record: logging.LogRecord) -> bool:
        return not server.should_exit

    log = logging.getLogger("uvicorn.error")
    log.addFilter(running)
    try:
        with listener:
            server.run(sockets=[listener])
    finally:
        log.removeFilter(running)
