"""Files of frozen networks: tensors checked by name, shape and hash, configs, tokenizers, licences."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from gigagan.errors import CheckpointError

LICENCE_FILES = ("LICENSE", "NOTICE")


def read_tensors(path: Path, shapes: dict[str, tuple[int, ...]], sha256: str = "") -> dict[str, Tensor]:
    """The named tensors of a safetensors file. Raises CheckpointError that names the first one missing or misshapen.

    Names and shapes are checked before the hash, so that the message says what is wrong where that can be said.
    """
    try:
        with safe_open(path, framework="pt") as file:
            held = set(file.keys())
            for name, shape in shapes.items():
                if name not in held:
                    raise CheckpointError(f"{path}: tensor {name} is missing; get the file again")
                found = tuple(file.get_slice(name).get_shape())
                if found != shape:
                    raise CheckpointError(f"{path}: tensor {name} has shape {list(found)}; expected {list(shape)}")
            check_sha256(path, sha256)
            return {name: file.get_tensor(name) for name in shapes}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected the weights of a frozen network") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: isn't a whole safetensors file ({error}); get it again") from None


def check_sha256(path: Path, expected: str) -> None:
    """Raises CheckpointError where a file isn't the expected one; an empty expectation passes."""
    if expected and (actual := file_sha256(path)) != expected:
        raise CheckpointError(
            f"{path}: sha256 is {actual[:12]}..., config.json says {expected[:12]}...; get the file again"
        )


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class PromptTokenizer:
    """A tokenizer.json: prompts to ids, cut at max_tokens but for the last token, which ends a prompt."""

    def __init__(self, content: bytes, max_tokens: int) -> None:
        self.content = content
        self.max_tokens = max_tokens
        self.tokenizer = Tokenizer.from_buffer(content)
        self.tokenizer.no_truncation()  # Tokens are counted before they are cut.
        self.tokenizer.no_padding()

    @classmethod
    def read(cls, folder: Path, max_tokens: int) -> "PromptTokenizer":
        """Of folder/tokenizer.json. Raises CheckpointError where there is none or it isn't one."""
        path = folder / "tokenizer.json"
        try:
            return cls(path.read_bytes(), max_tokens)
        except OSError:
            raise CheckpointError(f"{path}: no such file; expected the text encoder's tokenizer") from None
        except ValueError as error:
            raise CheckpointError(f"{path}: isn't a tokenizer ({' '.join(str(error).split())}); get it again") from None

    def save(self, folder: Path) -> None:
        """Write folder/tokenizer.json, the bytes that were read."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_bytes(self.content)

    def count(self, prompt: str) -> int:
        """Tokens of the whole prompt, special ones included."""
        return len(self.tokenizer.encode(prompt).ids)

    def ids(self, prompt: str) -> list[int]:
        """Ids of the prompt, at most max_tokens."""
        ids: list[int] = self.tokenizer.encode(prompt).ids
        return ids if len(ids) <= self.max_tokens else ids[: self.max_tokens - 1] + ids[-1:]


def locate(folder: Path) -> tuple[Path, Path]:
    """Where weights and tokenizer are: in text_encoder/ and tokenizer/, or all in the folder itself."""
    if (folder / "text_encoder").is_dir():
        return folder / "text_encoder", folder / "tokenizer"
    return folder, folder


def read_config(folder: Path) -> dict[str, Any]:
    """Content of folder/config.json. Raises CheckpointError where there is none or it isn't an object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected a frozen network's config") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: can't be read ({error}); get it again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds a {type(config).__name__}; expected an object")
    return config


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write folder/config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_licences(folder: Path) -> dict[str, bytes]:
    """The licence files beside some weights, which go wherever the weights go."""
    return {name: (folder / name).read_bytes() for name in LICENCE_FILES if (folder / name).is_file()}


def write_licences(folder: Path, licences: dict[str, bytes]) -> None:
    """Write them beside other weights."""
    for name, content in licences.items():
        (folder / name).write_bytes(content)
