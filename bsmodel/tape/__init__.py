# SPDX-License-Identifier: Apache-2.0
"""The recorded step as plain data: lines, allocations, operations, formulas of buffers, tables by module."""

from bsmodel.tape.lines import Envelope, Integer, Integers, Line, upper_envelope
from bsmodel.tape.operations import Operations, Row, fixed, joined, through
from bsmodel.tape.tables import ModuleRow, OperatorRow, by_module, by_operator, counted
from bsmodel.tape.tape import BLOCKS, Tape, Term, require_same_kernels

__all__ = (
    "BLOCKS",
    "Envelope",
    "Integer",
    "Integers",
    "Line",
    "ModuleRow",
    "Operations",
    "OperatorRow",
    "Row",
    "Tape",
    "Term",
    "by_module",
    "by_operator",
    "counted",
    "fixed",
    "joined",
    "require_same_kernels",
    "through",
    "upper_envelope",
)
