"""Comparing a sample's mean and spread with what they should be, in units of their own uncertainty."""

from __future__ import annotations

from torch import Tensor


def assert_moments(
    name: str, sample: Tensor, mean: float | None = None, std: float | None = None, errors: float = 5.0
) -> None:
    """Fail if the sample's mean or standard deviation is more than ``errors`` standard errors off."""
    x = sample.flatten().double()
    n, center = x.numel(), x.mean()
    second, fourth = (x - center).square().mean(), (x - center).pow(4).mean()
    if mean is not None:
        allowed = errors * float((second / n).sqrt())
        got = float(center)
        assert abs(got - mean) <= allowed, f"{name}: mean {got:.6g}, expected {mean:.6g} within {allowed:.2g}"
    if std is not None:
        got = float(second.sqrt())
        allowed = errors * float(((fourth - second**2) / (4 * second * n)).sqrt())
        assert abs(got - std) <= allowed, f"{name}: std {got:.6g}, expected {std:.6g} within {allowed:.2g}"
