# SPDX-License-Identifier: Apache-2.0
"""`bsmodel gpus`: the rows of the catalogue."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bsmodel.command.arguments import size
from bsmodel.command.documents import GpusDocument
from bsmodel.command.given import leave_out
from bsmodel.command.report import Answer
from bsmodel.command.terminal import render, table
from bsmodel.hardware import Gpu, schema
from bsmodel.units import GB, TERA, GiB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `bsmodel gpus`."""
    parser.add_argument("--min-memory", type=size, default=0, metavar="SIZE", help="only cards with at least this, e.g. 40GiB (default: all)")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of a GPU file instead (default: list cards)")


def run(options: argparse.Namespace) -> Answer:
    """The cards with enough memory, or the schema of a GPU file."""
    if options.schema:
        leave_out(options, "--schema is of a file of any card", ("min_memory",))
    gpus = tuple(gpu for gpu in Gpu.all() if gpu.memory_bytes >= options.min_memory)
    return Answer(GpusDocument(command="gpus", gpus=gpus), schema() if options.schema else _text(gpus), plain=options.schema)


def _text(gpus: Sequence[Gpu]) -> str:
    columns, lines = gpu_cells(gpus)
    return render(table(*columns, rows=lines))


def gpu_cells(gpus: Sequence[Gpu]) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Columns, and a line for each card."""
    headings = ("memory", "usable", "capability", "bandwidth", "fp16 TFLOP/s", "USD per hour (checked)")
    return [("id", ""), ("name", ""), *((heading, "right") for heading in headings)], [_cells(gpu) for gpu in gpus]


def _cells(gpu: Gpu) -> list[str]:
    source = gpu.source_of("price_usd_per_hour")
    return [
        gpu.id,
        gpu.name,
        f"{gpu.memory_bytes / GiB:.2f} GiB",
        f"{gpu.usable_bytes / GiB:.2f} GiB",
        gpu.compute_capability,
        f"{gpu.bandwidth_bytes_per_s / GB:,.0f} GB/s" if gpu.bandwidth_bytes_per_s else "-",
        f"{gpu.fp16_dense_flops_per_s / TERA:,.0f}" if gpu.fp16_dense_flops_per_s else "-",
        f"{gpu.price_usd_per_hour:.2f} ({source.checked})" if gpu.price_usd_per_hour and source else "-",
    ]
