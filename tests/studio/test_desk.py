"""What the studio does behind its page: the desk and the boxes."""

import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gigagan import grid
from gigagan.config import AttentionConfig, GeneratorConfig
from gigagan.editing import plane
from gigagan.errors import ConfigError, DataError, GigaGANError, PromptError
from gigagan.metadata import read_info
from gigagan.models.frozen import HashedText, Unconditional
from gigagan.models.generator import Generator
from gigagan.models.upsampler import Upsampler
from gigagan.pipeline import Pipeline
from gigagan.studio import desk as desk_module
from gigagan.studio.desk import Desk
from gigagan.studio.inputs import lines, parse_seed_list

FOUR = ["a red apple", "a rocket", "x", "y"]


@pytest.fixture(scope="module")
def pipe(tiny_networks: Callable[[int], tuple[Any, Any]]) -> Pipeline:
    return Pipeline(tiny_networks(0)[0], HashedText(max_tokens=12))


@pytest.fixture(scope="module")
def large_pipe(tiny_networks: Callable[[int], tuple[Any, Any]], upsampler: Upsampler) -> Pipeline:
    """With an upsampler from 16 to 64 px behind it."""
    return Pipeline(tiny_networks(0)[0], HashedText(max_tokens=8), upsampler=upsampler)


@pytest.fixture
def desk(pipe: Pipeline, tmp_path: Path) -> Desk:
    return Desk(pipe, tmp_path)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def opened(frame: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(frame)) as image:
        return np.asarray(image)


def same(frame: bytes, picture: np.ndarray) -> bool:
    """Frames are drawn alone, pictures among as many as a micro-batch holds: rounding may show in the last bit."""
    return bool(np.abs(opened(frame).astype(int) - picture).max() <= 1)


def test_pictures_are_the_pipelines_and_say_so(desk: Desk, pipe: Pipeline) -> None:
    paths = desk.pictures("a red apple", [3, 9], 0.6)
    for path, seed, image in zip(
        paths, (3, 9), pipe("a red apple", seeds=[3, 9], truncation_psi=0.6).images, strict=True
    ):
        assert np.array_equal(pixels(path), np.asarray(image))
        assert (read_info(path)["seed"], read_info(path)["psi"]) == (str(seed), "0.6")
        assert path.name == f"seed-{seed}.png"


def test_a_picture_is_drawn_larger_when_it_is_chosen(large_pipe: Pipeline, pipe: Pipeline, tmp_path: Path) -> None:
    desk = Desk(large_pipe, tmp_path)
    (path,) = desk.pictures("x", [3], 0.6)
    assert np.array_equal(pixels(path), np.asarray(pipe("x", seeds=3, truncation_psi=0.6).images[0]))
    large = desk.full_size("x", 3, 0.6)
    assert np.array_equal(pixels(large), np.asarray(large_pipe("x", seeds=3, truncation_psi=0.6).images[0]))
    assert (read_info(large)["seed"], read_info(large)["psi"], large.name) == ("3", "0.6", "seed-3.png")
    desk = Desk(pipe, tmp_path)
    assert [desk.full_size("x", 3, 0.6)] == desk.pictures("x", [3], 0.6)


def test_files_that_are_gone_are_drawn_again(large_pipe: Pipeline, tmp_path: Path) -> None:
    desk = Desk(large_pipe, tmp_path)
    asked: list[Callable[[], list[Path]]] = [
        lambda: desk.pictures("x", [3, 5, 3], 0.6),
        lambda: [desk.full_size("x", 3, 0.6)],
        lambda: desk.mixes("x", "y", 4, 0.7),
    ]
    for ask in asked:
        first = {path: path.read_bytes() for path in ask()}
        next(iter(first)).unlink()
        assert {path: path.read_bytes() for path in ask()} == first
    assert desk.pictures("x", [3, 5], 0.6)[0].stat().st_ino == desk.pictures("x", [3], 0.6)[0].stat().st_ino


def test_mixes_go_from_one_prompt_to_the_other(desk: Desk, pipe: Pipeline) -> None:
    paths = desk.mixes("a red apple", "x", 4, 0.7)
    assert len(paths) == 4
    for path, prompt in ((paths[0], "x"), (paths[3], "a red apple")):
        assert np.array_equal(pixels(path), np.asarray(pipe(prompt, seeds=4).images[0]))
    assert json.loads(read_info(paths[1])["edit"]) == {"edit": "mix", "fine": "x", "fine_seed": 4, "layer": 1}


