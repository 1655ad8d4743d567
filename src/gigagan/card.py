"""The model card of a directory, with the lines on top that the hub reads."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from gigagan import __version__
from gigagan.models.frozen import TextEncoder
from gigagan.models.generator import Generator
from gigagan.models.upsampler import Upsampler


def model_card(
    generator: Generator | None, upsampler: Upsampler | None, text_encoder: TextEncoder, provenance: Mapping[str, Any]
) -> str:
    """README.md of a model directory: what the networks are, and of `provenance` what is a word or a number."""
    parts: dict[str, str] = {}
    if generator is not None:
        side = generator.cfg.resolution
        parts |= {"pictures": f"{side} x {side} px", "generator": _millions(generator)}
    if upsampler is not None:
        sides = f"{upsampler.cfg.input_resolution} to {upsampler.cfg.resolution} px"
        parts["upsampler"] = f"{_millions(upsampler)}, {sides}, {upsampler.cfg.factor} times"
    facts = (
        parts
        | {
            "text encoder": text_encoder.name,
            "software": f"open-gigagan {__version__}",
        }
        | {key: value for key, value in provenance.items() if isinstance(value, str | int | float)}
    )
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    use = (
        'pipe.upsample(Image.open("photo.jpg")).save("large.png")'
        if generator is None
        else 'pipe("a red apple", seeds=[0]).images[0].save("apple.png")'
    )
    return (
        f"---\n{_front_matter(generator is None, provenance)}---\n\n"
        f"# A GigaGAN {'upsampler' if generator is None else 'text-to-image model'}\n\n"
        f"| | |\n| --- | --- |\n{rows}\n\n"
        "```python\nfrom gigagan import Pipeline\n\n"
        f'pipe = Pipeline.from_pretrained("THIS_DIRECTORY")\n{use}\n```\n\n'
        "`model_index.json` holds the whole provenance and the SHA-256 of every file.\n"
    )


def shown_part(card: str) -> str:
    """A card without the lines that only the hub reads."""
    return re.sub(r"\A---\n.*?\n---\n\s*", "", card, flags=re.DOTALL)


def _front_matter(upsampler_alone: bool, provenance: Mapping[str, Any]) -> str:
    """What the hub reads: kind, library, and the licence where the provenance names one by its SPDX name."""
    kind = "image-to-image" if upsampler_alone else "text-to-image"
    licence = str(provenance.get("weights_licence", "")).split(",")[0].lower()
    named = f"license: {licence}\n" if re.fullmatch(r"[a-z0-9.-]+", licence) else ""
    return f"library_name: open-gigagan\npipeline_tag: {kind}\ntags: [gigagan, gan]\n{named}"


def _millions(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters"
