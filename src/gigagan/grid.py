"""Labeled sheets of pictures: prompts down, seeds across, or one picture a prompt with its prompt beneath."""

from collections.abc import Sequence
from contextlib import suppress

from PIL import Image, ImageDraw, ImageFont

from gigagan.errors import ConfigError

CELL_PX = 128
LABEL_PX = 220
FONT_PX = 13
CAPTION_LINES = 3
MARGIN_PX = 8
INK, FAINT, PAPER = (30, 30, 30), (120, 120, 120), (255, 255, 255)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
SYSTEM_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "Arial.ttf")
MAX_PIXELS = 2**30 // 4 // 3  # Pillow's own: what is larger, programs that read by it warn of or refuse
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}


def labelled_grid(
    images: Sequence[Sequence[Image.Image]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    enlarge: str = "lanczos",
) -> Image.Image:
    """A sheet with a label left of each row and above each column.

    Pictures smaller than a cell are shown larger (lanczos or nearest), which a line at the foot says.
    """
    assert len(images) == len(rows), (len(images), len(rows))
    assert all(len(row) == len(columns) for row in images), [len(row) for row in images]
    cell = _cell(images)
    em = _em(cell)
    font = _font([*rows, *columns], em)
    step = cell + MARGIN_PX
    label_px, left, top = _margins(em)
    sheet, draw = _sheet(grid_size(len(rows), len(columns), cell))
    for x, label in enumerate(columns):
        draw.text((left + x * step, MARGIN_PX), _wrapped(label, cell, 1, font), fill=INK, font=font)
    for y, (label, row) in enumerate(zip(rows, images, strict=True)):
        text = _wrapped(label, label_px, cell // (em + 4), font)
        draw.multiline_text((MARGIN_PX, top + y * step), text, fill=INK, font=font)
        for x, image in enumerate(row):
            sheet.paste(_enlarged(image, cell, enlarge), (left + x * step, top + y * step))
    _foot(draw, sheet, images, cell, enlarge, font, em)
    return sheet


def grid_size(rows: int, columns: int, side: int) -> tuple[int, int]:
    """Width and height of a labeled grid of pictures of a side."""
    cell, em = max(CELL_PX, side), _em(side)
    _, left, top = _margins(em)
    return left + (cell + MARGIN_PX) * columns, top + (cell + MARGIN_PX) * rows + _foot_px(em)


def captioned_size(count: int, side: int) -> tuple[int, int]:
    """Width and height of a captioned sheet."""
    width, (step_x, step_y) = _across(count), _steps(side)
    return MARGIN_PX + width * step_x, MARGIN_PX + -(-count // width) * step_y + _foot_px(_em(side))


def check_size(size: tuple[int, int], advice: str = "give fewer pictures, or leave --grid out") -> None:
    """Raises ConfigError, with what to do, for a sheet of more than MAX_PIXELS, which not every program would show."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise ConfigError(
            f"the sheet would have {width:,} x {height:,} px, expected at most {MAX_PIXELS:,} in all; {advice}"
        )


def captioned_sheet(images: Sequence[Image.Image], captions: Sequence[str], *, enlarge: str = "lanczos") -> Image.Image:
    """A sheet of one picture a caption, its caption beneath; as wide as divides the pictures well."""
    assert len(images) == len(captions), (len(images), len(captions))
    assert images
    cell = _cell([images])
    em = _em(cell)
    font = _font(captions, em)
    width, (step_x, step_y) = _across(len(images)), _steps(cell)
    sheet, draw = _sheet(captioned_size(len(images), cell))
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = MARGIN_PX + number % width * step_x, MARGIN_PX + number // width * step_y
        sheet.paste(_enlarged(image, cell, enlarge), (x, y))
        draw.multiline_text((x, y + cell + 3), _wrapped(caption, cell, CAPTION_LINES, font), fill=INK, font=font)
    _foot(draw, sheet, [images], cell, enlarge, font, em)
    return sheet


def _margins(em: int) -> tuple[int, int, int]:
    """Of a labeled grid the width of a row's label, and where the first cell begins."""
    label_px = LABEL_PX * em // FONT_PX
    return label_px, label_px + 2 * MARGIN_PX, em + 2 * MARGIN_PX


def _across(count: int) -> int:
    """Pictures across a captioned sheet."""
    return next((n for n in range(10, 5, -1) if count % n == 0), min(count, 8))


def _steps(side: int) -> tuple[int, int]:
    """From a picture of a captioned sheet to the next, across and down."""
    cell = max(CELL_PX, side)
    return cell + MARGIN_PX, cell + CAPTION_LINES * (_em(side) + 4) + 2 * MARGIN_PX


def _foot_px(em: int) -> int:
    return em + 2 * MARGIN_PX


def _em(cell: int) -> int:
    """Size of the letters: they grow with cells above 256 px, and are as legible when a large sheet is shown small."""
    return max(FONT_PX, FONT_PX * cell // 256)


def _font(labels: Sequence[str], em: int) -> Font:
    """Pillow's own font, which is always there; for more than ASCII one of the system's, if it has one."""
    if not all(label.isascii() for label in labels):
        for name in SYSTEM_FONTS:
            with suppress(OSError):
                return ImageFont.truetype(name, em)
    return ImageFont.load_default(em)


def _sheet(size: tuple[int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", size, PAPER)
    return sheet, ImageDraw.Draw(sheet)


def _cell(images: Sequence[Sequence[Image.Image]]) -> int:
    """Side of a cell: of the largest picture, and at least CELL_PX."""
    return max([CELL_PX, *(image.width for row in images for image in row)])


def _enlarged(image: Image.Image, cell: int, enlarge: str) -> Image.Image:
    image = image.convert("RGB")
    return image if image.size == (cell, cell) else image.resize((cell, cell), FILTERS[enlarge])


def _foot(
    draw: ImageDraw.ImageDraw,
    sheet: Image.Image,
    images: Sequence[Sequence[Image.Image]],
    cell: int,
    enlarge: str,
    font: Font,
    em: int,
) -> None:
    sides = sorted({image.width for row in images for image in row})
    told = ", ".join(f"{side} px" for side in sides)
    shown = f"Pictures of {told}" + ("" if sides == [cell] else f", shown at {cell} px ({enlarge})")
    place = (MARGIN_PX, sheet.height - em - MARGIN_PX)
    draw.text(place, _wrapped(shown, sheet.width - 2 * MARGIN_PX, 1, font), fill=FAINT, font=font)


def _wrapped(text: str, width: int, lines: int, font: Font) -> str:
    """Text broken at spaces (or within a word too long) to at most `lines` lines of `width` pixels."""
    done: list[str] = []
    current = ""
    for word in text.split():
        while font.getlength(word) > width and len(word) > 1:
            fitting = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            done, current, word = [*done, *([current] if current else []), word[:fitting]], "", word[fitting:]
        joined = f"{current} {word}".strip()
        if font.getlength(joined) <= width:
            current = joined
        else:
            done, current = [*done, current], word
    done += [current] if current else []
    if len(done) > lines:
        last = done[lines - 1]
        while last and font.getlength(f"{last}...") > width:
            last = last[:-1]
        done = [*done[: lines - 1], f"{last}..."]
    return "\n".join(done)
