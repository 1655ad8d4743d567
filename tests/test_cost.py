"""The cost model counts what torch counts where one form is all there is, and what the steps really do."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from gigagan import cli, config, cost
from gigagan.config import RunConfig
from gigagan.models import attention
from gigagan.models.adaptive_conv import AdaptiveConv
from gigagan.models.attention import L2Attention
from gigagan.models.frozen import HashedText, TextFeatures
from gigagan.models.layers import EqualConv, EqualLinear
from gigagan.training import steps
from gigagan.training.micro_batches import MicroBatch
from gigagan.training.state import TrainState, updating
from tests.half_steps import micro_batch

GOLDEN = Path(__file__).parent / "golden" / "cost.json"
CPU = torch.device("cpu")
B, T = 4, 16


@pytest.fixture(scope="module")
def cfg() -> RunConfig:
    """One filter in each bank; heads as wide as in use, for the count leaves out two channels a head of the form."""
    return config.load(
        "tiny",
        [
            "generator.num_filters=[1,1,1]",
            "generator.channel_base=1024",
            "generator.channel_max=64",
            "generator.attention.head_dim=64",
            "discriminator.attention.head_dim=64",
            "discriminator.channel_base=1024",
            "discriminator.channel_max=64",
            "discriminator.head_channel_max=32",
            f"train.batch={B}",
            f"train.batch_gpu={B}",
            "loss.r1_interval=4",
            "loss.r1_share=0.5",
        ],
    )


@pytest.fixture(scope="module")
def state(cfg: RunConfig) -> TrainState:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TrainState(cfg, feature_dim=HashedText.feature_dim, device=CPU)


@pytest.fixture
def micro(cfg: RunConfig) -> MicroBatch:
    return micro_batch(cfg, ["one red", "two green", "three blue", "four gray"])


def counted(run: Callable[[], Any]) -> int:
    """What torch counts; under the math backend, since it counts nothing in the CPU's fused attention."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


