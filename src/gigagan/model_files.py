"""The files of a model directory: index, configurations, tensors; each checked before anything is allocated.

A network is first built on the meta device from its validated configuration, which costs no memory; the file's header
must then name exactly its tensors in their shapes, so a directory can't ask for more memory than its own size.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from torch import nn

from gigagan import __version__
from gigagan.config import DiscriminatorConfig, GeneratorConfig, UpsamplerConfig
from gigagan.errors import CheckpointError
from gigagan.models.discriminator import Discriminator
from gigagan.models.frozen_files import file_sha256
from gigagan.models.generator import Generator
from gigagan.models.upsampler import Upsampler

SectionT = TypeVar("SectionT", bound=BaseModel)

MODEL_INDEX = "model_index.json"
MODEL_FORMAT = 1
NOTICE = "NOTICE"
"""Credits of whose pictures a model has learned from; a model made from another carries them on."""
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
PICTURE_PARTS = ("generator/", "upsampler/", "text_encoder/", "tokenizer/")
NETWORK_PARTS = {"generator": "Generator", "upsampler": "Upsampler", "discriminator": "Discriminator"}
"""Parts that hold a network, and the class of each; there is a generator or an upsampler, or both."""
MAX_NUMBER = 65536
"""Largest number in a network's configuration; the paper's largest is 16384."""
MAX_LAYERS = 256
"""Most layers of one kind; the paper's most is 4 a side. More would take minutes to build, memory aside."""


def write_index(
    folder: Path, classes: Mapping[str, str], provenance: Mapping[str, Any], *, export: Mapping[str, Any] | None = None
) -> None:
    """Write model_index.json, last of all: it names the parts and hashes every other file.

    `export` says of which kind the graphs are that stand in place of weights.
    """
    index = {
        "_class_name": "Pipeline",
        "_gigagan_version": __version__,
        "format_version": MODEL_FORMAT,
        **{part: ["gigagan", name] for part, name in classes.items()},
        **({} if export is None else {"export": dict(export)}),
        "provenance": dict(provenance),
        "sha256": file_hashes(folder),
    }
    (folder / MODEL_INDEX).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_index(path: Path) -> dict[str, Any]:
    """Content of model_index.json. Raises CheckpointError where path is no model directory of this version."""
    if path.is_file():
        if path.suffix in PICKLES:
            raise CheckpointError(f"{path}: a pickle can run code, so it isn't opened; give a model directory")
        raise CheckpointError(f"{path}: is a file; give a model directory (with {MODEL_INDEX})")
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such model directory; give one that holds {MODEL_INDEX}")
    file = path / MODEL_INDEX
    if not file.is_file():
        if (path / "model" / MODEL_INDEX).is_file():
            raise CheckpointError(f"{path}: is a run directory; its model is {path / 'model'}")
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES)
        why = f"and {pickles[0]} is a pickle, which isn't opened" if pickles else "so it is no model directory"
        raise CheckpointError(f"{path}: has no {MODEL_INDEX}, {why}; give a directory that gigagan train wrote")
    index = _read_object(file)
    if index.get("format_version") != MODEL_FORMAT:
        raise CheckpointError(
            f"{file}: format {index.get('format_version')!r}; this version reads {MODEL_FORMAT}, so update open-gigagan"
        )
    for part, name in NETWORK_PARTS.items():
        needed = part == "generator" and "upsampler" not in index
        if index.get(part) != ["gigagan", name] and (needed or part in index):
            raise CheckpointError(f"{file}: {part} is {index.get(part)!r}; expected ['gigagan', '{name}']")
    hashes = index.get("sha256")
    if not isinstance(hashes, dict) or not all(isinstance(x, str) for x in hashes.values()):
        raise CheckpointError(f"{file}: sha256 is missing; expected the hash of every file")
    return index


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a model directory but the index, by its path inside."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MODEL_INDEX)
    return {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}


def verify_hashes(path: Path, hashes: Mapping[str, str], *, parts: Iterable[str], skip: tuple[str, ...] = ()) -> None:
    """Raises CheckpointError at the first file that is missing or isn't what was saved. The card may be edited.

    `parts` are the networks that will be read: their files must be among the hashed ones.
    """
    for name, expected in hashes.items():
        if name == "README.md" or name.startswith(skip):
            continue
        file = path / name
        if not file.is_file() or ".." in file.parts[len(path.parts) :] or Path(name).is_absolute():
            raise CheckpointError(f"{file}: no such file; get the model again")
        if (actual := file_sha256(file)) != expected:
            raise CheckpointError(
                f"{file}: sha256 is {actual[:12]}..., {MODEL_INDEX} says {expected[:12]}...; get the model again"
            )
    for file_name in (f"{part}/{name}" for part in parts for name in ("config.json", "model.safetensors")):
        if file_name not in hashes:
            raise CheckpointError(f"{path / MODEL_INDEX}: has no sha256 of {file_name}; get the model again")


def hash_of_parts(hashes: Mapping[str, str]) -> str:
    """Twelve digits of SHA-256 over the hashes of the parts that make pictures."""
    lines = sorted(f"{name} {digest}\n" for name, digest in hashes.items() if name.startswith(PICTURE_PARTS))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def network_config(network: Generator | Upsampler | Discriminator, dtype: torch.dtype) -> dict[str, Any]:
    """What config.json says of a network: enough to build it, and the dtype of its file."""
    config = {
        "_class_name": type(network).__name__,
        "dtype": str(dtype).removeprefix("torch."),
        "feature_dim": network.feature_dim,
        "config": network.cfg.model_dump(mode="json"),
    }
    if isinstance(network, Discriminator):
        return config | {"resolution": network.resolution, "levels": network.num_levels}
    return config


