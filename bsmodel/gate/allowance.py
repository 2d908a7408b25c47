# SPDX-License-Identifier: Apache-2.0
"""By how much a training may be worse than its baseline."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.units import finite, shown

_EXPECTED = "expected a percentage such as 1%, a fraction below 1 such as 0.01, or some of memory=1%,batch=0%,time=5%"


@dataclass(frozen=True)
class Allowance:
    """By which share each measure may be worse: 0.01 allows 1 % more memory, a largest batch 1 % smaller, a step 1 % longer.

    A largest batch is a whole number: where anything is allowed, it may be one smaller, however few there are. Raises `InvalidInputError` for what is no
    finite number of at least 0, and for a batch that may be all.
    """

    memory: float = 0.01
    batch: float = 0.01
    time: float = 0.01

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, finite(f"allowance of {field.name}", getattr(self, field.name), least=0))
        if self.batch >= 1:
            raise InvalidInputError(f"allowance of batch is {self.batch:g}; expected a number below 1, which would be the whole batch")

    @staticmethod
    def parse(text: str) -> Allowance:
        """Read `1%` or `0.01`, for all three, or `memory=1%,time=5%`, which leaves the others as they are by default.

        Raises `InvalidInputError` for anything else; `1` alone is refused, since it may be meant as 1 % or as all.
        """
        names = [field.name for field in fields(Allowance)]
        if "=" not in text:
            return Allowance(*[_share(text, text)] * len(names))
        given: dict[str, float] = {}
        for part in text.split(","):
            name, _, figure = (word.strip() for word in part.partition("="))
            if name not in names:
                raise UnknownNameError("allowance", name, names)
            if name in given:
                raise InvalidInputError(f"allowance {text!r} names {name} twice; {_EXPECTED}")
            given[name] = _share(figure, text)
        return Allowance(**given)


def _share(figure: str, text: str) -> float:
    try:
        share = finite("allowance", float(figure.strip().removesuffix("%")), least=0)
    except ValueError:
        raise InvalidInputError(f"allowance {shown(text)} cannot be read; {_EXPECTED}") from None
    if figure.strip().endswith("%"):
        return float(Fraction(repr(share)) / 100)  # that nearest to what is written
    if share >= 1:
        raise InvalidInputError(f"allowance {shown(text)} may be meant as a percentage or as a factor; {_EXPECTED}")
    return share
