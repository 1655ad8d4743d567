"""Canonical FID and Inception score, by the Inception network of clean-fid (Parmar et al. 2022) from a file on disk.

The protocols are clean-fid's (FID) and StyleGAN2-ADA's (score). Axes: N pictures, P features, C classes, H and W
height and width.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from gigagan.errors import CheckpointError

INPUT_SIDE = 299
POOL_DIM = 2048
MAX_SIDE = 256
"""Larger pictures, drawn and real, are first reduced to this side by Lanczos (paper 10: COCO, ImageNet)."""
NUM_SPLITS = 10
WHERE_TO_GET = "inception-2015-12-05.pt, the TorchScript file that clean-fid and StyleGAN2-ADA use"
Picture = UInt8[np.ndarray, "H W 3"]


class Inception:
    """uint8 pictures to pool3 features and to probabilities of 1,008 classes."""

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; expected {WHERE_TO_GET}")
        try:
            self.network = torch.jit.load(str(path), map_location=self.device).eval()
            self.layers = self.network.layers
        except (RuntimeError, AttributeError) as error:
            reason = (str(error).splitlines() or ["empty"])[0][:120]
            raise CheckpointError(f"{path}: can't be read ({reason}); expected {WHERE_TO_GET}") from None

    @torch.no_grad()
    def features(self, pictures: Sequence[Picture]) -> Float[Tensor, "N P"]:
        """pool3 (P = POOL_DIM) of pictures of any side, on the CPU: what FID is measured by."""
        resized = torch.from_numpy(np.stack([enlarged(picture) for picture in pictures])).to(self.device)
        found = self.layers((resized - 128) / 128).flatten(1).float().cpu()
        if found.shape[1] != POOL_DIM:
            raise CheckpointError(f"the Inception file gives {found.shape[1]} features; expected {POOL_DIM}")
        return found

    @torch.no_grad()
    def probabilities(self, pictures: Sequence[Picture]) -> Float[Tensor, "N C"]:
        """Of the classes, resized by the network itself and without the bias of its last layer, as in StyleGAN2-ADA."""
        batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(self.device)
        return self.network(batch, no_output_bias=True).float().cpu()


def reduced(picture: Picture) -> UInt8[np.ndarray, "h w 3"]:
    """A square picture at no more than MAX_SIDE, by Pillow's Lanczos."""
    if picture.shape[0] <= MAX_SIDE:
        return picture
    return np.asarray(Image.fromarray(picture).resize((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS))


def enlarged(picture: Picture) -> Float[np.ndarray, "3 299 299"]:
    """At the side of the network's input: each channel by Pillow's bicubic in float, not rounded, within [0, 255]."""
    channels = [
        np.asarray(Image.fromarray(channel).resize((INPUT_SIDE, INPUT_SIDE), Image.Resampling.BICUBIC))
        for channel in np.ascontiguousarray(picture.transpose(2, 0, 1).astype(np.float32))
    ]
    return np.stack(channels).clip(0, 255)


def inception_score(probabilities: Float[Tensor, "N C"], *, num_splits: int = NUM_SPLITS) -> float:
    """exp(E KL(p(y|x) || p(y))) (Salimans et al. 2016), mean over the parts of a set in its order."""
    scores = []
    for part in probabilities.double().tensor_split(min(num_splits, len(probabilities))):
        # xlogy: 0 log 0 = 0.
        kl = torch.xlogy(part, part) - torch.xlogy(part, part.mean(dim=0, keepdim=True))
        scores.append(kl.sum(dim=1).mean().exp())
    return float(torch.stack(scores).mean())
