# SPDX-License-Identifier: Apache-2.0
"""Who holds the bytes of a step: bars by category, and the tree of modules as an icicle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import altair as alt

from bsmodel.pages.drawing import Spec, framed, quick
from bsmodel.pages.looks import Look, of_category
from bsmodel.pages.parts import ITSELF, short
from bsmodel.units import GiB, format_bytes

_TRUNK = 0.85  # of all bytes: a module with more is a trunk, and its parts are what has colours
_BAR = 64  # [px] of height for each GPU
_DEEPEST = 7  # levels of modules that are drawn
_LEAST, _LEAST_NAMED = 0.002, 0.07  # of all bytes: of a module that is drawn, and of one whose name is

Path = tuple[str, ...]


@quick
def categories(held: Mapping[str, Mapping[str, int]], look: Look) -> Spec:
    """A bar for each GPU, of the GiB of each category."""
    names = list(dict.fromkeys(category for own in held.values() for category in own))
    rows = [
        {"gpu": gpu, "category": name, "gib": short(size / GiB), "share": short(size / sum(own.values())), "order": names.index(name)}
        for gpu, own in held.items()
        for name, size in own.items()
    ]
    legend = alt.Legend(title=None, orient="bottom", columns=2, labelColor=look.ink)
    colour = alt.Color("category:N", legend=legend).scale(domain=names, range=[of_category(name, look) for name in names])
    told = [alt.Tooltip("gpu:N", title="GPU"), "category:N", alt.Tooltip("gib:Q", title="GiB", format=".3f"), alt.Tooltip("share:Q", format=".1%")]
    x, y = alt.X("gib:Q", title="requested [GiB]").axis(format="~g"), alt.Y("gpu:N", title=None, sort=list(held))
    bars = alt.Chart().mark_bar(size=36, stroke=look.page, strokeWidth=1).encode(x=x, y=y, color=colour, order="order:Q", tooltip=told)
    return {**framed([bars], look, "Bytes at the binding moment by category, a bar for each GPU", rows), "height": _BAR * len(held)}


@quick
def icicle(held: Mapping[str, int], look: Look) -> Spec:
    """Modules from left to right by their share of the bytes, and from top to bottom by their depth; parts have colours where the tree first branches."""
    rows = [*_placed(held)]
    tops = list(dict.fromkeys(row["top"] for row in rows))
    colour = alt.Color("top:N", legend=None).scale(domain=tops, range=[look.kinds[place % len(look.kinds)] for place in range(len(tops))])
    told = [alt.Tooltip("module:N"), alt.Tooltip("size:N"), alt.Tooltip("share:Q", format=".2%")]
    x = alt.X("begin:Q", title="share of the bytes").scale(domain=[0, 1], nice=False).axis(format="%", grid=False)
    y = alt.Y("depth:Q", title=None).scale(reverse=True, nice=False, zero=False).axis(None)
    base = alt.Chart().encode(x=x, y=y)
    rects = base.mark_rect(stroke=look.page, strokeWidth=1, fillOpacity=0.45).encode(x2="end:Q", y2="below:Q", color=colour, tooltip=told)
    named = alt.Chart(alt.NamedData(name="named")).mark_text(color=look.ink, fontSize=11, limit=90, baseline="middle")
    named = named.encode(x=alt.X("middle:Q"), y=alt.Y("level:Q"), text="name:N")
    labels = [{**row, "middle": short((row["begin"] + row["end"]) / 2), "level": row["depth"] + 0.5} for row in rows if row["share"] >= _LEAST_NAMED]
    return framed([rects, named], look, "Bytes at the binding moment by module, from the model to its parts", rows, {"named": labels})


def _placed(held: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Every module with all that is in it, from where to where it goes; the largest come first."""
    sizes: dict[Path, int] = {}
    for module, size in held.items():
        path = tuple(module.split(".")) if module else (ITSELF,)
        for length in range(len(path) + 1):
            sizes[path[:length]] = sizes.get(path[:length], 0) + size
    inside: dict[Path, list[Path]] = {}
    for path in sizes:
        if path:
            inside.setdefault(path[:-1], []).append(path)
    trunk: Path = ()
    while (biggest := max(inside.get(trunk, []), key=lambda child: sizes[child], default=())) and sizes[biggest] >= _TRUNK * sizes[()]:
        trunk = biggest
    for row, path in _within((), 0, sizes, inside):
        yield {**row, "top": ".".join(path[: len(trunk) + 1])}


def _within(path: Path, begin: int, sizes: Mapping[Path, int], inside: Mapping[Path, list[Path]]) -> Iterator[tuple[dict[str, Any], Path]]:
    total = sizes[()]
    for child in sorted(inside.get(path, []), key=lambda child: (-sizes[child], child)):
        size = sizes[child]
        if size >= _LEAST * total and len(child) <= _DEEPEST:
            at = {"begin": short(begin / total), "end": short((begin + size) / total), "depth": len(child) - 1, "below": len(child)}
            yield {"module": ".".join(child), "name": child[-1], "size": format_bytes(size), "share": short(size / total)} | at, child
            yield from _within(child, begin, sizes, inside)
        begin += size