def test_what_is_on_the_shelf_needs_no_turn_at_the_model(desk: Desk) -> None:
    asks = (lambda: desk.mixes("a red apple", "x", 4, 0.7), lambda: desk.pictures("x", [1, 2], 0.7))
    made = [ask() for ask in asks]
    with desk._turns.take():  # whoever asks for another one waits forever
        assert [ask() for ask in asks] == made


def test_a_plane_of_prompts(desk: Desk, pipe: Pipeline) -> None:
    name = desk.explore(FOUR, 2, 0.7, directions=False)
    assert name == desk.explore(FOUR, 2, 0.7, directions=False)
    for (x, y), prompt in zip([(0, 0), (1, 0), (0, 1), (1, 1)], FOUR, strict=True):
        assert same(desk.frame(name, x, y, 0), np.asarray(pipe(prompt, seeds=2).images[0]))
    points = [pipe.latents([prompt], pipe.z([2])) for prompt in FOUR]
    expected = pipe.draw(plane(points, 0.3, 0.8))[0][0].permute(1, 2, 0).numpy()
    assert same(desk.frame(name, 0.3, 0.8, 0), expected)
    assert opened(desk.frame(name, 0.3, 0.8, 128)).shape == (128, 128, 3)


def test_a_frame_says_how_to_draw_it_again(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    name = desk.explore(FOUR, 2, 0.7, directions=False)
    path.write_bytes(desk.frame(name, 0.3, 0.8, 128))
    said = read_info(path)
    assert (said["prompt"], said["seed"], said["psi"], said["resolution"]) == (FOUR[0], "2", "0.7", "16")
    assert json.loads(said["edit"]) == {"edit": "grid", "corners": FOUR[1:], "x": 0.3, "y": 0.8}
    assert said["digitalSourceType"] == "trainedAlgorithmicMedia"
    path.write_bytes(desk.frame(desk.explore(["x"], 2, 0.7, directions=True), 0.5, 1, 0))
    assert json.loads(read_info(path)["edit"]) == {"edit": "directions", "prompts": ["x"], "x": 0.5, "y": 1}


def test_no_other_studio_has_a_plane_of_the_same_name(pipe: Pipeline, tmp_path: Path) -> None:
    """A browser keeps frames for a while, and the next studio may be at the same address."""
    names = {Desk(pipe, tmp_path).explore(FOUR, 2, 0.7, directions=False) for _ in range(2)}
    assert len(names) == 2


def test_a_plane_is_drawn_larger_where_the_pointer_rests(large_pipe: Pipeline, pipe: Pipeline, tmp_path: Path) -> None:
    desk = Desk(large_pipe, tmp_path)
    name = desk.explore(FOUR, 2, 0.7, directions=False)
    assert same(desk.frame(name, 0, 0, 0), np.asarray(pipe(FOUR[0], seeds=2).images[0]))
    assert np.array_equal(opened(desk.frame(name, 0, 0, 64)), np.asarray(large_pipe(FOUR[0], seeds=2).images[0]))


def test_a_picture_is_upsampled(large_pipe: Pipeline, pipe: Pipeline, tmp_path: Path) -> None:
    desk, source = Desk(large_pipe, tmp_path), tmp_path / "cat.png"
    Image.effect_noise((20, 12), 80).convert("RGB").save(source)
    before, after = desk.upsampled(source, 2, "a cat", 5)
    with Image.open(source) as image:
        assert np.array_equal(pixels(after), np.asarray(large_pipe.upsample(image, scale=2, prompt="a cat", seed=5)))
        assert np.array_equal(pixels(before), np.asarray(image.resize((40, 24), Image.Resampling.LANCZOS)))
    assert after.name == "cat-2x.png"
    assert desk.upsampled(source, 2, "a cat", 5) == (before, after)
    deep = np.linspace(0, 65535, 240).astype(np.uint16).reshape(12, 20)
    Image.fromarray(deep).save(source)
    gray, expected = pixels(desk.upsampled(source, 2, "", 0)[0]), (deep >> 8).astype(np.uint8)
    assert np.array_equal(
        gray[:, :, 0], np.asarray(Image.fromarray(expected).resize((40, 24), Image.Resampling.LANCZOS))
    )
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        desk.upsampled(tmp_path / "broken.png", 2, "", 0)
    Image.new("L", (2000, 1000)).save(source)
    with pytest.raises(ConfigError, match="16000 x 8000 px are more than"):
        desk.upsampled(source, 8, "", 0)
    with pytest.raises(ConfigError, match="holds no upsampler"):
        Desk(pipe, tmp_path).upsampled(source, 2, "", 0)


def test_a_plane_of_directions_has_the_first_prompt_in_its_middle(desk: Desk, pipe: Pipeline) -> None:
    name = desk.explore(["a red apple", "", "x", " "], 2, 0.7, directions=True)
    own = np.asarray(pipe("a red apple", seeds=2).images[0])
    assert same(desk.frame(name, 0.5, 0.5, 0), own)
    for place in ((0.9, 0.5), (0.5, 0.9)):
        assert not same(desk.frame(name, *place, 0), own)


def test_the_planes_least_recently_used_go(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "MAX_PLANES", 2)
    names = [desk.explore(FOUR, seed, 0.7, directions=False) for seed in range(2)]
    desk.frame(names[0], 0, 0, 0)
    names.append(desk.explore(FOUR, 2, 0.7, directions=False))
    with pytest.raises(ConfigError, match="this plane is gone; set it anew"):
        desk.frame(names[1], 0, 0, 0)
    desk.frame(names[0], 0, 0, 0)
    desk.frame(names[2], 0, 0, 0)


def test_long_prompts_are_told_once(desk: Desk) -> None:
    long = "a very long prompt of many more words than twelve tokens can hold"
    assert desk.cut(["a cat", " "]) == ""
    assert desk.cut([long, long, "a cat"]) == desk.pipe.cut(long)
    assert desk.cut([long, f"{long} too", f"{long} now"]) == f"{desk.pipe.cut(long)}; 2 more are too long, too"
    with pytest.raises(PromptError):
        desk.cut(["\ud800"])


def test_an_unconditional_model_needs_no_prompt(tmp_path: Path) -> None:
    text: dict[str, Any] = {"text_layers": 0, "text_dim": 0, "attention": AttentionConfig(resolutions=(), depths=())}
    sizes: dict[str, Any] = {"z_dim": 8, "w_dim": 8, "blocks": (1, 1), "num_filters": (2, 1), "channel_base": 64}
    G = Generator(GeneratorConfig(resolution=8, mapping_layers=1, **sizes, **text), feature_dim=0).eval()
    desk = Desk(Pipeline(G, Unconditional()), tmp_path)
    assert len(desk.pictures("", [0, 1], 0.7)) == 2
    desk.frame(desk.explore(["", " "], 0, 0.7, directions=True), 0.2, 0.4, 0)
    with Image.open(desk.film([], [0, 1], 0.7, seconds=0.2, fps=10, loop=True, kind="gif")) as image:
        assert image.n_frames == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "ask",
    [
        lambda d: d.pictures("x", range(12), 0.7),
        lambda d: d.table(["a cat", "a dog"], [f"{{}} {n}" for n in range(6)], 0, 0.7),
        lambda d: d.film(["a cat", "a dog"], [0], 0.7, seconds=0.6, fps=10, loop=True, kind="gif"),
    ],
)
def test_whoever_comes_meanwhile_waits_for_a_micro_batch(
    desk: Desk, ask: Callable[[Desk], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    other = threading.Thread(target=lambda: desk.pictures("other", [0], 0.7), name="other")
    draw = Pipeline.draw

    def drawn(pipe: Pipeline, latents: Any) -> Any:
        order.append(threading.current_thread().name)
        if len(order) == 1:
            other.start()
            while not desk._turns._first.locked():
                time.sleep(0.001)
        return draw(pipe, latents)

    monkeypatch.setattr(Pipeline, "draw", drawn)
    ask(desk)
    other.join()
    assert [name == "other" for name in order] == [False, True, False, False]


def test_a_table_has_things_down_and_styles_across(desk: Desk) -> None:
    path = desk.table(["a cat", "a dog"], ["an icon of {}", "{}, drawn"], 1, 0.7)
    with Image.open(path) as image:
        assert image.text["prompts"].splitlines() == [  # type: ignore[attr-defined]
            "an icon of a cat",
            "a cat, drawn",
            "an icon of a dog",
            "a dog, drawn",
        ]


def test_a_film_goes_through_its_keys(desk: Desk) -> None:
    path = desk.film(["a cat", "a dog"], [0], 0.7, seconds=0.3, fps=10, loop=True, kind="webp")
    with Image.open(path) as image:
        assert image.n_frames == 6  # type: ignore[attr-defined]
        assert image.size == (64, 64)
    said = read_info(path)
    assert [said[key] for key in ("prompts", "seeds", "psi", "seconds", "fps", "loop", "ease")] == [
        "a cat\na dog",
        "0",
        "0.7",
        "0.3",
        "10",
        "yes",
        "smooth",
    ]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda d: d.pictures(" ", [0], 0.7), "the prompt is empty"),
        (lambda d: d.pictures("x", [], 0.7), "0 pictures came; expected 1 to 64"),
        (lambda d: d.pictures("x", range(65), 0.7), "65 pictures came; expected 1 to 64"),
        (lambda d: d.pictures("x", [0], 1.5), "psi is 1.5"),
        (lambda d: d.mixes("x", "", 0, 0.7), "the prompt is empty"),
        (lambda d: d.mixes("x", "y", -1, 0.7), "seed -1 can't be"),
        (lambda d: d.explore(["a", "", "c", "d"], 0, 0.7, directions=False), "the prompt is empty"),
        (lambda d: d.explore(["", "", "", ""], 0, 0.7, directions=True), "the prompt is empty"),
        (lambda d: d.frame("../x", 0, 0, 0), "this plane is gone"),
        (lambda d: d.frame(d.explore(FOUR, 0, 0.7, directions=False), float("nan"), 0, 0), "isn't in the plane"),
        (lambda d: d.table([], ["{}"], 0, 0.7), "the table is empty"),
        (lambda d: d.table(["a"], ["an icon"], 0, 0.7), "'an icon' has no one place for the thing"),
        (lambda d: d.table(["a"] * 200, ["{}"], 0, 0.7), "200 x 1 pictures are more than 128"),
        (lambda d: d.film(["a"], [0], 0.7, seconds=1, fps=10, loop=True, kind="webp"), "1 key frame came"),
        (lambda d: d.film([], [0, 1], 0.7, seconds=1, fps=10, loop=True, kind="webp"), "the prompt is empty"),
        (lambda d: d.film(["a"] * 3, [0, 1], 0.7, seconds=1, fps=10, loop=True, kind="gif"), "3 prompts and 2 seeds"),
        (lambda d: d.film(["a"] * 9, [0], 0.7, seconds=5, fps=50, loop=True, kind="mp4"), "2250 frames are more than"),
    ],
)
def test_a_mistake_is_one_line(desk: Desk, ask: Callable[[Desk], object], message: str) -> None:
    with pytest.raises(GigaGANError) as error:
        ask(desk)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not [path for path in desk.shelf.folder.rglob("*") if path.is_file()]


