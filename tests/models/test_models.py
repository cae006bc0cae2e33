import pytest
import torch

from aimc.models import MLP, MODELS, LeNet5, ResNet, TanhLeNet5, ThinResNet, WideResNet

CASES = {
    "lenet5": (LeNet5, {}, 80_202, (1, 28, 28), 10),
    "lenet5-rgb": (LeNet5, {"in_channels": 3, "num_classes": 7}, 80_615, (3, 28, 28), 7),
    "lenet5-tanh": (TanhLeNet5, {}, 80_202, (1, 28, 28), 10),
    "mlp": (MLP, {"sizes": (784, 256, 10)}, 203_530, (1, 28, 28), 10),
    "mlp-no-bias": (MLP, {"sizes": (12, 5, 4, 3), "bias": False}, 92, (3, 4), 3),
    "resnet-10": (ResNet, {"depth": 10, "width": 4, "in_channels": 1}, 19_830, (1, 32, 32), 10),
    "resnet-18": (ResNet, {}, 11_173_962, (3, 32, 32), 10),
    "resnet-34": (ResNet, {"depth": 34, "num_classes": 100}, 21_328_292, (3, 32, 32), 100),
    "resnet-32": (ThinResNet, {}, 466_906, (3, 32, 32), 10),
    "resnet-8": (
        ThinResNet,
        {"depth": 8, "widths": (4, 6, 8), "num_classes": 7, "in_channels": 1},
        2_115,
        (1, 32, 32),
        7,
    ),
    "wideresnet-16-4": (WideResNet, {}, 2_772_036, (3, 32, 32), 100),
    "wideresnet-10-1": (WideResNet, {"depth": 10, "width": 1, "num_classes": 10}, 77_866, (3, 32, 32), 10),
}


@pytest.mark.parametrize("name", CASES)
def test_parameter_count_output_shape_and_gradients(name):
    builder, arguments, parameters, image, classes = CASES[name]
    torch.manual_seed(0)
    net = builder(**arguments)
    assert sum(p.numel() for p in net.parameters()) == parameters

    logits = net(torch.randn(3, *image))
    assert logits.shape == (3, classes)
    assert torch.isfinite(logits).all()

    logits.square().sum().backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead, f"no gradient reaches {dead}"


def test_every_listed_model_has_a_case():
    assert {c[0] for c in CASES.values()} == set(MODELS.values())


@pytest.mark.parametrize("depth", [9, 4, 15])
def test_wideresnet_refuses_a_depth_that_makes_no_whole_blocks(depth):
    with pytest.raises(ValueError, match="6 n"):
        WideResNet(depth=depth)


@pytest.mark.parametrize("depth, widths", [(9, (16, 32, 64)), (2, (16, 32, 64)), (8, (16, 32))])
def test_a_thin_resnet_refuses_what_makes_no_whole_groups(depth, widths):
    with pytest.raises(ValueError, match="6 n|three"):
        ThinResNet(depth, widths)


def test_a_thin_resnet_adds_the_input_before_the_last_relu():
    """With the last norm of an identity block at zero, the block is a ReLU."""
    torch.manual_seed(0)
    block = ThinResNet(14).eval().groups[0][1]
    torch.nn.init.zeros_(block.norm2.weight)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), torch.relu(x))


@pytest.mark.parametrize("depth", [9, 32, 50])
def test_a_resnet_has_one_of_three_depths(depth):
    with pytest.raises(ValueError, match="10, 18, 34"):
        ResNet(depth)


def test_a_resnet_halves_the_resolution_before_three_of_four_stages():
    net, x, sizes = ResNet(18, width=2).eval(), torch.randn(1, 3, 32, 32), []
    x = net.stem(x)
    for stage in net.stages:
        x = stage(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes == [(2, 32, 32), (4, 16, 16), (8, 8, 8), (16, 4, 4)]
    assert [len(stage) for stage in ResNet(34, width=1).stages] == [3, 4, 6, 3]


def test_mlp_needs_two_sizes():
    with pytest.raises(ValueError, match="at least"):
        MLP((784,))


def test_wideresnet_is_pre_activation():
    """With the last convolution of every block at zero, an identity block passes its input through untouched."""
    torch.manual_seed(0)
    net = WideResNet(depth=16, width=1).eval()
    block = net.groups[0][1]
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), x)
