# SPDX-License-Identifier: Apache-2.0
"""Small workloads that learn something on a CPU in seconds, and the trials they are tried in."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from bsmodel import Training, Workload
from bsmodel.trials.data import of_text

# Poems of Lewis Carroll, Through the Looking-Glass, 1871: in the public domain.
TEXT = Path(__file__).parent / "data" / "looking_glass.txt"
LETTERS, SYMBOLS, LENGTH = 32, 10, 6


def digits():
    """Images of scikit-learn's digits, from 0 to 1, and what they are of."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels))


def convolutional():
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


def classified(model, batch):
    outputs = model(batch[0])
    return nn.functional.cross_entropy(outputs, batch[1]), outputs


def images(size):
    return torch.zeros(size, 1, 8, 8), torch.zeros(size, dtype=torch.long)


class Letters(nn.Module):
    """A character model: each byte from those before it."""

    def __init__(self):
        super().__init__()
        self.embed, self.passed = nn.Embedding(128, 32), nn.GRU(32, 64, batch_first=True)
        self.head = nn.Linear(64, 128)

    def forward(self, ids):
        return self.head(self.passed(self.embed(ids))[0])


def spelt(model, batch):
    return nn.functional.cross_entropy(model(batch["input_ids"][:, :-1]).flatten(0, 1), batch["labels"][:, 1:].flatten())


class Reversing(nn.Module):
    """A transformer of two layers, with dropout."""

    def __init__(self):
        super().__init__()
        self.symbols, self.places = nn.Embedding(SYMBOLS, 32), nn.Parameter(torch.randn(LENGTH, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.05, batch_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, SYMBOLS)

    def forward(self, ids):
        return self.head(self.layers(self.symbols(ids) + self.places))


def reversals():
    """Rows of symbols, and the same backwards, as dictionaries of lists of numbers: so datasets of Hugging Face come."""
    rows = torch.randint(SYMBOLS, (512, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    return [{"ids": row, "backwards": row[::-1]} for row in rows]


def reversed_loss(model, batch):
    return nn.functional.cross_entropy(model(batch["ids"]).flatten(0, 1), batch["backwards"].flatten())


def tokens(*names):
    return lambda size: {name: torch.zeros(size, LENGTH, dtype=torch.long) for name in names}


DIGITS = Workload(convolutional, images, classified, name="digits", training=Training(optimizer="sgd"), base_lr=0.1, base_batch=32, data=digits)
SPELLING = Workload(
    Letters,
    tokens("input_ids", "labels"),
    spelt,
    name="letters",
    training=Training(optimizer="adam"),
    base_lr=0.005,
    base_batch=16,
    data=lambda: of_text(TEXT, LETTERS),
)
REVERSING = Workload(
    Reversing,
    tokens("ids", "backwards"),
    reversed_loss,
    name="reversing",
    training=Training(optimizer="adamw", gradient_clipping=1.0),
    base_lr=0.003,
    base_batch=32,
    data=reversals,
)


# A line through noise, of which all is known: half the squared error of x.w + noise, with weights a unit vector away from its minimum.
DIMENSION, SPREAD = 10, 0.5


class Line(nn.Module):
    """Weights in float64, which a model of several dtypes keeps: sums in another order differ by roundings that are small."""

    def __init__(self, width=DIMENSION):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(width, dtype=torch.float64))
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, inputs):
        return inputs @ self.weights


def line_data(samples):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, DIMENSION, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, inputs[:, 0] + SPREAD * torch.randn(samples, generator=generator, dtype=torch.float64))


def half_square(model, batch):
    return (model(batch[0]) - batch[1]).square().mean() / 2


def line(samples=256, **fields):
    made = Workload(
        Line,
        lambda size: (torch.zeros(size, DIMENSION, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)),
        half_square,
        name="line",
        training=Training(optimizer="sgd"),
        base_lr=0.1,
        base_batch=32,
        data=lambda: line_data(samples),
    )
    return replace(made, **fields)


def _perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


PERCEPTRON = replace(DIGITS, model=_perceptron)


def buffered():
    """Digits by a model with a buffer, which data parallelism sends along before each forward pass."""

    def model():
        made = _perceptron()
        made.register_buffer("sent", torch.zeros(1))
        return made

    return replace(DIGITS, model=model)
