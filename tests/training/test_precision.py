"""Training in bfloat16: what stays in float32."""

import torch

from gigagan import config
from gigagan.models.frozen import HashedText
from gigagan.models.layers import image_pyramid, to_float
from gigagan.training import steps
from gigagan.training.state import TrainState
from tests.half_steps import micro_batch


def test_what_must_be_float32_is() -> None:
    """Styles, pictures and logits are; R1 is to the bit that of a run in float32; features in between are not."""
    states = []
    for dtype in ("bfloat16", "float32"):
        torch.manual_seed(0)
        cfg = config.load("tiny", ["train.batch=4", "train.batch_gpu=4", f"train.dtype={dtype}"])
        states.append(TrainState(cfg, feature_dim=HashedText.feature_dim, device=torch.device("cpu")))
    rough, exact = states
    batch = micro_batch(rough.cfg, ["one red", "two green", "three blue", "four gray"])
    real = image_pyramid(to_float(batch.img), levels=rough.D.num_levels)
    w, pyramid = steps._generated(rough, batch)
    exits = rough.phi(pyramid, dtype=rough.dtype)
    logits = rough.D.judge(exits, rough.D.text(batch.features).t_global)
    assert w.dtype == torch.float32
    assert {img.dtype for img in pyramid} == {torch.float32}
    assert {seen.features.dtype for seen in exits} == {torch.bfloat16}
    assert {values.dtype for level in logits for values in level.values()} == {torch.float32}
    assert torch.equal(*(steps._r1(state, real, batch.features, 4) for state in states))
    assert not torch.equal(pyramid[0], steps._generated(exact, batch)[1][0])
    for state in states:
        assert {p.dtype for network in (state.G, state.D) for p in network.parameters()} == {torch.float32}
