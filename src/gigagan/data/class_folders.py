"""Pictures without captions: a folder for each class, whose name is the caption, or one folder of pictures."""

from collections.abc import Iterable
from pathlib import Path

from gigagan.data.captions import Caption
from gigagan.data.sources import IMAGE_SUFFIXES, Fault, Record, read_inside
from gigagan.errors import DataError


class ClassFolderSource:
    """PATH/CLASS/**/PICTURE, in the order of their names; or PATH/PICTURE, whose captions are empty."""

    splits: frozenset[str] = frozenset()
    faults: tuple[Fault, ...] = ()

    def __init__(self, folder: Path) -> None:
        """Raises DataError for one class alone, and for pictures beside the folders of classes."""
        self.folder = folder
        loose = _pictures(folder.iterdir())
        by_class = {entry.name: _pictures(entry.rglob("*")) for entry in sorted(folder.iterdir()) if entry.is_dir()}
        self.classes = tuple(name for name, files in by_class.items() if files and not name.startswith("."))
        if self.classes and loose:
            raise DataError(
                f"{folder}: {loose[0].name} lies beside the folders of classes ({', '.join(self.classes[:3])}); "
                "move it into one"
            )
        if len(self.classes) == 1:
            raise DataError(
                f"{folder}: holds one class, {self.classes[0]}; expected at least two folders of pictures, or for "
                "unconditional training the folder with the pictures itself"
            )
        self.files = [(path, name) for name in self.classes for path in by_class[name]]
        self.files += [(path, "") for path in loose]

    def __len__(self) -> int:
        return len(self.files)

    def key(self, index: int) -> str:
        return str(self.files[index][0].relative_to(self.folder))

    def read(self, index: int) -> Record:
        path, name = self.files[index]
        image = read_inside(self.folder, path)
        return Record(self.key(index), image, (Caption(name),), {"class": name} if name else {})


def _pictures(paths: Iterable[Path]) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file() and p.name[0] != ".")
