"""Random changes of appearance for training: how far a network can be made indifferent to contrast.

They know nothing of `shifts.py`: an experiment that trains with them is judged on shifts whose
operators it has not seen. Gain fields are interpolated noise here (there: polynomials), axes are
made coarse by interpolation (there: by averaging slabs), noise is Gaussian (there: Rician).

Legend: C channels, *S spatial axes (2 or 3).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandAdjustContrastd, RandomizableTransform
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom
from torch import Tensor
from torch.nn import functional

Array = NDArray[np.float32]
Change = Callable[[Tensor, np.random.RandomState], Tensor]


def random_convolutions(
    image: Tensor, random: np.random.RandomState, *, layers: int = 4, width: int = 2
) -> Tensor:
    """GIN, global intensity non-linearity (Ouyang et al. 2022, arXiv 2111.12525).

    A shallow network of random weights, convolutions of 1 or 3 voxels with leaky ReLUs between
    them, blended with the image by a random share and brought back to the image's own norm.

    Args:
        image: (C, *S), normalised.
        random: Source of weights and share.
        layers: Convolutions.
        width: Channels between them.

    Returns:
        (C, *S).
    """
    dims = image.ndim - 1
    convolve = functional.conv3d if dims == 3 else functional.conv2d
    x = image[None].float()
    for layer in range(layers):
        into, out = x.shape[1], len(image) if layer == layers - 1 else width
        size = int(random.choice([1, 3]))
        weight = random.standard_normal((out, into, *[size] * dims)).astype(np.float32)
        shift = torch.from_numpy(random.standard_normal(out).astype(np.float32))
        x = functional.pad(x, [size // 2] * (2 * dims), mode="replicate")
        x = convolve(x, torch.from_numpy(weight)) + shift.reshape(1, -1, *[1] * dims)
        if layer < layers - 1:
            x = functional.leaky_relu(x)
    # The new image has the old one's mean and spread before it is blended: a random network's own
    # scale says nothing.
    x = x[0]
    x = (x - x.mean()) / x.std().clamp(min=1e-6) * image.std() + image.mean()
    share = float(random.uniform())
    mixed = share * x + (1 - share) * image
    return mixed * (image.norm() / mixed.norm().clamp(min=1e-6))


def smooth_field(
    shape: Sequence[int], random: np.random.RandomState, *, knots: int = 4, sd: float = 0.3
) -> Array:
    """Exponent of a smooth random field (*S): normal values on a coarse grid, interpolated."""
    coarse = random.normal(0, sd, [min(knots, n) for n in shape])
    factors = [n / k for n, k in zip(shape, coarse.shape, strict=True)]
    return np.exp(zoom(coarse, factors, order=1, grid_mode=False)).astype(np.float32)


def coarse_axis(image: Tensor, axis: int, factor: float) -> Tensor:
    """(C, *S) with an axis interpolated to ``1 / factor`` of its voxels and back, linearly."""
    shape = tuple(image.shape[1:])
    fewer = [max(2, round(n / factor)) if a == axis else n for a, n in enumerate(shape)]
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    small = functional.interpolate(image[None].float(), size=fewer, mode=mode)
    return functional.interpolate(small, size=shape, mode=mode)[0]


def synthetic_contrast(
    image: Array, label: NDArray[Any], random: np.random.RandomState, *, background: int = 4
) -> Array:
    """An image drawn from a label map, as SynthSeg does (Billot et al. 2023, arXiv 2107.09559).

    Every label has a random mean and spread; the map is blurred, shaded by a random field and
    coarsened along one axis. The labels stay exact. What has no label is first divided by its grey
    into ``background`` tissues (SynthSeg clusters it, too), so that surroundings have edges.

    Args:
        image: (C, *S), normalised; only its first channel is looked at, to divide the background.
        label: (1, *S), integer.
        random: Source of everything.
        background: Tissues without a label.

    Returns:
        (C, *S), mean 0 and standard deviation 1 channel by channel.
    """
    tissue = np.rint(label[0]).astype(np.int64)
    rest = tissue == 0
    if rest.any():
        grey = gaussian_filter(image[0], 0.7)
        cuts = np.quantile(grey[rest], np.linspace(0, 1, background + 1)[1:-1])
        tissue = np.where(rest, -1 - np.searchsorted(cuts, grey), tissue)
    values, index = np.unique(tissue, return_inverse=True)
    index = index.reshape(tissue.shape)
    planes = []
    for _ in image:
        means, spreads = random.uniform(0, 1, len(values)), random.uniform(0.01, 0.12, len(values))
        drawn = means[index] + spreads[index] * random.standard_normal(tissue.shape)
        drawn = gaussian_filter(drawn, random.uniform(0.2, 0.9))
        drawn = drawn * smooth_field(tissue.shape, random, sd=0.2)
        axis, factor = int(random.randint(tissue.ndim)), float(random.uniform(1, 3))
        plane = torch.from_numpy(drawn.astype(np.float32)[None])
        planes.append(coarse_axis(plane, axis, factor)[0].numpy())
    made = np.stack(planes)
    axes = tuple(range(1, made.ndim))
    sd = made.std(axes, keepdims=True)
    return ((made - made.mean(axes, keepdims=True)) / np.maximum(sd, 1e-6)).astype(np.float32)


class RandImaged(RandomizableTransform, MapTransform):
    """A random change of ``image``, now and then.

    Args:
        change: ``(image (C, *S), random state) -> image``.
        prob: How often.
    """

    def __init__(self, change: Change, prob: float) -> None:
        RandomizableTransform.__init__(self, prob)
        MapTransform.__init__(self, ("image",))
        self.change = change

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change the image of a sample."""
        self.randomize(None)
        result = dict(data)
        if self._do_transform:
            result["image"] = self.change(torch.as_tensor(data["image"]), self.R)
        return result


def gain_field(image: Tensor, random: np.random.RandomState) -> Tensor:
    """A :func:`smooth_field` as a gain, counted from the image's smallest value."""
    gain = torch.from_numpy(smooth_field(image.shape[1:], random))
    floor = image.amin()
    return (image - floor) * gain + floor


def one_coarse_axis(image: Tensor, random: np.random.RandomState) -> Tensor:
    """:func:`coarse_axis` along one axis, by a factor of 1 to 4."""
    axis = int(random.randint(image.ndim - 1))
    return coarse_axis(image, axis, float(random.uniform(1, 4)))


def strongly_changed(image: Tensor, random: np.random.RandomState) -> Tensor:
    """An image (C, *S) of the same anatomy and mostly another look, same shape."""
    for change, often in ((random_convolutions, 0.8), (gain_field, 0.3), (one_coarse_axis, 0.3)):
        if random.uniform() < often:
            image = change(image, random)
    return image


class SyntheticContrastd(RandomizableTransform, MapTransform):
    """`synthetic_contrast` in the place of every ``image``."""

    def __init__(self) -> None:
        RandomizableTransform.__init__(self, 1.0)
        MapTransform.__init__(self, ("image", "label"))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draw a sample's image from its label map."""
        image, label = np.asarray(data["image"]), np.asarray(data["label"])
        return {**data, "image": torch.from_numpy(synthetic_contrast(image, label, self.R))}


def strong_appearance(patch_size: Sequence[int]) -> list[Any]:
    """Transforms of ``image`` that go on top of the standard ones; labels are never touched."""
    return [
        RandImaged(random_convolutions, 0.5),
        RandImaged(gain_field, 0.3),
        RandImaged(one_coarse_axis, 0.3),
        RandAdjustContrastd("image", prob=0.3, gamma=(0.5, 2.0), retain_stats=True),
    ]
