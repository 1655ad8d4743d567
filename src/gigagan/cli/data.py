"""`gigagan data`: build, check and encode sets of captioned pictures."""

import importlib
from pathlib import Path

import click

ELSEWHERE = {"weights": "gigagan.cli.weights:weights"}


class _Group(click.Group):
    """Commands of other modules are imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *ELSEWHERE})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in ELSEWHERE:
            module, _, attribute = ELSEWHERE[name].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        return super().get_command(ctx, name)


@click.group(cls=_Group)
def data() -> None:
    """Build, check and encode sets of captioned pictures."""


@data.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="New folder to write.")
@click.option("--resolution", type=click.IntRange(8, 512), default=64, show_default=True, help="Side in pixels.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Decides splits and backgrounds.")
@click.option("--processes", type=click.IntRange(0), default=0, help="Processes that draw; 0 = one a core.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("~/.cache/gigagan/npm"),
    show_default=True,
    help="Where the npm packages are kept.",
)
def emoji(out: Path, resolution: int, seed: int, processes: int, cache: Path) -> None:
    """Build the emoji set: 1,500 things in nine styles, captioned, from pinned npm packages."""
    import os

    from gigagan.data import emoji as emoji_set
    from gigagan.data import packages

    folders = packages.fetch(cache.expanduser(), registry=_registry())
    manifest = emoji_set.build(
        folders, out, resolution=resolution, seed=seed, processes=processes or len(os.sched_getaffinity(0))
    )
    splits = ", ".join(f"{name} {count:,}" for name, count in manifest["splits"].items())
    print(f"{out}: {manifest['samples']:,} pictures of {manifest['concepts']:,} concepts ({splits})")


def _registry() -> str:
    """The npm registry that the user's environment or ~/.npmrc names, else the public one."""
    import os

    from gigagan.data.packages import PUBLIC_REGISTRY

    for name in ("NPM_CONFIG_REGISTRY", "npm_config_registry"):
        if os.environ.get(name):
            return os.environ[name]
    npmrc = Path("~/.npmrc").expanduser()
    if npmrc.is_file():
        for line in npmrc.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "registry" and value.strip():
                return value.strip()
    return PUBLIC_REGISTRY
