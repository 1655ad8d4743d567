"""All that a run carries from step to step: networks, running average, optimizers, images seen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gigagan import dist
from gigagan.config import LossConfig, OptimizerConfig, RunConfig, TrainConfig, Weights, value_at
from gigagan.errors import CheckpointError, ConfigError
from gigagan.losses import ema_decay
from gigagan.models.discriminator import Discriminator
from gigagan.models.frozen import ImageNetwork
from gigagan.models.generator import Generator
from gigagan.models.networks import build_generator
from gigagan.models.upsampler import Upsampler
from gigagan.models.vision_aided import VisionAidedDiscriminator
from gigagan.training.contrast import Contrast
from gigagan.training.sharding import is_sharded, like, local, recompute, shard, whole


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
        self.passed_over = 0
        """Images of the training order left out for good, where losses weren't finite (`guard`)."""
        self.rollbacks: list[float] = []
        """Where the run went back lately, in kimg (`guard`)."""
        self.data = ""
        """Fingerprint of the set that it learns from."""
        self.frozen: dict[str, list[float]] = {}
        """What its frozen networks say of a fixed input (`probes`)."""
        self.notice = ""
        """Credits of the model that it began from."""
        self.taught = False
        """Whether M has learned by itself that z tells styles, and is held (`distill_mapping`)."""
        self.rate = 1.0
        """Factor on every learning rate; halved once where losses weren't finite (`guard`)."""
        self.G = build_generator(cfg.generator, feature_dim=feature_dim).to(device)
        self.D = Discriminator(
            cfg.discriminator, resolution=cfg.judged_side, feature_dim=feature_dim, levels=cfg.generator.levels
        ).to(device)
        self.G_ema = build_generator(cfg.generator, feature_dim=feature_dim).to(device).requires_grad_(False).eval()
        self.G_ema.load_state_dict(self.G.state_dict())
        _save_memory(cfg.train, [self.G, self.G_ema], self.D, device)
        _freeze_stages(self.D, cfg.train.freeze_D)
        self.opt_G = build_optimizer(self.G, cfg.optim_G, lazy=1.0)
        self.opt_D = build_optimizer(self.D, cfg.optim_D, lazy=_lazy(cfg.loss))
        self.judges: list[tuple[nn.Module, torch.optim.AdamW]] = [(self.D, self.opt_D)] if cfg.loss.adv_weight else []
        """What learns in D's half of a step, at some time of the run."""
        self.V: VisionAidedDiscriminator | None = None
        if cfg.loss.vision_weight:
            assert image_network is not None
            self.V = VisionAidedDiscriminator(cfg.vision, image_network, feature_dim=feature_dim).to(device)
            self.opt_V = build_optimizer(self.V, cfg.optim_D, lazy=1.0)
            self.judges.append((self.V, self.opt_V))
            self.V.requires_grad_(False)
        # R1 stays uncompiled: what torch.compile makes has no second derivative. Each of the few lengths that captions
        # are padded to is compiled by itself: shapes left open fail in torch 2.13.
        self.synthesize: Callable[..., list[Tensor]] = (
            torch.compile(self.G.synthesize, dynamic=False) if cfg.train.compile else self.G.synthesize
        )
        """(w, condition, what an upsampler is given, dtype=) to a pyramid."""
        self.phi = torch.compile(self.D.phi, dynamic=False) if cfg.train.compile else self.D.phi
        self.mean_style = torch.zeros(cfg.generator.w_dim, device=device)
        """Mean style of the step in hand, summed up over micro-batches and ranks."""
        if not cfg.train.shard_G:  # gathered weights keep what they were gathered with
            self.G.requires_grad_(False)  # until `updating` says whose turn it is
        self.D.requires_grad_(False)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.nimg // self.cfg.train.batch

    @property
    def place(self) -> int:
        """Place in the endless training order: what a step is shown and draws is a function of the seed and this."""
        return self.nimg + self.passed_over

    @property
    def weights(self) -> Weights:
        """Weights of the losses now."""
        return self.cfg.loss.at(self.nimg / 1000)

    @property
    def judging(self) -> list[tuple[nn.Module, torch.optim.AdamW]]:
        """The judges that learn now: D rests while its weight is 0."""
        return [judge for judge in self.judges if judge[0] is not self.D or self.weights.adv]

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of convolutions and attention."""
        return torch.bfloat16 if self.cfg.train.dtype == "bfloat16" else torch.float32

    @torch.no_grad()
    def update_ema(self) -> bool:
        """Move G_ema towards G; half-life cfg.train.ema_kimg, at first shorter: a twentieth of the run so far.

        Returns whether G's weights are finite; where they aren't, G_ema stays as it is.
        """
        if not all_finite([*self.G.parameters(), *self.G.buffers()]):
            return False
        # Deviation: a half-life in images, whatever the batch, and a twentieth of the run at most.
        decay = ema_decay(self.cfg.train.batch, min(self.cfg.train.ema_kimg, (self.nimg + 1) / 20_000))
        ours, theirs = local(list(self.G_ema.parameters())), local(list(self.G.parameters()))
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        for mine, other in zip(self.G_ema.buffers(), self.G.buffers(), strict=True):
            mine.copy_(other)
        return True

    def average(self) -> Generator | Upsampler:
        """G_ema, gathered where it is sharded; every rank must ask for it."""
        if not self.cfg.train.shard_G:
            return self.G_ema
        with torch.device("meta"):
            gathered = build_generator(self.cfg.generator, feature_dim=self.G_ema.feature_dim)
        tensors = {name: whole(value).to(self.device) for name, value in self.G_ema.state_dict().items()}
        gathered.load_state_dict(tensors, assign=True)
        return gathered.requires_grad_(False).eval()

    def numbers(self) -> dict[str, Any]:
        """What besides `nimg`, the tensors and the configuration is the state."""
        names = ("passed_over", "rate", "rollbacks", "data", "frozen", "notice", "taught")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor of the run, by component; with `nimg`, `numbers` and the configuration it is the whole state."""
        tensors = {
            name: {key: whole(value) for key, value in network.state_dict().items()}
            for name, network in self._networks().items()
        }
        for name, (optimizer, network) in self._optimizers().items():
            tensors[name] = _optimizer_tensors(optimizer, network)
        return tensors

    def load_state_dict(
        self, tensors: dict[str, dict[str, Tensor]], nimg: int, numbers: Mapping[str, Any] | None = None
    ) -> None:
        """Take over a saved state. Raises CheckpointError when a tensor is missing or of another shape."""
        for name, network in self._networks().items():
            load_tensors(network, tensors.get(name, {}), what=name)
        for name, (optimizer, network) in self._optimizers().items():
            _load_optimizer(optimizer, network, tensors.get(name, {}))
        self.nimg = nimg
        self.passed_over = int((numbers or {}).get("passed_over", 0))
        self.rate = float((numbers or {}).get("rate", 1.0))
        self.rollbacks = [float(kimg) for kimg in (numbers or {}).get("rollbacks", ())]
        self.notice = str((numbers or {}).get("notice", ""))
        self.taught = bool((numbers or {}).get("taught", False))

    def _networks(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module] = {"G": self.G, "D": self.D, "G_ema": self.G_ema}
        return networks if self.V is None else networks | {"V": self.V}

    def _optimizers(self) -> dict[str, tuple[torch.optim.AdamW, nn.Module]]:
        optimizers: dict[str, tuple[torch.optim.AdamW, nn.Module]] = {
            "opt_G": (self.opt_G, self.G),
            "opt_D": (self.opt_D, self.D),
        }
        return optimizers if self.V is None else optimizers | {"opt_V": (self.opt_V, self.V)}


