"""A run as a user sees it: it trains, logs, saves, goes on where it stopped, and says what is wrong."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from gigagan import checkpoint, config
from gigagan.errors import CheckpointError, ConfigError, DataError, GigaGANError
from gigagan.training import loop
from gigagan.training.loop import train
from gigagan.training.micro_batches import MicroBatch
from gigagan.training.resume import check_config
from gigagan.training.state import TrainState
from gigagan.training.stats import Stats
from gigagan.training.steps import discriminator_step, generator_step

CPU = torch.device("cpu")
SHORT = ("train.batch=8", "train.batch_gpu=8", "train.kimg_per_tick=0.1", "train.max_sec_per_tick=1000")


def run(run_dir: Path, *overrides: str) -> None:
    train(config.load("tiny", (*SHORT, *overrides)), run_dir, device=CPU)


def tensors(run_dir: Path) -> dict[str, dict[str, torch.Tensor]]:
    state = checkpoint.latest_state(run_dir)
    assert state is not None
    return state.tensors


def test_a_run_leaves_what_people_look_for(tmp_path: Path) -> None:
    run(tmp_path, "train.total_kimg=0.2", "train.snapshot_ticks=1")
    rows = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert rows[-1]["Progress/kimg"] == 0.2
    assert all(isinstance(v, float) for row in rows for v in row.values())
    assert {"Loss/D/adv", "Loss/D/match", "Loss/D/r1", "Loss/G/adv", "Timing/images_per_sec"} <= set(rows[0])
    assert list((tmp_path / "grids").glob("*.png"))
    assert (tmp_path / "config.yaml").is_file()
    assert list((tmp_path / "tensorboard").iterdir())
    model = checkpoint.load_model(tmp_path / "model")
    assert model.discriminator is not None
    assert config.load(str(tmp_path / "config.yaml")).train.batch == 8


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_record_that_can_not_be_written_costs_the_record_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "stats.jsonl").symlink_to("/dev/full")
    (tmp_path / "grids").write_text("where a folder should be")
    with pytest.raises(FileExistsError):  # the run's end says what it couldn't leave
        run(tmp_path, "train.total_kimg=0.2", "train.snapshot_ticks=1")
    state = checkpoint.latest_state(tmp_path)
    assert state is not None
    assert state.nimg == 200
    assert "stats.jsonl: not written (No space left on device); the run goes on without" in caplog.text
    assert f"{tmp_path / 'model'}: not written (File exists)" in caplog.text


def test_stages_are_schedules(tmp_path: Path) -> None:
    """First the pairs alone, then the game: D rests in the first, and a restart between them changes nothing."""
    stages = ("loss.adv_weight=[[0.2, 0], [0.2001, 1]]", "loss.paired_l1_weight=1", "optim_G.lr=[[0, 0.01], [1, 0]]")
    run(tmp_path, *stages, "train.total_kimg=0.008")
    first = tensors(tmp_path)["D"]
    run(tmp_path, *stages, "train.total_kimg=0.2")
    assert all(torch.equal(value, first[name]) for name, value in tensors(tmp_path)["D"].items())
    run(tmp_path, *stages, "train.total_kimg=0.4")
    assert not all(torch.equal(value, first[name]) for name, value in tensors(tmp_path)["D"].items())
    rows = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert ["Loss/D/adv" in row for row in rows if row["Progress/kimg"] in (0.2, 0.4)] == [False, True]


def test_a_restart_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path / "whole", "train.total_kimg=0.4")
    run(tmp_path / "parts", "train.total_kimg=0.2")
    run(tmp_path / "parts", "train.total_kimg=0.4")
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys() == {"G", "D", "G_ema", "opt_G", "opt_D"}
    for component, named in whole.items():
        assert named.keys() == parts[component].keys()
        for name, value in named.items():
            assert torch.equal(value, parts[component][name]), f"{component}: {name}"


def test_the_best_model_stays_until_a_better_one_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    values = iter([3.0, 1.0, 2.0])
    tick = Stats.tick

    def ticked(stats: Stats, nimg: int, extra: dict[str, float]) -> dict[str, float]:
        row = tick(stats, nimg, extra)
        return row if nimg % 8 else row | {"Loss/G/adv": next(values)}

    def best() -> tuple[float, float]:
        provenance = checkpoint.load_model(tmp_path / "best-model").index["provenance"]
        return provenance["kimg"], provenance["best"]

    def go_on(kimg: float, by: str = "Loss/G/adv") -> None:
        run(tmp_path, f"train.total_kimg={kimg}", f"train.best_by={by}", *often)

    def warned() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    often = ("train.kimg_per_tick=0.008", "train.snapshot_ticks=1")
    monkeypatch.setattr(Stats, "tick", ticked)
    go_on(0.024)
    assert best() == (0.016, 1.0)
    values = iter([float("nan"), 1.5])
    go_on(0.04)  # neither after a restart
    assert best() == (0.016, 1.0)
    values = iter([0.5])
    go_on(0.048)
    assert best() == (0.048, 0.5)
    values = iter([0.7])
    go_on(0.056, "-Loss/G/adv")  # another measure begins anew
    assert best() == (0.056, 0.7)
    values = iter([0.6, 0.8])
    go_on(0.072, "-Loss/G/adv")
    assert best() == (0.072, 0.8)
    assert checkpoint.load_model(tmp_path / "model").index["provenance"]["kimg"] == 0.072
    assert warned() == []
    values = iter([0.1, 0.2])
    go_on(0.088, "Loss/G/ad")
    assert best() == (0.072, 0.8)
    told = warned()
    assert len(told) == 1
    assert told[0].startswith("train.best_by: a tick has no number Loss/G/ad; near it: Loss/G/adv")


def test_a_snapshot_that_can_not_be_written_costs_the_snapshot_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("somebody's")
    with pytest.raises(CheckpointError, match="exists and is no model directory"):  # the run's end says it
        run(tmp_path, "train.total_kimg=0.2", "train.snapshot_ticks=1")
    state = checkpoint.latest_state(tmp_path)
    assert state is not None
    assert state.nimg == 200
    assert "give a new one; the run goes on without" in caplog.text
    assert not (tmp_path / "attempts.txt").exists()


def test_micro_batches_stay_whole_groups() -> None:
    sizes: list[int] = []

    def hungry(size: int) -> loop.Values:
        sizes.append(size)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        loop._within_memory(hungry, 16, 4, alone=True)
    assert sizes == [16, 8, 4]


def test_smaller_micro_batches_draw_the_same_pictures(tmp_path: Path) -> None:
    """batch_gpu only splits the work (without the matching loss, whose pairs are found within a micro-batch)."""
    same = ("train.total_kimg=0.008", "loss.match_weight_D=0", "loss.match_weight_G=0", "loss.r1_share=1")
    run(tmp_path / "a", *same)
    run(tmp_path / "b", *same, "train.batch_gpu=4")
    a, b = (json.loads((tmp_path / name / "stats.jsonl").read_text()) for name in ("a", "b"))
    for name in ("Loss/D/adv", "Loss/D/r1", "Scores/real", "Scores/gen", "Loss/G/paired_l1"):
        assert a[name] == pytest.approx(b[name], rel=1e-4), name


def test_memory_running_out_halves_the_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def hungry(state: TrainState, batch: MicroBatch, *, share: float, r1: bool) -> object:
        sizes.append(len(batch.img))
        if len(batch.img) > 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        return discriminator_step(state, batch, share=share, r1=r1)

    monkeypatch.setattr(loop, "discriminator_step", hungry)
    run(tmp_path, "train.total_kimg=0.016")
    assert sizes == [8, 4, 4, 4, 4]


def test_memory_running_out_for_g_leaves_d_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D is updated once a batch, whatever G's half has to try again."""
    sizes: dict[str, list[int]] = {"D": [], "G": []}

    def discriminator(state: TrainState, batch: MicroBatch, *, share: float, r1: bool) -> object:
        sizes["D"].append(len(batch.img))
        return discriminator_step(state, batch, share=share, r1=r1)

    def hungry(state: TrainState, batch: MicroBatch, *, share: float) -> object:
        sizes["G"].append(len(batch.img))
        if len(batch.img) > 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        return generator_step(state, batch, share=share)

    monkeypatch.setattr(loop, "discriminator_step", discriminator)
    monkeypatch.setattr(loop, "generator_step", hungry)
    run(tmp_path, "train.total_kimg=0.016")
    assert sizes == {"D": [8, 4, 4], "G": [8, 4, 4, 4, 4]}


