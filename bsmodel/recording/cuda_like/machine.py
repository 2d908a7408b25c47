# SPDX-License-Identifier: Apache-2.0
"""What `torch.cuda` answers of a machine that has the card: properties, statistics, streams, events, tensor types. Nothing of it runs."""

from __future__ import annotations

import collections
import contextlib
import itertools
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from bsmodel.hardware import Gpu

LEAF = (1 << 64) - 1  # the number of nodes that accumulate a gradient


class Properties:
    """What `torch.cuda.get_device_properties` tells of the pretended device."""

    def __init__(self, gpu: Gpu) -> None:
        self.name, self.total_memory = gpu.name, gpu.memory_bytes
        self.major, self.minor = gpu.capability
        self.multi_processor_count = gpu.sm_count


class Event:
    """A moment on a stream, which has always come: what was begun there until then."""

    def __init__(self, *options: Any, **named: Any) -> None:
        """Takes what `torch.cuda.Event` takes."""
        self.kernels, self.said, self.reached = 0, frozenset[int](), dict[int, int]()

    def record(self, stream: Any = None) -> None:
        """The moment is now."""
        self.kernels, self.said, self.reached = (stream or current()).begun()

    def wait(self, stream: Any = None) -> None:
        """The stream goes on when the moment has come."""
        (stream or current()).wait_event(self)

    def synchronize(self) -> None:
        """The host, and what it does next, goes on when the moment has come."""
        current().wait_event(self)
        _watch.waited(self.reached)

    def query(self) -> bool:
        """It has come."""
        return True

    def elapsed_time(self, end: Any) -> float:
        """One millisecond: nobody knows how long anything takes, and who divides by it goes on."""
        return 1.0


class Stream:
    """A queue of kernels, which is always empty; as a context, the one that is entered."""

    device = torch.device("cuda", 0)
    current: Stream | None  # the one that is entered, of the whole process as a device is; None where autograd's engine decides

    def __init__(self, *options: Any, **named: Any) -> None:
        """Takes what `torch.cuda.Stream` takes."""
        self.cuda_stream = self.stream_id = next(_NUMBERS)
        self._left: list[Stream | None] = []
        self.kernels, self.said = 0, frozenset[int]()  # of the default stream, and collectives, that are done when it goes on
        self.reached: dict[int, int] = {}  # by other streams: how many events of the recording they are through with then

    def begun(self) -> tuple[int, frozenset[int], dict[int, int]]:
        """How many kernels of the default stream are done when all that has been asked of this one is, which collectives, and how far all streams are."""
        return (_watch.kernels() if self is MAIN else self.kernels), self.said, {**self.reached, self.stream_id: _watch.events()}

    def says(self, collective: int) -> None:
        """It begins a collective, and goes on when that is done."""
        self._join(frozenset((collective,)))

    def record_event(self, event: Any = None) -> Any:
        """An event of this stream."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_stream(self, stream: Any) -> None:
        """It goes on when all is done that has been asked of the other."""
        self._go_on_after(*stream.begun())

    def wait_event(self, event: Any) -> None:
        """It goes on when the moment has come."""
        self._go_on_after(event.kernels, event.said, event.reached)

    def _go_on_after(self, kernels: int, said: frozenset[int], reached: dict[int, int]) -> None:
        self.kernels = max(self.kernels, kernels)
        self.reached = {stream: max(self.reached.get(stream, 0), reached.get(stream, 0)) for stream in {**self.reached, **reached}}
        self._join(said)

    def _join(self, said: frozenset[int]) -> None:
        if self is MAIN:
            _watch.joined(said - self.said)
        self.said |= said

    def synchronize(self) -> None:
        """The host goes on when all is done."""
        _watch.waited(self.begun()[2])

    def query(self) -> bool:
        """All is done."""
        return True

    def __enter__(self) -> Stream:
        self._left.append(Stream.current)
        Stream.current = self
        return self

    def __exit__(self, *_: object) -> None:
        Stream.current = self._left.pop()


_NUMBERS = itertools.count()
MAIN = Stream()
Stream.current = MAIN


class Watch(NamedTuple):
    """How far a recording is, and who is told of what is waited for."""

    kernels: Callable[[], int] = int  # how many the default stream has been asked for
    events: Callable[[], int] = int  # how many allocations and releases there have been
    joined: Callable[[frozenset[int]], object] = len  # told of collectives that the default stream waits for
    waited: Callable[[dict[int, int]], object] = len  # told how far streams are when the host has waited for one


_watch = Watch()
_made_on: dict[int, Stream] = {}  # by its number: the stream in which a node of autograd's graph was made, where that is not the default one
_last = MAIN  # that of the node that the engine was seen in last


@contextlib.contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Within this context streams know how far a recording is, and somebody is told when they are waited for."""
    global _watch
    before, MAIN.said, MAIN.reached = _watch, frozenset(), {}
    _watch = watch
    _made_on.clear()
    try:
        yield
    finally:
        _watch = before


def current() -> Stream:
    """The stream that is entered, or else the one in which autograd's engine runs a node: that of the forward pass that made it.

    A node that keeps a gradient was made together with the one that gives it (torch/csrc/autograd/engine.cpp, evaluate_function).
    """
    global _last
    if Stream.current is not None:
        return Stream.current
    node: Any = torch._C._current_autograd_node()
    if node is None:
        return MAIN
    if (number := node._sequence_nr()) != LEAF:
        _last = _made_on.get(number, MAIN)
    return _last


