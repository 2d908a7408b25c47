# SPDX-License-Identifier: Apache-2.0
"""The recordings of one workload and recipe for several cards, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor
from typing import Any

from bsmodel.errors import UntraceableError
from bsmodel.hardware import Gpu
from bsmodel.recording import kept_tape, tape_path
from bsmodel.studies import executors
from bsmodel.studies.answering import record
from bsmodel.studies.study import Progress, Watch, in_silence
from bsmodel.tape import Tape
from bsmodel.workloads import Source


def tapes(
    source: Source,
    changes: Mapping[str, Any],
    gpus: Sequence[Gpu],
    caching: bool | None = None,
    watch: Watch = in_silence,
    executor: Executor | None = None,
) -> list[Tape]:
    """The recording for each card; those that run the same kernels share one.

    Raises what recording raises, and `UntraceableError` where the process that records ends.
    """
    found: dict[tuple[int, int], Tape] = {}
    missing: dict[tuple[int, int], Gpu] = {}
    for gpu in gpus:
        tape = None if gpu.kernel_family in found else kept_tape(tape_path(source, changes, gpu.kernel_family, caching))
        if tape is not None:
            found[gpu.kernel_family] = tape
        elif gpu.kernel_family not in found:
            missing.setdefault(gpu.kernel_family, gpu)
    libraries = [source.library] if source.library else []
    hands: Executor = executor or (executors.pool(libraries) if executors.pays(len(missing), 0) else executors.Here())
    try:
        begun = {family: hands.submit(record, source, changes, gpu, caching) for family, gpu in missing.items()}
        for family, future in begun.items():
            found[family] = future.result()
            watch(Progress(len(found), len(found) + len(missing), found[family]))
    except BrokenExecutor:
        raise UntraceableError(executors.LOST) from None
    finally:
        if executor is None:
            hands.shutdown(wait=False, cancel_futures=True)
    return [found[gpu.kernel_family] for gpu in gpus]
