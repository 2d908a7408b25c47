# SPDX-License-Identifier: Apache-2.0
"""Types of models with layers of their own (state spaces, delta rules, convolutions, experts): peaks as recorded from the PyTorch CUDA allocator (2.11).

On a simulated A100 of 40 GB, three steps of AdamW in bf16-mixed at a batch of 8, sequences as long as the configuration has positions, at most 2048.
"""

import json
from pathlib import Path

import pytest

import bsmodel
from tests.test_configs import built

pytest.importorskip("transformers")

FIELDS = json.loads((Path(__file__).parent.parent / "benchmarks" / "data" / "shrunk.json").read_text())
MEASURED = {  # by type: the class, allocated and reserved bytes
    "bamba": ("BambaForCausalLM", 783_525_376, 1_019_215_872),
    "granitemoehybrid": ("GraniteMoeHybridForCausalLM", 830_888_960, 1_310_720_000),
    "lfm2_moe": ("Lfm2MoeForCausalLM", 358_475_264, 415_236_096),
    "gemma3n_text": ("Gemma3nForCausalLM", 1_192_852_480, 1_289_748_480),
    "kimi_linear": ("KimiLinearForCausalLM", 4_593_118_208, 5_265_948_672),
    "zaya": ("ZayaForCausalLM", 623_579_136, 752_877_568),
    "falcon_h1": ("FalconH1ForCausalLM", 1_225_174_528, 1_382_023_168),
    "mistral4": ("Mistral4ForCausalLM", 429_872_640, 494_927_872),
    "dots1": ("Dots1ForCausalLM", 373_381_120, 490_733_568),
    "zamba2": ("Zamba2ForCausalLM", 1_646_822_400, 1_822_425_088),
    "marian": ("MarianMTModel", 214_950_912, 245_366_784),
    "pegasus": ("PegasusForConditionalGeneration", 220_331_008, 245_366_784),
    "plbart": ("PLBartForCausalLM", 143_003_648, 203_423_744),
}


@pytest.mark.parametrize("model_type", MEASURED)
def test_types_take_what_they_take_on_cuda(a100, config, model_type):
    architecture, allocated, reserved = MEASURED[model_type]
    workload = built(config({**FIELDS[model_type], "model_type": model_type, "architectures": [architecture]}))[0]
    peak = bsmodel.predict(bsmodel.trace(workload, bsmodel.Training(precision="bf16-mixed"), a100), a100, 8)
    assert peak.allocated_bytes == pytest.approx(allocated, rel=0.003)
    assert peak.reserved_bytes == pytest.approx(reserved, rel=0.006)
