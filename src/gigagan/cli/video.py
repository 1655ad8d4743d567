"""gigagan video: the way between prompts and seeds as mp4, GIF or WebP."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gigagan.cli.cells import DEVICE, MODEL, PSI, words
from gigagan.cli.files import check_target, probe
from gigagan.cli.generate import parse_seeds
from gigagan.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from gigagan.editing.films import Easing

MAX_FRAMES = 100_000


@click.command()
@click.argument("prompts", metavar="[PROMPT...]", nargs=-1)
@click.option(
    "--seeds",
    metavar="LIST",
    help="One for all prompts, one for each, or of one prompt its key frames: 0-3 or 0,1,0.  [default: 0]",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="File to write or replace: .mp4, .gif, .webp."
)
@click.option("--seconds", type=float, default=2.0, show_default=True, help="From a key frame to the next.")
@click.option("--fps", type=float, default=24.0, show_default=True, help="Frames a second.")
@click.option(
    "--size",
    type=click.IntRange(16, 4096),
    help="Side in pixels.  [default: the model's, or four times the generator's where that is more]",
)
@click.option("--loop", is_flag=True, help="End where it began.")
@click.option(
    "--ease",
    type=click.Choice(["smooth", "linear"]),
    default="smooth",
    show_default=True,
    help="smooth: slow at the key frames.",
)
@PSI
@MODEL
@DEVICE
def video(
    prompts: tuple[str, ...],
    seeds: str | None,
    out: Path,
    seconds: float,
    fps: float,
    size: int | None,
    loop: bool,
    ease: str,
    psi: float | None,
    model: str,
    device: str,
) -> None:
    """Film the way from each PROMPT to the next, or from each seed of one PROMPT to the next.

    Prompts and seeds may come again: "a cat" "a dog" "a cat". An unconditional model is given --seeds alone. Ctrl-C or
    SIGTERM leaves no half file, and what --out held before.
    """
    pairs = _pairs(list(prompts) or [""], [0] if seeds is None else parse_seeds(seeds, again=True))
    if not 0 < seconds * fps <= MAX_FRAMES:
        raise ConfigError(f"{seconds:g} s at {fps:g} frames a second can't be; expected 1 to {MAX_FRAMES:,} frames")

    from gigagan.editing import Key, check_video, film, timeline, write_video
    from gigagan.editing.films import num_frames
    from gigagan.editing.video import FORMATS
    from gigagan.metadata import FilmInfo
    from gigagan.pipeline import DEFAULT_PSI, Pipeline
    from gigagan.request import check_psi

    psi = check_psi(DEFAULT_PSI if psi is None else psi)
    steps = max(1, round(seconds * fps))
    count = num_frames(len(pairs), steps, loop=loop)
    if count > MAX_FRAMES:
        raise ConfigError(f"{count:,} frames are more than {MAX_FRAMES:,}; give fewer key frames, --seconds or --fps")
    check_video(out, fps=fps, size=size or 2, count=count)
    check_target(out, *FORMATS)
    pipe = Pipeline.from_pretrained(model, device=device)
    side = size or max(pipe.resolution, 4 * pipe.generator.cfg.resolution)
    check_video(out, fps=fps, size=side, count=count)
    words(pipe, prompts)
    probe(out.parent)
    texts, numbers = zip(*pairs, strict=True)
    about = FilmInfo(texts, numbers, psi, seconds, fps, loop, ease, pipe.model_hash)
    easing: Easing = "smooth" if ease == "smooth" else "linear"
    moments = timeline([Key(*pair) for pair in pairs], steps, loop=loop, easing=easing)
    with _ended_by_sigterm():
        write_video(out, _enlarged(film(pipe, moments, psi=psi), count, side), count=count, about=about)
    print(out)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, which takes what is half done away."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _pairs(prompts: list[str], seeds: list[int]) -> list[tuple[str, int]]:
    """A prompt and a seed for each key frame."""
    if len(prompts) == 1 or len(seeds) == 1:
        count = max(len(prompts), len(seeds))
        return list(zip(prompts * (count // len(prompts)), seeds * (count // len(seeds)), strict=True))
    if len(prompts) != len(seeds):
        raise ConfigError(f"{len(prompts)} prompts and {len(seeds)} seeds came; give one seed, or one for each prompt")
    return list(zip(prompts, seeds, strict=True))


def _enlarged(parts: "Iterator[Tensor]", count: int, side: int) -> "Iterator[Image]":
    """Frames under a progress bar."""
    from PIL import Image
    from tqdm import tqdm

    from gigagan.pipeline import to_pil

    with tqdm(total=count, unit="frame", disable=None) as bar:
        for part in parts:
            for frame in to_pil(part):
                yield frame if frame.width == side else frame.resize((side, side), Image.Resampling.LANCZOS)
                bar.update()
