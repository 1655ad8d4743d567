"""Files by what they were made of, each once; those least recently used go."""

import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

MAX_BYTES = 2**30


class Shelf:
    """Files in a folder, which threads may ask for at once."""

    def __init__(self, folder: Path, *, most_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self._lock = threading.Lock()
        self._bytes: OrderedDict[Path, int] = OrderedDict()  # least recently used first

    def find(self, name: str, *made_of: object) -> Path | None:
        """The file of this name made of this; None where it isn't made yet, or is gone."""
        path = self._place(name, made_of)
        with self._lock:
            if path not in self._bytes:
                return None
            if not path.is_file():  # a cleaner of temporary folders was here
                del self._bytes[path]
                return None
            self._bytes.move_to_end(path)
            return path

    def keep(self, name: str, *made_of: object, write: Callable[[Path], object]) -> Path:
        """The same, written by `write` where there is none: whole or not at all, and never over another."""
        if (found := self.find(name, *made_of)) is not None:
            return found
        path = self._place(name, made_of)
        self.folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".") as folder:
            whole = Path(folder) / name
            write(whole)
            with self._lock:
                if path not in self._bytes:  # else another thread made the same meanwhile
                    self._bytes[path] = whole.stat().st_size
                    path.parent.mkdir(exist_ok=True)
                    whole.replace(path)
                self._drop()
        return path

    def _place(self, name: str, made_of: tuple[object, ...]) -> Path:
        return self.folder / sha256(repr((name, made_of)).encode()).hexdigest()[:32] / name

    def _drop(self) -> None:
        """The newest stays, however large."""
        total = sum(self._bytes.values())
        while total > self.most_bytes and len(self._bytes) > 1:
            path, size = self._bytes.popitem(last=False)
            total -= size
            shutil.rmtree(path.parent, ignore_errors=True)
