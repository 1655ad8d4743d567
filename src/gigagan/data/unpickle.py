"""Child process of weights.py: the tensors of a hash-checked .pth as safetensors. Usage: unpickle.py IN.pth OUT."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save


def main(source: str, target: str) -> None:
    """Batch norm's step counters are left out; all else stays as it is."""
    state = torch.load(source, map_location="cpu", weights_only=True)
    tensors = {name: w.contiguous() for name, w in state.items() if not name.endswith("num_batches_tracked")}
    Path(target).write_bytes(save(tensors, metadata={"format": "pt"}))


if __name__ == "__main__":
    main(*sys.argv[1:])
