"""The peers' side of each row, each peer behind one function, at the settings that serve it best.

All of them have random weights: their own are on hubs, and time doesn't depend on them. Nothing is downloaded.
"""

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from cases import Case, Part, counted_flops, trainable
from torch import Tensor, nn

CLIP_DIM = 512  # ViT-B/32's text tower, gigagan-pytorch's default
CLIP_TOKENS = 77
AURA_BATCH = 8
"""aura-sr's max_batch_size."""
PROMPT_TOKENS = 16
"""Real tokens of a caption where random features stand for CLIP's; our side gets as many."""

# gigagan-pytorch: the two configurations of the study (6.7 M + 4.9 M, and 76.7 M). `text` is T's (and w's) width.
SMALL = {"capacity": 8, "most": 256, "latent": 256, "text": 128, "text_depth": 2, "kernels": 2, "head": 32}
BASE = {"capacity": 32, "most": 512, "latent": 512, "text": 512, "text_depth": 4, "kernels": 4, "head": 64}
ATTENTION = {"small": (16, 8), "base": (32, 16)}


def looked_up(dim: int, embed: Callable[[list[str]], Tensor]) -> Any:
    """The text adapter that gigagan-pytorch insists on, without a network: `embed` gives features [B, T, dim].

    It has no cache of caption features of its own. A token of zeros counts as none.
    """
    from gigagan_pytorch.open_clip import OpenClipAdapter

    class LookedUp(OpenClipAdapter):
        def __init__(self) -> None:
            nn.Module.__init__(self)  # not the adapter's, which builds a CLIP and loads its weights
            self._dim_latent = dim

        def embed_texts(self, texts: list[str]) -> tuple[Tensor, Tensor]:
            tokens = embed(texts)
            return tokens[:, 0], tokens

    return LookedUp()


def _cached_clip() -> Any:
    """CLIP whose features were computed before: a fixed random [B, 16, 512], what a cache of caption features gives."""
    kept: dict[int, Tensor] = {}

    def embed(texts: list[str]) -> Tensor:
        count = len(texts)
        if count not in kept:
            kept[count] = torch.randn(count, PROMPT_TOKENS, CLIP_DIM)
        return kept[count]

    return looked_up(CLIP_DIM, embed)


def _gigagan_generator(size: str, text_encoder: Any) -> Any:
    from gigagan_pytorch import Generator

    c = SMALL if size == "small" else BASE
    return Generator(
        image_size=64,
        dim_capacity=c["capacity"],
        dim_max=c["most"],
        dim_latent=c["latent"],
        style_network={"dim": c["text"], "depth": 4, "dim_text_latent": c["text"]},
        text_encoder=text_encoder,
        self_attn_resolutions=ATTENTION[size],
        cross_attn_resolutions=ATTENTION[size],
        self_attn_dim_head=c["head"],
        cross_attn_dim_head=c["head"],
        num_conv_kernels=c["kernels"],
    )


def gigagan_forward(size: str, batch: int, arithmetic: str) -> Case:
    """gigagan-pytorch's generator with the text encoded before.

    bfloat16 is autocast: its weights can't be converted, since its noise layers are float32 whatever they are given.
    channels-last isn't offered: its kernels are built anew for each sample, so there is no weight to lay out.
    """
    from gigagan_pytorch import TextEncoder

    c = SMALL if size == "small" else BASE
    encoder = TextEncoder(dim=c["text"], depth=c["text_depth"], clip=_cached_clip())
    network = _gigagan_generator(size, encoder).eval()
    parameters = {"G": trainable(network)}
    network.requires_grad_(False)
    tokens = {
        "noise": torch.randn(batch, c["text"]),
        "global_text_tokens": torch.randn(batch, c["text"]),
        "fine_text_tokens": torch.randn(batch, CLIP_TOKENS, c["text"]),
        "text_mask": torch.ones(batch, CLIP_TOKENS, dtype=torch.bool),
    }
    return Case({"forward": Part(_drawing(lambda: network(**tokens), arithmetic))}, batch, parameters)


def gigagan_small(clip: Any) -> Any:
    """gigagan-pytorch's G, D and their training on its small configuration; `clip` is an `OpenClipAdapter`.

    Its core losses: hinge, multi-scale, reconstruction, penalty. Its CLIP loss needs weights that only a hub has. Its
    matching loss is off, which serves it: it rotates the captions and then reads those that it had before, so that own
    captions count as wrong ones.
    """
    from gigagan_pytorch import Discriminator, GigaGAN, TextEncoder

    c = SMALL

    def encoder() -> Any:
        return TextEncoder(dim=c["text"], depth=c["text_depth"], clip=clip)

    discriminator = Discriminator(
        image_size=64,
        dim_capacity=c["capacity"],
        dim_max=c["most"],
        attn_resolutions=ATTENTION["small"],
        attn_dim_head=c["head"],
        multiscale_input_resolutions=(32, 16),
        num_conv_kernels=c["kernels"],
        text_encoder=encoder(),
    )
    folder = tempfile.mkdtemp()  # it makes its folders when built
    return GigaGAN(
        generator=_gigagan_generator("small", encoder()),
        discriminator=discriminator,
        generator_contrastive_loss_weight=0.0,
        matching_awareness_loss_weight=0.0,
        accelerate_kwargs={"cpu": True},
        model_folder=f"{folder}/models",
        results_folder=f"{folder}/results",
    )


