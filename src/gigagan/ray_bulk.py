"""Many prompts to picture files by Ray Data: each once, however often the run is killed and begun again."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayTaskError

from gigagan.data.places import place, write_whole
from gigagan.errors import GigaGANError
from gigagan.metadata import png_bytes
from gigagan.pipeline import Pipeline

BLOCK = 64
"""Pictures that an actor takes at a time, at most; each is written as soon as its micro-batch is drawn."""
ROUNDS = 4  # blocks an actor, at least: so that none is idle while another has many left


@dataclass(frozen=True)
class Picture:
    """A picture to draw, and the name of its file."""

    name: str
    prompt: str
    seed: int


class Draw:
    """An actor: blocks of pictures in, files out."""

    def __init__(self, options: dict[str, Any], psi: float, out: str) -> None:
        """`options`: of `Pipeline.from_pretrained`."""
        self._pipe = Pipeline.from_pretrained(**options)
        self._psi = psi
        self._out = place(out)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The names of the files, once they are written. A block that Ray begins anew writes the same bytes again."""
        names, prompts, seeds = (block[key].tolist() for key in ("name", "prompt", "seed"))
        size = self._pipe.micro_batch
        for start in range(0, len(names), size):
            part = slice(start, start + size)
            asked = prompts[part] if self._pipe.text_encoder.name != "none" else None
            output = self._pipe(asked, seeds=seeds[part], truncation_psi=self._psi)
            for name, prompt, seed, image in zip(names[part], prompts[part], seeds[part], output.images, strict=True):
                info = self._pipe.info(prompt, seed, self._psi, image.width)
                write_whole(self._out / name, png_bytes(image, info))
        return {"name": block["name"]}


def draw(
    pictures: Sequence[Picture], options: dict[str, Any], psi: float, out: str, *, workers: int, gpus: float
) -> Iterator[str]:
    """Names of the files as they are written, by actors of a core or `gpus` each; Ray runs.

    `workers`: actors at most, 0 = as many as the cluster takes. Raises what the actors raise of what users cause.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    lent: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    workers = workers or max(1, int(lent.get("GPU" if gpus else "CPU", 1)))
    block = min(BLOCK, max(1, len(pictures) // (ROUNDS * workers)))
    rows = ray.data.from_items([asdict(one) for one in pictures], override_num_blocks=-(-len(pictures) // block))
    drawn = rows.map_batches(
        Draw,
        fn_constructor_args=(options, psi, out),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        **({"num_gpus": gpus} if gpus else {"num_cpus": 1}),
    )
    try:
        for row in drawn.iter_rows():
            yield row["name"]
    except RayTaskError as error:
        if isinstance(error.cause, GigaGANError | OSError):
            raise error.cause from None
        raise
