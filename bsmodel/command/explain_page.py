# SPDX-License-Identifier: Apache-2.0
"""The page of `bsmodel explain`: who holds the bytes at the binding moment, by category on each GPU and by module."""

from __future__ import annotations

from collections.abc import Sequence

from bsmodel.command.documents import Explained
from bsmodel.command.page_tables import written
from bsmodel.command.wording import title
from bsmodel.pages import ITSELF, Drawing, Section, Table, categories, document, head, icicle, of_page
from bsmodel.studies import Recorded
from bsmodel.units import format_bytes


def page(recorded: Recorded, found: Sequence[Explained], asked: Sequence[tuple[str, str]], said: Sequence[str]) -> str:
    """The bytes as one HTML page; `asked` is what was asked, by name, and `said` what the text says below its tables."""
    held = {each.gpu: each.by_category for each in found}
    names = list(dict.fromkeys(name for own in held.values() for name in own))
    findings = [f"{each.gpu}: {format_bytes(each.total_bytes)} are requested at the binding moment, {each.moment}." for each in found]
    top = head(("What is held", findings), ("What was asked", [("Model", title(recorded)), *asked]), said)
    bars = Drawing("categories", "Bytes by category", "A bar for each GPU.", categories(held, of_page(len(names))))
    parts = [Section("By category", (), (bars,), _by_category(found, names)), *(_by_module(place, each) for place, each in enumerate(found))]
    return document(f"Bytes of {recorded.name}", top, parts, len(names))


def _by_category(found: Sequence[Explained], names: Sequence[str]) -> Table:
    columns = [("category", ""), *((each.gpu, "right") for each in found)]
    lines = [[name, *(_held(each.by_category.get(name, 0), each.total_bytes) for each in found)] for name in names]
    lines.append(["total", *(_held(each.total_bytes, each.total_bytes) for each in found)])
    return written("categories", "Bytes of each category, with their share.", columns, lines)


def _by_module(place: int, each: Explained) -> Section:
    caption = "Each module has its parts below it; those with less than a five-hundredth are not drawn."
    drawing = Drawing(f"modules-{place}", "Bytes by module", caption, icicle(each.by_module, of_page(0)))
    lines = [[name or ITSELF, format_bytes(size), f"{size:,}", f"{size / each.total_bytes:.1%}"] for name, size in each.by_module.items()]
    columns = (("module", ""), ("size", "right"), ("bytes", "right"), ("share", "right"))
    table = written(f"modules-{place}", "What each module holds itself, without its parts.", columns, lines)
    return Section(each.gpu, (f"Binding moment: {each.moment}.",), (drawing,), table)


def _held(size: int, total: int) -> str:
    return f"{format_bytes(size)} ({size / total:.1%})"
