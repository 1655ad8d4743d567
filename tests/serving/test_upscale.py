"""POST /v1/images/upscale through sockets, with the shipped upsampler."""

import asyncio
import base64
import io
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types import ImagesResponse
from PIL import Image, ImageCms

from gigagan.metadata import ENHANCED_TYPE
from gigagan.pipeline import Pipeline
from gigagan.serving.limits import MAX_UPLOAD_BYTES, MAX_UPLOADS_BYTES

UPSCALE = "/images/upscale"
FORM = {"headers": {"Content-Type": "multipart/form-data"}}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained()


def picture(mode: str = "RGB", size: tuple[int, int] = (12, 9), seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, size[::-1], np.uint16))
    channels = rng.integers(0, 256, (*size[::-1], 4), np.uint8)
    if mode == "P":
        image = Image.fromarray(channels[..., :3]).quantize(16)
        image.info["transparency"] = 3
        return image
    bands = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}
    found = channels[..., : bands[mode]]
    return Image.frombytes(mode, size, np.ascontiguousarray(found).tobytes())


def content(image: Image.Image, kind: str = "PNG", **said: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **said)
    return buffer.getvalue()


def post(server: Any, file: bytes, name: str = "image", timeout: float = 60, **fields: Any) -> httpx.Response:
    files = {name: ("x.png", file)}
    return httpx.post(f"{server.url}{UPSCALE}", files=files, data=fields, timeout=timeout)


def opened(answer: Any) -> Image.Image:
    found = answer if isinstance(answer, dict) else answer.json()
    image = Image.open(io.BytesIO(base64.b64decode(found["data"][0]["b64_json"], validate=True)))
    image.load()
    return image


def refused(answer: httpx.Response, status: int, code: str, param: str | None) -> str:
    assert answer.status_code == status, answer.text[:500]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"]
    return str(error["message"])


def metric(server: Any, name: str) -> float:
    lines = httpx.get(f"{server.root}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}(\{{|\s)", line))


def test_openais_client_sends_a_file_and_gets_the_pipelines_picture(server: Any, pipe: Pipeline) -> None:
    small = picture(size=(20, 14))
    files = [("image", ("small.png", content(small)))]
    body = {"scale": 4, "prompt": "a red apple", "seed": 3, "user": "me"}

    async def later() -> Any:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            return await client.post(UPSCALE, cast_to=ImagesResponse, body=body, files=files, options=FORM)

    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        answer = client.post(UPSCALE, cast_to=ImagesResponse, body=body, files=files, options=FORM)
        with pytest.raises(openai.BadRequestError) as caught:
            client.post(UPSCALE, cast_to=ImagesResponse, body={"scale": 5}, files=files, options=FORM)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "scale")
    expected = pipe.upsample(small, scale=4, prompt="a red apple", seed=3)
    for one in (answer, asyncio.run(later())):
        assert np.array_equal(np.asarray(opened(one.model_dump())), np.asarray(expected))
        assert one.data[0].seed == 3
        assert (one.size, one.output_format, one.background, one.model) == ("80x56", "png", "opaque", "emoji")
        assert one.usage.input_tokens == pipe.text_encoder.count_tokens("a red apple")


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "CMYK", "I;16"])
def test_every_mode_is_as_the_pipeline_makes_it(server: Any, pipe: Pipeline, mode: str) -> None:
    small = picture(mode)
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() if mode.startswith("RGB") else b""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a note"  # turned by a quarter
    kind = {"CMYK": "TIFF", "RGB": "WEBP"}.get(mode, "PNG")
    file = content(small, kind, exif=exif, **({"icc_profile": icc} if icc else {}))
    made = opened(post(server, file, name="image[]", to=30))
    expected = pipe.upsample(Image.open(io.BytesIO(file)), to=30)
    assert made.mode == expected.mode == {"P": "RGBA", "CMYK": "RGB"}.get(mode, mode)
    assert made.size == (22, 30)
    assert np.array_equal(np.asarray(made), np.asarray(expected))
    assert made.info.get("icc_profile", b"") == icc
    assert made.getexif()[0x010E] == "a note"
    assert 0x0112 not in made.getexif()
    assert ENHANCED_TYPE in made.info["XML:com.adobe.xmp"]
    assert made.info["seed"] == "0"


