"""What a picture's file says about itself: PNG text chunks, and the mark of a machine-made picture in XMP.

PNG, JPEG and WebP carry the same packet; JPEG and WebP, which have no text chunks, hold the rest in it as JSON. GIF has
a comment, which holds that JSON alone.
"""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal
from xml.sax.saxutils import escape, unescape

from PIL import Image, PngImagePlugin

from gigagan import __version__
from gigagan.errors import DataError

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
ENHANCED_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
"""Of a picture that was there before, with details that a model invented."""
COMPOSITE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeSynthetic"
"""Of a sheet on which a picture stands beside what a model made of it."""
XMP_KEYWORD = "XML:com.adobe.xmp"
DRAWING = re.compile(r"<gigagan:drawing>(.*?)</gigagan:drawing>", re.DOTALL)
MAX_XMP_BYTES = 65_000  # a segment of a JPEG holds 65,502
WEBP_METHOD = 2  # of 6: files are made while somebody waits
KEYS = ("prompt", "seed", "psi", "model", "dtype", "device", "resolution", "version", "edit")
SHEET_KEYS = ("prompts", "seeds", "psi", "seconds", "fps", "loop", "ease", "model", "edits")
"""Of a sheet or a film. Prompts and edits are one a line."""


@dataclass(frozen=True)
class PictureInfo:
    """What it takes to draw a picture again."""

    prompt: str
    seed: int
    psi: float
    model: str
    """Hash of the model (`checkpoint.model_hash`)."""
    dtype: str = "float32"
    device: str = "cpu"
    """Kind of device: arithmetic differs in the last bits between them."""
    resolution: int = 0
    """Side of the level of the pyramid."""
    version: str = __version__
    edit: str = ""
    """What was done to the point of this prompt and seed before it was drawn, as JSON; empty for nothing."""

    def as_strings(self) -> dict[str, str]:
        """Each value as the file holds it."""
        strings = {key: str(getattr(self, key)) for key in KEYS}
        return strings if self.edit else {key: value for key, value in strings.items() if key != "edit"}


@dataclass(frozen=True)
class FilmInfo:
    """What it takes to draw a film again."""

    prompts: Sequence[str]
    """Of each key frame, as are the seeds."""
    seeds: Sequence[int]
    psi: float
    seconds: float
    """From a key frame to the next."""
    fps: float
    loop: bool
    ease: str
    model: str
    version: str = __version__

    @property
    def lines(self) -> list[str]:
        """The prompts, each of one line, however they were spaced."""
        return [" ".join(prompt.split()) for prompt in self.prompts]

    def as_json(self) -> str:
        """As the file holds it, keys as `gigagan video` takes them: of one prompt the seeds, or one seed for all.

        The keys come last: a format that has no room for thousands of them keeps the rest.
        """
        prompts, seeds = self.lines, list(self.seeds)
        if len(set(prompts)) == 1:
            prompts = prompts[:1]
        elif len(set(seeds)) == 1:
            seeds = seeds[:1]
        said = {key: str(getattr(self, key)) for key in ("psi", "seconds", "fps", "ease", "model", "version")}
        said |= {
            "loop": "yes" if self.loop else "no",
            "seeds": ",".join(map(str, seeds)),
            "prompts": "\n".join(prompts),
        }
        return json.dumps(said, ensure_ascii=False)


def png_bytes(image: Image.Image, info: PictureInfo, *, level: int = 6) -> bytes:
    """The file of a picture: the same bytes for the same picture and info. `level`: of zlib, 1 fast to 9 small."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in info.as_strings().items():
        # tEXt holds Latin-1; a prompt may be anything.
        chunks.add_itxt(key, value) if key in ("prompt", "edit") else chunks.add_text(key, value)
    return _png(image, chunks, info.prompt, info.version, level)


def lossy_bytes(image: Image.Image, info: PictureInfo, kind: Literal["jpeg", "webp"], quality: int) -> bytes:
    """The same as JPEG or WebP of a quality from 0 to 100."""
    said = json.dumps(info.as_strings(), ensure_ascii=False)
    packet = xmp(info.prompt, info.version, said).encode()
    if len(packet) > MAX_XMP_BYTES:  # a very long prompt; the mark stays
        packet = xmp("", info.version).encode()
    buffer = BytesIO()
    lossy_picture(buffer, image, packet, kind, quality)
    return buffer.getvalue()


def lossy_picture(
    file: BinaryIO,
    image: Image.Image,
    packet: bytes,
    kind: Literal["jpeg", "webp"],
    quality: int,
    *,
    icc: bytes = b"",
    exif: bytes = b"",
) -> None:
    """Write a JPEG or WebP with an XMP packet."""
    kept = {"xmp": packet, "icc_profile": icc, "exif": exif}
    if kind == "jpeg":
        image.save(file, "JPEG", quality=max(quality, 1), **kept)  # Pillow takes 0 for its default
    else:
        image.save(file, "WEBP", quality=quality, method=WEBP_METHOD, **kept)


def sheet_bytes(image: Image.Image, said: Mapping[str, str], *, source_type: str = SOURCE_TYPE) -> bytes:
    """The file of a sheet of pictures, which says what `said` holds."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in said.items():
        chunks.add_itxt(key, value)
    return _png(image, chunks, said.get("prompts", ""), __version__, source_type=source_type)


