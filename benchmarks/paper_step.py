"""One training step of the paper's base model, at its full size: losses and peak memory.

    python benchmarks/paper_step.py

Random pictures, captions as words' vectors in place of CLIP's features (precomputed, as in training). D's half with
R1, then G's half, AdamW and the running average, on two pictures at once: the matching loss needs another caption.
"""

import resource
import time

import torch

from gigagan import config
from gigagan.data.features import CaptionFeatures
from gigagan.data.loader import Batch
from gigagan.models.frozen import HashedText
from gigagan.training.micro_batches import micro_batches
from gigagan.training.state import TrainState, updating
from gigagan.training.steps import discriminator_step, generator_step

OVERRIDES = ["text.encoder=hashed", "loss.clip_weight=0", "loss.vision_weight=0", "train.batch=2", "train.batch_gpu=2"]
GIB = 2**20  # ru_maxrss counts KiB


def main() -> None:
    """A step of D and one of G, printed as they end."""
    cfg = config.load("paper-t2i64", OVERRIDES)
    torch.manual_seed(0)
    encoder = HashedText(max_tokens=77)
    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
    state = TrainState(cfg, feature_dim=encoder.feature_dim, device=torch.device("cpu"))
    batch = Batch(torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8), ["a red apple", "a blue boat"], [""] * 2)
    features = CaptionFeatures(encoder)
    for name, phase, network, optimizer in (("D", 0, state.D, state.opt_D), ("G", 1, state.G, state.opt_G)):
        start = time.monotonic()
        with updating(network, optimizer):
            (micro,) = micro_batches(state, batch, features, cfg.train.batch_gpu, phase=phase)
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
            f"{name}: {time.monotonic() - start:.0f} s, peak {peak:.2f} GiB (imports {imports:.2f})  {losses}",
            flush=True,
        )
    state.update_ema()


if __name__ == "__main__":
    main()
