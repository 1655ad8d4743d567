"""Rows G5 and G14 of the fault matrix: what is drawn together stays apart, pictures and failures alike."""

import hashlib
import json
import random
import re
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from gigagan.checkpoint import find_model
from gigagan.model_files import MODEL_INDEX, file_hashes
from tests.reliability.sets import sizes

SMALL = {"prompt": "a red apple", "size": "64x64", "seed": 1}
KINDS: tuple[dict[str, Any], ...] = (
    {"size": "64x64"},
    {"size": "16x16", "n": 3},
    {"size": "64x64", "mix": {"prompt": "a blue car", "layer": 2}, "truncation_psi": 0.4},
    {"size": "32x32", "output_format": "gif", "frame_count": 5},
    {"size": "64x64", "output_format": "webp"},
    {"size": "512x512"},
)


def post(server: Any, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.url}/images/generations", json=body, timeout=60)


def files(server: Any, body: dict[str, Any]) -> list[str]:
    answer = post(server, body)
    assert answer.status_code == 200, answer.text
    return [one["b64_json"] for one in answer.json()["data"]]


@pytest.mark.slow
@sizes(24, 200)
def test_g5_a_picture_is_the_same_file_in_any_company(server: Any, count: int) -> None:
    draw = random.Random(0)
    things = [f"a {color} {thing}" for color in ("red", "blue") for thing in ("cat", "car", "hat")]
    asked = [
        {"prompt": draw.choice(things), "seed": draw.randrange(1000), **KINDS[k % len(KINDS)]} for k in range(count)
    ]
    alone = [files(server, body) for body in asked]
    batches, pictures = (f"gigagan_batch_pictures_{what}" for what in ("count", "sum"))
    before = server.metric(batches), server.metric(pictures)
    order = draw.sample(range(count), count)
    with ThreadPoolExecutor(8) as pool:
        together = dict(zip(order, pool.map(lambda k: files(server, asked[k]), order), strict=True))
    assert [together[k] for k in range(count)] == alone
    frames = server.metric(pictures) - before[1]
    assert server.metric(batches) - before[0] < 0.8 * len(asked), f"{frames} pictures came one by one"


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped generator with a text encoder that doesn't know what to make of one word."""
    source, folder = find_model("emoji"), tmp_path_factory.mktemp("model") / "emoji"
    index = json.loads((source / MODEL_INDEX).read_text())
    del index["discriminator"], index["upsampler"]
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("discriminator", "upsampler"))
    weights = load_file(folder / "text_encoder" / "model.safetensors")
    words = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    weights["embeddings.word_embeddings.weight"][words["poison"]] = torch.nan
    save_file(weights, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    config["sha256"] = hashlib.sha256((folder / "text_encoder" / "model.safetensors").read_bytes()).hexdigest()
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))
    index["sha256"] = file_hashes(folder)
    (folder / MODEL_INDEX).write_text(json.dumps(index))
    return folder


@pytest.mark.slow
@sizes(8, 400)
def test_g14_values_that_are_no_numbers_are_500_and_cost_nobody_else(
    poisoned: Path, launch: Any, tmp_path: Path, count: int
) -> None:
    """Of each four requests one is of such values, and a stream is at the end."""
    command = ("-m", "gigagan", "serve", "--port", "0", "--model", str(poisoned))
    with launch(tmp_path, *command, tracebacks=count // 4 + 1) as server:
        alone, pid = files(server, SMALL), server.worker()

        def ask(number: int) -> httpx.Response:
            return post(server, SMALL if number % 4 else SMALL | {"prompt": "poison"})

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(count)))
        answers.append(post(server, SMALL | {"prompt": "poison", "stream": True}))
        for number, answer in enumerate(answers):
            if number % 4:
                assert [one["b64_json"] for one in answer.json()["data"]] == alone
            else:
                assert (answer.status_code, answer.json()["error"]["code"]) == (500, "generation_failed")
                assert answer.headers["x-should-retry"] == "false"
        assert server.worker() == pid
        assert "FloatingPointError" in server.log.read_text()


@pytest.mark.slow
def test_g14_memory_that_runs_out_is_500_and_costs_no_worker(launch: Any, tmp_path: Path) -> None:
    large = {"prompt": "a red apple", "output_format": "gif", "frame_count": 16, "seed": 1}
    with launch(tmp_path, "-m", "gigagan", "serve", "--port", "0", tracebacks=1) as server:
        alone, pid = files(server, SMALL), server.worker()
        found = re.search(r"VmSize:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        assert found is not None
        most = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (int(found[1]) * 1024, most[1]))
        answer = post(server, large)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "generation_failed")
        resource.prlimit(pid, resource.RLIMIT_AS, most)
        assert files(server, SMALL) == alone
        assert files(server, large)
        assert server.worker() == pid
        assert "memory" in server.log.read_text()
