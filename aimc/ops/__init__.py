"""The few hot operations. Each folder holds the checks and the dispatch, a plain torch reference, a numba body for the
CPU, and a README with the derivation."""

from aimc.ops.backend import BACKENDS, check_backend, choose_backend
from aimc.ops.convert_input import convert_input, convert_input_backward
from aimc.ops.perturb_weights import perturb_weights
from aimc.ops.read_out import read_out, read_out_backward
from aimc.ops.sampled_product import sampled_convolution_gradient, sampled_product

__all__ = [
    "BACKENDS",
    "check_backend",
    "choose_backend",
    "convert_input",
    "convert_input_backward",
    "perturb_weights",
    "read_out",
    "read_out_backward",
    "sampled_convolution_gradient",
    "sampled_product",
]
