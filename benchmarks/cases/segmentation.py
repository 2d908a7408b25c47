# SPDX-License-Identifier: Apache-2.0
"""Segmenters as mmsegmentation 0.x builds and trains them, in plain PyTorch, by `HEAD_BACKBONE`.

Backbones: ResNets `r50-d8` (`r50b`: the stem of torchvision; `-d16`, `-d32`), `mobilenet-v2-d8`, `hr18`, `mit-b0`, and `unet-s5-d16_HEAD`. The loss is
that of each head on its logits at the size of the images, with the accuracy of each, as in `BaseDecodeHead`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bsmodel import Workload
from cases.old_torch import ReLU6, softmax
from cases.segformer import Mixer, MixTransformer, ViT

Features = list[Tensor]
DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
SPLIT = {"d8": ((1, 2, 1, 1), (1, 1, 2, 4)), "d16": ((1, 2, 2, 1), (1, 1, 1, 2)), "d32": ((1, 2, 2, 2), (1, 1, 1, 1))}  # strides, dilations


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU) -> Any:
    """Convolution without bias, batch norm and an activation in place: mmcv's `ConvModule`."""
    padding = dilation * (kernel // 2)
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([act(inplace=True)] if act else []))


def separable(inputs: int, outputs: int, dilation: int = 1) -> nn.Module:
    """Depthwise 3 x 3, then pointwise, each with its norm."""
    return nn.Sequential(conv(inputs, inputs, 3, dilation=dilation, groups=inputs), conv(inputs, outputs))


def resized(tensor: Tensor, like: Tensor | Sequence[int], corners: bool = False) -> Tensor:
    """Bilinear, to the height and width of another."""
    return F.interpolate(tensor, like.shape[2:] if isinstance(like, Tensor) else tuple(like), mode="bilinear", align_corners=corners)


