# SPDX-License-Identifier: Apache-2.0
"""An LSTM over packed sequences: the lengths are stated, by their mean as what is likely and by the longest as the worst."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import bsmodel


class Tagger(nn.Module):
    def __init__(self, vocabulary, width, tags):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, num_layers=2, dropout=0.3, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * width, tags)

    def forward(self, ids, lengths):
        packed = pack_padded_sequence(self.embed(ids), lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs, _ = self.lstm(packed)
        padded, _ = pad_packed_sequence(outputs, batch_first=True, total_length=ids.size(1))
        return self.head(padded)


def workload(vocabulary=30000, width=512, tags=45, mean=48, longest=96):
    def batch(size):
        """Every sequence as long as the mean, padded to the longest: what is packed grows with the sum of the lengths."""
        lengths = torch.full((size,), mean)
        ids = torch.ones(size, longest, dtype=torch.long)
        return ids, lengths, torch.zeros(size, longest, dtype=torch.long)

    def worst_batch(size):
        """Every sequence as long as the longest: the upper end of the answer."""
        ids, lengths, tagged = batch(size)
        return ids, torch.full_like(lengths, longest), tagged

    def loss(model, batch):
        ids, lengths, tagged = batch
        return F.cross_entropy(model(ids, lengths).flatten(0, 1), tagged.flatten(), ignore_index=-100)

    training = bsmodel.Training(optimizer="adam", gradient_clipping=5.0)
    return bsmodel.Workload(lambda: Tagger(vocabulary, width, tags), batch, loss, worst_batch=worst_batch, training=training, name="packed-lstm")
