"""The page: tabs of inputs and outputs over a Desk."""

from collections.abc import Callable, Iterable
from functools import wraps
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from gigagan import __version__
from gigagan.data.captions import canonical
from gigagan.errors import DataError, GigaGANError
from gigagan.pipeline import DEFAULT_PSI
from gigagan.request import fresh_seeds
from gigagan.studio.desk import MAX_PICTURES, Desk
from gigagan.studio.inputs import filled, lines, parse_seed_list

if TYPE_CHECKING:
    import gradio as gr

P = ParamSpec("P")
R = TypeVar("R")
STYLES = tuple(canonical("{}"))
CORNERS = (
    "a 3D render of a red apple",
    "a 3D render of a rocket",
    "a black and white icon of a cat",
    "a flat icon of a blue heart",
)
FIRST_PROMPT = "a rocket"  # of no style: then seeds differ in theirs
Drawing = tuple[str, float, list[int]]
"""Prompt, psi and seeds."""
MAX_HISTORY = 20
PICTURE_PX = 340
SHORT_SEED = 1_000_000  # of the seeds that the page draws: they have to be read and typed
QUIET: dict[str, Any] = {"api_visibility": "private"}
"""Of every event: the page is the page, programs have the library and the HTTP server."""
SHOWN_SEC = 8
CACHE_SEC = (3600, 3600)
"""How often Gradio looks, and how old its copies become; it makes them anew from the shelf."""


def asset(name: str) -> str:
    """A file of the page."""
    return (resources.files("gigagan.studio") / name).read_text(encoding="utf-8")


