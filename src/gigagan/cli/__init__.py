"""The command line: `gigagan COMMAND`. Commands are imported when they run, so help needs no torch.

Exit codes: 0 done, 2 the user's mistake (one line on stderr), 130 interrupted; anything else is a bug and shows its
traceback.
"""

import difflib
import errno
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from io import TextIOWrapper
from typing import Any, NoReturn

import click

from gigagan import __version__
from gigagan.allocator import keep_memory
from gigagan.errors import GigaGANError

COMMANDS = {
    "data": ("gigagan.cli.data:data", "Build, check and encode sets of captioned pictures."),
    "train": ("gigagan.cli.train:train", "Train PRESET (a name or a .yaml file) with KEY=VALUE overrides."),
    "generate": (
        "gigagan.cli.generate:generate",
        "Draw each PROMPT with each seed and print the paths of the pictures.",
    ),
    "edit": (
        "gigagan.cli.edit:edit",
        "Mix, blend, move and find pictures in the model's latent space.",
    ),
    "video": (
        "gigagan.cli.video:video",
        "Film the way from each PROMPT to the next, or from each seed of one PROMPT to the next.",
    ),
    "ui": (
        "gigagan.cli.ui:ui",
        "Open the studio: generate, mix, explore, style tables and films in a browser.",
    ),
    "serve": (
        "gigagan.cli.serve:serve",
        "Serve the OpenAI Images API: POST /v1/images/generations, with dynamic batching and a bounded queue.",
    ),
    "show": (
        "gigagan.cli.show:show",
        "Print what a generated picture says about itself: prompt, seed, psi, model and version.",
    ),
    "upsample": ("gigagan.cli.upsample:upsample", "Make pictures larger and print the paths of the new ones."),
    "evaluate": (
        "gigagan.cli.evaluate:evaluate",
        "Measure MODEL (a directory, or emoji: the one in the package), each figure beside the same of real pictures.",
    ),
    "evaluate-upsampler": (
        "gigagan.cli.evaluate_upsampler:evaluate_upsampler",
        "Measure the upsampler of MODEL on held-out pictures, beside bicubic and Lanczos.",
    ),
    "export": (
        "gigagan.cli.export:export",
        "Write the base, the upsampler and the text encoder of MODEL as graphs that need no PyTorch.",
    ),
    "config": ("gigagan.cli.config:config", "Print every key of PRESET with KEY=VALUE overrides applied."),
    "info": (
        "gigagan.cli.info:info",
        "Print parameters, FLOPs and activation memory of PRESET by part and resolution.",
    ),
    "plan": (
        "gigagan.cli.plan:plan",
        "Say what training PRESET takes: memory a GPU, images a second, days, money, data and disk.",
    ),
    "doctor": (
        "gigagan.cli.doctor:doctor",
        "Say which device, versions, extras, weights and data are found, with a cure for each fault.",
    ),
}

USER_ERRNOS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
        errno.EPERM,
        errno.EROFS,
    }
)
"""What the system says about a path that the user chose; other OSErrors are bugs."""


class LazyGroup(click.Group):
    """A group that knows its commands by name, place and one line of help, and imports only the one that runs."""

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return None
        module, _, attribute = self.lazy[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command), f"{module}:{attribute} is a {type(command).__name__}"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.lazy and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.lazy, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(self.lazy)}"
            raise click.UsageError(f"no such command {name!r}; {hint}", ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in self.lazy.items()])


@click.group(cls=LazyGroup, lazy=COMMANDS)
@click.version_option(__version__, prog_name="gigagan", message="%(prog)s %(version)s")
def cli() -> None:
    """GigaGAN, open: text to image with a GAN."""


def main(args: list[str] | None = None) -> NoReturn:
    """The program: runs one command and exits."""
    keep_memory()
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")  # a path that isn't UTF-8 is printed as the bytes it is
    sys.exit(run(args))


def run(args: list[str] | None = None) -> int:
    """One command; returns the exit code, with the user's mistakes told in one line on stderr."""
    try:
        code = cli.main(args, prog_name="gigagan", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "gigagan"
        return _fail(f"{error.format_message()} ({command} --help)")
    except click.ClickException as error:
        return _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except GigaGANError as error:
        return _fail(str(error))
    except BrokenPipeError:  # `gigagan config tiny | head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in USER_ERRNOS:
            raise
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))


def _fail(message: str, code: int = 2) -> int:
    click.echo(f"gigagan: {' '.join(message.split())}", err=True)
    return code
