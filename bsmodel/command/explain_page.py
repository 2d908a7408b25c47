# SPDX-License-Identifier: Apache-2.0
"""The page of `bsmodel explain`: who holds the bytes at the binding moment, by category on each GPU and by module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsmodel.command.documents import Explained
from bsmodel.command.page_tables import written
from bsmodel.command.wording import title
from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.memory import StepMemory, over_a_step
from bsmodel.pages import ITSELF, Drawing, Section, Table, categories, document, head, icicle, of_page, passing
from bsmodel.studies import Recorded
from bsmodel.tape import Tape
from bsmodel.timing import event_seconds
from bsmodel.units import format_bytes


@dataclass(frozen=True)
class Course:
    """A step over time on one GPU, of so many micro-steps: the seconds of its moments and of its end, or why there are none."""

    step: StepMemory
    accumulation: int
    seconds: NDArray[np.float64] | None
    untimed: str = ""

    @staticmethod
    def of(tape: Tape, gpu: Gpu, batch: int) -> Course:
        """That of the step in which the binding moment is."""
        step = over_a_step(tape, batch, gpu=gpu)
        if step.step == 1:
            return Course(step, tape.accumulation, None, "it is the first step, whose kernels are not those of later ones")
        try:
            seconds = event_seconds(tape, gpu, batch, step.micro_steps)
        except InvalidInputError as error:
            return Course(step, tape.accumulation, None, str(error))
        return Course(step, tape.accumulation, seconds) if seconds[-1] else Course(step, tape.accumulation, None, "it has no kernels")


def page(recorded: Recorded, found: Sequence[Explained], courses: Sequence[Course], asked: Sequence[tuple[str, str]], said: Sequence[str]) -> str:
    """The bytes as one HTML page; `asked` is what was asked, by name, and `said` what the text says below its tables."""
    held = {each.gpu: each.by_category for each in found}
    names = list(dict.fromkeys(name for own in held.values() for name in own))
    findings = [f"{each.gpu}: {format_bytes(each.total_bytes)} are requested at the binding moment, {each.moment}." for each in found]
    top = head(("What is held", findings), ("What was asked", [("Model", title(recorded)), *asked]), said)
    bars = Drawing("categories", "Bytes by category", "A bar for each GPU.", categories(held, of_page(0)))
    parts = [Section("By category", (), (bars,), _by_category(found, names))]
    parts += [_of_gpu(place, each, course) for place, (each, course) in enumerate(zip(found, courses, strict=True))]
    return document(f"Bytes of {recorded.name}", top, parts)


def _by_category(found: Sequence[Explained], names: Sequence[str]) -> Table:
    columns = [("category", ""), *((each.gpu, "right") for each in found)]
    lines = [[name, *(_held(each.by_category.get(name, 0), each.total_bytes) for each in found)] for name in names]
    lines.append(["total", *(_held(each.total_bytes, each.total_bytes) for each in found)])
    return written("categories", "Bytes of each category, with their share.", columns, lines)


def _of_gpu(place: int, each: Explained, course: Course) -> Section:
    caption = "Each module has its parts below it; those with less than a five-hundredth, or more than seven levels deep, are in the table only."
    modules = Drawing(f"modules-{place}", "Bytes by module", caption, icicle(each.by_module, of_page(0)))
    spec = passing(course.step, course.seconds, of_page(0))
    drawings = (Drawing(f"step-{place}", "A training step", _over_time(course), spec), modules)
    lines = [[name or ITSELF, format_bytes(size), f"{size:,}", f"{size / each.total_bytes:.1%}"] for name, size in each.by_module.items()]
    columns = (("module", ""), ("size", "right"), ("bytes", "right"), ("share", "right"))
    table = written(f"modules-{place}", "What each module holds itself, without its parts.", columns, lines)
    return Section(each.gpu, (f"Binding moment: {each.moment}.",), drawings, table)


def _over_time(course: Course) -> str:
    drawn = course.step.micro_steps
    more = f" {drawn} micro-steps are drawn; of the {course.accumulation:,} there are, further ones are as the second." if course.accumulation > drawn else ""
    if course.seconds is None:
        return f"What is alive after each allocation and release, in their order. When they happen is not known: {course.untimed}.{more}"
    return f"What is alive whenever the kernels up to then are done, by category, and where the most is.{more}"


def _held(size: int, total: int) -> str:
    return f"{format_bytes(size)} ({size / total:.1%})"
