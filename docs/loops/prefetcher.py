# SPDX-License-Identifier: Apache-2.0
"""A prefetcher: the next batch travels on a stream of its own while this one is trained on."""

import torch
import torch.nn.functional as F
from torch import nn

import bsmodel


class Prefetcher:
    """Batches of pinned memory, one ahead: apex' data_prefetcher."""

    def __init__(self):
        self.stream = torch.cuda.Stream()
        self.mean = torch.tensor([123.7, 116.3, 103.5], device="cuda").view(1, 3, 1, 1)
        self.ahead = None

    def preload(self, images, labels):
        with torch.cuda.stream(self.stream):
            images = images.pin_memory().cuda(non_blocking=True).float().sub_(self.mean)
            self.ahead = images, labels.cuda(non_blocking=True)

    def next(self):
        torch.cuda.current_stream().wait_stream(self.stream)
        batch = self.ahead
        for tensor in batch:
            tensor.record_stream(torch.cuda.current_stream())
        return batch


class Loop:
    def __init__(self, model):
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        self.batches = Prefetcher()
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))


def step(model, loop, batch):
    if loop.batches.ahead is None:
        loop.batches.preload(*batch)
    images, labels = loop.batches.next()
    loop.batches.preload(*batch)
    loop.start.record()
    loss = F.cross_entropy(model(images), labels)
    loop.optimizer.zero_grad()
    loss.backward()
    loop.optimizer.step()
    loop.end.record()
    torch.cuda.synchronize()
    return loss.item(), loop.start.elapsed_time(loop.end)


def workload(width=64, side=224):
    def model():
        stages = [(3, width), (width, 2 * width), (2 * width, 4 * width), (4 * width, 8 * width)]
        layers = [layer for a, b in stages for layer in (nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True))]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 1000))

    def batch(size):
        return torch.zeros(size, 3, side, side, dtype=torch.uint8), torch.zeros(size, dtype=torch.long)

    return bsmodel.Workload(model, batch, setup=Loop, step=step, name="prefetcher")
