"""Exported models: graphs that say what PyTorch says, directories that stand alone, refusals in one line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gigagan import cli
from gigagan.checkpoint import load_model, save_model
from gigagan.config import AttentionConfig, GeneratorConfig
from gigagan.editing import blend, mix, project, style_factors
from gigagan.errors import CheckpointError, ConfigError
from gigagan.export import LIMIT, check, export, measure
from gigagan.models.frozen import ClassNames, HashedText, MiniLM, Unconditional, load_clip
from gigagan.models.generator import Generator
from gigagan.models.latents import Latents
from gigagan.pipeline import Pipeline

CapSys = pytest.CaptureFixture[str]
Exported = Callable[[str], Path]
PROMPTS = ["a red apple", "x", "a rocket on the moon", "two green leaves", "!!!"]
GRAPHS = {"text_encoder/features"} | {
    f"{network}/{part}" for network in ("generator", "upsampler") for part in ("text", "mapping", "synthesis")
}
FORMATS = ("onnx", "openvino")
pytestmark = pytest.mark.xdist_group("exported")  # one worker: tracing takes a while


def failed(capsys: CapSys, *args: str) -> str:
    """The one line of a command that ends with 2."""
    capsys.readouterr()
    assert cli.run(list(args)) == 2
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if not line.startswith("gigagan: generator/")]
    assert not out
    return line


def far(one: list[torch.Tensor], other: list[torch.Tensor]) -> int:
    """The largest difference of 8-bit values, over pyramids that aren't flat."""
    assert min(float(level.float().std()) for level in one) > 5
    return max(int((a.int() - b.int()).abs().max()) for a, b in zip(one, other, strict=True))


# What graphs say.


@pytest.mark.parametrize("format", FORMATS)
def test_every_graph_is_within_the_limit_at_batch_1_and_5(format: str, exported_model: Exported) -> None:
    report = json.loads((exported_model(format) / "parity.json").read_text())
    assert {row["graph"] for row in report["graphs"]} == GRAPHS
    for row in report["graphs"]:
        assert set(row["difference"]) == {"1", "5"}
        assert all(0 <= difference <= LIMIT for difference in row["difference"].values())
    assert report["limit"] == LIMIT == 1e-4
    assert report["pictures"]["values"] > 50_000


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("psi", [0.0, 0.4, 1.0])
def test_the_pipeline_draws_the_same_pictures(
    format: str, psi: float, exported_model: Exported, small_model: Path
) -> None:
    own, graphs = Pipeline.from_pretrained(small_model), Pipeline.from_pretrained(exported_model(format))
    a, b = (pipe(PROMPTS, seeds=range(5), truncation_psi=psi) for pipe in (own, graphs))
    assert [level.shape for level in a.pyramid] == [level.shape for level in b.pyramid]
    assert a.resolutions == [64, 32, 16, 8, 4]
    assert far(a.pyramid[2:], b.pyramid[2:]) <= 1
    assert far(a.pyramid, b.pyramid) <= 2
    assert (own.micro_batch, own.resolution, own.device) == (graphs.micro_batch, graphs.resolution, graphs.device)
    assert own.model_hash != graphs.model_hash


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_is_the_same_alone_and_in_a_batch(format: str, exported_model: Exported) -> None:
    pipe = Pipeline.from_pretrained(exported_model(format))
    many = pipe(PROMPTS, seeds=range(5)).pyramid
    for n, prompt in enumerate(PROMPTS):
        alone = pipe(prompt, seeds=n).pyramid
        assert all(torch.equal(level[n], one[0]) for level, one in zip(many, alone, strict=True))


@pytest.mark.parametrize("format", FORMATS)
def test_edits_of_styles_and_words_by_layer_work(format: str, exported_model: Exported, small_model: Path) -> None:
    drawn = []
    for path in (small_model, exported_model(format)):
        pipe = Pipeline.from_pretrained(path, upsampled=False)
        one, other = (pipe.latents([prompt], pipe.z([3])) for prompt in PROMPTS[:2])
        between = blend([one, pipe.latents([PROMPTS[2]], pipe.z([4]))], [0.3, 0.7])
        drawn.append(pipe.draw(Latents.join([mix(one, other, 1), between])))
    assert far(*drawn) <= 1


@pytest.mark.parametrize("format", FORMATS)
def test_a_prompt_without_words_and_one_too_long(format: str, exported_model: Exported, small_model: Path) -> None:
    own, graphs = (Pipeline.from_pretrained(path).text_encoder for path in (small_model, exported_model(format)))
    assert isinstance(own, MiniLM)
    assert own.tokenizer.ids("\u200b") == own.tokenizer.ids("")  # begin and end alone
    for prompt in ("\u200b", "word " * 50):
        a, b = (encoder.encode([prompt]) for encoder in (own, graphs))
        assert torch.equal(a.mask, b.mask)
        assert (a.tokens - b.tokens).abs().max() <= LIMIT
        assert own.count_tokens(prompt) == graphs.count_tokens(prompt)


