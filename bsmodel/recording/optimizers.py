# SPDX-License-Identifier: Apache-2.0
"""Optimizers that torch does not ship, with the state and the temporaries of their published algorithms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class _ParameterWise(torch.optim.Optimizer):
    """Updates one parameter after another, as the reference implementations do."""

    def __init__(self, params: Iterable[torch.Tensor], lr: float = 1e-3, **defaults: Any) -> None:
        super().__init__(params, {"lr": lr, **defaults})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state.update(self.initial(parameter))
                    self.update(parameter, parameter.grad, state, group)

    def initial(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """The state of one parameter before its first update."""
        raise NotImplementedError

    def update(self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor], group: dict[str, Any]) -> None:
        """One update of one parameter."""
        raise NotImplementedError


class Lion(_ParameterWise):
    """Sign of an interpolated momentum (Chen 2023, arXiv 2302.06675, algorithm 2)."""

    def initial(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"exp_avg": torch.zeros_like(parameter)}

    def update(self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor], group: dict[str, Any]) -> None:
        direction = state["exp_avg"].clone().mul_(0.9).add(gradient, alpha=0.1).sign_()
        parameter.add_(direction, alpha=-group["lr"])
        state["exp_avg"].mul_(0.99).add_(gradient, alpha=0.01)


class Lamb(_ParameterWise):
    """Adam's direction at a rate per layer (You 2019, arXiv 1904.00962, algorithm 2)."""

    def initial(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}

    def update(self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor], group: dict[str, Any]) -> None:
        state["exp_avg"].mul_(0.9).add_(gradient, alpha=0.1)
        state["exp_avg_sq"].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        direction = state["exp_avg"] / state["exp_avg_sq"].sqrt().add_(1e-6)
        trust = parameter.norm() / direction.norm()
        parameter.sub_(direction.mul_(trust * group["lr"]))


class Lars(_ParameterWise):
    """Momentum at a rate per layer (You 2017, arXiv 1708.03888, algorithm 1)."""

    def initial(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"momentum": torch.zeros_like(parameter)}

    def update(self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor], group: dict[str, Any]) -> None:
        trust = parameter.norm() / (gradient.norm() + 1e-4 * parameter.norm())
        scaled = gradient.add(parameter, alpha=1e-4).mul_(trust * group["lr"])
        state["momentum"].mul_(group["momentum"]).add_(scaled)
        parameter.sub_(state["momentum"])


class AdamW8bit(_ParameterWise):
    """AdamW with both averages in 8 bits: sizes by formula, for planning without the library that implements it.

    A parameter of n >= 4096 elements keeps 2 n bytes and one float32 scale per 256 elements of each average, and both share two
    quantisation maps of 256 float32; smaller parameters keep float32 averages (bitsandbytes/optim/optimizer.py).
    """

    bits = 8

    def initial(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.bits == 32 or parameter.numel() < 4096:
            return {name: self.buffer(parameter, torch.float32) for name in ("state1", "state2")}
        scales = -(-parameter.numel() // 256)
        if "maps" not in self.__dict__:
            self.maps = [torch.zeros(256, device=parameter.device) for _ in range(2)]
        return {
            "state1": self.buffer(parameter, torch.uint8),
            "state2": self.buffer(parameter, torch.uint8),
            "absmax1": torch.zeros(scales, device=parameter.device),
            "absmax2": torch.zeros(scales, device=parameter.device),
        }

    def buffer(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """An average of a parameter's size."""
        return torch.zeros_like(parameter, dtype=dtype)

    def update(self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor], group: dict[str, Any]) -> None:
        parameter.mul_(1 - group["lr"] * 0.01)  # the kernel updates in place, without temporaries


class PagedAdamW8bit(AdamW8bit):
    """The same, with the averages of 100,000 elements and more in managed memory, which no allocator of torch's sees (`get_state_buffer`)."""

    def buffer(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if parameter.numel() < 100_000:
            return super().buffer(parameter, dtype)
        return torch.zeros((), dtype=dtype, device="cpu").expand(parameter.shape)


class PagedAdamW(PagedAdamW8bit):
    """Averages in float32, and these paged."""

    bits = 32
