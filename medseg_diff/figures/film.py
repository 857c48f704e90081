"""A film of one mask being drawn: from noise to what the model sees.

Three panels, frame by frame: the image, the state of the process, and the mask that the model
would answer at that moment.

Letters: ``K`` structures (foreground classes or regions), ``*S`` spatial axes, ``T`` frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medseg_diff import io
from medseg_diff.data.transforms import load_image, normalise, to_model_grid
from medseg_diff.diffusion.samplers import SAMPLERS
from medseg_diff.errors import InputError, UsageError
from medseg_diff.figures import COLOURS, CaseView
from medseg_diff.figures.views import Plane, background, grey_window, planes
from medseg_diff.files import atomic_file
from medseg_diff.inference.noise import CUBE, SLICE, NoiseField
from medseg_diff.inference.predictor import Predictor
from medseg_diff.inference.windows import pad_to
from medseg_diff.model import Estimate, Sampling

Array = NDArray[np.float32]
PANEL = 260
FRAME_MS = 220
LAST_MS = 2500
STRIP_COLUMNS = 8
_GAP, _BAR = 8, 26
_INK, _PAPER = "#1d2733", "#ffffff"
_PANELS = ("Image", "State", "Mask so far")


@dataclass(frozen=True)
class FilmStep:
    """One moment: its time in [0, 1], the state's and the answer's presence in [0, 1], (K, *S)."""

    t: float
    state: Array
    clean: Array


@dataclass(frozen=True)
class Film:
    """A trajectory to show.

    Attributes:
        image: (C, *S).
        steps: From noise on.
        affine: Voxel to RAS+ millimetres, (4, 4), or None for a 2-D image.
    """

    image: Array
    steps: tuple[FilmStep, ...]
    affine: NDArray[Any] | None = None

    @property
    def empty(self) -> bool:
        """Whether the last answer holds nothing."""
        return not bool((self.steps[-1].clean > 0.5).any())


def shoot(
    predictor: Predictor,
    scan: str | Path | Mapping[str, str | Path],
    *,
    steps: int = 20,
    sampler: str | None = None,
    seed: int = 0,
) -> Film:
    """Draw one mask on the central window of a scan and keep every step.

    Of an ensemble the first model is shown. The noise is that of the scan's first draw.

    Args:
        predictor: Loaded model.
        scan: File, or channel name -> file for a model of several channels.
        steps: Sampler steps; more give a smoother film.
        sampler: Name of a sampler; None takes the model's own.
        seed: With the scan's name it fixes the noise.

    Raises:
        InputError: if the scan cannot be read, or the model draws no noise.
        UsageError: if the model does not allow this way of sampling.
    """
    model = predictor.runs[0].model
    sampling = _sampling(predictor, steps, sampler)
    scene = _scene(predictor, scan)
    flat = predictor.patch[-1] == 1
    device = next(model.parameters()).device

    def noise(step: int) -> torch.Tensor:
        tile = SLICE if flat else CUBE
        drawn = NoiseField(seed, scene.name, 0, step, model.noise_channels, tile)
        cut = torch.from_numpy(drawn.window(scene.start, predictor.patch))[None].to(device)
        return cut[..., 0] if flat else cut

    window = torch.from_numpy(scene.window)[None].to(device)
    with torch.inference_mode():
        context = model.context(window[..., 0] if flat else window)
        estimates = model.trajectory(context, noise(0), sampling, lambda k: noise(k + 1))
        kept = list(
            _moments(
                estimates, noise(0)[:, -model.codec.channels :], 1 if model.codec.exclusive else 0
            )
        )
    # The answer of a 2-D network gets its third axis back; padding around the scan goes.
    kept = [_each(s, lambda a: (a[..., None] if flat else a)[:, *scene.inside]) for s in kept]
    image = scene.image[:, *scene.inside]
    if scene.affine is None:
        return Film(image[..., 0], tuple(_each(s, lambda a: a[..., 0]) for s in kept))
    return Film(image, tuple(kept), scene.affine)


def _each(step: FilmStep, change: Callable[[Array], Array]) -> FilmStep:
    return replace(step, state=change(step.state), clean=change(step.clean))


@dataclass(frozen=True)
class _Scene:
    """A scan's central window, (C, *S): as the network sees it, as it was, where it begins, and
    which part of it is not padding.
    """

    name: str
    window: Array
    image: Array
    start: list[int]
    inside: tuple[slice, ...]
    affine: NDArray[np.float64] | None


def _scene(predictor: Predictor, scan: str | Path | Mapping[str, str | Path]) -> _Scene:
    files = scan if isinstance(scan, Mapping) else {predictor.task.channels[0]: scan}
    channels = {name: Path(path) for name, path in files.items()}
    source = load_image(channels, predictor.task, io.ReadOptions())
    placed = to_model_grid(predictor.plan)(source)
    values = np.asarray(placed, dtype=np.float32)
    patch = predictor.patch
    seen, _ = pad_to(normalise(values, predictor.plan.normalisation or ()), patch)
    shown, _ = pad_to(values, patch)
    start = [(n - p) // 2 for n, p in zip(seen.shape[1:], patch, strict=True)]
    place = tuple(slice(a, a + p) for a, p in zip(start, patch, strict=True))
    raster = source.meta["kind"] == "raster"
    return _Scene(
        name=io.case_stem(next(iter(channels.values()))),
        window=seen[:, *place].copy(),
        image=shown[:, *place],
        start=start,
        inside=tuple(slice(0, min(p, n)) for p, n in zip(patch, values.shape[1:], strict=True)),
        affine=None if raster else np.asarray(placed.affine, dtype=np.float64),
    )


def _sampling(predictor: Predictor, steps: int, sampler: str | None) -> Sampling:
    """The model's own way of sampling with the caller's choices, if the model allows it."""
    run = predictor.runs[0]
    if not run.model.stochastic:
        raise InputError(
            "this model has no trajectory to film", file=run.folder, expected="a diffusion model"
        )
    sampling = replace(Sampling.of(predictor.defaults), steps=steps)
    sampling = sampling if sampler is None else replace(sampling, sampler=sampler)
    if sampling.steps < 1:
        raise UsageError(
            "not a number of steps", field="--steps", found=sampling.steps, expected="1 or more"
        )
    if sampling.sampler not in SAMPLERS:
        raise UsageError(
            "unknown sampler",
            field="--sampler",
            found=sampling.sampler,
            expected=", ".join(SAMPLERS),
        )
    try:
        run.model.check(sampling)
    except ValueError as error:
        raise UsageError(str(error), field="--sampler") from None
    return sampling


def _moments(estimates: Iterator[Estimate], noise: Any, first: int) -> Iterator[FilmStep]:
    """Pair each estimate with the state it was made from; the last state ends the film."""
    state, estimate = noise, None
    for estimate in estimates:
        # A latent starts on a coarser grid than the noise of the voxels: its film starts later.
        if state.shape == estimate.state.shape:
            yield _moment(estimate.t, estimate, state, first)
        state = estimate.state
    if estimate is not None:
        yield _moment(0.0, estimate, estimate.state, first)


def _moment(t: float, estimate: Estimate, state: Any, first: int) -> FilmStep:
    def presence(values: Any) -> Array:
        found: Array = values[0, first:].float().cpu().numpy().clip(0, 1)
        return found

    return FilmStep(t, presence(estimate.decode(state)), presence(estimate.probabilities))


def write_film(path: str | Path, film: Film) -> tuple[Path, Path]:
    """Write a film as an animated GIF, and a strip of at most 8 of its frames as PNG beside it.

    Returns:
        The two paths.

    Raises:
        InputError: if the name does not end in ``.gif``, or a file cannot be written.
    """
    gif = Path(path)
    if gif.suffix.lower() != ".gif":
        raise InputError("not a name for a film", file=gif, expected=".gif")
    shots = [shot.quantize(colors=255) for shot in frames(film)]
    with atomic_file(gif) as stream:
        shots[0].save(
            stream,
            format="GIF",
            save_all=True,
            append_images=shots[1:],
            duration=[FRAME_MS] * (len(shots) - 1) + [LAST_MS],
            loop=0,
        )
    png = gif.with_suffix(".png")
    with atomic_file(png) as stream:
        strip(film).save(stream, format="PNG")
    return gif, png


def frames(film: Film) -> list[Image.Image]:
    """Return one picture per step: image, state and mask so far, side by side."""
    cut, states, masks = _slices(film)
    size = _panel_size(cut)
    under = _under(cut)
    found = []
    for index, step in enumerate(film.steps):
        panels = [under, _mixed(states[index]), _painted(under, masks[index])]
        last = index == len(film.steps) - 1
        words = f"{len(film.steps) - 1} steps done" if last else f"noise left: t = {step.t:.2f}"
        found.append(_beside(panels, size, [*_PANELS[:2], f"{_PANELS[2]}; {words}"]))
    return found


def strip(film: Film) -> Image.Image:
    """Return one picture: states above, masks so far below, from noise to mask."""
    cut, states, masks = _slices(film)
    size = _panel_size(cut, 150)
    under = _under(cut)
    count = min(STRIP_COLUMNS, len(film.steps))
    chosen = np.unique(np.linspace(0, len(film.steps) - 1, count).round().astype(int))
    above = [_mixed(states[i]) for i in chosen]
    below = [_painted(under, masks[i]) for i in chosen]
    top = _beside(above, size, [f"t = {film.steps[i].t:.2f}" for i in chosen])
    bottom = _beside(below, size, ["mask so far", *[""] * (len(chosen) - 1)])
    whole = Image.new("RGB", (top.width, top.height + bottom.height), _PAPER)
    whole.paste(top, (0, 0))
    whole.paste(bottom, (0, top.height))
    return whole


def _slices(film: Film) -> tuple[Plane, Array, Array]:
    """The slice where the final mask is largest, its states and its answers, (T, K, rows, cols)."""
    states = np.stack([step.state for step in film.steps])
    masks = np.stack([step.clean for step in film.steps])
    count, structures = states.shape[:2]
    final = (masks[-1] > 0.5).any(axis=0).astype(np.uint8)
    # Whatever is cut with the masks follows the same turns.
    carried = np.concatenate([states, masks]).reshape(-1, *final.shape)
    view = CaseView(final, final, film.affine, film.image, draws=carried)
    cut = next(planes(view, {"mask": (1,)}))
    assert cut.view.draws is not None
    flat = cut.view.draws.reshape(2, count, structures, *cut.view.reference.shape)
    # Some paths scale the clean state down: its own range is what black and full colour mean.
    low, high = flat[0, -1].min(), flat[0, -1].max()
    span = high - low if high - low > 1e-3 else 1.0
    return cut, ((flat[0] - low) / span).clip(0, 1), flat[1]


def _under(cut: Plane) -> Array:
    """Image of the slice as colours in [0, 1], (rows, columns, 3)."""
    window = grey_window(cut.view.image)
    values = background(cut.view, window)
    if values.ndim == 2:
        grey = ((values - window[0]) / (window[1] - window[0])).clip(0, 1)
        values = np.repeat(grey[..., None], 3, axis=-1)
    return np.asarray(values, dtype=np.float32)


def _mixed(state: Array) -> Array:
    """Presences (K, rows, columns) as a mixture of the structures' colours on black."""
    weight = state / np.maximum(1, state.sum(axis=0))
    return np.asarray(np.einsum("kij,kc->ijc", weight, _palette(len(state))), dtype=np.float32)


