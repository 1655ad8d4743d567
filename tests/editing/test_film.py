"""Films: what lies at the keys and between them, what a frame costs, and files that are whole or not there."""

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gigagan.data.places import TEMPORARY
from gigagan.editing import Key, check_video, film, interpolate, timeline, write_video
from gigagan.editing.films import num_frames
from gigagan.errors import ConfigError, DataError
from gigagan.metadata import FilmInfo
from gigagan.models.frozen import HashedText
from gigagan.pipeline import Pipeline

KEYS = [Key("a red apple", 0), Key("a blue rocket", 5), Key("a blue rocket", 7)]


class Counting(HashedText):
    """Counts prompts."""

    def __init__(self) -> None:
        super().__init__(max_tokens=16)
        self.asked: list[str] = []

    def encode(self, prompts):  # type: ignore[no-untyped-def]
        self.asked += prompts
        return super().encode(prompts)


@pytest.fixture
def pipe(tiny_networks: Callable[[int], tuple[Any, Any]]) -> Pipeline:
    return Pipeline(tiny_networks(0)[0], Counting())


def frames(pipe: Pipeline, steps: int, *, loop: bool) -> torch.Tensor:
    return torch.cat(list(film(pipe, timeline(KEYS, steps, loop=loop, easing="smooth"))))


def test_keys_are_the_pictures_of_their_prompts_and_seeds(pipe: Pipeline) -> None:
    drawn = frames(pipe, 3, loop=False)
    assert len(drawn) == 7
    for n, key in zip((0, 3, 6), KEYS, strict=True):
        assert torch.equal(drawn[n], pipe(key.prompt, seeds=key.seed).pyramid[0][0])
    assert len({frame.numpy().tobytes() for frame in drawn}) == 7


def test_a_loop_comes_back_and_shows_no_frame_twice(pipe: Pipeline) -> None:
    loop = frames(pipe, 3, loop=True)
    assert len(loop) == 9
    assert torch.equal(loop[:7], frames(pipe, 3, loop=False))
    steps = [(a.float() - b.float()).abs().mean() for a, b in zip(loop, loop.roll(-1, 0), strict=True)]
    assert min(steps) > 0
    # The step from the last frame to the first is one like the others, by easing slower than those in the middle.
    assert steps[-1] < max(steps[6:])


def test_between_two_prompts_of_a_seed_lies_their_blend(pipe: Pipeline) -> None:
    keys = [Key("a red apple", 3), Key("a blue rocket", 3)]
    middle = torch.cat(list(film(pipe, timeline(keys, 2, loop=False, easing="linear"))))[1]
    ends = [pipe.latents([key.prompt], pipe.z([3])) for key in keys]
    assert torch.equal(middle, pipe.draw(interpolate(*ends, 0.5))[0][0])


def test_easing_keeps_keys_and_slows_at_them() -> None:
    eased = [m.t for m in timeline(KEYS[:2], 4, loop=False, easing="smooth")]
    plain = [m.t for m in timeline(KEYS[:2], 4, loop=False, easing="linear")]
    assert plain == [0, 0.25, 0.5, 0.75, 0]
    assert eased[0] == eased[4] == 0
    assert eased[2] == 0.5
    assert eased[1] < 0.25
    assert eased[3] > 0.75


def test_a_film_costs_a_pass_a_frame_and_an_encoding_a_prompt(pipe: Pipeline) -> None:
    passes: list[int] = []
    pipe._drawing.synthesis.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    moments = timeline(KEYS, 6, loop=False, easing="smooth")
    assert (len(moments), pipe.micro_batch) == (13, 4)
    drawn = []
    for done, part in enumerate(film(pipe, moments), 1):
        drawn.append(len(part))
        assert len(passes) == done  # drawn when asked for: no more is held than a micro-batch
    assert drawn == passes == [4, 4, 4, 1]
    assert pipe.micro_batch == 4
    encoder = pipe.text_encoder
    assert isinstance(encoder, Counting)
    assert encoder.asked == ["a red apple", "a blue rocket"]


def test_a_film_needs_two_keys() -> None:
    with pytest.raises(ConfigError, match="1 key frame came; give two prompts or two seeds"):
        timeline(KEYS[:1], 5, loop=False, easing="linear")
    with pytest.raises(ConfigError, match="0 frames from a key to the next"):
        timeline(KEYS, 0, loop=False, easing="linear")


def test_the_number_of_frames_is_known_before_they_are() -> None:
    for loop in (True, False):
        assert num_frames(3, 5, loop=loop) == len(timeline(KEYS, 5, loop=loop, easing="linear"))


# Files.


def about(fps: float) -> FilmInfo:
    return FilmInfo(["a red apple"], [7], 0.7, 1.0, fps, True, "smooth", "abc")


