# SPDX-License-Identifier: Apache-2.0
"""From a tape to seconds: the time of its kernels on a card, of a whole step, and the batch from which more gains little."""

from bsmodel.timing.collectives import Group, bus_share, group_of, seconds
from bsmodel.timing.kernels import KINDS
from bsmodel.timing.memory_timeline import TORCH_CATEGORIES, MemoryTimeline, event_seconds, memory_timeline
from bsmodel.timing.schedule import nodes, per_node
from bsmodel.timing.step import StepTime, curve, knee, step_time
from bsmodel.timing.timeline import Event, Timeline, timeline

__all__ = (
    "KINDS",
    "TORCH_CATEGORIES",
    "Event",
    "Group",
    "MemoryTimeline",
    "StepTime",
    "Timeline",
    "bus_share",
    "curve",
    "event_seconds",
    "group_of",
    "knee",
    "memory_timeline",
    "nodes",
    "per_node",
    "seconds",
    "step_time",
    "timeline",
)