def generator_on_meta(folder: Path) -> tuple[Generator, str]:
    """G without memory, from folder/config.json, and the dtype of its file."""
    config = _read_config(folder / "config.json", "Generator")
    cfg = _validated(folder / "config.json", GeneratorConfig, config["config"])
    _check_sizes(folder / "config.json", cfg)
    with _building(folder / "config.json"):
        return Generator(cfg, feature_dim=config["feature_dim"]), config["dtype"]


def upsampler_on_meta(folder: Path) -> tuple[Upsampler, str]:
    """The upsampler without memory, from folder/config.json, and the dtype of its file."""
    file = folder / "config.json"
    config = _read_config(file, "Upsampler")
    cfg = _validated(file, UpsamplerConfig, config["config"])
    _check_sizes(file, cfg)
    with _building(file):
        return Upsampler(cfg, feature_dim=config["feature_dim"]), config["dtype"]


def discriminator_on_meta(folder: Path) -> tuple[Discriminator, str]:
    """D without memory, from folder/config.json, and the dtype of its file."""
    file = folder / "config.json"
    config = _read_config(file, "Discriminator")
    cfg = _validated(file, DiscriminatorConfig, config["config"])
    _check_sizes(file, cfg)
    resolution = config.get("resolution")
    if resolution not in [4 << i for i in range(11)] or resolution != 2 << len(cfg.blocks):
        raise CheckpointError(f"{file}: resolution is {resolution!r}; expected {2 << len(cfg.blocks)}")
    levels = config.get("levels", len(cfg.blocks) if cfg.multi_scale else 1)
    if not isinstance(levels, int) or not 1 <= levels <= len(cfg.blocks):
        raise CheckpointError(f"{file}: levels is {levels!r}; expected 1 to {len(cfg.blocks)}")
    with _building(file):
        network = Discriminator(cfg, resolution=resolution, feature_dim=config["feature_dim"], levels=levels)
        return network, config["dtype"]


@contextmanager
def _building(file: Path) -> Iterator[None]:
    """Inside, tensors have no memory. Raises CheckpointError where numbers, each in range, make no network together."""
    try:
        with torch.device("meta"):
            yield
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(f"{file}: its numbers make no network ({reason}); get the model again") from None


def check_tensors(file: Path, network: nn.Module, dtype: str) -> None:
    """Raises CheckpointError that names the first tensors missing, unexpected or of another shape or dtype."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    try:
        with safe_open(file, framework="pt") as held:
            found = {name: tuple(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118
            dtypes = {name: held.get_slice(name).get_dtype() for name in found}
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file{_pickle_beside(file)}; get the model again") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: isn't a whole safetensors file ({error}); get the model again") from None
    both = [name for name in expected if name in found]
    faults = [
        ("missing", [name for name in expected if name not in found]),
        ("unexpected", [name for name in found if name not in expected]),
        (
            "of another shape",
            [f"{n} {list(found[n])} instead of {list(expected[n])}" for n in both if found[n] != expected[n]],
        ),
        ("of another dtype", [f"{n} {dtypes[n]}, not {dtype}" for n in both if DTYPES.get(dtypes[n]) != dtype]),
    ]
    told = [f"{len(names)} {kind}: {_first(names)}" for kind, names in faults if names]
    if told:
        raise CheckpointError(f"{file}: tensors don't fit config.json ({'; '.join(told)}); get the model again")


def load_tensors(file: Path, network: nn.Module, device: torch.device | str) -> None:
    """Fill a network built on the meta device, in float32, for use without gradients."""
    with safe_open(file, framework="pt", device=str(device)) as held:
        tensors = {name: held.get_tensor(name).to(torch.float32) for name in network.state_dict()}
    network.load_state_dict(tensors, assign=True)
    network.requires_grad_(False).eval()


def _first(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def _pickle_beside(file: Path) -> str:
    pickles = sorted(p.name for p in file.parent.glob("*") if p.suffix in PICKLES)
    return f" ({pickles[0]} is a pickle, which isn't opened)" if pickles else ""


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file; get the model again") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file}: can't be read ({error}); get the model again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}; expected an object")
    return content


def _read_config(file: Path, class_name: str) -> dict[str, Any]:
    config = _read_object(file)
    if config.get("_class_name") != class_name:
        raise CheckpointError(f"{file}: _class_name is {config.get('_class_name')!r}; expected '{class_name}'")
    if config.get("dtype") not in DTYPES.values():
        raise CheckpointError(f"{file}: dtype is {config.get('dtype')!r}; expected one of {', '.join(DTYPES.values())}")
    feature_dim = config.get("feature_dim")
    if not isinstance(feature_dim, int) or not 0 <= feature_dim <= MAX_NUMBER:
        raise CheckpointError(f"{file}: feature_dim is {feature_dim!r}; expected a number from 0 to {MAX_NUMBER}")
    if not isinstance(config.get("config"), dict):
        raise CheckpointError(f"{file}: config is missing; expected the network's configuration")
    return config


def _validated(file: Path, section: type[SectionT], tree: dict[str, Any]) -> SectionT:
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, ("config", *fault["loc"])))
        raise CheckpointError(f"{file}: {where}: {fault['msg']} (got {str(fault['input'])[:80]!r})") from None


def _check_sizes(file: Path, cfg: BaseModel, prefix: str = "config") -> None:
    """Raises CheckpointError for numbers no network of this kind has, before it is built."""
    for name, value in cfg:
        where = f"{prefix}.{name}"
        if isinstance(value, BaseModel):
            _check_sizes(file, value, where)
            continue
        layers = name in ("blocks", "encoder_blocks", "depths", "num_filters") or name.endswith("_layers")
        most = MAX_LAYERS if layers else MAX_NUMBER
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not number <= most:
                raise CheckpointError(f"{file}: {where} is {number}; expected at most {most}")
