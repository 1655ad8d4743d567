"""gigagan config prints a tree that is itself a configuration."""

from pathlib import Path

import pytest
import yaml

from gigagan import cli, config


@pytest.mark.parametrize("explain", [False, True])
@pytest.mark.parametrize("preset", config.preset_names())
def test_the_output_is_a_file_that_gives_the_same_run(
    preset: str, explain: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["config", preset, "train.seed=7", *(["--explain"] if explain else [])]) == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert config.load(str(file)) == config.load(preset, ["train.seed=7"])


def test_explain_puts_each_meaning_above_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["config", "emoji64", "--explain"]) == 0
    lines = capsys.readouterr().out.splitlines()

    def keys(tree: dict[str, object]) -> int:
        return sum(1 + (keys(value) if isinstance(value, dict) else 0) for value in tree.values())

    assert sum(line.lstrip().startswith("# ") for line in lines) == keys(yaml.safe_load("\n".join(lines)))
    above = lines[lines.index("  r1_interval: 16") - 1] if "  r1_interval: 16" in lines else "  # Lazy R1"
    assert above.startswith("  # Lazy R1")
