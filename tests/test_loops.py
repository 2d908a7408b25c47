# SPDX-License-Identifier: Apache-2.0
"""The loops of docs/loops: each records, and its peak is the one recorded from the PyTorch CUDA allocator on a simulated device."""

import importlib.util
import random
import re
from datetime import date
from pathlib import Path

import pytest
import torch
from torch import nn

import bsmodel
from bsmodel import Training, Workload
from bsmodel.hardware import KINDS, Source
from bsmodel.recording import record
from tests.models import Attention, next_token, tokens
from tests.test_refusals import line_of

FOLDER = Path(__file__).parent.parent / "docs" / "loops"
FILES = sorted(path.stem for path in FOLDER.glob("*.py"))
PAGE = (FOLDER.parent / "loops.md").read_text()

# Parameters that make a loop small, and `max_memory_allocated` of three steps at two batches, in bytes. A card of compute capability 8.0 with 40 GB;
# convolutions had no workspaces of cuDNN, whose choice is another question (docs/convolutions.md).
MEASURED = {
    "gan": ({"width": 32}, {32: 65_198_592, 128: 156_465_152}),
    "wgan_gp": ({"width": 32, "critic_steps": 2}, {32: 45_005_312, 128: 99_138_048}),
    "ema": ({"channels": 32, "blocks": 2}, {32: 42_360_320, 128: 113_336_320}),
    "dqn": ({}, {32: 60_411_392, 128: 98_644_992}),
    "sam": ({"width": 32}, {32: 43_494_400, 128: 100_961_792}),
    "distillation": ({"vocabulary": 4000}, {4: 683_350_528, 16: 990_296_576}),
    "gnn": ({"width": 64, "depth": 2}, {32: 22_934_016, 256: 53_891_072}),
    "lightning_module": ({}, {128: 53_687_296, 2048: 100_852_224}),
    "accelerate_step": ({"layers": 2}, {8: 163_531_776, 32: 367_086_592}),
    "hf_trainer": ({"length": 256, "layers": 2}, {2: 1_347_110_400, 8: 2_143_025_664}),
    "nerf": ({"coarse": 16, "fine": 32}, {64: 90_502_656, 256: 259_942_912}),
    "diffusion": ({"side": 128, "unet": (32, 64, 64, 64), "vae": (32, 32, 64, 64), "layers": 2}, {2: 305_576_960, 8: 305_576_960}),
    "grad_scaler": ({"width": 16, "side": 64}, {4: 28_514_304, 16: 44_701_184}),
    "accumulation": ({"layers": 2}, {4: 470_751_744, 16: 745_355_776}),
    "selective_checkpoint": ({"layers": 2, "length": 256}, {2: 1_854_945_792, 8: 2_308_060_672}),
    "autograd_function": ({"depth": 3}, {64: 246_238_208, 1024: 324_602_880}),
    "maml": ({"width": 32, "tasks": 2, "inner_steps": 2}, {1: 363_588_096, 4: 542_436_864}),
    "prefetcher": ({"width": 16}, {32: 162_451_968, 128: 591_230_464}),
    "multitask": ({"width": 32}, {2: 342_548_992, 8: 1_300_980_224}),
    "pinn": ({"depth": 4}, {256: 34_390_016, 4096: 219_385_856}),
    "vae": ({"width": 32}, {16: 151_508_480, 128: 240_939_008}),
    "ppo": ({"steps": 32, "epochs": 2}, {2: 54_280_192, 8: 75_056_640}),
    "stochastic_depth": ({"depth": 4, "drop": 0.0}, {4: 415_452_160, 16: 590_482_432}),
    "dlrm": ({"rows": (10000, 1000, 100)}, {256: 29_433_856, 2048: 61_195_776}),
    "offload": ({"layers": 4}, {4: 2_347_664_896, 16: 4_115_505_664}),
}
UNMEASURED = {"packed_lstm", "seq2seq"}  # cuDNN's own RNNs are not on that device


@pytest.fixture(scope="module")
def card():
    """An A100 that takes no workspaces for convolutions."""
    gpu = bsmodel.Gpu.named("a100-40gb")
    source = Source(figures=("workspaces",), source="assumed", checked=date(2026, 11, 25), kind="derived")
    return gpu.model_copy(update={"workspaces": dict.fromkeys(KINDS, False), "sources": (*gpu.sources, source)})


