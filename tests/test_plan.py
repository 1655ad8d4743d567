"""`gigagan plan` and `gigagan doctor`: the memory model against tensors counted in real steps, and exact sums."""

import importlib.metadata
import json
import re
import weakref
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gigagan import config
from gigagan.cli.doctor import EXTRAS, doctor
from gigagan.cli.plan import plan as command
from gigagan.cost import measure
from gigagan.data.features import CaptionFeatures
from gigagan.data.loader import Batch
from gigagan.errors import ConfigError
from gigagan.models.frozen import HashedText
from gigagan.plan import DEVICES, memory_of, plan
from gigagan.training.micro_batches import micro_batches
from gigagan.training.state import TrainState, updating
from gigagan.training.steps import discriminator_step, generator_step

WITHOUT_VISION = ("loss.vision_weight=0", "loss.perceptual_weight=0", "loss.clip_weight=0")


class Peak(TorchDispatchMode):
    """The most bytes that tensors held at a time, each storage once, from those that were there before on."""

    def __init__(self, there: list[Tensor]) -> None:
        super().__init__()
        self.live = self.most = 0
        self.seen: Any = weakref.WeakKeyDictionary()
        for tensor in there:
            self._count(tensor)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.seen:
            self.seen[storage] = size = storage.nbytes()
            self.live += size
            self.most = max(self.most, self.live)
            weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return out


def peak_of_a_step(cfg: config.RunConfig, *, r1: bool) -> int:
    """Bytes, weights and all, of D's and G's half on one micro-batch, after a first step."""
    B, side = cfg.train.batch_gpu, cfg.generator.resolution
    state = TrainState(cfg, feature_dim=HashedText.feature_dim, device=torch.device("cpu"))
    features = CaptionFeatures(HashedText(max_tokens=cfg.text.max_tokens))
    img = torch.randint(0, 256, (B, 3, side, side), dtype=torch.uint8)
    text = " ".join(f"word{k}" for k in range(cfg.text.max_tokens))
    batch = Batch(img, [f"{k} {text}" for k in range(B)], [""] * B)

    def step() -> None:
        with updating(state.D, state.opt_D):
            for part in micro_batches(state, batch, features, B, phase=0):
                discriminator_step(state, part, share=1.0, r1=r1)
            state.opt_D.step()
            state.opt_D.zero_grad(set_to_none=True)
        with updating(state.G, state.opt_G):
            for part in micro_batches(state, batch, features, B, phase=1):
                generator_step(state, part, share=1.0)
            state.opt_G.step()
            state.opt_G.zero_grad(set_to_none=True)

    step()
    networks = [state.G, state.D, state.G_ema]
    there = [t for network in networks for t in network.state_dict().values()]
    there += [p.grad for network in networks for p in network.parameters() if p.grad is not None]
    there += [t for o in (state.opt_G, state.opt_D) for values in o.state.values() for t in values.values()]
    with Peak(there) as peak:
        step()
    return peak.most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "batch", "more"),
    [
        ("tiny", 16, ()),
        ("tiny", 4, ()),
        ("tiny", 16, ("loss.r1_gamma=0", "loss.match_weight_D=0", "loss.match_weight_G=0")),
        ("emoji64", 8, WITHOUT_VISION),
        ("ablation-04", 4, WITHOUT_VISION),
    ],
)
def test_memory_is_modeled_within_15_percent(preset: str, batch: int, more: tuple[str, ...]) -> None:
    hashed = ("text.encoder=hashed", "text.path=", "generator.channel_base=4096", "discriminator.channel_base=4096")
    overrides = (f"train.batch={batch}", f"train.batch_gpu={batch}", *hashed[: 4 if "ablation" in preset else 1], *more)
    cfg = config.load(preset, overrides)
    counted = peak_of_a_step(cfg, r1=cfg.loss.at(0).r1_gamma > 0)
    modeled = memory_of(cfg, measure(cfg), ranks=1).total
    print(f"{preset} {batch}: {modeled / counted - 1:+.1%}")
    assert modeled == pytest.approx(counted, rel=0.15)


