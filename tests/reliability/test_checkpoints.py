"""Row A of the fault matrix: training states under kills, full disks, flipped bits and other versions."""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gigagan import checkpoint
from gigagan.checkpoint import latest_state, save_state
from gigagan.data import tensor_files
from gigagan.errors import CheckpointError
from gigagan.training import saving
from gigagan.training.saving import Saver
from gigagan.training.state import TrainState
from tests.ranks import CPU, PROCESSES, speck

STORED = Path(__file__).parents[1] / "golden" / "states"


def sizes(ci: int, full: int) -> pytest.MarkDecorator:
    """How often, in CI and in `make matrix`."""
    full_size = pytest.param(full, id="full", marks=pytest.mark.matrix)
    return pytest.mark.parametrize("count", [pytest.param(ci, id="ci"), full_size])


def tensors_of(nimg: int, *, kilobytes: int = 256) -> dict[str, dict[str, Tensor]]:
    """Every number names the step, so that a mixture shows."""
    numbers = torch.full((kilobytes * 256,), float(nimg))
    return {"G": {"a": numbers, "b": numbers[:7].clone()}, "opt_G": {"a/step": torch.tensor(float(nimg))}}


def assert_whole(run_dir: Path, at_least: int) -> int:
    """The newest state is of one step, not older than the last that was told of, and nothing else lies about."""
    found = latest_state(run_dir)
    assert found is not None, "no state"
    assert found.nimg >= at_least, "a committed state was lost"
    numbers = torch.cat([t.flatten() for named in found.tensors.values() for t in named.values()])
    assert torch.equal(numbers, torch.full_like(numbers, float(found.nimg))), "of two steps"
    assert found.meta == {"nimg": found.nimg}
    assert [p.name for p in (run_dir / "checkpoints").iterdir() if p.name.startswith(".")] == []
    return found.nimg


def save_for_ever(run_dir: str, first: int, committed: str) -> None:
    for nimg in range(first, first + 100_000):
        save_state(Path(run_dir), nimg, tensors_of(nimg, kilobytes=2048), {"nimg": nimg}, keep=2)
        Path(committed).write_text(str(nimg))


@pytest.mark.slow
@sizes(20, 100)
def test_a1_kill_while_saving(tmp_path: Path, count: int) -> None:
    draw = random.Random(count)
    committed = tmp_path / "committed"
    save_state(tmp_path, 1, tensors_of(1), {"nimg": 1}, keep=2)
    committed.write_text("1")
    newest, advanced = 1, 0
    for _ in range(count):
        process = PROCESSES.Process(target=save_for_ever, args=(str(tmp_path), newest + 1, str(committed)))
        process.start()
        time.sleep(draw.uniform(0.05, 0.6))
        process.kill()
        process.join()
        found = assert_whole(tmp_path, at_least=int(committed.read_text() or newest))
        advanced += found > newest
        newest = found
    assert advanced > count // 4  # the kills fell among saves, not before the first


