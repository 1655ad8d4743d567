"""gigagan generate --engine ray: killed and begun again, each prompt is one whole picture; a mistake is one line."""

import json
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from gigagan import cli
from gigagan.checkpoint import PACKAGED
from gigagan.cli.bulk import missing, named
from gigagan.data.places import entries, write_whole
from gigagan.errors import ConfigError
from gigagan.metadata import png_bytes, read_info
from gigagan.pipeline import DEFAULT_PSI, Pipeline

pytest.importorskip("ray")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
upath = pytest.importorskip("upath")
COLORS = ("red", "green", "blue", "black")
THINGS = ("cat", "star", "house", "apple")


def table(path: Path, **columns: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_halfway_and_run_again_each_prompt_is_drawn_once(tmp_path: Path, marked: Any) -> None:
    prompts = [f"a {color} {thing}" for color in COLORS for thing in THINGS]
    file = table(tmp_path / "prompts.parquet", prompt=[*prompts, "A red cat!"], seed=[*range(16), 0])
    out = tmp_path / "out"
    command = [sys.executable, "-m", "gigagan", "generate", "--prompts", str(file), "--engine", "ray", "--workers", "2"]
    command += ["--out", str(out)]
    log = (tmp_path / "log.txt").open("w")
    with log, subprocess.Popen(command, stdout=log, stderr=log, env=marked.environment) as first:
        while len(list(out.glob("a*.png"))) < 3:
            assert first.poll() is None, (tmp_path / "log.txt").read_text()
            time.sleep(0.02)
        first.kill()
    marked.wait_gone(20)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("a*.png")}
    assert 3 <= len(before) < 17
    (out / f".{uuid.uuid4().hex}.png").write_bytes(b"half a picture")  # of an actor killed while it wrote

    done = subprocess.run(command, capture_output=True, text=True, env=marked.environment, check=False)
    assert done.returncode == 0, done.stderr
    wanted = {f"{prompt.replace(' ', '-')}-{seed}.png": prompt for seed, prompt in enumerate(prompts)}
    wanted["a-red-cat-0-1.png"] = "A red cat!"
    assert {path.name for path in out.iterdir()} == {*wanted, "gigagan-bulk.json"}
    assert {name: read_info(out / name)["prompt"] for name in wanted} == wanted
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert sorted(done.stdout.splitlines()) == sorted(str(out / name) for name in wanted if name not in before)
    assert f"{len(before)} of 17 pictures are there already" in done.stderr
    pipe = Pipeline.from_pretrained()
    for name, seed in (("a-red-cat-0.png", 0), ("a-black-apple-15.png", 15)):
        image = pipe(wanted[name], seeds=seed).images[0]
        assert (out / name).read_bytes() == png_bytes(image, pipe.info(wanted[name], seed, DEFAULT_PSI, image.width))


def test_names_are_those_of_the_plain_command() -> None:
    pairs = [("a cat", 1), ("A cat", 1), ("a cat", 1), ("a cat!", 1), ("a cat 1", 2), ("a cat", 2)]
    assert [one.name for one in named(pairs)] == [
        "a-cat-1.png",
        "a-cat-1-1.png",
        "a-cat-1-2.png",
        "a-cat-1-2-1.png",
        "a-cat-2.png",
    ]


def test_a_bucket_holds_whole_files_and_says_of_what() -> None:
    bucket: Any = upath.UPath(f"memory://{uuid.uuid4().hex}/pictures")
    pictures = named([("a cat", 1), ("a dog", 2), ("a star", 3)])
    settings = {"model": "0123456789ab", "psi": 0.7}
    assert missing(pictures, bucket, settings) == pictures
    write_whole(bucket / pictures[1].name, b"whole")
    assert [path.name for path in entries(bucket)] == ["a-dog-2.png", "gigagan-bulk.json"]
    assert (bucket / pictures[1].name).read_bytes() == b"whole"
    assert missing(pictures, bucket, settings) == [pictures[0], pictures[2]]
    with pytest.raises(ConfigError, match="holds a run of other psi; give another --out"):
        missing(pictures, bucket, settings | {"psi": 1.0})
    with pytest.raises(ConfigError, match="holds a run of other prompts; give another --out"):
        missing(pictures[:2], bucket, settings)


