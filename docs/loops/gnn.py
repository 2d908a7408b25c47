# SPDX-License-Identifier: Apache-2.0
"""A graph network by index_add_ over batches of graphs: their nodes and edges are stated, by the mean as what is likely and by a bad batch as the worst."""

import torch
import torch.nn.functional as F
from torch import nn

import bsmodel


class Convolution(nn.Module):
    """Messages of the edges, summed at the nodes they lead to, and an update with them (GINE)."""

    def __init__(self, width):
        super().__init__()
        self.edge = nn.Linear(16, width)
        self.update = nn.Sequential(nn.Linear(width, 2 * width), nn.BatchNorm1d(2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x, edges, features):
        source, target = edges
        messages = F.relu(x[source] + self.edge(features))
        return F.relu(self.update(x + torch.zeros_like(x).index_add_(0, target, messages)))


class Network(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.embed = nn.Embedding(120, width)
        self.layers = nn.ModuleList(Convolution(width) for _ in range(depth))
        self.head = nn.Linear(width, 1)

    def forward(self, atoms, edges, features, graph, graphs):
        x = self.embed(atoms)
        for layer in self.layers:
            x = layer(x, edges, features)
        pooled = x.new_zeros(graphs, x.size(1)).scatter_reduce_(0, graph[:, None].expand_as(x), x, "mean", include_self=False)
        return self.head(pooled).squeeze(-1)


def workload(width=300, depth=5, nodes=26, edges=56, most_nodes=52, most_edges=112):
    def graphs_of(nodes, edges):
        def batch(graphs):
            """As a collate function makes it: graphs one after another, edges with their nodes' offsets."""
            start = torch.arange(graphs).repeat_interleave(edges) * nodes
            ends = torch.randint(0, nodes, (2, graphs * edges)) + start
            graph = torch.arange(graphs).repeat_interleave(nodes)
            return torch.randint(0, 120, (graphs * nodes,)), ends, torch.randn(graphs * edges, 16), graph, torch.randn(graphs)

        return batch

    def loss(model, batch):
        *graphs, wanted = batch
        return F.l1_loss(model(*graphs, len(wanted)), wanted)

    return bsmodel.Workload(
        lambda: Network(width, depth),
        graphs_of(nodes, edges),
        loss,
        worst_batch=graphs_of(most_nodes, most_edges),
        training=bsmodel.Training(optimizer="adam"),
        name="gnn",
    )
