"""The run, from first to last image: the order of events is the order of lines."""

import faulthandler
import logging
import re
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from gigagan import dist
from gigagan.config import RunConfig, to_yaml, value_at
from gigagan.data.dataset import CaptionedImages, open_for_training
from gigagan.data.features import CaptionFeatures
from gigagan.data.loader import Batch, Batches, batches
from gigagan.data.places import write_whole
from gigagan.errors import ConfigError, GigaGANError
from gigagan.models.frozen import TextEncoder, TextFeatures, build_text_encoder
from gigagan.training.attempts import Attempts
from gigagan.training.claim import claimed
from gigagan.training.contrast import build_critics
from gigagan.training.distill_mapping import distill_mapping
from gigagan.training.grids import sample_grid
from gigagan.training.guard import Guard, Verdict, Wishes, exchange
from gigagan.training.health import PICTURES, alarms, examine
from gigagan.training.micro_batches import MicroBatch, check_parts, micro_batches, other_captions
from gigagan.training.probes import probe_frozen
from gigagan.training.resume import check_config, latest_state_of_all, restore_or_init
from gigagan.training.saving import Saver
from gigagan.training.snapshots import Snapshots
from gigagan.training.state import TrainState, updating
from gigagan.training.stats import Stats, spared
from gigagan.training.steps import discriminator_step, generator_step, term_gradients

log = logging.getLogger(__name__)

FIGURE = r"(?<![\dx.])-?\d+(\.\d+)?(e[+-]?\d+)?(?![\dx.])"
"""A number, but not the sides of a level (4x4)."""
Values = list[dict[str, Tensor]]
"""Losses and scores of each micro-batch."""


def train(cfg: RunConfig, run_dir: Path, *, device: torch.device, allow: Collection[str] = ()) -> int:
    """Train to cfg.train.total_kimg; every rank calls it. Called again with the same run_dir, it goes on.

    Writes run_dir/{config.yaml, stats.jsonl, tensorboard/, checkpoints/, grids/, model/, best-model/}; `model` is the
    newest snapshot, a model directory with the running average of G (and D, to train on from), `best-model` the best
    one by cfg.train.best_by. Returns the number of the signal that ended it early, 0 where it is whole. `allow` names
    keys that may differ from those it was begun with.
    """
    check_parts(cfg, dist.world_size())
    resolution = cfg.generator.resolution
    dataset = open_for_training(cfg.data, resolution=resolution)
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
    state.data, state.frozen = dataset.fingerprint(), probe_frozen(encoder, image_network, contrast, device)
    with claimed(run_dir) as claim, Saver(run_dir, cfg.train) as saver:
        claim()  # one that is there
        check_config(cfg, run_dir, allow)
        restore_or_init(state, run_dir, allow)
        run_dir.mkdir(parents=True, exist_ok=True)
        claim()  # a new one
        attempts = Attempts(run_dir, state.nimg)
        if state.dtype == torch.bfloat16 and (cure := dist.slow_bfloat16(device)):
            log.warning("%s", cure)
        if dist.rank() == 0:
            write_whole(run_dir / "config.yaml", to_yaml(cfg).encode())
        try:
            with _stop_requested() as stop:
                _run(state, dataset, encoder, features, run_dir, attempts, saver, stop)
        except (GigaGANError, KeyboardInterrupt):  # told, or wanted
            attempts.ended()
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
        attempts.ended()
    return stop.number


