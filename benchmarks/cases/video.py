# SPDX-License-Identifier: Apache-2.0
"""Video classifiers as mmaction2 0.x builds and trains them, in plain PyTorch, by `MODEL_rDEPTH`.

`tsn` and `tsm` see every frame as an image, with means over the frames after the head's pool or behind it; `slowonly` and `i3d` convolve over time;
`c3d` is of eight such convolutions. A sample is a clip of `frames` frames, of `channels` channels: 3, or optical flow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bsmodel import Workload
from cases.old_torch import ReLU6, softmax

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
Triple = tuple[int, int, int]


# -- on frames ---------------------------------------------------------------------------------------------------------------------------


def conv2d(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, act: bool = True) -> nn.Sequential:
    """Convolution without bias, batch norm and a ReLU in place."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if act else []))


class Shift(nn.Module):
    """An eighth of the channels moves one frame back, another one frame on."""

    def __init__(self, frames: int, body: nn.Module) -> None:
        super().__init__()
        self.frames, self.body = frames, body

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        x = x.view(-1, self.frames, channels, height * width)
        fold = channels // 8
        left, middle, right = x[:, :, :fold], x[:, :, fold : 2 * fold], x[:, :, 2 * fold :]
        zeros = left - left
        left = torch.cat((left[:, 1:], zeros[:, :1]), 1)
        zeros = middle - middle
        middle = torch.cat((zeros[:, :1], middle[:, :-1]), 1)
        return self.body(torch.cat((left, middle, right), 2).view(count, channels, height, width))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 with the stride, 1 x 1; shifted where there are frames."""

    def __init__(self, inputs: int, planes: int, stride: int, frames: int | None) -> None:
        super().__init__()
        first = conv2d(inputs, planes)
        if frames:
            first[0] = Shift(frames, first[0])
        self.body = nn.Sequential(first, conv2d(planes, planes, 3, stride), conv2d(planes, 4 * planes, act=False))
        self.shortcut = conv2d(inputs, 4 * planes, stride=stride, act=False) if stride != 1 or inputs != 4 * planes else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class Inverted(nn.Module):
    """An inverted residual of MobileNetV2, shifted where it adds its input."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int, frames: int, relu: type[nn.Module]) -> None:
        super().__init__()
        inner, self.adds = inputs * expand, stride == 1 and inputs == outputs
        layers: list[nn.Module] = []
        if expand > 1:
            layers += [nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), relu(inplace=True)]
        layers += [nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), relu(inplace=True)]
        layers += [nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        if self.adds and expand > 1:
            layers[0] = Shift(frames, layers[0])
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def mobilenet(frames: int, relu: type[nn.Module]) -> nn.Module:
    """MobileNetV2 with shifts."""
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), relu(inplace=True)]
    inputs = 32
    for expand, outputs, count, stride in stages:
        for number in range(count):
            layers.append(Inverted(inputs, outputs, stride if number == 0 else 1, expand, frames, relu))
            inputs = outputs
    return nn.Sequential(*layers, nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), relu(inplace=True))