def _png(
    image: Image.Image,
    chunks: PngImagePlugin.PngInfo,
    description: str,
    version: str,
    level: int = 6,
    source_type: str = SOURCE_TYPE,
) -> bytes:
    chunks.add_text("Software", f"open-gigagan {version}")
    chunks.add_itxt(XMP_KEYWORD, xmp(description, version, source_type=source_type))
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks, compress_level=level)
    return buffer.getvalue()


def read_info(path: Path) -> dict[str, str]:
    """What a generated picture's file says: KEYS, or SHEET_KEYS, that are there, Software, digitalSourceType.

    Films are read as WebP and GIF. Raises DataError for a file that is no picture, one too large to read, or one
    without a prompt.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # half of what is refused
            with Image.open(path) as image:
                image.load()
                text = {str(k): str(v) for k, v in image.info.items() if isinstance(v, str)}
                packet, comment = image.info.get("xmp", b""), image.info.get("comment", b"")
    except Image.DecompressionBombError as error:
        reason = str(error).partition(",")[0]  # Pillow's: how many pixels, and how many it reads
        raise DataError(f"{path}: too large: {reason}") from None
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise DataError(f"{path}: isn't a whole picture; expected a file of gigagan generate or serve") from None
    if isinstance(packet, bytes) and image.format in ("JPEG", "WEBP"):
        text = _from_packet(packet.decode("utf-8", errors="replace"))
    elif isinstance(comment, bytes) and image.format == "GIF":
        text = _from_json(comment.decode("utf-8", errors="replace"))
    if "prompts" not in text and not {"prompt", "seed"} <= text.keys():
        raise DataError(
            f"{path}: says nothing of a prompt and seed; expected a file as gigagan wrote it, not converted since"
        )
    keys = SHEET_KEYS if "prompts" in text else KEYS
    found = {key: text[key] for key in (*keys, "Software") if key in text}
    for kind in (SOURCE_TYPE, ENHANCED_TYPE, COMPOSITE_TYPE):
        if kind in text.get(XMP_KEYWORD, ""):
            found["digitalSourceType"] = kind.rpartition("/")[2]
    return found


def _from_packet(packet: str) -> dict[str, str]:
    """What a JPEG or WebP holds that a PNG holds in its text chunks."""
    found = DRAWING.search(packet)
    return _from_json(unescape(found[1]) if found else "") | {XMP_KEYWORD: packet}


def _from_json(drawing: str) -> dict[str, str]:
    try:
        said = json.loads(drawing)
    except (ValueError, RecursionError):
        said = {}
    text = {str(k): v for k, v in said.items() if isinstance(v, str)} if isinstance(said, dict) else {}
    return {**text, "Software": f"open-gigagan {text.get('version', '')}".strip()}


def enhanced_xmp(prompt: str) -> str:
    """The packet of an enlarged picture."""
    packet = xmp(prompt, source_type=ENHANCED_TYPE)
    return packet if len(packet.encode()) <= MAX_XMP_BYTES else xmp("", source_type=ENHANCED_TYPE)


def xmp(description: str, version: str = __version__, drawing: str = "", *, source_type: str = SOURCE_TYPE) -> str:
    """XMP packet with IPTC's digital source type, which services read as "made with AI".

    `drawing`: what it takes to draw the picture again, as JSON, where the file holds it nowhere else.
    """
    ours = f"<gigagan:drawing>{escape(drawing)}</gigagan:drawing>" if drawing else ""
    printable = "".join(c for c in description if c.isprintable())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        ' xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
        ' xmlns:gigagan="urn:open-gigagan:1">'
        f"<Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>"
        f'<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{escape(printable)}</rdf:li></rdf:Alt></dc:description>'
        f"<xmp:CreatorTool>open-gigagan {version}</xmp:CreatorTool>{ours}"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )
