# SPDX-License-Identifier: Apache-2.0
"""The training fits on the cards that we have, and takes no more than it did."""

from model import training


def test_it_fits(training_memory):
    training_memory(training).fits("rtx-4090-24gb", batch=4096)


def test_it_takes_no_more_than_it_did(training_memory):
    training_memory(training, precision="bf16-mixed").no_worse_than_baseline("rtx-4090-24gb", batch=256, allow="1%")
