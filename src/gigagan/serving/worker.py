"""The process that holds the model: items in, pixels out, until the server is gone.

Run by the supervisor as `python -m gigagan.serving.worker FD OPTIONS`, FD being its end of a socket.
"""

import json
import logging
import select
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial

from gigagan.editing import Key, Moment, mix
from gigagan.editing.films import points
from gigagan.errors import GigaGANError
from gigagan.models.frozen_labels import ClassNames
from gigagan.models.latents import Latents
from gigagan.pipeline import DEFAULT_PSI, Pipeline
from gigagan.request import MAX_SEED
from gigagan.serving import wire
from gigagan.serving.enlarge import enlarged
from gigagan.serving.wire import Answer, Facts, Item

WARM_UP = 2  # the first draws are slow: memory is laid out, kernels are chosen
LOOP_KEYS = 3
log = logging.getLogger(__name__)


class _Refused(Exception):
    """An item can't be drawn."""

    def __init__(self, why: str, param: str) -> None:
        super().__init__(why)
        self.answer = Answer(refusal=why, param=param)


@contextmanager
def _reading(param: str) -> Iterator[None]:
    """A mistake that is found inside is one of this field."""
    try:
        yield
    except GigaGANError as error:
        raise _Refused(str(error), param) from None


def answer(pipe: Pipeline, items: Sequence[Item]) -> list[Answer]:
    """Draw the items together; where that fails, each alone once more, so that one can't spoil the others."""
    try:
        return _answer(pipe, items)
    except Exception as error:
        if len(items) == 1:
            log.exception("a picture failed")
            return [Answer(failure=f"{type(error).__name__}: {error}")]
    return [one for item in items for one in answer(pipe, [item])]


def _answer(pipe: Pipeline, items: Sequence[Item]) -> list[Answer]:
    answers: dict[int, Answer] = {}
    small: dict[int, Latents] = {}
    large: dict[int, Latents] = {}
    for n, point in _points(pipe, items).items():
        if isinstance(point, Answer):
            answers[n] = point
        # The upsampler costs many times the generator: it draws for those alone who asked for its size.
        elif point.enlarged is not None and max(items[n].resolutions) > pipe.generator.cfg.resolution:
            large[n] = point
        else:
            small[n] = point.base
    for group in (small, large):
        if group:
            answers |= _drawn(pipe, items, group)
    return [answers[n] for n in range(len(items))]


def _drawn(pipe: Pipeline, items: Sequence[Item], group: dict[int, Latents]) -> dict[int, Answer]:
    """The pictures of some of the items, drawn together."""
    levels = {level.shape[-1]: level.permute(0, 2, 3, 1) for level in pipe.draw(Latents.join(list(group.values())))}
    answers, start = {}, 0
    for n, point in group.items():
        item = items[n]
        pictures = [
            (side, levels[side][place].contiguous().numpy().tobytes())
            for place in range(start, start + len(point))
            for side in item.resolutions
        ]
        start += len(point)
        prompts = [item.prompt, *([item.fine_prompt] if item.fine_prompt else [])]
        warnings = [message for prompt in prompts if (message := pipe.cut(prompt))]
        answers[n] = Answer(pictures, sum(map(pipe.text_encoder.count_tokens, prompts)), "; ".join(warnings))
    return answers


def _points(pipe: Pipeline, items: Sequence[Item]) -> dict[int, Latents | Answer]:
    """The point of each, several of a loop; or why there is none."""
    found: dict[int, Latents | Answer] = {}
    plain: dict[float, dict[int, str]] = {}
    for n, item in enumerate(items):
        try:
            with _reading("prompt"):
                (prompt,) = pipe.check(item.prompt)
                pipe.read(prompt)
            if item.frames == 1 and not item.fine_prompt:
                plain.setdefault(item.psi, {})[n] = prompt
            else:
                found[n] = _edited(pipe, item, prompt)
        except _Refused as refused:
            found[n] = refused.answer
    # The mapping runs a whole micro-batch anyway, so those of one psi come together.
    for psi, prompts in plain.items():
        together = pipe.latents(list(prompts.values()), pipe.z(items[n].seed for n in prompts), psi)
        found |= {n: together[k : k + 1] for k, n in enumerate(prompts)}
    return found


def _edited(pipe: Pipeline, item: Item, prompt: str) -> Latents:
    """A mix, or a loop that leads from the seed through the next two and back. Raises _Refused."""
    if item.frames > 1:
        with _reading("prompt"):
            # Three keys: a way there and back the same way would show its pictures twice.
            keys = [Key(prompt, (item.seed + n) % (MAX_SEED + 1)) for n in range(LOOP_KEYS)]
            places = [divmod(LOOP_KEYS * n, item.frames) for n in range(item.frames)]
            way = [Moment(keys[k], keys[(k + 1) % LOOP_KEYS], rest / item.frames) for k, rest in places]
            return points(pipe, way, item.psi)
    z = pipe.z([item.seed])
    with _reading("mix.prompt"):
        (fine,) = pipe.check(item.fine_prompt)
        return mix(pipe.latents([prompt], z, item.psi), pipe.latents([fine], z, item.psi), item.layer)


def facts(pipe: Pipeline) -> Facts:
    """Found by drawing, which also warms the model up."""
    encoder = pipe.text_encoder
    prompt = encoder.classes[0] if isinstance(encoder, ClassNames) else "" if encoder.name == "none" else "a picture"
    for _ in range(WARM_UP):
        pyramid = pipe.draw(pipe.latents([prompt], pipe.z([0])))
    return Facts(
        hash=pipe.model_hash,
        dtype=str(pipe.dtype).removeprefix("torch."),
        device=pipe.device.type,
        kind=encoder.name,
        resolutions=tuple(level.shape[-1] for level in pyramid),
        num_layers=pipe.generator.num_ws,
        batch=pipe.micro_batch,
        psi=DEFAULT_PSI,
        factor=0 if pipe.enlarger is None else pipe.enlarger.factor,
    )


def _has_news(channel: socket.socket) -> bool:
    return bool(select.select([channel], [], [], 0)[0])


def main() -> None:
    """Serve the socket until it closes."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s worker %(levelname)s %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server says when to end, by closing the socket
    with socket.socket(fileno=int(sys.argv[1])) as channel, channel.makefile("rwb") as stream:
        try:
            pipe = Pipeline.from_pretrained(**json.loads(sys.argv[2]))
            stream.write(wire.pack({"facts": asdict(facts(pipe))}))
            stream.flush()
        except (GigaGANError, OSError) as error:
            stream.write(wire.pack({"error": str(error)}))
            return
        while message := wire.read(stream):
            header, content = message
            if "upscale" in header:
                # The server says nothing while it waits but that it waits no more; or it is gone.
                answers = [enlarged(pipe, wire.unpack_upscale(header, content), partial(_has_news, channel))]
            elif "items" in header:
                answers = answer(pipe, wire.unpack_items(header))
            else:
                continue  # to stop what was stopped or done already
            stream.write(wire.pack_answers(answers))
            stream.flush()


if __name__ == "__main__":
    main()
