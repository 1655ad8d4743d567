"""Files and folders of pictures to larger ones: whole files only, none written over, runs that go on."""

import os
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gigagan.data.places import rename_new
from gigagan.errors import ConfigError, DataError
from gigagan.metadata import ENHANCED_TYPE
from gigagan.provenance import MAX_SIGNED_BYTES, Origin, Signer
from gigagan.upsampling.enlarger import Enlarger, Progress, Request
from gigagan.upsampling.photo import Photo, photo_sides, read_photo, write_photo
from gigagan.upsampling.png import png_sides
from gigagan.upsampling.size import Size, size_of

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".mpo", ".ppm", ".pgm", ".avif"}
)


@dataclass(frozen=True)
class Job:
    """A picture and where the larger one goes."""

    source: Path
    target: Path


def jobs(paths: Iterable[Path], out: Path) -> list[Job]:
    """A job for each picture; those of a folder keep their places in it.

    Pictures of one name and different suffixes keep it in theirs, so that none takes another's place. Raises DataError
    for a path that isn't there and for a folder without pictures, ConfigError where a picture lies at a larger one's.
    """
    found: list[tuple[Path, Path]] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            inside = [p for p in inside if not p.name.startswith(".") and out.resolve() not in p.resolve().parents]
            if not inside:
                raise DataError(f"{path}: holds no pictures ({', '.join(sorted(SUFFIXES))}); give another folder")
            found += [(p, p.relative_to(path)) for p in inside]
        elif path.exists():
            found.append((path, Path(path.name)))
        else:
            raise DataError(f"{path}: no such file or folder; expected a picture or a folder of them")
    stems = [relative.with_suffix("") for _, relative in found]
    common = Counter(stems)
    targets = [
        out / (f"{relative}.png" if common[stem] > 1 else f"{stem}.png")
        for (_, relative), stem in zip(found, stems, strict=True)
    ]
    sources = {path.resolve() for path, _ in found}
    for target, count in Counter(targets).items():
        if target.resolve() in sources:
            raise ConfigError(f"{target}: is a picture to be made larger itself; give another --out")
        if count > 1:
            raise DataError(f"{target}: two pictures would have this name; give them to two runs with another --out")
    return [Job(source, target) for (source, _), target in zip(found, targets, strict=True)]


def planned(job: Job, *, scale: int, longest: int) -> tuple[Photo, Size]:
    """The picture of a job and how large it becomes. Raises DataError where it can't be used."""
    photo = read_photo(job.source)
    return photo, _size(job, photo.width, photo.height, scale, longest)


def check_there(job: Job, *, scale: int, longest: int) -> None:
    """Raises DataError where a job's target is a file of another size than it would get, or the source can't be used.

    Only the first bytes are read, so that a run over thousands goes on at once.
    """
    width, height = photo_sides(job.source)
    size = _size(job, width, height, scale, longest)
    # Which way up a picture is isn't always said in its first bytes, so both ways will do.
    if png_sides(job.target) not in ((size.width, size.height), (size.height, size.width)):
        wanted = f"{job.source} at {size.width} x {size.height} px"
        raise DataError(f"{job.target}: is there already and isn't {wanted}; it stays, so give another --out")


def _size(job: Job, width: int, height: int, scale: int, longest: int) -> Size:
    try:
        return size_of(width, height, scale=scale, longest=longest)
    except DataError as error:
        raise DataError(f"{job.source}: {error}") from None


def run(
    job: Job,
    photo: Photo,
    size: Size,
    enlarger: Enlarger,
    request: Request,
    said: dict[str, str],
    progress: Progress,
    signer: Signer | None = None,
) -> None:
    """Write the larger picture: under a temporary name beside it, which becomes its own when it is whole.

    `said`: what the file says, its `model` among it.
    """
    if signer is not None and size.width * size.height * photo.channels * photo.bits // 8 > MAX_SIGNED_BYTES:
        most = f"at most {MAX_SIGNED_BYTES // 2**20} MB of pixels can be signed"
        raise DataError(f"{job.source}: {size.width} x {size.height} px is too large; {most}, so ask for less")
    job.target.parent.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex
    temporary, signed = (job.target.with_name(f".{name}.{suffix}") for suffix in ("partial", "signed"))
    try:
        with temporary.open("xb") as file:
            write_photo(file, enlarger, photo, size, request, said, progress)
            file.flush()
            os.fsync(file.fileno())
        if signer is not None:
            origin = Origin(said["model"], ENHANCED_TYPE, job.source)
            with temporary.open("rb") as source, signed.open("x+b") as file:
                signer.sign(source, file, "image/png", origin)
                file.flush()
                os.fsync(file.fileno())
        rename_new(temporary if signer is None else signed, job.target)
    except FileExistsError:
        raise DataError(f"{job.target}: appeared meanwhile; it stays, and {job.source} was left out") from None
    finally:
        temporary.unlink(missing_ok=True)
        signed.unlink(missing_ok=True)
