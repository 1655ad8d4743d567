"""Pictures of any size: parts are the whole, one style, and sizes to the pixel."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gigagan.config import AttentionConfig
from gigagan.errors import ConfigError, PromptError
from gigagan.models.frozen import HashedText
from gigagan.models.upsampler import Upsampler, reach, with_level
from gigagan.upsampling import enlarger as module
from gigagan.upsampling.enlarger import Enlarger, Request, Rows

REQUEST = Request("a red apple", seed=3)


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    rough = torch.rand(1, 3, max(height // 3, 1), max(width // 3, 1), generator=rng)
    return F.interpolate(rough, size=(height, width), mode="bilinear")[0] * 2 - 1


def enlarged(enlarger: Enlarger, img: Tensor, scale: int, request: Request = REQUEST) -> Tensor:
    return torch.cat(list(enlarger.bands(Rows(img), scale, request)), dim=1)


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (7, 30), (16, 16), (33, 65)])
def test_the_size_is_exact(enlarger: Enlarger, size: tuple[int, int], scale: int) -> None:
    assert enlarged(enlarger, picture(*size), scale).shape == (3, size[0] * scale, size[1] * scale)


@pytest.mark.parametrize(("scale", "work"), [(2, 40 * 72), (4, 40 * 72), (16, 40 * 72 + 136 * 264)])
def test_the_work_is_what_progress_counts(enlarger: Enlarger, scale: int, work: int) -> None:
    done = 0

    def progress(pixels: int) -> None:
        nonlocal done
        done += pixels

    for _ in enlarger.bands(Rows(picture(33, 65)), scale, REQUEST, progress):
        pass
    assert done == enlarger.work(65, 33, scale) == work


def test_it_is_the_network(enlarger: Enlarger) -> None:
    """At a size that fits it is one plain pass, with no baking, tiles or bands."""
    img, G = picture(16, 24), enlarger.upsampler
    z = torch.randn(1, 16, generator=torch.Generator().manual_seed(3))
    condition = enlarger.text_encoder.encode(["a red apple"])
    plain = G(z, condition, with_level(img[None], torch.zeros(1)))
    torch.testing.assert_close(enlarged(enlarger, img, 4), plain[0][0].clamp(-1, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(enlarged(enlarger, img, 2), plain[1][0].clamp(-1, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_parts_are_the_whole(enlarger: Enlarger, monkeypatch: pytest.MonkeyPatch, noise: float) -> None:
    """On a photograph's smooth ramps and on noise, in several blocks and tiles: to a third of a gray level."""
    request = Request("", seed=1, noise=noise)
    height, width = 150, 481
    img = picture(height, width) if noise else torch.rand(3, height, width, generator=torch.Generator()) * 2 - 1
    whole = list(enlarger.bands(Rows(img), 2, request))
    assert len(whole) == 1
    assert reach(enlarger.upsampler.cfg).look < 100
    monkeypatch.setattr(module, "WHOLE_PIXELS", 1)
    monkeypatch.setattr(module, "ATTEND_PIXELS", 1)
    monkeypatch.setattr(module, "LOOK_SIDE", 48)
    monkeypatch.setattr(module, "LEAST_BLOCK", 6)
    parts = list(enlarger.bands(Rows(img), 2, request))
    assert len(parts) > 2
    assert (torch.cat(parts, dim=1) - whole[0]).abs().max() < 1 / 3 / 127.5


@pytest.mark.parametrize(("part", "size"), [("descend", 64), ("ascend", 64), ("draw", 64), ("attend", 192)])
def test_parts_without_what_is_around_them_are_caught(
    enlarger: Enlarger, monkeypatch: pytest.MonkeyPatch, part: str, size: int
) -> None:
    """Sabotage: with no reach around tiles and blocks their borders show, so the test above can fail."""
    img = picture(32, size)
    whole = enlarged(enlarger, img, 4)
    for name, value in {"WHOLE_PIXELS": 1, "ATTEND_PIXELS": 1, "LEAST_BLOCK": 1, "LOOK_SIDE": 16, "TILE": 32}.items():
        monkeypatch.setattr(module, name, value)
    torch.testing.assert_close(enlarged(enlarger, img, 4), whole, rtol=0, atol=1e-4)
    monkeypatch.setattr(module, "reach", lambda cfg: replace(reach(cfg), **{part: 0}))
    assert (enlarged(enlarger, img, 4) - whole).abs().max() > 1e-3


