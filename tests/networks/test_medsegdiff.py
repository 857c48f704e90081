"""MedSegDiff V1 and V2: any size, every parameter used, each named part does its work."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from medseg_diff.networks.conditioners import AnchoredPyramid, Context
from medseg_diff.networks.medsegdiff import (
    RESNET34_BLOCKS,
    MedSegDiffV1Conditioner,
    MedSegDiffV1Denoiser,
    MedSegDiffV2Denoiser,
    ResidualBlock,
    fused_levels,
    group_norm,
)
from medseg_diff.networks.mixers import (
    DynamicEncoding,
    FFParser,
    SSFormer,
    UncertainSpatialAttention,
)
from medseg_diff.networks.unet import TimeEmbedding

WIDTHS = (8, 8, 12, 16)
BLOCKS = (0, 1, 2, 1)
SIZES = [(37, 45), (8, 8), (16, 9), (19, 22, 17), (8, 8, 16)]
every_version = pytest.mark.parametrize("version", ["v1", "v2"])


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def networks(
    version: str, dims: int, planes: int = 1, classes: int = 2
) -> tuple[nn.Module, nn.Module]:
    """Conditioner and denoiser, tiny."""
    if version == "v1":
        return (
            MedSegDiffV1Conditioner(dims, planes, WIDTHS, BLOCKS),
            MedSegDiffV1Denoiser(
                dims, classes, classes, WIDTHS, blocks=BLOCKS, time_channels=16, map_size=4
            ),
        )
    widths = (6, 8, 8, 12)
    return (
        AnchoredPyramid(dims, planes, classes, widths),
        MedSegDiffV2Denoiser(
            dims,
            classes,
            classes,
            WIDTHS,
            context_channels=widths,
            time_channels=16,
            blocks=1,
            filter_blocks=2,
        ),
    )


def answer(parts: tuple[nn.Module, nn.Module], x: Tensor, t: Tensor, image: Tensor) -> Tensor:
    conditioner, denoiser = parts
    context: Context = conditioner(image)
    return denoiser(x, t, context.features)


def example(size: Sequence[int], planes: int = 1, classes: int = 2) -> tuple[Tensor, ...]:
    return torch.randn(2, classes, *size), torch.tensor([0.1, 0.9]), torch.randn(2, planes, *size)


def difference(one: Tensor, two: Tensor) -> float:
    """Largest difference, as a share of the first's standard deviation."""
    return float(((one - two).abs().max() / one.std()).detach())


@every_version
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("planes", "classes"), [(1, 1), (3, 4)])
def test_any_size_and_any_channels_come_back(
    version: str, size: tuple[int, ...], planes: int, classes: int
):
    parts = networks(version, len(size), planes, classes)
    with torch.no_grad():
        out = answer(parts, *example(size, planes, classes))
    assert out.shape == (2, classes, *size)
    assert bool(torch.isfinite(out).all())


@every_version
@pytest.mark.parametrize("size", [(17, 26), (16, 17, 24)], ids=str)
def test_every_parameter_gets_a_finite_gradient(version: str, size: tuple[int, ...]):
    conditioner, denoiser = parts = networks(version, len(size))
    context = conditioner(torch.randn(2, 1, *size))
    x, t, _ = example(size)
    out = denoiser(x, t, context.features)
    loss = (out * torch.randn_like(out)).sum()
    if context.anchor is not None:
        loss = loss + (context.anchor * torch.randn_like(context.anchor)).sum()
    loss.backward()
    for part in parts:
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert bool(torch.isfinite(parameter.grad).all()), name
            # The U-Net's norms are by channel and cancel the bias of the convolution before them.
            if not name.endswith("conv.bias"):
                assert bool(parameter.grad.any()), name


@every_version
@pytest.mark.parametrize("dims", [2, 3])
def test_two_equal_calls_agree_to_the_last_bit(version: str, dims: int):
    parts, batch = networks(version, dims), example((9, 16, 11)[:dims])
    assert torch.equal(answer(parts, *batch), answer(parts, *batch))


@every_version
def test_samples_of_a_batch_do_not_meet(version: str):
    parts, batch = networks(version, 2), example((16, 24))
    together = answer(parts, *batch)
    alone = answer(parts, *(part[1:] for part in batch))
    torch.testing.assert_close(alone, together[1:], rtol=1e-3, atol=1e-5)