def test_r1_comes_every_so_many_steps_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lazy R1, counted from the run's first step whatever was broken off between: with its weight at 0 never."""
    due: list[bool] = []

    def watched(state: TrainState, batch: MicroBatch, *, share: float, r1: bool) -> object:
        stats = discriminator_step(state, batch, share=share, r1=r1)
        due.append("Loss/D/r1" in stats)
        return stats

    monkeypatch.setattr(loop, "discriminator_step", watched)
    for kimg in (0.04, 0.056, 0.08):  # after 5, 7 and 10 steps
        run(tmp_path / "lazy", f"train.total_kimg={kimg}", "loss.r1_interval=3")
    assert due == [True, False, False] * 3 + [True]
    due.clear()
    run(tmp_path / "without", "train.total_kimg=0.016", "loss.r1_interval=1", "loss.r1_gamma=0")
    assert due == [False, False]


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "train.total_kimg=0.016")
    with pytest.raises(ConfigError, match=r"optim_G\.lr was 0\.0025, now 0\.001"):
        run(tmp_path, "train.total_kimg=0.032", "optim_G.lr=0.001")


def test_b4_what_may_differ_is_named_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row B4: another configuration or set is refused with the difference, unless it is allowed by name."""
    run(tmp_path, "train.total_kimg=0.008", "data.styleless_prob=0.1")
    changed = ("train.total_kimg=0.016", "optim_G.lr=0.001")
    with pytest.raises(ConfigError, match=r"styleless_prob was 0\.1, now 0\.2; optim_G\.lr was 0\.0025, now 0\.001"):
        run(tmp_path, *changed)
    cfg = config.load("tiny", (*SHORT, *changed))
    train(cfg, tmp_path, device=CPU, allow=("optim_G.lr", "data.styleless_prob"))

    with pytest.raises(ConfigError, match="was begun with other values"):
        check_config(config.load("tiny-up"), tmp_path)

    monkeypatch.setattr(loop, "probe_frozen", lambda *_: {"text.path": [0.3] * 8})
    go_on = (*SHORT, "train.total_kimg=0.02", "optim_G.lr=0.001")
    with pytest.raises(ConfigError, match=r"text\.path: isn't the network that the run was begun with; give the same"):
        train(config.load("tiny", go_on), tmp_path, device=CPU)
    train(config.load("tiny", go_on), tmp_path, device=CPU, allow=("text.path",))

    folder = tmp_path / "other"
    folder.mkdir()
    for k in range(3):
        Image.new("RGB", (16, 16), (k, k, k)).save(folder / f"{k}.png")
    lines = [json.dumps({"file_name": f"{k}.png", "text": f"gray {k}"}) for k in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    other = config.load("tiny", (*SHORT, "train.total_kimg=0.024", "optim_G.lr=0.001", f"data.path={folder}"))
    with pytest.raises(ConfigError, match="was begun on other data"):
        train(other, tmp_path, device=CPU)
    train(other, tmp_path, device=CPU, allow=("data",))


def test_a_run_goes_on_under_a_version_with_more_keys(tmp_path: Path) -> None:
    """A key that the run's config.yaml doesn't hold had its default then."""
    run(tmp_path, "train.total_kimg=0.016")
    path = tmp_path / "config.yaml"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "  crop:" not in line))
    run(tmp_path, "train.total_kimg=0.024")
    state = checkpoint.latest_state(tmp_path)
    assert state is not None
    assert state.nimg == 24


def test_an_upsampler_trains_goes_on_and_is_a_model(tmp_path: Path) -> None:
    def up(run_dir: Path, kimg: float, *overrides: str) -> None:
        train(config.load("tiny-up", (*SHORT, f"train.total_kimg={kimg}", *overrides)), run_dir, device=CPU)

    up(tmp_path / "whole", 0.032)
    up(tmp_path / "parts", 0.016)
    up(tmp_path / "parts", 0.032)
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    for component, named in whole.items():
        for name, value in named.items():
            assert torch.equal(value, parts[component][name]), f"{component}: {name}"
    model = checkpoint.load_model(tmp_path / "whole" / "model")
    assert model.generator is None
    assert model.upsampler is not None
    assert model.discriminator is not None
    assert model.discriminator.num_levels == 1
    assert list((tmp_path / "whole" / "grids").glob("*.png"))
    # Finished on whole pictures, of which D sees a window: every tensor of the crops' run fits.
    cfg = ["data.crop=0", "discriminator.window=16", "discriminator.blocks=[1,1,1]"]
    up(tmp_path / "crops", 0.016, "data.crop=16", "discriminator.blocks=[1,1,1]")
    up(tmp_path / "finish", 0.016, *cfg, "train.kimg_per_tick=0.008", f"init={tmp_path / 'crops' / 'model'}")
    rows = [json.loads(line) for line in (tmp_path / "finish" / "stats.jsonl").read_text().splitlines()]
    assert {"Health/G/picture_spread", "Logits/real/0_3", "Loss/G/paired_l1"} <= set(rows[0])


def test_init_takes_the_tensors_that_fit(tmp_path: Path) -> None:
    run(tmp_path / "base", "train.total_kimg=0.016")
    grown = ["generator.resolution=32", "generator.blocks=[1,1,1,1]", "generator.num_filters=[2,2,1,1]"]
    grown += ["discriminator.blocks=[1,1,1,1]", "loss.level_weights=[0.4,0.2,0.2,0.2]"]
    cfg = config.load("tiny", (*SHORT, *grown, f"init={tmp_path / 'base' / 'model'}"))
    state = TrainState(cfg, feature_dim=32, device=CPU)
    loop.restore_or_init(state, tmp_path / "new")
    old = checkpoint.load_model(tmp_path / "base" / "model")
    assert old.discriminator is not None
    for name, value in old.generator.state_dict().items():
        assert torch.equal(state.G.state_dict()[name], value)
        assert torch.equal(state.G_ema.state_dict()[name], value)
    name = "stages.16x16.from_rgb.weight"
    assert torch.equal(state.D.state_dict()[name], old.discriminator.state_dict()[name])


def test_credits_of_the_first_model_outlive_it(tmp_path: Path) -> None:
    """What a run began from may be gone when it goes on, and a run without snapshots so far knows them all the same."""
    run(tmp_path / "base", "train.total_kimg=0.016")
    (tmp_path / "base" / "model" / "NOTICE").write_text("drawn by somebody")
    mine = f"init={tmp_path / 'base' / 'model'}"
    run(tmp_path / "tuned", "train.total_kimg=0.016", mine)
    shutil.rmtree(tmp_path / "base")
    shutil.rmtree(tmp_path / "tuned" / "model")
    run(tmp_path / "tuned", "train.total_kimg=0.032", mine)
    assert (tmp_path / "tuned" / "model" / "NOTICE").read_text() == "drawn by somebody"
    assert "NOTICE" in json.loads((tmp_path / "tuned" / "model" / "model_index.json").read_text())["sha256"]


def test_a_state_of_another_shape_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "train.total_kimg=0.016")
    cfg = config.load("tiny", (*SHORT, "generator.w_dim=16"))
    with pytest.raises(CheckpointError, match=r"G doesn't fit this configuration: .* instead of"):
        loop.restore_or_init(TrainState(cfg, feature_dim=32, device=CPU), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    stats = Stats(tmp_path, total_kimg=1)
    stats.start(0)
    stats.add({"Loss/G/adv": torch.tensor(float("nan"))})
    with pytest.raises(GigaGANError, match=r"Loss/G/adv isn't finite at 0\.010 kimg"):
        stats.tick(10, {})
    stats.close()


def test_missing_data_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        run(tmp_path / "run", f"data.path={tmp_path / 'absent'}")
    assert not (tmp_path / "run").exists()


def test_learning_rate_follows_its_schedule() -> None:
    cfg = config.load("tiny", (*SHORT, "optim_G.lr=[[0, 0], [0.08, 0.0025]]"))
    state = TrainState(cfg, feature_dim=32, device=CPU)
    rates = []
    for _ in range(12):
        loop._set_learning_rate(state)
        rates.append(max(group["lr"] for group in state.opt_G.param_groups))
        state.nimg += 8
    assert rates[0] == pytest.approx(0.00025)
    assert rates[9:] == [0.0025] * 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arithmetic_that_is_slow_here_is_told_of_once(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop.dist, "slow_bfloat16", lambda device: "slow on this processor")
    run(tmp_path, f"train.dtype={dtype}", "train.total_kimg=0.008")
    assert caplog.text.count("slow on this processor") == (dtype == "bfloat16")
