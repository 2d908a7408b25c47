# SPDX-License-Identifier: Apache-2.0
"""On what a row was measured: the card, its row of the catalogue, driver, libraries, settings, revision and day."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import bsmodel
from bsmodel.errors import BsmodelError
from bsmodel.hardware import Gpu

_SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_SAME_MEMORY = 0.04  # drivers differ by a few per cent in what they keep; cards sold under one name differ by far more


def allocator_settings() -> str:
    """The allocator settings of this process, as text; the newer variable wins, as in torch."""
    return next((os.environ[name] for name in reversed(_SETTINGS) if os.environ.get(name)), "")


def catalogued(name: str, memory_bytes: int, compute_capability: str) -> Gpu | None:
    """The row of the catalogue for the card a driver calls `name`; None where there is none, or its memory or capability is another's."""
    try:
        gpu = Gpu.named(name)
    except BsmodelError:
        return None
    same = abs(gpu.memory_bytes / memory_bytes - 1) < _SAME_MEMORY and gpu.compute_capability == compute_capability
    return gpu if same else None


def card(device: dict[str, Any]) -> tuple[Gpu, bool]:
    """The GPU of `device_facts()`, and whether the catalogue has it; a card it does not have becomes a row of its own, from its properties."""
    known = catalogued(device["name"], device["memory_bytes"], device["compute_capability"])
    if known is not None:
        return known, True
    figures = {name: device[name] for name in ("memory_bytes", "compute_capability", "sm_count", "l2_bytes") if device.get(name)}
    source = {
        "figures": list(figures),
        "source": "torch.cuda.get_device_properties of the device itself",
        "checked": datetime.date.today(),
        "kind": "reported",
    }
    slug = re.sub(r"[^a-z0-9.]+", "-", device["name"].lower()).strip("-.")
    gpu_id = f"{slug or 'gpu'}-{round(device['memory_bytes'] / 2**30)}gb"
    return Gpu.model_validate({"id": gpu_id, "name": device["name"], **figures, "sources": [source]}), False


def device_facts() -> dict[str, Any]:
    """What torch, the driver and NVML say of the first CUDA device. Raises `InvalidInputError` where there is none."""
    import torch

    from bsmodel.validation.device import require_cuda

    require_cuda()
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "sm_count": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", 0) or None,
        "uuid": str(properties.uuid) if hasattr(properties, "uuid") else None,
        "driver": _driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
    }


def card_here() -> Gpu:
    """The row of the first CUDA device, of the catalogue or made of its properties. Raises `InvalidInputError` where there is none."""
    return card(device_facts())[0]


def environment_here() -> dict[str, Any]:
    """That of a row measured in this process. Raises `InvalidInputError` where there is no CUDA device."""
    device = device_facts()
    return environment(device, *card(device))


def environment(device: dict[str, Any], gpu: Gpu, in_catalogue: bool) -> dict[str, Any]:
    """What every row says of where it comes from."""
    import torch

    calibrated = gpu.calibrated_on
    return {
        **{name: value for name, value in device.items() if name != "uuid"},  # rows are for showing around
        "gpu": gpu.id,
        "in_catalogue": in_catalogue,
        "gpu_row_calibrated": calibrated.isoformat() if calibrated else None,
        "predicted_with_torch": torch.__version__,
        "allocator_settings": allocator_settings(),
        "bsmodel": bsmodel.__version__,
        "revision": _revision(),
        "date": datetime.date.today().isoformat(),
    }


def used_bytes(uuid: str | None) -> tuple[int, str] | None:
    """Bytes in use on a card by all processes, and who says so: NVML, without making a context; None where it cannot say.

    `uuid` names the card; without it the first visible one is meant, in NVML's order.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return int(pynvml.nvmlDeviceGetMemoryInfo(_nvml_handle(pynvml, uuid)).used), "nvml"
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # not installed, no driver, or a card that NVML cannot name: the caller falls back on torch
        return None


def _nvml_handle(pynvml: Any, uuid: str | None) -> Any:
    if uuid:
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
    return pynvml.nvmlDeviceGetHandleByIndex(int(visible)) if visible.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(visible)


def _driver() -> str | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # as above
        pass
    try:
        found = re.search(r"Kernel Module.*?(\d+\.\d[\d.]*)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found.group(1) if found else None


def _revision() -> str | None:
    """The git revision of a checkout, with `+` where files differ from it; None for an installed package."""
    root = Path(bsmodel.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
