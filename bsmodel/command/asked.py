# SPDX-License-Identifier: Apache-2.0
"""What is asked about, which cards it can be asked of, and what an answer says at its foot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from bsmodel.hardware import Gpu
from bsmodel.recording import versions
from bsmodel.studies import Recorded
from bsmodel.tape import Tape
from bsmodel.workloads import Source

Asked = Source | tuple[Tape, ...]  # a workload by name, or the recordings in a file, one for each family of kernels


def recorded_cards(found: Asked, otherwise: Sequence[Gpu]) -> tuple[list[Gpu], list[str]]:
    """Of these cards those that recordings are for, and a note of the others; where there are none, the cards they were made for."""
    if isinstance(found, Source):
        return [*otherwise], []
    families = {tape.gpu.kernel_family for tape in found}
    kept = [gpu for gpu in otherwise if gpu.kernel_family in families]
    left = ", ".join(gpu.id for gpu in otherwise if gpu.kernel_family not in families)
    capabilities = " and ".join(tape.gpu.compute_capability for tape in found)
    note = f"{left} left out: the recording is for the kernels of compute capability {capabilities}"
    return kept or [tape.gpu for tape in found], [note] if left else []


def of_other_versions(found: Asked) -> list[str]:
    """A note for a recording that was made with other versions of libraries than are installed here."""
    if isinstance(found, Source):
        return []
    pairs = {(name, recorded, here.split("+")[0]) for tape in found for name, recorded in tape.versions.items() if (here := versions().get(name))}
    others = [(name, recorded, here) for name, recorded, here in sorted(pairs) if recorded != here]
    return [f"recorded with {name} {recorded}, and {here} is installed here, which may allocate otherwise" for name, recorded, here in others]


def together(heads: Iterable[Recorded | None]) -> Recorded:
    """One head for the recordings of several families, with what each of them says."""
    several = [head for head in heads if head is not None]
    remarks, names = (tuple(dict.fromkeys(item for head in several for item in getattr(head, field))) for field in ("remarks", "uncounted"))
    return replace(several[0], remarks=remarks, uncounted=tuple(sorted(names)))


def foot(recorded: Recorded | Sequence[Recorded], notes: Sequence[str] = ()) -> list[str]:
    """The last lines of every answer: the versions that it holds for, and what it rests on that nobody asked for."""
    heads = [recorded] if isinstance(recorded, Recorded) else recorded
    of = sorted({f"{name} {version}" for head in heads for name, version in head.versions.items()})
    said = dict.fromkeys([*(remark for head in heads for remark in head.remarks), *notes])
    return [*([f"Recorded with {', '.join(of)}."] if of else []), *(f"Note: {line.removesuffix('.')}." for line in said)]
