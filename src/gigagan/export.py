"""Exporting a model: each part traced once, converted, and compared with PyTorch before anything takes its place."""

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from gigagan import __version__
from gigagan.checkpoint import Model, find_model, load_model
from gigagan.commit import committed, write_json
from gigagan.data.tensor_files import write_tensors
from gigagan.errors import CheckpointError, ConfigError, MissingExtra
from gigagan.exported import OPENERS, SUFFIXES, W_AVG, Exported, Graph, import_openvino, load_exported
from gigagan.model_files import NETWORK_PARTS, network_config, write_index
from gigagan.models.frozen import ClassNames, ClipText, MiniLM, TextEncoder, TextFeatures
from gigagan.models.frozen_files import LICENCE_FILES, read_config, read_licences, write_config, write_licences
from gigagan.models.inference import prepared
from gigagan.models.latents import Latents
from gigagan.models.text import NoText, TextCondition
from gigagan.models.traced import MIN_SIDE, Part, encoder_part, network_parts
from gigagan.models.upsampler import STRIDE, Upsampler, with_level
from gigagan.pipeline import DEFAULT_PSI, Pipeline, micro_batch_size

FORMATS = tuple(SUFFIXES)
LIMIT = 1e-4
"""Largest difference to PyTorch in float32 of any output of a graph."""
MAX_DIFFERING = 1e-3
"""Share of the 8-bit values of pictures that may differ: those that stood on the edge between two."""
BATCHES = (1, 5)
PROMPTS = (
    "a red apple",
    "a 3D render of a green leaf on a table",
    "a black and white icon of a rocket",
    "a smiling face with sunglasses, flat design",
    "blue heart",
)
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "pt2": (), "aoti": ()}
Progress = Callable[[str], object]
"""Called with the name of the part that comes next."""


# Converting.


def to_pt2(program: ExportedProgram, part: Part, path: Path) -> None:
    """For `torch.export.load`, in Python or C++."""
    torch.export.save(program, path)


def to_aoti(program: ExportedProgram, part: Part, path: Path) -> None:
    """For AOTInductor: compiled for this machine's processor."""
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except torch._inductor.exc.InvalidCxxCompiler:
        raise ConfigError("aoti needs a C++ compiler, and none was found; install g++ or export to pt2") from None


def to_onnx(program: ExportedProgram, part: Part, path: Path) -> None:
    """ONNX; weights beyond 2 GB go to a file beside it."""
    made = torch.onnx.export(
        program, dynamo=True, input_names=list(part.inputs), output_names=list(part.outputs), verbose=False
    )
    assert made is not None
    made.save(str(path))


def to_openvino(program: ExportedProgram, part: Part, path: Path) -> None:
    """OpenVINO's XML with the weights in a .bin beside it, in float32."""
    ov = import_openvino()
    made = ov.convert_model(program)
    for port, name in zip(made.outputs, part.outputs, strict=True):
        port.get_tensor().set_names({name})
    ov.save_model(made, str(path), compress_to_fp16=False)


CONVERTERS = {"pt2": to_pt2, "aoti": to_aoti, "onnx": to_onnx, "openvino": to_openvino}


def open_pt2(path: Path, dtype: torch.dtype = torch.float32) -> Graph:
    """A graph of a file that this process wrote; it holds Python's serialization, so others' aren't opened."""
    module = torch.export.load(path).module()
    return lambda **inputs: _listed(module(*(x.contiguous() for x in inputs.values())))


def open_aoti(path: Path, dtype: torch.dtype = torch.float32) -> Graph:
    """The same of a library, which is code of this machine, and reads inputs as if they were contiguous."""
    module = torch._inductor.aoti_load_package(str(path))
    return lambda **inputs: _listed(module(*(x.contiguous() for x in inputs.values())))


def _listed(made: Any) -> list[Tensor]:
    return [made] if isinstance(made, Tensor) else list(made)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, exporters keep what they say of themselves to themselves; errors are raised all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# Writing.


