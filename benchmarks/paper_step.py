"""Training steps of the paper's base model, at its full size: losses and peak memory.

    python benchmarks/paper_step.py [BATCH]

Random pictures, captions as words' vectors in place of CLIP's features (precomputed, as in training). Two steps, so
that the second meets all states of AdamW: D's half with R1, then G's half, recomputed activations, the running average.
Of 1 picture (the default) without the matching loss, which needs another caption; from 2 on with it. Not here: V, and
the frozen CLIP of the CLIP loss.
"""

import resource
import sys
import time

import torch

from gigagan import config
from gigagan.data.features import CaptionFeatures
from gigagan.data.loader import Batch
from gigagan.models.frozen import HashedText
from gigagan.training.micro_batches import micro_batches
from gigagan.training.state import TrainState, updating
from gigagan.training.steps import discriminator_step, generator_step

OVERRIDES = ["text.encoder=hashed", "loss.clip_weight=0", "loss.vision_weight=0", "train.recompute=true"]
WITHOUT_MATCHING = ["loss.match_weight_D=0", "loss.match_weight_G=0"]
GIB = 2**20  # ru_maxrss counts KiB


def main() -> None:
    """Two steps of D and G, printed half by half."""
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    overrides = [*OVERRIDES, f"train.batch={size}", f"train.batch_gpu={size}", *(WITHOUT_MATCHING if size == 1 else ())]
    cfg = config.load("paper-t2i64", overrides)
    torch.manual_seed(0)
    encoder = HashedText(max_tokens=77)
    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
    state = TrainState(cfg, feature_dim=encoder.feature_dim, device=torch.device("cpu"))
    captions = [f"a red apple, {n}" for n in range(size)]
    batch = Batch(torch.randint(256, (size, 3, 64, 64), dtype=torch.uint8), captions, [""] * size)
    features = CaptionFeatures(encoder)
    for number, (name, phase, network, optimizer) in enumerate(
        2 * (("D", 0, state.D, state.opt_D), ("G", 1, state.G, state.opt_G))
    ):
        start = time.monotonic()
        with updating(network, optimizer):
            (micro,) = micro_batches(state, batch, features, size, phase=phase)
            stats = (
                discriminator_step(state, micro, share=1.0, r1=True)
                if network is state.D
                else generator_step(state, micro, share=1.0)
            )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
        losses = "  ".join(f"{key} {float(value):.3f}" for key, value in stats.items() if key.startswith("Loss/"))
        print(
            f"step {number // 2 + 1}, {name}: {time.monotonic() - start:.0f} s, peak {peak:.2f} GiB (imports "
            f"{imports:.2f})  {losses}",
            flush=True,
        )
        if network is state.G:
            state.update_ema()


if __name__ == "__main__":
    main()
