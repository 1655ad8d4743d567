"""This model for diffusers: DiffusionPipeline.from_pretrained(dir, custom_pipeline=dir, trust_remote_code=True).

Needs `pip install open-gigagan diffusers`. gigagan reads the files beside this one, checked by their hashes; diffusers
gives its interface. What a diffusion model has and a GAN hasn't (steps, guidance) is refused, not ignored.
"""

from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput

from gigagan import Pipeline


class GigaGANPipeline(DiffusionPipeline):
    """Prompts to pictures in one pass: `pipe("a red apple", generator=torch.Generator().manual_seed(0)).images[0]`."""

    # Of model_index.json, which diffusers hands over key by key; gigagan reads it itself, with the weights.
    def __init__(
        self,
        generator: Any = None,
        upsampler: Any = None,
        discriminator: Any = None,
        text_encoder: Any = None,
        format_version: Any = None,
        provenance: Any = None,
        sha256: Any = None,
    ) -> None:
        super().__init__()
        self.gigagan: Pipeline | None = None

    def register_to_config(self, **config: Any) -> None:
        """Load the model once diffusers says, by this call, where it is: a fault shows on loading, not on drawing."""
        super().register_to_config(**config)
        if "_name_or_path" in config:
            self.gigagan = Pipeline.from_pretrained(config["_name_or_path"])

    @property
    def loaded(self) -> Pipeline:
        """gigagan's own pipeline, with all that it can."""
        if self.gigagan is None:
            raise ValueError("nothing is loaded; use DiffusionPipeline.from_pretrained")
        return self.gigagan

    @property
    def device(self) -> torch.device:
        return self.loaded.device

    @property
    def dtype(self) -> torch.dtype:
        return self.loaded.dtype

    def to(self, *args: Any, **kwargs: Any) -> "GigaGANPipeline":
        """To a device, a dtype (float32 or bfloat16), or both."""
        wanted = [*args, *kwargs.values()]
        dtype = next((one for one in wanted if isinstance(one, torch.dtype)), self.dtype)
        device = next((one for one in wanted if isinstance(one, str | torch.device)), self.device)
        self.gigagan = Pipeline.from_pretrained(self.config["_name_or_path"], device=torch.device(device), dtype=dtype)
        return self

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write a model directory, which both libraries read."""
        self.loaded.save_pretrained(save_directory, **kwargs)

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        generator: torch.Generator | None = None,
        seeds: int | list[int] | None = None,
        num_images_per_prompt: int = 1,
        truncation_psi: float = 0.7,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """As gigagan.Pipeline: `seeds`, one a picture, or a `generator` to draw them from; psi in [0, 1]."""
        images = self.loaded(
            prompt,
            generator=generator,
            seeds=seeds,
            num_images_per_prompt=num_images_per_prompt,
            truncation_psi=truncation_psi,
            output_type=output_type,
        ).images
        return ImagePipelineOutput(images=images) if return_dict else (images,)
