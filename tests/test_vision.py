# SPDX-License-Identifier: Apache-2.0
"""Models of timm and torchvision, where these are installed: each task has its batch and its loss."""

import pytest

import bsmodel


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