def test_a_folder_of_other_pictures_stays(tmp_path: Path) -> None:
    (tmp_path / "a-cat-1.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"holds a-cat-1\.png, which isn't of such a run"):
        missing(named([("a cat", 1)]), tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a-cat-1.png"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["generate", "--prompts", "good.parquet"], "good.parquet: a table is for --engine ray"),
        (["generate", "a cat", "--workers", "2"], "--workers came without --engine ray"),
        (["generate", "a cat", "--out", "s3://bucket/x"], "a URL is for --engine ray"),
        (["generate", "a cat", "--engine", "ray", "--out", "ftp://x/y"], "ftp:// isn't read"),
        (["generate", "a cat", "--engine", "ray", "--out", "https://x/y"], "https:// isn't written to"),
        (["generate", "a cat", "--engine", "ray", "--grid", "x.png"], "--grid came with --engine ray"),
        (["generate", "--engine", "ray"], "no prompt came"),
        (["generate", "--engine", "ray", "--prompts", "none.parquet"], "none.parquet: no such file"),
        (["generate", "--engine", "ray", "--prompts", "text.parquet"], "isn't a table of prompts"),
        (["generate", "--engine", "ray", "--prompts", "other.parquet"], "has no column prompt, but caption"),
        (["generate", "--engine", "ray", "--prompts", "hole.parquet"], "row 1 has no prompt"),
        (["generate", "--engine", "ray", "--prompts", "words.parquet"], "isn't a table of prompts"),
        (["generate", "--engine", "ray", "--prompts", "minus.parquet"], "seed -1 can't be"),
        (["generate", "--engine", "ray", "--prompts", "good.parquet", "--seeds", "1"], "has seeds, and --seeds came"),
        (["generate", "a cat", "--engine", "ray", "--device", "cuda:1"], "Ray, which hands GPUs out itself"),
        (["serve", "--replicas", "2"], "--replicas came without --ray"),
        (["serve", "--ray", "--device", "cuda:1"], "write --device cuda"),
        (["serve", "--ray", "--key", "guessed"], "a key has 7 characters"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, of pydantic
def test_a_mistake_is_one_line(
    args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # the command sets them; what was there comes back after the test
    table(tmp_path / "good.parquet", prompt=["a cat"], seed=[1])
    table(tmp_path / "other.parquet", caption=["a cat"])
    table(tmp_path / "hole.parquet", prompt=["a cat", None])
    table(tmp_path / "words.parquet", prompt=["a cat"], seed=["one"])
    table(tmp_path / "minus.parquet", prompt=["a cat"], seed=[-1])
    (tmp_path / "text.parquet").write_text("a cat\n")
    assert cli.run(args) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, of pydantic
def test_a_key_that_can_be_guessed_is_refused() -> None:
    """By `serve run gigagan.ray_app:app` too, which has no command line of ours."""
    ray_app = pytest.importorskip("gigagan.ray_app")
    with pytest.raises(ConfigError, match="a key has 7 characters"):
        ray_app.app(ray_app.Settings(keys=("guessed",)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--replicas", "3-2"], "replicas '3-2' can't be; write a number, or the least and the most such as 1-4"),
        (["--model", "damaged"], "get the model again"),
    ],
)
def test_a_mistake_of_the_operator_is_told_before_ray_starts(args: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    index = json.loads((PACKAGED / "emoji" / "model_index.json").read_text())
    (tmp_path / "damaged" / "model_index.json").write_text(json.dumps(index))  # and no weights
    command = [sys.executable, "-m", "gigagan", "serve", "--ray", *args]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["serve", "--ray"], ["generate", "a cat", "--engine", "ray"]])
def test_without_the_extra_it_is_one_line(command: list[str], tmp_path: Path) -> None:
    code = f"import sys; sys.modules['ray'] = None; from gigagan.cli import main; main({command})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == "gigagan: ray isn't installed; run: pip install 'open-gigagan[scale]'\n"
