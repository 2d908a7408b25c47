# SPDX-License-Identifier: Apache-2.0
"""Steps that a GPU would refuse, that grow, that read values, or that do something else than the recipe says: none is answered in silence."""

import os
import sys

import torch
from torch import nn
from torch.nn import functional as F

import bsmodel
from bsmodel import Training, Workload
from tests.models import SGD, images, workload
from tests.test_refusals import line_of

HERE = "test_steps.py:"


def mean(model, batch):
    return model(batch[0]).mean()


class Narrow(nn.Module):
    """A linear layer, and whatever `after` makes of its output."""

    def __init__(self, after=lambda module, z: z):
        super().__init__()
        self.narrow = nn.Linear(768, 8)
        self.after = after

    def forward(self, x):
        return self.after(self, self.narrow(x.flatten(1)))


def narrow(after):
    return workload(lambda: Narrow(after), loss=mean)


# -- what CUDA refuses -----------------------------------------------------------------------------------------------------------------


def test_operands_on_two_devices_are_refused_with_file_and_line():
    mask = torch.ones(8)
    teacher = nn.Linear(768, 8)

    def distilled(model, batch):
        with torch.no_grad():
            target = teacher(batch[0].flatten(1))
        return F.mse_loss(model(batch[0]), target)

    for asked in (narrow(lambda module, z: z * mask), workload(Narrow, loss=distilled), narrow(lambda module, z: torch.cat([z, torch.zeros(z.size(0), 1)], 1))):
        message = line_of(bsmodel.trace, asked, SGD)
        assert HERE in message and "tensors of one device, not cuda:0 and cpu" in message


def test_scalars_indices_and_copies_may_come_from_the_host():
    order = torch.tensor([3, 1, 2])

    def after(module, z):
        z = z[:, order] * torch.tensor(2.0)
        z = torch.where(z > 0, z, torch.tensor(0.0))
        z = z.masked_fill(z > 0, torch.tensor(-1.0))
        return z + torch.ones(3).to(z.device)

    assert bsmodel.trace(narrow(after), SGD).remarks == ()


def test_a_tensor_of_scalars_on_the_device_takes_their_values():
    """Where they are known: labels are zeros here. Where they are not, the line is remarked as any read is."""

    def loss(model, batch):
        counts = torch.tensor([batch[1].max(), 3], device=batch[1].device)
        return model(batch[0]).mean() * (counts.sum() if bool(counts[1] == 3) else None)

    assert bsmodel.trace(workload(Narrow, loss=loss), SGD).remarks == ()
    tape = bsmodel.trace(narrow(lambda module, z: z * torch.tensor([z.sum().detach(), 1.0], device=z.device)[0]), SGD)
    assert "values read at" in tape.remarks[0] and HERE in tape.remarks[0]


def test_random_numbers_may_come_from_a_generator_of_the_device():
    def noisy(module, z):
        generator = torch.Generator(device="cuda").manual_seed(1)
        return z + torch.rand(z.shape, device=z.device, generator=generator)

    assert bsmodel.trace(narrow(noisy), SGD).remarks == ()


def test_activations_are_selected_by_a_mask_that_the_host_knows():
    """As many as it selects, beside the indices that CUDA makes of the mask first: int64, one for each of its dimensions."""

    def loss(model, batch):
        outputs = model.narrow(batch[0].flatten(1))
        kept = batch[1].unsqueeze(1).expand(-1, 8) == torch.arange(8, device=outputs.device) % 2
        return outputs[kept].square().sum()

    tape = bsmodel.trace(workload(Narrow, loss=loss), SGD)
    fixed, slopes, _ = tape.coefficients()
    found = {name: {(int(fixed[i]), int(slopes[i])) for i, operator in enumerate(tape.operators) if operator == name} for name in set(tape.operators)}

    assert found["aten.index.Tensor"] == {(0, 4 * 4)}  # four of eight float32 a sample
    assert found["aten.nonzero.default"] == {(0, 4 * 2 * 8)}
    assert tape.remarks == ()


def test_what_a_known_mask_selects_is_written_and_its_gradient_read():
    """Four of eight values a sample; the gradient of what is written is selected by the mask that autograd saved."""

    def loss(model, batch):
        outputs = model.narrow(batch[0].flatten(1)) * 1
        mask = batch[1].unsqueeze(1).expand(-1, 8) == torch.arange(8, device=outputs.device) % 2
        outputs[mask.to(torch.bool)] = model.narrow(batch[0].flatten(1)).sin()[:, :4].reshape(-1)
        return outputs.square().sum()

    tape = bsmodel.trace(workload(Narrow, loss=loss), SGD)

    assert {int(tape.per_sample_bytes[i]) for i, operator in enumerate(tape.operators) if operator == "aten.index.Tensor"} == {4 * 4}
    assert tape.remarks == ()


