# SPDX-License-Identifier: Apache-2.0
"""`bsmodel models`: the models that have a name."""

from __future__ import annotations

import argparse

from bsmodel.command.documents import ModelsDocument
from bsmodel.command.report import Answer
from bsmodel.command.terminal import render, table
from bsmodel.workloads import PUBLISHED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `bsmodel models`: none of its own."""


def run(options: argparse.Namespace) -> Answer:
    """Every name with its parameters and the dtype its weights have, as published, and where that stands."""
    columns = (("name", ""), ("parameters", "right"), ("weights", ""), ("library", ""), ("source", ""))
    rows = [[row.name, row.parameters, row.weights or "-", row.library, row.source] for row in PUBLISHED]
    others = "Others: a config.json of transformers or diffusers or its folder, timm:NAME, torchvision:NAME, path.py:attribute."
    return Answer(ModelsDocument(command="models", models=PUBLISHED), render(table(*columns, rows=rows), "", others))
