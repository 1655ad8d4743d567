"""The sample grid of a run."""

import json
from pathlib import Path

import pytest
from PIL import Image

from gigagan.data.dataset import open_dataset
from gigagan.errors import DataError
from gigagan.training.grids import _spread


def test_the_grid_of_a_set_with_damaged_pictures(tmp_path: Path) -> None:
    lines = []
    for k in range(41):
        Image.new("RGB", (16, 16), (6 * k, 0, 0)).save(tmp_path / f"{k:02d}.png")
        lines.append(json.dumps({"file_name": f"{k:02d}.png", "text": f"red {k}"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    for k in (0, 5, 6, 7, 8, 9):  # the first, and a whole stretch of five
        (tmp_path / f"{k:02d}.png").write_bytes(b"damaged")
    dataset = open_dataset(tmp_path, resolution=16)
    assert [sample.captions[0].text for sample in _spread(dataset)] == [f"red {k}" for k in (1, 10, 15, 20, 25, 30, 35)]
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"damaged")
    with pytest.raises(DataError, match="none of its pictures can be read"):
        _spread(dataset)
