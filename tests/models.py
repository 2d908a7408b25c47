# SPDX-License-Identifier: Apache-2.0
"""Small workloads that record in a fraction of a second."""

import torch
from torch import nn

from bsmodel import Training, Workload
from bsmodel.units import MiB

SGD = Training(precision="fp32", optimizer="sgd-momentum")


def of_size(gpu, mebibytes):
    """A card with so much memory, of which exactly 500 MiB are the context's."""
    return gpu.leaving(context_bytes=500 * MiB).model_copy(update={"memory_bytes": mebibytes * MiB})


def images(size):
    return torch.zeros(size, 3, 16, 16), torch.zeros(size, dtype=torch.long)


def cross_entropy(model, batch):
    outputs = model(batch[0])
    return nn.functional.cross_entropy(outputs, batch[1]), outputs


def convolutional():
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Flatten(), nn.Linear(16 * 16 * 16, 10))


def workload(model=convolutional, batch=images, loss=cross_entropy, name="small", **fields):
    return Workload(model=model, batch=batch, loss=loss, name=name, **fields)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 100)

    def forward(self, ids):
        return self.head(self.blocks(self.embed(ids)))


def tokens(size):
    return torch.zeros(size, 32, dtype=torch.long), torch.zeros(size, 32, dtype=torch.long)


def next_token(model, batch):
    outputs = model(batch[0])
    return nn.functional.cross_entropy(outputs.flatten(0, 1), batch[1].flatten()), outputs


def attention():
    return workload(Attention, tokens, next_token, name="attention")


class Towers(nn.Module):
    """Two views of every sample, one embedding for each."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(nn.Flatten(), nn.Linear(768, 64), nn.ReLU(), nn.Linear(64, 32))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, first, second):
        return (nn.functional.normalize(self.embed(view), dim=-1) for view in (first, second))


def views(size):
    return torch.zeros(size, 3, 16, 16), torch.zeros(size, 3, 16, 16)


def clip(model, batch):
    """Every image against every text (Radford 2021)."""
    first, second = model(*batch)
    scores = first @ second.T * model.scale.exp()
    labels = torch.arange(len(scores), device=scores.device)
    return (nn.functional.cross_entropy(scores, labels) + nn.functional.cross_entropy(scores.T, labels)) / 2


def simclr(model, batch):
    """Every view against all others but itself (Chen 2020)."""
    embedded = torch.cat(list(model(*batch)))
    itself = torch.eye(len(embedded), dtype=torch.bool, device=embedded.device)
    scores = (embedded @ embedded.T / 0.1)[~itself].view(len(embedded), -1)
    return torch.logsumexp(scores, dim=1).mean()


def paired(loss):
    """A workload whose loss compares the samples of a batch with one another."""
    return lambda: workload(Towers, views, loss, name=loss.__name__)