def export(
    path: str | Path, out: Path, *, format: str, limit: float = LIMIT, progress: Progress = lambda part: None
) -> dict[str, Any]:
    """Write `out`, a directory of graphs of the base generator, the upsampler and the text encoder of a model.

    Returns the parity report (`measure`), which is also `out`/parity.json. Raises ConfigError for an unknown format or
    a place that is taken, MissingExtra without the exporter, CheckpointError where the model can't be read, or where a
    graph differs from PyTorch by more than `limit`: then nothing is written.
    """
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}; expected {', '.join(FORMATS)}")
    if out.exists():
        raise ConfigError(f"{out}: exists; give the export a place that doesn't")
    for package in PACKAGES[format]:
        try:
            import_openvino() if package == "openvino" else importlib.import_module(package)
        except ModuleNotFoundError:
            raise MissingExtra(package, "export") from None
    source = find_model(path)
    model = load_model(source, discriminator=False)
    if model.generator is None:
        raise ConfigError(f"{path}: holds an upsampler alone; export a model with a generator")
    with committed(out) as folder, torch.inference_mode(False), torch.no_grad():
        for name, part in _parts(model):
            progress(name)
            (folder / name).parent.mkdir(exist_ok=True)
            with _quiet():
                program = torch.export.export(part.module, tuple(part.inputs.values()), dynamic_shapes=part.free)
                CONVERTERS[format](program, part, folder / f"{name}{SUFFIXES[format]}")
        _write_rest(folder, model, source)
        _write_index(folder, model, format)
        progress("comparing with PyTorch")
        report = {"format": format, "limit": limit} | measure(model, folder)
        check(report)
        write_json(folder / "parity.json", report)
        (folder / "README.md").write_text(_card(model, report), encoding="utf-8")
        _write_index(folder, model, format)
    return report


def _parts(model: Model) -> Iterator[tuple[str, Part]]:
    encoder = encoder_part(model.text_encoder)
    if encoder is not None:
        yield "text_encoder/features", encoder
    for name, network in _networks(model).items():
        for part_name, part in network_parts(network, model.text_encoder.max_tokens):
            yield f"{name}/{part_name}", part


def _networks(model: Model) -> dict[str, Any]:
    return {"generator": model.generator} | ({"upsampler": model.upsampler} if model.upsampler else {})


def _write_rest(folder: Path, model: Model, source: Path) -> None:
    """What a pipeline needs beside the graphs, and the licences of the weights in them."""
    for name, network in _networks(model).items():
        write_json(folder / name / "config.json", network_config(network, torch.float32))
        write_tensors(folder / name / W_AVG, {"w_avg": network.mapping.w_avg.contiguous()})
    encoder = model.text_encoder
    if isinstance(encoder, MiniLM | ClipText):
        config = read_config(source / "text_encoder")
        write_config(folder / "text_encoder", {key: value for key, value in config.items() if key != "sha256"})
        write_licences(folder / "text_encoder", encoder.licences)
        encoder.tokenizer.save(folder / "tokenizer")
    else:
        encoder.save(folder)
    write_licences(folder, read_licences(source))


def _write_index(folder: Path, model: Model, format: str) -> None:
    generator = model.generator
    assert generator is not None
    classes = {name: NETWORK_PARTS[name] for name in _networks(model)} | {"text_encoder": model.text_encoder.name}
    said = {
        "format": format,
        "made_of": model.hash,
        "micro_batch": micro_batch_size(generator, generator.mapping.w_avg.device),
        "torch": torch.__version__,
    } | {package: version(package) for package in PACKAGES[format]}
    write_index(folder, classes, model.index.get("provenance", {}), export=said)


