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
from typing import Any

import torch

from bsmodel.files import write_whole
from bsmodel.training import Training
from bsmodel.trials import folder as files
from bsmodel.trials import trackers
from bsmodel.trials.curves import latest, validated
from bsmodel.trials.data import Data
from bsmodel.trials.measured import rows_of
from bsmodel.trials.results import Trial
from bsmodel.trials.training import accelerator, updates
from bsmodel.trials.values import Rung, Status, Update
from bsmodel.validation import environment_here, is_out_of_memory, recipe_words
from bsmodel.workloads import Workload

Watch = Callable[[Rung, int, Update], None]


@dataclass(frozen=True)
class Asked:
    """What is to be run: rungs, seeds, and when a run is over before its steps are."""

    workload: Workload
    training: Training
    rungs: tuple[Rung, ...]
    seeds: tuple[int, ...]
    data: Callable[[int], Data]
    """The samples in the order of a seed."""
    evaluate_every: int = 0
    target_loss: float | None = None
    patience: int | None = None
    track: tuple[str, ...] = ()
    offline: bool = False
    remarks: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As it is written; what two trials must share to be one."""
        data = self.data(self.seeds[0])
        return {
            "workload": self.workload.name,
            "recipe": {**self.training.model_dump(mode="json", exclude={"optimizer"}), "optimizer": self.training.optimizer_name},
            "data": data.what,
            "rungs": [asdict(rung) for rung in self.rungs],
            "seeds": list(self.seeds),
            "evaluate_every": self.evaluate_every,
            "target_loss": self.target_loss,
            "patience": self.patience,
            "remarks": [*self.remarks, *data.remarks],
        }


def run(asked: Asked, folder: Path, watch: Watch) -> Trial:
    """The trial with all its runs; those that the folder holds already are not run again.

    Raises `InvalidInputError` for a folder that holds another trial, and what accelerate, the data or the workload raise.
    """
    accelerated = accelerator(asked.training, trackers.known(asked.track), folder)
    if accelerated.is_main_process:
        files.began(folder, asked.document())
    accelerated.wait_for_everyone()
    for rung in asked.rungs:
        for seed in asked.seeds:
            if files.read(folder, rung, seed) is None:
                with settings_of(asked.training):
                    _one(accelerated, asked, rung, seed, folder, watch)
    accelerated.wait_for_everyone()
    found = Trial.load(folder)
    if accelerated.is_main_process and accelerated.device.type == "cuda":
        _measured(found, asked, folder)
    return found


def _measured(found: Trial, asked: Asked, folder: Path) -> None:
    """Write what was measured on a CUDA device as rows of a validation."""
    words, here = recipe_words(asked.training), environment_here()
    made = rows_of(found.runs, asked.workload.name, words, here)
    write_whole(folder / files.ROWS, "".join(json.dumps(row) + "\n" for row in made).encode(), "what was measured")


@contextlib.contextmanager
def settings_of(training: Training) -> Iterator[None]:
    """TF32 for the recipe that asks for it, and nothing left behind of the run before."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = training.precision == "tf32"
    gc.collect()
    if torch.cuda.is_available():
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
    with trackers.tracking(accelerated, asked, rung, seed, folder) as log:
        try:
            for update in updates(accelerated, asked.workload, asked.training, rung, seed, asked.data(seed), asked.evaluate_every):
                seen.append(update)
                if writes:
                    files.write(path, update, first=len(seen) == 1)
                    log(update)
                    watch(rung, seed, update)
                over = ended(asked, rung, seen)
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


def ended(asked: Asked, rung: Rung, seen: Sequence[Update]) -> Status | None:
    """Whether a run is over, and why: its loss is no number, it has reached the target, or evaluating it has brought nothing lower for so long."""
    if not math.isfinite(seen[-1].loss):
        return "diverged"
    loss = latest(seen, rung, max(each.batch for each in asked.rungs))
    if asked.target_loss is not None and loss is not None and loss <= asked.target_loss:
        return "reached"
    losses = [update.validation_loss or 0.0 for update in validated(seen)]
    if asked.patience is not None and len(losses) - losses.index(min(losses, default=0.0)) > asked.patience if losses else False:
        return "stopped"
    return None


def _peaks() -> Mapping[str, int]:
    if not torch.cuda.is_available():
        return {}
    return {"allocated_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}
