"""Exported models: networks whose parts are graphs in files, run by ONNX Runtime or OpenVINO.

A directory is laid out as a model directory is, with a graph for each part in place of the weights:

    generator/   config.json  w_avg.safetensors  text.onnx  mapping.onnx  synthesis.onnx
    upsampler/   the same, where the model has one
    text_encoder/  config.json  features.onnx, and tokenizer/: none of both where prompts need no weights
    model_index.json  README.md  parity.json
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gigagan.errors import CheckpointError, ConfigError, MissingExtra
from gigagan.model_files import MODEL_INDEX, generator_on_meta, read_index, upsampler_on_meta, verify_hashes
from gigagan.models.frozen import ClipText, MiniLM, TextEncoder, TextFeatures, load_text_encoder
from gigagan.models.frozen_files import PromptTokenizer, read_config
from gigagan.models.generator import Generator
from gigagan.models.text import NoText, TextCondition
from gigagan.models.upsampler import Upsampler

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2", "aoti": ".pt2"}
"""Of the graphs' files, by format."""
W_AVG = "w_avg.safetensors"
MAX_MICRO_BATCH = 1024

Graph = Callable[..., list[Tensor]]
"""Named tensors to tensors."""
Opener = Callable[[Path, torch.dtype], Graph]
"""A graph of a file, in an arithmetic."""


# Runtimes.


def open_onnx(path: Path, dtype: torch.dtype = torch.float32) -> Graph:
    """A graph that ONNX Runtime runs on the CPU, with as many threads as torch."""
    ort = _imported("onnxruntime")
    if dtype != torch.float32:
        raise ConfigError(f"dtype {str(dtype).removeprefix('torch.')} came; ONNX files run in float32")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # on a busy machine it halves the speed
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {one.name for one in session.get_inputs()}

    def run(**inputs: Tensor) -> list[Tensor]:
        given = {name: x.contiguous().numpy() for name, x in inputs.items() if name in names}
        return [torch.from_numpy(y) for y in session.run(None, given)]

    return run


