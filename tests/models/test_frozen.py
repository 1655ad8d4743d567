"""Frozen text encoders: equal to a reference, independent of neighbours, strict about their files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gigagan.config import TextConfig
from gigagan.errors import CheckpointError, ConfigError
from gigagan.models.frozen import HashedText, MiniLM, build_text_encoder, load_text_encoder

PROMPTS = [
    "a red apple",
    "a 3D render of a woman with blond hair on a blue background",
    "grapes",
    "naïve café 日本, 2+2!",
]


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    encoder = build_text_encoder(TextConfig())
    assert isinstance(encoder, MiniLM)
    return encoder


@pytest.fixture
def saved(minilm: MiniLM, tmp_path: Path) -> Path:
    minilm.save(tmp_path)
    return tmp_path


def unit(x: Tensor) -> Tensor:
    return x / x.norm()


def test_minilm_gives_the_published_example(minilm: MiniLM) -> None:
    features = minilm.encode(["This is an example sentence"])
    mean = unit(features.tokens[0, 0])
    # The model card's first numbers; the weights are rounded to float16.
    torch.testing.assert_close(mean[:5], torch.tensor([0.0677, 0.0635, 0.0487, 0.0793, 0.0374]), atol=2e-4, rtol=0)


def test_minilm_equals_transformers_bert_with_masked_padding(minilm: MiniLM) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(**{k: v for k, v in minilm.config.items() if k not in ("encoder", "sha256")})
    reference = transformers.BertModel(config, add_pooling_layer=False).eval()
    reference.load_state_dict(minilm.weights, strict=False)
    assert set(minilm.weights) == {name for name, _ in reference.named_parameters()}
    features = minilm.encode(PROMPTS)
    ids = torch.zeros(len(PROMPTS), minilm.max_tokens, dtype=torch.long)
    for row, prompt in zip(ids, PROMPTS, strict=True):
        row[: minilm.count_tokens(prompt)] = torch.tensor(minilm.tokenizer.ids(prompt))
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=features.mask.long()).last_hidden_state
    for row, mask in zip(expected, features.mask, strict=True):
        row[0] = row[mask].mean(dim=0)  # the sentence as MiniLM's pooling has it, in place of [CLS]
    torch.testing.assert_close(features.tokens[features.mask], expected[features.mask], atol=2e-5, rtol=1e-4)


def test_features_are_padded_masked_and_without_gradient(minilm: MiniLM) -> None:
    features = minilm.encode(PROMPTS)
    assert features.tokens.shape == (len(PROMPTS), 32, 384)
    assert features.tokens.dtype == torch.float32
    assert not features.tokens.requires_grad
    assert features.mask.sum(dim=1).tolist() == [minilm.count_tokens(prompt) for prompt in PROMPTS]
    assert features.global_index.tolist() == [0] * len(PROMPTS)
    assert not features.tokens[~features.mask].any()


def test_features_depend_on_no_neighbour_to_the_bit(minilm: MiniLM) -> None:
    together = minilm.encode([*PROMPTS, *PROMPTS[::-1]])
    for i, prompt in enumerate(PROMPTS):
        alone = minilm.encode([prompt]).tokens[0]
        assert torch.equal(together.tokens[i], alone)
        assert torch.equal(together.tokens[-1 - i], alone)


def test_more_padding_changes_no_token(minilm: MiniLM) -> None:
    longer = build_text_encoder(TextConfig(max_tokens=64)).encode(PROMPTS)
    assert torch.equal(longer.tokens[:, :32], minilm.encode(PROMPTS).tokens)
    assert not longer.mask[:, 32:].any()


def test_ragged_encoding_agrees_and_keeps_the_order(minilm: MiniLM) -> None:
    prompts = PROMPTS * 3
    features = minilm.encode(prompts)
    for i, tokens in enumerate(minilm.encode_ragged(prompts, batch=2)):
        torch.testing.assert_close(tokens, features.tokens[i][features.mask[i]], atol=1e-5, rtol=1e-5)


def test_a_long_prompt_is_cut_before_its_last_token(minilm: MiniLM) -> None:
    prompt = "a very " * 40 + "long prompt"
    assert minilm.count_tokens(prompt) == 84
    ids = minilm.tokenizer.ids(prompt)
    assert len(ids) == 32
    assert ids[-1] == minilm.tokenizer.ids("a")[-1]
    assert minilm.encode([prompt]).mask.all()


def test_saving_is_exact_and_keeps_the_licence(minilm: MiniLM, saved: Path) -> None:
    again = load_text_encoder(saved)
    assert torch.equal(again.encode(PROMPTS).tokens, minilm.encode(PROMPTS).tokens)
    again.save(saved / "again")
    for name in ("text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"):
        assert (saved / "again" / name).read_bytes() == (saved / name).read_bytes()
    assert "Apache" in (saved / "again/text_encoder/LICENSE").read_text()
    assert "float16" in (saved / "again/text_encoder/NOTICE").read_text()


def sabotage(saved: Path, change: str) -> None:
    path = saved / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    name = "encoder.layer.3.output.dense.weight"
    if change == "missing":
        del tensors[name]
    elif change == "renamed":
        tensors["encoder.layer.3.output.dense.wieght"] = tensors.pop(name)
    elif change == "shape":
        tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, path)


@pytest.mark.parametrize("change", ["missing", "renamed", "shape"])
def test_a_wrong_tensor_is_named(saved: Path, change: str) -> None:
    sabotage(saved, change)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor encoder\.layer\.3\.output\.dense\.weight"):
        load_text_encoder(saved)


def test_a_changed_byte_is_found_by_the_hash(saved: Path) -> None:
    path = saved / "text_encoder" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="sha256"):
        load_text_encoder(saved)


def test_damaged_files_are_one_line(saved: Path) -> None:
    weights = saved / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="isn't a whole safetensors file") as caught:
        load_text_encoder(saved)
    assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        load_text_encoder(saved)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("encoder", "t5", "expected minilm"), ("sha256", "", "sha256 is missing"), ("max_tokens", 900, "takes 512")],
)
def test_a_wrong_config_is_one_line(saved: Path, key: str, value: object, message: str) -> None:
    path = saved / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=message):
        load_text_encoder(saved)


def test_a_missing_directory_or_tokenizer_is_one_line(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_text_encoder(saved / "nowhere")
    (saved / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file"):
        load_text_encoder(saved)
    (saved / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="isn't a tokenizer"):
        load_text_encoder(saved)


def test_clip_without_a_path_says_so() -> None:
    with pytest.raises(ConfigError, match=r"text\.path is empty"):
        build_text_encoder(TextConfig(encoder="clip"))


def test_hashed_text_is_the_same_everywhere() -> None:
    encoder = HashedText(max_tokens=8)
    features = encoder.encode(["A red apple"])
    assert features.tokens.shape == (1, 8, 32)
    assert features.mask[0].tolist() == [True] * 5 + [False] * 3
    # "red", the first bytes of its hash: the same on any machine.
    torch.testing.assert_close(
        features.tokens[0, 2, :3], torch.tensor([-0.751012, -0.683353, -0.96752]), atol=1e-6, rtol=0
    )
    assert torch.equal(features.tokens, encoder.encode(["a  RED apple"]).tokens)


def test_hashed_text_tells_prompts_apart_and_words_alike() -> None:
    features = HashedText().encode(["a red apple", "a blue apple"])
    assert torch.equal(features.tokens[0, 3], features.tokens[1, 3])
    assert not torch.equal(features.tokens[0, 2], features.tokens[1, 2])
    assert not torch.equal(features.tokens[0, 0], features.tokens[1, 0])


def test_hashed_text_cuts_before_the_end_token(tmp_path: Path) -> None:
    encoder = HashedText(max_tokens=6)
    long, short = encoder.encode(["one two three four five six seven"]), encoder.encode(["one"])
    assert torch.equal(long.tokens[0, -1], short.tokens[0, 2])
    assert encoder.count_tokens("one two three four five six seven") == 9
    encoder.save(tmp_path)
    again = load_text_encoder(tmp_path)
    assert again.name == "hashed"
    assert torch.equal(again.encode(["one"]).tokens, short.tokens)


def test_features_move_between_devices() -> None:
    moved = HashedText().encode(PROMPTS).to("meta")
    assert {t.device.type for t in (moved.tokens, moved.mask, moved.global_index)} == {"meta"}
    assert len(moved) == len(PROMPTS)
