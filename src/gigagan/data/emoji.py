"""The nine-style emoji set: which emoji, in which styles, in which split, drawn and written as shards.

Everything is a function of the packages, the resolution and the seed. A picture's split depends on the seed, its
concept and its style alone, so another style or resolution moves nothing.
"""

import io
import json
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from gigagan.data import captions
from gigagan.data.draws import draw
from gigagan.data.emoji_names import OLD_NAMES, STORYBOOK_NAMES, WRONG, slug
from gigagan.data.packages import PACKAGES
from gigagan.data.shards import new_folder, write_manifest, write_shards
from gigagan.data.tar_source import index_shard
from gigagan.errors import DataError, MissingExtra

STYLES = tuple(captions.TEMPLATES)
SPLITS = ("train", "test_pair", "test_concept")
TEST_CONCEPT_SHARE = 0.03
TEST_PAIR_SHARE = 0.06
FINE_UP_TO = 128
"""Larger pictures are drawn at twice their size instead of four times, of which a quarter of the time is left."""
# Emoji of Unicode 12 and before are in at least five of the styles, so a pair held out leaves others to learn from.
LAST_PAIRED_VERSION = 12

_GROUPS = {0: "smileys", 1: "people", 3: "nature", 4: "food", 5: "travel", 6: "activities", 7: "objects", 8: "symbols"}
_SYMBOLS = frozenset({"arrow", "gender", "geometric", "math", "other-symbol", "punctuation", "religion", "zodiac"})
_LEFT_OUT = frozenset(
    {f"{word} arrow" for word in ("BACK", "END", "ON!", "SOON", "TOP")}
    | {"Japanese symbol for beginner", "copyright", "registered", "trade mark", "name badge", "part alternation mark"}
)


@dataclass(frozen=True)
class Emoji:
    """A concept."""

    concept: str
    X: str
    family: str
    hexcode: str
    group: str
    subgroup: str
    tags: tuple[str, ...]
    version: float


@dataclass(frozen=True)
class Picture:
    """A concept in a style, not drawn yet."""

    emoji: Emoji
    style: str
    source: str | Path
    """SVG text, or the path of an image file."""

    @property
    def key(self) -> str:
        """Name of the sample."""
        return f"{self.emoji.concept}_{self.style}"


def concepts(names: Path) -> list[Emoji]:
    """The emoji that show something, from emojibase's names: no flags, letters, keycaps, signs, skin tones."""
    subgroups = {entry["order"]: entry["key"] for entry in _json(names / "en/messages.json")["subgroups"]}
    found = []
    for entry in _json(names / "en/data.json"):
        group, label = entry.get("group"), entry["label"]
        if group not in _GROUPS or label in _LEFT_OUT or (group == 8 and subgroups[entry["subgroup"]] not in _SYMBOLS):
            continue
        found.append(
            Emoji(
                concept=slug(label),
                X=captions.noun_phrase(label),
                family=captions.family(label),
                hexcode=_plain(entry["hexcode"]),
                group=_GROUPS[group],
                subgroup=subgroups[entry["subgroup"]],
                tags=tuple(entry.get("tags", ())),
                version=float(entry["version"]),
            )
        )
    return found


def split_of(emoji: Emoji, style: str, *, seed: int) -> str:
    """train, test_pair (the concept is known in other styles) or test_concept (it is in none)."""
    if draw(seed, "test_concept", emoji.family) < TEST_CONCEPT_SHARE:
        return "test_concept"
    held_out = draw(seed, "test_pair", emoji.family, style) < TEST_PAIR_SHARE
    return "test_pair" if held_out and emoji.version <= LAST_PAIRED_VERSION else "train"


def pictures(folders: Mapping[str, Path], emoji: list[Emoji]) -> list[Picture]:
    """Every concept in every style that has it, in the order of concepts and styles."""
    by_style = {
        style: _files(folders[style]) if style == "3d" else _icons(folders[style], style, emoji)
        for style in STYLES
        if style in folders
    }
    return [
        Picture(one, style, sources[one.hexcode])
        for one in emoji
        for style, sources in by_style.items()
        if one.hexcode in sources
    ]


