"""Files and folders of pictures to larger ones: whole files only, none written over, runs that go on."""

import os
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gigagan.errors import DataError
from gigagan.metadata import ENHANCED_TYPE
from gigagan.provenance import MAX_SIGNED_BYTES, Origin, Signer
from gigagan.upsampling.enlarger import Enlarger, Progress, Request
from gigagan.upsampling.photo import Photo, read_photo, write_photo
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
    for a path that isn't there and for a folder without pictures.
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
    for target, count in Counter(targets).items():
        if count > 1:
            raise DataError(f"{target}: two pictures would have this name; give them to two runs with another --out")
    return [Job(source, target) for (source, _), target in zip(found, targets, strict=True)]


def planned(job: Job, *, scale: int, longest: int) -> tuple[Photo, Size]:
    """The picture of a job and how large it becomes. Raises DataError where it can't be used."""
    photo = read_photo(job.source)
    try:
        return photo, size_of(photo.width, photo.height, scale=scale, longest=longest)
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
        os.link(temporary if signer is None else signed, job.target)  # unlike a rename it takes no other file's place
    except FileExistsError:
        raise DataError(f"{job.target}: appeared meanwhile; it stays, and {job.source} was left out") from None
    finally:
        temporary.unlink(missing_ok=True)
        signed.unlink(missing_ok=True)
