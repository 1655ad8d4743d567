"""The server with an exported model: the same requests, the same pictures."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from gigagan.pipeline import Pipeline

pytestmark = pytest.mark.xdist_group("exported")


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_an_exported_model_is_served(
    format: str, launch: Any, exported_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = exported_model(format)
    with launch(tmp_path, "-m", "gigagan", "serve", "--port", "0", "--model", str(folder)) as server:
        asked = {"prompt": "a rocket", "n": 3, "seed": 5, "truncation_psi": 0.5, "size": "64x64"}
        mixed = asked | {"mix": {"prompt": "a leaf", "layer": 1}, "size": "16x16", "n": 1}
        answers = [httpx.post(f"{server.url}/images/generations", json=body, timeout=60) for body in (asked, mixed)]
        models = httpx.get(f"{server.url}/models").json()
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text[:500]
    assert models["data"][0]["id"] == format
    files = [base64.b64decode(one["b64_json"]) for one in answers[0].json()["data"]]
    expected = Pipeline.from_pretrained(folder)("a rocket", seeds=[5, 6, 7], truncation_psi=0.5).images
    for content, image in zip(files, expected, strict=True):
        with Image.open(io.BytesIO(content)) as found:
            assert np.array_equal(np.asarray(found), np.asarray(image))
