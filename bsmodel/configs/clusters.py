# SPDX-License-Identifier: Apache-2.0
"""What is asked of those who give machines: SkyPilot, Kubernetes and Ray. How the work is shared on them is left to what runs there."""

from __future__ import annotations

import math
import re
from typing import Any

from bsmodel.configs.run import Run, Says, covered
from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.units import MiB

# ray 2.60, util/accelerators/accelerators.py
RAY = {
    **{"v100-16gb": "V100", "v100-16gb-pcie": "V100", "v100-32gb": "V100", "t4-16gb": "T4", "a10g-24gb": "A10G", "l4-24gb": "L4", "l40s-48gb": "L40S"},
    **{"a100-40gb": "A100-40G", "a100-40gb-pcie": "A100-40G", "a100-80gb": "A100-80G", "a100-80gb-pcie": "A100-80G"},
    **{"h100-80gb": "H100", "h100-80gb-pcie": "H100", "h100-nvl-94gb": "H100", "h200-141gb": "H200", "b200-180gb": "B200"},
    "rtx-pro-6000-96gb": "RTX-PRO-6000",
}
_SIZE = re.compile(r"-(\d+)gb(?:-|$)")  # the memory in the id of a card, as its maker counts it


def skypilot(run: Run) -> Says:
    """The resources of a task of SkyPilot (sky/utils/schemas.py): the card by its names, and whatever has as much memory after it."""
    names, size = skypilot_names(run), nominal_gb(run)
    if not names and size is None:
        raise InvalidInputError(f"SkyPilot has no name for {run.gpu.id}, and no size of memory is known to be enough; name a card of the catalogue")
    asked = [*names, *([f"{size}GB+"] if size is not None else [])]
    ordered = [{"accelerators": f"{name}:{run.per_node}"} for name in asked]
    says: Says = {"devices": {"num_nodes": run.nodes, "resources": {"ordered": ordered} if len(ordered) > 1 else ordered[0]}}
    if shared := sorted({gpu.id for gpu in Gpu.all() if gpu.id != run.gpu.id and set(names) & set(gpu.skypilot_names)}):
        says["names"] = f"These names are {' or '.join(shared)} as well, which hold this peak; their time is not that of {run.gpu.id}"
    if size is not None:
        says["memory"] = f"{size}GB+ is any card with as much memory: all of bsmodel's catalogue hold this peak; their time is not that of {run.gpu.id}"
    return says


def skypilot_names(run: Run) -> tuple[str, ...]:
    """The names that SkyPilot gives the card and only to cards that hold the peak: `H100` is also an H100 NVL, and not the other way round."""
    others = Gpu.all()
    return tuple(name for name in run.gpu.skypilot_names if all(_holds(gpu, run) for gpu in others if name in gpu.skypilot_names))


def nominal_gb(run: Run) -> int | None:
    """The least memory, as makers count it, of which and above every card of the catalogue holds the peak; None where there is none such."""
    sizes = [(int(found[1]), gpu) for gpu in Gpu.all() if (found := _SIZE.search(gpu.id))]
    failing = max((size for size, gpu in sizes if not _holds(gpu, run)), default=0)
    return min((size for size, _ in sizes if size > failing), default=None)


def _holds(gpu: Gpu, run: Run) -> bool:
    """Whether a card has room for the peak at its most, and the arithmetic for it."""
    assert run.peak is not None
    bf16 = "bf16" in (run.mixed, run.held, run.recipe.weights, run.recipe.compute_dtype)
    float8 = run.recipe.float8 is not None
    room = gpu.sure_bytes - (gpu.communicator.high_bytes if run.split.devices > 1 else 0)
    return run.peak.reserved_upper_bytes <= room and (gpu.supports_bf16 or not bf16) and (gpu.supports_float8 or not float8)


def kubernetes(run: Run) -> Says:
    """A `batch/v1` Job of one Pod a node, on nodes whose cards have the memory, as the labels of NVIDIA's GPU feature discovery say it."""
    least = math.floor(run.gpu.memory_bytes / MiB) - _SLACK_MIB
    matches: list[dict[str, Any]] = [{"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": [str(least)]}]
    if products := _products(run.gpu):
        matches.append({"key": "nvidia.com/gpu.product", "operator": "In", "values": products})
    nodes = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": matches}]}}}
    container = {"name": "train", "resources": {"limits": {"nvidia.com/gpu": run.per_node}}}
    several = {"completionMode": "Indexed", "completions": run.nodes, "parallelism": run.nodes}
    pod = {"restartPolicy": "Never", "affinity": nodes, "containers": [container]}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "train"}, "spec": {**several, "backoffLimit": 0, "template": {"spec": pod}}}
    says: Says = {"devices": job}
    if run.nodes > 1:
        says["rendezvous"] = f"The {run.nodes} Pods find each other by a headless Service and its subdomain, which are yours to add"
    return says


_SLACK_MIB = 512  # drivers report a card's memory differently by a part of that


def _products(gpu: Gpu) -> list[str]:
    """What the driver calls the card, with hyphens, as the label has it; nothing where the row does not know."""
    return [name.replace(" ", "-") for name in gpu.aliases if name.startswith(("NVIDIA ", "Tesla "))]


def ray(run: Run) -> Says:
    """A module with the `ScalingConfig` of Ray Train and what its training loop is called with (ray/train/v2/api/config.py)."""
    name = RAY.get(run.gpu.id)
    smaller = [card for card, other in RAY.items() if other == name and not _holds(Gpu.named(card), run)]
    kind = {"accelerator_type": name} if name and not smaller else {}
    scaling = {"num_workers": run.split.devices, "use_gpu": True, **kind}
    loop = {"micro_batch": run.split.micro_batch, "accumulation": run.split.accumulation}
    loop |= {name: value for name in ("learning_rate", "warmup_steps", "total_steps") if (value := getattr(run, name)) is not None}
    arguments = ", ".join(f"{name}={value!r}" for name, value in scaling.items())
    says: Says = {
        "devices": {"import ray": "from ray.train import ScalingConfig", "scaling_config": f"ScalingConfig({arguments})"},
        "micro_batch": {"train_loop_config": repr(loop)},
        **covered("accumulation", "learning_rate", "warmup_steps", "total_steps"),
    }
    if run.nodes > 1:
        says["nodes"] = f"Planned on {run.nodes} nodes of {run.per_node} workers, and Ray packs workers where there is room: give it nodes of so many cards"
    if name and smaller:
        says["label"] = f"Ray's {name} is {' or '.join(smaller)} as well, which does not hold this peak: see that its nodes have {run.gpu.id}"
    elif name is None:
        says["label"] = f"Ray has no name for {run.gpu.id}: see that its nodes have that card"
    elif name.startswith("A100-"):
        says["label"] = f"Ray gives nodes the label A100 by itself; {name} is one that they have to be given"
    return says
