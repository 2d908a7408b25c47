# SPDX-License-Identifier: Apache-2.0
"""What the CUDA runtime takes of a card beside what a program allocates, and the times between kernels: `runtime.toml`."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

from pydantic import Field

from bsmodel.hardware.rows import Count, HardwareRow, Rate, Source, catalogue_folder, read

# Resident threads per multiprocessor by compute capability (CUDA C programming guide, technical specifications table;
# NVIDIA/cccl, cuda/__device/arch_traits.h); 2048 elsewhere.
_THREADS_PER_SM = {"7.5": 1024, "8.6": 1536, "8.7": 1536, "8.9": 1536, "11.0": 1536, "12.0": 1536, "12.1": 1536}


class Context(NamedTuple):
    """What a training process takes of a card beside its allocator, in bytes: lowest, usual and highest."""

    low_bytes: int
    usual_bytes: int
    high_bytes: int

    def with_(self, other: Context) -> Context:
        """Both."""
        return Context(self.low_bytes + other.low_bytes, self.usual_bytes + other.usual_bytes, self.high_bytes + other.high_bytes)


class Kernels(HardwareRow):
    """Kernels of torch and its libraries that a training process has loaded."""

    loading: Literal["lazy", "eager"]
    """`lazy`: as they are called, CUDA 11.7 (torch 1.13) and later; `eager`: all at once, before."""
    capabilities: tuple[str, ...] = Field(default=(), strict=False)
    """The compute capabilities it holds for; those that no other row names where there is none."""
    low_bytes: int = Field(ge=0)
    """One process in ten has less."""
    usual_bytes: Count
    """The median."""
    high_bytes: Count
    """One process in ten has more."""


class Communicator(HardwareRow):
    """Channels that NCCL opens between a card and its two neighbours in a ring."""

    interconnects: tuple[str, ...] = Field(default=(), strict=False)
    """Beginnings of the interconnects it holds for; those that no other row names where there is none."""
    low_channels: Count
    """The fewest."""
    usual_channels: Count
    """As many as it opens by itself."""
    high_channels: Count
    """The most."""


class Runtime(HardwareRow):
    """What the CUDA runtime takes from a card before a program has allocated anything."""

    thread_bytes: Count
    """CUDA context: local memory of each thread that fits on the card at once, `sm_count` times the threads of a multiprocessor."""
    kernels: tuple[Kernels, ...] = Field(strict=False)
    """What comes on top once a step has been trained."""
    context_bytes: Count
    """CUDA context with kernels of a card whose `sm_count` is not known."""
    context_high_bytes: Count
    """The most that it may be on such a card."""
    kernel_seconds: Rate
    """Time from one kernel to the next when each has next to nothing to do."""
    launch_seconds: Rate
    """Time the host needs for one kernel of an eager PyTorch program."""
    launch_seconds_low: Rate
    """The same on a fast host, with little Python around it."""
    launch_seconds_high: Rate
    """The same on a slow host."""
    channel_bytes: Count
    """NCCL's buffers for one channel to one peer, at both ends."""
    communicators: tuple[Communicator, ...] = Field(strict=False)
    """How many channels it opens."""
    sources: tuple[Source, ...] = Field(strict=False)
    """Provenance of the figures above."""

    def context(self, sm_count: int | None, capability: str, loading: Literal["lazy", "eager"] = "lazy") -> Context:
        """What a training process takes of a card beside its allocator: `sm_count threads_per_sm thread_bytes + kernels`.

        Within 5 % of seven bare contexts from 34 to 188 multiprocessors.
        """
        if sm_count is None:
            return Context(self.context_bytes, self.context_bytes, self.context_high_bytes)
        rows = [row for row in self.kernels if row.loading == loading]
        loaded = next((row for row in rows if capability in row.capabilities), None) or next(row for row in rows if not row.capabilities)
        bare_bytes = sm_count * threads_per_sm(capability) * self.thread_bytes
        return Context(bare_bytes + loaded.low_bytes, bare_bytes + loaded.usual_bytes, bare_bytes + loaded.high_bytes)

    def channels(self, interconnect: str | None) -> Communicator:
        """How many channels NCCL opens over a link."""
        named = next((row for row in self.communicators if row.interconnects and (interconnect or "").startswith(row.interconnects)), None)
        return named or next(row for row in self.communicators if not row.interconnects)

    def communicator(self, interconnect: str | None) -> Context:
        """What NCCL takes of a card that works with others: `channels x 2 peers x channel_bytes`."""
        row = self.channels(interconnect)
        return Context(*(2 * self.channel_bytes * channels for channels in (row.low_channels, row.usual_channels, row.high_channels)))


def threads_per_sm(capability: str) -> int:
    """Threads that a multiprocessor of this compute capability holds at once."""
    return _THREADS_PER_SM.get(capability, 2048)


@functools.cache
def runtime() -> Runtime:
    """The runtime's own memory, with provenance."""
    return read(Runtime, catalogue_folder() / "runtime.toml")
