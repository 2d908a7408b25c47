# SPDX-License-Identifier: Apache-2.0
"""Runs a trial: every batch with every seed, each run written as it goes, and none twice."""

from __future__ import annotations

import contextlib
import gc
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from bsmodel.files import write_whole
from bsmodel.training import Training
from bsmodel.trials import folder as files
from bsmodel.trials import trackers
from bsmodel.trials.curves import latest
from bsmodel.trials.data import Data
from bsmodel.trials.measured import rows_of
from bsmodel.trials.results import Trial
from bsmodel.trials.training import accelerator, apart, updates
from bsmodel.trials.values import Rung, Status, Update, Watch, recipe_of
from bsmodel.validation import environment_here, is_out_of_memory, recipe_words
from bsmodel.workloads import Workload

Made = TypeVar("Made")


@dataclass(frozen=True)
class Asked:
    """What is to be run: rungs, seeds, and when a run is over before its steps are."""

    workload: Workload
    training: Training
    rungs: tuple[Rung, ...]
    seeds: tuple[int, ...]
    data: Callable[[int], Data]
    """The samples in the order of a seed."""
    evaluate_every: int = 10
    target_loss: float | None = None
    patience: int | None = None
    track: tuple[str, ...] = ()
    offline: bool = False
    remarks: tuple[str, ...] = ()

    def document(self, device: str) -> dict[str, Any]:
        """As it is written, with the device that it runs on; what two trials must share to be one."""
        data = self.data(self.seeds[0])
        return {
            "workload": self.workload.name,
            **({"options": _plain(self.workload.options)} if self.workload.options else {}),
            "device": device,
            "recipe": recipe_of(self.training),
            "data": data.what,
            "rungs": [asdict(rung) for rung in self.rungs],
            "seeds": list(self.seeds),
            "evaluate_every": self.evaluate_every,
            "target_loss": self.target_loss,
            "patience": self.patience,
            "remarks": [*self.remarks, *data.remarks],
        }


def _plain(options: Mapping[str, Any]) -> Any:
    """As JSON has them: those of a function of the user's own may be anything."""
    return json.loads(json.dumps(dict(options), default=repr))


def run(asked: Asked, folder: Path, watch: Watch) -> Trial:
    """The trial with all its runs; those that the folder holds already are not run again.

    Raises `InvalidInputError` for a folder that holds another trial, and what accelerate, the data or the workload raise.
    """
    with apart():
        accelerated = accelerator(asked.training, trackers.known(asked.track), folder)
        for rung, seed in _shared(accelerated, lambda: _left(asked, folder, named(accelerated.device))):
            with settings_of(asked.training):
                _one(accelerated, asked, rung, seed, folder, watch)
        return _shared(accelerated, lambda: _found(accelerated, asked, folder))


def _shared(accelerated: Any, make: Callable[[], Made]) -> Made:
    """What the first process makes of the folder, in all of them: others may not have it."""
    from accelerate.utils import broadcast_object_list

    made: Made = broadcast_object_list([make() if accelerated.is_main_process else None])[0]
    return made


def _left(asked: Asked, folder: Path, device: str) -> list[tuple[Rung, int]]:
    """The runs that the folder does not hold."""
    files.began(folder, asked.document(device))
    return [(rung, seed) for rung in asked.rungs for seed in asked.seeds if files.read(folder, rung, seed) is None]


def named(device: torch.device) -> str:
    """A device by the name that its driver gives it, or its kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _found(accelerated: Any, asked: Asked, folder: Path) -> Trial:
    """The trial as it is written, what was measured on a CUDA device also as rows of a validation."""
    found = Trial.load(folder)
    if accelerated.device.type == "cuda":
        made = rows_of(found.runs, asked.workload.name, recipe_words(asked.training), environment_here())
        write_whole(folder / files.ROWS, "".join(json.dumps(row) + "\n" for row in made).encode(), "what was measured")
    return found


@contextlib.contextmanager
def settings_of(training: Training) -> Iterator[None]:
    """TF32 for the recipe that asks for it, and nothing left behind of the run before."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = training.precision == "tf32"
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _one(accelerated: Any, asked: Asked, rung: Rung, seed: int, folder: Path, watch: Watch) -> None:
    """One run, written line by line by the first process; running out of memory is how it ends, and not the trial."""
    path, seen, writes = files.path_of(folder, rung, seed), list[Update](), accelerated.is_main_process
    status: Status = "finished"
    data = asked.data(seed)
    with trackers.tracking(accelerated, asked, rung, seed, folder) as log:
        try:
            for update in updates(accelerated, asked.workload, asked.training, rung, seed, data, asked.evaluate_every):
                seen.append(update)
                if writes:
                    files.write(path, update, first=len(seen) == 1)
                    log(update)
                    watch(rung, seed, update)
                over = ended(asked, rung, seen, validates=data.validation is not None)
                if over is not None:
                    status = over
                    break
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            status = "out of memory"
        finally:
            accelerated.free_memory()
    if writes:
        files.write(path, {"status": status, **_peaks()}, first=not seen)


def ended(asked: Asked, rung: Rung, seen: Sequence[Update], validates: bool) -> Status | None:
    """Whether a run is over, and why: its loss is no number, it has reached the target, or evaluating it has brought nothing lower for so long."""
    now = seen[-1]
    if not math.isfinite(now.loss) or not math.isfinite(now.validation_loss or 0.0):
        return "diverged"
    loss = latest(seen, rung, max(each.batch for each in asked.rungs), validates)
    if asked.target_loss is not None and loss is not None and loss <= asked.target_loss:
        return "reached"
    if asked.patience is not None and now.validation_loss is not None:
        losses = [update.validation_loss for update in seen if update.validation_loss is not None]
        if len(losses) - losses.index(min(losses)) > asked.patience:
            return "stopped"
    return None


def _peaks() -> Mapping[str, Any]:
    """What was counted on a CUDA device, and in which environment: a trial may go on in another."""
    if not torch.cuda.is_available():
        return {}
    peaks = {"allocated_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}
    return {**peaks, "environment": environment_here()}
