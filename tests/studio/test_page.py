"""What the page's events do, without a browser."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from gigagan.models.frozen import HashedText
from gigagan.pipeline import Pipeline
from gigagan.studio.desk import Desk
from gigagan.studio.page import build

LONG = "a very long prompt of many more words than twelve tokens can hold"


@pytest.fixture(scope="module")
def gr() -> Any:
    return pytest.importorskip("gradio")


@pytest.fixture
def desk(tiny_networks: Callable[[int], tuple[Any, Any]], upsampler: Any, tmp_path: Path) -> Desk:
    return Desk(Pipeline(tiny_networks(0)[0], HashedText(max_tokens=12), upsampler=upsampler), tmp_path / "shelf")


@pytest.fixture
def events(gr: Any, desk: Desk) -> dict[str, Any]:
    """Those of the page by the names of their functions and how many inputs they have."""

    async def made() -> Any:  # where no loop runs, Gradio makes loops that nobody closes
        return build(desk, "a card")

    found = [event for event in asyncio.run(made()).fns.values() if event.fn]
    return {f"{event.fn.__name__} {len(event.inputs)}": event for event in found}


def select(index: int) -> Any:
    return SimpleNamespace(index=index)


def test_pictures_of_the_history_outlive_their_files(events: dict[str, Any]) -> None:
    generate, choose, go_back = (events[name].fn for name in ("generate 5", "choose 2", "go_back 1"))
    pictures, shown, history, _ = generate("a cat", 3, 0.6, "4, 5-6", [])
    assert [label for _, label in pictures] == ["4", "5", "6"]
    Path(pictures[0][0]).unlink()
    kept, large, _ = choose("4", shown, select(1))
    assert (kept, Path(large).name) == ("4, 5", "seed-5.png")
    assert go_back(history, select(0)) == ("a cat", 0.6, pictures, shown)
    Path(pictures[0][0]).unlink()
    *_, past = generate("a dog", 1, 0.7, "", history)
    assert past[1] == (pictures[0][0], "a cat")
    assert all(Path(path).is_file() for path, _ in past)


def test_a_mix_outlives_its_files(events: dict[str, Any]) -> None:
    mixed, every, shown = events["draw 5"].fn("a cat", "a dog", 3, 0.7, 2)
    assert shown == every[2][0]
    for path, _ in every:
        Path(path).unlink()
    assert events["move 2"].fn(mixed, 1) == every[1][0]
    assert Path(every[1][0]).is_file()
    assert events["move 2"].fn(None, 1) is None


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("generate 5", ("x", 1, 2.0, "", [])),
        ("generate 5", ("x", 1, 0.7, "0-64", [])),
        ("choose 2", ("", ("", 0.7, [0]), select(0))),
        ("go_back 1", ([("", 0.7, [0])], select(0))),
        ("move 2", (("x", "", 0, 0.7), 0)),
    ],
)
def test_what_cant_be_is_told(gr: Any, events: dict[str, Any], name: str, given: tuple[Any, ...]) -> None:
    with pytest.raises(gr.Error):
        events[name].fn(*given)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("generate 5", (LONG, 1, 0.7, "", [])),
        ("draw 5", ("x", LONG, 0, 0.7, 0)),
        ("lay 7", ("x", LONG, "y", "z", "between the four prompts", 0, 0.7)),
        ("draw 4", ("x", f"{{}} {LONG}", 0, 0.7)),
        ("enlarge 4", ("picture.png", "2", LONG, 0)),
        ("shoot 7", (f"x\n{LONG}", "0", 0.2, 5, 0.7, True, "gif")),
    ],
)
def test_a_prompt_that_is_cut_is_told(
    gr: Any,
    events: dict[str, Any],
    name: str,
    given: tuple[Any, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda message, duration: said.append(message))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20)).save("picture.png")
    events[name].fn(*given)
    (message,) = said
    assert "the text encoder takes 12" in message


def test_one_film_is_made_at_a_time(events: dict[str, Any]) -> None:
    assert events["shoot 7"].concurrency_limit == 1
