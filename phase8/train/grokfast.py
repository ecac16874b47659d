"""Grokfast: a low-pass filter on gradients, after Lee et al. 2024 (arXiv 2405.20233, sections 2 and 3).

The gradient of each parameter is read as a signal over iterations. Its slow part is amplified:

    ema:        h = alpha h + (1 - alpha) g,  g' = g + lambda h           h starts at the first gradient
    ma:         g' = g + lambda mean(last `window` gradients)             only once the window is full
    as_printed: the same h, g' = g + lambda (g - h)                       amplifies the FAST part: kept for ablation
    off:        g' = g

Worked example, alpha 0.98, lambda 2, in the long run: the gradients 1, 1, 1, ... have h = 1, so `ema` gives 3.00 and
`as_printed` 1.00. The gradients 1, -1, 1, ... have |h| = (1 - alpha) / (1 + alpha) = 0.0101 in step with g, so `ema`
gives 1.02 and `as_printed` 2.98.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from phase8.train.settings import GrokfastConfig, GrokfastVariant


class GrokfastFilter:
    """Filters the gradients of a fixed list of parameters, once per optimiser step.

    Args:
        variant: which filter.
        alpha: momentum of the running mean (`ema`, `as_printed`), 0 <= alpha < 1.
        lamb: how much of the filtered part is added.
        window: number of gradients in the mean (`ma`). Their memory is `window` copies of every gradient.
    """

    def __init__(self, variant: GrokfastVariant, alpha: float = 0.98, lamb: float = 2.0, window: int = 100) -> None:
        self.variant, self.alpha, self.lamb, self.window = variant, alpha, lamb, window
        self._means: dict[int, Tensor] = {}
        self._recent: dict[int, deque[Tensor]] = {}

    @classmethod
    def from_config(cls, config: GrokfastConfig) -> GrokfastFilter:
        variant = config.variant if config.enabled else GrokfastVariant.off
        return cls(variant, config.alpha, config.lambda_, config.window)

    def state(self) -> dict[int, Tensor]:
        """The running means, by the parameter's number, for a checkpoint. A window (`ma`) starts anew."""
        return dict(self._means)

    def load(self, means: dict[int, Tensor]) -> None:
        """Goes on from `state`."""
        self._means = {index: mean.clone() for index, mean in means.items()}

    @torch.no_grad()
    def apply(self, parameters: Iterable[nn.Parameter]) -> None:
        """Changes `.grad` of each parameter in place. The order of the parameters must be the same at each call.

        A parameter without a gradient is passed over, and its state waits.
        """
        if self.variant is GrokfastVariant.off:
            return
        for index, parameter in enumerate(parameters):
            if parameter.grad is None:
                continue
            if self.variant is GrokfastVariant.ma:
                self._add_window_mean(index, parameter.grad)
            else:
                self._add_running_mean(index, parameter.grad)

    def _add_running_mean(self, index: int, gradient: Tensor) -> None:
        mean = self._means.get(index)
        if mean is None:
            mean = self._means[index] = gradient.clone()
        else:
            mean.lerp_(gradient, 1.0 - self.alpha)
        if self.variant is GrokfastVariant.as_printed:
            gradient.mul_(1.0 + self.lamb).sub_(mean, alpha=self.lamb)
        else:
            gradient.add_(mean, alpha=self.lamb)

    def _add_window_mean(self, index: int, gradient: Tensor) -> None:
        recent = self._recent.setdefault(index, deque(maxlen=self.window))
        recent.append(gradient.clone())
        if len(recent) == self.window:
            gradient.add_(torch.stack(tuple(recent)).mean(0), alpha=self.lamb)
