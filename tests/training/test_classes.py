"""Classes and pictures alone in place of captions: from folders through training to `gigagan generate`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gigagan import cli, config
from gigagan.data.dataset import open_dataset
from gigagan.errors import CheckpointError, ConfigError, DataError, PromptError
from gigagan.models.frozen import ClassNames, build_text_encoder, load_text_encoder
from gigagan.pipeline import Pipeline
from gigagan.training import loop

CPU = torch.device("cpu")
SHORT = ["train.total_kimg=0.048", "train.batch=8", "train.batch_gpu=8", "train.kimg_per_tick=0.016"]
ONE_LEVEL = ["discriminator.multi_scale=false", "loss.level_weights=[1.0]", "generator.attention.cross=false"]
NO_MATCH = ["loss.match_weight_D=0", "loss.match_weight_G=0", "loss.paired_l1_weight=0"]


def write(folder: Path, count: int = 6) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        value = 40 * k % 256
        Image.fromarray(np.full((20, 20, 3), value, np.uint8)).save(folder / f"{k}.png")


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for name in ("cat", "dog", "emu"):
        write(tmp_path / "data" / name)
    write(tmp_path / "data" / "dog" / "more", 2)
    (tmp_path / "data" / ".cache").mkdir()
    return tmp_path / "data"


def test_a_folder_a_class(classes: Path) -> None:
    dataset = open_dataset(classes, split="train", resolution=16)
    assert (dataset.classes, len(dataset), dataset.captioned) == (("cat", "dog", "emu"), 20, True)
    assert {dataset[i].captions[0].text for i in range(6, 14)} == {"dog"}
    assert dataset.key(13) == "dog/more/1.png"


def test_a_plain_folder_has_no_captions(tmp_path: Path) -> None:
    write(tmp_path)
    dataset = open_dataset(tmp_path, split="train", resolution=16)
    assert (dataset.classes, len(dataset), dataset.captioned) == ((), 6, False)


def test_folders_that_cannot_be_are_one_line(classes: Path, tmp_path: Path) -> None:
    write(tmp_path / "one" / "only")
    with pytest.raises(DataError, match="holds one class, only; expected at least two"):
        open_dataset(tmp_path / "one")
    write(classes, 1)
    with pytest.raises(DataError, match=r"0\.png lies beside the folders of classes \(cat, dog, emu\)"):
        open_dataset(classes)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no metadata"):
        open_dataset(tmp_path / "empty")


def test_a_class_is_its_one_hot_vector() -> None:
    encoder = ClassNames(["a", "b", "c"])
    features = encoder.encode(["c", "a"])
    assert features.tokens[:, 0].tolist() == [[0, 0, 1], [1, 0, 0]]
    with pytest.raises(PromptError, match="no class 'd'; this model draws 3 classes: a, b, c"):
        encoder.encode(["a", "d"])
    with pytest.raises(ConfigError, match="at least 2"):
        ClassNames(["a"])


def class_config(*more: str) -> config.RunConfig:
    kind = ["text.encoder=classes", "text.num_classes=3", "discriminator.head=projection"]
    kind += ["discriminator.minibatch_std=4", "generator.text_layers=0", "discriminator.text_layers=0"]
    return config.load("tiny", [*SHORT, *ONE_LEVEL, *NO_MATCH, *kind, *more])


def test_class_conditional_from_folders_to_pictures(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, out = tmp_path / "run", tmp_path / "out"
    loop.train(class_config(f"data.path={classes}"), run_dir, device=CPU)
    model = str(run_dir / "model")
    assert load_text_encoder(run_dir / "model").feature_dim == 3
    capsys.readouterr()
    assert (
        cli.run(["generate", "--class", "dog", "--class", "emu", "--seeds", "1", "--model", model, "--out", str(out)])
        == 0
    )
    assert sorted(p.name for p in out.iterdir()) == ["dog-1.png", "emu-1.png"]
    for arguments, message in (
        (["--class", "cow"], "no class 'cow'; this model draws 3 classes: cat, dog, emu"),
        ([], "no prompt came; give --class NAME"),
        (["dog", "--class", "emu"], "prompts and --class both came"),
    ):
        assert cli.run(["generate", *arguments, "--model", model, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
    assert cli.run(["generate", "--class", "dog", "--out", str(out)]) == 2
    assert "this model knows no classes" in capsys.readouterr().err


def test_a_class_changes_the_picture(classes: Path, tmp_path: Path) -> None:
    loop.train(class_config(f"data.path={classes}"), tmp_path / "run", device=CPU)
    pipe = Pipeline.from_pretrained(tmp_path / "run" / "model")
    cat, dog = (pipe(name, seeds=[0], output_type="np").images for name in ("cat", "dog"))
    assert not np.array_equal(cat, dog)


def test_unconditional_from_a_folder_to_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "data", 12)
    nothing = [
        "text.encoder=none",
        "generator.text_dim=0",
        "discriminator.text_dim=0",
        f"data.path={tmp_path / 'data'}",
    ]
    more = ["generator.text_layers=0", "discriminator.text_layers=0", "generator.attention.cross=false"]
    run_dir, out = tmp_path / "run", tmp_path / "out"
    loop.train(config.load("tiny", [*SHORT, *NO_MATCH, *nothing, *more]), run_dir, device=CPU)
    model = str(run_dir / "model")
    capsys.readouterr()
    assert cli.run(["generate", "--seeds", "0-2", "--model", model, "--out", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == [f"picture-{n}.png" for n in range(3)]
    assert cli.run(["generate", "a cat", "--model", model, "--out", str(out)]) == 2
    assert "unconditional and takes no prompt" in capsys.readouterr().err
    plain = Pipeline.from_pretrained(model)(seeds=[1, 2, 3]).images
    assert len(plain) == 3
    way = [
        "edit",
        "interpolate",
        "",
        "--seeds",
        "1,2",
        "--steps",
        "3",
        "--model",
        model,
        "--out",
        str(tmp_path / "way"),
    ]
    assert cli.run(way) == 0
    first, _, last = (Image.open(path).tobytes() for path in sorted((tmp_path / "way").iterdir()))
    drawn = Pipeline.from_pretrained(model)(seeds=[1, 2], truncation_psi=0.7).images
    assert [first, last] == [image.tobytes() for image in drawn]
    film = tmp_path / "film.webp"
    assert (
        cli.run(["video", "--seeds", "0-2", "--fps", "2", "--seconds", "1", "--model", model, "--out", str(film)]) == 0
    )
    with Image.open(film) as frames:
        assert frames.n_frames == 5
    no = str(tmp_path / "no.webp")
    assert cli.run(["video", "a cat", "--seeds", "0-2", "--model", model, "--out", no]) == 2
    assert "unconditional and takes no prompt" in capsys.readouterr().err
    assert cli.run(["video", "--seeds", "0-2", "--out", no]) == 2
    assert "no prompt came" in capsys.readouterr().err


def test_mismatched_data_is_one_line(classes: Path, tmp_path: Path) -> None:
    write(tmp_path / "plain")
    with pytest.raises(ConfigError, match="pictures without captions, but text"):
        loop.train(config.load("tiny", [f"data.path={tmp_path / 'plain'}"]), tmp_path / "run", device=CPU)
    with pytest.raises(ConfigError, match=r"num_classes is 3, but the data has 2 .*set text.num_classes=2"):
        build_text_encoder(class_config().text, classes=["a", "b"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["text.encoder=classes"], "encoder=classes needs at least 2"),
        (["text.num_classes=5"], "encoder=classes needs at least 2, the others 0"),
        (["text.encoder=none"], "unconditional is none, 0 and 0"),
        (["discriminator.head=projection"], "judges one exit; set discriminator.multi_scale=false"),
        (["discriminator.minibatch_std=3"], r"batch_gpu \(16\) must be a multiple of minibatch_std \(3\)"),
        ([*ONE_LEVEL[:1]], "loss.level_weights has 3 numbers but D sees one level"),
        (["text.encoder=classes", "text.num_classes=3"], "gives no words; set generator.attention.cross=false"),
        (["generator.text_heads=3"], "text_dim is 32 and text_heads 3; heads must divide the width"),
        (["discriminator.text_heads=3"], "discriminator.text_heads 3; heads must divide"),
        (["generator.num_filters=[0,1,1]"], "greater than or equal to 1"),
        (["generator.attention.resolutions=[32]"], "names 32, but the sides are 4, 8, 16"),
        (["generator.resolution=48"], "48 isn't a power of two"),
    ],
)
def test_configurations_that_cannot_be_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load("tiny", overrides)


def test_a_damaged_list_of_classes_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    (folder / "config.json").write_text('{"encoder": "classes", "classes": 7}')
    with pytest.raises(CheckpointError, match="classes is 7; expected a list of names"):
        load_text_encoder(tmp_path)
