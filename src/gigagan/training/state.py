"""All that a run carries from step to step: networks, running average, optimizers, images seen."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gigagan.config import OptimizerConfig, RunConfig, Weights
from gigagan.errors import CheckpointError
from gigagan.losses import ema_decay
from gigagan.models.discriminator import Discriminator
from gigagan.models.frozen import ImageNetwork
from gigagan.models.networks import build_generator
from gigagan.models.vision_aided import VisionAidedDiscriminator
from gigagan.training.contrast import Contrast


class TrainState:
    """G, D, V where the loss has it, G_ema, their optimizers and `nimg`, the real images seen: the clock of a run."""

    def __init__(
        self,
        cfg: RunConfig,
        *,
        feature_dim: int,
        device: torch.device,
        image_network: ImageNetwork | None = None,
        contrast: Contrast | None = None,
    ) -> None:
        """The frozen `image_network` is needed where a loss looks through it, `contrast` where loss.clip_weight > 0."""
        self.cfg = cfg
        self.device = device
        self.image_network = image_network
        self.contrast = contrast
        self.nimg = 0
        self.G = build_generator(cfg.generator, feature_dim=feature_dim).to(device)
        self.D = Discriminator(
            cfg.discriminator, resolution=cfg.judged_side, feature_dim=feature_dim, levels=cfg.generator.levels
        ).to(device)
        self.G_ema = build_generator(cfg.generator, feature_dim=feature_dim).to(device).requires_grad_(False).eval()
        self.G_ema.load_state_dict(self.G.state_dict())
        _freeze_stages(self.D, cfg.train.freeze_D)
        # Lazy regularization adds a D step in r1_interval; Adam's rate and memory shrink alike (StyleGAN2).
        lazy = cfg.loss.r1_interval / (cfg.loss.r1_interval + 1) if cfg.loss.r1_gamma else 1.0
        self.opt_G = build_optimizer(self.G, cfg.optim_G, lazy=1.0)
        self.opt_D = build_optimizer(self.D, cfg.optim_D, lazy=lazy)
        self.judges: list[tuple[nn.Module, torch.optim.AdamW]] = []
        """What learns in D's half of a step."""
        if cfg.loss.adv_weight:
            self.judges.append((self.D, self.opt_D))
        self.V: VisionAidedDiscriminator | None = None
        if cfg.loss.vision_weight:
            assert image_network is not None
            self.V = VisionAidedDiscriminator(cfg.vision, image_network, feature_dim=feature_dim).to(device)
            self.opt_V = build_optimizer(self.V, cfg.optim_D, lazy=1.0)
            self.judges.append((self.V, self.opt_V))
        # R1 stays uncompiled: what torch.compile makes has no second derivative. Each of the few lengths that captions
        # are padded to is compiled by itself: shapes left open fail in torch 2.13.
        self.synthesize: Callable[..., list[Tensor]] = (
            torch.compile(self.G.synthesize, dynamic=False) if cfg.train.compile else self.G.synthesize
        )
        """(w, condition, what an upsampler is given, dtype=) to a pyramid."""
        self.phi = torch.compile(self.D.phi, dynamic=False) if cfg.train.compile else self.D.phi
        self.G.requires_grad_(False)  # until `updating` says whose turn it is
        self.D.requires_grad_(False)
        if self.V is not None:
            self.V.requires_grad_(False)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.nimg // self.cfg.train.batch

    @property
    def weights(self) -> Weights:
        """Weights of the losses now."""
        return self.cfg.loss.at(self.nimg / 1000)

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of convolutions and attention."""
        return torch.bfloat16 if self.cfg.train.dtype == "bfloat16" else torch.float32

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move G_ema towards G; half-life cfg.train.ema_kimg, at first shorter: a twentieth of the run so far."""
        decay = ema_decay(self.cfg.train.batch, min(self.cfg.train.ema_kimg, (self.nimg + 1) / 20_000))
        ours: list[Tensor] = list(self.G_ema.parameters())
        theirs: list[Tensor] = list(self.G.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        for mine, other in zip(self.G_ema.buffers(), self.G.buffers(), strict=True):
            mine.copy_(other)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor of the run, by component; with `nimg` and the configuration it is the whole state."""
        tensors = {name: dict(network.state_dict()) for name, network in self._networks().items()}
        for name, (optimizer, network) in self._optimizers().items():
            tensors[name] = _optimizer_tensors(optimizer, network)
        return tensors

    def load_state_dict(self, tensors: dict[str, dict[str, Tensor]], nimg: int) -> None:
        """Take over a saved state. Raises CheckpointError when a tensor is missing or of another shape."""
        for name, network in self._networks().items():
            load_tensors(network, tensors.get(name, {}), what=name)
        for name, (optimizer, network) in self._optimizers().items():
            _load_optimizer(optimizer, network, tensors.get(name, {}))
        self.nimg = nimg

    def _networks(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module] = {"G": self.G, "D": self.D, "G_ema": self.G_ema}
        return networks if self.V is None else networks | {"V": self.V}

    def _optimizers(self) -> dict[str, tuple[torch.optim.AdamW, nn.Module]]:
        optimizers: dict[str, tuple[torch.optim.AdamW, nn.Module]] = {
            "opt_G": (self.opt_G, self.G),
            "opt_D": (self.opt_D, self.D),
        }
        return optimizers if self.V is None else optimizers | {"opt_V": (self.opt_V, self.V)}


def build_optimizer(network: nn.Module, cfg: OptimizerConfig, *, lazy: float) -> torch.optim.AdamW:
    """AdamW over a network's parameters in four groups: attention or not, learned text layers or not (paper 6)."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(("attention" in name, name.startswith("text.")), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": cfg.lr * lazy * (cfg.text_lr_multiplier if is_text else 1.0),
                "base_lr": cfg.lr * lazy * (cfg.text_lr_multiplier if is_text else 1.0),
                "weight_decay": cfg.attention_weight_decay if is_attention else cfg.weight_decay,
            }
            for (is_attention, is_text), parameters in groups.items()
        ],
        betas=(float(cfg.beta1**lazy) if cfg.beta1 else 0.0, float(cfg.beta2**lazy)),
        fused=True,
    )


