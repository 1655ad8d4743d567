"""A server with a certificate signs every picture, of requests, streams and uploads."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from gigagan.metadata import ENHANCED_TYPE, SOURCE_TYPE, read_info

c2pa = pytest.importorskip("c2pa")


def file_in(answer: httpx.Response) -> bytes:
    assert answer.status_code == 200, answer.text[:500]
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def signed_actions(content: bytes, kind: str) -> list[dict[str, Any]]:
    with c2pa.Reader(f"image/{kind}", io.BytesIO(content)) as reader:
        found = json.loads(reader.json())
    assert found["validation_state"] == "Valid"
    manifest = found["manifests"][found["active_manifest"]]
    assert manifest["signature_info"]["common_name"] == "Signer of tests"
    (one,) = [a for a in manifest["assertions"] if a["label"] == "c2pa.actions.v2"]
    listed: list[dict[str, Any]] = one["data"]["actions"]
    return listed


def pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def test_every_picture_of_a_server_is_signed(server: Any, launch: Any, tmp_path: Path) -> None:
    from tests.certificates import make_certificate

    environment = make_certificate(tmp_path / "certificate").environment
    body = {"prompt": "a red apple", "seed": 3, "size": "64x64"}
    small = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(small, "PNG")
    upload = {"files": {"image": ("x.png", small.getvalue())}, "timeout": 60}
    with launch(tmp_path, "-m", "gigagan", "serve", "--port", "0", environment=environment) as signing:
        for kind in ("png", "jpeg", "webp", "gif"):
            asked = body | {"output_format": kind} | ({"frame_count": 3} if kind == "gif" else {})
            signed, plain = (
                file_in(httpx.post(f"{one.url}/images/generations", json=asked, timeout=60))
                for one in (signing, server)
            )
            (created,) = signed_actions(signed, kind)
            assert (created["action"], created["digitalSourceType"]) == ("c2pa.created", SOURCE_TYPE)
            assert np.array_equal(pixels(signed), pixels(plain)), kind
            if kind != "gif":
                path = tmp_path / f"x.{kind}"
                path.write_bytes(signed)
                said = read_info(path)
                assert (said["prompt"], said["seed"]) == ("a red apple", "3")
                assert said["model"] == created["parameters"]["model"]
        for kind in ("png", "jpeg", "webp"):
            fields = {"scale": "2", "output_format": kind, "prompt": "a red apple"}
            signed, plain = (
                file_in(httpx.post(f"{one.url}/images/upscale", data=fields, **upload)) for one in (signing, server)
            )
            opened, edited = signed_actions(signed, kind)
            assert (opened["action"], edited["action"]) == ("c2pa.opened", "c2pa.edited")
            assert edited["digitalSourceType"] == ENHANCED_TYPE
            assert np.array_equal(pixels(signed), pixels(plain)), kind
        streamed = body | {"stream": True, "partial_images": 2}
        lines = httpx.post(f"{signing.url}/images/generations", json=streamed, timeout=60).text.splitlines()
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        assert len(events) == 3
        for event in events:
            signed_actions(base64.b64decode(event["b64_json"]), "png")
