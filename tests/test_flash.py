# SPDX-License-Identifier: Apache-2.0
"""FlashAttention's packages, which need not be installed: what transformers and programs of one's own record with them, and what is refused."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import bsmodel
from bsmodel import Training, Workload

transformers = pytest.importorskip("transformers")
LLAMA = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "architectures": ["LlamaForCausalLM"],
}


def line_of(call, *arguments):
    """The message of the one-line refusal that a call ends in."""
    with pytest.raises(bsmodel.BsmodelError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def llama(tmp_path):
    """A config with the attention asked for."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return lambda attention: Workload.named(str(tmp_path), attention=attention, seq_len=256)


def padded(workload, length):
    """The same with sequences that end in padding."""

    def batch(size):
        made = dict(workload.batch(size))
        made["attention_mask"] = (torch.arange(256) < length).long().expand(size, 256).contiguous()
        return made

    return Workload(workload.model, batch, workload.loss, name="padded", training=workload.training)


def test_transformers_records_with_the_kernels_that_pytorch_has(llama, a100):
    """Without a mask PyTorch takes the same kernels by itself."""
    second, third, usual = (bsmodel.trace(llama(name), gpu=a100) for name in ("flash_attention_2", "flash_attention_3", "sdpa"))

    assert "aten._flash_attention_backward.default" in second.operators
    assert "bsmodel.flash3_attention_backward.default" in third.operators
    peaks = [bsmodel.predict(tape, a100, 16).allocated_bytes for tape in (second, third, usual)]
    assert peaks[0] == pytest.approx(peaks[2], rel=1e-4) and peaks[1] == pytest.approx(peaks[2], rel=0.01)


def test_transformers_may_be_imported_by_the_recording_itself():
    program = (
        "import sys, bsmodel; workload = bsmodel.Workload.named('gpt2', attention='flash_attention_2', seq_len=64); assert 'transformers' not in sys.modules;"
        "print('aten._flash_attention_backward.default' in bsmodel.trace(workload).operators)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert result.stdout == "True\n", result.stderr


def test_padding_is_taken_out_where_the_mask_is_known(llama, a100):
    saved = []
    for length in (128, 192):
        tape = bsmodel.trace(padded(llama("flash_attention_2"), length), gpu=a100)
        found = [int(tape.per_sample_bytes[i]) for i, name in enumerate(tape.operators) if name == "aten._flash_attention_forward.default"]
        saved.append(found[0])

    assert saved == [128 * 128 * 2, 192 * 128 * 2]  # positions, width, bytes of bfloat16


def test_nothing_is_left_behind(llama, a100):
    utils = sys.modules["transformers.modeling_flash_attention_utils"]
    before = utils._loaded_implementation, utils.is_flash_attn_2_available
    bsmodel.trace(llama("flash_attention_2"), gpu=a100)

    assert "flash_attn" not in sys.modules and "flash_attn_interface" not in sys.modules
    assert (utils._loaded_implementation, utils.is_flash_attn_2_available) == before
    assert not utils.is_flash_attn_2_available() and not utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]["general_availability_check"]()


@pytest.mark.parametrize(
    ("attention", "gpu", "precision", "message"),
    [
        ("flash_attention_2", "t4-16gb", "fp16-mixed", "FlashAttention-2 runs on GPUs of compute capability 8.0 or above, this one has 7.5"),
        ("flash_attention_3", "b200-180gb", "bf16-mixed", "FlashAttention-3 runs on GPUs of compute capability 8.0 to 9.0, this one has 10.0"),
        ("flash_attention_2", "a100-40gb", "fp32", "FlashAttention-2 takes float16 and bfloat16, not float32"),
    ],
)
def test_what_the_package_refuses_is_refused(llama, attention, gpu, precision, message):
    assert message in line_of(bsmodel.trace, llama(attention), Training(precision=precision), bsmodel.Gpu.named(gpu))


class Own(nn.Module):
    """Attention by a call of one's own."""

    def __init__(self, **options):
        super().__init__()
        self.project, self.options = nn.Linear(96, 3 * 96), options

    def forward(self, x):
        from flash_attn import flash_attn_func

        q, k, v = self.project(x).unflatten(-1, (3, 4, 24)).unbind(2)
        return flash_attn_func(q, k, v, causal=True, **self.options).flatten(2)


class Flexible(nn.Module):
    """Attention that PyTorch compiles for its masks."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(64, 64)

    def forward(self, x):
        heads = self.project(x).unflatten(-1, (4, 16)).transpose(1, 2)
        return nn.attention.flex_attention.flex_attention(heads, heads, heads)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_refused_by_name(a100):
    flexible = Workload(Flexible, lambda size: torch.zeros(size, 64, 64), lambda model, x: model(x).float().mean(), name="flexible")
    config = transformers.LlamaConfig(**{**LLAMA, "attn_implementation": "flex_attention"})
    flexed = Workload(
        lambda: transformers.LlamaForCausalLM(config),
        lambda size: dict.fromkeys(("input_ids", "labels"), torch.zeros(size, 64, dtype=torch.long)),
        lambda model, batch: model(**batch).loss,
        name="flexed",
    )

    for workload in (flexible, flexed):
        assert "flex_attention is not recorded: compiled it is a kernel that Inductor writes" in line_of(bsmodel.trace, workload, Training(), a100)


def own(**options):
    return Workload(lambda: Own(**options), lambda size: torch.zeros(size, 64, 96), lambda model, x: model(x).float().mean(), name="own")


def test_a_call_of_ones_own_is_counted_and_timed(a100):
    tape = bsmodel.trace(own(), Training(precision="bf16"), a100)
    rows = [(name, kind) for name, kind in zip(tape.operations.operators, tape.operations.kinds, strict=True) if "flash" in name]

    assert rows == [("aten._flash_attention_forward.default", "flash attention"), ("aten._flash_attention_backward.default", "flash attention backward")]
    assert "aten._flash_attention_forward.default" not in tape.uncounted_operators


def test_deterministic_gradients_are_refused_by_name(a100):
    message = line_of(bsmodel.trace, own(deterministic=True), Training(precision="bf16"), a100)
    assert "FlashAttention-2 with deterministic=True, whose buffers are no line in the batch, is not recorded; leave it out" in message
