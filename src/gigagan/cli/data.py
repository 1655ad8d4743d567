"""`gigagan data`: build, check and encode sets of captioned pictures."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gigagan.cli.files import probe

if TYPE_CHECKING:
    from gigagan.data.check import Report, Spread
    from gigagan.models.frozen import TextEncoder

ELSEWHERE = {
    "heads": "gigagan.cli.heads:heads",
    "index": "gigagan.cli.index:index",
    "stats": "gigagan.cli.index:stats",
    "weights": "gigagan.cli.weights:weights",
}


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
@click.option("--only", default="", help="Only these concepts: red-apple,rocket,...")
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("~/.cache/gigagan/npm"),
    show_default=True,
    help="Where the npm packages are kept.",
)
def emoji(out: Path, resolution: int, seed: int, processes: int, only: str, cache: Path) -> None:
    """Build the emoji set: 1,500 things in nine styles, captioned, from pinned npm packages."""
    import os

    from gigagan.data import emoji as emoji_set
    from gigagan.data import packages

    folders = packages.fetch(cache.expanduser(), registry=_registry())
    manifest = emoji_set.build(
        folders,
        out,
        resolution=resolution,
        seed=seed,
        processes=processes or os.cpu_count() or 1,
        only=frozenset(filter(None, only.split(","))),
    )
    splits = ", ".join(f"{name} {count:,}" for name, count in manifest["splits"].items())
    print(f"{out}: {manifest['samples']:,} pictures of {manifest['concepts']:,} concepts ({splits})")


@data.command()
@click.argument("path")
@click.option("--encoder", type=click.Choice(["none", "minilm", "clip"]), default="none", help="Count tokens, too.")
@click.option("--encoder-path", default="", help="Folder of the encoder's weights; needed for clip.")
@click.option("--max-tokens", type=click.IntRange(4, 512), default=32, show_default=True, help="Tokens it takes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(path: str, encoder: str, encoder_path: str, max_tokens: int, as_json: bool) -> None:
    """Read the whole set at PATH and say what is in it and which files can't be used.

    Ends with 2 where nothing can be used.
    """
    import json

    from gigagan.data.check import check as read
    from gigagan.errors import DataError

    count_tokens = None if encoder == "none" else _encoder(encoder, encoder_path, max_tokens).count_tokens
    report = read(path, count_tokens=count_tokens, max_tokens=max_tokens)
    if as_json:
        print(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        _print_report(report, max_tokens)
    if not report.samples:
        raise DataError(f"{path}: none of it can be used ({len(report.bad):,} bad); expected pictures with captions")


@data.command()
@click.argument("path")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@click.option(
    "--encoder",
    type=click.Choice(["minilm", "clip", "hashed"]),
    default="minilm",
    show_default=True,
    help="As text.encoder in training.",
)
@click.option("--encoder-path", default="", help="Folder of the encoder's weights; needed for clip.")
@click.option("--max-tokens", type=click.IntRange(4, 512), default=32, show_default=True, help="text.max_tokens.")
@click.option("--split", default="", help="Only this split.")
def encode(path: str, out: Path, encoder: str, encoder_path: str, max_tokens: int, split: str) -> None:
    """Compute the text features of all captions of the set at PATH once, for data.features=FILE in training."""
    from tqdm import tqdm

    from gigagan.data.dataset import open_dataset
    from gigagan.data.features import write_features
    from gigagan.errors import DataError

    probe(out.parent)
    dataset = open_dataset(path, split=split)
    texts: set[str] = set()
    for index in tqdm(range(len(dataset)), desc="read", unit="sample"):
        try:
            texts.update(caption.text for caption in dataset.source.read(index).captions)
        except DataError:
            continue  # `gigagan data check` names it, training skips it
    count = write_features(_encoder(encoder, encoder_path, max_tokens), texts, out)
    print(f"{out}: {count:,} captions, {out.stat().st_size / 2**20:,.0f} MiB")


def _encoder(name: str, path: str, max_tokens: int) -> "TextEncoder":
    from gigagan import config, dist
    from gigagan.models.frozen import build_text_encoder

    cfg = config.from_dict({"text": {"encoder": name, "path": path, "max_tokens": max_tokens}}).text
    return build_text_encoder(cfg, dist.device())


def _print_report(report: "Report", max_tokens: int) -> None:
    def spread(numbers: "Spread") -> str:
        return f"{numbers.least} to {numbers.most}, median {numbers.median}"

    print(f"{report.path}: {report.samples:,} samples that can be used, {len(report.bad):,} that can't")
    for title, counts in (("splits", report.splits), ("sizes", report.sizes)):
        listed = ", ".join(f"{name or 'none'} {count:,}" for name, count in counts.items())
        print(f"{title}: {listed or 'none'}")
    print(f"with alpha: {report.with_alpha:,}")
    each = spread(report.captions_a_sample)
    print(f"captions: {report.captions:,} ({report.distinct_captions:,} distinct), {each} each")
    if report.samples and report.caption_characters.most == 0:
        print("no captions: to train on text give them in metadata.jsonl (docs/your-data.md)")
    print(f"captions without a style: {report.styleless:,}; with a background: {report.with_background:,}")
    print(f"caption length: {spread(report.caption_characters)} characters")
    if report.caption_tokens is not None:
        print(f"caption length: {spread(report.caption_tokens)} tokens; {report.too_long:,} over {max_tokens} are cut")
    for fault in report.bad:
        print(f"bad: {fault['name']}: {fault['reason']}")


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