def test_masks_may_be_made_by_vmap():
    def masked(module, z):
        rows = torch.arange(z.size(-1), device=z.device)
        keep = torch.vmap(lambda row: (row <= rows).new_ones(()) & (row <= rows))(rows)
        return z @ keep.to(z.dtype)

    assert bsmodel.trace(narrow(masked), SGD).remarks == ()


def test_a_constructor_may_move_what_has_no_data():
    """Tables of positions are made large, and brought to where their input is."""

    def model():
        module = Narrow(lambda module, z: z + module.table[:8].to(z.device))
        module.table = torch.zeros(3 << 20).sin().to(device=torch.zeros(()).device, dtype=torch.float32)
        return module

    assert "aten.add.Tensor" in bsmodel.trace(workload(model), SGD).operators


def test_sums_of_what_is_the_same_throughout_are_known():
    """Whether an image is more than padding: so many values are not zero."""

    def loss(model, batch):
        real = (batch == 0.0).sum(dim=(-1, -2)) != batch[0].numel()
        return model(batch[real]).square().sum()

    images = Workload(lambda: nn.Linear(1500, 8), lambda size: torch.ones(1, 1, 1).expand(size, 1500, 1500), loss)
    tape = bsmodel.trace(images, SGD)

    assert {int(tape.per_sample_bytes[i]) for i, operator in enumerate(tape.operators) if operator == "aten.index.Tensor"} == {4 * 1500 * 1500}
    assert tape.remarks == ()


def test_a_large_table_that_was_not_registered_stays_on_the_host():
    def model(moved):
        module = Narrow(lambda module, z: z + (module.table.to(z.device) if moved else module.table)[: z.size(0), :8])
        module.table = torch.zeros(512, 512)
        return module

    assert "one device" in line_of(bsmodel.trace, workload(lambda: model(False), loss=mean), SGD)
    tape = bsmodel.trace(workload(lambda: model(True), loss=mean), SGD)
    assert 512 * 512 * 4 in tape.fixed_bytes[[event for event in tape.blocks["micro"] if event >= 0]]


def test_operands_of_two_dtypes_are_refused_with_file_and_line():
    refused = {
        "addmm takes operands of one dtype, not float64 and float32": lambda m, z: m.narrow(torch.zeros(z.size(0), 768, device="cuda", dtype=torch.float64)),
        "native_layer_norm takes operands of one dtype": lambda m, z: F.layer_norm(z.half(), (8,), torch.ones(8, device="cuda")),
        "class labels of dtype int64, not int32": lambda m, z: F.cross_entropy(z, torch.zeros(z.size(0), dtype=torch.int32, device="cuda")),
    }
    for words, after in refused.items():
        message = line_of(bsmodel.trace, narrow(after), SGD)
        assert HERE in message and words in message

    def step(model, optimizer, batch):
        model(batch[0].to("cuda")).mean().backward()

    half = bsmodel.Workload(Narrow, images, step=step, name="own")
    assert "operands of one dtype, not float32 and bfloat16" in line_of(bsmodel.trace, half, Training(precision="bf16"))


def test_an_error_in_backward_names_the_line_and_module_of_the_forward_pass():
    class Wrong(nn.Module):
        def forward(self, z):
            y = z.sigmoid()
            y.add_(1)  # its backward needs what it was
            return y

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.wrong = nn.Linear(768, 8), Wrong()

        def forward(self, x):
            return self.wrong(self.narrow(x.flatten(1)))

    message = line_of(bsmodel.trace, workload(Outer, loss=mean), SGD)
    line = Wrong.forward.__code__.co_firstlineno + 1
    assert f"fails while it is recorded, in the backward pass of {__file__}:{line} (module wrong): RuntimeError: one of the variables" in message


def test_a_size_that_backward_finds_in_values_names_the_line_of_the_forward_pass():
    class Selecting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.unique(gradient).size(0)

    message = line_of(bsmodel.trace, narrow(lambda module, z: Selecting.apply(z)), SGD)
    assert "size depends on tensor values" in message and HERE in message