@pytest.mark.parametrize(
    ("kind", "mode", "becomes"),
    [
        ("jpeg", "RGB", "RGB"),
        ("jpeg", "L", "L"),
        ("jpeg", "I;16", "L"),
        ("webp", "RGB", "RGB"),
        ("webp", "RGBA", "RGBA"),
        ("webp", "LA", "RGBA"),
        ("webp", "L", "RGB"),
    ],
)
def test_lossy_formats(server: Any, pipe: Pipeline, kind: str, mode: str, becomes: str) -> None:
    small = picture(mode, (24, 24))
    exif = Image.Exif()
    exif[0x010E] = "a note"
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() if mode == "RGB" else b""
    file = content(small, exif=exif, **({"icc_profile": icc} if icc else {}))
    made = opened(post(server, file, scale=2, output_format=kind, output_compression=100))
    assert (made.format, made.mode, made.size) == (kind.upper(), becomes, (48, 48))
    whole = pipe.upsample(small, scale=2)
    shown = np.asarray(whole, np.float32) / 257 if mode == "I;16" else np.asarray(whole.convert(becomes), np.float32)
    seen = np.asarray(made, np.float32)
    if becomes == "RGBA":  # under transparent places a WebP may hold any color
        shown, seen = (x[..., :3] * x[..., 3:] / 255 for x in (shown, seen))
    assert np.abs(seen - shown).mean() < 20
    assert made.getexif()[0x010E] == "a note"
    assert made.info.get("icc_profile", b"") == icc
    assert ENHANCED_TYPE.encode() in made.info["xmp"]


def test_quality_is_obeyed_and_metadata_that_doesnt_fit_is_told(server: Any) -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 70_000
    sizes = []
    for quality in (1, 50, 100):
        answer = post(server, content(picture(), exif=exif), scale=2, output_format="jpeg", output_compression=quality)
        assert "EXIF" in answer.json()["warnings"][0]
        sizes.append(len(answer.json()["data"][0]["b64_json"]))
    assert sizes == sorted(set(sizes))
    long = post(server, content(picture()), scale=2, prompt="an apple " * 100)
    assert "dropped" in long.json()["warnings"][0]


SMALL = content(picture())
FRAMES = content(picture(), "WEBP", save_all=True, append_images=[picture(seed=1)], lossless=True)
WRONG: list[tuple[bytes, dict[str, Any], str, str | None]] = [
    (SMALL, {"scale": 3}, "invalid_value", "scale"),
    (SMALL, {"scale": "two"}, "invalid_value", "scale"),
    (SMALL, {"scale": 2, "to": 30}, "invalid_value", "to"),
    (SMALL, {"to": 12}, "invalid_value", "to"),
    (SMALL, {"to": 70_000}, "invalid_value", "to"),
    (SMALL, {"to": 60_000}, "image_too_large", "to"),
    (SMALL, {"to": 17_000, "output_format": "webp"}, "image_too_large", "to"),
    (SMALL, {"seed": -1}, "invalid_value", "seed"),
    (SMALL, {"seed": 2**63}, "invalid_value", "seed"),
    (SMALL, {"n": 2}, "invalid_value", "n"),
    (SMALL, {"prompt": "x" * 4001}, "string_above_max_length", "prompt"),
    (SMALL, {"prompt": "a\0b"}, "invalid_value", "prompt"),
    (SMALL, {"output_format": "gif"}, "invalid_value", "output_format"),
    (SMALL, {"output_compression": 50}, "invalid_value", "output_compression"),
    (SMALL, {"response_format": "url"}, "unsupported_value", "response_format"),
    (SMALL, {"sede": 1}, "unknown_parameter", "sede"),
    (SMALL, {"mask": "x"}, "unknown_parameter", "mask"),
    (b"", {}, "missing_required_parameter", "image"),
    (b"https://example.com/cat.png", {}, "invalid_value", "image"),
    (SMALL[:60], {}, "invalid_value", "image"),
    (SMALL[:-30], {"scale": 2}, "invalid_value", "image"),
    (content(picture(), "GIF"), {}, "invalid_value", "image"),
    (FRAMES, {"scale": 2}, "invalid_value", "image"),
    (content(picture("RGBA")), {"scale": 2, "output_format": "jpeg"}, "invalid_value", "output_format"),
    (content(Image.new("1", (30_000, 30_000))), {"scale": 2}, "image_too_large", "image"),
    (content(Image.new("1", (9_000, 9_000))), {"scale": 2}, "image_too_large", "image"),
    (content(Image.new("1", (6_000, 6_000))), {"scale": 2}, "image_too_large", "scale"),
]