def test_another_weight_is_seen(exported_model: Exported, small_model: Path) -> None:
    """Each part of the check can fail: one weight of the model is another than in the graphs."""
    for change in (
        lambda model: model.generator.synthesis.levels["16x16"].entry.conv0.bank[0, 0, 0, 0],
        lambda model: model.generator.text.project.bias,
        lambda model: model.upsampler.synthesis.levels["32x32"].to_rgb.bias,
        lambda model: model.upsampler.mapping.layers[0].bias,
        lambda model: model.text_encoder.weights["encoder.layer.0.output.dense.bias"],
        lambda model: model.generator.mapping.w_avg,
    ):
        model = load_model(small_model, discriminator=False)
        change(model)[:1].add_(0.02)  # one alone: a layer norm takes out what is added to all
        with pytest.raises(CheckpointError, match="differ"):
            check({"limit": LIMIT} | measure(model, exported_model("onnx")))
    check({"limit": LIMIT} | measure(load_model(small_model, discriminator=False), exported_model("onnx")))


# Directories.


@pytest.mark.parametrize("format", FORMATS)
def test_a_directory_stands_alone(
    format: str, exported_model: Exported, small_model: Path, tmp_path: Path, capsys: CapSys
) -> None:
    folder = shutil.copytree(exported_model(format), tmp_path / "moved")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["export"]["format"] == format
    assert index["export"]["made_of"] == load_model(small_model).hash
    assert set(index["sha256"]) == {
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.is_file() and file.name != "model_index.json"
    }
    assert (folder / "NOTICE").read_text() == "of the pictures\n"
    assert (folder / "text_encoder" / "LICENSE").read_bytes() == b"of the encoder"
    assert "batch 5" in (folder / "README.md").read_text()
    capsys.readouterr()
    args = ["generate", *PROMPTS[:2], "--seeds", "4", "--psi", "0.5", "--out", str(tmp_path / "out")]
    assert cli.run([*args, "--model", str(folder)]) == 0
    files = capsys.readouterr().out.split()
    assert len(files) == 2
    image = Pipeline.from_pretrained(small_model)(PROMPTS[0], seeds=4, truncation_psi=0.5).images[0]
    with Image.open(files[0]) as found:
        assert found.size == (64, 64)
        assert np.abs(np.asarray(found).astype(int) - np.asarray(image).astype(int)).max() <= 2


def test_a_damaged_or_missing_file_is_one_line(exported_model: Exported, tmp_path: Path, capsys: CapSys) -> None:
    whole = exported_model("openvino")
    for name in ("generator/synthesis.bin", "upsampler/synthesis.xml", "tokenizer/tokenizer.json"):
        folder = shutil.copytree(whole, tmp_path / "damaged")
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        assert "sha256" in failed(capsys, "generate", "x", "--model", str(folder))
        (folder / name).unlink()
        assert "no such file" in failed(capsys, "generate", "x", "--model", str(folder))
        shutil.rmtree(folder)
    folder = shutil.copytree(whole, tmp_path / "other")
    index = json.loads((folder / "model_index.json").read_text())
    for said, expected in (
        (index["export"] | {"format": "pt2"}, "for programs of your own"),
        (index["export"] | {"format": "onnx"}, "has no sha256 of"),
        (index["export"] | {"format": "tflite"}, "export the model again"),
        ("onnx", "export the model again"),
        (index["export"] | {"micro_batch": 10**9}, "export the model again"),
    ):
        (folder / "model_index.json").write_text(json.dumps(index | {"export": said}))
        assert expected in failed(capsys, "generate", "x", "--model", str(folder))


# Refusals.


