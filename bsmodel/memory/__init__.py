# SPDX-License-Identifier: Apache-2.0
"""From a tape to the closed form, the peak at one batch, and the largest batch that fits."""

from bsmodel.memory.allocator import CachingAllocator, OutOfMemoryError
from bsmodel.memory.closed_form import Breakdown, Footprint, Moment, Share, breakdown, footprint
from bsmodel.memory.data_parallel import buckets_bytes, data_parallel, devices_of, on_devices
from bsmodel.memory.largest import LARGEST, Fit, fit
from bsmodel.memory.longest import longest
from bsmodel.memory.over_time import StepMemory, over_a_step
from bsmodel.memory.peak import Peak, predict, reserved_of
from bsmodel.memory.settings import Settings, spelled
from bsmodel.memory.snapshot import pickled, snapshot

__all__ = (
    "LARGEST",
    "Breakdown",
    "CachingAllocator",
    "Fit",
    "Footprint",
    "Moment",
    "OutOfMemoryError",
    "Peak",
    "Settings",
    "Share",
    "StepMemory",
    "breakdown",
    "buckets_bytes",
    "data_parallel",
    "devices_of",
    "fit",
    "footprint",
    "longest",
    "on_devices",
    "over_a_step",
    "pickled",
    "predict",
    "reserved_of",
    "snapshot",
    "spelled",
)
