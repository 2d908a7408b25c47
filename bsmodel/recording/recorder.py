# SPDX-License-Identifier: Apache-2.0
"""Watches a training step run on pretended device tensors and writes down every allocation and release."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from bsmodel.errors import UntraceableError
from bsmodel.recording import leftovers
from bsmodel.recording.allocation import Allocation, unwrapped
from bsmodel.recording.assumed import ALL, Assumed, all_selected
from bsmodel.recording.chance import drawn
from bsmodel.recording.counts import Count, count, rows_of
from bsmodel.recording.cuda_like import collectives, composites, kernels, offload, refusals, shapes, sparse, wrappers
from bsmodel.recording.cuda_like.buffers import NO_BUFFERS, Buffer, Kernel
from bsmodel.recording.cuda_like.engine import SUMS, in_backward, is_renumbered, keeps_gradient, sums_in_place
from bsmodel.recording.cuda_like.machine import MAIN, current, made, node_stream, summing_stream
from bsmodel.recording.cuda_like.pretence import META
from bsmodel.recording.cuda_like.recurrent import Recurrent, recurrent_layers
from bsmodel.recording.cuda_like.work import Work, work_of
from bsmodel.recording.frames import calling_line
from bsmodel.recording.lent import Lent
from bsmodel.recording.said import Said
from bsmodel.recording.values import Values
from bsmodel.tape import Row

aten = torch.ops.aten
_LONG = 50  # tensors: operations over lists of tensors, which do not come twice
_READS = (aten._local_scalar_dense.default, aten.is_nonzero.default)
_QUESTIONS = (aten.allclose.default, aten.equal.default)


@dataclass(frozen=True, slots=True)
class _Known:
    """What an operator does for arguments of one signature: a network repeats itself."""

    layout: Any  # of `shapes.layout`
    kernel: Kernel
    work: Work | None
    counted: Count | None


class Recorder(TorchDispatchMode):
    """Events of the device memory: `k` allocates allocation number k, `~k` releases it."""

    def __init__(self, capability: tuple[int, int], assumed: Assumed = Assumed()) -> None:  # noqa: B008 - frozen
        super().__init__()
        self.capability = capability
        self.values = Values(assumed)
        self.allocations: list[Allocation] = []
        self.events: list[int] = []
        self.reached: list[int] = []  # by event: how many of `rows` come before it
        self.rows: list[Row] = []
        self.said: list[Said] = []
        self.begun: dict[int, int] = {}  # of `said`, by the storage that it writes into
        self.recurrent: dict[str, Recurrent] = {}
        self.uncounted_operators: set[str] = set()
        self._known: dict[Any, _Known] = {}
        self.phase = "step"
        self.uncounted: set[str] = set()
        self.workspaces: set[str] = set()
        self._streams = {MAIN.stream_id: 0}  # by what torch calls them: numbers in the order of their first allocation
        self.lent = Lent(self.allocations, self.events, self._streams, self._number)
        self._live: dict[int, tuple[int, weakref.ref[Any]]] = {}  # by storage: its allocation, and what tells of its death
        self._modules: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()
        self._stack: list[str] = []
        self._made: dict[int, tuple[str, str | None]] = {}  # by autograd node: the module and line of the forward pass that made it
        self.left_at: str | None = None  # where a parameter was last brought to the host
        self.entered = False  # whether the model's forward pass has been called

    # -- where we are -------------------------------------------------------------------------------------------------------------
    @contextmanager
    def following(self, model: torch.nn.Module) -> Iterator[None]:
        """Name the module each operation belongs to, in forward and in backward."""
        self._modules = weakref.WeakKeyDictionary({module: unwrapped(name) for name, module in model.named_modules()})
        self.recurrent = recurrent_layers(model)
        if any(isinstance(module, torch.nn.RNNBase) for module in model.modules()):
            self.uncounted.add("workspace and reserve of cuDNN's RNNs, which are recorded as PyTorch's own kernels")

        def enter(module: torch.nn.Module, args: Any) -> None:
            self.entered = self.entered or module in self._modules
            self._stack.append(self._modules.get(module, type(module).__name__))

        def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
            self._stack.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _where(self) -> tuple[str, str]:
        """The phase and the module of the operation in progress."""
        if self._stack:
            return ("backward" if in_backward() else "forward"), self._stack[-1]
        if not in_backward():
            return self.phase, ""
        return "backward", self._origin()[0]

    def _origin(self) -> tuple[str, str | None]:
        """The module and line of the forward pass that made the node which backward has reached."""
        node: Any = torch._C._current_autograd_node()
        return ("", None) if node is None or is_renumbered(node) else self._made.get(node._sequence_nr(), ("", None))

    def place(self) -> str:
        """Where the operation in progress is, for an error: file, line and module."""
        line, (phase, module) = calling_line(), self._where()
        if line is None and phase == "backward":
            line, module = self._origin()[1], module or self._origin()[0]
            return f"the backward pass of {line or 'an unknown line'} (module {module or 'model'})"
        return f"{line or 'an unknown line'} (module {module or 'model'})"

    def module_at(self, line: str) -> str:
        """The module in whose forward pass a line has run."""
        return next((module for module, made_at in self._made.values() if made_at == line), "")

    # -- allocations --------------------------------------------------------------------------------------------------------------
    def allocate(self, size_bytes: int, operator: str, category: str | None = None, buffer: Buffer | None = None) -> int:
        """Write down an allocation and return its number."""
        phase, module = self._where()
        forward = phase == "forward" or (phase == "backward" and bool(self._stack))
        number = len(self.allocations)
        term = (buffer.formula, buffer.parameters, buffer.kind, buffer.excess_bytes) if buffer is not None else ("", (), "", 0)
        category = category or ("saved" if forward else "temporary")
        self.allocations.append(Allocation(size_bytes, operator, module, phase, category, "", *term, self._stream()))
        self._note(number)
        return number

    def _note(self, *events: int) -> None:
        self.events += events
        self.reached += [len(self.rows)] * len(events)

    def say(self, kind: str, size_bytes: int, ranks: int, stride: int, waits: bool) -> None:
        """Write down a collective of the stream in progress, which `waits` for it or goes on."""
        stream, number = current(), len(self.said)
        self.said.append(Said(kind, size_bytes, self._where()[0], len(self.rows) if stream is MAIN else stream.kernels, None, ranks, stride))
        if waits:
            stream.says(number)

    def joined(self, numbers: Iterable[int]) -> None:
        """The default stream waits for collectives."""
        for number in numbers:
            if self.said[number].before is None:
                self.said[number].before = len(self.rows)

    def _stream(self) -> int:
        return self._streams.setdefault(current().stream_id, len(self._streams))

    def release(self, *numbers: int) -> None:
        """Write down that allocations are given back."""
        self._note(*(~number for number in numbers))

    def watch(self, tensor: torch.Tensor, operator: str, category: str | None = None) -> int:
        """Follow the storage of a device tensor from now until it dies; a storage already followed is not counted again."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return self._live[key][0]
        number = self.allocate(storage.nbytes(), operator, category)

        def died(_: Any) -> None:
            self.release(self._live.pop(key)[0])

        self._live[key] = number, weakref.ref(storage, died)
        return number

    def resized(self, storage: torch.UntypedStorage, size_bytes: int) -> None:
        """Follow a storage that gives its memory back, or takes some again, and lives on."""
        if storage._cdata in self._live:
            before, alive = self._live[storage._cdata]
            self.release(before)
            self._live[storage._cdata] = self.allocate(size_bytes, "resize_", "gathered parameter"), alive

    def categorize(self, tensor: torch.Tensor, category: str, module: str) -> None:
        """Say what a followed tensor turned out to be, and whose it is."""
        tensor = tensor._values() if tensor.layout is torch.sparse_coo else tensor
        if (number := self._number(tensor)) is not None:
            self.allocations[number].category, self.allocations[number].owner = category, module

    def categorize_live(self, since: int, category: str) -> None:
        """Say what all that has been allocated since an event, and is still there, turned out to be."""
        released = {~event for event in self.events[since:] if event < 0}
        for number in self.events[since:]:
            if number >= 0 and number not in released and self.allocations[number].category != "workspace":
                self.allocations[number].category = category

    def to_device(self, tensor: torch.Tensor, operator: str, category: str | None = None) -> torch.Tensor:
        """A device tensor of the same sizes and dtype, counted; strides stay where they leave no gaps and no overlap (ATen/native/TensorConversions.cpp)."""
        with torch._C._DisableTorchDispatch():
            device_tensor = torch.empty_like(tensor, device=META)
        self.watch(device_tensor, operator, category)
        return device_tensor

    # -- every operation ----------------------------------------------------------------------------------------------------------
    def _number(self, tensor: Any) -> int | None:
        """The allocation behind a device tensor; None for what is none."""
        found = self._live.get(tensor.untyped_storage()._cdata) if isinstance(tensor, torch.Tensor) else None
        return None if found is None else found[0]

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor, or what is inside it, has been brought to the device."""
        return any(self._number(part) is not None for part in wrappers.parts(tensor))

    def follows(self, tensor: torch.Tensor) -> bool:
        """Whether a `meta` tensor is on the device: the others are on the host, made without data while the model was built."""
        while is_functorch_wrapped_tensor(tensor):  # of vmap
            tensor = get_unwrapped(tensor)
        if wrappers.is_wrapper(tensor):
            tensor = next(wrappers.parts(tensor))
        key = tensor.untyped_storage()._cdata
        if key in self._live:
            return True
        leftovers.refuse(key)
        return False

    def retire(self) -> None:
        """Leave word of what outlives the recording, for those that meet it again."""
        leftovers.leave((key, storage) for key, (_, alive) in self._live.items() if (storage := alive()) is not None)

    def _dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if wrappers.concerned(types):
            return wrappers.left(func, types, args, kwargs)
        with torch._C.DisableTorchFunction():  # from here on tensors show their true device
            kwargs = kwargs or {}
            given = shapes.tensors_in((*args, *kwargs.values()))
            if collectives.concerns(func):
                return collectives.run(func, args, self)
            if sparse.concerns(func, args, given):
                return sparse.run(func, args, kwargs, self, self.place)
            device = kwargs.get("device")
            host = [tensor for tensor in given if not tensor.is_meta or not self.follows(tensor)]
            if offload.packing() and func in offload.MADE and (device.type == "cpu" if device else len(host) == len(given)):
                return offload.on_host(func, args, kwargs)
            if len(host) == len(given) and (device is None or device.type != "meta"):
                return drawn(func, args, func(*args, **kwargs), self.values.decided)
            if func is aten.copy_.default and offload.packing() and not self.follows(args[0]):
                return args[0]
            if func in _READS:
                current().synchronize()
                return self.values.item(args[0])
            if func in _QUESTIONS:
                return self.values.truth()
            if func is aten._to_copy.default and device is not None and device.type == "cpu":
                return self._to_host(args[0], kwargs)
            if host and len(host) < len(given):
                refusals.mixed_devices(func, args, host)
            self.lent.give(given, stream := summing_stream(func, args))
            if func in SUMS and not kwargs and in_backward() and not self._stack and sums_in_place(func, args):
                self._note_work(_name(func), work_of(func, args, given, [args[0]], NO_BUFFERS, self.capability), None)
                return aten.alias.default(args[0])
            if (made_of := composites.composite(func)) is not None:
                self.uncounted |= composites.uncounted(func, given)
                with self:
                    return made_of(*args, **kwargs)
            with stream or contextlib.nullcontext():
                return self._by_known_masks(func, args, kwargs, given)

    def _by_known_masks(self, func: Any, args: Any, kwargs: Any, given: list[torch.Tensor]) -> Any:
        """An operator; masks become the indices that CUDA makes of them first (TensorIndexing, expandTensors)."""
        args = self.values.whole(func, args)
        for index in args[1] if func is aten.index.Tensor else ():
            self.values.recall(index, self._number(index))
        computed = func is not aten.index.Tensor or (self.values.distinct(args[0]) and all(map(self.values.knows, given)))
        counts = [] if computed else [self.values.selected(index) for index in args[1]]
        if all(selected is None for selected in counts):
            return self._run(func, args, kwargs, given)
        indices: list[Any] = []
        made = []
        for index, selected in zip(args[1], counts, strict=True):
            if selected is None:
                indices.append(index)
                continue
            made.append(self.allocate(8 * selected * index.dim(), "aten.nonzero.default"))
            indices += [torch.empty(selected, dtype=torch.long, device=META) for _ in range(index.dim())]
        output = self._run(func, (args[0], indices), kwargs, shapes.tensors_in((args[0], indices)))
        self.release(*made)
        return output

    def _run(self, func: Any, args: Any, kwargs: Any, given: list[torch.Tensor]) -> Any:
        self.lent.give(given, node_stream())
        value, because = self.values.computed(func, args, kwargs, given)
        if value is None and shapes.is_view(func):
            output, _ = self._shaped(func, args, kwargs, given, value)
            self._note_node()
            return output
        name = _name(func)
        signature = shapes.signature((args, kwargs)) if len(given) < _LONG else None
        known = None if signature is None else self._known.get((name, signature))
        layout = shapes.known(func, signature) if known is None else known.layout
        output, by_value = self._shaped(func, args, kwargs, given, value) if layout is None else (shapes.made(layout), False)
        tensors = shapes.on_device(func, output)
        if known is None:
            refusals.mixed_dtypes(func, args)
            kernel = kernels.kernel_of(func, args, self.capability)
            counted = count(func, args, tensors[0]) if tensors else None
            self.uncounted |= kernels.uncounted(func, args, self.capability)
            known = _Known(layout or shapes.layout(func, args, kwargs, output), kernel, work_of(func, args, given, tensors, kernel, self.capability), counted)
            if signature is not None and not by_value:
                self._known[name, signature] = known
                shapes.remember(func, signature, known.layout)
        held = self._allocate_all(name, known.kernel, tensors)
        self._note_work(name, known.work, known.counted)
        self.release(*reversed(held))
        self._note_node()
        self.values.keep(func, shapes.tensors_in((output,)), None if value is None else shapes.tensors_in((value,)), given, because)
        for tensor in tensors:
            self.values.remember(tensor, self._number(tensor))
        return output

    def _note_node(self) -> None:
        """The newest node of autograd's graph, if the operation in progress made it, belongs to the module in progress."""
        if self._stack or not in_backward():
            node = torch._C._autograd._get_sequence_nr() - 1
            if node not in self._made:
                self._made[node] = (self._stack[-1] if self._stack else "", calling_line())
                made(node)

    def _shaped(self, func: Any, args: Any, kwargs: Any, given: list[torch.Tensor], value: Any) -> tuple[Any, bool]:
        """The outputs of an operation, without data: by its shape function, or (True) by its value where only that tells the size."""
        try:
            return shapes.outputs(func, args, kwargs), False
        except (NotImplementedError, RuntimeError) as error:
            if value is not None:
                for tensor in given:
                    self.values.used(tensor)
                return tree_map(lambda v: self.to_device(v, str(func)) if isinstance(v, torch.Tensor) else v, value), True
            if (most := all_selected(func, args)) is not None:
                self.values.note(ALL)
                return most, True
            if isinstance(error, NotImplementedError) or "meta" in str(error).lower():
                raise UntraceableError(
                    f"{func} at {self.place()} gives an output whose size depends on tensor values, "
                    "or has no shape function; train on tensors of fixed size, compute sizes from shapes, or register one with torch.library"
                ) from error
            raise

    def _allocate_all(self, operator: str, kernel: Kernel, outputs: list[torch.Tensor]) -> list[int]:
        """Write down outputs and inner buffers in the order the kernel takes them; those buffers that it holds until it has run."""
        held: list[int] = []
        for position, tensor in enumerate((*outputs, None)):
            for buffer in kernel.buffers:
                if buffer.before == position or (tensor is None and buffer.before is None):
                    number = self.allocate(buffer.size_bytes, operator, "workspace", buffer)
                    if buffer.brief:
                        self.release(number)
                    else:
                        held.append(number)
            if tensor is not None:
                self.watch(tensor, operator)
                if position == 0:
                    self._ensure_workspaces(kernel)
        return held

    def _ensure_workspaces(self, kernel: Kernel) -> None:
        """The workspace of a library handle is allocated at its first use in a thread, and kept: backward runs in a thread of its own."""
        for handle in kernel.handles:
            stream = f", stream {self._stream()}" if self._stream() else ""
            name = f"{handle.name} ({'backward' if in_backward() else 'main'} thread{stream})"
            if name not in self.workspaces:
                self.workspaces.add(name)
                self.allocate(handle.size_bytes, name, "workspace")

    # -- what the device does ------------------------------------------------------------------------------------------------------
    def _note_work(self, operator: str, work: Work | None, counted: Count | None) -> None:
        """Write down what the operator computes and moves, a row for each matrix product in it."""
        if work is None:
            return
        phase, module = self._where()
        if phase == "backward":
            phase = "recompute" if self._stack else "gradient" if keeps_gradient() else "backward"
        if phase == "forward" and counted is None:
            self.uncounted_operators.add(operator)
        self.rows += rows_of(operator, module, phase, work, counted if phase == "forward" and counted else Count(0))

    def _to_host(self, tensor: torch.Tensor, kwargs: Any) -> torch.Tensor:
        if offload.packing():
            return offload.on_host(aten.empty_like.default, (tensor,), {"dtype": kwargs.get("dtype")})
        if self.allocations[self._live[tensor.untyped_storage()._cdata][0]].category == "parameter":
            self.left_at = calling_line()
        return self.values.on_host(tensor, kwargs.get("dtype") or tensor.dtype)


# Set from outside: defined in the class it would be wrapped in a guard against torch.compile, a tenth of the time of a recording.
Recorder.__torch_dispatch__ = Recorder._dispatch  # type: ignore[method-assign,assignment]

_name = functools.cache(str)
