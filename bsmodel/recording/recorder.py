# SPDX-License-Identifier: Apache-2.0
"""Watches a training step run on pretended device tensors and writes down every allocation and release."""

from __future__ import annotations

import functools
import math
import sys
import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from bsmodel.errors import UntraceableError
from bsmodel.recording.counts import Count, count
from bsmodel.recording.cuda_like import shapes
from bsmodel.recording.cuda_like.buffers import NO_BUFFERS, Buffer, Kernel
from bsmodel.recording.cuda_like.kernels import UNCOUNTED, kernel_of
from bsmodel.recording.cuda_like.pretence import META
from bsmodel.recording.cuda_like.work import Work, work_of
from bsmodel.tape import Row

aten = torch.ops.aten
_LONG = 50  # tensors: operations over lists of tensors, which do not come twice
_SUMS = frozenset((aten.add.Tensor, aten.scatter.src, aten.scatter.value, aten.scatter_add.default, aten.index_add.default, aten.index_put.default))
_READS = (aten._local_scalar_dense.default, aten.is_nonzero.default)
_VALUE_LIMIT = 1 << 20  # elements: integer and boolean device tensors up to this size keep their values, so that masks can be asked


@dataclass(slots=True)
class Allocation:
    """One storage on the device, or one buffer inside a kernel."""

    size_bytes: int
    operator: str
    module: str
    phase: str  # "forward", "backward" (recomputation included) or "step"
    category: str
    owner: str = ""  # the module of a parameter, and of its gradient and optimizer state
    formula: str = ""  # of `bsmodel.tape.workspaces`, for what comes on top of `size_bytes` and is no line in the batch
    parameters: tuple[int, ...] = ()
    excess_bytes: int | None = None  # how much larger it may be, where a library's choice is not known


@dataclass(frozen=True, slots=True)
class _Known:
    """What an operator does for arguments of one signature: a network repeats itself."""

    layout: Any  # of `shapes.layout`
    kernel: Kernel
    work: Work | None
    counted: Count | None