def open_openvino(path: Path, dtype: torch.dtype = torch.float32) -> Graph:
    """A graph that OpenVINO runs on the CPU, with as many threads as torch."""
    precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]  # its own choice was off by 5e-3
    compiled = (
        import_openvino()
        .Core()
        .compile_model(
            str(path), "CPU", {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        )
    )
    names = {name for port in compiled.inputs for name in port.names}

    def run(**inputs: Tensor) -> list[Tensor]:
        given = {name: x.contiguous().numpy() for name, x in inputs.items() if name in names}
        made = compiled(given)
        return [torch.from_numpy(made[port].copy()) for port in compiled.outputs]

    return run


def import_openvino() -> ModuleType:
    """The package, kept from reporting to its makers that it was imported or used."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it weren't installed
    return _imported("openvino")


def _imported(package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtra(package, "export") from None


OPENERS: dict[str, Opener] = {"onnx": open_onnx, "openvino": open_openvino}


# Networks.


class GraphPart(nn.Module):
    """A part of a network that a graph computes. There is nothing in it to change, so a copy is itself."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphPart":
        return self


class GraphText(GraphPart):
    """T."""

    def forward(self, features: TextFeatures) -> TextCondition:
        parts = {"tokens": features.tokens, "mask": features.mask, "global_index": features.global_index}
        return TextCondition(*self.graph(**parts))


class GraphMapping(GraphPart):
    """M."""

    w_avg: Tensor

    def __init__(self, graph: Graph, w_avg: Tensor) -> None:
        super().__init__(graph)
        self.register_buffer("w_avg", w_avg)

    def forward(self, z: Tensor, t_global: Tensor) -> Tensor:
        (w,) = self.graph(z=z, t_global=t_global)
        return w


class GraphSynthesis(GraphPart):
    """Styles and words, and of an upsampler the small picture, to a pyramid."""

    def __init__(self, graph: Graph, num_ws: int) -> None:
        super().__init__(graph)
        self.num_ws = num_ws

    def forward(
        self,
        ws: Tensor,
        t_local: Tensor,
        mask: Tensor,
        low: Tensor | None = None,
        dtype: torch.dtype = torch.float32,  # that of the graph, which was chosen when it was opened
    ) -> list[Tensor]:
        given = {} if low is None else {"low": low}
        return self.graph(ws=ws, t_local=t_local, mask=mask, **given)


class GraphMiniLM(MiniLM):
    """MiniLM's tokenizer and its network's graph."""

    def __init__(self, config: dict[str, Any], tokenizer: PromptTokenizer, graph: Graph) -> None:
        super().__init__(config, {}, tokenizer)
        self.graph = graph

    def features(self, ids: Tensor) -> Tensor:
        return self.graph(ids=ids)[0]

    def save(self, directory: Path) -> None:
        raise _no_weights("saving it as a model")


class GraphClip(ClipText):
    """CLIP's tokenizer and its text tower's graph."""

    def __init__(self, config: dict[str, Any], tokenizer: PromptTokenizer, graph: Graph) -> None:
        self.feature_dim = int(config["hidden_size"])
        self.max_tokens = tokenizer.max_tokens
        self.device = torch.device("cpu")
        self.tokenizer = tokenizer
        self.licences = {}
        self.graph = graph

    def features(self, ids: Tensor) -> Tensor:
        return self.graph(ids=ids)[0]

    def save(self, directory: Path) -> None:
        raise _no_weights("saving it as a model")


def runs_graphs(network: nn.Module) -> bool:
    """Whether a network is an exported one."""
    return isinstance(network.synthesis, GraphSynthesis)


def check_options(device: torch.device | str, *, compiled: bool) -> None:
    """Raises ConfigError for what graphs can't be run with."""
    if str(device) not in ("cpu", "auto"):
        raise ConfigError(f"device {device} came, and exported graphs run on the processor; leave it out")
    if compiled:
        raise ConfigError("torch.compile came, and exported graphs are compiled already; leave it out")


def check_weights(network: Generator | Upsampler, what: str) -> None:
    """Raises ConfigError where a network is graphs, for what needs its weights."""
    if runs_graphs(network):
        raise _no_weights(what)


def _no_weights(what: str) -> ConfigError:
    return ConfigError(f"{what} needs weights, and this model is exported graphs; give the model that it was made of")


# Directories.


@dataclass(frozen=True)
class Exported:
    """An exported model, ready to run."""

    generator: Generator
    upsampler: Upsampler | None
    text_encoder: TextEncoder
    format: str
    micro_batch: int
    """Pictures that the model itself draws at once."""
    index: dict[str, Any] = field(repr=False)
    """What model_index.json holds."""

    @property
    def parts(self) -> dict[str, Any]:
        """What `Pipeline` is made of."""
        return {name: getattr(self, name) for name in ("generator", "text_encoder", "upsampler", "micro_batch")}


def is_exported(path: Path) -> bool:
    """Whether a directory that can be read as a model says that it is an exported one."""
    return (path / MODEL_INDEX).is_file() and "export" in read_index(path)


def load_exported(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    upsampled: bool = True,
    openers: Mapping[str, Opener] = OPENERS,
) -> Exported:
    """Read an exported model, every file checked by its hash before it is opened. `dtype` is that of the synthesis.

    Raises CheckpointError where a file is missing or damaged, ConfigError for a format or a dtype that doesn't run
    here, MissingExtra without the runtime.
    """
    index = read_index(path)
    said = index["export"] if isinstance(index["export"], dict) else {}
    format_, batch = said.get("format"), said.get("micro_batch")
    if format_ not in SUFFIXES or not isinstance(batch, int) or not 1 <= batch <= MAX_MICRO_BATCH:
        raise CheckpointError(f"{path / MODEL_INDEX}: export is {str(said)[:80]}; export the model again")
    if format_ not in openers:
        raise ConfigError(
            f"{path}: {format_} files are for programs of your own; what runs here is {' or '.join(openers)}"
        )
    skip = () if upsampled else ("upsampler/",)
    verify_hashes(path, index["sha256"], parts=(), skip=skip)
    reader = _Reader(path, index["sha256"], SUFFIXES[format_], openers[format_])
    upsampler = None
    if upsampled and "upsampler" in index:
        upsampler = reader.network("upsampler", upsampler_on_meta(path / "upsampler")[0], dtype)
    generator = reader.network("generator", generator_on_meta(path / "generator")[0], dtype)
    return Exported(generator, upsampler, reader.encoder(), format_, batch, index)


@dataclass(frozen=True)
class _Reader:
    path: Path
    hashes: Mapping[str, str]
    suffix: str
    opener: Opener

    def network(self, part: str, network: Any, dtype: torch.dtype) -> Any:
        """A network built on the meta device, its parts replaced by graphs."""
        if not isinstance(network.text, NoText):
            network.text = GraphText(self.graph(part, "text", torch.float32))
        network.mapping = GraphMapping(self.graph(part, "mapping", torch.float32), self.w_avg(part))
        network.synthesis = GraphSynthesis(self.graph(part, "synthesis", dtype), network.num_ws)
        return network.eval()

    def encoder(self) -> TextEncoder:
        config = read_config(self.path / "text_encoder")
        where, kind = self.path / "text_encoder" / "config.json", config.get("encoder")
        if kind not in ("minilm", "clip"):
            return load_text_encoder(self.path)
        numbers = (config.get("max_tokens"), config.get("hidden_size"), config.get("max_position_embeddings"))
        if not all(isinstance(number, int) and number > 0 for number in numbers):
            raise CheckpointError(f"{where}: max_tokens or a size is missing; export the model again")
        tokenizer = PromptTokenizer.read(self.path / "tokenizer", config["max_tokens"])
        build = GraphMiniLM if kind == "minilm" else GraphClip
        return build(config, tokenizer, self.graph("text_encoder", "features", torch.float32))

    def graph(self, part: str, name: str, dtype: torch.dtype) -> Graph:
        return self.opener(self.file(f"{part}/{name}{self.suffix}"), dtype)

    def w_avg(self, part: str) -> Tensor:
        file = self.file(f"{part}/{W_AVG}")
        try:
            return load_file(file)["w_avg"]
        except (SafetensorError, KeyError) as error:
            raise CheckpointError(f"{file}: can't be read ({error}); export the model again") from None

    def file(self, name: str) -> Path:
        """A file of the directory, which was checked."""
        if name not in self.hashes:
            raise CheckpointError(f"{self.path / MODEL_INDEX}: has no sha256 of {name}; export the model again")
        return self.path / name
