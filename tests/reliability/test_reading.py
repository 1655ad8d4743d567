"""Rows B2 and B5 of the fault matrix, and sets far away: each sample once and in order, wherever it lies."""

import errno
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
from gigagan.data import places, sampling
from gigagan.data.dataset import open_dataset
from gigagan.data.index import FORMAT, write_index
from gigagan.data.loader import batches
from gigagan.data.shards import write_shards
from gigagan.errors import DataError, Outage
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
    down = False
    """Nothing is answered but errors."""

    def is_fault(self) -> bool:
        type(self).hits[self.path] += 1
        return self.faulty and self.hits[self.path] % 4 == 1

    def do_GET(self) -> None:
        time.sleep(0.002)
        fault, path = self.is_fault(), Path(self.translate_path(self.path))
        if self.down:
            return self.send_error(503)
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
        return self.send_error(503) if self.is_fault() or self.down else super().do_HEAD()

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
    Far.down = False


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


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of milliseconds in place of seconds."""
    monkeypatch.setattr(places, "FIRST_WAIT_SEC", 0.001)
    monkeypatch.setattr(sampling, "MAX_WAIT_SEC", 0.01)


@pytest.mark.usefixtures("hasty")
@pytest.mark.filterwarnings("ignore")
def test_an_outage_is_waited_out_and_no_sample_is_passed_over(
    tmp_path: Path, far: str, caplog: pytest.LogCaptureFixture
) -> None:
    near = open_dataset(as_format("tar", tmp_path / "set", 24), resolution=8)
    away = open_dataset(f"{far}/set", resolution=8)
    Far.down = True
    threading.Timer(0.5, setattr, (Far, "down", False)).start()
    stream = batches(DataConfig(), away, resolution=8, batch=8, seed=0, start_nimg=0)
    local = batches(DataConfig(), near, resolution=8, batch=8, seed=0, start_nimg=0)
    for _ in range(3):
        assert next(stream).keys == next(local).keys
    assert stream.bad.count == 0
    stream.close()
    local.close()
    told = [record.getMessage() for record in caplog.records if far in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith(f"training waits for its data, 5 minutes at most: {far}/set/000000.tar: can't be reached")


@pytest.mark.usefixtures("hasty")
@pytest.mark.filterwarnings("ignore")
def test_an_outage_that_lasts_ends_the_run_in_one_line(
    tmp_path: Path, far: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MAX_OUTAGE_SEC", 0.2)
    away = open_dataset(f"{far}/{as_format('tar', tmp_path / 'set', 24).name}", resolution=8)
    Far.down = True
    stream = batches(DataConfig(), away, resolution=8, batch=8, seed=0, start_nimg=0)
    with pytest.raises(Outage, match=r"000000.tar: can't be reached \(503.*waited 0 s") as told:
        next(stream)
    assert "\n" not in str(told.value)
    assert stream.bad.seen == 0
    stream.close()
    monkeypatch.setattr(sampling, "MAX_OUTAGE_SEC", 300)
    stream = batches(DataConfig(), away, resolution=8, batch=8, seed=0, start_nimg=0)

    def wait() -> None:
        with pytest.raises(Outage):
            next(stream)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.2)
    stream.close()  # whoever goes doesn't wait until the outage is over
    waiting.join(20)
    assert not waiting.is_alive()
    with pytest.raises(Outage):  # an index without these samples would be a wrong one
        write_index(away.source, f"{far}/set", tmp_path / "far.index")  # type: ignore[arg-type]


@pytest.mark.usefixtures("hasty")
@pytest.mark.filterwarnings("ignore")
def test_a_far_file_that_is_missing_is_a_bad_sample(tmp_path: Path, far: str) -> None:
    folder = as_format("folder", tmp_path / "set", 8)
    away = open_dataset(f"{far}/set", resolution=8)
    (folder / "003.png").unlink()
    stream = batches(DataConfig(), away, resolution=8, batch=8, seed=0, start_nimg=0)
    assert "003.png" not in next(stream).keys
    assert stream.bad.count == 1
    assert "003.png" in next(iter(stream.bad.names))
    stream.close()


@pytest.mark.usefixtures("hasty")
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_page_of_a_far_table_is_a_bad_sample(tmp_path: Path, far: str) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "set").mkdir()
    file = tmp_path / "set" / "a.parquet"
    pq.write_table(pa.table({"image": [b"x" * 9999], "text": ["x"]}), file, use_dictionary=False)
    content = bytearray(file.read_bytes())
    at = content.index(b"x")
    content[at - 3 : at + 3] = b"\xff" * 6  # where Snappy says how much there is
    file.write_bytes(content)
    with pytest.raises(DataError, match="Corrupt snappy"):
        open_dataset(f"{far}/set")[0]


def test_what_a_store_says_of_a_file_is_the_files_own() -> None:
    upath = pytest.importorskip("upath")

    class Answer(Exception):
        status = 0

    def answered(status: int) -> Exception:
        answer = Answer("told")
        answer.status = status
        missing = FileNotFoundError("what fsspec makes of it")
        missing.__cause__ = answer
        return missing

    def raised(error: Exception, path: Path) -> type[Exception]:
        def read() -> None:
            raise error

        with pytest.raises((OSError, Outage)) as told:
            places.patiently(read, path)
        return told.type

    page, bucket = upath.UPath("http://127.0.0.1:9/x"), upath.UPath("memory://bucket/x")
    assert [raised(answered(status), page) for status in (404, 410)] == [FileNotFoundError] * 2
    assert [raised(answered(status), page) for status in (401, 403, 416)] == [PermissionError] * 3
    no_such_key = FileNotFoundError("NoSuchKey")
    no_such_key.__cause__ = Answer("what s3fs was told")
    no_such_key.__cause__.status = None  # type: ignore[attr-defined]
    assert raised(no_such_key, bucket) is FileNotFoundError
    assert raised(PermissionError("AccessDenied"), bucket) is PermissionError
    assert raised(OSError(errno.EINVAL, "InvalidRange"), bucket) is OSError


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "error", [OSError(errno.EBUSY, "SlowDown"), TimeoutError(), ConnectionError(), FileNotFoundError("no route")]
)
def test_what_says_nothing_of_a_file_is_an_outage(error: OSError) -> None:
    upath = pytest.importorskip("upath")
    if isinstance(error, FileNotFoundError):
        error.__cause__ = ConnectionError()

    def read() -> None:
        raise error

    with pytest.raises(Outage, match="can't be reached"):
        places.patiently(read, upath.UPath("http://127.0.0.1:9/x"))