@every_version
@pytest.mark.parametrize("dims", [2, 3])
def test_time_and_context_change_the_answer(version: str, dims: int):
    conditioner, denoiser = networks(version, dims)
    x, t, image = example((24, 16, 24)[:dims])
    features = conditioner(image).features
    with torch.no_grad():
        before = denoiser(x, t, features)
        assert difference(before, denoiser(x, t.flip(0), features)) > 0.05
        assert difference(before, denoiser(x.flip(0), t, features)) > 0.05
        assert difference(before, denoiser(x, t, [torch.zeros_like(f) for f in features])) > 0.05


def test_time_reaches_v1_far_from_the_border():
    """The norms after the time keep it; a norm by channel would leave only the zero padding."""
    block = ResidualBlock(3, 8, 8, 16)
    x = torch.randn(1, 8, 24, 24, 24)
    with torch.no_grad():
        one, two = (block(x, torch.randn(1, 16)) for _ in range(2))
    assert float((one - two)[..., 8:16, 8:16, 8:16].abs().mean()) > 0.02


def test_a_residual_block_is_its_equation():
    block = ResidualBlock(2, 4, 8, 16)
    x, time = torch.randn(1, 4, 6, 6), torch.randn(1, 16)
    norm, _, conv = block.first
    h = conv(nn.functional.silu(nn.functional.group_norm(x, 1, norm.weight, norm.bias)))
    h = h + block.time(nn.functional.silu(time))[..., None, None]
    norm, _, conv = block.second
    h = conv(nn.functional.silu(nn.functional.group_norm(h, 2, norm.weight, norm.bias)))
    torch.testing.assert_close(block(x, time), h + block.shortcut(x))


@pytest.mark.parametrize(
    ("channels", "groups"), [(3, 1), (6, 1), (8, 2), (12, 3), (64, 16), (128, 32), (512, 32)]
)
def test_no_group_of_a_norm_holds_one_channel(channels: int, groups: int):
    assert group_norm(channels).num_groups == groups


def replaced(version: str, name: str, part: nn.Module) -> float:
    """How much the answer changes when a denoiser's part gives way to another."""
    parts, batch = networks(version, 2), example((24, 32))
    with torch.no_grad():
        for module in parts[1].modules():
            if isinstance(module, FFParser):
                module.planes.add_(torch.randn_like(module.planes))
        before = answer(parts, *batch)
        parts[1].set_submodule(name, part)
        return difference(before, answer(parts, *batch))


class First(nn.Module):
    """Hands its first input on."""

    def forward(self, first: Tensor, *_: object) -> Tensor:
        return first


class Widen(nn.Module):
    """Hands its first input on with the 12 channels that the image branch has at level 2."""

    def forward(self, first: Tensor, *_: object) -> Tensor:
        return torch.cat([first, first[:, :4]], dim=1)


@pytest.mark.parametrize(
    ("version", "name", "kind", "stand_in"),
    [
        ("v1", "parsers.0", FFParser, First),
        ("v1", "parsers.1", FFParser, First),
        ("v1", "encodings.0", DynamicEncoding, First),
        ("v1", "encodings.1", DynamicEncoding, First),
        ("v1", "image_stages.0.blocks.0", ResidualBlock, Widen),
        ("v2", "anchor_condition", UncertainSpatialAttention, First),
        ("v2", "semantic_condition", SSFormer, First),
    ],
)
def test_each_named_part_is_there_and_matters(
    version: str, name: str, kind: type[nn.Module], stand_in: type[nn.Module]
):
    assert type(networks(version, 2)[1].get_submodule(name)) is kind
    assert replaced(version, name, stand_in()) > 1e-3


def test_v1_takes_the_middle_two_levels():
    assert [fused_levels(n) for n in (4, 5, 6, 7)] == [(1, 2), (2, 3), (2, 3), (3, 4)]
    with pytest.raises(ValueError, match="at least 4 levels"):
        fused_levels(3)


def test_the_papers_size_s():
    with torch.device("meta"):
        network = MedSegDiffV1Denoiser(
            2, 1, 1, (64, 64, 128, 256, 512), blocks=RESNET34_BLOCKS, time_channels=256
        )
    assert [len(stage.blocks) for stage in network.mask_stages] == [0, 3, 4, 6]
    assert [len(stage.blocks) for stage in network.image_stages] == [6]
    assert len(network.deepest.blocks) == 3
    assert network.factor == 16


