# SPDX-License-Identifier: Apache-2.0
"""MAML: an inner loop of gradient steps on the weights of each task, and a gradient through all of it."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import bsmodel


def network(width, ways):
    layers = []
    for channels in (3, width, width, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width, track_running_stats=False), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 5 * 5, ways))


def workload(width=64, ways=5, queries=15, tasks=4, inner_steps=5, inner_lr=0.01):
    def step(net, optimizer, batch):
        optimizer.zero_grad()
        for support, support_labels, query, query_labels in zip(*(part.to("cuda") for part in batch), strict=True):
            adapted = dict(net.named_parameters())
            for _ in range(inner_steps):
                loss = F.cross_entropy(functional_call(net, adapted, (support,)), support_labels)
                gradients = torch.autograd.grad(loss, list(adapted.values()), create_graph=True)
                adapted = {name: weight - inner_lr * gradient for (name, weight), gradient in zip(adapted.items(), gradients, strict=True)}
            loss = F.cross_entropy(functional_call(net, adapted, (query,)), query_labels) / tasks
            loss.backward()
        optimizer.step()

    def batch(shots):
        """The batch asked about is the shots of each class; the tasks go one after another."""
        images, labels = (torch.randn(tasks, n * ways, 3, 84, 84) for n in (shots, queries)), (torch.zeros(tasks, n * ways).long() for n in (shots, queries))
        return [part for pair in zip(images, labels, strict=True) for part in pair]

    return bsmodel.Workload(lambda: network(width, ways), batch, step=step, training=bsmodel.Training(optimizer="adam"), name="maml")
