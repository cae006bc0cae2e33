"""What is particular to transposed convolutions; tests/nn/test_layers.py compares them with torch."""

import pytest
import torch
from torch import nn

import aimc
from tests.helpers import assert_close

IDEAL = aimc.presets.ideal()


CELLS = aimc.presets.reram(20, w_max_dtod=0.0, w_min_dtod=0.0)
LAYERS = {
    "1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5)),
    "1d, one": (lambda: nn.ConvTranspose1d(4, 6, 1, stride=3, bias=False), (4, 5)),
    "2d": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), padding=(3, 0), dilation=(2, 1), groups=2),
        (2, 4, 5, 4),
    ),
    "3d": (lambda: nn.ConvTranspose3d(2, 4, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 2)), (2, 2, 2, 3, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_in_cells_as_torch_computes(name):
    """Output, gradients that pulses are made of, the way back, a checkpoint of torch; also with padding that cuts."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    analog = aimc.convert(nn.ModuleDict({"up": layer}), CELLS)["up"]
    found = []
    for module in (layer, analog, aimc.to_digital(analog)):
        inputs = x.clone().requires_grad_()
        y = module(inputs)
        y.square().sum().backward()
        found.append((y, inputs.grad))
    for other in found[1:]:
        for what, a, e in zip(("output", "input gradient"), other, found[0], strict=True):
            assert_close(what, a, e, atol=1e-4)
    piece = analog._analog_pieces["conv"]
    expected = piece.of({"weight": layer.weight.grad})
    assert_close("weight gradient", analog.conv.weight.grad, expected, atol=1e-4, rtol=1e-5)
    fresh = make()
    analog.load_state_dict(fresh.state_dict())
    assert_close("loaded", analog(x), fresh(x), atol=1e-5)
    assert aimc.coverage(analog).analog_share == 1.0
    with pytest.raises(aimc.AimcError, match="layer 'up'.*channels"):
        analog(torch.ones(1, 9, *shape[2:]))


@pytest.mark.parametrize("hardware", [IDEAL, CELLS], ids=["inference", "in memory"])
def test_images_with_channels_last_stay_so(hardware):
    torch.manual_seed(0)
    layer, x = nn.ConvTranspose2d(4, 6, 3, stride=2), torch.randn(2, 4, 5, 4)
    analog = aimc.convert(layer, hardware)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        inputs = x.to(memory_format=memory_format).requires_grad_()
        found, expected = analog(inputs), layer(inputs)
        assert found.is_contiguous(memory_format=memory_format)
        assert_close("output", found, expected, atol=1e-5)
        grad = torch.linspace(-1, 1, found.numel()).view_as(found)
        a, e = (torch.autograd.grad(y, inputs, grad)[0] for y in (found, expected))
        assert_close("gradient", a, e, atol=1e-5)


def test_pulses_train_a_transposed_convolution():
    torch.manual_seed(0)
    net = aimc.convert(nn.ConvTranspose1d(3, 2, 3, stride=2), aimc.presets.reram(100, w_max_dtod=0.0), seed=0)
    optimizer = aimc.optim.wrap(torch.optim.SGD(net.parameters(), lr=0.2), net)
    target = torch.nn.functional.conv_transpose1d(torch.ones(1, 3, 4), torch.full((3, 2, 3), 0.2), stride=2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (net(torch.ones(1, 3, 4)) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_the_size_of_the_output_may_be_asked_for():
    torch.manual_seed(0)
    layer, x = nn.ConvTranspose2d(4, 6, 3, stride=3, padding=1), torch.randn(2, 4, 5, 4)
    analog = aimc.convert(nn.ModuleDict({"up": layer}), IDEAL)["up"]
    for size in ([13, 12], [15, 10], [2, 6, 14, 11]):
        assert_close("output", analog(x, output_size=size), layer(x, output_size=size), atol=1e-5)
    with pytest.raises(
        aimc.AimcError, match=r"layer 'up', field 'output_size': requested an output size of \[99, 9\]"
    ):
        analog(x, output_size=[99, 9])
    with pytest.raises(aimc.AimcError, match="layer 'up'.*expects 4 channels"):
        analog(x[:, :3])
    with pytest.raises(aimc.AimcError, match="layer 'up'.*the padding leaves no output"):
        aimc.convert(nn.ModuleDict({"up": nn.ConvTranspose2d(4, 6, 1, padding=3)}), IDEAL)["up"](x)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_split_layer_in_double_precision_passes_a_gradient_check(groups):
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=groups).double()
    analog = aimc.convert(layer, IDEAL.replace(**{"tile.rows": 9, "mapping.learned_gain": True}))
    assert analog.layout.row_tiles == 4 // groups
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(analog, (x,))


@pytest.mark.parametrize("groups", [1, 2])
def test_gains_scales_and_devices_belong_to_output_channels(groups):
    torch.manual_seed(0)
    layer, x = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=groups), torch.randn(2, 4, 5, 4)
    with torch.no_grad():
        layer.weight[:, 0] *= 100
    analog = aimc.convert(layer, IDEAL.replace(**{"mapping.learned_gain": True, "tile.rows": 18})).eval()
    nn.init.uniform_(analog.output_gain, 0.5, 2.0)
    assert_close("exported", aimc.to_digital(analog)(x), analog(x), atol=1e-4)
    scale = layer.weight.detach().view(groups, 4 // groups, 6 // groups, -1).abs().amax((1, 3)).flatten()
    assert_close("scale", analog.present_scale().amax(0), scale)
    chip = aimc.program(analog, seed=0)
    assert_close("weights", chip.weights()[""], analog.weight, rtol=1e-5)
    with chip.at(0.0):
        assert_close("on a chip", analog(x), aimc.to_digital(analog)(x), atol=1e-3)


def test_with_a_kernel_of_one_it_is_a_convolution_on_the_same_devices():
    torch.manual_seed(0)
    layer, same, x = nn.ConvTranspose2d(5, 3, 1), nn.Conv2d(5, 3, 1), torch.randn(2, 5, 9, 4)
    with torch.no_grad():
        same.weight.copy_(layer.weight.transpose(0, 1))
        same.bias.copy_(layer.bias)
    hardware = aimc.presets.pcm().replace(**{"input_range.value": 2.0, "input_range.init_batches": 0})
    found = []
    for net in (layer, same):
        analog = aimc.convert(net, hardware, seed=0)
        trained = analog(x)
        with aimc.program(analog.eval(), seed=0).at("1d"):
            found.append((trained, analog(x)))
    for name, a, e in zip(("in training", "on a chip"), *found, strict=True):
        assert_close(name, a, e, atol=1e-5)
