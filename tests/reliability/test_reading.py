"""Rows B2 and B5 of the fault matrix, and sets far away: each sample once and in order, wherever it lies."""

import functools
import http.server
import json
import random
import resource
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from gigagan.config import DataConfig
from gigagan.data.dataset import open_dataset
from gigagan.data.index import FORMAT, write_index
from gigagan.data.loader import batches
from gigagan.data.shards import write_shards
from tests.ranks import PROCESSES, finish
from tests.reliability.sets import folder_set, picture, sizes

# Each sample once, whatever dies (B2), and far ahead at once (B5).


def write_keys(folder: str, out: str, start: int, total: int) -> None:
    dataset = open_dataset(folder, resolution=8)
    stream = batches(DataConfig(), dataset, resolution=8, batch=8, seed=5, start_nimg=start * 8)
    with Path(out).open("a") as file:
        for k in range(start, total):
            file.write(json.dumps([k, next(stream).keys]) + "\n")
            file.flush()
            time.sleep(0.002)


def as_format(kind: str, folder: Path, count: int) -> Path:
    draw = random.Random(1)
    samples = [(f"{k:03d}", picture(draw, 8), f"number {k}") for k in range(count)]
    folder.mkdir()
    if kind == "tar":
        write_shards([(key, png, {"text": text}) for key, png, text in samples], folder, split="", first=0)
    elif kind == "folder":
        for key, png, _ in samples:
            (folder / f"{key}.png").write_bytes(png)
        rows = [json.dumps({"file_name": f"{key}.png", "text": text}) for key, _, text in samples]
        (folder / "metadata.jsonl").write_text("\n".join(rows))
    elif kind == "classes":
        for k, (key, png, _) in enumerate(samples):
            (folder / "abc"[k % 3] / "deep").mkdir(parents=True, exist_ok=True)
            (folder / "abc"[k % 3] / "deep" / f"{key}.png").write_bytes(png)
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = pa.table({"image": [png for _, png, _ in samples], "text": [text for _, _, text in samples]})
        pq.write_table(table, folder / "a.parquet", row_group_size=16)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "folder", "parquet"])
@pytest.mark.parametrize(
    ("epochs", "kills"),
    [
        pytest.param(2, 3, id="ci"),
        pytest.param(20, 10, id="full", marks=[pytest.mark.matrix, pytest.mark.timeout(7200)]),
    ],
)
def test_b2_each_sample_once_an_epoch_whatever_is_killed(tmp_path: Path, kind: str, epochs: int, kills: int) -> None:
    """Kills at random moments, `kills` an epoch; the order is that of an unbroken run."""
    draw = random.Random(epochs)
    samples = 96
    folder, out = as_format(kind, tmp_path / "set", samples), tmp_path / "keys"
    total = epochs * samples // 8
    out.touch()
    done = 0
    while done < total:
        process = PROCESSES.Process(target=write_keys, args=(str(folder), str(out), done, total))
        process.start()
        target = done + samples // 8 // kills * draw.uniform(0.5, 1.5)
        while process.is_alive() and len(out.read_text().splitlines()) < target:
            time.sleep(0.002)
        process.kill()
        process.join()
        text = out.read_text()
        out.write_text(text[: text.rfind("\n") + 1])  # what was half written wasn't done
        done = len(out.read_text().splitlines())
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [k for k, _ in rows] == list(range(total))
    keys = [key for _, batch in rows for key in batch]
    for epoch in range(epochs):
        assert set(Counter(keys[epoch * samples : (epoch + 1) * samples]).values()) == {1}
    stream = batches(DataConfig(), open_dataset(folder, resolution=8), resolution=8, batch=8, seed=5, start_nimg=0)
    assert [next(stream).keys for _ in range(total)] == [batch for _, batch in rows]
    stream.close()