def _run(
    state: TrainState,
    dataset: CaptionedImages,
    encoder: TextEncoder,
    features: CaptionFeatures[TextFeatures],
    run_dir: Path,
    attempts: Attempts,
    saver: Saver,
    stop: "_Stop",
) -> None:
    """The steps, and what comes after each."""
    cfg = state.cfg
    snapshots = Snapshots(run_dir, state, encoder, sample_grid(cfg, dataset, encoder))
    stream, guard, stats = _open(state, dataset), Guard(run_dir), Stats(run_dir, total_kimg=cfg.train.total_kimg)
    if state.nimg == 0:  # there is always a state to go back to, and a disk that can't be written shows now
        saver.save(state)
        saver.finish()
    stats.start(state.nimg)
    batch_gpu, ticks, known_alarms, stopping, row = cfg.train.batch_gpu, 0, set[str](), False, dict[str, float]()

    while state.nimg < cfg.train.total_kimg * 1000 and not stopping:
        faulthandler.dump_traceback_later(cfg.train.max_sec_per_step, exit=True, file=2)  # to stderr itself
        attempts.begins(state.nimg)
        saver.check()
        distill_mapping(state, dataset, features, stop.is_set)
        batch = stats.waited_for(stream)
        due = stats.tick_ended(state.nimg + cfg.train.batch, cfg.train.kimg_per_tick, cfg.train.max_sec_per_tick)
        verdict, broken, batch_gpu = _step(state, batch, features, stats, batch_gpu, Wishes(stop.is_set(), due))
        good = verdict.good and state.update_ema()
        state.nimg += cfg.train.batch
        if stopping := verdict.stop:
            stop.number = stop.number or signal.SIGTERM  # another rank's
        if guard.persists(good, state, broken):
            _go_back(state, run_dir, saver)
            stats.forget(state.nimg)
            stream.close()
            stream = _open(state, dataset)
        elif verdict.tick and good:
            row = stats.tick(
                state.nimg, _counts(state, stream, guard, stats) | _examined(state, batch, features, batch_gpu)
            )
            known_alarms = _sound(alarms(row, state.nimg / 1000), known_alarms)
            ticks += 1
            if ticks % cfg.train.checkpoint_ticks == 0:
                saver.save(state)
            if ticks % cfg.train.snapshot_ticks == 0:
                with spared(run_dir / "model"):
                    snapshots.save(state, row)

    if stats.images(state.nimg):
        row = {}  # what is left over is too little to judge by
        stats.tick(state.nimg, _counts(state, stream, guard, stats))
    saver.save(state)
    saver.finish()
    dist.barrier()  # no rank leaves before the state is whole
    # Whoever sends SIGTERM doesn't wait for pictures; and of a sharded G all ranks would have to agree to gather it.
    if not stopping or (stop.number == signal.SIGINT and not cfg.train.shard_G):
        snapshots.save(state, row)
    stream.close()
    stats.close()


def _open(state: TrainState, dataset: CaptionedImages) -> Batches:
    """The training order from where the run is."""
    cfg = state.cfg
    order = {"seed": cfg.train.seed, "start_nimg": state.place, "rank": dist.rank(), "world": dist.world_size()}
    return batches(cfg.data, dataset, resolution=cfg.generator.resolution, batch=cfg.train.batch, **order)


def _examined(
    state: TrainState, batch: Batch, features: CaptionFeatures[TextFeatures], batch_gpu: int
) -> dict[str, float]:
    """Figures of a few pictures of the batch."""
    others = other_captions(state, batch.captions)
    few = next(micro_batches(state, batch, features, min(batch_gpu, PICTURES), phase=2, others=others))
    return examine(state, few) | term_gradients(state, few)


def _counts(state: TrainState, stream: Batches, guard: Guard, stats: Stats) -> dict[str, float]:
    """What all ranks together came to."""
    own = torch.tensor([stream.bad.count, stats.cpu_sec()], dtype=torch.float32, device=state.device)
    dist.add_up([own])
    bad, cpu_sec = own.tolist()
    return {
        "Progress/bad_samples": bad,
        "Progress/skipped_steps": float(guard.skipped),
        "Timing/cpu_sec_per_kimg": 1000 * cpu_sec / max(stats.images(state.nimg), 1),
    }


def _step(
    state: TrainState,
    batch: Batch,
    features: CaptionFeatures[TextFeatures],
    stats: Stats,
    batch_gpu: int,
    wishes: Wishes,
) -> tuple[Verdict, list[str], int]:
    """One optimizer step of D (and V), then one of G, as far as every number is finite on every rank.

    Returns what all ranks do, which of this rank's numbers weren't finite, and the size of micro-batches that fitted.
    """
    _set_learning_rate(state)
    # R1 every r1_interval steps, weighted up by the same factor (lazy regularization).
    r1 = state.weights.r1_gamma > 0 and state.step % state.cfg.loss.r1_interval == 0
    others = other_captions(state, batch.captions)
    group = max(state.cfg.discriminator.minibatch_std, 1)
    alone = not state.cfg.train.shard_G  # ranks meet above and in `exchange`, and within a half only for G's shards

    def share(part: MicroBatch) -> float:  # of the whole batch; a rank's last part, or only one, may be below `size`
        return len(part.captions) / state.cfg.train.batch

    judging = state.judging

    def judges(size: int) -> Values:
        with ExitStack() as turn:
            for network, optimizer in judging:
                turn.enter_context(updating(network, optimizer))
                optimizer.zero_grad(set_to_none=True)
            parts = micro_batches(state, batch, features, size, phase=0)
            return [discriminator_step(state, part, share=share(part), r1=r1) for part in parts]

    def generator(size: int) -> Values:
        with updating(state.G, state.opt_G):
            state.opt_G.zero_grad(set_to_none=True)
            state.mean_style.zero_()
            parts = micro_batches(state, batch, features, size, phase=1, others=others)
            return [generator_step(state, part, share=share(part)) for part in parts]

    # Each half on its own: a half that is done isn't done again.
    if judging:
        values, batch_gpu = _within_memory(judges, batch_gpu, group, alone=alone)
        optimizers = {"V" if network is state.V else "D": optimizer for network, optimizer in judging}
        verdict, broken = _apply(optimizers, values, [], stats, wishes)
        if not verdict.good:
            return verdict, broken, batch_gpu
    values, batch_gpu = _within_memory(generator, batch_gpu, group, alone=alone)
    verdict, broken = _apply({"G": state.opt_G}, values, [state.mean_style], stats, wishes)
    if verdict.good:
        state.G.mapping.track(state.mean_style[None])
    return verdict, broken, batch_gpu


