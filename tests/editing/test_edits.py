"""What each edit must leave as it is and what it must change, to the bit where that can be asked."""

import math
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gigagan import config, editing
from gigagan.editing import (
    Directions,
    blend,
    difference,
    interpolate,
    lerp,
    mix,
    move,
    plane,
    principal_directions,
    slerp,
    style_factors,
)
from gigagan.editing.directions import numbered
from gigagan.editing.point_file import PointFile
from gigagan.editing.tensor_file import tensor_bytes
from gigagan.errors import ConfigError, DataError
from gigagan.models.adaptive_conv import AdaptiveConv
from gigagan.models.attention import l2_attention
from gigagan.models.frozen import HashedText
from gigagan.models.generator import Generator
from gigagan.models.latents import Latents
from gigagan.pipeline import Pipeline

A, B = "a 3D render of a red apple", "an icon"
LONG, OTHER = "a black and white icon of a small house by a lake", "a cat"


@pytest.fixture(scope="module")
def pipe(tiny_networks: Callable[[int], tuple[Any, Any]]) -> Pipeline:
    return Pipeline(tiny_networks(0)[0], HashedText(max_tokens=16))


@pytest.fixture(scope="module")
def points(pipe: Pipeline) -> dict[str, Latents]:
    """Three pictures of each prompt, with the same seeds."""
    return {prompt: pipe.latents([prompt] * 3, pipe.z([0, 1, 2]), 0.8) for prompt in (A, B, LONG, OTHER)}


def same(a: Latents, b: Latents) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("ws", "t_local", "mask"))


def far(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().mean())


# The sampling path.


def test_points_are_drawn_as_the_pipeline_draws_prompts(pipe: Pipeline, points: dict[str, Latents]) -> None:
    drawn = pipe.draw(points[A])
    for level, expected in zip(drawn, pipe(A, seeds=[0, 1, 2], truncation_psi=0.8).pyramid, strict=True):
        assert torch.equal(level, expected)
    five = Latents.join([points[A], points[B]])
    assert torch.equal(pipe.draw(five)[0][:3], drawn[0])
    assert torch.equal(pipe.draw(five[torch.tensor([4, 1])])[0][1], drawn[0][1])


def test_psi_0_is_the_conditional_mean_and_psi_1_the_plain_picture(pipe: Pipeline) -> None:
    mean = pipe.latents([A, A], pipe.z([0, 1]), 0.0)
    assert torch.equal(mean.ws[0], mean.ws[1])
    plain = pipe.latents([A], pipe.z([0]), 1.0)
    w = pipe.generator.mapping(pipe.z([0]), pipe.generator.text(pipe.text_encoder.encode([A])).t_global)
    torch.testing.assert_close(plain.ws[:, 0], w)


# Mixing.


def test_mixing_at_an_end_is_one_of_the_two(pipe: Pipeline, points: dict[str, Latents]) -> None:
    a, b = pipe.draw(points[A]), pipe.draw(points[B])
    for layer, expected in ((0, b), (points[A].num_layers, a)):
        for level, own in zip(pipe.draw(mix(points[A], points[B], layer)), expected, strict=True):
            assert torch.equal(level, own)


def test_levels_before_the_boundary_are_those_of_the_coarse_picture(pipe: Pipeline, points: dict[str, Latents]) -> None:
    """One layer a side here: a boundary at n keeps the n smallest pictures of the pyramid and changes the others."""
    coarse = pipe.draw(points[A])
    for layer in range(1, points[A].num_layers):
        mixed = pipe.draw(mix(points[A], points[LONG], layer))
        equal = [torch.equal(x, y) for x, y in zip(reversed(mixed), reversed(coarse), strict=True)]
        assert equal == [n < layer for n in range(len(equal))]