def told(work: Callable[P, R]) -> Callable[P, R]:
    """The same; the user's mistakes become a message on the page."""

    @wraps(work)
    def tried(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return work(*args, **kwargs)
        except GigaGANError as error:
            import gradio as gr

            raise gr.Error(str(error), duration=SHOWN_SEC, print_exception=False) from None

    return tried


def _warn(desk: Desk, prompts: Iterable[str]) -> None:
    """Says on the page where prompts are cut."""
    import gradio as gr

    if message := desk.cut(prompts):
        gr.Warning(message, duration=SHOWN_SEC)


def build(desk: Desk, card: str) -> "gr.Blocks":
    """All tabs; `card` is the model's, Markdown."""
    import gradio as gr

    name = f"{desk.pipe.resolution} px, model {desk.pipe.model_hash or 'in memory'}, open-gigagan {__version__}"
    with gr.Blocks(title="GigaGAN studio", analytics_enabled=False, delete_cache=CACHE_SEC) as page:
        gr.Markdown(f"# GigaGAN studio\n{name}")
        with gr.Tab("Generate", id="generate"):
            _generate(desk)
        with gr.Tab("Mix", id="mix") as tab:
            _mix(desk, tab)
        with gr.Tab("Explore", id="explore") as tab:
            _explore(desk, tab)
        with gr.Tab("Style table", id="table"):
            _table(desk)
        if desk.pipe.enlarger is not None:
            with gr.Tab("Upsample", id="upsample"):
                _upsample(desk)
        with gr.Tab("Video", id="video"):
            _video(desk)
        with gr.Tab("Model card", id="card"):
            gr.Markdown(card, elem_id="model-card")
    page.queue(max_size=256, default_concurrency_limit=4)
    return page


def _psi() -> "gr.Slider":
    import gradio as gr

    return gr.Slider(0, 1, DEFAULT_PSI, step=0.05, label="psi: less = more typical")


def _pictures(label: str, elem_id: str, columns: int) -> "gr.Gallery":
    import gradio as gr

    gr.Markdown(f"**{label}**")
    return gr.Gallery(
        show_label=False,
        label=label,
        columns=columns,
        fit_columns=False,
        format="png",
        allow_preview=False,
        buttons=["download_all"],
        elem_id=elem_id,
    )


def _picture(label: str, elem_id: str, *, height: int | None = PICTURE_PX) -> "gr.Image":
    import gradio as gr

    return gr.Image(
        label=label,
        type="filepath",
        interactive=False,
        height=height,
        buttons=["download", "fullscreen"],
        elem_id=elem_id,
    )


def _generate(desk: Desk) -> None:
    import gradio as gr

    prompt = gr.Textbox(label="Prompt", value=FIRST_PROMPT, lines=1, max_lines=1, autofocus=True, elem_id="prompt")
    with gr.Row():
        count = gr.Slider(1, MAX_PICTURES, 16, step=1, label="Pictures")
        psi = _psi()
        kept = gr.Textbox(label="Keep these seeds", placeholder="click a picture, or write 3, 5, 8-11", elem_id="kept")
    go = gr.Button("Generate", variant="primary", elem_id="go")
    gallery = _pictures("Pictures: click one to keep its seed", "pictures", 8)
    with gr.Row():
        chosen = _picture("Chosen", "chosen")
        download = gr.DownloadButton(
            "Download it, with its prompt and seed inside", interactive=False, elem_id="download"
        )
    past = _pictures("History: click to go back", "past", 12)
    # What it takes to draw pictures again, (prompt, psi, seeds), as their files may be gone by then.
    shown, history = gr.State(), gr.State([])

    @told
    def generate(prompt: str, count: float, psi: float, kept: str, history: list[Drawing]) -> tuple[Any, ...]:
        seeds = list(dict.fromkeys(parse_seed_list(kept)))
        seeds += [seed % SHORT_SEED for seed in fresh_seeds(max(0, int(count) - len(seeds)))]
        _warn(desk, [prompt])
        drawing = prompt, psi, seeds
        pictures = _captioned(desk, drawing)
        history = [drawing, *history][:MAX_HISTORY]
        firsts = [(str(desk.pictures(prompt, seeds[:1], psi)[0]), prompt) for prompt, psi, seeds in history]
        return pictures, drawing, history, firsts

    @told
    def choose(kept: str, shown: Drawing, event: gr.SelectData) -> tuple[Any, ...]:
        prompt, psi, seeds = shown
        seed = seeds[event.index]
        large = str(desk.full_size(prompt, seed, psi))
        texts = [text for text in (part.strip() for part in kept.split(",")) if text]
        texts += [] if str(seed) in texts else [str(seed)]
        return ", ".join(texts), large, gr.DownloadButton(value=large, interactive=True)

    @told
    def go_back(history: list[Drawing], event: gr.SelectData) -> tuple[Any, ...]:
        drawing = history[event.index]
        return drawing[0], drawing[1], _captioned(desk, drawing), drawing

    inputs: list[Any] = [prompt, count, psi, kept, history]
    outputs: list[Any] = [gallery, shown, history, past]
    go.click(generate, inputs, outputs, **QUIET)
    prompt.submit(generate, inputs, outputs, **QUIET)
    gallery.select(choose, [kept, shown], [kept, chosen, download], **QUIET)
    past.select(go_back, [history], [prompt, psi, gallery, shown], **QUIET)


def _captioned(desk: Desk, drawing: Drawing) -> list[tuple[str, str]]:
    """Of a gallery: files, each with its seed."""
    prompt, psi, seeds = drawing
    return [(str(path), str(seed)) for path, seed in zip(desk.pictures(prompt, seeds, psi), seeds, strict=True)]


def _mix(desk: Desk, tab: "gr.Tab") -> None:
    import gradio as gr

    gr.Markdown("Layout and shape from the first prompt, color and texture from the second.")
    with gr.Row():
        coarse = gr.Textbox(label="Coarse layers", value="a 3D render of a red apple", elem_id="coarse")
        fine = gr.Textbox(label="Fine layers", value="a black and white icon of a red apple", elem_id="fine")
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        psi = _psi()
    go = gr.Button("Mix", variant="primary", elem_id="mix-go")
    layer = gr.Slider(
        0, desk.num_layers, desk.num_layers // 2, step=1, label="The second prompt takes over at layer", elem_id="layer"
    )
    with gr.Row():
        picture = _picture("Mixed", "mixed")
        with gr.Column():
            every = _pictures("At every layer", "layers", 4)
    mixed = gr.State()

    @told
    def draw(coarse: str, fine: str, seed: float | None, psi: float, layer: float) -> tuple[Any, ...]:
        mixed = coarse, fine, int(seed or 0), psi
        _warn(desk, [coarse, fine])
        paths = [str(path) for path in desk.mixes(*mixed)]
        return mixed, [(path, f"layer {n}") for n, path in enumerate(paths)], paths[int(layer)]

    @told
    def move(mixed: tuple[str, str, int, float] | None, layer: float) -> str | None:
        return None if mixed is None else str(desk.mixes(*mixed)[int(layer)])

    inputs: list[Any] = [coarse, fine, seed, psi, layer]
    outputs: list[Any] = [mixed, every, picture]
    go.click(draw, inputs, outputs, **QUIET)
    tab.select(draw, inputs, outputs, **QUIET)
    for box in (coarse, fine, seed):
        box.submit(draw, inputs, outputs, **QUIET)
    psi.release(draw, inputs, outputs, **QUIET)
    layer.change(move, [mixed, layer], picture, **QUIET, show_progress="hidden", trigger_mode="always_last")


def _explore(desk: Desk, tab: "gr.Tab") -> None:
    import gradio as gr

    gr.Markdown(
        "Move the pointer, tap, or press arrow keys once the picture has the focus. Where it rests it is drawn larger."
    )
    with gr.Row():
        boxes = [
            gr.Textbox(label=label, value=value, elem_id=f"corner-{n}")
            for n, (label, value) in enumerate(
                zip(("Top left", "Top right", "Bottom left", "Bottom right"), CORNERS, strict=True)
            )
        ]
    with gr.Row():
        between, along = "between the four prompts", "along the two directions in which they differ most"
        kind = gr.Radio([between, along], value=between, label="Plane", elem_id="plane-kind")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        psi = _psi()
    go = gr.Button("Set the plane", variant="primary", elem_id="plane-go")
    pad = gr.HTML(elem_id="plane", js_on_load=None)

    @told
    def lay(one: str, two: str, three: str, four: str, kind: str, seed: float | None, psi: float) -> str:
        corners = [one, two, three, four]
        _warn(desk, corners)
        name = desk.explore(corners, int(seed or 0), psi, directions=kind == along)
        return (
            f'<div id="pad" data-plane="{name}" data-x="0.5" data-y="0.5" tabindex="0" role="application" '
            f'aria-label="Plane of pictures; move with the arrow keys">'
            f'<img alt="The picture of the chosen place" draggable="false" '
            f'src="explore/{name}?x=0.5&amp;y=0.5&amp;size=512">'
            '<span class="dot" style="left: 50%; top: 50%"></span></div><p class="note" role="status"></p>'
        )

    inputs: list[Any] = [*boxes, kind, seed, psi]
    go.click(lay, inputs, pad, **QUIET)
    tab.select(lay, inputs, pad, **QUIET)
    for box in boxes:
        box.submit(lay, inputs, pad, **QUIET)


def _table(desk: Desk) -> None:
    import gradio as gr

    with gr.Row():
        things = gr.Textbox(label="Things, one a line", value="a red apple\na rocket\na cat", lines=9, elem_id="things")
        styles = gr.Textbox(label="Styles, one a line; {} is the thing", value="\n".join(STYLES), lines=9)
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        psi = _psi()
    go = gr.Button("Draw the table", variant="primary", elem_id="table-go")
    sheet = _picture("Table", "sheet", height=None)

    @told
    def draw(things: str, styles: str, seed: float | None, psi: float) -> str:
        _warn(desk, filled(lines(things), lines(styles)))
        return str(desk.table(lines(things), lines(styles), int(seed or 0), psi))

    go.click(draw, [things, styles, seed, psi], sheet, **QUIET)


def _upsample(desk: Desk) -> None:
    import gradio as gr

    with gr.Row():
        picture = gr.Image(label="Picture", type="filepath", image_mode=None, height=PICTURE_PX, elem_id="small")
        with gr.Column():
            scale = gr.Radio(["2", "4", "8"], value="4", label="Times as large", elem_id="scale")
            prompt = gr.Textbox(label="What it shows", placeholder="may stay empty", elem_id="shows")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            go = gr.Button("Upsample", variant="primary", elem_id="upsample-go")
    compared = gr.ImageSlider(
        label="Enlarged by Lanczos | by the model", type="filepath", interactive=False, elem_id="compared"
    )
    download = gr.DownloadButton("Download the larger picture", interactive=False, elem_id="large-download")

    @told
    def enlarge(picture: str | None, scale: str, prompt: str, seed: float | None) -> tuple[Any, ...]:
        if picture is None:
            raise DataError("no picture came; drop one on the page first")
        _warn(desk, [prompt])
        before, after = desk.upsampled(Path(picture), int(scale), prompt, int(seed or 0))
        return (str(before), str(after)), gr.DownloadButton(value=str(after), interactive=True)

    go.click(enlarge, [picture, scale, prompt, seed], [compared, download], **QUIET)


def _video(desk: Desk) -> None:
    import gradio as gr

    with gr.Row():
        prompts = gr.Textbox(
            label="Prompts, one a line", value="a red apple\na blue heart", lines=4, elem_id="film-prompts"
        )
        seeds = gr.Textbox(label="Seeds: one, one a prompt, or several for one prompt", value="0")
    with gr.Row():
        seconds = gr.Slider(0.25, 5, 1, step=0.25, label="Seconds to the next")
        fps = gr.Slider(5, 50, 20, step=1, label="Frames a second")
        psi = _psi()
        loop = gr.Checkbox(True, label="Loop")
        kind = gr.Radio(["webp", "gif", "mp4"], value="webp", label="Format", elem_id="film-kind")
    go = gr.Button("Film", variant="primary", elem_id="film-go")
    shown = _picture("Film", "film")
    played = gr.Video(label="Film", visible=False, height=300, autoplay=True, loop=True)
    download = gr.DownloadButton("Download the film", interactive=False, elem_id="film-download")

    @told
    def shoot(
        prompts: str, seeds: str, seconds: float, fps: float, psi: float, loop: bool, kind: str
    ) -> tuple[Any, ...]:
        _warn(desk, lines(prompts))
        path = desk.film(
            lines(prompts), parse_seed_list(seeds) or [0], psi, seconds=seconds, fps=fps, loop=loop, kind=kind
        )
        is_mp4 = kind == "mp4"
        return (
            gr.Image(value=None if is_mp4 else str(path), visible=not is_mp4),
            gr.Video(value=str(path) if is_mp4 else None, visible=is_mp4),
            gr.DownloadButton(value=str(path), interactive=True),
        )

    inputs: list[Any] = [prompts, seeds, seconds, fps, psi, loop, kind]
    # Every frame of a WebP or GIF is held until its end (`video.MAX_HELD_BYTES`), so one film at a time.
    go.click(shoot, inputs, [shown, played, download], **QUIET, concurrency_limit=1)