def _save_memory(
    cfg: TrainConfig, generators: Sequence[Generator | Upsampler], D: Discriminator, device: torch.device
) -> None:
    """Shard G and its average, compute activations again, as the configuration says."""
    if cfg.shard_G:
        if dist.world_size() == 1:
            raise ConfigError("train.shard_G needs several processes, but there is one; set it to false")
        for network in generators:
            if isinstance(network, Upsampler):
                raise ConfigError("train.shard_G is for base models, but this is an upsampler; set it to false")
            shard(network, device)
    if cfg.recompute:
        recompute(generators[0], D)


def _lazy(loss: LossConfig) -> float:
    # Deviation: D's rate and betas are scaled as for an R1 step of its own (StyleGAN2), though R1 shares D's step.
    return loss.r1_interval / (loss.r1_interval + 1) if loss.r1_gamma else 1.0


def build_optimizer(network: nn.Module, cfg: OptimizerConfig, *, lazy: float) -> torch.optim.AdamW:
    """AdamW over a network's parameters in groups: attention or not, learned text layers or not (paper 6).

    M's, and sharded ones, have groups of their own.
    """
    groups: dict[tuple[bool, bool, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            is_mapping = name.startswith("mapping.")
            # Unstated: which weights are attention's; its stacks with norms and MLPs, in T the attention alone.
            kind = ("attention" in name, name.startswith("text."), is_mapping, is_sharded(parameter))
            groups.setdefault(kind, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": value_at(cfg.lr, 0.0) * lazy * (cfg.text_lr_multiplier if is_text else 1.0),
                "factor": lazy * (cfg.text_lr_multiplier if is_text else 1.0),
                "mapping": is_mapping,
                "weight_decay": cfg.attention_weight_decay if is_attention else cfg.weight_decay,
            }
            for (is_attention, is_text, is_mapping, _), parameters in groups.items()
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
        if not any(is_sharded(parameter) for parameter in trained):
            network.requires_grad_(False)


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every number is finite, on every rank, told from the lengths of the tensors."""
    broken = (~torch.stack(torch._foreach_norm(local(tensors))).isfinite()).sum()
    dist.add_up([broken])  # shards differ, and where weights don't, one rank's memory may fail: all must decide alike
    return not bool(broken)


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
    network.load_state_dict({name: like(value, own[name]) for name, value in tensors.items()})


def grow_from(network: nn.Module, tensors: dict[str, Tensor], *, what: str) -> int:
    """Start from a model of this family: tensors of equal name and shape are taken, the rest stay fresh.

    Returns how many of the network's tensors were taken. Raises CheckpointError when none fits.
    """
    own = network.state_dict()
    fitting = {k: v for k, v in tensors.items() if k in own and v.shape == own[k].shape}
    if not fitting:
        raise CheckpointError(f"{what}: none of its tensors fits this configuration; use the preset it was made with")
    network.load_state_dict({**own, **{name: like(value, own[name]) for name, value in fitting.items()}})
    return len(fitting)


def _freeze_stages(D: Discriminator, count: int) -> None:
    for stage in list(D.stages.values())[:count]:
        stage.requires_grad_(False)


def _optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    names = {id(p): name for name, p in network.named_parameters()}
    flat: dict[str, Tensor] = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            flat[f"{names[id(parameter)]}/{key}"] = whole(torch.as_tensor(value))
    return flat


def _load_optimizer(optimizer: torch.optim.Optimizer, network: nn.Module, tensors: dict[str, Tensor]) -> None:
    parameters = dict(network.named_parameters())
    state: dict[Any, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        if name not in parameters:
            raise CheckpointError(f"optimizer state of {name}: this configuration has no such parameter")
        own = parameters[name]
        state.setdefault(own, {})[slot] = like(value, own) if value.shape == own.shape else value.to(own.device)
    optimizer.state.clear()
    optimizer.state.update(state)