def _card(model: Model, report: Mapping[str, Any]) -> str:
    kind = report["format"]
    use = (
        f'```python\nfrom gigagan import Pipeline\n\npipe = Pipeline.from_pretrained("THIS_DIRECTORY")\n'
        f'pipe({PROMPTS[0]!r}, seeds=[0]).images[0].save("picture.png")\n```\n'
        if kind in OPENERS
        else "The graphs are for programs of your own; docs/export.md has their inputs and outputs.\n"
    )
    licences = ", ".join(name for name in LICENCE_FILES)
    return (
        f"# Graphs of a model of open-gigagan, as {kind}\n\n{use}\n"
        f"Made of the model {model.hash} by open-gigagan {__version__}. The graphs hold its weights, so what its "
        f"licence and credits ask for holds here too: {licences} here and in text_encoder/, where there are such, and "
        f"`provenance` in model_index.json.\n\nDifferences to PyTorch (parity.json):\n\n```\n{table(report)}\n```\n"
    )


# Comparing.


@dataclass(frozen=True)
class _Case:
    """A graph, and PyTorch's own part, on the same input."""

    graph: str
    expected: Callable[..., Any]
    found: Callable[..., Any]
    inputs: Sequence[Tensor]
    """Of max(BATCHES) rows."""
    shown: str = ""


@torch.inference_mode()
def measure(model: Model, folder: Path) -> dict[str, Any]:
    """How far the graphs in `folder` are from `model` in float32: each alone on the same input, then whole pictures.

    The reference is what draws in `Pipeline`, in other forms than those that were traced. `graphs` holds the largest
    absolute difference of each at each of BATCHES; `pictures` how many 8-bit values of pictures drawn from prompts by
    the one and the other pipeline differ, and by how much at most.
    """
    exported = load_exported(folder, openers=OPENERS | {"pt2": open_pt2, "aoti": open_aoti})
    rows = []
    for case in _cases(model, exported):
        differences = {}
        for batch in BATCHES:
            inputs = [x[:batch] for x in case.inputs]
            differences[str(batch)] = _difference(case.expected(*inputs), case.found(*inputs))
        rows.append({"graph": case.graph, "input": case.shown, "difference": differences})
    return {"torch": torch.__version__, "graphs": rows, "pictures": _pictures(model, exported)}


def check(report: Mapping[str, Any]) -> None:
    """Raises CheckpointError that names the graph that differs the most, where one differs by more than the limit."""
    limit = report["limit"]
    worst, batch, graph = max(
        (difference, batch, row["graph"]) for row in report["graphs"] for batch, difference in row["difference"].items()
    )
    if not worst <= limit:
        raise CheckpointError(
            f"{graph} differs from PyTorch by {worst:.1e} at batch {batch}; at most {limit:.0e} is allowed, so nothing "
            "was written; try another format"
        )
    told = report["pictures"]
    if told["differ"] > MAX_DIFFERING * told["values"]:
        raise CheckpointError(
            f"{told['differ']:,} of {told['values']:,} values of pictures differ from PyTorch's; at most one in "
            f"{1 / MAX_DIFFERING:,.0f} is allowed, so nothing was written; try another format"
        )


def table(report: Mapping[str, Any]) -> str:
    """The report for people."""
    lines = [f"{'largest difference':44}" + "".join(f"{'batch ' + str(batch):>10}" for batch in BATCHES)]
    for row in report["graphs"]:
        name = row["graph"] + (f", {row['input']}" if row["input"] else "")
        lines.append(f"{name:44}" + "".join(f"{x:>10.1e}" for x in row["difference"].values()))
    told = report["pictures"]
    lines.append(f"{told['values']:,} values of pictures: {told['differ']:,} differ, by {told['most']} of 255 at most")
    return "\n".join(lines)