@contextmanager
def updating(network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, only this network's parameters collect gradients."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        network.requires_grad_(False)


def load_tensors(network: nn.Module, tensors: dict[str, Tensor], *, what: str) -> None:
    """Load by name. Raises CheckpointError naming what is missing, unexpected or of another shape."""
    own = network.state_dict()
    faults = [f"{k}: missing" for k in own if k not in tensors]
    faults += [f"{k}: unexpected" for k in tensors if k not in own]
    faults += [
        f"{k}: {list(tensors[k].shape)} instead of {list(own[k].shape)}"
        for k in own
        if k in tensors and tensors[k].shape != own[k].shape
    ]
    if faults:
        raise CheckpointError(f"{what} doesn't fit this configuration: {'; '.join(faults[:5])}; train in a new run dir")
    network.load_state_dict(tensors)


def grow_from(network: nn.Module, tensors: dict[str, Tensor], *, what: str) -> int:
    """Start from a model of this family: tensors of equal name and shape are taken, the rest stay fresh.

    Returns how many of the network's tensors were taken. Raises CheckpointError when none fits.
    """
    own = network.state_dict()
    fitting = {k: v for k, v in tensors.items() if k in own and v.shape == own[k].shape}
    if not fitting:
        raise CheckpointError(f"{what}: none of its tensors fits this configuration; use the preset it was made with")
    network.load_state_dict({**own, **fitting})
    return len(fitting)


def _freeze_stages(D: Discriminator, count: int) -> None:
    for stage in list(D.stages.values())[:count]:
        stage.requires_grad_(False)


def _optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    names = {id(p): name for name, p in network.named_parameters()}
    flat: dict[str, Tensor] = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            flat[f"{names[id(parameter)]}/{key}"] = torch.as_tensor(value)
    return flat


def _load_optimizer(optimizer: torch.optim.Optimizer, network: nn.Module, tensors: dict[str, Tensor]) -> None:
    parameters = dict(network.named_parameters())
    state: dict[Any, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        if name not in parameters:
            raise CheckpointError(f"optimizer state of {name}: this configuration has no such parameter")
        state.setdefault(parameters[name], {})[slot] = value.to(parameters[name].device)
    optimizer.state.clear()
    optimizer.state.update(state)
