"""Model directories (for people) and training states (for resuming), safetensors and JSON. No pickle is opened.

Both are committed (`commit`): at every instant a name holds the old content or the new one, whole. Each carries the
SHA-256 of its files.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gigagan import __version__
from gigagan.card import model_card
from gigagan.commit import committed, delete_stale, settle, sync, write_json
from gigagan.data.tensor_files import write_tensors
from gigagan.errors import CheckpointError, ConfigError
from gigagan.hub import at_revision, fetched, is_hub_id
from gigagan.model_files import (
    MODEL_INDEX,
    NETWORK_PARTS,
    NOTICE,
    check_tensors,
    discriminator_on_meta,
    generator_on_meta,
    hash_of_parts,
    load_tensors,
    network_config,
    read_index,
    upsampler_on_meta,
    verify_hashes,
    write_index,
)
from gigagan.models.discriminator import Discriminator
from gigagan.models.frozen import TextEncoder, load_text_encoder
from gigagan.models.frozen_files import file_sha256
from gigagan.models.generator import Generator
from gigagan.models.upsampler import Upsampler

log = logging.getLogger(__name__)

STATE_FORMAT = 1
_STEP = re.compile(r"step-(\d{8,})")
PACKAGED = Path(str(resources.files("gigagan"))) / "pretrained"
FOR_DIFFUSERS = "pipeline.py"
"""The class by which diffusers loads a model directory, the packaged one's for all. gigagan never runs it."""
_PARTS = (MODEL_INDEX, "README.md", NOTICE, FOR_DIFFUSERS, *NETWORK_PARTS, "text_encoder", "tokenizer")


@dataclass(frozen=True)
class Model:
    """A model directory in memory, weights in float32."""

    generator: Generator | None
    """None in a directory that holds an upsampler alone."""
    upsampler: Upsampler | None
    text_encoder: TextEncoder
    discriminator: Discriminator | None
    index: dict[str, Any] = field(repr=False)
    """What model_index.json holds: versions, provenance, hashes."""
    notice: str = field(default="", repr=False)
    """Text of NOTICE, empty where there is none."""

    @property
    def hash(self) -> str:
        """As `model_hash`."""
        return hash_of_parts(self.index["sha256"])


@dataclass(frozen=True)
class State:
    """A training state in memory."""

    path: Path
    nimg: int
    tensors: dict[str, dict[str, Tensor]]
    """Tensors by component and name."""
    meta: dict[str, Any]


# Models.


def save_model(
    path: Path,
    generator: Generator | None,
    text_encoder: TextEncoder,
    *,
    provenance: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    discriminator: Discriminator | None = None,
    upsampler: Upsampler | None = None,
    notice: str = "",
) -> Path:
    """Write a self-contained model directory; one that is there is replaced in one step.

    There is a generator, an upsampler or both. `provenance` (plain JSON: kimg, preset, config, data ...) goes into
    model_index.json and the model card, `notice` into NOTICE. `dtype` is that of the networks' weights in the
    files. Raises CheckpointError where path holds something that is no model directory, where a weight isn't finite
    in dtype, or where there is no room.
    """
    path = Path(path)
    if path.exists() and not _replaceable(path):
        raise CheckpointError(f"{path}: exists and is no model directory (no {MODEL_INDEX}); give a new one")
    given = {"generator": generator, "upsampler": upsampler, "discriminator": discriminator}
    parts = {name: network for name, network in given.items() if network is not None}
    numbers = sum(tensor.numel() for network in parts.values() for tensor in network.state_dict().values())
    with _room_needed(path, numbers * dtype.itemsize), committed(path, _PARTS) as folder:
        for name, network in parts.items():
            (folder / name).mkdir()
            write_json(folder / name / "config.json", network_config(network, dtype))
            write_tensors(folder / name / "model.safetensors", _converted(network, dtype, what=name))
        text_encoder.save(folder)
        if generator is not None:
            shutil.copyfile(PACKAGED / "emoji" / FOR_DIFFUSERS, folder / FOR_DIFFUSERS)
        if notice:
            (folder / NOTICE).write_text(notice, encoding="utf-8")
        (folder / "README.md").write_text(model_card(generator, upsampler, text_encoder, provenance), encoding="utf-8")
        write_index(
            folder, {name: NETWORK_PARTS[name] for name in parts} | {"text_encoder": text_encoder.name}, provenance
        )
    return path


