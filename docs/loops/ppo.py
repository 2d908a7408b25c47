# SPDX-License-Identifier: Apache-2.0
"""PPO: a rollout of b environments, advantages by GAE, several epochs over minibatches; distributions check their arguments."""

import torch
from torch import nn
from torch.distributions import Categorical

import bsmodel


class ActorCritic(nn.Module):
    def __init__(self, actions, hidden):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 7 * 7, hidden), nn.ReLU(),
        )  # fmt: skip
        self.policy, self.value = nn.Linear(hidden, actions), nn.Linear(hidden, 1)

    def forward(self, frames):
        features = self.body(frames / 255.0)
        return Categorical(logits=self.policy(features)), self.value(features).squeeze(-1)


def advantages(rewards, values, dones, gamma=0.99, smoothing=0.95):
    found, last = torch.zeros_like(rewards), torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards) - 1)):
        alive = 1.0 - dones[t + 1]
        delta = rewards[t] + gamma * values[t + 1] * alive - values[t]
        last = delta + gamma * smoothing * alive * last
        found[t] = last
    return found


def workload(steps=128, actions=6, hidden=512, epochs=4, minibatches=4):
    def step(agent, optimizer, rollout):
        frames, taken, rewards, dones = (part.to("cuda") for part in rollout)  # each of steps x b
        flat, taken = frames.flatten(0, 1), taken.flatten()
        with torch.no_grad():
            parts = [agent(chunk.float()) for chunk in flat.chunk(minibatches)]
            before = torch.cat([policy.log_prob(chosen) for (policy, _), chosen in zip(parts, taken.chunk(minibatches), strict=True)])
            values = torch.cat([value for _, value in parts])
        gain = advantages(rewards, values.view_as(rewards), dones).flatten()
        returns = gain + values
        for _ in range(epochs):
            for rows in torch.randperm(len(flat), device="cuda").chunk(minibatches):
                policy, value = agent(flat[rows].float())
                ratio = (policy.log_prob(taken[rows]) - before[rows]).exp()
                normal = (gain[rows] - gain[rows].mean()) / (gain[rows].std() + 1e-8)
                surrogate = torch.max(-normal * ratio, -normal * ratio.clamp(0.8, 1.2)).mean()
                loss = surrogate + 0.5 * (value - returns[rows]).pow(2).mean() - 0.01 * policy.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()

    def rollout(size):
        frames = torch.zeros(steps, size, 4, 84, 84, dtype=torch.uint8)
        return frames, torch.zeros(steps, size, dtype=torch.long), torch.zeros(steps, size), torch.zeros(steps, size)

    return bsmodel.Workload(lambda: ActorCritic(actions, hidden), rollout, step=step, training=bsmodel.Training(optimizer="adam"), name="ppo")