@pytest.mark.parametrize(("file", "fields", "code", "param"), WRONG, ids=lambda value: str(value)[:30])
def test_mistakes_name_their_field(server: Any, file: bytes, fields: dict[str, Any], code: str, param: str) -> None:
    message = refused(post(server, file, **fields), 400, code, param)
    assert "/" not in message.replace("multipart/form-data", "")


def test_other_mistakes_of_a_request(server: Any) -> None:
    url = f"{server.url}{UPSCALE}"
    refused(post(server, SMALL, model="../etc"), 404, "model_not_found", "model")
    refused(httpx.post(url, json={"image": "x"}), 415, "unsupported_media_type", None)
    refused(httpx.post(url, files={"other": b"x"}), 400, "unknown_parameter", "other")
    refused(httpx.post(url, files=[("image", SMALL), ("image[]", SMALL)]), 400, "invalid_value", "image")
    refused(httpx.post(url, files=[("image[]", SMALL), ("image[]", SMALL)]), 400, "invalid_value", "image[]")
    refused(httpx.post(url, files=[(f"x{n}", b"") for n in range(40)]), 400, "invalid_multipart", None)
    refused(httpx.post(url, files={"image": SMALL}, data={"seed": [1, 2]}), 400, "invalid_value", "seed")
    refused(httpx.post(url, files={"image": SMALL, "prompt": b"\xff"}), 400, "invalid_value", "prompt")
    large = b"x" * MAX_UPLOAD_BYTES
    refused(httpx.post(url, files={"image": large}, timeout=60), 413, "body_too_large", "image")
    for kind in ("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=x"):
        for body in (b"", b"--x", b"--x\r\n", b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc'):
            answer = httpx.post(url, content=body, headers={"content-type": kind})
            refused(answer, 400, "invalid_multipart", None)
    origin = {"origin": "https://evil.example"}
    refused(httpx.post(url, files={"image": SMALL}, headers=origin), 403, "foreign_origin", None)


def malformed(server: Any, count: int, seed: int) -> None:
    """A good form, bent: bytes of it changed, cut out or added, in its frame as in its picture."""
    rng = random.Random(seed)
    files = [content(picture(mode), kind) for mode in ("RGB", "L") for kind in ("PNG", "JPEG", "WEBP", "TIFF")]
    with httpx.Client(timeout=60) as client:
        served = 0
        for _ in range(count):
            form = client.build_request("POST", server.url, files={"image": rng.choice(files)}, data={"scale": "2"})
            body = bytearray(form.read())
            for _ in range(rng.randrange(1, 8)):
                place = rng.randrange(len(body))
                match rng.randrange(3):
                    case 0:
                        body[place] = rng.randrange(256)
                    case 1:
                        del body[place : place + rng.randrange(1, 40)]
                    case _:
                        body[place:place] = rng.randbytes(rng.randrange(40))
            kind = {"content-type": form.headers["content-type"]}
            answer = client.post(f"{server.url}{UPSCALE}", content=bytes(body), headers=kind)
            assert answer.status_code < 500, (answer.text, bytes(body))
            if answer.status_code == 200:
                served += 1
            else:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
                assert "Traceback" not in answer.text
                assert "/site-packages" not in answer.text
    assert served < count
    assert post(server, SMALL).status_code == 200


def test_malformed_forms(server: Any) -> None:
    malformed(server, 150, 0)


@pytest.mark.matrix
@pytest.mark.timeout(1800)
def test_two_thousand_malformed_forms(server: Any) -> None:
    malformed(server, 2000, 1)


def test_the_limit_of_pixels_is_exact(launch_limited: Any, tmp_path: Path) -> None:
    with launch_limited(tmp_path, upscale_pixels=96 * 72) as server:
        assert opened(post(server, SMALL)).size == (96, 72)
        wide = content(picture(size=(13, 9)))
        assert "104 x 72" in refused(post(server, wide), 400, "image_too_large", "scale")
        refused(post(server, SMALL, to=97), 400, "image_too_large", "to")


def test_a_model_without_an_upsampler_says_so(launch_limited: Any, tmp_path: Path) -> None:
    with launch_limited(tmp_path) as server:
        refused(post(server, SMALL), 400, "unsupported_value", "model")


def test_an_overfull_queue_refuses_pictures_and_prompts_alike(launch_limited: Any, tmp_path: Path) -> None:
    file = content(picture(size=(96, 96)))
    with launch_limited(tmp_path, queue=3, queue_sec=30, total_sec=60, upscale_pixels=2**20) as server:

        def ask(number: int) -> httpx.Response:
            if number % 4 == 0:
                said = {"prompt": "a cat", "seed": number, "size": "64x64"}
                return httpx.post(f"{server.url}/images/generations", json=said, timeout=60)
            return post(server, file, seed=number)

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(16)))
        count = {status: sum(one.status_code == status for one in answers) for status in (200, 429)}
        assert count[200] + count[429] == 16
        assert count[200] >= 3
        assert count[429] >= 3
        for one in answers:
            if one.status_code == 429:
                refused(one, 429, "queue_full", None)
                assert int(one.headers["retry-after-ms"]) > 0
        assert metric(server, "gigagan_pictures_total") == count[200]
        assert metric(server, "gigagan_queue_pictures") == 0
        assert f'route="/v1{UPSCALE}",status="429"' in httpx.get(f"{server.root}/metrics").text


