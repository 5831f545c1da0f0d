"""Soft and noisy labels of pairs, for every pair loss."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

Noise = Literal["conservative", "robust"]


def noisy_label_G(q_G: Tensor, noise: float, kind: Noise) -> Tensor:
    """The label that replaces `q` when labels are flipped with probability `noise`.

    `conservative`: `(1 - 2e) q + e`, which is label smoothing (cDPO; Mitchell 2023). Its optimum is biased toward
    indifference. `robust`: `(q - e) / (1 - 2e)`, the unbiased correction (Natarajan et al. 2013; Chowdhury et al.
    2024): with labels flipped at rate e the expected loss is that of clean labels. It leaves [0, 1], so on finite data
    the loss is unbounded below: stop early.
    """
    return (1 - 2 * noise) * q_G + noise if kind == "conservative" else (q_G - noise) / (1 - 2 * noise)


def both_ways_G(loss: Callable[[Tensor], Tensor], h_G: Tensor, q_G: Tensor) -> Tensor:
    """`q l(h) + (1 - q) l(-h)`: the expected loss where the first response is preferred with probability q."""
    return q_G * loss(h_G) + (1 - q_G) * loss(-h_G)