def node_stream() -> Stream | None:
    """The stream in which autograd's engine runs a node, where that is not the default one.

    What others that ran in the default one give to it is lent to its own (torch/csrc/autograd/input_buffer.cpp).
    """
    stream = current() if Stream.current is None and _made_on else MAIN
    return None if stream is MAIN else stream


def summing_stream(func: Any, args: Any) -> Stream | None:
    """The stream in which the engine adds what several nodes give to one: that one's, where it is not the default one."""
    if func is not torch.ops.aten.add.Tensor or Stream.current is not None or not _made_on:
        return None
    node: Any = torch._C._current_autograd_node()
    for given_to, index in () if node is None else node.next_functions:
        stream = None if given_to is None else _made_on.get(given_to._sequence_nr())
        if stream is not None and tuple(given_to._input_metadata[index].shape) == tuple(args[0].shape):
            return stream
    return None


def made(node: int) -> None:
    """A node of this number is made by the stream in progress."""
    if (stream := current()) is not MAIN:
        _made_on[node] = stream


@contextlib.contextmanager
def chosen_by_engine() -> Iterator[None]:
    """Within this context a backward pass runs; the default stream goes on when those are done in which its nodes ran."""
    global _last
    before, Stream.current, _last = Stream.current, None, MAIN
    try:
        yield
    finally:
        Stream.current = before
        for stream in set(_made_on.values()):
            current().wait_stream(stream)


class _TensorType(type):
    """The type of `torch.cuda.FloatTensor` and its like: an instance is a tensor of that dtype on the device."""

    dtype: torch.dtype

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, torch.Tensor) and instance.is_cuda and instance.dtype is cls.dtype

    def __call__(cls, *sizes: Any, **named: Any) -> Any:
        given = sizes[0] if len(sizes) == 1 else None
        if isinstance(given, torch.Tensor):
            return given.to("cuda", cls.dtype)
        if isinstance(given, (list, tuple)) and not isinstance(given, torch.Size):
            return torch.tensor(given, dtype=cls.dtype, device="cuda")
        return torch.empty(*sizes, dtype=cls.dtype, device="cuda")


_TYPES = {
    "FloatTensor": torch.float32,
    "DoubleTensor": torch.float64,
    "HalfTensor": torch.float16,
    "BFloat16Tensor": torch.bfloat16,
    "LongTensor": torch.int64,
    "IntTensor": torch.int32,
    "ShortTensor": torch.int16,
    "CharTensor": torch.int8,
    "ByteTensor": torch.uint8,
    "BoolTensor": torch.bool,
}


def dtype_of(tensor_type: Any) -> torch.dtype | None:
    """The dtype that `torch.cuda.FloatTensor`, or its name, stands for; None for any other type."""
    if isinstance(tensor_type, str) and tensor_type.startswith("torch.cuda."):
        return _TYPES.get(tensor_type.removeprefix("torch.cuda."))
    return tensor_type.dtype if isinstance(tensor_type, _TensorType) else None


_SILENT = """
    synchronize empty_cache set_device init ipc_collect set_per_process_memory_fraction reset_peak_memory_stats reset_max_memory_allocated
    reset_max_memory_cached reset_accumulated_memory_stats set_rng_state set_rng_state_all seed seed_all
""".split()
_ZERO = ("initial_seed", "memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")


def answers(gpu: Gpu) -> dict[str, Any]:
    """What stands in `torch.cuda` by its name, for this card."""

    def entered(stream: Any) -> Any:
        return contextlib.nullcontext() if stream is None else stream

    def become(stream: Any) -> None:
        Stream.current = stream or MAIN

    return {
        **{name: partial(_nothing) for name in _SILENT},  # each its own: torch's compiler, if it is imported now, tells functions apart by identity
        **{name: partial(_zero) for name in _ZERO},
        **_properties(gpu),
        "memory_stats": lambda device=None: collections.defaultdict(int),
        "memory_summary": lambda device=None, abbreviated=False: "",
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "Stream": Stream,
        "Event": Event,
        "stream": entered,
        "set_stream": become,
        "current_stream": lambda device=None: current(),
        "default_stream": lambda device=None: MAIN,
        "is_current_stream_capturing": lambda: False,
        "nvtx": types.SimpleNamespace(range_push=_nothing, range_pop=_nothing, mark=_nothing, range=_Device),
        **{name: _TensorType(name, (), {"dtype": dtype}) for name, dtype in _TYPES.items()},
    }


def _zero(device: Any = None) -> int:
    return 0


def _nothing(*options: Any, **named: Any) -> None:
    """Takes anything and does nothing."""


def _properties(gpu: Gpu) -> dict[str, Any]:
    capability, properties = gpu.capability, Properties(gpu)
    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "device": _Device,
        "get_device_capability": lambda device=None: capability,
        "get_device_name": lambda device=None: gpu.name,
        "get_device_properties": lambda device=None: properties,
        "get_arch_list": lambda: [f"sm_{capability[0]}{capability[1]}"],
        "is_bf16_supported": lambda including_emulation=True: including_emulation or capability >= (8, 0),
        "mem_get_info": lambda device=None: (gpu.memory_bytes, gpu.memory_bytes),
    }


class _Device:
    """`torch.cuda.device(0)` and a named range: contexts in which all is as before."""

    def __init__(self, *options: Any, **named: Any) -> None:
        """Takes what they take."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass
