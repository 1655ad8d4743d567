"""The shelf and the turns: threads, bounds, files that are whole."""

import shutil
import threading
from functools import partial
from pathlib import Path

import pytest

from gigagan.studio.shelf import Shelf
from gigagan.studio.turns import Turns


def put(shelf: Shelf, made_of: object, content: bytes = b"12345") -> Path:
    return shelf.keep("file.bin", made_of, write=partial(Path.write_bytes, data=content))


def test_a_file_is_written_once_and_found_by_what_it_is_made_of(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    assert shelf.find("file.bin", 1) is None
    path = put(shelf, 1, b"first")
    assert (path.name, path.read_bytes()) == ("file.bin", b"first")
    assert shelf.find("file.bin", 1) == path == put(shelf, 1, b"second")
    assert path.read_bytes() == b"first"
    assert shelf.find("file.bin", 2) is None
    assert shelf.find("other.bin", 1) is None
    path.unlink()
    assert shelf.find("file.bin", 1) is None
    assert put(shelf, 1, b"third").read_bytes() == b"third"


def test_what_is_least_recently_used_goes_with_its_folder(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, most_bytes=10)
    first, second = put(shelf, 1), put(shelf, 2)
    shelf.find("file.bin", 1)
    third = put(shelf, 3)
    assert [path.exists() for path in (first, second, third)] == [True, False, True]
    assert sorted(tmp_path.iterdir()) == sorted([first.parent, third.parent])
    large = put(shelf, 4, bytes(11))
    assert list(tmp_path.iterdir()) == [large.parent]
    assert large.stat().st_size == 11


def test_a_folder_that_a_cleaner_took_is_made_again(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    put(shelf, 1)
    shutil.rmtree(tmp_path / "shelf")
    assert put(shelf, 1, b"again").read_bytes() == b"again"


def test_what_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise ValueError("broken off")

    shelf = Shelf(tmp_path)
    with pytest.raises(ValueError, match="broken off"):
        shelf.keep("file.bin", 1, write=write)
    assert shelf.find("file.bin", 1) is None
    assert list(tmp_path.iterdir()) == []


def test_threads_share_a_shelf_that_is_full(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, most_bytes=500)
    wrong: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for n in range(200):
                put(shelf, (n * 7 + number) % 150)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) == len(list(tmp_path.iterdir())) == 100
    assert {path.read_bytes() for path in kept} == {b"12345"}


def test_a_turn_goes_to_whoever_waits() -> None:
    turns, order = Turns(), []

    def other() -> None:
        with turns.take():
            order.append("other")

    thread = threading.Thread(target=other)
    with turns.take():
        thread.start()
        while not turns._first.locked():
            pass
    with turns.take():
        order.append("again")
    thread.join()
    assert order == ["other", "again"]