def test_attention_at_the_pictures_own_side(upsampler: Upsampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the paper's upsampler has it: nothing of the encoder is left to tiles, and parts are still the whole."""
    attention = AttentionConfig(resolutions=(upsampler.cfg.input_resolution,), depths=(1,), head_dim=8)
    torch.manual_seed(0)
    network = Upsampler(upsampler.cfg.model_copy(update={"attention": attention}), feature_dim=upsampler.feature_dim)
    enlarger, img = Enlarger(network.eval(), HashedText(max_tokens=12)), picture(24, 240)
    whole = enlarged(enlarger, img, 4)
    for name, value in {"WHOLE_PIXELS": 1, "LOOK_SIDE": 16, "LEAST_BLOCK": 1}.items():
        monkeypatch.setattr(module, name, value)
    torch.testing.assert_close(enlarged(enlarger, img, 4), whole, rtol=0, atol=1e-4)


def test_no_border_every_window(enlarger: Enlarger) -> None:
    """Where windows and tiles meet the picture changes no more than elsewhere: no peak in its gradients' spectrum."""
    img = torch.rand(3, 32, 512, generator=torch.Generator().manual_seed(0)) * 0.5 - 0.25
    made = enlarged(enlarger, img, 4).mean(dim=(0, 1))
    gradient = (made[1:] - made[:-1]).abs()[:2047]
    spectrum = torch.fft.rfft(gradient - gradient.mean()).abs()
    period = 8 * 4  # half a window, in pixels of the result
    for harmonic in (1, 2):
        place = round(harmonic * 2047 / period)
        neighbors = torch.cat([spectrum[place - 12 : place - 2], spectrum[place + 3 : place + 13]])
        assert spectrum[place - 1 : place + 2].max() < 3 * neighbors.max()


def test_one_style_a_picture_and_the_same_each_time(enlarger: Enlarger) -> None:
    img = picture(16, 16)
    first = enlarged(enlarger, img, 4)
    other = enlarged(enlarger, img, 4, Request("a red apple", seed=4))
    assert torch.equal(enlarged(enlarger, img, 4), first)
    assert not torch.equal(other, first)
    assert not torch.equal(enlarged(enlarger, img, 4, Request("two cats", seed=3)), first)


def test_more_than_its_factor_is_the_network_again(enlarger: Enlarger) -> None:
    img = picture(12, 12)
    once = enlarged(enlarger, img, 4)
    torch.testing.assert_close(enlarged(enlarger, img, 8), enlarged(enlarger, once, 2))
    assert enlarger.passes(32) == [4, 4, 2]


@pytest.mark.parametrize("request_", [Request(noise=0.5), Request(noise=-1), Request(noise=float("nan"))])
def test_noise_it_was_not_trained_with_is_refused(enlarger: Enlarger, request_: Request) -> None:
    with pytest.raises(ConfigError, match=r"was trained with 0 to 0\.2"):
        enlarger.check(request_)


def test_a_prompt_that_is_no_text_is_refused_and_none_is_not(enlarger: Enlarger) -> None:
    for prompt in ("", " ", "a red apple"):
        enlarger.check(Request(prompt))
    with pytest.raises(PromptError, match="isn't valid Unicode"):
        enlarger.check(Request("\ud800"))


def test_a_scale_that_is_no_power_of_two_is_refused(enlarger: Enlarger) -> None:
    with pytest.raises(ConfigError, match="scale is 3"):
        enlarger.passes(3)


def test_bfloat16_is_close_to_float32(enlarger: Enlarger) -> None:
    img = picture(24, 24)
    exact = enlarged(enlarger, img, 4)
    rough = enlarged(Enlarger(enlarger.upsampler, enlarger.text_encoder, dtype=torch.bfloat16), img, 4)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.02
