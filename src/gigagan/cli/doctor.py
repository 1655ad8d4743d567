"""`gigagan doctor`: what of this machine the package finds, and a line to cure what is missing."""

import importlib.util
import sys

import click

EXTRAS = {
    "train": ("grain", "tensorboard"),
    "clip": ("transformers",),
    "data": ("pyarrow", "resvg_py", "upath", "aiohttp"),
    "eval": ("torchmetrics",),
    "fid": ("cleanfid", "torch_fidelity", "torchvision"),
    "serve": ("fastapi", "uvicorn", "prometheus_client", "python_multipart"),
    "ui": ("gradio",),
    "video": ("imageio_ffmpeg",),
    "export": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "hub": ("huggingface_hub",),
    "scale": ("ray",),
    "c2pa": ("c2pa",),
}
PYTHON = (3, 11)
MARKS = {"": "ok", "optional": "--", "fatal": "!!"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> int:
    """Say which device, versions, extras, weights and data are found, with a cure for each fault.

    Ends with 2 where a picture can't be drawn.
    """
    import json

    found = [*_versions(), *_devices(), *_extras(), *_weights()]
    if as_json:
        print(json.dumps([{"what": what, "found": text, "fault": level} for what, text, level in found], indent=2))
    else:
        for what, text, level in found:
            print(f"{MARKS[level]}  {what:18}{text}")
    return 2 if any(level == "fatal" for _, _, level in found) else 0


Finding = tuple[str, str, str]
"""What, what was found or how to cure it, and '' (fine), 'optional' or 'fatal'."""


def _versions() -> list[Finding]:
    import torch

    from gigagan import __version__

    old = sys.version_info < PYTHON
    python = ".".join(map(str, sys.version_info[:3])) + (f"; install Python {PYTHON[0]}.{PYTHON[1]}" if old else "")
    parts = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    cure = "; run: pip install 'torch>=2.6'" if parts < (2, 6) else ""
    return [
        ("open-gigagan", __version__, ""),
        ("python", python, "fatal" if old else ""),
        ("torch", torch.__version__ + cure, "fatal" if cure else ""),
    ]


def _devices() -> list[Finding]:
    import torch

    from gigagan import dist

    device = dist.device("auto")
    found: list[Finding] = [("device", f"{device}, {torch.get_num_threads()} threads", "")]
    if device.type == "cpu":
        cure = "no accelerator; with an NVIDIA one: nvidia-smi, then a CUDA build of torch"
        found.append(("accelerator", cure, "optional"))
    ones = torch.ones(2, 2, device=device, dtype=torch.bfloat16)
    works = float((ones @ ones).sum()) == 8  # a product tells more than a flag
    cure = dist.slow_bfloat16(device) if works else "float32 alone; leave train.dtype=float32"
    found.append(("dtypes", cure or "float32, bfloat16", "optional" if cure else ""))
    several = dist.available()
    ranks = "yes" if several else "this build of torch knows one process alone; install another"
    found.append(("several processes", ranks, "" if several else "optional"))
    return found


def _extras() -> list[Finding]:
    found: list[Finding] = []
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        cure = f"without {', '.join(missing)}; run: pip install 'open-gigagan[{extra}]'"
        found.append((f"extra {extra}", cure if missing else "installed", "optional" if missing else ""))
    return found


def _weights() -> list[Finding]:
    from gigagan.checkpoint import load_model
    from gigagan.data.dataset import open_dataset, packaged_pictures
    from gigagan.errors import GigaGANError
    from gigagan.models.frozen import load_efficientnet_lite

    found: list[Finding] = []
    try:
        model = load_model("emoji", discriminator=False)
        found.append(("model emoji", f"whole, {model.hash}", ""))
    except GigaGANError as error:
        found.append(("model emoji", f"{error}; run: pip install --force-reinstall open-gigagan", "fatal"))
    try:
        load_efficientnet_lite("lite0", "cpu")
        found.append(("weights lite0", "found", ""))
    except GigaGANError:
        found.append(("weights lite0", "absent; for training with it: gigagan data weights lite0", "optional"))
    try:
        found.append(("pictures", f"{len(open_dataset(packaged_pictures())):,} in the package", ""))
    except GigaGANError as error:
        found.append(("pictures", str(error), "optional"))
    return found