class Products(TorchDispatchMode):
    """torch's own formulas, without its tracking of modules, which can't follow autograd.grad."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def counted_in_steps(run: Callable[[], Any]) -> int:
    with Products() as products, sdpa_kernel(SDPBackend.MATH):
        run()
    return products.flops


def ours(network: nn.Module, run: Callable[[], Any]) -> int:
    wrapped = nn.ModuleDict({"layer": network})
    with cost._Probe(wrapped).attached() as probe:
        run()
    return sum(product.flops for product in probe.products)


def test_each_preset_costs_what_it_did(golden: Callable[[Path, str], None]) -> None:
    presets = {}
    for preset in config.preset_names():
        tree = cost.measure(config.load(preset)).to_dict()
        for network in (tree["generator"], tree["discriminator"]):
            del network["activation_bytes"], network["activation_bytes_by_part"]  # these depend on form and torch
        presets[preset] = tree
    golden(GOLDEN, json.dumps(presets, indent=2) + "\n")


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (EqualLinear(5, 7), [(3, 5)]),
        (EqualLinear(5, 7, activation=True), [(3, 4, 5)]),
        (EqualConv(5, 7, kernel=3, activation=True), [(2, 5, 8, 8)]),
        (EqualConv(5, 7, kernel=3, down=True), [(2, 5, 8, 8)]),
        (EqualConv(5, 7, kernel=1, bias=False), [(2, 5, 8, 4)]),
        (AdaptiveConv(5, 7, style_dim=6, demodulate=False), [(2, 5, 8, 8), (2, 6)]),
        (AdaptiveConv(5, 7, style_dim=6, demodulate=False, up=True), [(2, 5, 8, 8), (2, 6)]),
        (AdaptiveConv(5, 7, style_dim=6, kernel=1), [(2, 5, 8, 8), (2, 6)]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_layer_of_one_form_costs_what_torch_counts(layer: nn.Module, inputs: list[tuple[int, ...]]) -> None:
    tensors = [torch.randn(shape) for shape in inputs]
    assert ours(layer, lambda: layer(*tensors)) == counted(lambda: layer(*tensors))


@pytest.mark.parametrize("tied", [True, False])
def test_attention_costs_its_products_without_the_two_channels_of_the_form(
    tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "UNFUSED_KEYS_FLOAT32", 0)
    Q, K, inner_dim, num_heads = 9, 6, 8, 2
    layer = L2Attention(8, 8, inner_dim=inner_dim, num_heads=num_heads, tied=tied).eval()
    x, context = torch.randn(3, Q, 8), torch.randn(3, K, 8)
    form = 4 * 3 * Q * K * 2 * num_heads
    assert ours(layer, lambda: layer(x, context)) == counted(lambda: layer(x, context)) - form


@pytest.mark.parametrize("training", [True, False])
def test_a_bank_is_mixed_once_a_sample_and_convolved_once(training: bool) -> None:
    N, I, O, S = 3, 5, 7, 6
    layer = AdaptiveConv(I, O, style_dim=S, num_filters=N).train(training)
    x, w = torch.randn(2, I, 8, 8), torch.randn(2, S)
    style, mix, convolution = S * I + S * N, N * O * I * 9, O * I * 9 * 8 * 8
    assert ours(layer, lambda: layer(x, w)) == 2 * 2 * (style + mix + convolution)


def test_the_networks_cost_what_torch_counts(cfg: RunConfig, state: TrainState, micro: MicroBatch) -> None:
    """But for demodulation and two channels a head, which are less than a fortieth."""
    cost_ = cost.measure(cfg)
    pyramid = state.G(micro.z, micro.features)
    G = counted(lambda: state.G(micro.z, micro.features)) / B
    D = counted(lambda: state.D(pyramid, micro.features)) / B
    assert cost_.generator.total.flops <= G <= 1.025 * cost_.generator.total.flops
    assert cost_.discriminator.total.flops <= D <= 1.025 * cost_.discriminator.total.flops


@pytest.mark.parametrize("match", [0.0, 1.0])
def test_a_step_costs_what_torch_counts(cfg: RunConfig, state: TrainState, micro: MicroBatch, match: float) -> None:
    loss = cfg.loss.model_copy(update={"match_weight_D": match, "match_weight_G": match})
    cfg = state.cfg = cfg.model_copy(update={"loss": loss})
    step = cost.measure(cfg).step

    with updating(state.D, state.opt_D):
        plain = counted_in_steps(lambda: steps.discriminator_step(state, micro, share=1.0, r1=False)) / B
        lazy = counted_in_steps(lambda: steps.discriminator_step(state, micro, share=1.0, r1=True)) / B
    with updating(state.G, state.opt_G):
        generator = counted_in_steps(lambda: steps.generator_step(state, micro, share=1.0)) / B
    assert step.discriminator == pytest.approx(plain, rel=0.01)
    assert step.generator == pytest.approx(generator, rel=0.01)
    assert step.r1 == pytest.approx((lazy - plain) / cfg.loss.r1_interval, rel=0.05)


def test_frozen_stages_save_their_gradients(cfg: RunConfig) -> None:
    train = cfg.train.model_copy(update={"freeze_D": 1})
    frozen, free = cost.measure(cfg.model_copy(update={"train": train})), cost.measure(cfg)
    stage = free.discriminator.parts["stages.16x16"].flops
    entry = 2 * 16 * 16 * 3 * cfg.discriminator.channels(16)  # the pictures need no gradient either way
    assert free.step.discriminator - frozen.step.discriminator == 2 * (2 * stage - entry)
    assert free.step.generator == frozen.step.generator


def test_parameters_are_those_that_train(cfg: RunConfig, state: TrainState) -> None:
    found = cost.measure(cfg)
    assert found.generator.total.parameters == sum(p.numel() for p in state.G.parameters())
    assert found.discriminator.total.parameters == sum(p.numel() for p in state.D.parameters())
    level = state.G.synthesis.levels["8x8"]
    assert found.generator.parts["synthesis.8x8"].parameters == sum(p.numel() for p in level.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("num_filters", ["[1,1,1]", "[3,2,1]"])
def test_activations_are_what_autograd_keeps(cfg: RunConfig, dtype: str, num_filters: str) -> None:
    """Against real tensors under the CPU's fused attention: what a second picture adds."""
    cfg = config.from_dict(
        cfg.model_dump()
        | {"train": cfg.train.model_dump() | {"dtype": dtype}}
        | {"generator": cfg.generator.model_dump() | {"num_filters": json.loads(num_filters)}}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = TrainState(cfg, feature_dim=HashedText.feature_dim, device=CPU)

    def kept(network: nn.Module, batch: int) -> int:
        storages: dict[int, Tensor] = {}

        def save(tensor: Tensor) -> Tensor:
            storages.setdefault(tensor.untyped_storage().data_ptr(), tensor)
            return tensor

        tokens = torch.randn(batch, T, HashedText.feature_dim)
        features = TextFeatures(tokens, torch.ones(batch, T, dtype=torch.bool), torch.zeros(batch, dtype=torch.long))
        first: Any = torch.randn(batch, cfg.generator.z_dim)
        if network is state.D:
            first = [torch.randn(batch, 3, side, side) for side in (16, 8, 4)]
        network.requires_grad_(True)
        with saved_tensors_hooks(save, lambda tensor: tensor):
            out = network(first, features, dtype=state.dtype)
        assert out
        return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

    found = cost.measure(cfg)
    for network, part in ((state.G, found.generator), (state.D, found.discriminator)):
        added = kept(network, 3) - kept(network, 2)
        assert part.total.activation_bytes == pytest.approx(added, rel=0.05)


def test_the_papers_networks_are_counted_without_being_allocated() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = cost.measure(config.from_dict({"text": {"encoder": "clip", "max_tokens": 77}}))
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert found.generator.total.parameters + found.discriminator.total.parameters > 900e6
    assert grown_kib < 400 * 1024  # the weights alone are ten times that


def test_the_width_of_an_encoder_elsewhere_is_read_from_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip", "text_config": {"hidden_size": 512}}')
    tree = {"text": {"encoder": "clip", "path": str(tmp_path), "max_tokens": 77}}
    assert cost._feature_dim(config.from_dict(tree).text) == 512
    package = Path(cost.__file__).parent / "pretrained" / "emoji" / "text_encoder" / "config.json"
    assert cost._feature_dim(config.load("emoji64").text) == json.loads(package.read_text())["hidden_size"]


def test_json_has_what_the_table_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["info", "tiny", "generator.w_dim=48", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert cli.run(["info", "tiny", "generator.w_dim=48"]) == 0
    table = capsys.readouterr().out
    for name in ("generator", "discriminator"):
        network = tree[name]
        by_part = dict(network["parameters"])
        assert by_part.pop("total") == sum(by_part.values())
        assert network["flops"] == sum(network["flops_by_part"].values())
        assert network["activation_bytes"] == sum(network["activation_bytes_by_part"].values())
        for number in network["parameters"].values():
            assert f" {number:,} " in table
    step = tree["step"]
    assert step["flops"] == step["discriminator"] + step["generator"] + step["r1"]


def test_a_preset_that_isnt_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["info", "emoji65", "--json"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err == "gigagan: emoji65: no such preset; did you mean emoji64?\n"
