# SPDX-License-Identifier: Apache-2.0
"""A timeline in Google's Trace Event Format, which chrome://tracing and ui.perfetto.dev open.

Source: "Trace Event Format", https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsmodel.timing.timeline import Event, Timeline

HOST, DEVICE, LINK = "host launches", "compute stream", "communication"
_HOST, _DEVICE = 1, 2  # processes
_TICKS = 1024  # of a microsecond; binary fractions are written exactly, so that nothing overlaps where a viewer truncates to nanoseconds


def trace_events(timeline: Timeline) -> dict[str, Any]:
    """The whole document: names of processes and tracks, then a complete event for each of the timeline, in microseconds."""
    places = {track: (_HOST if track == HOST else _DEVICE, position) for position, track in enumerate(timeline.tracks)}
    names = [_said_of("process_name", _HOST, 0, name="host"), _said_of("process_name", _DEVICE, 0, name=f"{timeline.gpu}, predicted")]
    for track, (process, thread) in places.items():
        names += [_said_of("thread_name", process, thread, name=track), _said_of("thread_sort_index", process, thread, sort_index=thread)]
    return {
        "traceEvents": [*names, *(_complete(event, *places[event.track]) for event in timeline.events)],
        "displayTimeUnit": "ms",
        "otherData": {
            "name": timeline.name,
            "gpu": timeline.gpu,
            "batch": str(timeline.batch),
            "accumulation": str(timeline.accumulation),
            "seconds": repr(timeline.seconds),
        },
    }


def _said_of(what: str, process: int, thread: int, **args: str | int) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": args}


def _complete(event: Event, process: int, thread: int) -> dict[str, Any]:
    start, end = (round(seconds * 1e6 * _TICKS) for seconds in (event.start_seconds, event.end_seconds))
    work = {"bytes": event.bytes, "FLOPs": event.flops} if process == _DEVICE else {}
    known = {"module": event.module, "phase": event.phase, "micro-step": event.micro_step, **work}
    return {
        "ph": "X",
        "name": event.name,
        "cat": event.phase,
        "pid": process,
        "tid": thread,
        "ts": start / _TICKS,
        "dur": (end - start) / _TICKS,
        "args": {name: value for name, value in known.items() if value},
    }
