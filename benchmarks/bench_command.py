# SPDX-License-Identifier: Apache-2.0
"""How long the command takes, cold and asked again: python -m pytest benchmarks/bench_command.py -o python_files='bench_*.py' (pytest-benchmark)."""

import os
import subprocess
import sys

import pytest

MODELS = ("resnet50", "vit-b-16", "gpt2", "bert-base", "llama-3.2-1b", "sd15-unet")
GRID = "--model gpt2 --model bert-base --model resnet50 --gpu a100-40gb --gpu h100-80gb --gpu t4-16gb --gpu rtx-5090-32gb".split()
RECIPES = "--precision fp32 --precision fp16-mixed --checkpointing no --checkpointing yes".split()


@pytest.fixture
def ask(tmp_path):
    """Asks in a process of its own, as a user does, with a cache of its own."""
    environment = {**os.environ, "BSMODEL_CACHE_DIR": str(tmp_path)}

    def run(*arguments):
        subprocess.run([sys.executable, "-m", "bsmodel", *arguments], check=True, capture_output=True, env=environment)

    return run


@pytest.mark.parametrize("model", MODELS)
def test_a_cold_plan(benchmark, ask, model):
    """Four GPUs, nothing kept: imports of torch and the model's library, two recordings, four plans."""
    benchmark.pedantic(ask, ("plan", model, "--no-cache"), rounds=3)


@pytest.mark.parametrize("model", MODELS)
def test_a_plan_asked_again(benchmark, ask, model):
    """The same from the cache."""
    ask("plan", model)
    benchmark.pedantic(ask, ("plan", model), rounds=3)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_study(benchmark, ask, workers):
    """Three models, four recipes, four GPUs of four families: 48 recordings and answers."""
    benchmark.pedantic(ask, ("study", *GRID, *RECIPES, "--no-cache", "--workers", str(workers)), rounds=1)
