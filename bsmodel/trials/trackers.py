# SPDX-License-Identifier: Apache-2.0
"""Loss, learning rate and speed of each run to the trackers that accelerate knows, one run of theirs for each of ours."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.trials.values import Rung, Update

if TYPE_CHECKING:
    from bsmodel.trials.run import Asked

# Names of ours, accelerate's, and the packages that they need.
TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
    "aim": ("aim", "aim"),
    "comet": ("comet_ml", "comet_ml"),
    "jsonl": ("", ""),  # always written
}
_SENDS = ("mlflow", "comet")  # to whichever server they are set up for: accelerate has no word for them that nothing is to be sent


def require_known(names: Sequence[str], offline: bool) -> None:
    """Raises `UnknownNameError` for a tracker that is none, `InvalidInputError` for one that cannot be kept from sending where it is to be."""
    for name in names:
        if name not in TRACKERS:
            raise UnknownNameError("tracker", name, TRACKERS)
        if offline and name in _SENDS:
            raise InvalidInputError(f"tracker {name} sends to wherever it is set up for, and offline does not keep it from that; leave out one of them")


def known(names: tuple[str, ...]) -> list[str]:
    """As accelerate calls them. Raises `UnknownNameError` for another, `InvalidInputError` for one whose package is not installed."""
    import importlib.util

    require_known(names, offline=False)
    for name in names:
        package = TRACKERS[name][1]
        if package and importlib.util.find_spec(package) is None:
            raise InvalidInputError(f"tracker {name} needs {package}, which is not installed; pip install {package.replace('_', '-')}")
    return [TRACKERS[name][0] for name in dict.fromkeys(names) if TRACKERS[name][0]]


@contextlib.contextmanager
def tracking(accelerated: Any, asked: Asked, rung: Rung, seed: int, folder: Path) -> Iterator[Callable[[Update], None]]:
    """Within this context what is logged goes to all trackers, with the recipe and the rung as their configuration."""
    if not asked.track:
        yield lambda update: None
        return
    name = f"batch-{rung.batch}-seed-{seed}"
    config = {"workload": asked.workload.name, "optimizer": asked.training.optimizer_name, "precision": asked.training.precision, "seed": seed}
    config |= {field: getattr(rung, field) for field in ("batch", "micro_batch", "accumulation", "devices", "learning_rate")}
    wandb = {"name": name, "dir": str(folder), "reinit": "finish_previous", **({"mode": "offline"} if asked.offline else {})}
    accelerated.project_configuration.logging_dir = str(folder / "tracked" / name)
    if accelerated.is_main_process:  # what an interrupted run left would stand beside this one
        shutil.rmtree(folder / "tracked" / name, ignore_errors=True)

    def log(update: Update) -> None:
        values = {"loss": update.loss, "learning_rate": update.learning_rate, "samples": update.samples, "seconds": update.seconds}
        values["samples_per_s"] = update.samples / update.seconds if update.seconds else 0.0
        if update.validation_loss is not None:
            values["validation_loss"] = update.validation_loss
        if accelerated.device.type == "cuda":
            import torch

            values["allocated_bytes"] = torch.cuda.max_memory_allocated(accelerated.device)
        accelerated.log(values, step=update.step)

    try:
        _begin(accelerated, config, wandb)
        yield log
    finally:
        for tracker in accelerated.trackers:  # not by `end_training`, which ends the other processes' talk, too
            tracker.finish()
        accelerated.trackers.clear()


def _begin(accelerated: Any, config: dict[str, Any], wandb: dict[str, Any]) -> None:
    try:
        accelerated.init_trackers("bsmodel-trial", config, {"wandb": wandb})
    except Exception as error:  # each has errors of its own: nobody is logged in, no server answers
        accelerated.trackers.clear()
        said = str(error).strip() or type(error).__name__
        raise InvalidInputError(f"a tracker does not start: {said.splitlines()[0]}; --offline needs no server") from None
