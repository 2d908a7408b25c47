# SPDX-License-Identifier: Apache-2.0
"""Other versions of model libraries, put into folders of their own by pip and found first by the processes that ask for them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_WITHOUT_DEPENDENCIES = ("timm", "torchvision", "peft", "diffusers", "accelerate", "litgpt", "lightning", "torchmetrics")  # theirs would bring another torch


_VISION = ("torchvision==0.28.0", "timm==1.0.31", "pillow")  # torchvision has no build for a torch without CUDA: none is required


def installed(wanted: Sequence[str]) -> Path:
    """A folder of the user's cache with these requirements, such as `timm==0.6.7`; made at first use."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bsmodel-cards" / "+".join(wanted)
    if not folder.is_dir():
        alone = [item for item in wanted if item.startswith(_WITHOUT_DEPENDENCIES)]
        for names, flags in ((alone, ["--no-deps"]), ([item for item in wanted if item not in alone], [])):
            if names:
                subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *flags, *names], check=True)
    return folder


def run_with(wanted: Sequence[str], command: Sequence[str]) -> None:
    """Run a script of this folder in a process that finds these versions first."""
    path = os.pathsep.join(filter(None, (*(str(installed((item,))) for item in wanted), os.environ.get("PYTHONPATH"))))
    subprocess.run([sys.executable, *command], check=True, env={**os.environ, "PYTHONPATH": path})


def has_vision() -> bool:
    """Whether torchvision and timm are installed here."""
    return all(importlib.util.find_spec(name) for name in ("torchvision", "timm"))


def run_with_vision(command: Sequence[str]) -> None:
    """Run a script of this folder in a process that has torchvision and timm."""
    run_with(_VISION, command)
