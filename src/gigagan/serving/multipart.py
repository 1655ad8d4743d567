"""A multipart/form-data body, which is all in memory: its parts by their names."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from gigagan.serving.api_error import ApiError, invalid

MAX_PARTS = 32


def parts(body: bytes, content_type: str) -> dict[str, bytes]:
    """The content of each part, files and fields alike. Raises ApiError where it isn't such a body."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise _bad("content-type names no boundary")
    reader = _Reader()
    try:
        parser = MultipartParser(boundary, reader.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise _bad("it isn't multipart/form-data as its content-type says") from None
    if not reader.ended:
        raise _bad("it ends before its last boundary")
    return reader.found


class _Reader:
    """Takes the parser's events."""

    def __init__(self) -> None:
        self.found: dict[str, bytes] = {}
        self.ended = False
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value = b"", b""
        self._pieces: list[bytes] = []

    def callbacks(self) -> dict[str, object]:
        """For the parser."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._add_name(data[start:end]),
            "on_header_value": lambda data, start, end: self._add_value(data[start:end]),
            "on_header_end": self._header,
            "on_part_data": lambda data, start, end: self._pieces.append(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._headers, self._pieces = {}, []
        if len(self.found) >= MAX_PARTS:
            raise _bad(f"it has more than {MAX_PARTS} parts")

    def _add_name(self, piece: bytes) -> None:
        self._name += piece

    def _add_value(self, piece: bytes) -> None:
        self._value += piece

    def _header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def _end(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        kind, options = parse_options_header(disposition)
        if kind != b"form-data" or not options.get(b"name"):
            raise _bad("a part has no name")
        name = options[b"name"].decode("utf-8", errors="replace")[:100]
        if name in self.found:
            raise invalid(name, f"{name} came twice; send it once")
        self.found[name] = b"".join(self._pieces)

    def _finish(self) -> None:
        self.ended = True


def _bad(reason: str) -> ApiError:
    return invalid(None, f"the body can't be read: {reason}", "invalid_multipart")
