"""What every test shares: shapes checked at each call, few threads, accelerator tests that skip themselves, goldens.

The hook must be in place before anything imports the package. GIGAGAN_SHAPES=0 turns it off (torch.compile can't
trace checked functions).
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

CHECKED = ["gigagan.models", "gigagan.losses", "gigagan.augment", "gigagan.evaluation"]

if os.environ.get("GIGAGAN_SHAPES", "1") == "1":
    install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# One thread each, here and in processes that tests start: they run side by side, and two OpenMP programs of as many
# threads as there are cores stall each other.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# The same examples in every run, however busy the machine.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-goldens", action="store_true", help="Rewrite stored texts instead of comparing.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu skip themselves where there is no accelerator."""
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return
    skip = pytest.mark.skip(reason="needs an accelerator")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Compares a text with a stored file; `make goldens` stores it."""

    def check(path: Path, text: str) -> None:
        if request.config.getoption("--write-goldens"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing; run make goldens"
        assert text == path.read_text(encoding="utf-8"), f"{path} is stale; run make goldens"

    return check


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A signer's certificate and key, made for this run."""
    from tests.certificates import make_certificate

    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def tiny_networks() -> Callable[[int], tuple[Any, Any]]:
    """Builds a real G and D of 16 px for hashed words; seeded weights, none at a special value."""
    from gigagan.config import AttentionConfig, DiscriminatorConfig, GeneratorConfig
    from gigagan.models.discriminator import Discriminator
    from gigagan.models.frozen import HashedText
    from gigagan.models.generator import Generator

    E = HashedText.feature_dim
    attention = AttentionConfig(resolutions=(8,), depths=(1,), head_dim=16)
    text: dict[str, Any] = {"text_layers": 1, "text_dim": 32, "text_heads": 2, "attention": attention}
    sizes: dict[str, Any] = {"channel_base": 512, "channel_max": 32, "blocks": (1, 1, 1)}
    G_cfg = GeneratorConfig(resolution=16, z_dim=16, w_dim=32, mapping_layers=2, num_filters=(2, 2, 1), **text, **sizes)
    D_cfg = DiscriminatorConfig(head_channel_max=16, **text, **sizes)

    def build(seed: int = 0) -> tuple[Generator, Discriminator]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            G = Generator(G_cfg, feature_dim=E).eval().requires_grad_(False)
            D = Discriminator(D_cfg, resolution=16, feature_dim=E).eval().requires_grad_(False)
            G.mapping.w_avg.normal_()
            for network in (G, D):
                for name, parameter in network.named_parameters():
                    if name.endswith("bias"):
                        parameter.add_(0.1 * torch.randn_like(parameter))
        return G, D

    return build


@pytest.fixture(scope="session")
def random_lite0() -> Any:
    """The real network with random weights that keep the variance."""
    from gigagan.models.frozen import EfficientNetLite

    rng = torch.Generator().manual_seed(0)
    network = EfficientNetLite()
    for parameter in network.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        scale = math.sqrt(2 / fan_in) if parameter.ndim > 1 else 0.1
        parameter.copy_(torch.randn(parameter.shape, generator=rng) * scale)
    return network.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def clip_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP as transformers saves it, vision tower and all, with a vocabulary of letters and one merge."""
    from tokenizers.pre_tokenizers import ByteLevel

    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    tower: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    tower["num_attention_heads"] = 4
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    config = transformers.CLIPConfig(
        text_config=tower | ends | {"vocab_size": len(tokens), "max_position_embeddings": 77},
        vision_config=tower | {"image_size": 32, "patch_size": 16},
    )
    network = transformers.CLIPModel(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def upsampler() -> Any:
    """A small one, 16 to 64 px for hashed words, whose weights are at no special value."""
    from gigagan.config import AttentionConfig, UpsamplerConfig
    from gigagan.models.frozen import HashedText
    from gigagan.models.upsampler import Upsampler

    cfg = UpsamplerConfig(
        resolution=64,
        input_resolution=16,
        z_dim=16,
        w_dim=16,
        mapping_layers=2,
        text_layers=1,
        text_dim=16,
        text_heads=2,
        channel_base=256,
        channel_max=16,
        blocks=(1, 1, 1, 1, 1, 1),
        num_filters=(1, 1, 1, 2, 1, 2),
        attention=AttentionConfig(resolutions=(4,), depths=(1,), head_dim=8, mlp_multiplier=1.0),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Upsampler(cfg, feature_dim=HashedText.feature_dim)
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.data += 0.1 * torch.randn_like(parameter)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def small_model(tiny_networks: Callable[[int], tuple[Any, Any]], upsampler: Any, tmp_path_factory: Any) -> Path:
    """A model directory of 16 px, an upsampler to 64, and a small MiniLM with the real tokenizer."""
    from gigagan.models.frozen import MiniLM
    from gigagan.models.frozen_files import PromptTokenizer
    from gigagan.models.frozen_text import _bert_shapes
    from gigagan.pipeline import Pipeline

    config = {"vocab_size": 30522, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"intermediate_size": 64, "max_position_embeddings": 16, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
    rng = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=rng) / 2 for name, shape in _bert_shapes(config).items()}
    tokenizer = PromptTokenizer.read(Path(__file__).parents[1] / "src/gigagan/pretrained/emoji/tokenizer", 12)
    encoder = MiniLM(config, weights, tokenizer, licences={"LICENSE": b"of the encoder"})
    path = tmp_path_factory.mktemp("small") / "model"
    Pipeline(tiny_networks(0)[0], encoder, upsampler=upsampler).save_pretrained(path)
    (path / "NOTICE").write_text("of the pictures\n")
    return path


@pytest.fixture(scope="session")
def exported_model(small_model: Path, tmp_path_factory: Any) -> Iterator[Callable[[str], Path]]:
    """The small model as graphs of a format, by the command, both formats at once: tracing takes a while."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino_telemetry")  # comes with openvino, whose import would report itself
    folder: Path = tmp_path_factory.mktemp("exported")
    running: dict[str, subprocess.Popen[bytes]] = {}
    command = [sys.executable, "-m", "gigagan", "export", str(small_model)]

    def made(format: str) -> Path:
        for one in ("onnx", "openvino") if not running else ():
            with (folder / f"{one}.txt").open("w") as log:
                args = [*command, "--format", one, "--out", str(folder / one)]
                running[one] = subprocess.Popen(args, stdout=log, stderr=log)
        assert running[format].wait() == 0, (folder / f"{format}.txt").read_text()[-3000:]
        return folder / format

    yield made
    for process in running.values():
        process.kill()
        process.wait()