@contextmanager
def _room_needed(path: Path, size_bytes: int) -> Iterator[None]:
    """Raises CheckpointError where what is written at `path` in this block can't be."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path}: can't be saved ({error.strerror or error}); it needs {size_bytes:,} bytes, "
            f"{_free_bytes(path):,} are free; make room or check the disk"
        ) from None


def find_model(path: str | Path, revision: str | None = None) -> Path:
    """A model directory: the path itself, or that of the model_index.json which it names.

    Where there is nothing at the path: the model of that name in the package (`emoji`), or a directory of the hub,
    OWNER/NAME or OWNER/NAME@REVISION (`hub.fetched`, which raises CheckpointError where it can't be had). `revision`
    is the same apart from the name; raises ConfigError where that has another one, or isn't of the hub.
    """
    if (place := _at_hand(path)) is not None:
        if revision is not None:
            raise ConfigError(f"{path}: is here, and only models of the hub have revisions; leave revision out")
        return place
    if revision is not None:
        return fetched(at_revision(str(path), revision))
    place = Path(path)
    return fetched(str(path)) if is_hub_id(str(path)) and not place.parent.exists() else place


def _at_hand(path: str | Path) -> Path | None:
    """The directory on this disk or in the package, None where there is neither."""
    place = Path(path)
    try:
        if place.exists():
            return place.parent if place.name == MODEL_INDEX and place.is_file() else place
    except OSError as error:  # a name too long
        raise CheckpointError(f"{str(path)[:60]!r}: no such model directory ({error.strerror})") from None
    packaged = PACKAGED / str(path)
    return packaged if place.name == str(path) and packaged.is_dir() else None


def portable(path: str | Path) -> str:
    """The same for a process that runs elsewhere: a whole path, or the name, which it finds in its own package."""
    place = find_model(path)
    return str(path) if place != Path(path) else str(place.resolve())


def load_model(path: str | Path, device: torch.device | str = "cpu", *, discriminator: bool = True) -> Model:
    """Read a model directory (`find_model`), every tensor checked by name, shape, dtype and hash before it is used.

    Weights come out in float32, networks in eval mode without gradients. Without `discriminator` D is left alone.
    Raises CheckpointError, one line, naming the first differences.
    """
    path = find_model(path)
    settle(path)
    index = read_index(path)
    if "export" in index:
        raise CheckpointError(f"{path}: holds exported graphs; give the model that they were made of, with its weights")
    networks: dict[str, Any] = {}
    builders = (
        ("generator", generator_on_meta),
        ("upsampler", upsampler_on_meta),
        ("discriminator", discriminator_on_meta),
    )
    for name, build in builders:
        if name in index and (name != "discriminator" or discriminator):
            network, stored_dtype = build(path / name)
            check_tensors(path / name / "model.safetensors", network, stored_dtype)
            networks[name] = network
    verify_hashes(path, index["sha256"], parts=networks, skip=() if discriminator else ("discriminator/",))
    for name, module in networks.items():
        load_tensors(path / name / "model.safetensors", module, device)
    encoder = load_text_encoder(path, device)
    for name, network in networks.items():
        if encoder.feature_dim != network.feature_dim:
            raise CheckpointError(
                f"{path}: the text encoder {encoder.name} gives {encoder.feature_dim} features, the {name} takes "
                f"{network.feature_dim}; get the model again"
            )
    return Model(
        networks.get("generator"),
        networks.get("upsampler"),
        encoder,
        networks.get("discriminator"),
        index,
        read_notice(path),
    )


def read_notice(path: Path) -> str:
    """Text of a model directory's NOTICE, empty where there is none."""
    file = path / NOTICE
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def model_hash(path: Path) -> str:
    """Twelve digits of SHA-256 over the parts that make pictures: two models with the same hash draw the same."""
    return hash_of_parts(read_index(Path(path))["sha256"])


def _replaceable(path: Path) -> bool:
    """A model directory, the beginning of one (a text encoder alone), or an empty one."""
    known = (MODEL_INDEX, "text_encoder/config.json")
    return path.is_dir() and (any((path / name).is_file() for name in known) or not any(path.iterdir()))


def _converted(network: nn.Module, dtype: torch.dtype, *, what: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        stored = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous().clone()
        if not bool(stored.isfinite().all()):
            raise CheckpointError(f"{what}: {name} isn't finite in {str(dtype).removeprefix('torch.')}; use float32")
        tensors[name] = stored
    return tensors


# Training states.


def save_state(
    run_dir: Path,
    nimg: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    meta: Mapping[str, Any],
    *,
    keep: int,
    milestone: int = 0,
) -> Path:
    """Commit run_dir/checkpoints/step-NIMG, then delete all but the newest `keep` up to it, and milestones.

    `tensors` by component become one safetensors file each; `meta` is plain JSON. A state of the same nimg is replaced.
    The first state of every `milestone` images is a milestone. Raises CheckpointError where a tensor isn't finite or
    there is no room, and leaves what was there as it was.
    """
    assert keep >= 1, keep
    path = Path(run_dir) / "checkpoints" / f"step-{nimg:08d}"
    named = {f"{component}: {name}": t for component, tensors_ in tensors.items() for name, t in tensors_.items()}
    if broken := [name for name, tensor in named.items() if not bool(tensor.isfinite().all())]:
        raise CheckpointError(f"{path}: not saved, since {', '.join(broken[:3])} isn't finite")
    with _room_needed(path, sum(tensor.nbytes for tensor in named.values())):
        _write_state(path, nimg, tensors, meta)
    for old in _outlived(_steps(path.parent), nimg, keep=keep, milestone=milestone):
        try:
            shutil.rmtree(old)
        except OSError as error:  # a file that a server holds; the next save tries again
            log.warning("%s: an old state isn't deleted (%s)", old, error.strerror or error)
    return path


def _write_state(path: Path, nimg: int, tensors: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
    with committed(path) as temporary:
        for component, named in tensors.items():
            stored = {name: tensor.detach().to("cpu").contiguous() for name, tensor in named.items()}
            write_tensors(temporary / f"{component}.safetensors", stored)
        content = {"nimg": nimg, "components": list(tensors), "meta": dict(meta), "library_version": __version__}
        write_json(temporary / "state.json", content)
        files = {}
        for file in sorted(temporary.iterdir()):
            sync(file)  # before the manifest speaks for it
            files[file.name] = {"sha256": file_sha256(file), "size_bytes": file.stat().st_size}
        write_json(temporary / "manifest.json", {"format_version": STATE_FORMAT, "files": files})


def _outlived(steps: list[tuple[int, Path]], nimg: int, *, keep: int, milestone: int) -> list[Path]:
    """Of committed states, newest first, those that go once that of `nimg` is there."""
    kept = {number for number, _ in steps if number > nimg}
    kept |= {number for number, _ in steps[len(kept) : len(kept) + keep]}
    window = -1
    for number, _ in reversed(steps):
        if milestone and number // milestone > window:
            window = number // milestone
            kept.add(number)
    return [path for number, path in steps if number not in kept]


def _free_bytes(path: Path) -> int:
    try:
        return shutil.disk_usage(next(parent for parent in path.absolute().parents if parent.exists())).free
    except OSError:
        return 0


def latest_state(run_dir: Path, device: torch.device | str = "cpu") -> State | None:
    """The newest whole state of a run, None where there is none yet.

    A damaged one is skipped with a warning in the log; what an interrupted save left behind is deleted. Raises
    CheckpointError where there are states and all are damaged, and where a state is of a later version: a run must
    neither begin anew nor go back unasked.
    """
    folder = Path(run_dir) / "checkpoints"
    if not folder.is_dir():
        return None
    for leftover in folder.glob(".*.replaced"):
        settle(folder / leftover.name[1:].removesuffix(".replaced"))
    delete_stale(folder, _STEP.pattern)
    steps = _steps(folder)
    for _, path in steps:
        try:
            return _read_state(path, device)
        except _LaterVersion:
            raise
        except CheckpointError as error:
            log.warning("skipped a damaged training state: %s", error)
    if steps:
        raise CheckpointError(f"{folder}: none of its {len(steps)} states is whole; delete the folder to begin anew")
    return None


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """Committed states, newest first."""
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := _STEP.fullmatch(path.name)) and path.is_dir()]
    return sorted(found, reverse=True)


class _LaterVersion(CheckpointError):
    """A state that a later version of the package wrote."""


def _read_state(path: Path, device: torch.device | str) -> State:
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format_version"] != STATE_FORMAT:
            later = isinstance(manifest["format_version"], int) and manifest["format_version"] > STATE_FORMAT
            raise (_LaterVersion if later else CheckpointError)(
                f"{path}: format {manifest['format_version']}; this version reads {STATE_FORMAT}; update open-gigagan"
            )
        for name, entry in manifest["files"].items():
            file = path / name
            if file.stat().st_size != entry["size_bytes"] or file_sha256(file) != entry["sha256"]:
                raise CheckpointError(f"{file}: isn't what was saved (size or SHA-256)")
        content = json.loads((path / "state.json").read_text(encoding="utf-8"))
        names: list[str] = content["components"]
        tensors = {name: load_file(path / f"{name}.safetensors", device=str(device)) for name in names}
        return State(path, content["nimg"], tensors, content["meta"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't be read ({type(error).__name__}: {error})") from None
