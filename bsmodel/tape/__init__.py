# SPDX-License-Identifier: Apache-2.0
"""The recorded step as plain data: polynomials, allocations, operations, formulas of buffers, tables by module."""

from bsmodel.tape.agreement import require_agreement
from bsmodel.tape.asked import another_path, micro_batches, micro_steps, require_accumulates
from bsmodel.tape.lengths import STEP, Lengths, Piece, piece_from, pieces_from
from bsmodel.tape.operations import KEEPS, PHASES, Operations, Row, fixed, joined, through
from bsmodel.tape.polynomials import Coefficients, Envelope, Integer, Integers, Polynomial, interpolated, pairs, polynomials, upper_envelope, values
from bsmodel.tape.saved import is_tape, load_all, load_lengths, save_all, save_lengths
from bsmodel.tape.tables import ModuleRow, OperatorRow, by_module, by_operator, counted
from bsmodel.tape.tape import AFTER, APART, BLOCKS, CATEGORIES, REPEATED, WEIGHTS, Collective, Tape, Term, Wait, Workspace, require_same_kernels
from bsmodel.tape.workspaces import buffer_bytes

__all__ = (
    "AFTER",
    "APART",
    "BLOCKS",
    "CATEGORIES",
    "KEEPS",
    "PHASES",
    "REPEATED",
    "STEP",
    "WEIGHTS",
    "Coefficients",
    "Collective",
    "Envelope",
    "Integer",
    "Integers",
    "Lengths",
    "ModuleRow",
    "Operations",
    "OperatorRow",
    "Piece",
    "Polynomial",
    "Row",
    "Tape",
    "Term",
    "Wait",
    "Workspace",
    "another_path",
    "buffer_bytes",
    "by_module",
    "by_operator",
    "counted",
    "fixed",
    "interpolated",
    "is_tape",
    "joined",
    "load_all",
    "load_lengths",
    "micro_batches",
    "micro_steps",
    "pairs",
    "piece_from",
    "pieces_from",
    "polynomials",
    "require_accumulates",
    "require_agreement",
    "require_same_kernels",
    "save_all",
    "save_lengths",
    "through",
    "upper_envelope",
    "values",
)
