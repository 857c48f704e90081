"""The frame of a page that stands alone: style, pieces and script inside, no network, printable."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection, Sequence
from html import escape
from importlib.resources import files

import pandas as pd

RESEARCH_USE = (
    "For research use only. Not a medical device; not for diagnosis or treatment decisions."
)
_INTERVAL = re.compile(r"(?<=\d) (\[[-–+.\d]+, [-–+.\d]+\]|\(seeds ± [.\d]+\))")
_BELOW = r' <span class="ci">\1</span>'


def page(title: str, body: Sequence[str], *, attribution: str | None = None) -> str:
    """Return a whole HTML page around pieces of it.

    The page's own policy forbids every request and every script but the one it carries, which
    only sorts tables and moves between slices.

    Args:
        title: Shown above all and in the window's title.
        body: HTML that is already escaped.
        attribution: Licence and source of the data, shown in the footer.
    """
    style, script = _asset("style.css"), _asset("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    source = f"<p>{escape(attribution)}</p>" if attribution else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n"
        + "\n".join(body)
        + f"\n<footer>{source}<p>{escape(RESEARCH_USE)}</p></footer>\n"
        + f"<script>{script}</script>\n</body>\n</html>\n"
    )


def notes(sentences: Sequence[str]) -> str:
    """Return what a reader must know first, "" if there is nothing."""
    if not sentences:
        return ""
    listed = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="notes">{listed}</ul>'


def tiles(facts: Sequence[tuple[str, str, bool]]) -> str:
    """Return a row of large numbers: text, what it is, and whether it is bad news."""
    listed = "".join(
        f'<div class="tile{" bad" if bad else ""}"><b>{escape(text)}</b>'
        f"<span>{escape(what)}</span></div>"
        for text, what, bad in facts
    )
    return f'<div class="tiles">{listed}</div>'


def table(content: pd.DataFrame, *, words: bool = False) -> str:
    """Return a table of text, every cell escaped; an interval goes below its number."""
    with pd.option_context("display.max_colwidth", None):
        text = content.to_html(
            index=False, escape=True, border=0, classes="words" if words else None, justify="unset"
        )
    return f'<div class="wide">{text if words else _INTERVAL.sub(_BELOW, text)}</div>'


def case_rows(
    content: pd.DataFrame,
    *,
    left: Collection[str],
    values: pd.DataFrame | None = None,
    rows: Sequence[str] | None = None,
) -> str:
    """Return a table with one case a row.

    Args:
        content: Text of the cells.
        left: Columns of words, set flush left.
        values: What each cell is sorted by, of the same shape; NaN stays at the end. None for a
            table that the page's script leaves alone.
        rows: Class of each row.
    """
    kinds = [' class="word"' if name in left else "" for name in content.columns]
    heads = "".join(
        f'<th scope="col"{kind}>{escape(str(name))}</th>'
        for name, kind in zip(content.columns, kinds, strict=True)
    )
    lines = []
    for kind, texts, keys in zip(
        rows or [""] * len(content),
        content.itertuples(index=False, name=None),
        (content if values is None else values).itertuples(index=False, name=None),
        strict=True,
    ):
        cells = "".join(
            f"<td{word}{_key(text, key)}>{_INTERVAL.sub(_BELOW, escape(str(text)))}</td>"
            for word, text, key in zip(kinds, texts, keys, strict=True)
        )
        lines.append(f'<tr class="{escape(kind, quote=True)}">{cells}</tr>')
    whole = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    if values is None:
        return f'<div class="wide"><table class="cases">{whole}'
    return f'<div class="tall"><table class="cases sortable">{whole}'


def figure(heading: str, caption: str, png: bytes, *, alt: str) -> str:
    """Return a picture with its heading and caption."""
    title = f"<h3>{escape(heading)}</h3>" if heading else ""
    image = f'<img alt="{escape(alt, quote=True)}" src="{data_uri(png)}">'
    return f"<figure>{title}{image}<figcaption>{escape(caption)}</figcaption></figure>"


def data_uri(png: bytes) -> str:
    """Return a PNG as the address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _key(text: object, key: object) -> str:
    """Return the attribute a cell is sorted by, where that is not its text."""
    if pd.isna(key):  # type: ignore[call-overload]  # a scalar
        return ' data-value=""'
    if str(key) == str(text):
        return ""
    shown = f"{key:.6g}" if isinstance(key, float) else str(key)
    return f' data-value="{escape(shown, quote=True)}"'


def _asset(name: str) -> str:
    return (files("medseg_diff.report") / name).read_text(encoding="utf-8")
