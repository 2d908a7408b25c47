# SPDX-License-Identifier: Apache-2.0
"""Recordings of one workload at several lengths: in one run where the step is the same at all of them, else one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from bsmodel import tape as tapes
from bsmodel.errors import InvalidInputError, TooLongError, UntraceableError
from bsmodel.hardware import Gpu
from bsmodel.recording import alignment, loop, placement, said
from bsmodel.recording.assumed import EVENLY, Assumed
from bsmodel.recording.recordings import BATCHES, OneRun, apart, checked, in_one_run, tape_of
from bsmodel.recording.run import Run, left_to_chance, micro_step, running
from bsmodel.recording.tracing import assumptions, trace
from bsmodel.tape import STEP, Lengths, Piece, Tape, piece_from, pieces_from
from bsmodel.training import Training, require_arithmetic
from bsmodel.units import whole
from bsmodel.workloads import Workload

_BATCHES = BATCHES[:2]  # at every length but the first: what is a line there is one


def trace_lengths(
    workload: Callable[[int], Workload],
    training: Training | None = None,
    gpu: Gpu | None = None,
    shortest: int = 256,
    longest: int = 4096,
    step: int = STEP,
    option: str = "seq_len",
) -> Lengths:
    """Record a workload at a few lengths, and tell every other: `trace_lengths(...).at(1920)` is an ordinary tape.

    `workload(s)` is the workload with samples of s tokens, recorded from `shortest` to `longest`, all of them multiples of `step`. Where the step is another
    from some length on, further recordings tell what lies beyond; `Lengths.most` is as far as they do, or as the model has positions, and `Lengths.ends`
    says why that is not `longest`. Raises what `trace` raises, and `InvalidInputError` for lengths that are none.
    """
    for name, length in (("shortest", shortest), ("longest", longest)):
        if whole(name, length) % step:
            raise InvalidInputError(f"{name} is {length}; expected a multiple of {step}, such as {-(-length // step) * step}")
    if longest < shortest:
        raise InvalidInputError(f"lengths go from {shortest} to {longest}; expected the shorter first")
    first = workload(shortest)
    found, card = first.recipe(training), gpu or Gpu.named("a100-40gb")
    require_arithmetic(found, card)
    most, ends = _within_positions(workload, longest, step)

    def piece(start: int) -> Piece:
        along = partial(piece_from, start=start, longest=most, step=step, option=option)
        at_once = _together(workload, (start, most), found, card, along)
        return at_once or along(lambda length: trace(workload(length), found, card))

    pieces = pieces_from(piece, shortest, most).pieces
    return Lengths((*pieces[:-1], replace(pieces[-1], ends=ends)) if ends and pieces[-1].most == most else pieces)


def _within_positions(workload: Callable[[int], Workload], longest: int, step: int) -> tuple[int, str]:
    """The longest length that the model has positions for, and, where that is below what is asked, why it is no longer."""
    try:
        workload(longest)
    except TooLongError as error:
        return error.most // step * step, f"the model has {error.most:,} positions"
    return longest, ""


Along = Callable[[Callable[[int], Tape]], Piece]


def _together(workload: Callable[[int], Workload], ends: tuple[int, int], training: Training, gpu: Gpu, along: Along) -> Piece | None:
    """A piece of which one run gives all recordings, or None where it does not."""
    short, long = map(workload, ends)
    if any(each.step is not None or each.worst_batch is not None for each in (short, long)) or not _same_model(short, long, training):
        return None
    usual = _in_one_run(workload, ends[0], training, gpu, Assumed(), along)
    if usual is None or not usual[1]:
        return usual and usual[0]

    def again(recorded: Callable[[int], Tape]) -> Piece:
        return replace(usual[0], tapes=tuple(map(recorded, usual[0].lengths)))

    crowded = _in_one_run(workload, ends[0], training, gpu, Assumed(crowded=True), again)
    return crowded and replace(usual[0], tapes=tuple(replace(tape, worst=worst) for tape, worst in zip(usual[0].tapes, crowded[0].tapes, strict=True)))


def _same_model(short: Workload, long: Workload, training: Training) -> bool:
    """Whether the model with the shortest samples is that with the longest."""
    with placement.weights_nowhere():
        models = [placement.build(each, training)[0] for each in (short, long)]
    return repr(models[0]) == repr(models[1]) and _shapes(models[0]) == _shapes(models[1])


def _shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for part in (model.named_parameters(), model.named_buffers()) for name, tensor in part}


def _in_one_run(workload: Callable[[int], Workload], start: int, training: Training, gpu: Gpu, assumed: Assumed, along: Along) -> tuple[Piece, bool] | None:
    """A piece, and whether it rests on samples that spread evenly; None where something else is assumed, or nothing can be told of the first length."""
    shortest = workload(start)
    with contextlib.suppress(UntraceableError), running(shortest, training, gpu, assumed) as run:
        first, values = in_one_run(run), run.recorder.values
        if first is None or len(first.batches) > len(BATCHES):
            return None
        known = {start: (tape_of(run, gpu, first.sizes, first.batches, first.work, first.said), first.sizes)}

        def recorded(length: int) -> Tape:
            if length not in known:
                known[length] = _further(run, workload(length), first, gpu)
            return known[length][0]

        found = along(recorded)
        ends = []
        for length in dict.fromkeys((found.most, start)):
            run.loop.workload = left_to_chance(workload(length), values)
            ends.append(checked(run, *known[length], gpu))
        if values.asked or values.reads or {*values.noted} - {EVENLY}:
            return None
        limit = min((each.same_path_up_to for each in ends if each.same_path_up_to is not None), default=None)
        remarks = tuple(dict.fromkeys([*ends[-1].remarks, *ends[0].remarks, *assumptions(values)]))
        tapes = tuple(replace(each, same_path_up_to=limit, remarks=remarks) for each in found.tapes)
        return replace(found, tapes=tapes), EVENLY in values.noted
    return None


def _further(run: Run, workload: Workload, first: OneRun, gpu: Gpu) -> tuple[Tape, dict[int, alignment.Size]]:
    """The tape of another workload of the same model, and its sizes, of steady micro-steps.

    Raises `UntraceableError` where these differ from the first one's.
    """
    run.loop.workload = left_to_chance(workload, run.recorder.values)
    steps, rows, spoken = [], [], []
    for batch in _BATCHES:
        loop.zero_gradients(run.loop)
        with run.block("check"):
            micro_step(run, batch)
        steps.append(run.allocated("check"))
        rows.append(apart(run.rows["check"])[0])
        spoken.append(run.said["check"])
        _require_same_order(run, workload.name)
    groups = {group[0][1][0]: [number for _, (number, _) in group] for group in first.groups}
    steady = [number for number, _ in run.allocated("micro") if number in groups]
    if any(len(step) != len(steady) for step in steps):
        raise UntraceableError(f"{workload.name} makes what it keeps at one length, and not at another")
    named = [[(number, allocation) for number, (_, allocation) in zip(steady, step, strict=True)] for step in steps]
    found = alignment.sizes(named, _BATCHES, workload.name)
    sizes = {number: size for leader, size in found.items() for number in groups[leader]}
    work = tapes.through(rows, _BATCHES)
    if work is None:
        raise UntraceableError(f"{workload.name} computes otherwise at another length")
    return tape_of(run, gpu, sizes, first.batches, work, said.through(spoken, _BATCHES)), sizes


def _require_same_order(run: Run, name: str) -> None:
    """Raises `UntraceableError` where a micro-step gives back what it allocates in another order than the steady one."""
    orders = []
    for block in ("micro", "check"):
        events = run.events(block)
        own = {number: position for position, number in enumerate(event for event in events if event >= 0)}
        orders.append([own[event] if event >= 0 else ~own[~event] for event in events if event >= 0 or ~event in own])
    if orders[0] != orders[1]:
        raise UntraceableError(f"{name} takes another path at another length")
