# SPDX-License-Identifier: Apache-2.0
"""The options of the caching allocator: `PYTORCH_CUDA_ALLOC_CONF`.

Source: c10/core/AllocatorConfig.h, read at 2.11.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from bsmodel.errors import InvalidInputError
from bsmodel.units import MiB, finite, whole

INTERVALS = 16  # kRoundUpPowerOfTwoIntervals: 1 MiB, 2 MiB, ... 32 GiB and more
_LEAST_SPLIT = 20 * MiB  # kLargeBuffer

# keys of PYTORCH_CUDA_ALLOC_CONF that do not change where device memory goes
_WITHOUT_EFFECT = frozenset(
    "graph_capture_record_stream_reuse pinned_num_register_threads pinned_reserve_segment_size_mb pinned_use_background_threads "
    "pinned_use_cuda_host_register release_lock_on_cudamalloc".split()
)


@dataclass(frozen=True)
class Settings:
    """The options of `PYTORCH_CUDA_ALLOC_CONF` that change where memory goes.

    `roundup_power2_divisions` is one number, or 16 of them for sizes from 1 MiB, 2 MiB, ... 32 GiB. Raises `InvalidInputError` for
    values that PyTorch refuses.
    """

    expandable_segments: bool = False
    max_split_size_bytes: int | None = None
    garbage_collection_threshold: float = 0.0
    roundup_power2_divisions: int | tuple[int, ...] = 0
    max_non_split_rounding_bytes: int = _LEAST_SPLIT
    per_process_memory_fraction: float = 1.0

    def __post_init__(self) -> None:
        per_interval = self._numbers()
        checks = {
            "max_split_size_mb: expected at least 20": self.max_split_size_bytes is None or self.max_split_size_bytes >= _LEAST_SPLIT,
            "max_non_split_rounding_mb: expected at least 20": self.max_non_split_rounding_bytes >= _LEAST_SPLIT,
            "garbage_collection_threshold: expected a number from 0 (off) to below 1": 0 <= self.garbage_collection_threshold < 1,
            "per_process_memory_fraction: expected a number from 0 to 1": 0 <= self.per_process_memory_fraction <= 1,
            "roundup_power2_divisions: expected powers of two, or 0 for none": all(n & (n - 1) == 0 for n in per_interval),
            f"roundup_power2_divisions: expected one number or {INTERVALS}": len(per_interval) == INTERVALS,
        }
        for problem, holds in checks.items():
            if not holds:
                raise InvalidInputError(f"allocator setting {problem}")

    def _numbers(self) -> tuple[int, ...]:
        """The divisions of each interval, once every number is one of Python's own and finite."""
        given = self.roundup_power2_divisions
        several = isinstance(given, tuple)
        per_interval = tuple(whole("allocator setting roundup_power2_divisions", n, least=0) for n in (given if isinstance(given, tuple) else (given,)))
        found: dict[str, object] = {"roundup_power2_divisions": per_interval if several else per_interval[0]}
        for name in ("garbage_collection_threshold", "per_process_memory_fraction"):
            found[name] = finite(f"allocator setting {name}", getattr(self, name))
        for name in ("max_split_size_bytes", "max_non_split_rounding_bytes"):
            value = getattr(self, name)
            found[name] = None if value is None else whole(f"allocator setting {name}", value, least=0)
        for name, value in found.items():
            object.__setattr__(self, name, value)
        return per_interval if several else per_interval * INTERVALS

    def allowed_bytes(self, total_bytes: int) -> int:
        """What `per_process_memory_fraction` allows of a card: all of it by default."""
        return int(self.per_process_memory_fraction * total_bytes) if self.per_process_memory_fraction < 1 else total_bytes

    @property
    def divisions(self) -> tuple[int, ...]:
        """The divisions of each interval."""
        given = self.roundup_power2_divisions
        return given if isinstance(given, tuple) else (given,) * INTERVALS

    @staticmethod
    def parse(text: str) -> Settings:
        """Read `expandable_segments:True,max_split_size_mb:128`, the syntax of `PYTORCH_CUDA_ALLOC_CONF`.

        Keys that do not change where device memory goes are read over; 0 switches a rule off. Raises `InvalidInputError` for text that
        PyTorch would refuse, a backend other than `native`, and `large_segment_size_mb`.
        """
        values: dict[str, bool | int | float | tuple[int, ...]] = {}
        for item in re.split(r",(?![^\[]*\])", re.sub(r"\s", "", text)):
            key, _, value = item.partition(":")
            if not item or key in _WITHOUT_EFFECT or item == "backend:native":
                continue
            if key not in _READERS:
                raise InvalidInputError(f"allocator setting {item!r} is not known; expected one of {', '.join(_READERS)}")
            field, read, example = _READERS[key]
            try:
                values[field] = read(value)
            except (KeyError, ValueError):
                raise InvalidInputError(f"allocator setting {item!r} cannot be read; expected e.g. {key}:{example}") from None
        return Settings(**values)  # type: ignore[arg-type]


def spelled(settings: Settings) -> str:
    """What `Settings.parse` reads these settings from, without those that are as by default; sizes in whole MiB."""
    return ",".join(f"{key}:{_written(value)}" for key, (field, *_) in _READERS.items() if (value := getattr(settings, field)) != getattr(_BY_DEFAULT, field))


def _written(value: bool | int | float | tuple[int, ...]) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(f'{1 << interval}:{number}' for interval, number in enumerate(value))}]"
    return str(value // MiB if isinstance(value, int) and value >= _LEAST_SPLIT else value)


def _boolean(value: str) -> bool:
    return {"True": True, "False": False}[value]


def _mebibytes(value: str) -> int:
    return int(value) * MiB


def _divisions(value: str) -> int | tuple[int, ...]:
    """A number, or `[256:1,512:2,>:4]`: divisions from a size in MiB on, the first also for all below, `>` for all above the last."""
    if not value.startswith("["):
        return int(value)
    divisions, last, first = [0] * INTERVALS, 0, True
    for entry in value.removeprefix("[").removesuffix("]").split(","):
        start, _, number = entry.partition(":")
        if start == ">":
            divisions[last + 1 :] = [int(number)] * (INTERVALS - last - 1)
            continue
        if int(start).bit_count() != 1:
            raise ValueError(start)
        last = min(int(start).bit_length() - 1, INTERVALS - 1)
        divisions[last] = int(number)
        if first:
            divisions[:last] = [int(number)] * last
        first = False
    return tuple(divisions)


_READERS: dict[str, tuple[str, Callable[[str], bool | int | float | tuple[int, ...]], str]] = {
    "expandable_segments": ("expandable_segments", _boolean, "True"),
    "max_split_size_mb": ("max_split_size_bytes", _mebibytes, "128"),
    "garbage_collection_threshold": ("garbage_collection_threshold", float, "0.8"),
    "roundup_power2_divisions": ("roundup_power2_divisions", _divisions, "4 or [256:1,512:2,>:4]"),
    "max_non_split_rounding_mb": ("max_non_split_rounding_bytes", _mebibytes, "64"),
    "per_process_memory_fraction": ("per_process_memory_fraction", float, "0.9"),
}  # key: (field of Settings, how its value is read, an example)
_BY_DEFAULT = Settings()