def _apply(
    optimizers: dict[str, torch.optim.AdamW],
    values: Values,
    extra: list[Tensor],
    stats: Stats,
    wishes: Wishes,
) -> tuple[Verdict, list[str]]:
    """Exchange gradients over ranks and let them move the weights where all is finite; else name what isn't here."""
    losses = torch.stack([v for part in values for name, v in part.items() if name.startswith("Loss/")]).sum()
    verdict, norms = exchange(list(optimizers.values()), losses, extra, wishes)
    if not verdict.good:
        return verdict, sorted({name for part in values for name, v in part.items() if not bool(v.isfinite())})
    for part in values:
        stats.add(part)
    stats.add({f"Gradients/{name}": norm for name, norm in zip(optimizers, norms, strict=True)})
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # the other half has no room for these
    return verdict, []


def _go_back(state: TrainState, run_dir: Path, saver: Saver) -> None:
    """To the last state; the pictures since then are passed over, and the rates are halved the first time."""
    saver.wait()
    dist.barrier()  # what the first rank saved is there for all
    saved = latest_state_of_all(run_dir, state.device)
    assert saved is not None, "a run begins with a state"
    reached, rollbacks, halved = state.place, state.rollbacks, state.rate == 1.0
    dist.barrier()  # each has read it before the first rank saves again
    state.load_state_dict(saved.tensors, saved.nimg, saved.meta)
    state.passed_over += reached - state.place
    state.rollbacks, state.rate = rollbacks, 0.5
    log.warning(
        "numbers stayed other than finite: went back to %.3f kimg, passing over %d images%s",
        state.nimg / 1000,
        state.passed_over,
        ", learning rates halved" if halved else "",
    )
    saver.save(state)  # a restart must not meet the same pictures again
    saver.finish()


def _sound(now: list[str], known: set[str]) -> set[str]:
    """Print the alarms that are new since the last tick; numbers in them don't make them new."""
    kinds = {re.sub(FIGURE, "", line): line for line in now}
    for kind, line in kinds.items():
        if kind not in known:
            log.warning("ALARM: %s", line)
    return set(kinds)


def _within_memory(half: Callable[[int], Values], batch_gpu: int, group: int, *, alone: bool) -> tuple[Values, int]:
    """Half a step, its micro-batches halved until they fit; what it gave, and the size that did.

    They stay multiples of `group`, which D looks at together. Not where ranks meet within the half (not `alone`): the
    others wouldn't begin again.
    """
    while True:
        try:
            return half(batch_gpu), batch_gpu
        except RuntimeError as error:  # torch has no one class for this
            if not (alone and _out_of_memory(error)) or batch_gpu < 4 or batch_gpu % (2 * group):
                raise
            batch_gpu //= 2
            log.warning("memory ran out; train.batch_gpu is now %d (the same batch in smaller parts)", batch_gpu)


def _set_learning_rate(state: TrainState) -> None:
    judges = [(optimizer, state.cfg.optim_D) for _, optimizer in state.judges]
    for optimizer, cfg in [(state.opt_G, state.cfg.optim_G), *judges]:
        lr = value_at(cfg.lr, (state.nimg + state.cfg.train.batch) / 1000) * state.rate
        for group in optimizer.param_groups:
            group["lr"] = 0.0 if state.taught and group["mapping"] else lr * group["factor"]


def _out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


class _Stop(threading.Event):
    """Whether a signal asked the run to stop, and which."""

    number: int = 0


@contextmanager
def _stop_requested() -> Iterator[_Stop]:
    """Ctrl-C or SIGTERM: the run saves after the step in hand and ends. A second one ends it at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        stop.number = number
        stop.set()

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