def _painted(under: Array, mask: Array) -> Array:
    """The image with each structure tinted where it is more likely than not."""
    result = under.copy()
    for colour, present in zip(_palette(len(mask)), mask > 0.5, strict=True):
        result[present] = 0.5 * result[present] + 0.5 * colour
    return result


def _palette(count: int) -> Array:
    colours = [to_rgb(COLOURS[k % len(COLOURS)]) for k in range(count)]
    return np.asarray(colours, dtype=np.float32).reshape(count, 3)


def _panel_size(cut: Plane, longest: int = PANEL) -> tuple[int, int]:
    """Width and height in pixels that keep the millimetre proportions."""
    rows, columns = cut.view.reference.shape
    height, width = rows * cut.spacing[0], columns * cut.spacing[1]
    scale = longest / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _beside(panels: Sequence[Array], size: tuple[int, int], titles: Sequence[str]) -> Image.Image:
    """Panels in a row, each with its title above."""
    width, height = size
    whole = Image.new(
        "RGB", (len(panels) * (width + _GAP) + _GAP, height + _BAR + _GAP), color=_PAPER
    )
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(size=13)
    for number, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        left = _GAP + number * (width + _GAP)
        pixels = np.rint(panel.clip(0, 1) * 255).astype(np.uint8)
        picture = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
        whole.paste(picture, (left, _BAR))
        pen.text((left, 6), title, fill=_INK, font=font)
    return whole
