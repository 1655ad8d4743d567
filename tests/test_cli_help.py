"""docs/cli/*.txt is the --help of every command, 100 columns wide."""

from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from gigagan.cli import cli

FOLDER = Path(__file__).parents[1] / "docs" / "cli"
WIDTH = 100


def contexts(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[click.Context]:
    """A command and, of a group, everything below it."""
    ctx = click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        **command.context_settings,
    )
    yield ctx
    if isinstance(command, click.Group):
        for child in command.list_commands(ctx):
            found = command.get_command(ctx, child)
            assert found is not None
            yield from contexts(found, child, ctx)


def file_name(ctx: click.Context) -> str:
    return ctx.command_path.replace(" ", "-") + ".txt"


ALL = list(contexts(cli, "gigagan"))


@pytest.mark.parametrize("ctx", ALL, ids=lambda ctx: ctx.command_path)
def test_the_committed_help_is_the_real_one(ctx: click.Context, golden: Callable[[Path, str], None]) -> None:
    golden(FOLDER / file_name(ctx), ctx.get_help() + "\n")


def test_no_help_of_a_command_that_is_gone() -> None:
    assert {path.name for path in FOLDER.glob("*.txt")} == {file_name(ctx) for ctx in ALL}


@pytest.mark.parametrize("ctx", ALL, ids=lambda ctx: ctx.command_path)
def test_every_option_says_what_it_does(ctx: click.Context) -> None:
    assert ctx.command.help
    for parameter in ctx.command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
