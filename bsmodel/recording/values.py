# SPDX-License-Identifier: Apache-2.0
"""What device tensors hold, as far as it is known without data: small integers and booleans, so that masks can be asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from bsmodel.errors import UntraceableError
from bsmodel.recording.assumed import ALL, CHANCE, EVENLY, FINITE, Assumed, highest, of_numbers
from bsmodel.recording.computing import held, is_constant, like, makes_constants, on_host
from bsmodel.recording.frames import calling_line, reading_line, torch_line

_LIMIT = 1 << 22  # elements: device tensors up to this size keep their values, where those are known
_MOST_READS = 1000  # by one line: a loop that waits for a value would never end

aten = torch.ops.aten


class Values:
    """Values of the tensors of one recording, and what is assumed of those that nobody knows.

    `reads` are lines of the user's code, or of a library under it, that read a number nobody knows, and how often; `noted` are the lines at which
    something else was assumed, by what that is; `asked` are those that asked whether something is so, the last one last,
    and what they were answered.
    """

    def __init__(self, assumed: Assumed) -> None:
        self.assumed = assumed
        self.limit = _LIMIT
        self.samples = 1  # in the batch
        self.reads: dict[str, int] = {}
        self.noted: dict[str, dict[str, int]] = {}
        self.asked: dict[str, bool] = {}
        self._questions: dict[str, int] = {}
        self._confirming = False
        self._aside = False
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._masks: dict[int | None, torch.Tensor] = {}  # by allocation
        self._because: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # of what is assumed rather than known

    def confirm(self, limit: int) -> None:
        """From now on nothing more may be assumed: of larger batches fewer values are known, up to so many elements."""
        self.limit, self._confirming = limit, True

    def set(self, tensor: torch.Tensor, value: torch.Tensor, because: str = "") -> None:
        """Remember what a device tensor holds, where it is small enough to be asked about, or the same throughout."""
        if value.is_meta:
            return
        if self.limit < held(value) and is_constant(value):
            value = value.as_strided((1,) * value.dim(), (1,) * value.dim()).expand(value.size())
        if held(value) <= self.limit:
            self._known[tensor] = value
            if because:
                self._because[tensor] = because

    def copy(self, to: torch.Tensor, of: torch.Tensor) -> None:
        """One device tensor holds what another does, where that is known."""
        if of in self._known:
            self._known[to] = self._known[of]

    def computed(self, func: Any, args: Any, kwargs: Any, given: list[torch.Tensor]) -> tuple[Any, str]:
        """What an operator gives for known values, or None; and what is assumed of them."""
        if given and (made := like(func, args, kwargs, self.limit)) is not None:
            return made, ""
        if func is aten.copy_.default and self._first_known(*args[:2]):
            return self._known.get(args[1], args[1]).to(args[0].dtype, copy=True), ""
        if any(tensor.is_meta and tensor not in self._known for tensor in given):
            if (found := of_numbers(func, args)) is not None:
                return found, FINITE
            return highest(func, args, self.limit, self.assumed.crowded, self.samples), EVENLY
        if not given and not makes_constants(func, args, self.limit):
            return None, ""
        if func._schema.is_mutable and self._repeats(given[0]):
            value = self._known[given[0]].clone()
            self._forget(given[:1])
            self._known[given[0]] = value
        because = next((self._because[tensor] for tensor in given if tensor in self._because), "")
        return on_host(func, args, kwargs, self._known.__getitem__, self.limit), because

    def _first_known(self, to: torch.Tensor, of: torch.Tensor) -> bool:
        """Whether a copy makes known what a device tensor holds."""
        return to.is_meta and to not in self._known and to.size() == of.size() and (not of.is_meta or of in self._known) and held(of) <= self.limit

    def _repeats(self, tensor: torch.Tensor) -> bool:
        """Whether one element of a value in memory stands for several of the tensor's, or of those of a tensor it is part of."""
        return tensor.is_meta and self._known[tensor].untyped_storage().nbytes() < tensor.untyped_storage().nbytes()

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether a device tensor's values are known, or assumed."""
        return tensor in self._known

    def whole(self, func: Any, args: Any) -> Any:
        """The arguments of an operator; where it is assumed that the largest of a batch are all there are, those that give all."""
        if not self.assumed.whole or func is not aten.topk.default or args[0].dim() != 1:
            return args
        self.note(ALL)
        return args[0], args[0].numel(), *args[2:]

    def distinct(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor's values are known, each for itself: of what is the same throughout there may be more than anybody goes through."""
        value = self._known.get(tensor)
        return value is not None and held(value) == value.numel()

    def remember(self, tensor: torch.Tensor, allocation: int | None) -> None:
        """Keep what a mask holds with its allocation, too."""
        if tensor.dtype is torch.bool and allocation is not None and tensor in self._known:
            self._masks[allocation] = self._known[tensor]

    def recall(self, tensor: Any, allocation: int | None) -> None:
        """A mask that autograd saved comes back as another tensor, and holds what that did."""
        value = self._masks.get(allocation)
        if value is not None and tensor.dtype is torch.bool and tensor not in self._known and value.size() == tensor.size():
            self._known[tensor] = value

    def selected(self, index: Any) -> int | None:
        """How many elements a boolean mask selects: all where nobody knows; None for what is no mask."""
        if not isinstance(index, torch.Tensor) or not index.is_meta or index.dtype is not torch.bool:
            return None
        value = self._known.get(index)
        if value is None:
            self.note(ALL)
            return index.numel()
        self.used(index)
        return int(value.count_nonzero())

    def used(self, tensor: torch.Tensor) -> None:
        """Note what is assumed of a tensor's values, which decide what happens."""
        if tensor in self._because:
            self.note(self._because[tensor])

    def note(self, assumption: str) -> None:
        """Note that this is assumed at the line in progress."""
        lines = self.noted.get(assumption, {})
        self._take_down(lines, calling_line() or torch_line())
        self.noted[assumption] = lines

    def keep(self, func: Any, outputs: list[torch.Tensor], values: list[torch.Tensor] | None, given: list[torch.Tensor], because: str) -> None:
        """Note the outputs' values; without any, what an operator writes to is known no longer."""
        if values is None:
            if func._schema.is_mutable:
                self._forget(given)
            return
        for tensor, value in zip(outputs, values, strict=True):
            self.set(tensor, value if value.is_meta or value.size() == tensor.size() else value.expand(tensor.size()), because)

    def _forget(self, tensors: list[torch.Tensor]) -> None:
        """What these hold, and all that share their memory, is known no longer."""
        written = {tensor.untyped_storage()._cdata for tensor in tensors if tensor in self._known}
        for tensor in [known for known in self._known if known.untyped_storage()._cdata in written] if written else ():
            self._known.pop(tensor, None)

    def item(self, tensor: torch.Tensor) -> Any:
        """The value of a scalar."""
        value = self._known.get(tensor)
        if value is not None:
            self.used(tensor)
            return value.item()
        if tensor.dtype is torch.bool:
            return self.truth()
        return torch.full((), self._stand_in(), dtype=tensor.dtype).item()

    def truth(self) -> bool:
        """The answer to a question about values that nobody knows: no, unless another is assumed."""
        line = reading_line() or torch_line()
        answer = self.assumed.answers.get(line, False)
        self._read(self._questions, line)
        self.asked.pop(line, None)
        self.asked[line] = answer
        return answer

    def decided(self) -> float | None:
        """Where in its range a number lies that the step draws on the host; None while a batch is made, which is left to chance."""
        if self._aside:
            return None
        self.note(CHANCE)
        return self.assumed.chance

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within this context nothing is decided that is left to chance."""
        before, self._aside = self._aside, True
        try:
            yield
        finally:
            self._aside = before

    def on_host(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A copy of a tensor on the host."""
        value = self._known.get(tensor)
        if value is not None:
            self.used(tensor)
            return value.to(dtype)
        return torch.full(tensor.size(), self._stand_in(), dtype=dtype)

    def _stand_in(self) -> int:
        """What the line in progress reads in place of a value that nobody knows; torch itself reads 0."""
        line = reading_line()
        if line is None:
            return 0
        self._read(self.reads, line)
        return self.assumed.stand_in

    def _read(self, lines: dict[str, int], line: str) -> None:
        self._take_down(lines, line)
        if lines[line] > _MOST_READS:
            raise UntraceableError(f"the step reads values at {line} again and again: a recording has none, so a loop that waits for one never ends")

    def _take_down(self, lines: dict[str, int], line: str) -> None:
        if self._confirming and line not in lines:
            raise UntraceableError(f"the values at {line} are too many to be kept")
        lines[line] = lines.get(line, 0) + 1