def _cases(model: Model, exported: Exported) -> Iterator[_Case]:
    """Each graph with what comes to it when five prompts are drawn."""
    encoder, found = model.text_encoder, exported.text_encoder
    if isinstance(encoder, MiniLM | ClipText):
        assert isinstance(found, MiniLM | ClipText)
        yield _Case("text_encoder/features", encoder.features, found.features, [_ids(encoder)])
    features = encoder.encode(_prompts(encoder))
    for name, network in _networks(model).items():
        graphs = getattr(exported, name)
        own = prepared(network, torch.float32)
        if not isinstance(network.text, NoText):
            parts = features.tokens, features.mask, features.global_index
            yield _Case(f"{name}/text", _text(own.text), _text(graphs.text), parts)
        condition: TextCondition = own.text(features)
        z = torch.cat([_normal(seed, network.cfg.z_dim) for seed in range(max(BATCHES))])
        yield _Case(f"{name}/mapping", _mapping(own.mapping), _mapping(graphs.mapping), [z, condition.t_global])
        w = own.mapping(z, condition.t_global)
        point = Latents.everywhere(w, condition, network.num_ws)
        # Another style at each layer, so that none can take another's place unseen.
        ws = torch.stack([w.roll(n, dims=0) for n in range(network.num_ws)], dim=1)
        if not isinstance(network, Upsampler):
            inputs = [ws, point.t_local, point.mask]
            yield _Case(f"{name}/synthesis", own.synthesis, graphs.synthesis, inputs)
            continue
        words = [point.t_local[:, 0], point.mask[:, 0]]
        side = network.cfg.input_resolution
        others = [(side, MIN_SIDE), (MIN_SIDE + STRIDE, side - STRIDE)] if side > MIN_SIDE else []
        for H, W in [(side, side), *others]:
            small = torch.cat([_normal(seed, 3 * H * W).view(1, 3, H, W) for seed in range(max(BATCHES))])
            low = with_level((small / 2).clamp(-1, 1), torch.zeros(len(small)))
            yield _Case(f"{name}/synthesis", own.synthesis, graphs.synthesis, [ws, *words, low], f"{W} x {H} px")


def _text(network: Callable[..., TextCondition]) -> Callable[..., Any]:
    def run(*parts: Tensor) -> list[Tensor]:
        condition = network(TextFeatures(*parts))
        return [condition.t_local, condition.mask, condition.t_global]

    return run


def _mapping(network: Any) -> Callable[..., Any]:
    """With the mean style, which truncation reads: it isn't in the graph but beside it."""

    def run(z: Tensor, t_global: Tensor) -> list[Tensor]:
        return [network(z, t_global), network.w_avg]

    return run


def _difference(expected: Any, found: Any) -> float:
    """The largest of all outputs; infinite where shapes or truth values differ, or a value is no number."""
    worst = 0.0
    for a, b in zip(_listed(expected), _listed(found), strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.numel():
            difference = float((a.double() - b.double()).abs().max())
            worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def _pictures(model: Model, exported: Exported) -> dict[str, int]:
    prompts = _prompts(model.text_encoder)
    values = differ = most = 0
    assert model.generator is not None
    own = Pipeline(model.generator, model.text_encoder, upsampler=model.upsampler, micro_batch=exported.micro_batch)
    pipes = own, Pipeline(**exported.parts)
    try:
        drawn = [pipe.draw(pipe.latents(prompts, pipe.z(range(len(prompts))), DEFAULT_PSI)) for pipe in pipes]
    except FloatingPointError:
        return {"values": 1, "differ": 1, "most": 255}
    for a, b in zip(*drawn, strict=True):
        difference = (a.int() - b.int()).abs()
        values, differ = values + difference.numel(), differ + int((difference > 0).sum())
        most = max(most, int(difference.max()))
    return {"values": values, "differ": differ, "most": most}


def _prompts(encoder: TextEncoder) -> list[str]:
    count = max(BATCHES)
    if isinstance(encoder, ClassNames):
        return [encoder.classes[n % len(encoder.classes)] for n in range(count)]
    return [""] * count if encoder.name == "none" else list(PROMPTS[:count])


def _ids(encoder: MiniLM | ClipText) -> Tensor:
    """Tokens of the prompts, all of one length."""
    rows = [encoder.tokenizer.ids(prompt) for prompt in PROMPTS]
    length = encoder.max_tokens if isinstance(encoder, ClipText) else min(map(len, rows))
    return torch.tensor([(row + [0] * length)[:length] for row in rows])


def _normal(seed: int, count: int) -> Tensor:
    return torch.randn(1, count, generator=torch.Generator().manual_seed(seed))
