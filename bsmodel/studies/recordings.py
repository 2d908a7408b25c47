# SPDX-License-Identifier: Apache-2.0
"""The recordings of one workload and recipe for several cards, of one length or of many, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any, TypeVar

from bsmodel.errors import UntraceableError
from bsmodel.hardware import Gpu
from bsmodel.recording import kept_lengths, kept_tape, lengths_path, tape_path
from bsmodel.studies import executors
from bsmodel.studies.answering import record, record_lengths
from bsmodel.studies.study import Progress, Watch, in_silence
from bsmodel.tape import Lengths, Piece, Tape
from bsmodel.workloads import Source

Found = TypeVar("Found")


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

    def kept(family: tuple[int, int]) -> Tape | None:
        return kept_tape(tape_path(source, changes, family, caching))

    def tell(done: int, total: int, tape: Tape) -> None:
        watch(Progress(done, total, tape))

    return _by_family(kept, lambda hands, gpu: hands.submit(record, source, changes, gpu, caching), gpus, source, tell, executor)


def lengths(
    source: Source,
    changes: Mapping[str, Any],
    gpus: Sequence[Gpu],
    span: tuple[int, int],
    caching: bool | None = None,
    watch: Watch = in_silence,
    executor: Executor | None = None,
) -> list[Lengths]:
    """The recordings for each card from a number of tokens to another, as `tapes`; raises as it does, and `TooLongError` where positions end before."""

    def kept(family: tuple[int, int]) -> Lengths | None:
        return kept_lengths(lengths_path(source, changes, family, span, caching))

    def tell(done: int, total: int, found: Lengths) -> None:
        watch(Progress(done, total, found.first))

    return _by_family(kept, lambda hands, gpu: hands.submit(record_lengths, source, changes, gpu, span, caching), gpus, source, tell, executor)


def sides(
    source: Source,
    changes: Mapping[str, Any],
    gpus: Sequence[Gpu],
    wanted: Sequence[int],
    caching: bool | None = None,
    watch: Watch = in_silence,
    executor: Executor | None = None,
) -> list[Lengths]:
    """The recordings for each card at these sides of images, in pixels, each one by itself: kernels of convolutions change from size to size."""
    found = [tapes(Source.of(source.name, **{**dict(source.options), "image_size": side}), changes, gpus, caching, watch, executor) for side in wanted]
    of_cards = zip(*found, strict=True)
    return [Lengths(tuple(Piece("image_size", (tape,), (side,), side, side) for tape, side in zip(own, wanted, strict=True))) for own in of_cards]


def _by_family(
    kept: Callable[[tuple[int, int]], Found | None],
    begin: Callable[[Executor, Gpu], Future[Found]],
    gpus: Sequence[Gpu],
    source: Source,
    tell: Callable[[int, int, Found], None],
    executor: Executor | None,
) -> list[Found]:
    """For each card what is kept, or recorded, for its family of kernels."""
    found: dict[tuple[int, int], Found] = {}
    missing: dict[tuple[int, int], Gpu] = {}
    for gpu in gpus:
        known = None if gpu.kernel_family in found else kept(gpu.kernel_family)
        if known is not None:
            found[gpu.kernel_family] = known
        elif gpu.kernel_family not in found:
            missing.setdefault(gpu.kernel_family, gpu)
    total = len(found) + len(missing)
    libraries = [source.library] if source.library else []
    hands: Executor = executor or (executors.pool(libraries) if executors.pays(len(missing), 0) else executors.Here())
    try:
        begun = {family: begin(hands, gpu) for family, gpu in missing.items()}
        for family, future in begun.items():
            found[family] = future.result()
            tell(len(found), total, found[family])
    except BrokenExecutor:
        raise UntraceableError(executors.LOST) from None
    finally:
        if executor is None:
            hands.shutdown(wait=False, cancel_futures=True)
    return [found[gpu.kernel_family] for gpu in gpus]
