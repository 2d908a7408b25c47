# SPDX-License-Identifier: Apache-2.0
"""Colours of charts: a page has them as CSS variables, light and dark, and a picture as they are."""

from __future__ import annotations

from dataclasses import dataclass

Colour = tuple[int, int, int]

CHOSEN = "chosen_batch"  # the signal of the batch that is looked at; 0 for all

# Of batches from small to large: matplotlib's plasma backwards, without what cannot be told from white, and with its end light enough for black.
_ON_WHITE = ((229, 107, 68), (204, 71, 120), (143, 13, 164), (13, 8, 135))
_ON_BLACK = ((252, 206, 37), (248, 149, 64), (225, 85, 115), (190, 85, 200), (124, 112, 250))
_KINDS_ON_WHITE = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#9a6700", "#bf3989", "#1b7c83", "#6e7781", "#649a12", "#2f95f0", "#ee5f68", "#a97bf0")
_KINDS_ON_BLACK = ("#4493f8", "#f0883e", "#3fb950", "#ab7df8", "#d29922", "#db61a2", "#39c5cf", "#8b949e", "#a0c815", "#a5d6ff", "#ffaba8", "#d2b3ff")
KINDS = len(_KINDS_ON_WHITE)
# Categories of bytes as they have these colours: what is most of a step has those that are told apart best.
_MOST, _LESS = ("saved", "temporary", "gradient", "parameter", "optimizer state", "workspace"), ("batch", "buffer", "gradient bucket")
OF_CATEGORIES = (*_MOST, *_LESS, "gathered parameter", "packed weight", "adapter")


@dataclass(frozen=True)
class Look:
    """Colours: of text, of what stands back, of grids, of the page, of what goes wrong; of batches from small to large, and of what has no order."""

    ink: str
    soft: str
    grid: str
    page: str
    bad: str
    batches: tuple[str, ...]
    kinds: tuple[str, ...]
    legend: bool = False


def of_page(batches: int) -> Look:
    """The names of a page's colours."""
    numbered = tuple(f"var(--b{place})" for place in range(batches))
    return Look("var(--ink)", "var(--soft)", "var(--rule)", "var(--page)", "var(--bad)", numbered, tuple(f"var(--k{place})" for place in range(KINDS)))


def of_picture(batches: int) -> Look:
    """Colours on white, and a legend of its own."""
    return Look("#1b1f24", "#59636e", "#d8dee4", "#ffffff", "#cf222e", _between(_ON_WHITE, batches), _KINDS_ON_WHITE, legend=True)


def of_category(name: str, look: Look) -> str:
    """The colour of a category of bytes, the same in every chart."""
    return look.kinds[OF_CATEGORIES.index(name)] if name in OF_CATEGORIES else look.soft


def variables(batches: int, dark: bool) -> str:
    """The colours of batches and kinds as CSS declares them."""
    given = _between(_ON_BLACK if dark else _ON_WHITE, batches), _KINDS_ON_BLACK if dark else _KINDS_ON_WHITE
    return "; ".join(f"--{letter}{place}: {colour}" for letter, colours in zip("bk", given, strict=True) for place, colour in enumerate(colours))


def _between(anchors: tuple[Colour, ...], count: int) -> tuple[str, ...]:
    """So many colours from the first anchor to the last, evenly."""
    found = []
    for place in range(count):
        at = place / max(1, count - 1) * (len(anchors) - 1)
        left = min(int(at), len(anchors) - 2)
        mixed = (round(one + (two - one) * (at - left)) for one, two in zip(anchors[left], anchors[left + 1], strict=True))
        found.append("#" + "".join(f"{channel:02x}" for channel in mixed))
    return tuple(found)
