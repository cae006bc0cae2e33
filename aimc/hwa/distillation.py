"""Learning from a digital teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from aimc.errors import AimcError


def distillation_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, temperature: float = 4.0, weight: float = 0.9
) -> Tensor:
    """``weight * T^2 * KL(teacher || student at T) + (1 - weight) * cross entropy``.

    Source: Hinton, Vinyals, Dean, *Distilling the knowledge in a neural network*, arXiv:1503.02531.

    Args:
        student, teacher: logits ``[batch, ..., classes]``; the teacher's are detached.
        targets: class numbers ``[batch, ...]``.
        temperature: T > 0.
        weight: share of the teacher's part, 0 to 1.

    Raises:
        AimcError: temperature or weight out of range, or shapes that differ.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> float(distillation_loss(logits, logits, torch.tensor([0]), weight=1.0))
        0.0
    """
    if not temperature > 0:
        raise AimcError(f"must be positive, got {temperature}", field="temperature")
    if not 0 <= weight <= 1:
        raise AimcError(f"is a share between 0 and 1, got {weight}", field="weight")
    if student.shape != teacher.shape:
        raise AimcError(
            f"student and teacher differ in shape: {list(student.shape)}, {list(teacher.shape)}",
            field="teacher",
        )
    classes = student.shape[-1]
    student, teacher, targets = (
        student.reshape(-1, classes),
        teacher.detach().reshape(-1, classes),
        targets.reshape(-1),
    )
    loss = (1 - weight) * F.cross_entropy(student, targets)
    if weight:
        soft = F.kl_div(
            F.log_softmax(student / temperature, 1),
            F.log_softmax(teacher / temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        loss = loss + weight * temperature**2 * soft
    return loss