def test_a_side_of_two_layers_reads_the_words_of_its_last() -> None:
    cfg = config.load("tiny", ["generator.blocks=[1,2,1]"]).generator
    assert cfg.attention.resolutions == (8,)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = Pipeline(Generator(cfg, feature_dim=HashedText.feature_dim), HashedText(max_tokens=16))
    point = pipe.latents([A], pipe.z([0]))
    reads = []
    for layer in range(point.num_layers):
        t_local = point.t_local.clone()
        t_local[:, layer] *= 2
        reads.append(not torch.equal(pipe.draw(Latents(point.ws, t_local, point.mask))[0], pipe.draw(point)[0]))
    assert reads == [False, False, True, False]


def test_words_are_mixed_and_not_styles_alone(pipe: Pipeline, points: dict[str, Latents]) -> None:
    mixed = mix(points[A], points[LONG], 1)
    styles_alone = Latents(mixed.ws, points[A].t_local, points[A].mask)
    assert far(pipe.draw(mixed)[0], pipe.draw(styles_alone)[0]) > 0.01


def test_coarse_layers_change_the_8_px_level_more_than_fine_layers(pipe: Pipeline, points: dict[str, Latents]) -> None:
    own = pipe.draw(points[A])[1]
    assert own.shape[-1] == 8
    fine_changed = pipe.draw(mix(points[A], points[LONG], 2))[1]
    coarse_changed = pipe.draw(mix(points[LONG], points[A], 2))[1]
    assert far(fine_changed, own) < far(coarse_changed, own)


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_isnt_there(points: dict[str, Latents], layer: int) -> None:
    with pytest.raises(ConfigError, match=rf"layer {layer} can't be; expected 0 \(all fine\) to 3"):
        mix(points[A], points[B], layer)


# Blending.


def test_ends_of_an_interpolation_are_the_prompts_themselves(pipe: Pipeline, points: dict[str, Latents]) -> None:
    for a, b in ((A, LONG), (LONG, A)):
        for t, end in ((0.0, a), (1.0, b)):
            drawn = pipe.draw(interpolate(points[a], points[b], t))
            for level, own in zip(drawn, pipe.draw(points[end]), strict=True):
                assert torch.equal(level, own)


def test_corners_of_a_plane_are_the_prompts_themselves(pipe: Pipeline, points: dict[str, Latents]) -> None:
    corners = [points[prompt] for prompt in (A, B, LONG, OTHER)]
    for (x, y), corner in zip([(0, 0), (1, 0), (0, 1), (1, 1)], corners, strict=True):
        assert torch.equal(pipe.draw(plane(corners, x, y))[0], pipe.draw(corner)[0])
    middle = plane(corners, 0.5, 0.5)
    torch.testing.assert_close(middle.ws, torch.stack([c.ws for c in corners]).mean(dim=0))
    torch.testing.assert_close(
        plane(corners, 0.25, 0).ws, interpolate(corners[0], corners[1], 0.25).ws, rtol=1e-5, atol=1e-6
    )


def test_a_blend_of_a_point_with_itself_is_the_point(points: dict[str, Latents]) -> None:
    a = points[A]
    assert same(blend([a, a], [0.5, 0.5]), Latents(a.ws, a.t_local * a.mask[..., None], a.mask))


def test_nothing_jumps_where_a_longer_prompt_fades_in(pipe: Pipeline, points: dict[str, Latents]) -> None:
    """A hard mask would show all words of the other prompt at once, at the first step away from an end."""
    synthesis = pipe.generator.synthesis
    a, b = points[B], points[LONG]
    assert not torch.equal(a.mask, b.mask)

    def drawn(point: Latents) -> Tensor:
        return synthesis(point.ws, point.t_local, point.mask)[0]

    whole = far(drawn(a), drawn(b))
    for end, t in ((a, 1e-4), (b, 1 - 1e-4)):
        near = interpolate(a, b, t)
        assert far(drawn(near), drawn(end)) < 0.01 * whole
        hard = Latents(near.ws, near.t_local, (near.mask > 0).float())
        assert far(drawn(hard), drawn(a)) > 0.05 * whole