def seek(index: str) -> dict[str, Any]:
    from gigagan.data import index as _  # noqa: F401

    warm = batches  # imported, so that only the work is measured
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    dataset = open_dataset(index, resolution=8)
    stream = warm(DataConfig(), dataset, resolution=8, batch=8, seed=0, start_nimg=10_000_000)
    keys = next(stream).keys
    stream.close()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"keys": keys, "seconds": time.monotonic() - begin, "kilobytes": grown, "samples": len(dataset)}


def seek_and_tell(index: str, out: str) -> None:
    import grain  # noqa: F401

    Path(out).write_text(json.dumps(seek(index)))


@pytest.mark.slow
@sizes(200_000, 10_000_001)
def test_b5_a_sample_ten_million_ahead(tmp_path: Path, count: int) -> None:
    """An index of so many samples (all of them the same few pictures in one shard), opened in 2 s and 100 MB."""
    folder_set(tmp_path / "set", 64, set())
    small = tmp_path / "small.index"
    write_index(open_dataset(tmp_path / "set").source, tmp_path / "set", small)
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(small, framework="np") as file:
        about = file.metadata()[FORMAT]
        columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    repeats = -(-count // 64)
    ends = columns.pop("key_ends")
    large = {
        name: np.tile(column, (repeats, *[1] * (column.ndim - 1)))[: None if name == "keys" else count]
        for name, column in columns.items()
    }
    large["key_ends"] = (np.arange(repeats)[:, None] * ends[-1] + ends).reshape(-1)[:count]
    save_file(large, tmp_path / "large.index", metadata={FORMAT: about})
    del large
    process = PROCESSES.Process(target=seek_and_tell, args=(str(tmp_path / "large.index"), str(tmp_path / "out")))
    process.start()
    assert finish([process]) == [0]
    found = json.loads((tmp_path / "out").read_text())
    print(found)
    assert found["samples"] == count
    assert len(found["keys"]) == 8
    assert found["seconds"] <= 2
    assert found["kilobytes"] <= 100_000


# Far away: a server with ranges, latency and faults.


class Far(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; of each address the first answer, and every fourth after it, is an error or is cut off."""

    hits: ClassVar[Counter[str]] = Counter()
    faulty = True

    def is_fault(self) -> bool:
        type(self).hits[self.path] += 1
        return self.faulty and self.hits[self.path] % 4 == 1

    def do_GET(self) -> None:
        time.sleep(0.002)
        fault, path = self.is_fault(), Path(self.translate_path(self.path))
        if fault and (not path.is_file() or self.hits[self.path] % 8 == 1):
            return self.send_error(503)
        if not path.is_file():
            return super().do_GET()
        content = path.read_bytes()
        first, last = 0, len(content) - 1
        if wanted := self.headers.get("Range"):
            a, b = wanted.removeprefix("bytes=").split("-")
            first, last = int(a or 0), min(int(b or last), last)
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[first : first + 10] if fault else content[first : last + 1])
        if fault:
            self.close_connection = True
        return None

    def do_HEAD(self) -> None:
        return self.send_error(503) if self.is_fault() else super().do_HEAD()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def far(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("upath")
    Far.hits.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Far, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["tar", "folder", "parquet", "classes"])
def test_a_far_set_is_the_near_one(tmp_path: Path, far: str, kind: str) -> None:
    """Answers are errors or cut off; samples and their order are as from the disk."""
    near = open_dataset(as_format(kind, tmp_path / "set", 24), resolution=8)
    away = open_dataset(f"{far}/set", resolution=8)
    assert len(away) == len(near) == 24
    for k in range(24):
        assert away.key(k) == near.key(k)
        assert np.array_equal(away[k].image, near[k].image)
        assert away[k].captions == near[k].captions
    index = tmp_path / "far.index"
    assert write_index(away.source, f"{far}/set", index) == 24  # type: ignore[arg-type]
    indexed = open_dataset(index, resolution=8)
    stream = batches(DataConfig(), indexed, resolution=8, batch=8, seed=0, start_nimg=0)
    local = batches(DataConfig(), near, resolution=8, batch=8, seed=0, start_nimg=0)
    for _ in range(4):
        assert torch.equal(next(stream).img, next(local).img)
    stream.close()
    local.close()
