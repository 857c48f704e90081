"""A case slice by slice: reference, prediction, draws and doubt side by side, as HTML and SVG.

Every slice holds its pictures and outlines once; the panels point to them. Without script the
slice with most reference shows, with it a slider moves through all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from medseg_diff.figures import COLOURS, SliceStack, SliceView
from medseg_diff.report.page import data_uri

# On the path itself: a style sheet does not reach into copies.
_SHARP = 'vector-effect="non-scaling-stroke"'


def viewer(stack: SliceStack, structures: Sequence[str], name: str) -> str:
    """Return the panels of one case.

    Args:
        stack: Its slices.
        structures: Names, in the order of the outlines.
        name: Letters and digits that no other viewer of the page has.
    """
    slices = "".join(
        _slice(stack, index, slice_view, f"{name}s{index}")
        for index, slice_view in enumerate(stack.slices)
    )
    note = (
        '<p class="soft">Neither mask holds a structure: the middle slice stands for the case.</p>'
        if stack.empty
        else ""
    )
    return f'<div class="viewer">{_controls(stack)}{note}{slices}{_legend(stack, structures)}</div>'


def _controls(stack: SliceStack) -> str:
    if len(stack.slices) < 2:
        return ""
    # The script shows what is of no use without it.
    last = len(stack.slices) - 1
    return (
        f'<div class="controls" hidden><span>{escape(stack.name)} slice</span>'
        f'<input type="range" min="0" max="{last}" value="{stack.middle}" step="1" '
        'aria-label="slice"><output></output></div>'
    )


def _slice(stack: SliceStack, index: int, view: SliceView, name: str) -> str:
    """One slice: its pieces, a row of main panels and a row of draws."""
    main = "".join(_panel(stack, title, inner) for title, inner in _main(view, name))
    draws = "".join(_panel(stack, title, inner) for title, inner in _draws(view, name))
    place = f"{view.number} of {stack.extent}"
    hidden = "" if index == stack.middle else " hidden"
    caption = f'<p class="soft place">{escape(stack.name)} slice {place}</p>' if stack.name else ""
    row = f'<div class="panels draws">{draws}</div>' if draws else ""
    return (
        f'<div class="slice" data-place="{place}"{hidden}>{_pieces(stack, view, name)}'
        f'<div class="panels main">{main}</div>{row}{caption}</div>'
    )


def _pieces(stack: SliceStack, view: SliceView, name: str) -> str:
    """Pictures and outlines that the panels of a slice point to, drawn nowhere themselves."""
    parts = []
    size = f'width="{stack.width:g}" height="{stack.height:g}" preserveAspectRatio="none"'
    for letter, png, kind in (("i", view.image, ""), ("u", view.doubt, ' class="heat"')):
        if png is not None:
            parts.append(f'<image id="{name}{letter}"{kind} {size} href="{data_uri(png)}"/>')
    masks = {"r": view.reference, "p": view.prediction}
    masks |= {f"d{k}": paths for k, paths in enumerate(view.draws)}
    for letter, paths in masks.items():
        inner = "".join(
            f'<path d="{path}" {_SHARP} stroke="{_colour(k)}" fill="{_colour(k)}"/>'
            for k, path in enumerate(paths)
            if path
        )
        parts.append(f'<g id="{name}{letter}">{inner}</g>')
    edge = "".join(f'<path d="{path}" {_SHARP}/>' for path in view.reference if path)
    parts.append(f'<g id="{name}e">{edge}</g>')
    # Not display: none, under which browsers draw no copies either.
    return (
        f'<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>'
        f"{''.join(parts)}</defs></svg>"
    )


def _main(view: SliceView, name: str) -> Iterator[tuple[str, str]]:
    """Titles and contents of the large panels."""
    under = _use(name, "i") if view.image is not None else ""
    rim = _use(name, "e", "shade") + _use(name, "e", "rim")
    if view.image is not None:
        yield "Image", under
    yield "Reference", under + _use(name, "r", "mask")
    yield "Prediction", under + _use(name, "p", "mask") + rim
    if view.doubt is not None:
        yield "Doubt", _use(name, "u") + rim


def _draws(view: SliceView, name: str) -> Iterator[tuple[str, str]]:
    """Titles and contents of the small panels, one per draw after all of them together."""
    under = _use(name, "i") if view.image is not None else ""
    every = [f"d{k}" for k in range(len(view.draws))]
    if len(every) > 1:
        yield "All draws", under + "".join(_use(name, letter, "thin") for letter in every)
    for number, letter in enumerate(every, start=1):
        yield f"Draw {number}", under + _use(name, letter, "mask") + _use(name, "e", "rim")


def _panel(stack: SliceStack, title: str, inner: str) -> str:
    box = f"0 0 {stack.width:g} {stack.height:g}"
    return (
        f'<figure class="panel"><svg viewBox="{box}" role="img" aria-label="{escape(title)}">'
        f"{inner}{_letters(stack)}</svg><figcaption>{escape(title)}</figcaption></figure>"
    )


def _letters(stack: SliceStack) -> str:
    """Patient's sides at the edges."""
    if stack.edges is None:
        return ""
    w, h = stack.width, stack.height
    size = 0.042 * max(w, h)
    places = [(size, h / 2), (w - size, h / 2), (w / 2, size), (w / 2, h - size)]
    return "".join(
        f'<text x="{x:.4g}" y="{y:.4g}" font-size="{size:.3g}">{letter}</text>'
        for letter, (x, y) in zip(stack.edges, places, strict=True)
    )


def _legend(stack: SliceStack, structures: Sequence[str]) -> str:
    """Structures this case holds in any mask, the reference's outline and the scale of doubt."""
    shown = [
        f'<li><i style="background:{_colour(k)}"></i>{escape(structure)}</li>'
        for k, structure in enumerate(structures)
        if any(
            paths[k]
            for view in stack.slices
            for paths in (view.reference, view.prediction, *view.draws)
        )
    ]
    if any(any(view.reference) for view in stack.slices):
        shown.append('<li><i class="dash"></i>outline of the reference</li>')
    if stack.slices[0].doubt is not None:
        shown.append('<li>0 <i class="heat"></i>1 predictive entropy</li>')
    return f'<ul class="legend">{"".join(shown)}</ul>'


def _use(name: str, letter: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<use href="#{name}{letter}"{style}/>'


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