def test_a_table_that_no_program_would_show_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "MAX_PIXELS", 100_000)
    with pytest.raises(ConfigError, match=r"expected at most 100,000 in all; give fewer things or styles"):
        desk.table(["a", "b", "c"], ["{}"], 0, 0.7)


def test_many_at_once_get_their_own(desk: Desk, pipe: Pipeline) -> None:
    """Threads share the pipeline's cache of prompts and its networks."""
    found: dict[int, Path] = {}

    def ask(n: int) -> None:
        (found[n],) = desk.pictures(f"thing {n}", [n], 0.7)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(10):
        assert read_info(found[n])["prompt"] == f"thing {n}"
        assert np.array_equal(pixels(found[n]), np.asarray(pipe(f"thing {n}", seeds=n).images[0]))


# Boxes.


def test_lines_and_seeds() -> None:
    assert lines(" a \n\n b\r\n") == ["a", "b"]
    assert parse_seed_list("3, 5; 8-10,5,") == [3, 5, 8, 9, 10, 5]  # a film comes back
    assert parse_seed_list(" ") == []
    for text in ("x", "5-3", "-1", "9999999999999999999", "0-5000", "1.5"):
        with pytest.raises(ConfigError, match="names no seeds"):
            parse_seed_list(text)


def test_a_prompt_that_cant_be_is_told_by_its_kind(desk: Desk) -> None:
    with pytest.raises(PromptError):
        desk.pictures("\ud800", [0], 0.7)
    assert torch.is_grad_enabled()