def test_a_words_share_multiplies_its_attention() -> None:
    """softmax(logits) times the share, normalized: the formula, in float64; both forms of the attention."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=rng) for n in (5, 7, 7))
    share = torch.rand(2, 7, generator=rng)
    share[:, 2] = 0
    logits = -(q[:, :, :, None] - k[:, :, None]).double().square().sum(dim=-1) / math.sqrt(8)
    weight = logits.exp() * share.double()[:, None, None]
    expected = (weight / weight.sum(dim=-1, keepdim=True)) @ v.double()
    for fused in (True, False):
        torch.testing.assert_close(l2_attention(q, k, v, share, fused=fused).double(), expected, rtol=1e-4, atol=1e-5)
        whole = l2_attention(q, k, v, (share > 0).float(), fused=fused)
        assert torch.equal(whole, l2_attention(q, k, v, share > 0, fused=fused))


def test_slerp_keeps_the_length_and_ends_at_its_ends() -> None:
    a, b = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    b = b * (a.norm(dim=1) / b.norm(dim=1))[:, None]
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    for t in (0.25, 0.5):
        between = slerp(a, b, t)
        torch.testing.assert_close(between.norm(dim=1), a.norm(dim=1))
        whole, part = (torch.cosine_similarity(a, x, dim=1).acos() for x in (b, between))
        torch.testing.assert_close(part, t * whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(slerp(a, a, 0.5), a)
    opposite = slerp(a, -a, 0.25)
    torch.testing.assert_close(opposite, 0.5 * a)
    ws = torch.stack([a, b, a], dim=1), torch.stack([b, b, -b], dim=1)
    for layer in range(3):
        assert torch.equal(slerp(*ws, 0.3)[:, layer], slerp(ws[0][:, layer], ws[1][:, layer], 0.3))


def test_a_straight_line_of_z_ends_at_its_ends() -> None:
    a, b = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lerp(a, b, 0.0), a)
    assert torch.equal(lerp(a, b, 1.0), b)
    torch.testing.assert_close(lerp(a, b, 0.5), (a + b) / 2)


def test_a_spherical_way_through_w_has_straight_words(pipe: Pipeline, points: dict[str, Latents]) -> None:
    a, b = points[A], points[LONG]
    for t, end in ((0.0, a), (1.0, b)):
        assert torch.equal(interpolate(a, b, t, "spherical").ws, end.ws)
        assert torch.equal(pipe.draw(interpolate(a, b, t, "spherical"))[0], pipe.draw(end)[0])
    middle, straight = (interpolate(a, b, 0.5, way) for way in ("spherical", "linear"))
    assert torch.equal(middle.ws, slerp(a.ws, b.ws, 0.5))
    assert torch.equal(middle.t_local, straight.t_local)
    assert not torch.equal(middle.ws, straight.ws)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda a: interpolate(a, a, 1.5), r"t is 1\.5; expected 0 to 1"),
        (lambda a: interpolate(a, a, math.nan, "spherical"), "t is nan; expected 0 to 1"),
        (lambda a: plane([a] * 4, 0.5, -0.1), r"y is -0\.1; expected 0 to 1"),
        (lambda a: plane([a] * 3, 0.5, 0.5), "3 points and 4 weights came; give one for each"),
        (lambda a: blend([a, a], [1.5, -0.5]), r"weights 1\.5, -0\.5 came; expected 0 or more, with a sum of 1"),
        (lambda a: blend([a, a], [0.5, 0.6]), "with a sum of 1"),
        (lambda a: blend([a, replace(a, enlarged=a)], [0.5, 0.5]), "some of the points are drawn larger and some"),
        (lambda a: interpolate(a, a, 0.5, "sphercial"), "way is 'sphercial'; expected linear or spherical"),
    ],
)
def test_a_share_that_cant_be(points: dict[str, Latents], ask: Callable[[Latents], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ask(points[A])


def test_no_function_hides_its_module() -> None:
    modules = {module.name for module in pkgutil.iter_modules(editing.__path__)}
    assert not modules & set(editing.__all__)


# Arithmetic and directions.


def test_a_step_of_zeros_changes_nothing(pipe: Pipeline, points: dict[str, Latents]) -> None:
    a = points[A]
    for step in (torch.zeros(32), torch.zeros(3, 32), difference(a, a)):
        assert same(move(a, step, 3.0), a)
    assert same(move(a, torch.ones(32), 0.0), a)


def test_a_difference_leads_from_one_prompt_to_the_other(points: dict[str, Latents]) -> None:
    """In w alone, and for each picture exactly where one picture made it."""
    a, b = points[A][:1], points[B][:1]
    moved = move(a, difference(b, a))
    torch.testing.assert_close(moved.ws, b.ws)
    assert torch.equal(moved.t_local, a.t_local)
    mean = difference(points[B], points[A])
    torch.testing.assert_close(mean, (points[B].ws - points[A].ws).mean(dim=0))


def test_principal_directions_find_the_axes_of_a_known_cloud() -> None:
    rng = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(8, 8, generator=rng))[0]
    scales = torch.tensor([5.0, 3.0, 2.0, 0.5, 0.4, 0.3, 0.2, 0.1])
    w = torch.randn(20_000, 8, generator=rng) * scales @ axes.T + 7
    steps = principal_directions(w, 3)
    torch.testing.assert_close(steps.norm(dim=1), scales[:3], rtol=0.03, atol=0)
    cosines = torch.nn.functional.normalize(steps, dim=1) @ axes[:, :3]
    torch.testing.assert_close(cosines.abs(), torch.eye(3), rtol=0, atol=0.03)


def test_style_factors_move_the_modulation_the_most(pipe: Pipeline) -> None:
    """No unit step of w changes the scales of all layers more than the first factor, none less than the last."""
    w = pipe.latents([A] * 64, pipe.z(range(64)), 1.0).ws[:, 0]
    steps = torch.nn.functional.normalize(style_factors(pipe.generator, w, 32), dim=1)
    torch.testing.assert_close(steps @ steps.T, torch.eye(32), rtol=0, atol=1e-4)
    convs = [module for module in pipe.generator.modules() if isinstance(module, AdaptiveConv)]

    def change(step: Tensor) -> float:
        return sum(float((c.to_scale(step[None]) - c.to_scale(0 * step[None])).square().sum()) for c in convs)

    changes = [change(step) for step in steps]
    assert changes == sorted(changes, reverse=True)
    other = torch.nn.functional.normalize(torch.randn(50, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    assert changes[-1] <= min(map(change, other))
    assert max(map(change, other)) <= changes[0]


def test_directions_are_named_kept_and_read(tmp_path: Path) -> None:
    found = numbered(torch.randn(3, 8), "pca", "abc")
    assert found.names == ["pca-0", "pca-1", "pca-2"]
    named = found.named({1: "rounder"})
    path = tmp_path / "d.safetensors"
    path.write_bytes(named.as_bytes())
    read = Directions.read(path)
    assert (read.names, read.model) == (["pca-0", "rounder", "pca-2"], "abc")
    assert torch.equal(read.step("rounder"), found.steps[1])
    with pytest.raises(ConfigError, match="no direction 'pca-1'; there are 'pca-0', 'rounder', 'pca-2'"):
        read.step("pca-1")
    for names, message in (
        ({3: "x"}, "no direction 3; there are 0 to 2"),
        ({0: " "}, "the name of direction 0 is empty"),
        ({0: "rounder"}, "two directions are named 'rounder'"),
    ):
        with pytest.raises(ConfigError, match=message):
            read.named(names)


@pytest.mark.parametrize("content", ["nothing", "other", "point", "names"])
def test_a_file_of_something_else_is_one_line(tmp_path: Path, content: str) -> None:
    from safetensors.torch import save

    path = tmp_path / "d.safetensors"
    path.write_bytes(
        {
            "nothing": b"x",
            "other": save({"weight": torch.zeros(2)}),
            "point": PointFile(torch.zeros(3, 4), "x", "").as_bytes(),
            "names": tensor_bytes("directions", torch.zeros(2, 4), {"names": '["a"]'}),
        }[content]
    )
    message = "1 names for 2 directions" if content == "names" else "expected a file of gigagan edit directions"
    with pytest.raises(DataError, match=message):
        Directions.read(path)
