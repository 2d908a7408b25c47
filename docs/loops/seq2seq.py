# SPDX-License-Identifier: Apache-2.0
"""A translator of two GRUs with attention: at every position a coin says whether the decoder is given the right word or its own."""

import random

import torch
import torch.nn.functional as F
from torch import nn

import bsmodel


class Translator(nn.Module):
    def __init__(self, vocabulary, width, forcing):
        super().__init__()
        self.forcing = forcing
        self.embed = nn.Embedding(vocabulary, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.decoder = nn.GRUCell(2 * width, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, source, target):
        memory, state = self.encoder(self.embed(source))
        state, word, outputs = state[0], target[:, 0], []
        for position in range(1, target.size(1)):
            scores = torch.bmm(memory, state.unsqueeze(2)).softmax(1)
            state = self.decoder(torch.cat([self.embed(word), (scores * memory).sum(1)], 1), state)
            logits = self.head(state)
            outputs.append(logits)
            word = target[:, position] if random.random() < self.forcing else logits.argmax(1)
        return torch.stack(outputs, 1)


def workload(vocabulary=16000, width=512, length=32, forcing=0.5):
    def loss(model, batch):
        source, target = batch
        return F.cross_entropy(model(source, target).flatten(0, 1), target[:, 1:].flatten())

    return bsmodel.Workload(
        model=lambda: Translator(vocabulary, width, forcing),
        batch=lambda size: (torch.zeros(size, length, dtype=torch.long), torch.zeros(size, length, dtype=torch.long)),
        loss=loss,
        training=bsmodel.Training(optimizer="adam", gradient_clipping=1.0),
        name="seq2seq",
    )