def render(source: str | Path, resolution: int) -> bytes:
    """PNG with alpha of an SVG, drawn larger and reduced, or of an image file, which isn't enlarged."""
    if isinstance(source, Path):
        image = Image.open(source).convert("RGBA")
        resolution = min(resolution, image.width)
    else:
        import resvg_py

        side = (4 if resolution <= FINE_UP_TO else 2) * resolution
        drawn = resvg_py.svg_to_bytes(svg_string=source, width=side, height=side, skip_system_fonts=True)
        image = Image.open(io.BytesIO(bytes(drawn))).convert("RGBA")
    image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)  # Pillow premultiplies alpha for it.
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def build(
    folders: Mapping[str, Path],
    out: Path,
    *,
    resolution: int,
    seed: int,
    processes: int,
    only: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Write the set of some styles' packages (by style word, and "names") to `out`; the manifest.

    `only` names the concepts wanted, all if empty. Raises DataError where one is unknown or `out` holds something.
    """
    try:
        versions = {package: metadata.version(package) for package in ("pillow", "resvg-py")}
    except metadata.PackageNotFoundError:
        raise MissingExtra("resvg-py", "data") from None
    known = concepts(folders["names"])
    if unknown := only - {emoji.concept for emoji in known}:
        raise DataError(f"{', '.join(sorted(unknown))}: no such concept; expected names such as red-apple")
    drawn = pictures(folders, [emoji for emoji in known if not only or emoji.concept in only])
    if not drawn:
        raise DataError("the packages hold no emoji that the set wants; remove the cache folder and try again")
    styles = Counter(picture.style for picture in drawn)
    split = {picture.key: split_of(picture.emoji, picture.style, seed=seed) for picture in drawn}
    with new_folder(out) as folder:
        shards: list[dict[str, Any]] = []
        # Mixed, so that a reader of a few shards sees all styles.
        drawn.sort(key=lambda picture: draw(seed, "order", picture.key))
        members = {name: [picture for picture in drawn if split[picture.key] == name] for name in SPLITS}
        with _pngs([picture for name in SPLITS for picture in members[name]], resolution, processes) as pngs:
            for name in SPLITS:
                samples = ((picture.key, next(pngs), _meta(picture, seed)) for picture in members[name])
                shards += write_shards(samples, folder, split=name, first=len(shards))
        manifest = {
            "name": "emoji",
            "resolution": resolution,
            "seed": seed,
            "samples": len(drawn),
            "concepts": len({picture.emoji.concept for picture in drawn}),
            "splits": {name: sum(entry["samples"] for entry in shards if entry["split"] == name) for name in SPLITS},
            "styles": {style: count for style in STYLES if (count := styles[style])},
            "sources": {role: f"{PACKAGES[role].name}@{PACKAGES[role].version}" for role in folders},
            "versions": versions,
            "shards": shards,
        }
        for entry in shards:
            index_shard(folder / entry["file"])
        write_manifest(folder, manifest)
        (folder / "NOTICE").write_text(notice(folders), encoding="utf-8")
    return manifest


def notice(roles: Mapping[str, Path]) -> str:
    """Credits and licences of the packages in the set."""
    lines = ["This set is made of emoji drawn by others, reduced to small pictures. Credits:", ""]
    for role in roles:
        package = PACKAGES[role]
        what = "names and keywords" if role == "names" else f'style "{role}"'
        lines.append(f"- {what}: {package.author}, {package.licence}, {package.url}")
        lines.append(f"  (npm {package.name} {package.version})")
    licences = {
        "MIT": "https://opensource.org/license/mit",
        "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
        "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    }
    used = {PACKAGES[role].licence for role in roles}
    return "\n".join([*lines, "", *(f"{name}: {url}" for name, url in licences.items() if name in used), ""])


@contextmanager
def _pngs(members: list[Picture], resolution: int, processes: int) -> Iterator[Iterator[bytes]]:
    """The drawn pictures in order, a progress bar beside."""
    sources = [picture.source for picture in members]
    sides = [resolution] * len(members)
    with ExitStack() as stack:
        drawn: Iterator[bytes] = map(render, sources, sides)
        if processes > 1:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(processes, mp_context=context))
            drawn = pool.map(render, sources, sides, chunksize=16)
        yield iter(tqdm(drawn, desc="pictures", unit="img", total=len(members)))


def _meta(picture: Picture, seed: int) -> dict[str, Any]:
    emoji, style, package = picture.emoji, picture.style, PACKAGES[picture.style]
    drawn = captions.captions(emoji.X, emoji.concept, style, seed=seed)
    return {
        "captions": [caption.to_json() for caption in drawn],
        "concept": emoji.concept,
        "noun": emoji.X,
        "family": emoji.family,
        "style": style,
        "split": split_of(emoji, style, seed=seed),
        "group": emoji.group,
        "subgroup": emoji.subgroup,
        "tags": list(emoji.tags),
        "licence": package.licence,
        "credit": f"{package.author}, {package.url}",
    }


def _files(folder: Path) -> dict[str, str | Path]:
    return {_plain(path.stem): path for path in sorted((folder / "assets").glob("*.webp"))}


def _icons(folder: Path, style: str, emoji: list[Emoji]) -> dict[str, str | Path]:
    """Hex code -> SVG of an Iconify package: by its own table of hex codes where it has one, else by name."""
    book = _json(folder / "icons.json")
    names = [name for name in [*book["icons"], *book.get("aliases", {})] if name not in WRONG.get(style, ())]
    chars = folder / "chars.json"
    codes = {_plain(code): name for code, name in _json(chars).items()} if chars.is_file() else {}
    if not codes:
        codes = _codes_by_name(names, emoji, own=STORYBOOK_NAMES if style == "storybook" else {})
    held = set(names)
    return {code: _svg(name, book) for code, name in codes.items() if name in held}


def _codes_by_name(names: list[str], emoji: list[Emoji], *, own: Mapping[str, str]) -> dict[str, str]:
    """Hex code -> icon, by the set's own names, today's, old ones, "x-face" for x; of numbered drawings the first."""
    squashed = {name: name.replace("-", "") for name in names}
    numbered = {name: name.removesuffix("-1").replace("-", "") for name in names if name.endswith("-1")}
    today = {one.concept.replace("-", ""): one.hexcode for one in emoji}

    def renamed(table: Mapping[str, str]) -> dict[str, str]:
        found = {old.replace("-", ""): slug(new).replace("-", "") for old, new in table.items()}
        return {old: today[new] for old, new in found.items() if new in today}

    faces = {f"{name}face": code for name, code in today.items() if f"{name}face" not in today}
    found: dict[str, str] = {}
    taken: set[str] = set()
    for table in (renamed(own), today, renamed(OLD_NAMES), faces):
        for stems in (squashed, numbered):
            for name, stem in stems.items():
                if name not in taken and stem in table:
                    found.setdefault(table[stem], name)
                    taken.add(name)
    return found


def _svg(name: str, book: Mapping[str, Any]) -> str:
    """A whole SVG document of an icon or of an alias, mirrored where the alias says so."""
    mirrored = False
    while name not in book["icons"]:
        mirrored ^= bool(book["aliases"][name].get("hFlip"))
        name = book["aliases"][name]["parent"]
    icon = {"width": book.get("width", 16), "height": book.get("height", 16), "left": 0, "top": 0} | book["icons"][name]
    left, top, width, height = icon["left"], icon["top"], icon["width"], icon["height"]
    body = icon["body"].replace("currentColor", "#000")
    if mirrored:
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{box}">{body}</svg>'


def _plain(hexcode: str) -> str:
    """A hex code as all sets agree on it: upper case, without the variation selector."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
