# SPDX-License-Identifier: Apache-2.0
"""A batch for other trainers to start from, and the page's examples of each, run as they stand."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

import bsmodel
from bsmodel import InvalidInputError, UnknownNameError, find_batch
from bsmodel.units import GiB
from tests.models import SGD, of_size, workload

PAGE = (Path(__file__).parent.parent / "docs" / "trial.md").read_text()
FILES = {match[1]: text for text in re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S) if (match := re.match(r"# (\S+\.py)\n", text))}


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Runs an example of the page beside the network that all of them train, and gives what it defined."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "small", raising=False)
    yield lambda name: runpy.run_path(str(tmp_path / name), run_name="__main__")
    sys.modules.pop("small", None)


def test_the_batch_is_the_largest_power_of_two_that_is_safe(tape, a100):
    safe = bsmodel.fit(tape, a100).batch
    found = find_batch(workload(), SGD, a100)

    assert found <= safe < 2 * found and found & (found - 1) == 0
    assert found == find_batch(workload(training=SGD), gpu="a100-40gb")


def test_a_name_is_enough():
    pytest.importorskip("transformers")
    named = bsmodel.Workload.named("gpt2")

    assert find_batch("gpt2", gpu="rtx-3070-8gb") == find_batch(named, named.training, bsmodel.Gpu.named("rtx-3070-8gb")) >= 1


def test_several_devices_leave_room_for_their_buckets(a100):
    """DistributedDataParallel holds the gradients once more."""

    def wide():
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 1 << 16), torch.nn.Linear(1 << 16, 10))

    def most(devices):
        return find_batch(workload(wide), SGD, a100.leaving(headroom_bytes=36 * GiB), devices)

    assert 1 <= most(2) < most(1)


def test_what_has_no_batch_is_refused_in_a_line(a100):
    with pytest.raises(InvalidInputError, match=r"^small does not fit on a100-40gb: one sample needs [^\n]+$"):
        find_batch(workload(), SGD, of_size(a100, 501))
    with pytest.raises(UnknownNameError, match="unknown GPU"):
        find_batch(workload(), SGD, "a101")
    with pytest.raises(InvalidInputError, match="devices is 0"):
        find_batch(workload(), SGD, a100, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_card_one_has_to_be_named():
    with pytest.raises(InvalidInputError, match=r"no CUDA device here .* gpu=, or --gpu"):
        find_batch(workload(), SGD)


def test_the_examples_are_found():
    assert set(FILES) == {"small_images.py", "with_lightning.py", "with_accelerate.py", "with_transformers.py"}


@pytest.mark.filterwarnings("ignore:.*LeafSpec.. is deprecated:FutureWarning")  # Lightning 2.6 with torch 2.13
@pytest.mark.filterwarnings("ignore:The '.*' does not have many workers")
def test_lightning_begins_with_the_prediction_and_doubles_it(example, capsys):
    pytest.importorskip("lightning")
    done = example("with_lightning.py")

    assert 16 <= done["start"] <= 64
    assert done["module"].batch_size == done["finder"].optimal_batch_size == 2 * done["start"]  # a host has room for it
    assert f"began with {done['start']}, trains with {2 * done['start']}" in capsys.readouterr().out


def test_accelerate_calls_once(example, capsys):
    pytest.importorskip("accelerate")
    done = example("with_accelerate.py")

    assert done["tried"] == [done["start"]]
    assert f"began with {done['start']}, trains with {done['start']}" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")  # the Trainer's default, on a host without a GPU
def test_the_trainer_of_transformers_trains_with_the_prediction(example, capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    done = example("with_transformers.py")

    assert done["trainer"].state.global_step == 2 and done["trainer"].state.train_batch_size == done["start"]
    assert f"began with {done['start']}, trains with {done['start']}" in capsys.readouterr().out
