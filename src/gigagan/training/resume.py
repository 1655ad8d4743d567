"""Where a run goes on: with its last state, the configuration and the data it was begun with."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from gigagan import checkpoint, dist
from gigagan.config import RunConfig, UpsamplerConfig, load
from gigagan.errors import CheckpointError, ConfigError
from gigagan.training.probes import check_frozen
from gigagan.training.state import TrainState, grow_from

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
    "shard_G",
    "recompute",
    "max_sec_per_step",
    "kimg_per_tick",
    "max_sec_per_tick",
    "snapshot_ticks",
    "checkpoint_ticks",
    "keep_checkpoints",
    "milestone_kimg",
    "best_by",
    "grid_prompts",
)


def restore_or_init(state: TrainState, run_dir: Path, allow: Collection[str] = ()) -> None:
    """The run's last state or, where it begins, that of the model it starts from.

    Raises ConfigError where the data or a frozen network is another, CheckpointError where a state or model doesn't fit
    or is damaged.
    """
    saved = latest_state_of_all(run_dir, state.device)
    if saved is not None:
        if state.data not in ("", saved.meta.get("data", state.data)) and "data" not in allow:
            raise ConfigError(
                f"{run_dir} was begun on other data (number or names of samples); give the same set, or "
                "--allow-change data"
            )
        check_frozen(saved.meta.get("frozen", {}), state.frozen, allow)
        state.load_state_dict(saved.tensors, saved.nimg, saved.meta)
        log.info("resumed from %s at %.3f kimg", saved.path.name, saved.nimg / 1000)
    elif state.cfg.init:
        model = checkpoint.load_model(state.cfg.init, device=state.device)
        network = model.upsampler if isinstance(state.cfg.generator, UpsamplerConfig) else model.generator
        if network is None:
            kind = "an upsampler" if model.upsampler is None else "a base model"
            raise ConfigError(f"init: {state.cfg.init} holds no network of this kind; give {kind}")
        taken = grow_from(state.G, dict(network.state_dict()), what=state.cfg.init)
        grow_from(state.G_ema, dict(network.state_dict()), what=state.cfg.init)
        if model.discriminator is not None:
            grow_from(state.D, dict(model.discriminator.state_dict()), what=state.cfg.init)
        state.notice = model.notice
        log.info("started from %s: %d of %d tensors of G", state.cfg.init, taken, len(state.G.state_dict()))


def latest_state_of_all(run_dir: Path, device: torch.device) -> checkpoint.State | None:
    """The newest whole state of a run, None where there is none yet.

    Raises CheckpointError as `checkpoint.latest_state`, and where ranks don't find the same one: their weights would
    differ from there on.
    """
    saved = checkpoint.latest_state(run_dir)
    own = torch.tensor([saved.nimg if saved is not None else -1], device=device)
    found = sorted(set(dist.gather(own).tolist()))
    if len(found) > 1:
        names = ", ".join("none" if nimg < 0 else f"step-{nimg:08d}" for nimg in found)
        raise CheckpointError(
            f"{run_dir}: processes find different training states ({names}); give a folder that all of them share, or "
            "start again when its file system has caught up"
        )
    return saved


def check_config(cfg: RunConfig, run_dir: Path, allow: Collection[str] = ()) -> None:
    """A run goes on only with the configuration it began with. Raises ConfigError naming what differs."""
    path = run_dir / "config.yaml"
    if not path.exists():
        return
    before, now = (_leaves(one.model_dump(mode="json")) for one in (load(str(path)), cfg))
    changed = [
        f"{key} was {before.get(key)}, now {now[key]}"
        for key in now
        if before.get(key) != now[key] and key not in allow and key.rpartition(".")[2] not in FREE_KEYS
    ]
    if changed:
        raise ConfigError(
            f"{run_dir} was begun with other values ({'; '.join(changed[:3])}); give the same ones, a new --run-dir, "
            "or --allow-change KEY"
        )


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