# -- backbones ---------------------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block of a ResNet: two 3 x 3, or a bottleneck with the stride in its 3 x 3."""

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = planes * (4 if bottleneck else 1)
        wide = conv(planes if bottleneck else inputs, planes, 3, stride, dilation)
        body = (conv(inputs, planes), wide, conv(planes, outputs, act=None)) if bottleneck else (wide, conv(planes, planes, 3, act=None))
        self.body = nn.Sequential(*body)
        self.shortcut = conv(inputs, outputs, stride=stride, act=None) if stride != 1 or inputs != outputs else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        return self.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """ResNetV1c, or with the stem of torchvision; the first block of a dilated stage has half the dilation."""

    def __init__(self, depth: int, output_stride: str = "d8", deep_stem: bool = True, grid: tuple[int, ...] = ()) -> None:
        super().__init__()
        plain = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
        deep = nn.Sequential(conv(3, 32, 3, 2), conv(32, 32, 3), conv(32, 64, 3))
        self.stem = nn.Sequential(deep if deep_stem else plain, nn.MaxPool2d(3, 2, 1))
        self.stages, inputs, bottleneck = nn.ModuleList(), 64, depth > 18
        for stage, (count, stride, dilation) in enumerate(zip(DEPTHS[depth], *SPLIT[output_stride], strict=True)):
            dilations = [dilation // 2 if dilation > 1 else 1, *[dilation] * (count - 1)]
            if grid and stage == 3:
                dilations = [dilation * step for step in grid]
            blocks: list[nn.Module] = []
            for number, wide in enumerate(dilations):
                blocks.append(Block(inputs, 64 << stage, stride if number == 0 else 1, wide, bottleneck))
                inputs = (64 << stage) * (4 if bottleneck else 1)
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Features:
        found, x = [], self.stem(x)
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class Inverted(nn.Module):
    """An inverted residual of MobileNetV2."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int, expand: int, relu: type[nn.Module]) -> None:
        super().__init__()
        inner = inputs * expand
        wide = [conv(inputs, inner, act=relu)] if expand > 1 else []
        self.body = nn.Sequential(*wide, conv(inner, inner, 3, stride, dilation, inner, relu), conv(inner, outputs, act=None))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


class MobileNetV2(nn.Module):
    """At an eighth of the image; four of the seven stages are returned."""

    STAGES = ((1, 16, 1, 1, 1), (6, 24, 2, 2, 1), (6, 32, 3, 2, 1), (6, 64, 4, 1, 2), (6, 96, 3, 1, 2), (6, 160, 3, 1, 4), (6, 320, 1, 1, 4))

    def __init__(self, old: bool) -> None:
        super().__init__()
        relu = ReLU6 if old else nn.ReLU6
        self.stem, self.stages, inputs = conv(3, 32, 3, 2, act=relu), nn.ModuleList(), 32
        for expand, outputs, count, stride, dilation in self.STAGES:
            blocks = [Inverted(inputs if n == 0 else outputs, outputs, stride if n == 0 else 1, dilation, expand, relu) for n in range(count)]
            self.stages.append(nn.Sequential(*blocks))
            inputs = outputs

    def forward(self, x: Tensor) -> Features:
        found, x = [], self.stem(x)
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return [found[number] for number in (1, 2, 4, 6)]


class Exchange(nn.Module):
    """A module of HRNet: four blocks on each branch, then every branch takes part in every other."""

    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*[Block(width, width, 1, 1, False) for _ in range(blocks)]) for width in widths)
        count = range(len(widths))
        self.fuse = nn.ModuleList(nn.ModuleList(self._path(widths, source, target) for source in count) for target in count)

    @staticmethod
    def _path(widths: Sequence[int], source: int, target: int) -> nn.Module:
        if source > target:
            return nn.Sequential(conv(widths[source], widths[target], act=None), nn.Upsample(scale_factor=2 ** (source - target), mode="nearest"))
        down = [conv(widths[source], widths[source], 3, 2) for _ in range(source, target - 1)]
        return nn.Sequential(*down, conv(widths[source], widths[target], 3, 2, act=None)) if source < target else nn.Identity()

    def forward(self, xs: Features) -> Features:
        xs, found = [branch(x) for branch, x in zip(self.branches, xs, strict=True)], []
        for target, paths in enumerate(self.fuse):
            total: Any = 0
            for source, (path, x) in enumerate(zip(paths, xs, strict=True)):
                part = x if source == target else path(x)
                total = total + (resized(part, xs[target]) if source > target else part)
            found.append(F.relu(total))
        return found


class HRNet(nn.Module):
    """HRNetV2p: three stages of exchange; the small one (`s`) has two blocks a branch and fewer modules."""

    def __init__(self, width: int, small: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 64, 3, 2), conv(64, 64, 3, 2))
        blocks = 2 if small else 4  # a branch
        self.first = nn.Sequential(*[Block(64 if number == 0 else 256, 64, 1, 1, True) for number in range(blocks)])
        self.steps, self.stages, before = nn.ModuleList(), nn.ModuleList(), [256]
        for count, modules in zip((2, 3, 4), (1, 3, 2) if small else (1, 4, 3), strict=True):
            widths = [width << number for number in range(count)]
            new = conv(before[-1], widths[-1], 3, 2)
            self.steps.append(nn.ModuleList([conv(256, width, 3), new] if count == 2 else [new]))
            self.stages.append(nn.Sequential(*[Exchange(widths, blocks) for _ in range(modules)]))
            before = widths

    def forward(self, x: Tensor) -> Features:
        xs: Features = [self.first(self.stem(x))]
        for steps, stage in zip(self.steps, self.stages, strict=True):
            ways: Any = steps
            xs = stage([ways[0](xs[0]), ways[1](xs[0])] if len(ways) == 2 else [*xs, ways[0](xs[-1])])
        return xs


class UNet(nn.Module):
    """UNet-S5-D16: five stages of two convolutions down, four up; the outputs from the coarsest on."""

    def __init__(self) -> None:
        super().__init__()
        widths = [64 << number for number in range(5)]
        self.down = nn.ModuleList(nn.Sequential(conv(before, width, 3), conv(width, width, 3)) for before, width in zip((3, *widths), widths, strict=False))
        self.before = nn.ModuleList(conv(2 * width, width) for width in widths[:-1])
        self.up = nn.ModuleList(nn.Sequential(conv(2 * width, width, 3), conv(width, width, 3)) for width in widths[:-1])

    def forward(self, x: Tensor) -> Features:
        skips: Features = []
        for number, stage in enumerate(self.down):
            x = stage(F.max_pool2d(x, 2) if number else x)
            skips.append(x)
        found = [x]
        for number in (3, 2, 1, 0):
            x = self.up[number](torch.cat([skips[number], self.before[number](resized(x, skips[number]))], 1))
            found.append(x)
        return found


# -- heads -------------------------------------------------------------------------------------------------------------------------------


class Head(nn.Module):
    """What all heads share: channels dropped, and a 1 x 1 convolution to the classes."""

    def __init__(self, channels: int, classes: int, drop: bool = True) -> None:
        super().__init__()
        self.classify = nn.Sequential(nn.Dropout2d(0.1) if drop else nn.Identity(), nn.Conv2d(channels, classes, 1))


class FCN(Head):
    """Convolutions of one feature map, or of all at the size of the first; the wide one takes its input in again."""

    def __init__(self, source: int | None, inputs: int, channels: int, classes: int, convs: int = 1, dilation: int = 1) -> None:
        super().__init__(channels, classes, drop=source is not None)
        self.source, kernel = source, 1 if source is None else 3
        self.body = nn.Sequential(*[conv(inputs if n == 0 else channels, channels, kernel, dilation=dilation) for n in range(convs)])
        self.again = conv(inputs + channels, channels, 3) if convs == 2 else None

    def forward(self, xs: Features) -> Tensor:
        x = torch.cat([resized(x, xs[0]) for x in xs], 1) if self.source is None else xs[self.source]
        out = self.body(x)
        return self.classify(self.again(torch.cat([x, out], 1)) if self.again else out)


class Pyramid(nn.Module):
    """Pools of four sizes, brought back to the size of their input."""

    def __init__(self, inputs: int, channels: int, corners: bool) -> None:
        super().__init__()
        self.pools, self.corners = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(size), conv(inputs, channels)) for size in (1, 2, 3, 6)), corners

    def forward(self, x: Tensor) -> Features:
        return [resized(pool(x), x, self.corners) for pool in self.pools]


class PSP(Head):
    """PSPNet."""

    def __init__(self, source: int, inputs: int, channels: int, classes: int, corners: bool) -> None:
        super().__init__(channels, classes)
        self.source, self.pyramid = source, Pyramid(inputs, channels, corners)
        self.bottleneck = conv(inputs + 4 * channels, channels, 3)

    def forward(self, xs: Features) -> Tensor:
        return self.classify(self.bottleneck(torch.cat([xs[self.source], *self.pyramid(xs[self.source])], 1)))


class ASPP(Head):
    """DeepLabV3; with `low`, the channels of the first stage and what is made of them, DeepLabV3+."""

    def __init__(self, source: int, inputs: int, channels: int, classes: int, dilations: Sequence[int], low: tuple[int, int] | None, corners: bool) -> None:
        super().__init__(channels, classes)
        self.source, self.corners = source, corners
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(inputs, channels))
        wide = [separable(inputs, channels, d) if low else conv(inputs, channels, 3, dilation=d) for d in dilations]
        self.branches, self.bottleneck = nn.ModuleList([conv(inputs, channels), *wide]), conv(5 * channels, channels, 3)
        self.low = conv(*low) if low else None
        self.merge = nn.Sequential(separable(channels + low[1], channels), separable(channels, channels)) if low else None

    def forward(self, xs: Features) -> Tensor:
        x = xs[self.source]
        out = self.bottleneck(torch.cat([resized(self.pool(x), x, self.corners), *[branch(x) for branch in self.branches]], 1))
        if self.low and self.merge:
            fine = self.low(xs[0])
            out = self.merge(torch.cat([resized(out, fine, self.corners), fine], 1))
        return self.classify(out)


class UPer(Head):
    """UPerNet: a pyramid of pools on the last stage, added downwards to the others, all brought together at the size of the first."""

    def __init__(self, inputs: Sequence[int], channels: int, classes: int, corners: bool) -> None:
        super().__init__(channels, classes)
        self.corners, self.pyramid = corners, Pyramid(inputs[-1], channels, corners)
        self.last = conv(inputs[-1] + 4 * channels, channels, 3)
        self.sides, self.fine = nn.ModuleList(), nn.ModuleList()
        for width in inputs[:-1]:
            self.sides.append(nn.Sequential(conv(width, channels, act=None), nn.ReLU()))
            self.fine.append(nn.Sequential(conv(channels, channels, 3, act=None), nn.ReLU()))
        self.bottleneck = conv(len(inputs) * channels, channels, 3)

    def forward(self, xs: Features) -> Tensor:
        levels = [side(x) for side, x in zip(self.sides, xs[:-1], strict=True)]
        levels.append(self.last(torch.cat([xs[-1], *self.pyramid(xs[-1])], 1)))
        for number in range(len(levels) - 1, 0, -1):
            levels[number - 1] = levels[number - 1] + resized(levels[number], levels[number - 1], self.corners)
        out = [fine(level) for fine, level in zip(self.fine, levels[:-1], strict=True)] + [levels[-1]]
        for number in range(len(out) - 1, 0, -1):
            out[number] = resized(out[number], out[0], self.corners)
        return self.classify(self.bottleneck(torch.cat(out, 1)))


class SemanticFPN(Head):
    """A feature pyramid, each level brought up step by step, and their sum."""

    def __init__(self, inputs: Sequence[int], classes: int) -> None:
        super().__init__(128, classes)
        self.sides = nn.ModuleList(nn.Conv2d(width, 256, 1) for width in inputs)
        self.smooth = nn.ModuleList(nn.Conv2d(256, 256, 3, padding=1) for _ in inputs)
        self.ups = nn.ModuleList()
        for level in range(len(inputs)):
            up: list[nn.Module] = []
            for number in range(max(1, level)):
                up += [conv(256 if number == 0 else 128, 128, 3), *([nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)] if level else [])]
            self.ups.append(nn.Sequential(*up))

    def forward(self, xs: Features) -> Tensor:
        levels = [side(x) for side, x in zip(self.sides, xs, strict=True)]
        for number in range(len(levels) - 1, 0, -1):
            levels[number - 1] += F.interpolate(levels[number], size=levels[number - 1].shape[2:], mode="nearest")
        levels = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]
        out = self.ups[0](levels[0])
        for up, level in zip(list(self.ups)[1:], levels[1:], strict=True):
            out = out + resized(up(level), out)
        return self.classify(out)


# -- the whole ---------------------------------------------------------------------------------------------------------------------------


class Segmenter(nn.Module):
    """Backbone and heads; called with images and labels it gives the loss."""

    def __init__(self, backbone: nn.Module, heads: Sequence[tuple[nn.Module, float]], corners: bool, old: bool) -> None:
        super().__init__()
        self.backbone, self.heads, self.weights = backbone, nn.ModuleList(head for head, _ in heads), [weight for _, weight in heads]
        self.corners, self.old = corners, old

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = resized(logits.float(), labels, self.corners)
        with torch.autocast(logits.device.type, enabled=False):
            found = softmax(logits, 1, self.old, logarithm=True)
            loss = F.nll_loss(found, labels.squeeze(1), reduction="none", ignore_index=255).mean()
        del found
        logits.topk(1, dim=1)[1].transpose(0, 1).eq(labels.squeeze(1).unsqueeze(0)).reshape(-1).float().sum(0, keepdim=True)
        return loss

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        features, pairs = self.backbone(images), zip(self.heads, self.weights, strict=True)
        return sum(weight * self._loss(head(features), labels) for head, weight in pairs)


def _backbone(name: str, old: bool) -> tuple[nn.Module, list[int]]:
    """A backbone and the channels of what it returns."""
    if found := re.fullmatch(r"hr(\d+)(s?)", name):
        width = int(found[1])
        return HRNet(width, bool(found[2])), [width << number for number in range(4)]
    if name == "mobilenet-v2-d8":
        return MobileNetV2(old), [24, 32, 96, 320]
    if found := re.fullmatch(r"(vit|deit)-([sb])16(-mln)?", name):
        width = {"s": 384, "b": 768}[found[2]]
        return ViT(width, 1024, 0.1 if found[1] == "deit" else 0.0, bool(found[3]), old), [width] * 4
    if name.startswith("mit-b"):
        return (mixed := MixTransformer(int(name[-1]), old)), mixed.widths
    if name.startswith("unet"):
        return UNet(), [1024, 512, 256, 128, 64]
    depth, plain, split, grid = re.fullmatch(r"r(\d+)(b?)-(d\d+)(-mg124)?", name).groups()
    widths = [width * (4 if int(depth) > 18 else 1) for width in (64, 128, 256, 512)]
    return ResNet(int(depth), split, not plain, (1, 2, 4) if grid else ()), widths


def _heads(kind: str, backbone: str, widths: Sequence[int], classes: int, corners: bool) -> list[tuple[nn.Module, float]]:
    """The head and the auxiliary one, with the weights of their losses."""
    if backbone.startswith("hr"):
        return [(FCN(None, sum(widths), sum(widths), classes), 1.0)]
    if kind in ("fpn", "segformer"):
        return [(SemanticFPN(widths, classes) if kind == "fpn" else Mixer(list(widths), classes), 1.0)]
    unet, small = backbone.startswith("unet"), backbone.startswith("r18")
    channels, last = (16 if unet else 128 if small else 512), len(widths) - 1
    dilations = (6, 12, 18) if "-d16-" in backbone else (12, 24, 36)
    side = FCN(at := last - ("it-" not in backbone), widths[at], 64 if small or unet else 256, classes, dilation=6 if kind == "fcn-d6" else 1)
    heads: dict[str, Any] = {
        "fcn": lambda: FCN(last, widths[-1], 64 if unet else channels, classes, 1 if unet else 2),
        "fcn-d6": lambda: FCN(last, widths[-1], channels, classes, 2, 6),
        "pspnet": lambda: PSP(last, widths[-1], channels, classes, corners),
        "deeplabv3": lambda: ASPP(last, widths[-1], channels, classes, dilations, None, corners),
        "deeplabv3plus": lambda: ASPP(last, widths[-1], channels, classes, dilations, (widths[0], 12 if small else 48), corners),
        "upernet": lambda: UPer(widths, channels, classes, corners),
    }
    return [(heads[kind](), 1.0), (side, 0.4)]


def workload(name: str, image_size: Sequence[int] = (512, 1024), classes: int = 19, corners: bool = False, old: bool = True) -> Workload:
    """`HEAD_BACKBONE`; `corners` where grids are aligned at theirs, `old` for PyTorch before 1.11."""
    kind, backbone = name.split("_")[:: -1 if name.startswith("unet") else 1]

    def build() -> nn.Module:
        body, widths = _backbone(backbone, old)
        return Segmenter(body, _heads(kind, backbone, widths, classes, corners), corners, old)

    def batch(size: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(size, 3, *image_size), torch.zeros(size, 1, *image_size, dtype=torch.long)

    def loss(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
        found = model(*batch)
        return found, found

    return Workload(build, batch, loss)
