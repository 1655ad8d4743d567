"""Imports every module of the installed package: none but the server's may need an optional package to be imported.

Run by CI in an environment that has the base dependencies only; not a test, since the tests' environment has all.
"""

import importlib
import sys
from pathlib import Path

import gigagan

# What gigagan.serving and what runs by Ray are made of; the commands say in one line where it is missing.
SERVER = {"fastapi", "prometheus_client", "python_multipart", "ray", "starlette", "uvicorn"}
PLACES = ("gigagan.serving.", "gigagan.ray_")
OPTIONAL = {
    "c2pa",
    "grain",
    "tensorboard",
    "transformers",
    "pyarrow",
    "resvg_py",
    "torchmetrics",
    "torchvision",
    "onnxruntime",
    "openvino",
}

root = Path(gigagan.__path__[0])
# What lies beside the weights goes with them, for diffusers; it is no module of the package.
paths = [path.relative_to(root.parent) for path in root.rglob("*.py") if "pretrained" not in path.parts]
names = sorted(".".join(path.with_suffix("").parts) for path in paths)
for name in names:
    try:
        importlib.import_module(name.removesuffix(".__init__"))
    except ModuleNotFoundError as error:
        if not name.startswith(PLACES) or (error.name or "").partition(".")[0] not in SERVER:
            raise
wanted = OPTIONAL & set(sys.modules)
assert not wanted, f"imported at the door: {', '.join(sorted(wanted))}"
print(f"{len(names)} modules of {root} import with the base dependencies")
