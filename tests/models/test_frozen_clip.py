"""CLIP text on a tiny random tower: the layer taken, the token that stands for the prompt, strict loading."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from gigagan.config import TextConfig
from gigagan.data.weights import WEIGHTS
from gigagan.errors import CheckpointError, MissingExtra
from gigagan.models.frozen import ClipText, build_text_encoder, load_text_encoder

transformers = pytest.importorskip("transformers")

PROMPTS = ["a red apple", "Red", "a cow, a hen and a pig"]
NUM_LAYERS, NUM_HEADS, DIM = 3, 4, 32  # conftest.clip_checkpoint's


@pytest.fixture(scope="module")
def clip(clip_checkpoint: Path) -> ClipText:
    encoder = build_text_encoder(TextConfig(encoder="clip", path=str(clip_checkpoint), max_tokens=77))
    assert isinstance(encoder, ClipText)
    return encoder


def penultimate(w: dict[str, Tensor], ids: Tensor) -> Tensor:
    """All but the last layer of the tower (Radford et al. 2021), one prompt, float64."""
    w = {name.removeprefix("text_model."): value.half().double() for name, value in w.items()}
    x = w["embeddings.token_embedding.weight"][ids] + w["embeddings.position_embedding.weight"]
    causal = torch.full((len(ids), len(ids)), float("-inf"), dtype=torch.float64).triu(1)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (DIM,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5)

    for i in range(NUM_LAYERS - 1):
        layer = f"encoder.layers.{i}"
        y = norm(x, f"{layer}.layer_norm1")
        q, k, v = (linear(y, f"{layer}.self_attn.{part}_proj").view(len(ids), NUM_HEADS, -1) for part in "qkv")
        scores = torch.einsum("qhd,khd->hqk", q, k) / (DIM / NUM_HEADS) ** 0.5 + causal
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(dim=2), v).flatten(1)
        x = x + linear(mixed, f"{layer}.self_attn.out_proj")
        y = linear(norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")
        x = x + linear(y * torch.sigmoid(1.702 * y), f"{layer}.mlp.fc2")
    return x


def test_features_are_the_penultimate_layer_without_its_norm(clip: ClipText, clip_checkpoint: Path) -> None:
    text_weights = {
        name: w
        for name, w in load_file(clip_checkpoint / "model.safetensors").items()
        if name.startswith("text_model.")
    }
    features = clip.encode(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        ids = clip.tokenizer.ids(prompt)
        expected = penultimate(text_weights, torch.tensor(ids + [0] * (77 - len(ids))))
        torch.testing.assert_close(features.tokens[i].double(), expected, atol=1e-3, rtol=1e-3)


def test_the_prompt_stands_at_eot_and_padding_stays_in(clip: ClipText) -> None:
    features = clip.encode(PROMPTS)
    assert features.tokens.shape == (len(PROMPTS), 77, DIM)
    assert features.mask.all()
    assert features.global_index.tolist() == [clip.count_tokens(prompt) - 1 for prompt in PROMPTS]
    # begin, "red", EOT: the merges are used and capitals aren't told apart.
    assert clip.count_tokens("Red") == 3


def test_features_depend_on_no_neighbour_to_the_bit(clip: ClipText) -> None:
    together = clip.encode(PROMPTS).tokens
    for tokens, prompt in zip(together, PROMPTS, strict=True):
        assert torch.equal(tokens, clip.encode([prompt]).tokens[0])


def test_a_long_prompt_keeps_its_eot(clip: ClipText) -> None:
    features = clip.encode(["red " * 100])
    assert clip.count_tokens("red " * 100) == 102
    assert features.global_index.tolist() == [76]


def test_saving_is_exact(clip: ClipText, tmp_path: Path) -> None:
    clip.save(tmp_path)
    again = load_text_encoder(tmp_path)
    assert again.name == "clip"
    assert torch.equal(again.encode(PROMPTS).tokens, clip.encode(PROMPTS).tokens)
    path = tmp_path / "text_encoder" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="sha256"):
        load_text_encoder(tmp_path)


@pytest.mark.parametrize("change", ["missing", "renamed", "shape"])
def test_a_wrong_tensor_is_named(clip: ClipText, tmp_path: Path, change: str) -> None:
    clip.save(tmp_path)
    path = tmp_path / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("encoder.layers.1.mlp.fc1.weight"))
    tensor = tensors.pop(name)
    if change != "missing":
        tensors["renamed" if change == "renamed" else name] = tensor[:-1].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"encoder\.layers\.1\.mlp\.fc1\.weight") as caught:
        load_text_encoder(tmp_path)
    assert "\n" not in str(caught.value)


def test_other_directories_are_one_line(clip_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    for config, message in (({"model_type": "bert"}, "expected clip"), ({"model_type": "clip"}, "can't be loaded")):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=message) as caught:
            build_text_encoder(TextConfig(encoder="clip", path=str(tmp_path), max_tokens=77))
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="takes 77"):
        build_text_encoder(TextConfig(encoder="clip", path=str(clip_checkpoint), max_tokens=78))


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("clip", "text_encoder/model.safetensors: no such file; .*clip-vit-large-patch14 .sha256 a2bf730a"),
        ("minilm", f"text_encoder/model.safetensors: no such file; .*{WEIGHTS['minilm'].sha256}.*data weights minilm"),
    ],
)
def test_missing_weights_are_named_with_their_hash_and_source(encoder: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(CheckpointError, match=message) as caught:
        build_text_encoder(TextConfig(encoder=encoder, path=str(tmp_path), max_tokens=32))
    assert "\n" not in str(caught.value)


def test_without_transformers_the_extra_is_named(clip_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"open-gigagan\[clip\]"):
        build_text_encoder(TextConfig(encoder="clip", path=str(clip_checkpoint), max_tokens=77))
