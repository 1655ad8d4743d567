"""The nodes: what goes into each, and the function that runs. `v1` and `v3` say the same to ComfyUI in its words.

ComfyUI's IMAGE is a float tensor [B, H, W, C] in [0, 1].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from gigagan import DataError, Pipeline
from gigagan.editing import mix

CATEGORY = "GigaGAN"
PACKAGED = "emoji"
"""The model inside the package."""
MAX_SEED = 2**53 - 1
"""Of ComfyUI's page, whose numbers are JavaScript's; a pipeline takes larger ones."""
MAX_BATCH = 64


@dataclass(frozen=True)
class Input:
    """A socket or widget of a node."""

    name: str
    kind: Literal["IMAGE", "STRING", "INT", "FLOAT", "COMBO"]
    tooltip: str
    default: Any = None
    least: float | None = None
    most: float | None = None
    step: float | None = None
    choices: Callable[[], Sequence[str]] | None = None
    """Of a COMBO, asked anew each time the page is loaded."""


@dataclass(frozen=True)
class Node:
    """A node that gives one IMAGE."""

    name: str
    title: str
    description: str
    inputs: tuple[Input, ...]
    run: Callable[..., Tensor]


def models() -> list[str]:
    """The packaged model, and the model directories in ComfyUI's models/gigagan.

    A workflow comes from anywhere, so it chooses among these names and can't give a path or an address.
    """
    folder = _models_folder()
    if folder is None or not folder.is_dir():
        return [PACKAGED]
    found = sorted(one.parent.name for one in folder.glob("*/model_index.json"))
    return [PACKAGED, *(name for name in found if name != PACKAGED)]


def _models_folder() -> Path | None:
    try:
        import folder_paths  # ComfyUI's
    except ImportError:
        return None
    return Path(folder_paths.models_dir) / "gigagan"


@lru_cache(maxsize=2)
def _pipeline(name: str) -> Pipeline:
    """The model of that name, kept for the next run."""
    if name not in models():
        raise DataError(f"no model {name!r}; there are {', '.join(models())} (put others into models/gigagan)")
    folder = _models_folder()
    path = PACKAGED if name == PACKAGED or folder is None else folder / name
    return Pipeline.from_pretrained(path, device="cuda" if torch.cuda.is_available() else "cpu")


def generate(model: str, prompt: str, seed: int, batch_size: int, truncation_psi: float) -> Tensor:
    """Pictures of a prompt, with the seeds from `seed` on."""
    seeds = range(seed, seed + batch_size)
    drawn = _pipeline(model)(prompt, seeds=seeds, truncation_psi=truncation_psi, output_type="pt")
    return _as_comfy(drawn.images)


def mixed(
    model: str,
    coarse_prompt: str,
    coarse_seed: int,
    fine_prompt: str,
    fine_seed: int,
    coarse_share: float,
    truncation_psi: float,
) -> Tensor:
    """One picture: its layout from one prompt and seed, its surface from another."""
    pipe = _pipeline(model)
    prompts = pipe.check([coarse_prompt, fine_prompt])
    coarse, fine = (
        pipe.latents([prompt], pipe.z([seed]), truncation_psi)
        for prompt, seed in zip(prompts, (coarse_seed, fine_seed), strict=True)
    )
    pyramid = pipe.draw(mix(coarse, fine, layer=round(coarse_share * coarse.num_layers)))
    return _as_comfy(pyramid[0].float() / 255)


def upsample(model: str, image: Tensor, scale: str, prompt: str, seed: int) -> Tensor:
    """Each picture of a batch `scale` times as large."""
    if not bool(image.isfinite().all()):
        raise DataError("the image holds values that are no numbers; look at the node that made it")
    pipe = _pipeline(model)
    large = []
    for one in (image.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8):
        photo = Image.fromarray(one.squeeze(-1).numpy())
        enlarged = pipe.upsample(photo, scale=int(scale), prompt=prompt, seed=seed)
        height, width, channels = enlarged.height, enlarged.width, image.shape[-1]
        large.append(torch.frombuffer(bytearray(enlarged.tobytes()), dtype=torch.uint8).view(height, width, channels))
    return torch.stack(large).float() / 255


def _as_comfy(images: Tensor) -> Tensor:
    """Float [N, 3, H, W] in [0, 1] as ComfyUI has it."""
    return images.permute(0, 2, 3, 1).contiguous()


def _seed(name: str, of: str) -> Input:
    return Input(name, "INT", f"Seed of {of}.", 0, 0, MAX_SEED)


MODEL = Input("model", "COMBO", "The packaged model, or one of those in models/gigagan.", PACKAGED, choices=models)
PSI = Input(
    "truncation_psi",
    "FLOAT",
    "1 draws from all that was learned, less gives more typical pictures.",
    0.7,
    0.0,
    1.0,
    0.01,
)

NODES = (
    Node(
        "GigaGANGenerate",
        "GigaGAN: generate",
        "Pictures of a prompt, in one pass of the generator each.",
        (
            MODEL,
            Input("prompt", "STRING", "What to draw.", "a 3D render of a red apple"),
            _seed("seed", "the first picture; the next ones have the next seeds"),
            Input("batch_size", "INT", "Number of pictures.", 1, 1, MAX_BATCH),
            PSI,
        ),
        generate,
    ),
    Node(
        "GigaGANMix",
        "GigaGAN: mix",
        "The layout of one prompt and the surface of another: coarse layers of the first, fine layers of the second.",
        (
            MODEL,
            Input("coarse_prompt", "STRING", "What gives the layout.", "a 3D render of a rocket"),
            _seed("coarse_seed", "the layout"),
            Input("fine_prompt", "STRING", "What gives the surface.", "a black and white icon of a rocket"),
            _seed("fine_seed", "the surface"),
            Input("coarse_share", "FLOAT", "Share of the layers that the layout gets.", 0.5, 0.0, 1.0, 0.01),
            PSI,
        ),
        mixed,
    ),
    Node(
        "GigaGANUpsample",
        "GigaGAN: upsample",
        "Pictures of any size, larger, by the model's upsampler.",
        (
            MODEL,
            Input("image", "IMAGE", "The pictures."),
            Input("scale", "COMBO", "How many times as large.", "2", choices=lambda: ["2", "4", "8"]),
            Input("prompt", "STRING", "What is on them; may be left empty.", ""),
            _seed("seed", "the details"),
        ),
        upsample,
    ),
)
