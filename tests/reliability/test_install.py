"""Rows I1 to I4 of the fault matrix: no network, no torchvision, other versions beside ours, licences."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
NO_NETWORK = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
"""A namespace whose only interface is the loopback."""
COUNTED = """
import socket, sys
asked = []
def see(event, args):
    family = getattr(args[0], "family", None) if event == "socket.connect" else socket.AF_INET
    if event in ("socket.connect", "socket.getaddrinfo") and family != socket.AF_UNIX:
        asked.append((event, args[1:]))
sys.addaudithook(see)
from gigagan.cli import main
try:
    main()
finally:
    assert not asked, asked
"""


def isolated(*command: object) -> subprocess.CompletedProcess[str]:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs Linux with unshare and ip")
    if subprocess.run([*NO_NETWORK, "true"], capture_output=True, check=False).returncode:
        pytest.skip("namespaces aren't allowed here")
    return subprocess.run([*NO_NETWORK, *map(str, command)], capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.slow
def test_i1_a_picture_without_a_network_and_nobody_is_asked(tmp_path: Path) -> None:
    made = isolated(sys.executable, "-c", COUNTED, "generate", "a red apple", "--seeds", "0", "--out", tmp_path / "out")
    assert made.returncode == 0, made.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("model", ["nosuch", "no/such/model", "somebody/nothing", "somebody/nothing@" + "0" * 40])
def test_i1_weights_that_are_missing_are_said_to_be(tmp_path: Path, model: str) -> None:
    """Without a network, too: a name of the hub ends at the first try."""
    code = "from gigagan.cli import main; main()"
    refused = isolated(sys.executable, "-c", code, "generate", "a cat", "--model", model, "--out", tmp_path / "out")
    assert refused.returncode == 2, refused.stderr
    (line,) = refused.stderr.splitlines()
    assert model in line
    assert not (tmp_path / "out").exists()


@pytest.mark.matrix
@pytest.mark.timeout(3600)
def test_i1_a_fresh_environment_is_small_and_passes_its_tests_offline(tmp_path: Path) -> None:
    """A clone of what is committed: the base alone draws, in 1.5 GB; then the fast tests without a network."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    subprocess.run(["make", "demo"], cwd=clone, check=True)
    size = sum(path.stat().st_size for path in clone.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"{size / 1e9:.2f} GB")
    assert size <= 1.5e9
    again = isolated("make", "-C", clone, "demo")
    assert again.returncode == 0, again.stderr
    subprocess.run(["make", "install"], cwd=clone, check=True)
    done = subprocess.run([*NO_NETWORK, "make", "-C", str(clone), "test"], check=False)
    assert done.returncode == 0


@pytest.mark.slow
def test_i2_torchvision_is_never_wanted() -> None:
    """Where it can't be imported every module can, and a picture is drawn from a prompt and enlarged."""
    code = """
import importlib, pkgutil, sys
sys.modules["torchvision"] = None
import gigagan
for module in pkgutil.walk_packages(gigagan.__path__, "gigagan."):
    if ".pretrained" not in module.name and module.name != "gigagan.__main__":
        importlib.import_module(module.name)
from gigagan import Pipeline
pipe = Pipeline.from_pretrained()
pipe.upsample(pipe("a cat", seeds=[0]).level(64)[0], scale=2)
assert sys.modules["torchvision"] is None
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.matrix
@pytest.mark.parametrize("pillow", ["11.0.0", "13.0.0"])
@pytest.mark.parametrize("torch", ["2.6.0", "2.9.1", "2.14.1+cu130"])
def test_i3_nothing_that_is_installed_changes(tmp_path: Path, torch: str, pillow: str) -> None:
    """Beside somebody's torch and Pillow pip would take neither away: a CUDA build stays."""
    builder = venv.EnvBuilder(with_pip=True)
    builder.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    # What pip reads of an installed package, without its files: gigabytes each, and pip needs no more to decide.
    for name, version in {"torch": torch, "pillow": pillow, "numpy": "1.26.4", "pyyaml": "6.0.2"}.items():
        (packages / f"{name}-{version}.dist-info").mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (packages / f"{name}-{version}.dist-info" / "METADATA").write_text(text)
    report = tmp_path / "report.json"
    asked = [python, "-m", "pip", "install", "-q", "--dry-run", "--report", report, f"{ROOT}[serve,data,train]"]
    done = subprocess.run([str(part) for part in asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = {item["metadata"]["name"].lower() for item in json.loads(report.read_text())["install"]}
    assert "open-gigagan" in wanted
    assert not wanted & {"torch", "pillow", "numpy", "pyyaml", "torchvision"}


def closure(name: str, extras: set[str], found: dict[str, importlib.metadata.Distribution]) -> None:
    """What a package needs, as far as it is installed here."""
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return
    key = name.lower().replace("_", "-")
    if key in found and not extras:
        return
    found[key] = package
    for text in package.requires or []:
        need = Requirement(text)
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            closure(need.name, set(need.extras), found)


def test_i4_no_licence_forbids_commerce() -> None:
    """Of all that the base and each extra bring along."""
    found: dict[str, importlib.metadata.Distribution] = {}
    extras = importlib.metadata.metadata("open-gigagan").get_all("Provides-Extra") or []
    closure("open-gigagan", set(extras) - {"dev"}, found)
    assert {"torch", "pillow", "fastapi", "onnxruntime"} <= set(found)
    for name, package in found.items():
        about = package.metadata
        said = [about.get("License-Expression"), about.get("License"), *(about.get_all("Classifier") or [])]
        text = " ".join(str(line) for line in said if line)
        assert text, f"{name} names no licence"
        assert not re.search(r"non-?commercial|\bNC\b|-NC-|research only", text, re.IGNORECASE), f"{name}: {text[:200]}"