def test_sums_are_those_of_the_parts() -> None:
    cfg = config.load("paper-t2i64")
    cost = measure(cfg)
    found = plan(cfg, gpus=128, gpu="h100", utilization=0.25, images=1e9, price=2.0, image_bytes=1e5)
    assert found.flops_an_image == cost.step.total
    rate = 128 * DEVICES["h100"].float32_tflops * 1e12 * 0.25 / cost.step.total
    assert found.images_a_second == pytest.approx(rate)
    assert found.days == pytest.approx(1e9 / rate / 86400)
    assert found.cost == pytest.approx(2 * 128 * 24 * found.days)
    assert found.data_bytes_a_second == pytest.approx(rate * 1e5)
    G, D = cost.generator.total.parameters, cost.discriminator.total.parameters
    ddp, fsdp = found.memory["ddp"], found.memory["fsdp"]
    assert (ddp.weights, ddp.gradients, ddp.optimizer) == (4 * (2 * G + D), 4 * max(G, D), 8 * (G + D))
    synthesis = sum(part.parameters for name, part in cost.generator.parts.items() if name.startswith("synthesis"))
    assert ddp.weights - fsdp.weights == pytest.approx(8 * synthesis * 127 / 128, abs=8)
    assert found.checkpoint_bytes == 4 * (2 * G + D) + 8 * (G + D)


def test_a_device_holds_no_more_than_its_share_of_the_batch() -> None:
    given: Any = {"gpu": "h100", "utilization": 0.25, "images": 1e9, "price": 2.0, "image_bytes": 1e5}
    cfg = config.load("paper-t2i64", ["train.batch=512", "train.batch_gpu=16", "loss.r1_gamma=0"])
    few, many = (plan(cfg, gpus=gpus, **given) for gpus in (32, 128))
    assert (few.at_once, many.at_once) == (16, 4)
    assert many.memory["ddp"].activations < 0.5 * few.memory["ddp"].activations
    with pytest.raises(ConfigError, match=r"train\.batch is 512, but there are 100 GPUs"):
        plan(cfg, gpus=100, **given)


def test_recomputation_trades_memory_for_work() -> None:
    given: Any = {"gpus": 8, "gpu": "h100", "utilization": 0.25, "images": 1e9, "price": 2.0, "image_bytes": 1e5}
    kept, again = (
        plan(config.load("paper-t2i64", ["loss.r1_gamma=0", f"train.recompute={recompute}"]), **given)
        for recompute in (False, True)
    )
    assert again.memory["ddp"].activations < 0.7 * kept.memory["ddp"].activations
    assert again.images_a_second < kept.images_a_second


def test_the_command_says_what_doesnt_fit() -> None:
    run = CliRunner().invoke(command, ["paper-t2i64", "--gpu", "rtx4090", "--gpus", "16"])
    assert run.exit_code == 0
    assert "does not fit" in run.output
    assert run.output.splitlines()[-1].split(None, 2)[2].startswith("the text encoder, the vision-aided")
    told = json.loads(CliRunner().invoke(command, ["tiny", "--json"]).output)
    assert told["fits"] == {"ddp": True, "fsdp": True}
    wrong = CliRunner().invoke(command, ["tiny", "--gpu", "abacus"])
    assert "known: h100" in str(wrong.exception)


def test_doctor_finds_what_is_here() -> None:
    run = CliRunner().invoke(doctor, ["--json"], standalone_mode=False)
    assert run.return_value == 0
    found = {one["what"]: one for one in json.loads(run.output)}
    assert found["torch"]["found"] == torch.__version__
    assert found["model emoji"]["fault"] == ""
    assert all("\n" not in one["found"] for one in found.values())


def test_doctor_cures(monkeypatch: pytest.MonkeyPatch) -> None:
    import gigagan.cli.doctor as module

    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    found = dict((what, (text, fault)) for what, text, fault in [*module._versions(), *module._extras()])
    assert found["torch"] == ("2.5.1; run: pip install 'torch>=2.6'", "fatal")
    assert found["extra train"] == ("without grain, tensorboard; run: pip install 'open-gigagan[train]'", "optional")


def test_doctor_knows_every_package_of_every_extra() -> None:
    """By the metadata of the package, with the names that packages have and modules don't."""
    modules = {"clean_fid": "cleanfid", "c2pa_python": "c2pa", "universal_pathlib": "upath"}
    extras: dict[str, set[str]] = {}
    for line in importlib.metadata.requires("open-gigagan") or ():
        found = re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?[^;]*; extra == '(\w+)'", line)
        if found and found[2] != "dev" and found[1] != "open-gigagan":
            name = found[1].replace("-", "_")
            extras.setdefault(found[2], set()).add(modules.get(name, name))
    extras["scale"] -= extras["data"] | extras["serve"]  # which it includes
    assert {extra: set(packages) for extra, packages in EXTRAS.items()} == extras


def test_only_what_can_be_sharded_is_planned_so() -> None:
    def rows(preset: str, gpus: int) -> set[str]:
        cfg = config.load(preset)
        return set(plan(cfg, gpus=gpus, gpu="h100", utilization=0.3, images=1, price=1, image_bytes=1).memory)

    assert rows("tiny", 2) == {"ddp", "fsdp"}
    assert rows("tiny", 1) == rows("tiny-up", 2) == {"ddp"}
