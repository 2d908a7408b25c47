# SPDX-License-Identifier: Apache-2.0
"""Models of timm and torchvision, where these are installed: each task has its batch and its loss."""

from datetime import date

import pytest

import bsmodel
from bsmodel import Training
from bsmodel.hardware import KINDS, PLANNED, Source


def named(name, **options):
    """The workload of a name, or a skip where its library is not here, or not for this torch."""
    try:
        pytest.importorskip(name.partition(":")[0], exc_type=ImportError)
    except RuntimeError as error:
        pytest.skip(f"{name} does not import here: {error}")
    return bsmodel.Workload.named(name, **options)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_models_of_other_libraries_record(library, a100):
    workload = named(f"{library}:resnet18")

    assert bsmodel.trace(workload, workload.training, a100).parameter_count == 11_689_512


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision:inception_v3", ""),
        ("torchvision:googlenet", ""),
        ("torchvision:lraspp_mobilenet_v3_large", ""),
        ("torchvision:r3d_18", "16 frames"),
        ("torchvision:raft_small", ""),
        ("torchvision:ssdlite320_mobilenet_v3_large", "8 objects an image"),
    ],
)
def test_every_task_of_torchvision_is_trained_as_it_is(name, said, a100):
    workload = named(name)
    loss, _ = workload.loss(workload.model().train(), workload.batch(2))

    loss.backward()
    assert said in " ".join(bsmodel.trace(workload, workload.training, a100).remarks)


@pytest.mark.parametrize(
    ("name", "side"), [("timm:resnet18", 224), ("timm:efficientnet_b3", 224), ("timm:vit_tiny_patch16_384", 384), ("timm:halonet50ts", 256)]
)
def test_images_are_as_large_as_the_model_takes_them(name, side):
    assert named(name).batch(2)["pixel_values"].shape == (2, 3, side, side)
    assert named(name, image_size=96).batch(2)["pixel_values"].shape == (2, 3, 96, 96)


# `max_memory_allocated` at batches of 4 and 16 in bytes, bf16-mixed and SGD with momentum, recorded from the PyTorch CUDA allocator on a simulated A100 of 40
# GB, whose cuDNN takes what its planner wants first.
MEASURED = {
    "lraspp_mobilenet_v3_large": (813_331_456, 3_130_455_552),
    "r3d_18": (795_794_432, 1_874_713_600),
    "mvit_v1_b": (4_843_874_304, 18_060_005_376),
    "swin3d_t": (5_686_314_496, 21_687_689_728),
    "inception_v3": (535_643_648, 1_176_920_576),
    "googlenet": (280_803_328, 651_405_824),
    "raft_small": (2_328_598_016, 9_118_255_104),
}


@pytest.mark.parametrize("architecture", MEASURED)
def test_what_other_tasks_take_is_what_they_take_on_cuda(architecture, a100):
    source = Source(figures=("workspaces",), source="plans of cuDNN 9.19 without a device", checked=date(2026, 11, 1), kind="measured")
    card = a100.model_copy(update={"workspaces": {kind: kind in PLANNED for kind in KINDS}, "sources": (*a100.sources, source)})
    tape = bsmodel.trace(named(f"torchvision:{architecture}"), Training(precision="bf16-mixed", optimizer="sgd-momentum"), card)
    few, many = (bsmodel.predict(tape, card, batch).allocated_bytes for batch in (4, 16))

    assert few == pytest.approx(MEASURED[architecture][0], rel=0.006)
    assert many == pytest.approx(MEASURED[architecture][1], rel=0.001)
