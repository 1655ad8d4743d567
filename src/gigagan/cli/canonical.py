"""The part of gigagan evaluate that needs weights of others: FID, Inception score, CLIP score."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gigagan.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from gigagan.evaluation.evaluate import Figure
    from gigagan.evaluation.inception import Inception
    from gigagan.models.frozen_clip_pair import ClipPair

NUM = 30_000  # as for the paper's figure on COCO


@dataclass(frozen=True)
class Judges:
    """The networks of others, and what to say of them."""

    inception: "Inception | None"
    clip: "ClipPair | None"
    about: dict[str, Any]


def open_judges(
    inception_path: Path | None, clip_path: Path | None, num: int | None, device: "torch.device"
) -> Judges | None:
    """What the options name; None without any. Raises ConfigError for a number that has no effect."""
    from gigagan.evaluation.inception import Inception
    from gigagan.models.frozen_clip_pair import load_clip_pair
    from gigagan.models.frozen_files import file_sha256

    if inception_path is None and clip_path is None:
        if num is not None:
            raise ConfigError(f"--fid-num {num}: has no effect alone; give --inception or --clip")
        return None
    about: dict[str, Any] = {"fid_num": num or NUM}
    inception = clip = None
    if inception_path is not None:
        inception = Inception(inception_path, device)
        about["inception_hash"] = file_sha256(inception_path)
    if clip_path is not None:
        clip = load_clip_pair(str(clip_path), device)
        about["clip_hash"] = file_sha256(clip_path / "model.safetensors")
    return Judges(inception, clip, about)


def canonical_figures(model: str, data_path: Path, split: str, psi: float, judges: Judges) -> "list[Figure]":
    """Figures of the whole model, its upsampler included, at the side that the protocol compares at."""
    from gigagan.cli.drawing import Drawing
    from gigagan.data.dataset import open_dataset
    from gigagan.evaluation import canonical
    from gigagan.evaluation.inception import MAX_SIDE
    from gigagan.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(model, device="auto")
    data = open_dataset(data_path, split=split, resolution=min(pipe.resolution, MAX_SIDE))
    requests = canonical.plan(data, judges.about["fid_num"])
    images = Drawing(pipe, requests, psi)
    return canonical.measure(images, requests, data, judges.inception, judges.clip, progress=True)
