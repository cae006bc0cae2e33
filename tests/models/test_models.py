import pytest
import torch

from aimc.models import (
    MLP,
    MODELS,
    AdaptiveSoftmax,
    LeNet5,
    LSTMLanguageModel,
    ResNet,
    TanhLeNet5,
    ThinResNet,
    WideResNet,
)
from tests.helpers import assert_close

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
    assert {c[0] for c in CASES.values()} | {LSTMLanguageModel} == set(MODELS.values())


# Language model

LANGUAGE = {
    "full": ({"width": 8}, 2070),
    "tied": ({"width": 8, "tied": True}, 1638),
    "adaptive": ({"width": 8, "cutoffs": (10, 30)}, 1912),
    "one layer": ({"width": 8, "layers": 1}, 1494),
}


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_models_give_a_distribution_and_reach_every_parameter(name):
    options, parameters = LANGUAGE[name]
    torch.manual_seed(0)
    net = LSTMLanguageModel(54, **options).eval()
    assert sum(p.numel() for p in net.parameters()) == parameters
    tokens, targets = torch.randint(0, 54, (3, 7)), torch.randint(0, 54, (3, 7))
    targets[0] = torch.tensor([0, 9, 10, 29, 30, 53, 5])  # both sides of every cutoff
    scores, state = net(tokens)
    assert scores.shape == (3, 7, 54) and state[0].shape == state[1].shape == (net.lstm.num_layers, 3, 8)
    logarithms = torch.log_softmax(scores, -1)
    expected = -logarithms.gather(-1, targets[..., None]).sum()
    parts, _ = net(tokens, None, targets)
    if isinstance(net.head, AdaptiveSoftmax):
        assert torch.equal(logarithms.exp().sum(-1).round(decimals=5), torch.ones(3, 7))
        assert_close("scores are log-probabilities", scores, logarithms, atol=1e-5)
        assert [len(t) for _, t in parts] == [
            21,
            int(((targets >= 10) & (targets < 30)).sum()),
            int((targets >= 30).sum()),
        ]
        total = sum(torch.nn.functional.cross_entropy(s, t, reduction="sum") for s, t in parts)
        assert_close("parts", total, expected, atol=1e-4)
        total.backward()
    else:
        assert torch.equal(parts, scores)
        expected.backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead, f"no gradient reaches {dead}"


def test_a_text_in_two_windows_is_one_text():
    torch.manual_seed(0)
    net = LSTMLanguageModel(20, width=8).eval()
    tokens = torch.randint(0, 20, (2, 9))
    whole, last = net(tokens)
    first, state = net(tokens[:, :4])
    second, end = net(tokens[:, 4:], state)
    assert_close("logits", torch.cat([first, second], 1), whole, atol=1e-6)
    assert_close("state", end[1], last[1], atol=1e-6)


@pytest.mark.parametrize("cutoffs", [(), (2,), (2, 4)])
def test_a_language_model_starts_from_the_frequencies_of_words(cutoffs):
    counts = torch.tensor([40.0, 30.0, 15.0, 10.0, 4.0, 1.0])
    net = LSTMLanguageModel(6, width=4, cutoffs=cutoffs).eval()
    net.start_from(counts)
    with torch.no_grad():
        for name, parameter in net.head.named_parameters():
            if "weight" in name:
                parameter.zero_()
    scores, _ = net(torch.zeros(1, 1, dtype=torch.int64))
    assert_close("probabilities", torch.softmax(scores[0, 0], 0), counts / 100, atol=1e-6)


def test_dropout_is_for_training_and_the_forget_gates_begin_open():
    net = LSTMLanguageModel(20, width=8, dropout=0.5)
    tokens = torch.randint(0, 20, (2, 9))
    assert not torch.equal(net(tokens)[0], net(tokens)[0])
    assert torch.equal(net.eval()(tokens)[0], net(tokens)[0])
    assert (net.lstm.bias_ih_l1[8:16] == 1).all() and (net.lstm.bias_ih_l1[:8] != 1).all()


@pytest.mark.parametrize(
    "options", [{"tied": True, "cutoffs": (4,)}, {"cutoffs": (4, 4)}, {"cutoffs": (20,)}]
)
def test_language_models_refuse_what_does_not_fit(options):
    with pytest.raises(ValueError, match="tie|cutoffs"):
        LSTMLanguageModel(20, width=8, **options)


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
