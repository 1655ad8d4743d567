"""What a picture is asked by, checked: prompts, seeds, psi."""

import math
import operator
import secrets
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from gigagan.errors import ConfigError, PromptError

if TYPE_CHECKING:
    import torch

    Generators = torch.Generator | Sequence[torch.Generator] | None

MAX_SEED = 2**63 - 1


def check_prompts(prompt: str | Sequence[str]) -> list[str]:
    """The prompts as a list. Raises PromptError for none, for an empty one and for what isn't text."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise PromptError("no prompt came; give at least one")
    for number, one in enumerate(prompts, 1):
        which = f"prompt {number} of {len(prompts)}" if len(prompts) > 1 else "the prompt"
        if not isinstance(one, str):
            raise PromptError(f"{which} is a {type(one).__name__}; expected text")
        if not one.strip():
            raise PromptError(f"{which} is empty; write what to draw")
        try:
            one.encode()
        except UnicodeEncodeError:
            raise PromptError(f"{which} isn't valid Unicode; write it anew") from None
    return prompts


def check_psi(psi: float) -> float:
    """Raises ConfigError unless psi is a number in [0, 1]."""
    if isinstance(psi, bool) or not isinstance(psi, int | float) or not math.isfinite(psi) or not 0 <= psi <= 1:
        raise ConfigError(f"psi is {psi!r}; expected 0 (most typical) to 1 (no truncation)")
    return float(psi)


def check_seed(seed: Any) -> int:
    """Raises ConfigError unless seed is a whole number in [0, 2**63 - 1]."""
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if isinstance(seed, bool) or not 0 <= number <= MAX_SEED:
        raise ConfigError(f"seed {seed!r} can't be; expected a whole number from 0 to {MAX_SEED}")
    return number


def fresh_seeds(count: int, generator: "Generators" = None) -> list[int]:
    """Seeds below 2**32 (short to write down): from a generator, one from each of several, or from the system.

    Raises ConfigError where several aren't as many as seeds.
    """
    if generator is None:
        return [secrets.randbelow(2**32) for _ in range(count)]
    if isinstance(generator, Sequence):
        if len(generator) != count:
            raise ConfigError(f"{len(generator)} generators came for {count} pictures; give one, or one a picture")
        return [seed for one in generator for seed in fresh_seeds(1, one)]
    import torch

    drawn: list[int] = torch.randint(2**32, (count,), generator=generator, device=generator.device).tolist()
    return drawn


def pair_with_seeds(
    prompts: list[str],
    seeds: int | Iterable[int] | None,
    generator: "Generators",
    num_images_per_prompt: int,
) -> tuple[list[str], list[int]]:
    """A prompt and a seed for each picture; `seeds` of one prompt say how many. Raises ConfigError."""
    each = num_images_per_prompt
    if isinstance(each, bool) or not isinstance(each, int) or each < 1:
        raise ConfigError(f"num_images_per_prompt is {each!r}; expected a whole number from 1")
    if seeds is None:
        return [p for p in prompts for _ in range(each)], fresh_seeds(len(prompts) * each, generator)
    if generator is not None:
        raise ConfigError("seeds and generator both came; give one of them")
    numbers = [check_seed(seed) for seed in (seeds if isinstance(seeds, Iterable) else [seeds])]
    if len(prompts) == 1 and each == 1 and numbers:
        each = len(numbers)
    if len(numbers) != len(prompts) * each:
        raise ConfigError(f"{len(numbers)} seeds came for {len(prompts) * each} pictures; give one a picture")
    return [p for p in prompts for _ in range(each)], numbers
