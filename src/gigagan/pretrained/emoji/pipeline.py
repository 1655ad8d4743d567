"""This model for diffusers: DiffusionPipeline.from_pretrained(dir, custom_pipeline=dir, trust_remote_code=True).

Needs `pip install open-gigagan diffusers`. gigagan reads the files beside this one, checked by their hashes; diffusers
gives its interface. What a diffusion model has and a GAN hasn't (steps, guidance) is refused, not ignored.
"""

from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin

from gigagan import Pipeline
from gigagan.errors import GigaGANError


class Source(ModelMixin):
    """The one component: diffusers tells a component its folder and dtype, and a pipeline neither."""

    def __init__(self, folder: str, arithmetic: torch.dtype | None) -> None:
        super().__init__()
        self.folder, self.arithmetic = folder, arithmetic

    @classmethod
    def from_pretrained(cls, folder: str, **said: Any) -> "Source":
        """Both, kept; the files are gigagan's to read."""
        return cls(folder, said.get("dtype", said.get("torch_dtype")))


class GigaGANPipeline(DiffusionPipeline):
    """Prompts to pictures in one pass: `pipe("a red apple", generator=torch.Generator().manual_seed(0)).images[0]`."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.register_modules(source=source)
        self.gigagan = Pipeline.from_pretrained(source.folder, dtype=source.arithmetic)
        """gigagan's own pipeline, with all that it can."""

    @classmethod
    def extract_init_dict(
        cls, config_dict: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """What diffusers shall load of model_index.json: none of its parts, which gigagan reads itself."""
        return {"source": (__name__, "Source")}, kwargs, {}

    @property
    def device(self) -> torch.device:
        return self.gigagan.device

    @property
    def dtype(self) -> torch.dtype:
        return self.gigagan.dtype

    def to(self, *args: Any, **kwargs: Any) -> "GigaGANPipeline":
        """To a device, a dtype (float32 or bfloat16), or both."""
        wanted = [*args, *kwargs.values()]
        dtype = next((one for one in wanted if isinstance(one, torch.dtype)), self.dtype)
        device = next((one for one in wanted if isinstance(one, str | torch.device)), self.device)
        self.gigagan = Pipeline.from_pretrained(self.source.folder, device=torch.device(device), dtype=dtype)
        return self

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write a model directory, which both libraries read."""
        self.gigagan.save_pretrained(save_directory, **kwargs)

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seeds: int | list[int] | None = None,
        num_images_per_prompt: int = 1,
        truncation_psi: float = 0.7,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """As gigagan.Pipeline: `seeds`, one a picture, or what draws them: a `generator`, or one a picture.

        `truncation_psi` in [0, 1]. Raises ValueError, in one line, for what can't be.
        """
        try:
            images = self.gigagan(
                prompt,
                generator=generator,
                seeds=seeds,
                num_images_per_prompt=num_images_per_prompt,
                truncation_psi=truncation_psi,
                output_type=output_type,
            ).images
        except GigaGANError as error:
            raise ValueError(str(error)) from None
        return ImagePipelineOutput(images=images) if return_dict else (images,)
