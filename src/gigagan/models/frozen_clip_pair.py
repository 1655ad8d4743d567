"""CLIP's two towers as the network that losses look through (paper 5.3, 5.4), through transformers, from disk.

Axes: B batch, N captions, D the shared space.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gigagan.errors import CheckpointError, ConfigError
from gigagan.models.frozen_clip import load_network, read_tokenizer
from gigagan.models.frozen_files import PromptTokenizer
from gigagan.models.frozen_image import ImageFeatures

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures that CLIP was trained with, RGB in [0, 1]
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
WHERE_TO_GET = (
    "config.json, tokenizer files and model.safetensors of openai/clip-vit-base-patch32 (its pytorch_model.bin, sha256 "
    "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f, saved again by transformers' save_pretrained)"
)


class ClipPair:
    """Pictures and captions to CLIP's shared space, and the image tower's patches on the way; never trained."""

    # Unstated: which layers; those after a third, two thirds and all of the tower, without the class token (5.4).

    def __init__(self, network: Any, tokenizer: PromptTokenizer, *, device: torch.device | str = "cpu") -> None:
        self.network = network.float().to(device).requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.scale = float(network.logit_scale.detach().exp())
        vision = network.config.vision_config
        self.side = int(vision.image_size)
        self.taps = [round(vision.num_hidden_layers * part / 3) for part in (1, 2, 3)]
        self.map_channels = [int(vision.hidden_size)] * len(self.taps)
        self.judged_maps = dict.fromkeys(range(len(self.taps)), False)
        self.others = torch.zeros(0, int(network.config.projection_dim), device=device)
        self.mean = torch.tensor(MEAN, device=device)[:, None, None]
        self.deviation = torch.tensor(DEVIATION, device=device)[:, None, None]

    def __call__(self, img: Float[Tensor, "B 3 H W"], *, min_res: int = 0) -> ImageFeatures:
        """Patches and embedding of images in [-1, 1], which are brought to CLIP's one size whatever min_res is."""
        img = F.interpolate(img, size=(self.side, self.side), mode="bicubic", align_corners=False, antialias=True)
        pixels = ((img + 1) / 2 - self.mean) / self.deviation
        out = self.network.vision_model(pixel_values=pixels, output_hidden_states=True)
        maps = [self._patches(out.hidden_states[layer]) for layer in self.taps]
        return ImageFeatures(maps, self.network.visual_projection(out.pooler_output))

    def picture(self, seen: ImageFeatures) -> Float[Tensor, "B D"]:
        """Unit vectors of pictures."""
        return F.normalize(seen.pooled, dim=1)

    @torch.no_grad()
    def text(self, captions: Sequence[str]) -> Float[Tensor, "N D"]:
        """Unit vectors of captions."""
        rows = [self.tokenizer.ids(caption) for caption in captions]
        longest = max(map(len, rows))
        # The tower is causal: what follows EOT is never seen.
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.device)
        return F.normalize(self.network.text_projection(self.network.text_model(input_ids=ids).pooler_output), dim=1)

    @staticmethod
    def _patches(tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B C h w"]:
        side = round((tokens.shape[1] - 1) ** 0.5)
        return tokens[:, 1:].unflatten(1, (side, side)).movedim(3, 1)


def load_clip_pair(folder: str, device: torch.device | str = "cpu") -> ClipPair:
    """From a transformers directory. Raises ConfigError without one, CheckpointError where it is damaged or no CLIP."""
    if not folder:
        raise ConfigError(f"vision.path is empty; for vision.network=clip give a directory with {WHERE_TO_GET}")
    if not (Path(folder) / "model.safetensors").is_file():
        raise CheckpointError(f"{Path(folder) / 'model.safetensors'}: no such file; expected {WHERE_TO_GET}")
    network = load_network("CLIPModel", Path(folder), kinds=("clip",))
    positions = int(network.config.text_config.max_position_embeddings)
    return ClipPair(network, read_tokenizer(Path(folder), positions), device=device)
