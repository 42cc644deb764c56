r"""AdaX and AdaX-W: a second moment that remembers what is long ago, in a form that neither overflows nor stops.

The published recurrence v ← (1 + β₂) v + β₂ g² grows without bound. With w of sum 1 in its place (same numbers),
$$w_t = \frac{\beta_2}{(1 + \beta_2)^t - 1},\qquad \hat v \leftarrow (1 - w_t)\,\hat v + w_t\,g^2,\qquad
p \leftarrow p - \frac{\eta\,m}{\sqrt{\hat v} + \varepsilon/\sqrt{(1 + \beta_2)^t - 1}}.$$
This is Adam's step with β₂ = 1 − wₜ and without its corrections of bias: one sweep of torch's fused kernel.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from layers.adam_kernel import adam_
from layers.card import OptionError
from layers.checked_optimizer import FUSED
from layers.elementwise_optimizer import ElementwiseOptimizer, Group, Tensors, add_, multiply_

EPSILON = sys.float_info.epsilon / 2


class AdaXOptimizer(ElementwiseOptimizer):
    """Base of AdaX and AdaX-W; ``coupled`` says whether ``weight_decay`` joins the gradient.

    The state is ``step``, ``exp_avg`` (m) and ``exp_avg_sq`` (v̂), or, unless ``normalized``, ``raw_exp_avg_sq`` (v).
    Raises OptionError where v would overflow. `from_published` makes a state_dict of the authors' code one of ours.
    """

    def _update(self, group: Group, t: int, p: Tensors, g: Tensors, *state: Tensors) -> None:
        m, v = state
        if not group["normalized"]:
            self._update_as_published(group, t, p, g, m, v)
            return
        lr, w = float(group["lr"]), newest(group["beta2"], t)
        torch._foreach_lerp_(m, g, 1 - group["beta1"])
        multiply_(v, 1 - w)
        torch._foreach_addcmul_(v, g, g, w)
        root = torch._foreach_sqrt(v)
        add_(root, relative(group["eps"], group["beta2"], t, v[0].dtype))
        if group["weight_decay"] and not self.coupled:
            multiply_(p, 1 - lr * group["weight_decay"])
        torch._foreach_addcdiv_(p, m, root, -lr)

    def _update_as_published(self, group: Group, t: int, p: Tensors, g: Tensors, m: Tensors, v: Tensors) -> None:
        """Operation by operation as the authors' code, so that not even the last bits differ."""
        lr, beta1, beta2 = float(group["lr"]), group["beta1"], group["beta2"]
        growth = _growth(beta2, t, v[0].dtype)
        multiply_(m, beta1)
        torch._foreach_add_(m, g, alpha=1 - beta1)
        multiply_(v, 1 + beta2)
        torch._foreach_addcmul_(v, g, g, beta2)
        root = torch._foreach_sqrt(v)
        add_(root, group["eps"])
        if group["weight_decay"] and not self.coupled:
            torch._foreach_sub_(p, torch._foreach_mul(p, lr * group["weight_decay"]))
        torch._foreach_addcdiv_(p, m, root, -lr * math.sqrt(growth))

    def _update_whole(self, group: Group, t: int, p: Tensors, g: Tensors, *state: Tensors) -> bool:
        if not (group["fused"] and group["normalized"] and p[0].device.type in FUSED):
            return False
        m, v = state
        adam_(
            p, g, m, v, lr=float(group["lr"]), beta1=group["beta1"],
            beta2=min(1 - newest(group["beta2"], t), 1 - EPSILON),  # of 1 itself 1 − β₂ᵗ would be 0, and so the step
            eps=relative(group["eps"], group["beta2"], t, p[0].dtype), weight_decay=group["weight_decay"],
            decoupled=not self.coupled, maximize=group["maximize"],
        )  # fmt: skip
        return True


def newest(beta2: float, t: int) -> float:
    """Return wₜ = β₂/((1 + β₂)ᵗ − 1), the weight of the newest g² in v̂: 1 at t = 1, then falling to 0."""
    x = t * math.log1p(beta2)
    return beta2 * math.exp(-x) / -math.expm1(-x)


def relative(eps: float, beta2: float, t: int, dtype: torch.dtype) -> float:
    """Return ε/√((1 + β₂)ᵗ − 1), what ε beside √v is beside √v̂, or the least number whose square is normal."""
    x = t * math.log1p(beta2)
    return max(eps * math.exp(-x / 2) / math.sqrt(-math.expm1(-x)), math.sqrt(torch.finfo(dtype).tiny))


def _growth(beta2: float, t: int, dtype: torch.dtype) -> float:
    """Return (1 + β₂)ᵗ − 1 as the authors' code computes it; refuse what v of ``dtype`` cannot hold."""
    if t * math.log1p(beta2) >= math.log(torch.finfo(dtype).max):
        raise OptionError(
            f"normalized=False: at step {t} v has grown by (1 + {beta2})^{t}, more than {dtype} holds, and parameters "
            "would stand still; train with normalized=True",
            "normalized",
        )
    return float((1 + beta2) ** t - 1)


def from_published(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state_dict of the authors' AdaX or AdaXW as one of ours: v̂ for v, beta1 and beta2 for betas.

    Raises OptionError where v has overflowed.
    """
    groups, state = [], {}
    for group in state_dict["param_groups"]:
        options = {name: value for name, value in group.items() if name not in ("betas", "amsgrad")}
        beta1, beta2 = group["betas"]
        groups.append({**options, "beta1": beta1, "beta2": beta2, "normalized": True})
        for place in group["params"]:
            if kept := state_dict["state"].get(place):
                if not kept["exp_avg_sq"].isfinite().all():
                    raise OptionError(f"v of parameter {place} has overflowed at step {int(kept['step'])}: it is lost")
                mean = kept["exp_avg_sq"] / math.expm1(int(kept["step"]) * math.log1p(beta2))
                state[place] = {"step": kept["step"], "exp_avg": kept["exp_avg"].clone(), "exp_avg_sq": mean}
    return {"state": state, "param_groups": groups}


__all__ = ["AdaXOptimizer", "Tensor", "from_published", "newest", "relative"]
