# SPDX-License-Identifier: Apache-2.0
"""Double DQN: a batch of the replay buffer, a target network that follows slowly."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

import bsmodel


def network(actions):
    return nn.Sequential(
        nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU(), nn.Linear(512, actions),
    )  # fmt: skip


class Agent:
    def __init__(self, online):
        self.target = copy.deepcopy(online).requires_grad_(False)
        self.optimizer = torch.optim.RMSprop(online.parameters(), lr=2.5e-4, alpha=0.95, eps=0.01)


def step(online, agent, transitions, gamma=0.99, tau=0.005):
    state, action, reward, following, done = (part.to("cuda") for part in transitions)
    state, following = state.float() / 255, following.float() / 255
    predicted = online(state).gather(1, action.unsqueeze(1)).squeeze(1)
    with torch.no_grad():
        best = online(following).argmax(1, keepdim=True)
        wanted = reward + gamma * (1 - done) * agent.target(following).gather(1, best).squeeze(1)
    loss = F.smooth_l1_loss(predicted, wanted)
    agent.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_value_(online.parameters(), 1.0)
    agent.optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(agent.target.parameters(), online.parameters(), strict=True):
            slow.lerp_(fast, tau)


def replayed(size):
    frames = torch.zeros(2, size, 4, 84, 84, dtype=torch.uint8)
    return frames[0], torch.zeros(size, dtype=torch.long), torch.zeros(size), frames[1], torch.zeros(size)


def workload(actions=18):
    return bsmodel.Workload(lambda: network(actions), replayed, setup=Agent, step=step, name="dqn")