def ramp(count: int, side: int = 32) -> Iterator[Image.Image]:
    for n in range(count):
        img = np.zeros((side, side, 3), np.uint8)
        img[:, : side // 2] = n * 255 // count
        img[0, n % side] = 255
        yield Image.fromarray(img)


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animations_hold_every_frame_for_its_time(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    write_video(path, ramp(30), count=30, about=about(24))
    with Image.open(path) as image:
        assert image.n_frames == 30  # type: ignore[attr-defined]
        total = 0.0
        for n in range(30):
            image.seek(n)
            image.load()
            total += image.info["duration"]
        assert image.info["loop"] == 0
    assert abs(total - 1250) <= 10
    assert b"a red apple" in path.read_bytes()
    if kind == "webp":
        with Image.open(path) as image:
            for n, expected in enumerate(ramp(30)):
                image.seek(n)
                assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(expected))


def test_mp4_holds_every_frame(tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "a.mp4"
    write_video(path, ramp(30, 64), count=30, about=about(24))
    count, seconds = ffmpeg.count_frames_and_secs(str(path))
    assert count == 30
    assert abs(seconds - 1.25) < 0.01
    command = [ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    last = np.frombuffer(raw, np.uint8).reshape(30, 64, 64, 3)[-1]
    assert abs(last[40, 10].astype(int) - 246).max() < 12
    assert about(24).as_json().encode() in path.read_bytes()


@pytest.mark.parametrize(("kind", "seconds"), [("mp4", 65_536), ("gif", 327.5), ("webp", 8388)])
def test_the_longest_film(tmp_path: Path, kind: str, seconds: float) -> None:
    """Of frames that are the same, which GIF and WebP show as one."""
    if kind == "mp4":
        pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / f"a.{kind}"
    check_video(path, fps=1 / seconds, size=32, count=2)
    write_video(path, itertools.repeat(next(ramp(1)), 2), count=2, about=about(1 / seconds))
    assert path.stat().st_size > 0


def test_an_mp4_of_thousands_of_keys(tmp_path: Path) -> None:
    """Whose comment can't hold them all, but how they are filmed."""
    pytest.importorskip("imageio_ffmpeg")
    keys = [f"caf\xe9\n\0\ud800 {n}" for n in range(20_000)]
    path = tmp_path / "a.mp4"
    write_video(path, ramp(2), count=2, about=FilmInfo(keys, range(20_000), 0.7, 2.5, 24, False, "linear", "abc"))
    content = path.read_bytes()
    said = b'{"psi": "0.7", "seconds": "2.5", "fps": "24", "ease": "linear", "model": "abc", '
    assert said in content
    assert b'"seeds": "0,1,2,' in content


@pytest.mark.skipif(os.name == "nt", reason="permissions of its own")
@pytest.mark.parametrize("kind", ["MP4", "gif", "WebP"])
def test_a_film_has_the_rights_that_new_files_have(tmp_path: Path, kind: str) -> None:
    if kind == "MP4":
        pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / f"a.{kind}"
    before = os.umask(0o077)
    try:
        write_video(path, ramp(3, 64), count=3, about=about(10))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("count", "most"), [(30, 2000), (3000, 20_000)])
def test_a_full_disk_leaves_the_film_that_was_there(tmp_path: Path, count: int, most: int) -> None:
    """Found out at the end, and while frames are still drawn."""
    pytest.importorskip("imageio_ffmpeg")
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.mp4"
    path.write_bytes(b"before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(
            DataError, match=r"a\.mp4: the film couldn't be written; make sure that the disk isn't full"
        ):
            write_video(path, ramp(count, 64), count=count, about=about(24))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["mp4", "gif", "webp"])
def test_a_film_that_stops_early_leaves_what_was_there(tmp_path: Path, kind: str) -> None:
    if kind == "mp4":
        pytest.importorskip("imageio_ffmpeg")

    def interrupted() -> Iterator[Image.Image]:
        yield from ramp(3, 64)
        # Half of it is there by now; whoever sweeps up after a killed one knows its name.
        assert all(TEMPORARY.fullmatch(half.stem) for half in tmp_path.iterdir() if half != path)
        raise KeyboardInterrupt

    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        write_video(path, interrupted(), count=9, about=about(10))
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "fps", "size", "count", "message"),
    [
        ("a.avi", 24, 64, 10, "name ends in .mp4, .gif or .webp"),
        ("a.mp4", 24, 65, 10, "65 px is odd, and mp4 takes even sides; use 66"),
        ("a.mp4", 0, 64, 10, "0 frames a second can't be"),
        ("a.gif", 60, 64, 10, "too many for gif, at most 50"),
        ("a.gif", 0.001, 64, 3, "3 frames at 0.001 a second last too long for gif, at most 655 s"),
        ("a.webp", 0.00001, 64, 3, "at most 16,777 s"),
        ("a.mp4", 0.00001, 64, 3, "at most 131,072 s"),
        ("a.webp", 24, 1024, 1000, "1000 frames of 1024 px are too many for webp, at most 170; write .mp4"),
    ],
)
def test_what_a_format_cant_hold(name: str, fps: float, size: int, count: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_video(Path(name), fps=fps, size=size, count=count)