def test_what_graphs_can_not_do_is_refused(
    exported_model: Exported, tmp_path: Path, capsys: CapSys, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported_model("onnx")
    pipe = Pipeline.from_pretrained(folder)
    point = pipe.latents(["x"], pipe.z([0]))
    picture = pipe("x", seeds=0).images[0]
    for refused in (
        lambda: pipe.save_pretrained(tmp_path / "saved"),
        lambda: pipe.upsample(picture),
        lambda: project(pipe.generator, point, pipe.draw(point.base)[0], steps=1),
        lambda: style_factors(pipe.generator, point.ws[:, 0], 2),
        lambda: pipe.text_encoder.save(tmp_path / "saved"),
    ):
        with pytest.raises(ConfigError, match="needs weights"):
            refused()
    assert not (tmp_path / "saved").exists()
    for options, expected in (
        ({"device": "cuda"}, "on the processor"),
        ({"compiled": True}, "compiled already"),
        ({"dtype": "bfloat16"}, "run in float32"),
    ):
        with pytest.raises(ConfigError, match=expected):
            Pipeline.from_pretrained(folder, **options)  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    picture.save("x.png")
    assert "exported graphs" in failed(capsys, "upsample", "x.png", "--out", "y", "--model", str(folder))
    assert "exported graphs" in failed(capsys, "export", str(folder), "--format", "onnx", "--out", str(tmp_path / "e"))


def test_bad_input_is_one_line_and_nothing_is_written(
    small_model: Path, upsampler: Any, tmp_path: Path, capsys: CapSys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").mkdir()
    alone = save_model(tmp_path / "alone", None, HashedText(max_tokens=12), provenance={}, upsampler=upsampler)
    before = sorted(tmp_path.rglob("*"))
    for model, format, out, expected in (
        (small_model, "tflite", "new", "expected onnx, openvino, pt2, aoti"),
        (small_model, "onnx", "taken", "exists"),
        (small_model, "onnx", "file", "is a file"),
        (small_model, "onnx", "file/new", "can't be written"),
        (tmp_path / "nothing", "onnx", "new", "no such model directory"),
        (alone, "onnx", "new", "an upsampler alone"),
    ):
        told = failed(capsys, "export", str(model), "--format", format, "--out", str(tmp_path / out))
        assert expected in told
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    told = failed(capsys, "export", str(small_model), "--format", "onnx", "--out", str(tmp_path / "new"))
    assert told == "gigagan: onnxscript isn't installed; run: pip install 'open-gigagan[export]'"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_graph_that_differs_too_much_is_not_kept(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    text: dict[str, Any] = {"text_layers": 0, "text_dim": 0, "attention": AttentionConfig(resolutions=(), depths=())}
    sizes: dict[str, Any] = {"z_dim": 8, "w_dim": 8, "blocks": (1, 1), "num_filters": (2, 1), "channel_base": 64}
    G = Generator(GeneratorConfig(resolution=8, mapping_layers=1, **sizes, **text), feature_dim=0)
    model = Pipeline(G, Unconditional()).save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"generator/\w+ differs from PyTorch by .* at batch [15]; at most 1e-12"):
        export(model, tmp_path / "out", format="openvino", limit=1e-12)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_openvino_tells_nobody_that_it_is_used(exported_model: Exported) -> None:
    code = (
        "import sys\n"
        "calls = []\n"
        "sys.addaudithook(lambda event, args: calls.append(event) if event.startswith('socket.') else None)\n"
        "from gigagan import Pipeline\n"
        f"Pipeline.from_pretrained({str(exported_model('openvino'))!r})('x', seeds=0)\n"
        "assert 'openvino' in sys.modules and sys.modules['openvino_telemetry'] is None\n"
        "assert not calls, calls\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


# Slow: every format, every kind of condition, the shipped model.


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "format",
    ["pt2", pytest.param("aoti", marks=pytest.mark.matrix)],  # a C++ compiler takes minutes
)
def test_pt2_and_aoti_say_the_same(format: str, small_model: Path, tmp_path: Path, capsys: CapSys) -> None:
    report = export(small_model, tmp_path / "out", format=format)
    assert {row["graph"] for row in report["graphs"]} == GRAPHS
    assert report["pictures"]["values"] > 50_000
    assert "for programs of your own" in failed(capsys, "generate", "x", "--model", str(tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "format"),
    [("classes", "onnx"), ("none", "onnx"), ("none", "openvino"), ("clip", "onnx"), ("clip", "openvino")],
)
def test_every_kind_of_condition(kind: str, format: str, clip_checkpoint: Path, tmp_path: Path) -> None:
    encoder: Any = {
        "classes": lambda: ClassNames(["cat", "dog", "owl"]),
        "none": Unconditional,
        "clip": lambda: load_clip(clip_checkpoint, max_tokens=12),
    }[kind]()
    attention = AttentionConfig(resolutions=(8,), depths=(1,), head_dim=16, cross=kind == "clip")
    text: dict[str, Any] = {"text_layers": 1, "text_dim": 32, "text_heads": 2}
    text = {"text_layers": 0, "text_dim": 0} if kind == "none" else text
    cfg = GeneratorConfig(
        resolution=16,
        z_dim=16,
        w_dim=32,
        mapping_layers=2,
        num_filters=(2, 2, 1),
        channel_base=512,
        channel_max=32,
        blocks=(1, 1, 1),
        attention=attention,
        **text,
    )
    G = Generator(cfg, feature_dim=encoder.feature_dim).eval().requires_grad_(False)
    model = Pipeline(G, encoder).save_pretrained(tmp_path / "model")
    export(model, tmp_path / "out", format=format)
    asked = {"classes": "dog", "none": None, "clip": "red re"}[kind]
    a, b = (Pipeline.from_pretrained(tmp_path / name)(asked, seeds=[1, 2, 3]).pyramid for name in ("model", "out"))
    assert far(a, b) <= 1


@pytest.mark.matrix
@pytest.mark.timeout(900)
def test_the_shipped_model_at_every_size(tmp_path: Path) -> None:
    """As pt2; docs/export.md makes the other two."""
    report = export("emoji", tmp_path / "out", format="pt2")
    assert [row["input"] for row in report["graphs"][-3:]] == ["64 x 64 px", "16 x 64 px", "56 x 24 px"]
    assert max(x for row in report["graphs"] for x in row["difference"].values()) <= 1e-4