def gigagan_training(batch: int, cached_text: bool) -> Case:
    """gigagan-pytorch's own D and G steps on its small configuration, with its penalty every fourth D step.

    Neither side of the rows has the matching and the CLIP loss; both would cost it more. float32: its bfloat16 is
    slower here.
    Without `cached_text` it runs its CLIP, ViT-B/32, on every caption of every pass, as it comes; one CLIP is shared by
    G and D, which it does not do by itself.
    """
    from gigagan_pytorch.open_clip import OpenClipAdapter

    gan = gigagan_small(_cached_clip() if cached_text else OpenClipAdapter(pretrained=None))  # None: random weights
    captions = [f"a flat color picture of a red apple and {i} stars" for i in range(batch)]
    pictures = torch.rand(batch, 3, 64, 64)

    def data() -> Iterator[tuple[Tensor, list[str]]]:
        while True:
            yield pictures.clone(), captions  # a copy, since it asks for gradients of what it is given

    stream = data()
    parts = {
        "D": Part(lambda: gan.train_discriminator_step(dl_iter=stream), 3 / 4),
        "D with penalty": Part(
            lambda: gan.train_discriminator_step(dl_iter=stream, apply_gradient_penalty=True), 1 / 4
        ),
        "G": Part(lambda: gan.train_generator_step(batch_size=batch, dl_iter=stream)),
    }
    return Case(parts, batch, {"G": trainable(gan.G), "D": trainable(gan.D)})


def aura_tiles(arithmetic: str, count: int) -> Case:
    """aura-sr: tiles of 64 px to 256 px, with the configuration that its weights are published for (617.6 M).

    Eight at once, as its own class does it; its blending of overlapping tiles is left out, which serves it.

    Its five-dimensional banks of filters can't be brought to channels-last memory.
    """
    from aura_sr import UnetUpsampler

    network = UnetUpsampler(
        style_network={"dim_in": 128, "dim_text_latent": 0, "depth": 4},
        dim=64,
        image_size=256,
        input_image_size=64,
        unconditional=True,
    ).eval()
    parameters = {"upsampler": trainable(network)}
    network.requires_grad_(False)
    at_once = min(count, AURA_BATCH)
    tiles, noise = torch.rand(at_once, 3, 64, 64), torch.randn(at_once, 128)

    def run() -> None:
        for _ in range(count // at_once):
            network(lowres_image=tiles, noise=noise)

    return Case({"tiles": Part(_drawing(run, arithmetic))}, count, parameters)


class OneStep(nn.Module):
    """A one-step diffusion model from noise and text features to 512 px: U-Net, then the tiny decoder (TAESD).

    Its text encoder is left out, which serves it: 0.2 s and more on top.
    """

    def __init__(self, size: str) -> None:
        super().__init__()
        from diffusers import AutoencoderTiny, UNet2DConditionModel

        if size == "sdxs":  # the layout of BK-SDM-tiny, 323 M
            layout: dict[str, Any] = {
                "block_out_channels": (320, 640, 1280),
                "down_block_types": ("CrossAttnDownBlock2D",) * 3,
                "mid_block_type": None,
                "up_block_types": ("CrossAttnUpBlock2D",) * 3,
                "layers_per_block": 1,
                "cross_attention_dim": 768,
            }
        else:  # SD-Turbo, 866 M
            layout = {
                "block_out_channels": (320, 640, 1280, 1280),
                "attention_head_dim": (5, 10, 20, 20),
                "use_linear_projection": True,
                "cross_attention_dim": 1024,
            }
        self.text_dim: int = layout["cross_attention_dim"]
        self.unet = UNet2DConditionModel(sample_size=64, **layout)
        self.decoder = AutoencoderTiny().decoder  # its encoder isn't needed

    def forward(self, noise: Tensor, text: Tensor) -> Tensor:
        predicted: Tensor = self.unet(noise, 999, encoder_hidden_states=text, return_dict=False)[0]
        picture: Tensor = self.decoder(noise - predicted)
        return picture

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Noise and text features of one picture."""
        return torch.randn(1, 4, 64, 64), torch.randn(1, CLIP_TOKENS, self.text_dim)


def diffusion(size: str, arithmetic: str) -> Case:
    """diffusers: one step at 512 px. bfloat16 is with weights converted and channels-last."""
    network = OneStep(size).eval()
    parameters = {"unet and decoder": trainable(network)}
    network.requires_grad_(False)
    dtype = torch.bfloat16 if arithmetic == "channels_last" else torch.float32
    network = network.to(dtype, memory_format=torch.channels_last)
    inputs = [tensor.to(dtype) for tensor in network.inputs()]
    return Case({"picture": Part(_drawing(lambda: network(*inputs), "float32"))}, 1, parameters)


def diffusion_openvino(size: str, precision: str) -> Case:
    """The same network in OpenVINO, the rivals' best runtime on a processor; `precision`: f32 or bf16."""
    import openvino as ov

    network = OneStep(size).eval().requires_grad_(False)
    inputs = network.inputs()
    with torch.no_grad():
        flops = counted_flops(Case({"picture": Part(lambda: network(*inputs))}))
        model = ov.convert_model(network, example_input=inputs, input=[list(tensor.shape) for tensor in inputs])
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = ov.compile_model(model, "CPU", options)
    arrays = [tensor.numpy() for tensor in inputs]
    parameters = sum(p.numel() for p in network.parameters())
    del model
    return Case({"picture": Part(lambda: compiled(arrays))}, 1, {"unet and decoder": parameters}, flops=flops)


def _drawing(run: Callable[[], Any], arithmetic: str) -> Callable[[], Any]:
    """`run` without gradients, under autocast where asked."""

    def drawing() -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=arithmetic == "autocast"):
            return run()

    return drawing
