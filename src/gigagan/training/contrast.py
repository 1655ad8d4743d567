"""A picture and its caption in one space, by frozen networks: what the CLIP loss compares (paper 5.3).

Offline a small pair of heads over MiniLM and EfficientNet-Lite0 stands for CLIP (`gigagan data heads` trains it on the
training split); with a CLIP checkpoint on disk it is CLIP itself. Of the emoji set the heads read styles as well.
Axes: B pictures, N captions, D shared space, K features of a picture, M of its texture, S styles, E text features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gigagan.config import RunConfig, TextConfig
from gigagan.data.features import CaptionFeatures
from gigagan.data.tensor_files import save_tensors
from gigagan.errors import CheckpointError, ConfigError
from gigagan.evaluation.features import EXTREME_CHANNELS, GRAM_CHANNELS
from gigagan.evaluation.readers import Readers
from gigagan.models.frozen import (
    ImageFeatures,
    ImageNetwork,
    TextFeatures,
    build_text_encoder,
    load_efficientnet_lite,
)
from gigagan.models.frozen_clip_pair import load_clip_pair

FORMAT = "gigagan-heads-2"
CELLS = 2
"""The two coarsest maps are averaged over so many cells a side: what is where, roughly."""


class Contrast(Protocol):
    """Frozen networks that put pictures and captions in one space, all of unit length."""

    scale: float
    """Cosines times this are logits (CLIP's learned temperature)."""
    others: Float[Tensor, "N D"]
    """Captions to tell a picture from besides those of its batch; there may be none."""

    def picture(self, seen: ImageFeatures) -> Float[Tensor, "B D"]:
        """Vectors of pictures, given what the image network sees in them; differentiable."""

    def text(self, captions: Sequence[str]) -> Float[Tensor, "N D"]:
        """Vectors of captions, without gradient."""


def build_critics(
    cfg: RunConfig, features: CaptionFeatures[TextFeatures], device: torch.device
) -> tuple[ImageNetwork | None, Contrast | None]:
    """The frozen image network and the contrastive pair that a run's losses look through; None where none does.

    `features` is the run's own text encoder, used again where it is MiniLM. Raises CheckpointError or ConfigError
    where weights are missing or damaged.
    """
    loss, vision = cfg.loss, cfg.vision
    if not (loss.vision_weight or loss.perceptual_weight or loss.clip_weight or loss.style_weight):
        return None, None
    if vision.network == "clip":
        pair = load_clip_pair(vision.path, device)
        return pair, pair
    network = load_efficientnet_lite("lite0", device)
    if not (loss.clip_weight or loss.style_weight):
        return network, None
    if not vision.heads:
        raise ConfigError(
            "vision.heads is empty; for loss.clip_weight and style_weight on lite0 give a file of `gigagan data heads`"
        )
    heads, others = load_heads(Path(vision.heads), resolution=max(vision.resolution, cfg.judged_side))
    if loss.style_weight and heads.style is None:
        raise ConfigError(f"{vision.heads}: its set has no styles of the emoji set to read; set loss.style_weight=0")
    if features.encoder.name != "minilm":
        features = CaptionFeatures(build_text_encoder(TextConfig(), device))
    return network, HeadsContrast(heads, others, features, device=device)


def picture_features(seen: ImageFeatures) -> Float[Tensor, "B K"]:
    """What the heads look at: how it is drawn (mean and deviation of the finer maps), and what is where."""
    texture = [statistic for x in seen.maps[:-2] for statistic in (x.mean(dim=(2, 3)), _deviation(x))]
    cells = [F.adaptive_avg_pool2d(x, CELLS).flatten(1) for x in seen.maps[-2:]]
    return torch.cat(texture + cells, dim=1)


def texture_features(seen: ImageFeatures) -> Float[Tensor, "B M"]:
    """How it is drawn, wherever in the picture, for the reader of its style: statistics of all but the coarsest map."""
    return torch.cat([statistic for x in seen.maps[:-1] for statistic in _statistics(x.float())], dim=1)


def _statistics(x: Float[Tensor, "B C H W"]) -> list[Tensor]:
    # Those by which the evaluator reads styles, in a form whose slope is finite everywhere: correlations in place of
    # roots of covariances.
    channels, mean, deviation = x.shape[1], x.mean(dim=(2, 3)), _deviation(x)
    statistics = [mean, deviation]
    if channels <= GRAM_CHANNELS:
        row, column = torch.triu_indices(channels, channels, offset=1, device=x.device)
        unit = ((x - mean[:, :, None, None]) / deviation[:, :, None, None]).flatten(2)
        statistics.append((unit @ unit.mT / unit.shape[2])[:, row, column])
    if channels <= EXTREME_CHANNELS:
        statistics += [x.amax(dim=(2, 3)), x.amin(dim=(2, 3))]
    return statistics


def _deviation(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C"]:
    # The small term keeps the root's slope finite where a channel is flat.
    return (x.var(dim=(2, 3), correction=0) + 1e-4).sqrt()


class HeadsContrast:
    """The heads, over features that are there anyway: the image network's maps, MiniLM's vector of a caption."""

    def __init__(
        self,
        heads: Readers,
        others: Float[Tensor, "N D"],
        features: CaptionFeatures[TextFeatures],
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.heads = heads.to(device).requires_grad_(False).eval()
        self.others = others.to(device)
        self.scale = float(heads.caption_scale.exp())
        self.features = features
        self.device = torch.device(device)

    def picture(self, seen: ImageFeatures) -> Float[Tensor, "B D"]:
        return F.normalize(self.heads.picture(self.heads.look(picture_features(seen))), dim=1)

    def style_logits(self, seen: ImageFeatures) -> Float[Tensor, "B S"]:
        """Of pictures, as `data.captions.TEMPLATES` orders the styles; differentiable."""
        return self.heads.style_logits(texture_features(seen))

    @torch.no_grad()
    def text(self, captions: Sequence[str]) -> Float[Tensor, "N D"]:
        return text_vectors(self.heads, pooled(self.features(captions)).to(self.device))


def pooled(features: TextFeatures) -> Float[Tensor, "N E"]:
    """The sentence vector of each caption, of unit length."""
    rows = torch.arange(len(features.tokens), device=features.tokens.device)
    return F.normalize(features.tokens[rows, features.global_index], dim=1)


def text_vectors(heads: Readers, sentences: Float[Tensor, "N E"]) -> Float[Tensor, "N D"]:
    """Captions in the shared space, given their sentence vectors."""
    return F.normalize(heads.caption(heads.caption_trunk(sentences)), dim=1)


def save_heads(path: Path, heads: Readers, others: Float[Tensor, "N D"], *, resolution: int) -> None:
    """Write a file of heads; `resolution` is the side at which the image network was shown pictures."""
    save_tensors(path, {**heads.state_dict(), "others": others.half()}, {FORMAT: str(resolution)})


def load_heads(path: Path, *, resolution: int) -> tuple[Readers, Float[Tensor, "N D"]]:
    """Heads and the captions to tell pictures from. Raises CheckpointError where the file isn't whole or another's."""
    try:
        with safe_open(path, framework="pt") as file:
            held = (file.metadata() or {}).get(FORMAT)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if held is None:
            raise CheckpointError(f"{path}: holds no heads; write it with `gigagan data heads`")
        others = tensors.pop("others").float()
        heads = Readers.of_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        heads.load_state_dict(tensors)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; write it with `gigagan data heads DATA --out {path}`") from None
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: isn't a whole file of heads ({error}); write it again") from None
    if held != str(resolution):
        raise CheckpointError(
            f"{path}: its heads learned from pictures at {held} px, but the network sees them at {resolution} px "
            f"here; set vision.resolution or write it again with `gigagan data heads --resolution {resolution}`"
        )
    return heads, others
