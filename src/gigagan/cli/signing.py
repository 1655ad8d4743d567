"""Where the certificate comes from that signs what commands write."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gigagan.errors import ConfigError

if TYPE_CHECKING:
    from gigagan.provenance import Signer

Sign = Callable[[bytes], bytes]
CERT, KEY = "GIGAGAN_C2PA_CERT", "GIGAGAN_C2PA_KEY"


def configured_signer() -> "Signer | None":
    """The signer that the variables name, tried; None where they aren't set. Raises ConfigError, MissingExtra."""
    given = {name: os.environ.get(name, "") for name in (CERT, KEY)}
    if not any(given.values()):
        return None
    for name, value in given.items():
        if not value:
            other = KEY if name == CERT else CERT
            raise ConfigError(f"{other} is set and {name} isn't; set both to paths of PEM files, or neither")

    from gigagan.provenance import load_signer

    return load_signer(Path(given[CERT]), Path(given[KEY]))


def signing(signer: "Signer | None", model: str, source_type: str = "") -> Sign:
    """What turns the PNG of a picture of a model, given by its hash, into a signed one; as it is without a signer."""
    if signer is None:
        return lambda content: content

    from gigagan.metadata import SOURCE_TYPE
    from gigagan.provenance import Origin

    origin = Origin(model, source_type or SOURCE_TYPE)
    return lambda content: signer.signed(content, "png", origin)
