"""Histogram matching and Fourier adaptation against what they must give."""

from __future__ import annotations

import numpy as np
import pytest

from medseg_diff.adaptation.style import fourier_style, histogram_match, mean_histogram

RNG = np.random.default_rng(0)


def phantom(dims: int, channels: int = 2) -> np.ndarray:
    shape = (24, 20, 16)[:dims]
    grid = np.indices(shape)
    ball = np.square(grid - 10).sum(0) < 25
    return (RNG.normal(0, 0.2, (channels, *shape)) + 2 * ball + 5).astype(np.float32)


@pytest.mark.parametrize("dims", [2, 3])
def test_its_own_histogram_changes_nothing(dims: int):
    image = phantom(dims)
    same = histogram_match(image, mean_histogram([image]))
    # Beyond the outer quantiles a tail is interpolated.
    assert np.quantile(np.abs(same - image), 0.99) < 0.05
    assert np.abs(same - image).mean() < 0.005


@pytest.mark.parametrize("dims", [2, 3])
def test_matching_undoes_a_change_of_scale(dims: int):
    """A threshold that works on the source works again on a scaled target: 95 % of the oracle."""
    image = phantom(dims)
    target = 40 * image**2 + 300
    back = histogram_match(target, mean_histogram([image]))
    mask, oracle = back[0] > 6, image[0] > 6
    assert (target[0] > 6).all()
    assert 2 * (mask & oracle).sum() / (mask.sum() + oracle.sum()) > 0.95


def test_matching_keeps_the_order_of_greys():
    image, other = phantom(2, 1), phantom(2, 1)[..., :12] * 3
    matched = histogram_match(image, mean_histogram([other]))
    order = np.argsort(image[0].ravel(), kind="stable")
    assert (np.diff(matched[0].ravel()[order]) >= -1e-5).all()
    assert matched.mean() == pytest.approx(other.mean(), rel=0.01)


def test_the_mean_histogram_is_that_of_the_mean_scale():
    line = np.linspace(0, 1, 101, dtype=np.float32)[None]
    (mean,) = mean_histogram([line, 3 * line])
    np.testing.assert_allclose(mean, np.linspace(0, 2, len(mean)), atol=1e-6)
    with pytest.raises(ValueError, match="needs an image"):
        mean_histogram([])
    with pytest.raises(ValueError, match="channels"):
        histogram_match(phantom(2, 1), mean_histogram([phantom(2, 2)]))


@pytest.mark.parametrize("dims", [2, 3])
def test_an_images_own_style_changes_nothing(dims: int):
    image = phantom(dims)
    np.testing.assert_allclose(fourier_style(image, image, 0.1), image, atol=1e-4)


def test_at_zero_only_the_mean_is_exchanged():
    image, style = phantom(2), phantom(2) * 3 + 1
    mixed = fourier_style(image, style, 0.0)
    axes = (1, 2)
    np.testing.assert_allclose(mixed.mean(axes), style.mean(axes), rtol=1e-5)
    np.testing.assert_allclose(
        mixed - mixed.mean(axes, keepdims=True),
        image - image.mean(axes, keepdims=True),
        atol=1e-4,
    )


def test_low_amplitudes_are_the_styles_and_phases_the_images():
    image, style = phantom(2), phantom(2) * 2
    mixed = np.fft.fft2(fourier_style(image, style, 0.1))
    own, other = np.fft.fft2(image), np.fft.fft2(style)
    # 10 % of 24 and of 20 voxels: up to the second frequency.
    np.testing.assert_allclose(np.abs(mixed[:, :3, :3]), np.abs(other[:, :3, :3]), rtol=1e-3)
    np.testing.assert_allclose(mixed[:, 3:20, 5], own[:, 3:20, 5], rtol=1e-2, atol=1e-2)
    turn = np.angle(mixed[:, :3, :3] / own[:, :3, :3])
    np.testing.assert_allclose(turn, 0, atol=1e-3)


def test_a_style_of_another_size_is_brought_to_the_images():
    image = phantom(3, 1)
    style = np.full((1, 7, 9, 5), 3, np.float32)
    assert fourier_style(image, style, 0.0).mean() == pytest.approx(3, rel=1e-4)
    with pytest.raises(ValueError, match="does not fit"):
        fourier_style(image, style[0])
    with pytest.raises(ValueError, match="beta"):
        fourier_style(image, style, 0.5)