def test_v1_fuses_as_its_equations_say():
    """The chain of both branches, written out."""
    conditioner, denoiser = networks("v1", 2)
    x, t, image = example((16, 24))
    time = denoiser.embedding(t)
    maps = conditioner(image).features
    assert len(maps) == 2
    with torch.no_grad():
        for parser in denoiser.parsers:
            parser.planes.add_(torch.randn_like(parser.planes))
    mask = [denoiser.mask_stages[0](x, time)]
    for stage in denoiser.mask_stages[1:]:
        mask.append(stage(mask[-1], time))
    first = denoiser.encodings[0](maps[1], denoiser.parsers[0](mask[1]))
    late = denoiser.image_stages[0](first, time)
    second = denoiser.encodings[1](late, denoiser.parsers[1](mask[2]))
    sums = denoiser.encode(x, time, maps)
    for found, expected in zip(
        sums, [maps[0] + mask[0], first + mask[1], second + mask[2]], strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_v1s_conditioner_never_meets_time_or_mask():
    conditioner, denoiser = networks("v1", 2)
    assert not [m for m in conditioner.modules() if isinstance(m, TimeEmbedding)]
    assert all(m.time is None for m in conditioner.modules() if isinstance(m, ResidualBlock))
    blocks = [m for m in denoiser.modules() if isinstance(m, ResidualBlock)]
    assert all(m.time is not None for m in blocks)
    context = conditioner(torch.randn(1, 1, 17, 9))
    assert [tuple(f.shape[1:]) for f in context.features] == [(8, 24, 16), (8, 12, 8)]
    assert context.anchor is None


def test_v2_meets_its_context_at_the_first_and_the_deepest_map():
    conditioner, denoiser = networks("v2", 2)
    x, t, image = example((16, 24))
    context = conditioner(image).features
    time = denoiser.embedding(t)
    maps = denoiser.maps(x, t, context)
    finest = denoiser.anchor_condition(denoiser.down[0](x, time), context[0])
    torch.testing.assert_close(maps.encoder[0], finest)
    deepest = finest
    for block in denoiser.down[1:]:
        deepest = block(denoiser.pool(deepest), time)
    torch.testing.assert_close(
        maps.encoder[-1], denoiser.semantic_condition(deepest, context[-1], time)
    )
    unused = [f if n in (0, 3) else torch.zeros_like(f) for n, f in enumerate(context)]
    assert torch.equal(denoiser(x, t, unused), denoiser(x, t, context))
    for level in (0, 3):
        without = [torch.zeros_like(f) if n == level else f for n, f in enumerate(context)]
        assert difference(denoiser(x, t, context), denoiser(x, t, without)) > 1e-3


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_number_of_ss_former_blocks_is_an_argument(blocks: int):
    network = MedSegDiffV2Denoiser(
        2, 1, 1, (4, 8), context_channels=(4, 8), time_channels=8, blocks=blocks
    )
    assert len(network.semantic_condition.mask) == blocks


@every_version
def test_mixed_precision_stays_finite(version: str):
    parts, batch = networks(version, 2), example((8, 16))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert bool(torch.isfinite(answer(parts, *batch)).all())


def test_what_does_not_fit_is_refused_with_the_way_out():
    _, one = networks("v1", 2)
    x, t, _ = example((8, 8))
    for features in (None, (), (torch.zeros(2, 8, 8, 8),)):
        with pytest.raises(ValueError, match="MedSegDiffV1Conditioner"):
            one(x, t, features)
    for blocks in ((1, 1, 1), (0, 1, 0, 1), (-1, 1, 1, 1)):
        with pytest.raises(ValueError, match="4 levels"):
            MedSegDiffV1Conditioner(2, 1, WIDTHS, blocks)
    _, two = networks("v2", 2)
    for time, features in ((None, [x] * 4), (t, None), (t, [x])):
        with pytest.raises(ValueError, match="MedSegDiff-V2 needs"):
            two(x, time, features)
    with pytest.raises(ValueError, match="4 levels"):
        MedSegDiffV2Denoiser(2, 1, 1, WIDTHS, context_channels=(4, 8), time_channels=8)
