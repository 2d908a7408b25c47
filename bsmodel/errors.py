# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a question, each in one clear line."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable

_SHOWN = 24  # names, where none is near: what can be asked about is more than a line holds


class BsmodelError(ValueError):
    """Base of every error a user can cause: the message is one line that says what was wrong and what to do."""


class UnknownNameError(BsmodelError):
    """A GPU, model, optimizer or precision that is in no table."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        choices = sorted(known)
        folded = {choice.lower(): choice for choice in choices}
        nearest = [folded[match] for match in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.4)]
        more = f" and {len(choices) - _SHOWN} more" if len(choices) > _SHOWN else ""
        hint = f"nearest: {', '.join(nearest)}" if nearest else f"known: {', '.join(choices[:_SHOWN])}{more}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")
        self.nearest = tuple(nearest)

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (str(self), self.nearest)


def _restored(message: str, nearest: tuple[str, ...]) -> UnknownNameError:
    """An error that comes from another process."""
    error = UnknownNameError.__new__(UnknownNameError, message)
    error.nearest = nearest
    return error


class InvalidInputError(BsmodelError):
    """A value outside its range, or a file that does not follow its schema."""


class TooLongError(InvalidInputError):
    """A length that a model has no positions for; `most` is how many it has."""

    def __init__(self, length: int, most: int) -> None:
        super().__init__(f"seq-len {length} is beyond the model's {most} positions; give at most that")
        self.length, self.most = length, most

    def __reduce__(self) -> tuple[object, ...]:
        return TooLongError, (self.length, self.most)


class UntraceableError(BsmodelError):
    """A training step that cannot be recorded, or whose sizes are no polynomials in the batch, of samples and of pairs of samples."""


class UnreachableTargetError(InvalidInputError):
    """A target batch that needs accumulation where its gradients leave no room for a sample; an `InvalidInputError`."""


class InternalError(RuntimeError):
    """A defect of this package, in one line; `where` is the traceback as text, for it may come from another process."""

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(f"internal error: {what}; this is a bug of bsmodel, --debug shows where")
        self.what, self.where = what, where

    def __reduce__(self) -> tuple[object, ...]:
        return InternalError, (self.what, self.where)

    @staticmethod
    def of(error: BaseException) -> InternalError:
        """This error, once something has gone wrong that no question can be blamed for."""
        if isinstance(error, InternalError):
            return error
        message = (str(error).strip().splitlines() or [""])[0]
        return InternalError(f"{type(error).__name__}: {message}".removesuffix(": "), "".join(traceback.format_exception(error)))


for _error in (BsmodelError, UnknownNameError, InvalidInputError, UntraceableError):
    _error.__module__ = "bsmodel"
