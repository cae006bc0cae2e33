"""The tests' own tools: each must fail where it should."""

import pytest
import torch

from tests.helpers import assert_close


def test_close_passes_within_tolerance():
    assert_close("y", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
    assert_close("y", torch.tensor([1.0, 2.1]), torch.tensor([1.0, 2.0]), atol=0.11)
    assert_close("y", torch.tensor([1.0, 2.1]), torch.tensor([1.0, 2.0]), rtol=0.06)
    assert_close("y", torch.tensor([float("inf")]), torch.tensor([float("inf")]))
    assert_close("y", torch.zeros(0, 3), torch.zeros(0, 3))
    assert_close("y", torch.tensor(3), torch.tensor(3))


@pytest.mark.parametrize(
    ("actual", "expected", "message"),
    [
        (
            [[1.0, 2.0], [3.0, 9.0]],
            [[1.0, 2.0], [3.5, 4.0]],
            r"grad: 2 of 4 .* error 5 at \[1, 1\]: 9, expected 4",
        ),
        ([1.0, float("nan")], [1.0, 2.0], r"1 of 2 .* at \[1\]: nan"),
        ([float("nan")], [float("nan")], "1 of 1"),
        ([float("inf")], [-float("inf")], "1 of 1"),
        ([1.0], [1.0, 2.0], r"shape \[1\], expected \[2\]"),
        ([1], [1.0], "type torch.int64"),
    ],
)
def test_close_fails_with_name_error_and_position(actual, expected, message):
    with pytest.raises(AssertionError, match=message):
        assert_close("weight grad", torch.tensor(actual), torch.tensor(expected))


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(3, 2),
        lambda: torch.empty((3, 2), dtype=torch.float16),
        lambda: torch.empty_like(torch.zeros(4)),
        lambda: torch.empty_strided((2, 2), (1, 2)),
        lambda: torch.zeros(1).new_empty((5,)),
        lambda: torch.empty(3, dtype=torch.complex64),
        lambda: torch.empty(3, requires_grad=True),
    ],
)
def test_uninitialised_memory_is_poisoned(allocate):
    assert torch.isnan(allocate()).all()


def test_poison_leaves_integers_and_meta_tensors_alone():
    assert torch.empty(3, dtype=torch.int64).shape == (3,)
    assert torch.empty(3, device="meta").is_meta
    assert torch.nn.Linear(3, 2).weight.isfinite().all()
