"""Frames to a file: mp4 through ffmpeg, GIF and WebP through Pillow. All of a file or nothing."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from gigagan.data.places import whole
from gigagan.errors import ConfigError, DataError, MissingExtra
from gigagan.metadata import FilmInfo, xmp

FORMATS = (".mp4", ".gif", ".webp")
MAX_HELD_BYTES = 2**29  # of a GIF or WebP, whose frames Pillow holds until the end
TICK_MS = {".gif": 10, ".webp": 1}
"""What a frame's time is counted in."""
MAX_SEC = {".mp4": 131_072, ".gif": 655, ".webp": 16_777}
"""Of a whole film, all of which may be one frame: times are 31 bits of 1/16384 s, 16 bits of 1/100 s, 24 bits of ms."""
MAX_COMMENT_BYTES = 16_000  # ffmpeg takes it as an argument: Linux allows one 128 KiB, Windows all of them 32 KiB
MAX_GIF_FPS = 50  # programs that show a GIF take less than 2 ticks for a mistake, and show it at 10 a second


def check_video(path: Path, *, fps: float, size: int, count: int) -> None:
    """What can be known before a frame is drawn. Raises ConfigError, and MissingExtra for mp4 without ffmpeg."""
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise ConfigError(f"{path}: a video's name ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if not 0 < fps <= 100:
        raise ConfigError(f"{fps:g} frames a second can't be; expected more than 0, at most 100")
    if kind == ".gif" and fps > MAX_GIF_FPS:
        raise ConfigError(f"{fps:g} frames a second are too many for gif, at most {MAX_GIF_FPS}; write .webp or .mp4")
    if count / fps > MAX_SEC[kind]:
        what = f"{count} frames at {fps:g} a second"
        raise ConfigError(
            f"{what} last too long for {kind[1:]}, at most {MAX_SEC[kind]:,} s; give more frames a second"
        )
    if kind == ".mp4":
        if size % 2:
            raise ConfigError(f"{size} px is odd, and mp4 takes even sides; use {size + 1}")
        try:
            import imageio_ffmpeg  # noqa: F401
        except ImportError:
            raise MissingExtra("imageio-ffmpeg", "video") from None
    elif count * size**2 * 3 > MAX_HELD_BYTES:
        most = MAX_HELD_BYTES // (size**2 * 3)
        raise ConfigError(f"{count} frames of {size} px are too many for {kind[1:]}, at most {most}; write .mp4")


def write_video(path: Path, frames: Iterator[Image.Image], *, count: int, about: FilmInfo) -> None:
    """Write `count` square frames, `about.fps` a second; `about` is what the file says of itself.

    An mp4 is written as the frames come; of a GIF or WebP Pillow holds them until the end. Where they end early, by
    Ctrl-C or an error, what was there before stays and nothing else is left. Raises DataError where ffmpeg couldn't
    write the file.
    """
    kind = path.suffix.lower()
    with whole(path) as partial:
        if kind == ".mp4":
            if not _write_mp4(partial, frames, about):
                raise DataError(f"{path}: the film couldn't be written; make sure that the disk isn't full")
        else:
            _write_animation(partial, frames, _durations(count, about.fps, TICK_MS[kind]), about)


def _write_mp4(path: Path, frames: Iterator[Image.Image], about: FilmInfo) -> bool:
    """Whether the file holds every frame."""
    from imageio_ffmpeg import count_frames_and_secs, write_frames

    first = next(frames)
    said = ["-metadata", f"comment={_comment(about.as_json())}", "-movflags", "+faststart"]
    # 8 of imageio's 0 to 10: flat colors keep their edges.
    writer = write_frames(
        str(path),
        first.size,
        fps=about.fps,
        quality=8,
        macro_block_size=2,
        output_params=said,
        ffmpeg_log_level="fatal",
    )
    writer.send(None)
    sent = 0
    with contextlib.closing(writer):
        for frame in itertools.chain([first], frames):
            try:
                writer.send(np.asarray(frame).tobytes())
            except OSError:  # ffmpeg has ended
                return False
            sent += 1
    # The writer doesn't tell how ffmpeg ended.
    try:
        return count_frames_and_secs(path)[0] == sent
    except RuntimeError:
        return False


def _comment(about: str) -> str:
    """As an argument of ffmpeg; a long one is cut at its end, where the keys are."""
    content = "".join(c for c in about if c.isprintable()).encode()
    if len(content) <= MAX_COMMENT_BYTES:
        return content.decode()
    return content[:MAX_COMMENT_BYTES].decode(errors="ignore") + " ..."


def _write_animation(path: Path, frames: Iterator[Image.Image], durations: list[int], about: FilmInfo) -> None:
    first = next(frames)
    kind, drawing = path.suffix[1:].upper(), about.as_json()
    if kind == "WEBP":
        said = {"lossless": True, "xmp": xmp("; ".join(about.lines), about.version, drawing).encode()}
    else:
        said = {"comment": drawing.encode(), "optimize": False}
    with path.open("wb") as file:
        first.save(file, kind, save_all=True, append_images=frames, duration=durations, loop=0, **said)


def _durations(count: int, fps: float, tick_ms: int) -> list[int]:
    """Milliseconds of each frame in whole ticks, their sum as near to count / fps as ticks allow."""
    ends = [round(n * 1000 / fps / tick_ms) for n in range(count + 1)]
    return [(end - start) * tick_ms for start, end in itertools.pairwise(ends)]
