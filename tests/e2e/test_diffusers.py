"""diffusers itself loads a saved model directory and draws gigagan's own pictures. Skips where it isn't installed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gigagan import Pipeline

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
pytest.importorskip("diffusers", reason="diffusers isn't installed (make e2e installs it)")

LOAD = """
import sys
import numpy as np, torch
from diffusers import DiffusionPipeline

def load(**changes):
    where = {"custom_pipeline": "my-model", "trust_remote_code": True} | changes
    return DiffusionPipeline.from_pretrained("my-model", **where)
"""
INTERFACE = (
    LOAD
    + """
pipe = load()
made = lambda: torch.Generator().manual_seed(3)
a, b = pipe(["a cat", "a star"], generator=made(), num_images_per_prompt=2, output_type="np", return_dict=False)[0][:2]
(again,) = pipe("a cat", generator=made(), output_type="np").images
assert a.dtype == np.float32 and 0 <= a.min() < a.max() <= 1
assert np.array_equal(a, again) and not np.array_equal(a, b)
other = torch.Generator().manual_seed(4)
four = {"generator": [made(), other, made(), made()], "num_images_per_prompt": 2, "output_type": "np"}
c, d, e, f = pipe(["a cat", "a star"], **four).images
assert np.array_equal(a, c) and np.array_equal(e, f) and not np.array_equal(c, d)
try:
    pipe(["a cat", "a star"], generator=[made()])
except ValueError as error:
    assert str(error) == "1 generators came for 2 pictures; give one, or one a picture"
else:
    raise AssertionError("one generator for two pictures")
for wrong in ({"num_inference_steps": 20}, {"guidance_scale": 7.5}):
    try:
        pipe("a cat", **wrong)
    except TypeError as error:
        assert next(iter(wrong)) in str(error)
    else:
        raise AssertionError(wrong)
coarse = pipe.to("cpu", torch.bfloat16)
assert coarse is pipe and list(pipe.components) == ["source"] and "source" in repr(pipe)
assert pipe.dtype == torch.bfloat16 and pipe.device.type == "cpu"
pipe.to(torch.float32).save_pretrained("again")
assert pipe.gigagan.upsample(pipe("a cat", seeds=1).images[0], scale=2).size == (1024, 1024)
"""
)
DTYPE = """
from gigagan import Pipeline
coarse = Pipeline.from_pretrained("my-model", dtype="bfloat16")("a cat", seeds=[3], output_type="np").images
for name in ("torch_dtype", "dtype"):
    pipe = load(**{name: torch.bfloat16})
    assert pipe.dtype == torch.bfloat16
    assert np.array_equal(pipe("a cat", seeds=[3], output_type="np").images, coarse)
fine = load()
assert fine.dtype == torch.float32
assert not np.array_equal(fine("a cat", seeds=[3], output_type="np").images, coarse)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model that was saved, not the shipped directory itself."""
    Pipeline.from_pretrained().save_pretrained(tmp_path / "my-model")
    return tmp_path


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_documents_lines_draw_the_pipelines_picture(folder: Path) -> None:
    text = (ROOT / "docs" / "elsewhere.md").read_text(encoding="utf-8")
    (lines,) = [block for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if "diffusers" in block]
    done = run(lines, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    with Image.open(folder / "apple.png") as picture:
        drawn = Pipeline.from_pretrained()("a 3D render of a red apple", seeds=[0]).images[0]
        assert np.array_equal(np.asarray(picture), np.asarray(drawn))


def test_the_interface_is_the_one_of_diffusers(folder: Path) -> None:
    done = run(INTERFACE, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        Pipeline.from_pretrained(folder / "again").model_hash
        == Pipeline.from_pretrained(folder / "my-model").model_hash
    )


def test_a_dtype_chooses_the_arithmetic(folder: Path) -> None:
    done = run(LOAD + DTYPE, folder)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("damage", "code", "told"),
    [
        ("", "load(trust_remote_code=False)", "trust_remote_code=True"),
        ("generator/model.safetensors", "load()", "get the model again"),
        ("pipeline.py", "load()", "get the model again"),
        ("", "load(torch_dtype=torch.float16)", "use float32 or bfloat16"),
    ],
)
def test_what_is_damaged_or_not_asked_for_is_refused(folder: Path, damage: str, code: str, told: str) -> None:
    if damage:
        with (folder / "my-model" / damage).open("ab") as file:
            file.write(b"\n")
    done = run(LOAD + code, folder)
    assert done.returncode == 1
    assert told in done.stderr
