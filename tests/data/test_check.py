"""`gigagan data check`, `encode` and `emoji` as a user runs them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from gigagan.cli import data as commands
from gigagan.data import check as checking
from gigagan.data.features import CaptionFeatures
from gigagan.errors import DataError
from gigagan.models.frozen import HashedText

Picture = tuple[str, bytes, str]


def test_report_of_a_good_set(emoji_set: Path) -> None:
    report = checking.check(emoji_set, count_tokens=HashedText().count_tokens, max_tokens=12, progress=False)
    splits = json.loads((emoji_set / "manifest.json").read_text())["splits"]

    assert report.samples == report.with_alpha == 19
    assert report.bad == []
    assert report.splits == {name: count for name, count in splits.items() if count}
    assert report.sizes == {"16 x 16": 19}
    assert report.styleless == report.with_background == 2 * 19
    assert report.caption_tokens is not None
    assert report.caption_tokens.most > 12
    assert 0 < report.too_long < report.distinct_captions <= report.captions
    assert report.caption_characters.least == len("grapes")


def test_every_bad_thing_is_named(
    pictures: list[Picture], shard_set: Callable[..., Path], emoji_set: Path, tmp_path: Path
) -> None:
    pictures[3] = ("k03", b"no picture", "three")
    pictures[5] = ("k05", pictures[5][1], "")
    folder = shard_set(pictures, shards=2)
    cut = folder / "000000.tar"
    cut.write_bytes(cut.read_bytes()[:-9000])
    report = checking.check(folder, progress=False)
    reasons = {fault["name"]: fault["reason"] for fault in report.bad}

    assert "truncated" in reasons["000000.tar"]
    assert "isn't a whole" in reasons["k03"]
    assert "caption" in reasons["k05"]
    assert report.samples == 12 - len([name for name in reasons if name.startswith("k")])

    copy = tmp_path / "copy"
    copy.mkdir()
    for path in emoji_set.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    shard = next(iter(sorted(copy.glob("*.tar"))))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert checking.check(copy, progress=False).bad[0]["reason"].startswith("isn't the file that the manifest")


def test_commands(emoji_set: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    result = run(commands.data, ["check", str(emoji_set), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["samples"] == 19
    assert "19 samples that can be used, 0 that can't" in run(commands.data, ["check", str(emoji_set)]).stdout

    file = tmp_path / "features"
    result = run(commands.data, ["encode", str(emoji_set), "--out", str(file), "--encoder", "hashed"])
    assert result.exit_code == 0, result.output
    features = CaptionFeatures(HashedText(), preload=file)
    assert features.preloaded is not None
    assert len(features.preloaded) == checking.check(emoji_set, progress=False).distinct_captions

    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.png").write_bytes(b"x")
    (tmp_path / "set/metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}')
    result = run(commands.data, ["check", str(tmp_path / "set")])
    assert isinstance(result.exception, DataError)
    assert "bad: a.png: isn't a whole PNG" in result.stdout
    with pytest.raises(DataError, match="no such file"):
        checking.check(tmp_path / "gone")
