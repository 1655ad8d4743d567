"""The sample grid of a run: what G draws now, always of the same prompts and pictures."""

from collections.abc import Callable
from itertools import islice

import numpy as np
import torch
from PIL import Image

from gigagan.config import RunConfig, UpsamplerConfig
from gigagan.data.dataset import CaptionedImages, Sample
from gigagan.data.sampling import WHITE, composite
from gigagan.errors import DataError
from gigagan.evaluation.real import usable
from gigagan.grid import labelled_grid
from gigagan.models.frozen import TextEncoder
from gigagan.models.generator import Generator
from gigagan.models.layers import to_float, to_uint8
from gigagan.models.upsampler import Upsampler, with_level
from gigagan.pipeline import Pipeline, latent, to_pil
from gigagan.training.degrade import reduced

SEEDS = (0, 1, 2, 3)
ROWS = 8
TRIES = 32
"""Pictures that can't be read, one after the other, until a row is left out."""
SampleGrid = Callable[[Generator | Upsampler], Image.Image]


def sample_grid(cfg: RunConfig, dataset: CaptionedImages, encoder: TextEncoder) -> SampleGrid:
    """What draws the grid of a network of this run."""
    if isinstance(cfg.generator, UpsamplerConfig):
        return _before_and_after(cfg.generator, dataset, encoder)
    prompts = list(cfg.train.grid_prompts) or _first_captions(dataset)

    def draw(network: Generator | Upsampler) -> Image.Image:
        assert isinstance(network, Generator)
        pipe = Pipeline(network, encoder)
        rows = [list(pipe(prompt or None, seeds=SEEDS, truncation_psi=1).images) for prompt in prompts]
        return labelled_grid(rows, rows=prompts, columns=[f"seed {s}" for s in SEEDS])

    return draw


def _before_and_after(cfg: UpsamplerConfig, dataset: CaptionedImages, encoder: TextEncoder) -> SampleGrid:
    """The small picture enlarged by Lanczos, what the network makes of it, and the real one, whole and side by side."""
    captions, reals, lows = [], [], []
    for sample in _spread(dataset):
        picture = Image.fromarray(composite(sample.image, WHITE)).resize((cfg.resolution, cfg.resolution))
        reals.append(picture)
        captions.append(sample.captions[0].text)
        real = to_float(torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None])
        lows.append(reduced(real, cfg.input_resolution, "bicubic"))
    low = torch.cat(lows)
    sides = (cfg.resolution, cfg.resolution)
    before = [one.resize(sides, Image.Resampling.LANCZOS) for one in to_pil(to_uint8(low))]

    @torch.no_grad()
    def draw(network: Generator | Upsampler) -> Image.Image:
        assert isinstance(network, Upsampler)
        device = network.mapping.w_avg.device
        z = latent(0, cfg.z_dim).to(device)
        drawn = []
        for caption, one in zip(captions, low, strict=True):
            given = with_level(one[None], torch.zeros(1)).to(device)
            pyramid = network(z, encoder.encode([caption]).to(device), given)
            drawn += to_pil(to_uint8(pyramid[0]).cpu())
        rows = [list(row) for row in zip(before, drawn, reals, strict=True)]
        side = f"{cfg.input_resolution} px"
        return labelled_grid(rows, rows=captions, columns=[f"{side}, Lanczos", f"{side}, upsampler", "real"])

    return draw


def _first_captions(dataset: CaptionedImages) -> list[str]:
    return list(dict.fromkeys(sample.captions[0].text for sample in _spread(dataset)))


def _spread(dataset: CaptionedImages) -> list[Sample]:
    """At most ROWS samples from all over the set. Raises DataError where none can be read."""
    count = len(dataset)
    step = max(count // ROWS, 1)
    stretches = [range(first, min(first + step, count))[:TRIES] for first in range(0, count, step)][:ROWS]
    found = [sample for stretch in stretches for _, sample in islice(usable(dataset, stretch), 1)]
    if not found:
        raise DataError(f"{dataset.path}: none of its pictures can be read; run `gigagan data check` on it")
    return found