@contextlib.contextmanager
def full_disk(folder: Path, room: int) -> Iterator[Path]:
    """A file system with so many bytes, where this user may mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Like a quota: writing beyond it fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def broken(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[None]:
    """The disk answers the number-th of its calls with EIO."""
    calls = 0
    with monkeypatch.context() as patch:
        for module, name in [(os, "fsync"), (os, "rename"), (tensor_files, "save_file"), (os, "mkdir")]:
            real = getattr(module, name)

            def failing(*args: object, real: object = real, **kwargs: object) -> object:
                nonlocal calls
                calls += 1
                if calls == number:
                    raise OSError(5, "Input/output error")
                return real(*args, **kwargs)  # type: ignore[operator]

            patch.setattr(module, name, failing)
        yield


@pytest.mark.slow
@sizes(5, 50)
def test_a2_a_disk_that_takes_no_more(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full (tmpfs), over quota, failing: the last good state stays, the message says how much is needed."""
    one = sum(f.stat().st_size for f in save_state(tmp_path / "x", 1, tensors_of(1), {}, keep=1).iterdir())
    messages: list[str] = []
    with full_disk(tmp_path / "disk", 4 * one) as disk:
        save_state(disk, 1, tensors_of(1), {"nimg": 1}, keep=2)
        newest = 1
        for k in range(2, count + 2):
            kind = ("full", "quota", "broken", "read-only")[k % 4]
            try:
                if kind == "full":
                    (disk / "hog").write_bytes(bytes(one * 3 - one // (1 + k % 5) if newest == 1 else one))
                    save_state(disk, k, tensors_of(k, kilobytes=1024), {"nimg": k}, keep=2)
                elif kind == "quota":
                    with largest_file(one // 4 + 64 * (k % 7)):
                        save_state(disk, k, tensors_of(k), {"nimg": k}, keep=2)
                elif kind == "read-only":
                    with read_only(disk):
                        save_state(disk, k, tensors_of(k), {"nimg": k}, keep=2)
                else:
                    with broken(monkeypatch, k % 9 + 1):
                        save_state(disk, k, tensors_of(k), {"nimg": k}, keep=2)
                newest = k
            except CheckpointError as error:
                messages.append(str(error))
            (disk / "hog").unlink(missing_ok=True)
            assert assert_whole(disk, at_least=newest) == newest
            held = sum(f.stat().st_size for f in disk.rglob("*") if f.is_file())
            assert held <= 2 * one + 4096, "more than `keep` states are left"
            if k % 2:  # room again: the next one is saved
                save_state(disk, k, tensors_of(k), {"nimg": k}, keep=2)
                newest = k
    assert len(messages) >= count * 2 // 3
    told = re.compile(r"step-\d+: can't be saved \(.+\); it needs [\d,]+ bytes, [\d,]+ are free")
    assert all(told.search(message) for message in messages)


@pytest.mark.slow
@sizes(60, 1250)
def test_a3_every_damage_is_noticed(tmp_path: Path, count: int) -> None:
    """Flipped bits, truncations and missing files: 80, 16 and 4 in a hundred."""
    draw = random.Random(count)
    older = save_state(tmp_path, 1, tensors_of(1, kilobytes=4), {"nimg": 1}, keep=3)
    newer = save_state(tmp_path, 2, tensors_of(2, kilobytes=4), {"nimg": 2}, keep=3)
    names = sorted(file.name for file in newer.iterdir())
    for k in range(count):
        file = newer / names[k % len(names)]
        content = file.read_bytes()
        place = draw.randrange(len(content))
        if k % 25 == 0:
            file.unlink()
        elif k % 25 < 5:
            file.write_bytes(content[:place])
        else:
            flipped = bytes([content[place] ^ (1 << draw.randrange(8))])
            file.write_bytes(content[:place] + flipped + content[place + 1 :])
        found = latest_state(tmp_path)
        assert found is not None
        assert found.path == older, f"{file.name} {k}: loaded damaged"
        file.write_bytes(content)
    assert assert_whole(tmp_path, at_least=2) == 2


CALLS = re.compile(r"(?:\[pid +\d+\] |\d+ +)?(\w+)\((.*)\) += (?!-1)")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@sizes(3, 20)
def test_a4_order_of_system_calls(tmp_path: Path, count: int) -> None:
    """Each file reaches the disk before the manifest, that before its directory, then the rename, then the parent."""
    program = (
        "import sys, torch; from pathlib import Path; from gigagan.checkpoint import save_state\n"
        "for k in range(1, int(sys.argv[2]) + 1):\n"
        "    save_state(Path(sys.argv[1]), k, {'G': {'w': torch.ones(9)}, 'D': {'w': torch.ones(9)}}, {}, keep=1)\n"
    )
    trace = tmp_path / "trace"
    arguments = ["strace", "-f", "-y", "-e", "trace=fsync,rename,renameat2", "-o", trace]
    subprocess.run([*arguments, sys.executable, "-c", program, tmp_path / "run", str(count)], check=True)
    events = []
    for line in trace.read_text().splitlines():
        if (call := CALLS.search(line)) and f"{tmp_path}/run/" in line and ".safetensors.tmp" not in call[2]:
            where = re.search(rf"{re.escape(str(tmp_path))}/run/checkpoints/?([^>\"]*)", call[2])
            assert where is not None, line
            events.append((call[1].replace("at2", ""), re.sub(r"\.tmp-(step-\d+)-\d+-\w+", r"<\1>", where[1])))
    for k in range(1, count + 1):
        step = f"<step-{k:08d}>"
        mine = [e for e in events if step in e[1]]
        first = {event: i for i, event in reversed(list(enumerate(mine)))}
        data = [("fsync", f"{step}/{n}") for n in ("D.safetensors", "G.safetensors", "state.json")]
        order = [*(max(first[d] for d in data),), first["fsync", f"{step}/manifest.json"], first["fsync", step]]
        order.append(first["rename", step])
        assert order == sorted(order), mine
        after = events[events.index(("rename", step)) + 1]
        assert after == ("fsync", ""), after  # the folder of all states


def saving_run(run_dir: str, log: str) -> None:
    """A run whose saves are slower than their interval."""
    cfg = speck()
    state = TrainState(cfg, feature_dim=32, device=CPU)
    saver = Saver(Path(run_dir), cfg.train)
    real = checkpoint.save_state

    def slow(*args: object, **kwargs: object) -> Path:
        path = real(*args, **kwargs)  # type: ignore[arg-type]
        time.sleep(0.05)
        with Path(log).open("a") as file:
            file.write(f"{args[1]}\n")
        return path

    checkpoint.save_state = slow  # type: ignore[assignment]
    for nimg in range(1, 100_000):
        state.nimg = nimg
        for parameter in state.G.parameters():
            parameter.data.fill_(nimg)
        saver.save(state)
        for parameter in state.G.parameters():
            parameter.data.fill_(-1)  # training goes on while the copy is written
        assert sum(thread.name == "save" for thread in saving.threading.enumerate()) <= 1


@pytest.mark.slow
@sizes(4, 30)
def test_a5_kill_during_a_save_beside_training(tmp_path: Path, count: int) -> None:
    draw = random.Random(count)
    told = tmp_path / "told"
    for _ in range(count):
        process = PROCESSES.Process(target=saving_run, args=(str(tmp_path), str(told)))
        process.start()
        while not told.exists() and process.is_alive():
            time.sleep(0.01)
        time.sleep(draw.uniform(0.1, 0.5))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        found = latest_state(tmp_path)
        assert found is not None
        assert found.nimg >= int(told.read_text().split()[-1])
        weights = [t for name, t in found.tensors["G"].items() if name != "mapping.w_avg"]
        assert all(bool((w == found.nimg).all()) for w in weights), "training wrote into the copy"
        shutil.rmtree(tmp_path / "checkpoints")
        told.unlink()


def test_a5_a_save_that_fails_is_told_at_the_next_step_and_the_third_ends_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = speck()
    state = TrainState(cfg, feature_dim=32, device=CPU)
    saver = Saver(tmp_path, cfg.train)
    saver.save(state)
    saver.finish()
    with largest_file(4096):
        for k in (1, 2):
            state.nimg = k
            saver.save(state)
            saver.wait()
            assert "training goes on" in caplog.text
            caplog.clear()
        saver.save(state)
        with pytest.raises(CheckpointError, match="can't be saved"):
            saver.wait()
    found = latest_state(tmp_path)
    assert found is not None
    assert found.nimg == 0


@pytest.mark.parametrize("folder", sorted(STORED.glob("*")), ids=lambda path: path.name)
def test_a6_states_of_every_format_load(folder: Path, tmp_path: Path) -> None:
    """Stored when their format was current; never written anew."""
    shutil.copytree(folder, tmp_path / "run")
    found = latest_state(tmp_path / "run")
    assert found is not None
    assert assert_whole(tmp_path / "run", at_least=found.nimg) == 1000 + int(folder.name.removeprefix("format-"))


def test_a6_a_state_of_a_later_version_is_told_and_not_passed_over(tmp_path: Path) -> None:
    save_state(tmp_path, 1, tensors_of(1, kilobytes=1), {}, keep=3)
    newest = save_state(tmp_path, 2, tensors_of(2, kilobytes=1), {}, keep=3)
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps(manifest | {"format_version": checkpoint.STATE_FORMAT + 1}))
    with pytest.raises(CheckpointError, match=r"step-00000002: format 2; this version reads 1; update open-gigagan"):
        latest_state(tmp_path)


def test_milestones_stay(tmp_path: Path) -> None:
    for nimg in (0, 4, 8, 12, 16, 20, 24, 28, 32):
        save_state(tmp_path, nimg, tensors_of(nimg, kilobytes=1), {}, keep=2, milestone=10)
    kept = sorted(int(path.name.removeprefix("step-")) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [0, 12, 20, 28, 32]  # the first of each ten, and the newest two
