"""The run, from first to last image: the order of events is the order of lines."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from pydantic import BaseModel

from gigagan import checkpoint, config, dist
from gigagan.config import RunConfig, to_yaml
from gigagan.data.dataset import open_dataset, packaged_pictures
from gigagan.data.features import CaptionFeatures
from gigagan.data.loader import Batch, batches
from gigagan.errors import ConfigError
from gigagan.models.frozen import TextEncoder, TextFeatures, build_text_encoder
from gigagan.models.upsampler import Upsampler
from gigagan.training.contrast import build_critics
from gigagan.training.grids import SampleGrid, sample_grid
from gigagan.training.health import alarms, examine, gradient_norm
from gigagan.training.micro_batches import micro_batches
from gigagan.training.state import TrainState, grow_from, updating
from gigagan.training.stats import Stats
from gigagan.training.steps import discriminator_step, generator_step

log = logging.getLogger(__name__)

# What a run may change between its parts: how far it goes, where its data lies, how often it reports.
FREE_KEYS = (
    "init",
    "path",
    "features",
    "heads",
    "num_workers",
    "total_kimg",
    "batch_gpu",
    "compile",
    "kimg_per_tick",
    "max_sec_per_tick",
    "snapshot_ticks",
    "checkpoint_ticks",
    "keep_checkpoints",
    "grid_prompts",
)


def train(cfg: RunConfig, run_dir: Path, *, device: torch.device) -> None:
    """Train to cfg.train.total_kimg. Called again with the same run_dir, it goes on where it stopped.

    Writes run_dir/{config.yaml, stats.jsonl, tensorboard/, checkpoints/, grids/, model/}; `model` is the newest
    snapshot, a model directory with the running average of G (and D, to train on from).
    """
    resolution = cfg.generator.resolution
    dataset = open_dataset(
        cfg.data.path or packaged_pictures(), split=cfg.data.split, resolution=resolution, enlarge=not cfg.data.crop
    )
    torch.manual_seed(cfg.train.seed)  # the networks' first weights
    encoder = build_text_encoder(cfg.text, device, classes=dataset.classes)
    if not dataset.captioned and encoder.name != "none":
        raise ConfigError(
            f"{dataset.path}: pictures without captions, but text.encoder is {encoder.name}; give a captioned set, or "
            "train unconditionally (preset unconditional64)"
        )
    features = CaptionFeatures(encoder, preload=Path(cfg.data.features) if cfg.data.features else None)
    image_network, contrast = build_critics(cfg, features, device)
    state = TrainState(
        cfg, feature_dim=encoder.feature_dim, device=device, image_network=image_network, contrast=contrast
    )
    _check_config(cfg, run_dir)
    _restore_or_init(state, run_dir)
    show = sample_grid(cfg, dataset, encoder)
    order = {"seed": cfg.train.seed, "start_nimg": state.nimg, "rank": dist.rank(), "world": dist.world_size()}
    stream = batches(cfg.data, dataset, resolution=resolution, batch=cfg.train.batch, **order)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(to_yaml(cfg), encoding="utf-8")
    stats = Stats(run_dir, total_kimg=cfg.train.total_kimg)
    stats.start(state.nimg)
    batch_gpu, ticks, known_alarms = cfg.train.batch_gpu, 0, set[str]()

    with _stop_requested() as stop:
        while state.nimg < cfg.train.total_kimg * 1000 and not stop.is_set():
            batch = next(stream)
            batch_gpu = _step(state, batch, features, stats, batch_gpu)
            state.update_ema()
            state.nimg += cfg.train.batch

            if stats.tick_ended(state.nimg, cfg.train.kimg_per_tick, cfg.train.max_sec_per_tick):
                examined = examine(state, next(micro_batches(state, batch, features, batch_gpu, phase=2)))
                row = stats.tick(state.nimg, {"Progress/bad_samples": float(stream.bad.count), **examined})
                known_alarms = _sound(alarms(row, state.nimg / 1000), known_alarms)
                ticks += 1
                if ticks % cfg.train.checkpoint_ticks == 0:
                    _save_state(state, run_dir)
                if ticks % cfg.train.snapshot_ticks == 0:
                    _save_snapshot(state, encoder, run_dir, show)

    if stats.images(state.nimg):
        stats.tick(state.nimg, {"Progress/bad_samples": float(stream.bad.count)})
    _save_state(state, run_dir)
    _save_snapshot(state, encoder, run_dir, show)
    stats.close()


def _step(
    state: TrainState, batch: Batch, features: CaptionFeatures[TextFeatures], stats: Stats, batch_gpu: int
) -> int:
    """One optimizer step of D (and V), then one of G; returns the size of micro-batches that fitted."""
    _set_learning_rate(state)
    # R1 every r1_interval steps, weighted up by the same factor (lazy regularization).
    r1 = state.weights.r1_gamma > 0 and state.step % state.cfg.loss.r1_interval == 0

    def judges(size: int) -> None:
        share = size / state.cfg.train.batch
        with ExitStack() as turn:
            for network, optimizer in state.judges:
                turn.enter_context(updating(network, optimizer))
                optimizer.zero_grad(set_to_none=True)
            for micro in micro_batches(state, batch, features, size, phase=0):
                stats.add(discriminator_step(state, micro, share=share, r1=r1))
            for network, optimizer in state.judges:
                stats.add({f"Gradients/{'V' if network is state.V else 'D'}": gradient_norm(optimizer)})
                optimizer.step()

    def generator(size: int) -> None:
        share = size / state.cfg.train.batch
        with updating(state.G, state.opt_G):
            state.opt_G.zero_grad(set_to_none=True)
            for micro in micro_batches(state, batch, features, size, phase=1):
                stats.add(generator_step(state, micro, share=share))
            stats.add({"Gradients/G": gradient_norm(state.opt_G)})
            state.opt_G.step()

    # Each half on its own: a half that is done isn't done again.
    return _within_memory(generator, _within_memory(judges, batch_gpu) if state.judges else batch_gpu)


def _sound(now: list[str], known: set[str]) -> set[str]:
    """Print the alarms that are new since the last tick; numbers in them don't make them new."""
    kinds = {line.partition("(")[0].rstrip("0123456789.: "): line for line in now}
    for kind, line in kinds.items():
        if kind not in known:
            log.warning("ALARM: %s", line)
    return set(kinds)


