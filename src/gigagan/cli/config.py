"""`gigagan config`: the whole tree, as a run would see it. Needs no torch."""

from typing import TYPE_CHECKING

import click

from gigagan.cli.presets import PRESETS

if TYPE_CHECKING:
    from gigagan.config import RunConfig


@click.command(epilog=PRESETS)
@click.argument("preset")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--explain", is_flag=True, help="A comment on what each key means above it.")
def config(preset: str, overrides: tuple[str, ...], explain: bool) -> None:
    """Print every key of PRESET with KEY=VALUE overrides applied.

    PRESET is a name from the package or a .yaml file, which may hold only what differs from the defaults. The output
    is such a file.
    """
    from gigagan import config

    cfg = config.load(preset, overrides)
    click.echo(config.to_yaml(cfg) if not explain else _explained(cfg), nl=False)


def _explained(cfg: "RunConfig") -> str:
    """The YAML tree with each key's meaning above it."""
    from pydantic import BaseModel

    from gigagan import config

    path: list[BaseModel] = [cfg]
    lines = []
    for line in config.to_yaml(cfg).splitlines():
        indent = len(line) - len(line.lstrip())
        key = line.strip().partition(":")[0]
        del path[indent // 2 + 1 :]
        section = path[-1]
        field = type(section).model_fields.get(key) if len(path) == indent // 2 + 1 else None
        if field is not None:
            value = getattr(section, key)
            nested = isinstance(value, BaseModel)
            meaning = field.description or (type(value).__doc__ if nested else None)
            if meaning:
                lines.append(f"{' ' * indent}# {' '.join(meaning.split())}")
            if nested:
                path.append(value)
        lines.append(line)
    return "\n".join(lines) + "\n"
