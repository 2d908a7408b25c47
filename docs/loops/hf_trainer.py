# SPDX-License-Identifier: Apache-2.0
"""transformers' TrainingArguments as a workload: what the Trainer would do with them on one device."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import bsmodel

ACCUMULATION = 2


def arguments():
    return TrainingArguments(
        output_dir="out", bf16=True, gradient_accumulation_steps=ACCUMULATION, max_grad_norm=1.0,
        optim="adamw_torch", learning_rate=5e-5, report_to=[],
    )  # fmt: skip


class Loop:
    """The Trainer, and what its train() makes before the first step."""

    def __init__(self, model):
        self.trainer = Trainer(model=model, args=arguments())
        self.optimizer = self.trainer.create_optimizer()
        model.gradient_checkpointing_enable()


def step(model, loop, micro_batches):
    """An optimizer step of Trainer.train: its own training_step for each micro-batch, then clip, step and zero."""
    trainer = loop.trainer
    trainer.current_gradient_accumulation_steps = len(micro_batches)
    for inputs in micro_batches:
        trainer.training_step(model, inputs)
    trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
    loop.optimizer.step()
    model.zero_grad()


def workload(length=1024, layers=12):
    def batches(size):
        ids = torch.zeros(size, length, dtype=torch.long)
        return [{"input_ids": ids, "labels": ids} for _ in range(ACCUMULATION)]

    return bsmodel.Workload(lambda: GPT2LMHeadModel(GPT2Config(n_layer=layers)), batches, setup=Loop, step=step, name="hf-trainer", tokens_per_sample=length)
