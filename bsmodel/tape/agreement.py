# SPDX-License-Identifier: Apache-2.0
"""Whether a recording is of what is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from bsmodel.errors import InvalidInputError
from bsmodel.tape.tape import Tape
from bsmodel.units import shown


def require_agreement(tape: Tape, changes: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> None:
    """Raises `InvalidInputError` where a recipe's fields or a workload's options are not those the tape was recorded with, or it does not know them.

    `changes`: fields of `Training`; `options`: those of `Source.of`. Both values are named.
    """
    recipe = {**tape.recipe, "precision": tape.precision, "optimizer": tape.optimizer, "accumulation": tape.accumulation}
    for asked, recorded in ((changes, recipe), (options or {}, tape.options)):
        for name, value in asked.items():
            given = getattr(value, "__name__", None) if callable(value) else value
            label = name.replace("_", "-")
            if name not in recorded:
                raise InvalidInputError(f"{label} {_word(given)} is asked, and the recording does not say which it was made with; record again")
            if given is not None or not callable(value):
                _require_same(label, given, recorded[name])


def _require_same(label: str, given: Any, recorded: Any) -> None:
    if _plain(given) != _plain(recorded):
        raise InvalidInputError(f"{label} {_word(given)} is asked, and the recording was made with {_word(recorded)}; record again")


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value.model_dump(mode="json") if isinstance(value, BaseModel) else value, default=str))


def _word(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    return str(value) if isinstance(value, str | BaseModel) else ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else shown(value)