class Recorder(TorchDispatchMode):
    """Events of the device memory: `k` allocates allocation number k, `~k` releases it."""

    def __init__(self, capability: tuple[int, int]) -> None:
        super().__init__()
        self.capability = capability
        self.allocations: list[Allocation] = []
        self.events: list[int] = []
        self.rows: list[Row] = []
        self.uncounted_operators: set[str] = set()
        self._known: dict[Any, _Known] = {}
        self.phase = "step"
        self.uncounted: set[str] = set()
        self.workspaces: set[str] = set()
        self._live: dict[int, tuple[int, weakref.ref[Any]]] = {}  # by storage: its allocation, and what tells of its death
        self._modules: dict[int, str] = {}
        self._stack: list[str] = []
        self._module_of_node: dict[int, str] = {}
        self._values: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    # -- where we are -------------------------------------------------------------------------------------------------------------

    @contextmanager
    def following(self, model: torch.nn.Module) -> Iterator[None]:
        """Name the module each operation belongs to, in forward and in backward."""
        self._modules = {id(module): name for name, module in model.named_modules()}
        if any(isinstance(module, torch.nn.RNNBase) for module in model.modules()):
            self.uncounted.add("workspace and reserve of cuDNN's RNNs, which are recorded as PyTorch's own kernels")

        def enter(module: torch.nn.Module, args: Any) -> None:
            self._stack.append(self._modules.get(id(module), type(module).__name__))

        def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
            self._stack.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @property
    def in_backward(self) -> bool:
        return torch._C._current_graph_task_id() != -1

    def _where(self) -> tuple[str, str]:
        """The phase and the module of the operation in progress."""
        if self._stack:
            return ("backward" if self.in_backward else "forward"), self._stack[-1]
        if not self.in_backward:
            return self.phase, ""
        node: Any = torch._C._current_autograd_node()
        return "backward", "" if node is None else self._module_of_node.get(node._sequence_nr(), "")

    # -- allocations --------------------------------------------------------------------------------------------------------------

    def allocate(self, size_bytes: int, operator: str, category: str | None = None, buffer: Buffer | None = None) -> int:
        """Write down an allocation and return its number."""
        phase, module = self._where()
        forward = phase == "forward" or (phase == "backward" and bool(self._stack))
        number = len(self.allocations)
        term = (buffer.formula, buffer.parameters, buffer.excess_bytes) if buffer is not None else ("", (), None)
        self.allocations.append(Allocation(size_bytes, operator, module, phase, category or ("saved" if forward else "temporary"), "", *term))
        self.events.append(number)
        return number

    def release(self, number: int) -> None:
        """Write down that an allocation is given back."""
        self.events.append(~number)

    def watch(self, tensor: torch.Tensor, operator: str, category: str | None = None) -> int:
        """Follow the storage of a device tensor from now until it dies; a storage already followed is not counted again."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return self._live[key][0]
        number = self.allocate(storage.nbytes(), operator, category)

        def died(_: Any) -> None:
            del self._live[key]
            self.release(number)

        self._live[key] = number, weakref.ref(storage, died)
        return number

    def categorize(self, tensor: torch.Tensor, category: str, module: str) -> None:
        """Say what a followed tensor turned out to be, and whose it is."""
        found = self._live.get(tensor.untyped_storage()._cdata)
        if found is not None:
            self.allocations[found[0]].category = category
            self.allocations[found[0]].owner = module

    def to_device(self, tensor: torch.Tensor, operator: str, category: str | None = None) -> torch.Tensor:
        """A device tensor of the same sizes, strides and dtype, counted; the values are kept where they may be asked."""
        with torch._C._DisableTorchDispatch():
            device_tensor = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=META)
        self.watch(device_tensor, operator, category)
        return device_tensor

    # -- every operation ----------------------------------------------------------------------------------------------------------

    def _dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # from here on tensors show their true device
            kwargs = kwargs or {}
            given = tensors_in((*args, *kwargs.values()))
            device = kwargs.get("device")
            if not any(tensor.is_meta for tensor in given) and (device is None or device.type != "meta"):
                return func(*args, **kwargs)
            if func in _READS:
                return self._read(args[0])
            if func is aten._to_copy.default and device is not None and device.type == "cpu":
                return self._to_host(args[0], kwargs)
            if func in _SUMS and not kwargs and self.in_backward and not self._stack and _sums_in_place(func, args):
                self._note_work(_name(func), work_of(func, args, given, [args[0]], NO_BUFFERS, self.capability), None)
                return aten.alias.default(args[0])
            return self._run(func, args, kwargs, given)

    def _run(self, func: Any, args: Any, kwargs: Any, given: list[torch.Tensor]) -> Any:
        value = self._computed_value(func, args, kwargs, given)
        if value is None and shapes.is_view(func):
            output = self._shaped(func, args, kwargs, value)
            self._note_node()
            return output
        name = _name(func)
        signature = shapes.signature((args, kwargs)) if len(given) < _LONG else None
        known = None if signature is None else self._known.get((name, signature))
        layout = shapes.known(func, signature) if known is None else known.layout
        output = self._shaped(func, args, kwargs, value) if layout is None else shapes.made(layout)
        tensors = _device_tensors(func, output)
        if known is None:
            kernel = kernel_of(func, args, self.capability)
            counted = count(func, args, tensors[0]) if tensors else None
            if func in UNCOUNTED:
                self.uncounted.add(UNCOUNTED[func])
            known = _Known(layout or shapes.layout(func, args, kwargs, output), kernel, work_of(func, args, given, tensors, kernel, self.capability), counted)
            if signature is not None:
                self._known[name, signature] = known
                shapes.remember(func, signature, known.layout)
        self._allocate_all(name, known.kernel, tensors)
        self._note_work(name, known.work, known.counted)
        self._note_node()
        self._keep_value(func, output, value, given)
        return output

    def _note_node(self) -> None:
        """The newest node of autograd's graph, if the operation in progress made it, belongs to the module in progress."""
        if self._stack or not self.in_backward:
            self._module_of_node.setdefault(torch._C._autograd._get_sequence_nr() - 1, self._stack[-1] if self._stack else "")

    def _shaped(self, func: Any, args: Any, kwargs: Any, value: Any) -> Any:
        """The outputs of an operation, without data: by its shape function, or by its value where only that tells the size."""
        try:
            return shapes.outputs(func, args, kwargs)
        except (NotImplementedError, RuntimeError) as error:
            if value is not None:
                return tree_map(lambda v: self.to_device(v, str(func)) if isinstance(v, torch.Tensor) else v, value)
            if isinstance(error, NotImplementedError) or "meta" in str(error).lower():
                raise UntraceableError(
                    f"{func} at {_user_line()} (module {self._where()[1] or 'model'}) gives an output whose size depends on tensor values, "
                    "or has no shape function; train on tensors of fixed size, compute sizes from shapes, or register one with torch.library"
                ) from error
            raise

    def _allocate_all(self, operator: str, kernel: Kernel, outputs: list[torch.Tensor]) -> None:
        """Write down outputs and inner buffers in the order the kernel takes them."""
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
        for number in reversed(held):
            self.release(number)

    def _ensure_workspaces(self, kernel: Kernel) -> None:
        """The workspace of a library handle is allocated at its first use in a thread, and kept: backward runs in a thread of its own."""
        for handle in kernel.handles:
            name = f"{handle.name} ({'backward' if self.in_backward else 'main'} thread)"
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
            phase = "recompute" if self._stack else "gradient" if _keeps_gradient() else "backward"
        if phase == "forward" and counted is None:
            self.uncounted_operators.add(operator)
        self.rows += _rows(operator, module, phase, work, counted if phase == "forward" and counted else Count(0))

    # -- values of small integer tensors -------------------------------------------------------------------------------------------

    def set_value(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Remember what a device tensor holds, where it is small enough to be asked about."""
        if value.numel() <= (_VALUE_LIMIT if not value.is_floating_point() else 4096):
            self._values[tensor] = value

    def _computed_value(self, func: Any, args: Any, kwargs: Any, given: list[torch.Tensor]) -> Any:
        if func is aten.copy_.default or any(t.numel() > _VALUE_LIMIT or (t.is_meta and t not in self._values) for t in given):
            return None
        if not given and not func._schema.name.startswith(("aten::arange", "aten::full", "aten::ones", "aten::zeros", "aten::scalar_tensor")):
            return None
        host = torch.device("cpu")

        def replace(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor) and leaf.is_meta:
                return self._values[leaf]
            return host if isinstance(leaf, torch.device) else leaf

        if not given and _numel_of_factory(args) > _VALUE_LIMIT:
            return None
        args, kwargs = tree_map(replace, (args, kwargs))
        try:
            return func(*args, **kwargs)
        except (RuntimeError, NotImplementedError):
            return None

    def _keep_value(self, func: Any, output: Any, value: Any, given: list[torch.Tensor]) -> None:
        if value is None:
            if func._schema.is_mutable:
                for tensor in given:
                    self._values.pop(tensor, None)
            return
        for tensor, known in zip(tensors_in((output,)), tensors_in((value,)), strict=True):
            self.set_value(tensor, known)

    def _read(self, tensor: torch.Tensor) -> Any:
        value = self._values.get(tensor)
        if value is not None:
            return value.item()
        if self._stack:
            raise UntraceableError(
                f"the forward pass reads the value of a tensor at {_user_line()} (module {self._stack[-1] or 'model'}): "
                "a recording has no values; take that branch by a shape or a Python number instead"
            )
        return torch.zeros((), dtype=tensor.dtype).item()

    def _to_host(self, tensor: torch.Tensor, kwargs: Any) -> torch.Tensor:
        value = self._values.get(tensor)
        dtype = kwargs.get("dtype") or tensor.dtype
        if value is None and self._stack:
            self._read(tensor)
        return value.to(dtype) if value is not None else torch.zeros(tensor.size(), dtype=dtype)


def _keeps_gradient() -> bool:
    """Whether the engine is at the end of its graph, where a gradient is kept or added to the one that is there."""
    node: Any = torch._C._current_autograd_node()
    return node is not None and node.name() == "torch::autograd::AccumulateGrad"


def _rows(operator: str, module: str, phase: str, work: Work, counted: Count) -> list[Row]:
    products = work.products or ((0, 0, 0, 0),)
    shared = (work.moved_bytes / len(products), work.launches / len(products), counted.flops / len(products), counted.activations / len(products))
    return [Row(operator, module, phase, work.kind, work.dtype, (*product, *shared)) for product in products]


def tensors_in(values: Any) -> list[torch.Tensor]:
    """The tensors among the arguments of an operator in order, lists and tuples of them opened."""
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(tensors_in(value))
    return found


def _sums_in_place(func: Any, args: Any) -> bool:
    """Whether autograd writes a sum, or what it scatters, into the first operand: a whole tensor that nobody else holds.

    Under a dispatch mode the engine, and the formulas of gathers and of maxima, never do so (torch/csrc/autograd/input_buffer.cpp,
    can_accumulate_inplace; FunctionsManual.cpp, areAnyTensorSubclassLike).
    """
    total = args[0]
    if func is aten.add.Tensor and (not isinstance(args[1], torch.Tensor) or total.shape != args[1].shape or total.dtype is not args[1].dtype):
        return False
    storage = total.untyped_storage()
    whole = storage.nbytes() == total.numel() * total.element_size()
    return whole and torch._C._storage_Use_Count(storage._cdata) <= 2  # the tensor itself, and this function's view of its storage


# Set from outside: defined in the class it would be wrapped in a guard against torch.compile, a tenth of the time of a recording.
Recorder.__torch_dispatch__ = Recorder._dispatch  # type: ignore[method-assign,assignment]

_name = functools.cache(str)


def _device_tensors(func: Any, output: Any) -> list[torch.Tensor]:
    """Device tensors among the outputs in the order CUDA allocates them: dropout makes its mask first."""
    tensors = [tensor for tensor in tensors_in((output,)) if tensor.is_meta]
    return tensors[::-1] if func is aten.native_dropout.default else tensors


def _numel_of_factory(args: Any) -> float:
    """Elements of what arange, full, ones, zeros or scalar_tensor make: by their sizes, or by the numbers a range runs between."""
    if args and isinstance(args[0], (list, tuple)):
        return math.prod(args[0])
    return max((abs(leaf) for leaf in args if isinstance(leaf, (int, float)) and math.isfinite(leaf)), default=1)


def _foreign(filename: str) -> bool:
    """Whether a file belongs neither to torch nor to this package."""
    return not filename.startswith((torch.__path__[0], str(Path(__file__).parent.parent), "<"))


def user_line(error: BaseException) -> str:
    """File and line of the user's code, or of the library, that an error comes from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _foreign(frame.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown line"


def _user_line() -> str:
    """File and line of the nearest running frame that belongs neither to torch nor to this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and not _foreign(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