def made(name, **parameters):
    """The workload of a file, as `bsmodel predict docs/loops/NAME.py:workload` makes it."""
    if name in ("accelerate_step", "hf_trainer", "diffusion"):
        for library in ("accelerate", "transformers", "diffusers"):
            pytest.importorskip(library)
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.workload(**parameters)


def test_the_page_names_every_file_and_no_other():
    assert {name.removesuffix(".py") for name in re.findall(r"loops/(\w+\.py)", PAGE)} == set(FILES)
    assert set(FILES) == set(MEASURED) | UNMEASURED
    assert set(re.findall(r"loops/(\w+)\.py\).*\| refused", PAGE)) == set()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:You are trying to .self.log:UserWarning")  # a LightningModule without a Trainer
@pytest.mark.parametrize("name", MEASURED)
def test_the_peak_is_the_measured_one(name, card):
    parameters, measured = MEASURED[name]
    tape = bsmodel.trace(made(name, **parameters), None, card)
    found = {batch: bsmodel.predict(tape, card, batch).allocated_bytes for batch in measured}

    assert found == pytest.approx(measured, rel=0.003)


def agrees(asked, card, batch=7):
    """Whether the formula of a loop gives what a recording at that batch gives."""
    formula = bsmodel.footprint(bsmodel.trace(asked, None, card))
    return formula(batch) == bsmodel.footprint(record(asked, asked.training, card, batch))(1)


@pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN")
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("packed_lstm", {"vocabulary": 100, "width": 16, "mean": 6, "longest": 9}),
        ("seq2seq", {"vocabulary": 100, "width": 16, "length": 5, "forcing": 0.0}),
        ("stochastic_depth", {"width": 16, "depth": 4, "drop": 0.0, "length": 9}),
        ("seq2seq", {"vocabulary": 100, "width": 16, "length": 12}),
        ("stochastic_depth", {"width": 16, "depth": 12, "drop": 0.9, "length": 9}),
    ],
)
def test_the_formula_is_what_another_batch_records(name, parameters, card):
    random.seed(1)

    assert agrees(made(name, **parameters), card)


# -- what a step is given --------------------------------------------------------------------------------------------------------------


def two(optimizers, **fields):
    """A step with a body and a head, and what `setup` makes of them."""

    def step(nets, opt, batch):
        next_token(nets["a"], [part.to("cuda") for part in batch])[0].backward()
        for optimizer in opt.values():
            optimizer.step()
            optimizer.zero_grad()

    return Workload(lambda: nn.ModuleDict({"a": Attention()}), tokens, setup=optimizers, step=step, name="two", **fields)


def test_the_state_of_every_optimizer_is_counted_as_such(a100):
    halves = two(
        lambda nets: {"body": torch.optim.Adam(nets["a"].blocks.parameters()), "head": torch.optim.SGD(nets["a"].head.parameters(), lr=1, momentum=0.9)}
    )
    tape = bsmodel.trace(halves, None, a100)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in Attention().named_children()}
    state = sum(size for size, what in zip(tape.fixed_bytes, tape.categories, strict=True) if what == "optimizer state")

    assert tape.optimizer == "Adam and SGD" and tape.optimizer_family == "adam"
    assert 4 * (2 * sizes["blocks"] + sizes["head"]) == state


def test_what_setup_leaves_on_the_device_is_state(a100):
    def averaged(nets):
        return {"adam": torch.optim.Adam(nets.parameters(), capturable=False)} | {"copy": Silent([p.detach().clone() for p in nets.parameters()])}

    class Silent:
        def __init__(self, copies):
            self.copies = copies

        def step(self):
            torch._foreach_lerp_(self.copies, self.copies, 0.1)

        def zero_grad(self):
            pass

    tape = bsmodel.trace(two(averaged), None, a100)
    state = sum(size for size, what in zip(tape.fixed_bytes, tape.categories, strict=True) if what == "optimizer state")

    assert state == 3 * 4 * sum(p.numel() for p in Attention().parameters())


def test_a_step_without_an_optimizer_says_so():
    def step(model, optimizer, batch):
        next_token(model, [part.to("cuda") for part in batch])[0].backward()
        model.zero_grad()

    (remark,) = bsmodel.trace(Workload(Attention, tokens, step=step)).remarks

    assert remark.startswith("a call of step came by in which no optimizer made a step")
    assert bsmodel.trace(Workload(Attention, tokens, next_token)).remarks == ()