def test_a_library_beside_torch_is_not_taken_for_torch(tmp_path):
    package = tmp_path / "torchlike.py"
    package.write_text("def loss(z):\n    return z.mean() if z.sum() > 0 else z\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import torchlike

        remarks = bsmodel.trace(narrow(lambda module, z: torchlike.loss(z)), SGD).remarks
    finally:
        sys.path.remove(str(tmp_path))
    assert any(f"{package}:2 " in remark for remark in remarks)
    assert bsmodel.recording.frames._kind(os.path.dirname(torch.__file__) + "vision/ops.py") == "user"


# -- what grows, and what changes ------------------------------------------------------------------------------------------------------


def test_activations_that_pile_up_from_step_to_step_are_refused():
    kept = []

    def hoard(module, z):
        kept.append(z.detach().clone())
        return z

    message = line_of(bsmodel.trace, narrow(hoard), SGD)
    assert "keeps more after every step" in message and "aten.clone.default in module model" in message


def test_a_cache_that_grows_from_step_to_step_is_refused():
    def remember(module, z):
        before = getattr(module, "before", z.detach()[:0])
        module.before = torch.cat([before, z.detach()])
        return z

    message = line_of(bsmodel.trace, narrow(remember), SGD)
    assert "keeps more after every step" in message and "aten.cat.default" in message


def test_what_is_replaced_in_every_step_is_no_growth():
    def remember(module, z):
        module.last = z.detach().clone()
        return z

    assert bsmodel.trace(narrow(remember), SGD).same_path_up_to is None


def test_a_path_that_changes_at_a_larger_batch_bounds_the_answer(a100):
    def after(module, z):
        return torch.cat([z, z.exp()], 1) if z.size(0) > 1000 else z

    tape = bsmodel.trace(narrow(after), SGD, a100)
    assert tape.same_path_up_to == 1000


def test_a_batch_that_cannot_be_made_near_the_largest_is_remarked(a100):
    def short(size):
        if size > 100:
            raise IndexError("the data set ends")
        return images(size)

    tape = bsmodel.trace(workload(batch=short), SGD, a100)
    assert tape.same_path_up_to is None
    assert "to confirm the formula there: IndexError: the data set ends" in tape.remarks[0]


def test_a_batch_function_that_ignores_its_size_is_refused():
    message = line_of(bsmodel.trace, workload(batch=lambda size: images(4)), SGD)
    assert message.startswith("batch(2) and batch(3) of small give the same sizes ((4, 3, 16, 16), (4,)); expected as many samples as are asked for")


def test_sizes_found_in_values_are_not_remembered_by_shape():
    """`nonzero` of two masks of one shape, with n and 2n hits for n samples."""

    def masks(size):
        first, second = torch.zeros(size, 16, dtype=torch.bool), torch.zeros(size, 16, dtype=torch.bool)
        first[:, :5], second[:, :10] = True, True
        return torch.zeros(size, 768), first, second

    def loss(model, batch):
        z = model(batch[0])
        return sum(z.mean() * torch.nonzero(mask).float().mean() for mask in batch[1:])

    tape = bsmodel.trace(workload(Narrow, masks, loss), SGD)
    slopes = [tape.per_sample_bytes[i] for i, name in enumerate(tape.operators) if name == "aten.nonzero.default" and tape.phases[i] == "forward"]
    assert slopes[:2] == [5 * 2 * 8, 10 * 2 * 8]


def test_the_ctc_loss_takes_what_it_takes_on_cuda():
    """Blocks in order, recorded from the PyTorch CUDA allocator on a simulated device: 8 samples of 49 frames, 32 letters, labels of up to 20."""

    def loss(model, batch):
        frames = model(batch[0]).log_softmax(-1).transpose(0, 1)
        lengths = torch.full((frames.size(1),), 49), torch.full((frames.size(1),), 20)
        return F.ctc_loss(frames, torch.ones(frames.size(1) * 20, dtype=torch.long, device="cuda"), *lengths)

    tape = bsmodel.trace(workload(lambda: nn.Linear(16, 32), lambda size: [torch.zeros(size, 49, 16)], loss), SGD)
    events, sizes = [event for event in tape.blocks["micro"] if event >= 0], tape.sizes(8)
    forward, backward = ([int(sizes[e]) for e in events if tape.operators[e] == f"aten._ctc_loss{name}.default"] for name in ("", "_backward"))
    assert forward == [64, 64, 64, 64288, 32] and backward == [64, 64, 64, 64288, 50176]


# -- values that nobody knows ----------------------------------------------------------------------------------------------------------
