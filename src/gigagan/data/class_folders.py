"""Pictures without captions: a folder for each class, whose name is the caption, or one folder of pictures."""

from pathlib import Path

from gigagan.data.captions import Caption
from gigagan.data.places import entries, is_far
from gigagan.data.sources import IMAGE_SUFFIXES, Fault, Record, read_inside
from gigagan.errors import DataError


class ClassFolderSource:
    """PATH/CLASS/**/PICTURE, in the order of their names; or PATH/PICTURE, whose captions are empty."""

    splits: frozenset[str] = frozenset()
    faults: tuple[Fault, ...] = ()

    def __init__(self, folder: Path) -> None:
        """Raises DataError for one class alone, and for pictures beside the folders of classes."""
        self.folder = folder
        inside = {entry: _is_picture(entry) for entry in entries(folder)}
        loose = [entry for entry, is_picture in inside.items() if is_picture]
        by_class = {entry.name: _pictures(entry) for entry, is_picture in inside.items() if not is_picture}
        self.classes = tuple(name for name, files in by_class.items() if files)
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


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "." and (is_far(path) or path.is_file())


def _pictures(folder: Path) -> list[Path]:
    """Pictures at any depth, in the order of their paths; not in hidden folders, nor behind links to folders."""
    found: list[Path] = []
    for entry in entries(folder) if folder.name[0] != "." else ():
        if _is_picture(entry):
            found.append(entry)
        elif is_far(entry) or not entry.is_symlink():
            found += _pictures(entry)
    return sorted(found)