def test_a_setup_is_not_overruled_and_needs_a_step():
    asked = two(lambda nets: {"one": torch.optim.Adam(nets.parameters())})

    assert "to which optimizer=sgd is not applied; make the optimizer in its setup" in line_of(bsmodel.trace, asked, Training(optimizer="sgd"))
    assert "no step=" in line_of(Workload, Attention, tokens, next_token, setup=lambda model: None)


def test_the_state_that_accelerate_keeps_for_a_process_is_as_it_was():
    state = pytest.importorskip("accelerate.state")
    before = dict(state.PartialState._shared_state)
    bsmodel.trace(made("accelerate_step", width=64, layers=1))

    assert dict(state.PartialState._shared_state) == before


@pytest.mark.filterwarnings("ignore:.*LeafSpec.. is deprecated:FutureWarning")  # Lightning 2.6 with torch 2.13
def test_a_lightning_module_trains_in_the_trainer_as_in_the_loop():
    lightning = pytest.importorskip("lightning")
    module = made("lightning_module", width=16, latent=4).model()
    data = torch.utils.data.DataLoader([(torch.zeros(1, 28, 28), 0)] * 4, batch_size=2)
    lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False).fit(module, data)


# -- what the machine lacks ------------------------------------------------------------------------------------------------------------


def streams(x):
    side = torch.cuda.Stream(priority=-1)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        y = x * 2
    y.record_stream(torch.cuda.current_stream())
    torch.cuda.current_stream().wait_event(side.record_event())
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    end.record()
    assert end.query() and start.elapsed_time(end) > 0


def types(x):
    valid = torch.autograd.Variable(torch.cuda.FloatTensor(x.size(0), 1).fill_(1.0), requires_grad=False)
    assert isinstance(valid, torch.cuda.FloatTensor) and not isinstance(valid, torch.cuda.LongTensor)
    assert not isinstance(torch.zeros(1), torch.cuda.FloatTensor)
    assert torch.zeros(3).type(torch.cuda.HalfTensor).dtype is torch.float16 and torch.zeros(3).type("torch.cuda.LongTensor").is_cuda
    assert torch.cuda.LongTensor([1, 2]).shape == (2,)


def statistics(x):
    free, total = torch.cuda.mem_get_info()
    assert free <= total and torch.cuda.memory_stats()["allocated_bytes.all.peak"] == torch.cuda.max_memory_reserved() == 0
    torch.cuda.nvtx.range_push(torch.cuda.memory_summary())
    torch.cuda.nvtx.range_pop()
    with torch.cuda.device(0):
        torch.cuda.set_rng_state(torch.cuda.get_rng_state())
    torch.cuda.manual_seed_all(torch.cuda.initial_seed())


def pinned(x):
    assert torch.zeros(3).pin_memory().to("cuda", non_blocking=True).is_cuda
    assert torch.zeros(3, pin_memory=True).shape == (3,)


@pytest.mark.parametrize("use", [streams, types, statistics, pinned])
def test_what_only_a_machine_with_the_card_has_is_pretended(use):
    def step(model, optimizer, batch):
        x = batch.to("cuda")
        use(x)
        model(x).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    tape = bsmodel.trace(Workload(lambda: nn.Linear(8, 8), lambda size: torch.zeros(size, 8), step=step))

    assert not tape.uncounted and bool(tape.streams) == (use is streams)
    assert torch.cuda.Stream.__module__ == "torch.cuda.streams" and not torch.cuda.is_available()


def test_what_sums_the_duplicates_of_a_sparse_gradient_is_refused():
    def loss(model, ids):
        return model(ids).mean()

    asked = Workload(lambda: nn.Embedding(100, 8, sparse=True), lambda size: torch.zeros(size, 4, dtype=torch.long), loss, name="table")
    message = line_of(bsmodel.trace, asked, Training(optimizer=lambda parameters: torch.optim.SparseAdam(list(parameters))))

    assert "_coalesce of a sparse gradient at " in message and "sparse=False" in message
    assert bsmodel.trace(asked, Training(optimizer="sgd")).parameter_count == 800