def _within_memory(half: Callable[[int], None], batch_gpu: int) -> int:
    """Half a step, its micro-batches halved until they fit; returns the size that did."""
    while True:
        try:
            half(batch_gpu)
            return batch_gpu
        except RuntimeError as error:  # torch has no one class for this
            if not _out_of_memory(error) or batch_gpu < 4 or batch_gpu % 2:
                raise
            batch_gpu //= 2
            log.warning("memory ran out; train.batch_gpu is now %d (same batch, same result)", batch_gpu)


def _set_learning_rate(state: TrainState) -> None:
    judges = [(optimizer, state.cfg.optim_D) for _, optimizer in state.judges]
    for optimizer, cfg in [(state.opt_G, state.cfg.optim_G), *judges]:
        warm = min(1.0, (state.nimg + state.cfg.train.batch) / (cfg.warmup_kimg * 1000)) if cfg.warmup_kimg else 1.0
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * warm


def _restore_or_init(state: TrainState, run_dir: Path) -> None:
    saved = checkpoint.latest_state(run_dir)
    if saved is not None:
        state.load_state_dict(saved.tensors, saved.nimg)
        log.info("resumed from %s at %.3f kimg", saved.path.name, saved.nimg / 1000)
    elif state.cfg.init:
        model = checkpoint.load_model(state.cfg.init, device=state.device)
        network = model.upsampler if isinstance(state.G, Upsampler) else model.generator
        if network is None:
            raise ConfigError(f"init: {state.cfg.init} holds no {type(state.G).__name__.lower()}; give one that does")
        taken = grow_from(state.G, dict(network.state_dict()), what=state.cfg.init)
        state.G_ema.load_state_dict(state.G.state_dict())
        if model.discriminator is not None:
            grow_from(state.D, dict(model.discriminator.state_dict()), what=state.cfg.init)
        log.info("started from %s: %d of %d tensors of G", state.cfg.init, taken, len(state.G.state_dict()))


def _check_config(cfg: RunConfig, run_dir: Path) -> None:
    """A run goes on only with the configuration it began with. Raises ConfigError naming what differs."""
    path = run_dir / "config.yaml"
    if path.exists() and (changed := _changed(config.load(str(path)), cfg)):
        raise ConfigError(
            f"{run_dir} was begun with other values ({'; '.join(changed[:3])}); give the same ones or a new --run-dir"
        )


def _changed(old: BaseModel, new: BaseModel, prefix: str = "") -> list[str]:
    """What differs between two trees and isn't free to; keys that a newer version added have their defaults in both."""
    changed = []
    for key, value in new:
        before, name = getattr(old, key, None), f"{prefix}{key}"
        if isinstance(value, BaseModel) and isinstance(before, BaseModel):
            changed += _changed(before, value, f"{name}.")
        elif before != value and key not in FREE_KEYS:
            changed.append(f"was {name}: {before}, now {name}: {value}")
    return changed


def _save_state(state: TrainState, run_dir: Path) -> None:
    if dist.rank():
        return
    checkpoint.save_state(
        run_dir, state.nimg, state.state_dict(), {"seed": state.cfg.train.seed}, keep=state.cfg.train.keep_checkpoints
    )


def _save_snapshot(state: TrainState, encoder: TextEncoder, run_dir: Path, show: SampleGrid) -> None:
    if dist.rank():
        return
    provenance = {"kimg": state.nimg / 1000, "config": state.cfg.model_dump(mode="json")}
    upsampler, generator = (state.G_ema, None) if isinstance(state.G_ema, Upsampler) else (None, state.G_ema)
    checkpoint.save_model(
        run_dir / "model",
        generator,
        encoder,
        provenance=provenance,
        dtype=torch.float32,
        discriminator=state.D,
        upsampler=upsampler,
    )
    folder = run_dir / "grids"
    folder.mkdir(exist_ok=True)
    show(state.G_ema).save(folder / f"{state.nimg:09d}.png")


def _out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets: the run saves after the step in hand and ends."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