def left_after(server: Any, file: bytes, seconds: float, **fields: Any) -> None:
    """A client that asks and closes its connection after so many seconds."""
    form = httpx.Request("POST", f"{server.url}{UPSCALE}", files={"image": file}, data=fields)
    body = form.read()
    head = f"POST /v1{UPSCALE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {form.headers['content-type']}\r\n"
    with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(seconds)


def test_a_client_that_leaves_frees_the_model_before_its_picture_is_done(launch_limited: Any, tmp_path: Path) -> None:
    large, small = content(picture(size=(256, 256))), content(picture(size=(8, 8)))
    with launch_limited(tmp_path, upscale_pixels=2**22) as server:
        post(server, small)  # everything is prepared for this prompt
        started = time.monotonic()
        assert post(server, large).status_code == 200
        whole = time.monotonic() - started
        drawn = metric(server, "gigagan_draw_seconds_sum")
        waiting = threading.Thread(target=left_after, args=(server, large, 0.5))
        waiting.start()
        time.sleep(0.2)
        left_after(server, large, 0.1)  # in the queue: never begun
        assert post(server, small).status_code == 200
        waiting.join()
        assert metric(server, "gigagan_draw_seconds_sum") - drawn < 0.7 * whole
        assert metric(server, "gigagan_abandoned_total") == 2
        assert metric(server, "gigagan_worker_restarts_total") == 0


def test_a_picture_that_takes_too_long_costs_no_worker(launch_limited: Any, tmp_path: Path) -> None:
    large = content(picture(size=(1024, 1024)))  # a minute's work in many small tiles
    # After 4 of the 5 seconds the worker gives it up; after all of them it would be stuck and replaced.
    with launch_limited(tmp_path, queue_sec=1.0, total_sec=6.0, upscale_pixels=2**22) as server:
        pid = server.worker()
        assert "smaller" in refused(post(server, large, scale=2), 504, "generation_timeout", None)
        assert server.worker() == pid
        assert post(server, SMALL).status_code == 200


def test_a_worker_that_dies_is_told_and_replaced(launch_limited: Any, tmp_path: Path) -> None:
    large = content(picture(size=(256, 256)))
    with launch_limited(tmp_path, upscale_pixels=2**22) as server, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(post, server, large)
        time.sleep(1)
        os.kill(server.worker(), signal.SIGKILL)
        refused(asking.result(), 503, "worker_died", None)
        server.wait_ready(60)
        assert post(server, SMALL).status_code == 200


@pytest.fixture
def uploads(server: Any) -> Iterator[list[socket.socket]]:
    """Clients that fill the room for pictures: each says how much it will send, and waits."""
    head = f"POST /v1{UPSCALE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    head += f"Content-Length: {MAX_UPLOAD_BYTES}\r\n\r\n"
    count = MAX_UPLOADS_BYTES // MAX_UPLOAD_BYTES
    clients = [socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0)) for _ in range(count)]
    for one in clients:
        one.sendall(head.encode())
    yield clients
    for one in clients:
        one.close()


def test_pictures_that_come_in_have_a_bounded_room(server: Any, uploads: list[socket.socket]) -> None:
    time.sleep(0.5)
    large = b"x" * (MAX_UPLOAD_BYTES - 2**10)
    refused(post(server, large), 429, "queue_full", None)
    assert post(server, SMALL).status_code == 200, "a small one still fits"
    for one in uploads:
        one.close()
    deadline = time.monotonic() + 10
    while (answer := post(server, large)).status_code == 429:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    refused(answer, 400, "invalid_value", "image")
