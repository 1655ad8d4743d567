"""Row G15 of the fault matrix: mixed traffic for a long time leaves nothing behind, and the metrics say what came."""

import random
import re
import statistics
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.reliability.sets import sizes
from tests.serving.test_hostile import mutated

GOOD = ({}, {"n": 2}, {"output_format": "webp"}, {"output_format": "gif", "frame_count": 3}, {"stream": True})
FLAT_KB_A_MINUTE = 1024


def rss_kb(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


def slope(points: list[tuple[float, int]]) -> float:
    """KB a minute, by least squares."""
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope * 60


@pytest.mark.slow
@pytest.mark.timeout(900)
@sizes(20, 600)
def test_g15_a_long_time_of_mixed_traffic(launch_limited: Any, tmp_path: Path, count: int) -> None:
    """`count` seconds, 5 % of the requests bad: no 5xx, memory, files and threads flat, metrics equal to what came."""
    seen: Counter[int] = Counter()
    lock, stop = threading.Lock(), threading.Event()

    def ask(url: str, seed: int) -> None:
        draw = random.Random(seed)
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                if draw.random() < 0.05:
                    content, headers = mutated(draw)
                    answer = client.post(url, content=content, headers=headers)
                else:
                    body = {"prompt": f"a cat {draw.randrange(1000)}", "size": "64x64", **draw.choice(GOOD)}
                    answer = client.post(url, json=body)
                with lock:
                    seen[answer.status_code] += 1

    with launch_limited(tmp_path) as server:
        pids = (server.process.pid, server.worker())
        clients = [threading.Thread(target=ask, args=(f"{server.url}/images/generations", k)) for k in range(6)]
        for client in clients:
            client.start()
        memory: dict[int, list[tuple[float, int]]] = {pid: [] for pid in pids}
        open_files: list[int] = []
        threads: list[int] = []
        started = time.monotonic()
        while (now := time.monotonic() - started) < count:
            time.sleep(min(1, count / 20))
            if now < count / 4:
                continue  # warming up: caches fill
            for pid in pids:
                memory[pid].append((now, rss_kb(pid)))
            open_files.append(len(list(Path(f"/proc/{pids[0]}/fd").iterdir())))
            threads.append(len(list(Path(f"/proc/{pids[0]}/task").iterdir())))
        stop.set()
        for client in clients:
            client.join(70)
            assert not client.is_alive()
        told = httpx.get(f"{server.root}/metrics").text
        assert server.worker() == pids[1], "the worker was replaced"
    grown = {pid: slope(points) for pid, points in memory.items()}
    print(f"{dict(seen)}; KB a minute: {[round(x) for x in grown.values()]}; threads {min(threads)} to {max(threads)}")
    assert set(seen) <= {200, 400, 404, 415}, seen
    assert seen[400] > 0
    assert seen[200] > count
    pattern = r'gigagan_requests_total\{([^}]*)route="/v1/images/generations"([^}]*)\} ([\d.]+)'
    counted: Counter[int] = Counter()
    for before, after, value in re.findall(pattern, told):
        found = re.search(r'status="(\d+)"', before + after)
        assert found is not None
        counted[int(found[1])] += int(float(value))
    assert counted == seen
    assert max(open_files[len(open_files) // 2 :]) <= max(open_files[: len(open_files) // 2]) + 2
    assert max(threads[len(threads) // 2 :]) <= max(threads[: len(threads) // 2]) + 2
    if count >= 600:  # a shorter time measures the allocator's mood
        assert max(grown.values()) <= FLAT_KB_A_MINUTE