def resnet(depth: int, channels: int, frames: int | None) -> nn.Module:
    """A ResNet; of the deep one every second block of a stage is shifted."""
    layers: list[nn.Module] = [conv2d(channels, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, count in enumerate(DEPTHS[depth]):
        for number in range(count):
            shifted = frames if depth < 101 or number % 2 == 0 else None
            layers.append(Bottleneck(inputs, 64 << stage, 2 if stage and number == 0 else 1, shifted))
            inputs = 256 << stage
    return nn.Sequential(*layers)


class Frames(nn.Module):
    """A classifier of the frames of a clip: their features are averaged (`tsn`), or their logits (`tsm`)."""

    def __init__(self, body: nn.Module, width: int, classes: int, shifted: bool) -> None:
        super().__init__()
        self.body, self.pool, self.shifted = body, nn.AdaptiveAvgPool2d(1), shifted
        self.classify = nn.Sequential(nn.Dropout(0.5 if shifted else 0.4), nn.Linear(width, classes))

    def forward(self, clips: Tensor) -> Tensor:
        count, frames = clips.shape[:2]
        x = self.pool(self.body(clips.reshape(-1, *clips.shape[2:]))).flatten(1)
        if self.shifted:
            return self.classify(x).view(count, frames, -1).mean(1)
        return self.classify(x.view(count, frames, -1).mean(1))


# -- over time ---------------------------------------------------------------------------------------------------------------------------


def conv3d(inputs: int, outputs: int, kernel: Triple = (1, 1, 1), stride: Triple = (1, 1, 1), act: bool = True) -> nn.Sequential:
    """Convolution without bias, batch norm and a ReLU in place."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    layers: list[nn.Module] = [nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm3d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if act else []))


class Bottleneck3d(nn.Module):
    """A bottleneck whose first convolution sees three frames where it is inflated."""

    def __init__(self, inputs: int, planes: int, stride: int, inflated: bool) -> None:
        super().__init__()
        step = (1, stride, stride)
        wide, narrow = conv3d(planes, planes, (1, 3, 3), step), conv3d(planes, 4 * planes, act=False)
        self.body = nn.Sequential(conv3d(inputs, planes, (3, 1, 1) if inflated else (1, 1, 1)), wide, narrow)
        self.shortcut = conv3d(inputs, 4 * planes, stride=step, act=False) if stride != 1 or inputs != 4 * planes else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class NonLocal(nn.Module):
    """Attention of every place and frame to pooled ones, by embedded Gaussians; kept as mmcv computes it."""

    def __init__(self, width: int, old: bool) -> None:
        super().__init__()
        inner, self.old = width // 2, old
        self.value, self.query, self.key = (nn.Conv3d(width, inner, 1) for _ in range(3))
        self.out, self.pool = nn.Sequential(nn.Conv3d(inner, width, 1, bias=False), nn.BatchNorm3d(width)), nn.MaxPool3d((1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        value, key = (self.pool(layer(x)).flatten(2) for layer in (self.value, self.key))
        scores = self.query(x).flatten(2).transpose(1, 2) @ key
        weights = softmax(scores, -1, self.old)
        found = (weights @ value.transpose(1, 2)).transpose(1, 2).contiguous()
        return x + self.out(found.view(*found.shape[:2], *x.shape[2:]))


def _slow_body(depth: int, channels: int, non_local: bool, old: bool) -> nn.Module:
    """The slow path of SlowFast: the last two stages are inflated."""
    layers: list[nn.Module] = [conv3d(channels, 64, (1, 7, 7), (1, 2, 2)), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))]
    inputs = 64
    for stage, count in enumerate(DEPTHS[depth]):
        for number in range(count):
            layers.append(Bottleneck3d(inputs, 64 << stage, 2 if stage and number == 0 else 1, stage > 1))
            inputs = 256 << stage
            if non_local and stage in (1, 2) and number % 2 == 0:
                layers.append(NonLocal(inputs, old))
    return nn.Sequential(*layers)


def _inflated_body(depth: int, channels: int) -> nn.Module:
    """I3D: the first convolution and two pools halve the time, and of the blocks every second one is inflated."""
    layers: list[nn.Module] = [conv3d(channels, 64, (5, 7, 7), (2, 2, 2)), nn.MaxPool3d((1, 3, 3), (2, 2, 2), (0, 1, 1))]
    inputs = 64
    for stage, count in enumerate(DEPTHS[depth]):
        for number in range(count):
            inflated = stage == 0 or (number % 2 == 1 if stage == 3 else number % 2 == 0)
            layers.append(Bottleneck3d(inputs, 64 << stage, 2 if stage and number == 0 else 1, inflated))
            inputs = 256 << stage
        if stage == 0:
            layers.append(nn.MaxPool3d((2, 1, 1), (2, 1, 1)))
    return nn.Sequential(*layers)


class Clips(nn.Module):
    """A classifier of a clip as a whole; clips come as frames of channels."""

    def __init__(self, body: nn.Module, classes: int) -> None:
        super().__init__()
        self.body, self.pool = body, nn.AdaptiveAvgPool3d(1)
        self.classify = nn.Sequential(nn.Dropout(0.5), nn.Linear(2048, classes))

    def forward(self, clips: Tensor) -> Tensor:
        return self.classify(self.pool(self.body(clips)).flatten(1))


def c3d(classes: int) -> nn.Module:
    """Eight convolutions of 3 x 3 x 3, five pools, three linear layers; for 16 frames of 112 x 112."""
    layers: list[nn.Module] = []
    inputs = 3
    for number, widths in enumerate(((64,), (128,), (256, 256), (512, 512), (512, 512))):
        for width in widths:
            layers += [nn.Conv3d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = width
        layers.append(nn.MaxPool3d((1, 2, 2) if number == 0 else 2, padding=(0, 1, 1) if number == 4 else 0))
    wide = (nn.Linear(8192, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(4096, 4096), nn.ReLU(inplace=True))
    return nn.Sequential(*layers, nn.Flatten(), *wide, nn.Dropout(0.5), nn.Linear(4096, classes))


# -- the whole ---------------------------------------------------------------------------------------------------------------------------


def _model(name: str, classes: int, frames: int, channels: int, old: bool) -> nn.Module:
    kind, _, rest = name.partition("_")
    if kind == "c3d":
        return c3d(classes)
    if rest == "mobilenetv2":
        return Frames(mobilenet(frames, ReLU6 if old else nn.ReLU6), 1280, classes, True)
    depth = int(rest.removeprefix("nl_").removeprefix("r"))
    if kind in ("tsn", "tsm"):
        return Frames(resnet(depth, channels, frames if kind == "tsm" else None), 2048, classes, kind == "tsm")
    return Clips(_inflated_body(depth, channels) if kind == "i3d" else _slow_body(depth, channels, "nl_" in rest, old), classes)


def workload(name: str, frames: int, classes: int, channels: int = 3, image_size: int = 224, old: bool = True) -> Workload:
    """`tsn_r50`, `tsm_r50`, `tsm_mobilenetv2`, `slowonly_r50`, `slowonly_nl_r50`, `i3d_r50` or `c3d`; `old` for PyTorch before 1.11."""
    of_frames = name.startswith(("tsn", "tsm"))
    size = (image_size, image_size)

    def build() -> nn.Module:
        return _model(name, classes, frames, channels, old)

    def batch(count: int) -> tuple[Tensor, Tensor]:
        clips = torch.zeros(count, frames, channels, *size) if of_frames else torch.zeros(count, channels, frames, *size)
        return clips, torch.zeros(count, dtype=torch.long)

    def loss(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
        found = F.cross_entropy(model(batch[0]), batch[1])
        return found, found

    return Workload(build, batch, loss)
