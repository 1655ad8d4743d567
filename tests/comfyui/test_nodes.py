"""The node pack in a host that follows ComfyUI's contracts: graphs run, and give the pipeline's own pictures."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gigagan import DataError, Pipeline, PromptError
from gigagan.editing import mix

PACK = Path(__file__).parents[2] / "comfyui"


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained()


def entry(name: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": name, "inputs": inputs}


def generate(**changes: Any) -> dict[str, Any]:
    inputs = {"model": "emoji", "prompt": "a red apple", "seed": 5, "batch_size": 2, "truncation_psi": 0.7}
    return entry("GigaGANGenerate", **inputs | changes)


def mixed(**changes: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {"model": "emoji", "coarse_prompt": "a rocket", "coarse_seed": 1, "fine_prompt": "a heart"}
    return entry("GigaGANMix", **inputs | {"fine_seed": 2, "coarse_share": 0.5, "truncation_psi": 1.0} | changes)


def upsample(image: Any, **changes: Any) -> dict[str, Any]:
    inputs = {"model": "emoji", "image": image, "scale": "2", "prompt": "", "seed": 0}
    return entry("GigaGANUpsample", **inputs | changes)


def as_uint8(image: torch.Tensor) -> np.ndarray:
    return (image * 255).round().to(torch.uint8).numpy()


def test_both_contracts_say_the_same(host: Any) -> None:
    assert host.titles == {
        "GigaGANGenerate": "GigaGAN: generate",
        "GigaGANMix": "GigaGAN: mix",
        "GigaGANUpsample": "GigaGAN: upsample",
    }
    declared = host.inputs("GigaGANGenerate")
    assert declared["model"][0] == ["emoji"]
    assert declared["seed"][1]["control_after_generate"] is True
    assert [(key, kind) for key, (kind, _) in declared.items() if isinstance(kind, str)] == [
        ("prompt", "STRING"),
        ("seed", "INT"),
        ("batch_size", "INT"),
        ("truncation_psi", "FLOAT"),
    ]
    assert all(host.outputs(name) == ("IMAGE",) for name in host.nodes)
    assert hasattr(host.module, "comfy_entrypoint") != hasattr(host.module, "NODE_CLASS_MAPPINGS")


def test_a_graph_runs(host: Any, pipe: Pipeline) -> None:
    """Generate feeds upsample, beside a mix; each is what the pipeline gives."""
    graph = {"9": upsample(["2", 0], prompt="a rocket"), "1": generate(), "2": mixed()}
    done = host.run(graph)
    for (image,) in done.values():
        assert image.dtype == torch.float32
        assert image.ndim == 4
        assert image.shape[-1] == 3
        assert 0 <= image.min() < image.max() <= 1
        assert not image.is_inference()

    drawn = pipe("a red apple", seeds=[5, 6]).images
    assert np.array_equal(as_uint8(done["1"][0]), np.stack([np.asarray(one) for one in drawn]))

    coarse, fine = (pipe.latents([p], pipe.z([s]), 1.0) for p, s in (("a rocket", 1), ("a heart", 2)))
    picture = pipe.draw(mix(coarse, fine, round(coarse.num_layers / 2)))[0][0].permute(1, 2, 0).numpy()
    assert np.array_equal(as_uint8(done["2"][0])[0], picture)

    large = pipe.upsample(Image.fromarray(picture), scale=2, prompt="a rocket")
    assert np.array_equal(as_uint8(done["9"][0])[0], np.asarray(large))


def test_the_ends_of_a_mix_are_its_pictures(host: Any, pipe: Pipeline) -> None:
    done = host.run({"1": mixed(coarse_share=1.0), "2": mixed(coarse_share=0.0)})
    for key, prompt, seed in (("1", "a rocket", 1), ("2", "a heart", 2)):
        alone = pipe(prompt, seeds=seed, truncation_psi=1).images[0]
        assert np.array_equal(as_uint8(done[key][0])[0], np.asarray(alone))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_other_nodes_are_enlarged(host: Any, channels: int) -> None:
    image = torch.rand(2, 20, 36, channels, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    (large,) = host.execute("GigaGANUpsample", upsample(image)["inputs"])
    assert large.shape == (2, 40, 72, channels)
    small = torch.nn.functional.avg_pool2d(large.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    assert (small - image.clamp(0, 1)).abs().mean() < 0.2  # the same picture, not another of the batch
    assert (small - image.flip(0).clamp(0, 1)).abs().mean() > (small - image.clamp(0, 1)).abs().mean()


def test_models_are_chosen_by_name(host: Any, pipe: Pipeline) -> None:
    """A directory in models/gigagan is on the list; a path or another name never is."""
    folder = Path(sys.modules["folder_paths"].models_dir) / "gigagan" / "mine"
    Pipeline(pipe.generator, pipe.text_encoder).save_pretrained(folder)
    (folder.parent / "notes").mkdir()
    assert host.inputs("GigaGANGenerate")["model"][0] == ["emoji", "mine"]
    (image,) = host.run({"1": generate(model="mine", batch_size=1)})["1"]
    assert image.shape == (1, 64, 64, 3)
    for name in ("notes", "../../mine", str(folder), "owner/name", ""):
        with pytest.raises(ValueError, match="not in"):
            host.run({"1": generate(model=name)})
        with pytest.raises(DataError, match="there are emoji, mine"):
            host.execute("GigaGANGenerate", generate(model=name)["inputs"])


def test_what_cannot_be_drawn_is_said_in_one_line(host: Any) -> None:
    with pytest.raises(PromptError, match=r"^the prompt is empty; write what to draw$"):
        host.run({"1": generate(prompt=" ")})
    with pytest.raises(DataError, match=r"^the image holds values that are no numbers; [^\n]*$"):
        host.execute("GigaGANUpsample", upsample(torch.full((1, 8, 8, 3), float("nan")))["inputs"])


def test_the_pack_leaves_torch_alone() -> None:
    """Neither its requirements nor its code can change what ComfyUI runs on."""
    lines = (PACK / "requirements.txt").read_text(encoding="utf-8").splitlines()
    packages = [re.split(r"[<>=~! \[]", line)[0] for line in lines if line and not line.startswith("#")]
    assert packages == ["open-gigagan"]
    for file in PACK.glob("*.py"):
        assert not re.search(r"\b(eval|exec)\(|subprocess|\bpip\b|os\.system", file.read_text(encoding="utf-8")), file
