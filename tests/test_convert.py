"""Conversion: coverage, strictness, sharing."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import aimc
from aimc.nn import AnalogConv2d, AnalogLinear
from aimc.ops.pulsed_update import PulseTrain
from tests.helpers import assert_close

IDEAL = aimc.presets.ideal()


class Odd(nn.Module):
    """Holds what nobody converts: a bare matrix, used with F.linear."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 4))
        self.scale = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(F.linear(x, self.matrix) * self.scale)


class Renamed(nn.Linear):
    """A subclass with torch's own forward."""


class Changed(nn.Linear):
    """A subclass with another forward, which a twin would lose."""

    def forward(self, input):
        return super().forward(input) * 2


def test_nested_containers_are_all_converted():
    net = nn.ModuleDict(
        {"a": nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1))]), "b": nn.Linear(1, 1)}
    )
    analog = aimc.convert(net, IDEAL)
    assert [type(m) for m in aimc.analog_layers(analog).values()] == [
        AnalogLinear,
        AnalogConv2d,
        AnalogLinear,
    ]
    assert list(aimc.analog_layers(analog)) == ["a.0.0", "a.0.1", "b"]


def test_refuses_to_leave_a_matrix_digital_and_names_it():
    with pytest.raises(
        aimc.AimcError, match=r"would stay digital:\n  matrix \(Odd, 16 parameters\)\nKeep.*'matrix'"
    ):
        aimc.convert(Odd(), IDEAL)
    analog = aimc.convert(Odd(), IDEAL, digital=("matrix",))
    assert list(aimc.analog_layers(analog)) == ["head"]
    assert list(aimc.analog_layers(aimc.convert(Odd(), IDEAL, strict=False))) == ["head"]


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (nn.Bilinear(3, 4, 5), "weight"),
        (Changed(2, 2), "weight"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else v,
)
def test_layers_without_a_twin_are_refused_by_name(module, named):
    with pytest.raises(aimc.AimcError, match="attention" if named == "attention" else rf"attention\.{named}"):
        aimc.convert(nn.ModuleDict({"attention": module, "ok": nn.Linear(2, 2)}), IDEAL)


def test_a_subclass_with_torchs_forward_is_converted():
    assert isinstance(aimc.convert(Renamed(3, 2), IDEAL), AnalogLinear)


def test_an_attention_layer_kept_digital_is_left_whole():
    """Its output projection is a Linear that it never calls; making that analog would do nothing."""
    net = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "ok": nn.Linear(2, 2)})
    analog = aimc.convert(net, IDEAL, digital=("attention",))
    assert list(aimc.analog_layers(analog)) == ["ok"]


def test_an_encoders_fast_path_does_not_bypass_the_tiles():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    net = nn.TransformerEncoder(layer, 2).eval()
    coarse = IDEAL.replace(
        dac=aimc.periphery.DAC(bits=2), input_range=aimc.periphery.InputRange(mode="static", value=1.0)
    )
    analog = aimc.convert(net, coarse, digital=("*.self_attn",)).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        fast = analog(x)
    assert_close("with and without gradient", fast, analog(x), atol=1e-6)
    assert float((fast - net(x)).abs().max()) > 0.1


def test_embedding_norms_and_biases_stay_digital_and_are_listed():
    net = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 5))
    analog = aimc.convert(net, IDEAL)
    report = aimc.coverage(analog)
    assert {(r.name, r.where) for r in report.rows} == {("0", "digital"), ("1", "digital"), ("2", "analog")}
    text = str(aimc.summary(analog))
    for word in ("Embedding", "LayerNorm", "AnalogLinear", "digital", "bias", "tiles"):
        assert word in text
    assert report.analog_share == 1.0


def test_coverage_counts_multiply_weights():
    net = nn.Sequential(nn.Linear(10, 30, bias=False), nn.ReLU(), nn.Linear(30, 10, bias=False))
    report = aimc.coverage(aimc.convert(net, IDEAL, digital=("2",)))
    assert report.analog_share == 0.5
    assert aimc.coverage(net).analog_share == 0.0


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(aimc.AimcError, match="field 'digital'.*'hed'"):
        aimc.convert(nn.Sequential(nn.Linear(2, 2)), IDEAL, digital=("hed",))
    with pytest.raises(aimc.AimcError, match="nothing to convert"):
        aimc.convert(nn.Sequential(nn.Linear(2, 2)), IDEAL, digital=("*",))
    with pytest.raises(aimc.AimcError, match="nothing to convert"):
        aimc.convert(nn.ReLU(), IDEAL)
    with pytest.raises(aimc.AimcError, match="already analog"):
        aimc.convert(aimc.convert(nn.Sequential(nn.Linear(2, 2)), IDEAL), IDEAL)
    with pytest.raises(aimc.AimcError, match="field 'backend'"):
        aimc.convert(nn.Linear(2, 2), IDEAL, backend="gpuu")


def test_tied_weights_and_shared_modules_stay_tied():
    embedding, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    head.weight = embedding.weight
    shared = nn.Linear(4, 4)
    net = nn.ModuleDict({"e": embedding, "one": shared, "two": shared, "head": head})
    analog = aimc.convert(net, IDEAL)
    assert analog["head"].weight is analog["e"].weight
    assert analog["one"] is analog["two"] and isinstance(analog["one"], AnalogLinear)


def test_copy_by_default_and_in_place_on_request():
    net = nn.Sequential(nn.Linear(2, 2))
    before = net[0].weight
    analog = aimc.convert(net, IDEAL)
    assert type(net[0]) is nn.Linear and analog[0].weight is not before
    assert aimc.convert(net, IDEAL, inplace=True) is net
    assert net[0].weight is before  # an optimizer made before the conversion stays valid


def test_an_error_leaves_the_network_as_it_was():
    net = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(2, 2, 1, groups=2))
    with pytest.raises(aimc.AimcError, match=r"layer '1', field 'mapping.analog_bias'"):
        aimc.convert(net, aimc.presets.reram().replace(**{"mapping.analog_bias": True}), inplace=True)
    assert type(net[0]) is nn.Linear


def test_exchanging_the_hardware_keeps_the_weights():
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3), torch.randn(5, 4)
    analog = aimc.convert(net, aimc.presets.pcm().replace(**{"input_range.value": 1.0}), seed=0)
    aimc.set_hardware(analog, IDEAL)
    assert_close("output", analog(x), net(x), atol=1e-6)
    assert analog.input_range is None


def test_hooks_move_along():
    net = nn.Sequential(nn.Linear(2, 2))
    seen = []
    net[0].register_forward_hook(lambda m, i, o: seen.append(type(m).__name__))
    aimc.convert(net, IDEAL, inplace=True)(torch.ones(1, 2))
    assert seen == ["AnalogLinear"]


def test_a_parametrized_layer_is_refused():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    nn.utils.parametrizations.weight_norm(net[0])
    with pytest.raises(aimc.AimcError, match="0"):
        aimc.convert(net, IDEAL)


# Training in memory ---------------------------------------------------------------------------------------------------

PULSED = aimc.presets.reram(20, w_max_dtod=0.0, w_min_dtod=0.0)


def test_the_same_verb_converts_for_training_in_memory():
    net = nn.ModuleDict(
        {"a": nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1))]), "b": nn.Linear(1, 1)}
    )
    analog = aimc.convert(net, PULSED, digital=("b",))
    assert list(aimc.pulsed_layers(analog)) == ["a.0.0", "a.0.1"] and aimc.analog_layers(analog) == {}
    assert isinstance(analog["b"], nn.Linear) and isinstance(net["a"][0][0], nn.Linear)
    assert aimc.pulsed_layers(aimc.convert(nn.Linear(2, 2), PULSED, inplace=True)).keys() == {""}
    with pytest.raises(aimc.AimcError, match=r"would stay digital:\n  matrix"):
        aimc.convert(Odd(), PULSED)
    with pytest.raises(aimc.AimcError, match="already analog; .*aimc.to_digital"):
        aimc.convert(analog, PULSED)
    with pytest.raises(aimc.AimcError, match="already analog"):
        aimc.convert(analog, IDEAL)
    with pytest.raises(aimc.AimcError, match="expects a Hardware .see aimc.presets. or a PulsedHardware"):
        aimc.convert(net, "reram")


def test_tied_weights_cannot_live_in_two_sets_of_cells():
    net = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    net[1].weight = net[0].weight
    with pytest.raises(
        aimc.AimcError, match=r"0.weight and 1.weight are one parameter, and cells belong to one layer"
    ):
        aimc.convert(net, PULSED)
    aimc.convert(nn.Sequential(net[0], nn.Linear(3, 2), net[1]), PULSED, digital=("2",))


def test_the_report_names_cells_states_tiles_and_algorithm():
    report = aimc.coverage(aimc.convert(nn.Sequential(nn.Linear(600, 3), nn.LayerNorm(3)), PULSED))
    row = report.rows[0]
    assert (row.where, row.tiles, row.matrix, row.bias, report.analog_share) == ("analog", 2, 1800, 3, 1.0)
    assert row.cells == "SoftBounds, 20 states, AnalogSGD on 1 arrays"
    assert (
        "SoftBounds, 20 states" in str(report)
        and "(bias of 3 digital)" in str(report)
        and "uS" not in str(report)
    )
    io = aimc.periphery.ArrayIO()
    noisy = aimc.coverage(aimc.convert(nn.Linear(6, 3), PULSED.replace(forward=io)))
    assert noisy.rows[0].levels == "127/511"
    assert "cells" not in str(aimc.coverage(aimc.convert(nn.Linear(2, 2), IDEAL))).splitlines()[0]


def test_backends_of_pulsed_layers():
    analog = aimc.convert(nn.Sequential(nn.Linear(2, 2)), PULSED, backend="reference")
    assert analog[0].backend == "reference"
    aimc.set_backend(analog, "cpu")
    assert analog[0].backend == "cpu"
    with pytest.raises(aimc.AimcError, match="no backend"):
        aimc.set_backend(analog, "gpv")


def test_an_encoder_does_not_bypass_its_cells_in_evaluation():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    analog = aimc.convert(layer, PULSED, digital=("self_attn",)).eval()
    x, calls = torch.randn(2, 3, 8), []
    analog.linear1.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        assert_close("output", analog(x), layer(x), atol=1e-5)
    assert calls


@pytest.mark.parametrize(
    "ask",
    [
        lambda net, x: aimc.program(net),
        lambda net, x: aimc.evaluate_over_time(net, lambda n: 1.0, times=("1h",)),
        lambda net, x: aimc.calibrate(net, [x]),
        lambda net, x: aimc.set_noise_strength(net, 1.0),
        lambda net, x: aimc.remap(net),
        lambda net, x: aimc.set_hardware(net, IDEAL),
    ],
    ids=["program", "evaluate_over_time", "calibrate", "set_noise_strength", "remap", "set_hardware"],
)
def test_what_belongs_to_inference_hardware_is_refused_with_the_way_out(ask):
    net = aimc.convert(nn.Sequential(nn.Linear(4, 2)), PULSED)
    with pytest.raises(
        aimc.AimcError, match=r"trains in memory.*convert\(aimc.to_digital\(net\), aimc.presets.pcm"
    ):
        ask(net, torch.ones(1, 4))


def test_weights_trained_in_memory_go_to_digital_and_to_a_file_and_onto_a_chip(tmp_path):
    """Drift after in-memory training is never a silent no-op: on a chip that drifts the weights decay as they must."""
    torch.manual_seed(0)
    net = aimc.convert(nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 2)), PULSED, seed=0)
    optimizer = aimc.optim.wrap(torch.optim.SGD(net.parameters(), lr=0.1), net)
    start = net[0].weight.detach().clone()
    for _ in range(5):
        F.mse_loss(net(torch.randn(8, 30)), torch.ones(8, 2)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(net[0].weight, start)
    digital = aimc.to_digital(net)
    torch.save(digital.state_dict(), tmp_path / "net.pt")
    fresh = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 2))
    fresh.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    x = torch.randn(5, 30)
    assert_close("file", fresh(x), net(x), atol=1e-6)
    cell = aimc.cells.SingleExponentPCM()
    analog = aimc.convert(digital, aimc.presets.ideal().replace(cell=cell)).eval()
    chip = aimc.program(analog, seed=0, compensation=None)
    with chip.at("1d"):
        aged = chip.weights()["0"]
    assert float((aged / net[0].weight.detach()).median()) < 0.9
    assert aimc.analog_layers(aimc.convert(digital, aimc.presets.pcm())).keys() == {"0", "2"}


def test_every_preset_of_the_training_half_builds_and_survives_a_file():
    measured = {name: make() for name, make in aimc.cells.PULSED_CELLS.items() if name.islower()}
    of_both_signs = {name for name, cell in measured.items() if cell.w_min < 0} - {"soft_bounds_pmax"}
    assert of_both_signs | {"reram", "pcm_pulsed"} == set(aimc.presets.PULSED_PRESETS)
    for make in aimc.presets.PULSED_PRESETS.values():
        for io in ("perfect", "noisy"):
            hardware = make(io=io)
            assert aimc.PulsedHardware.from_json(hardware.to_json()) == hardware
            assert (hardware.forward is None) == (io == "perfect")
    with pytest.raises(aimc.AimcError, match="field 'io'"):
        aimc.presets.reram(io="loud")
    for kind in ("none", "none_bounded"):
        with pytest.raises(
            aimc.AimcError, match=r"'algorithm\.pulses\.kind': .*leaves a Ladder's devices between"
        ):
            aimc.PulsedHardware(
                cell=aimc.cells.Ladder(), algorithm=aimc.algorithms.AnalogSGD(pulses=PulseTrain(kind=kind))
            )
    with pytest.raises(aimc.AimcError, match="field 'cell': must hold weights of both signs"):
        aimc.presets.reram(w_min=0.0)
    with pytest.raises(
        aimc.AimcError, match=r"'cell': .*work in pairs: take algorithm MixedPrecision\(pair=Pair"
    ):
        aimc.PulsedHardware(cell=aimc.cells.measured.pcm_pulsed())
    with pytest.raises(aimc.AimcError, match="'cell': .*work in pairs"):
        aimc.presets.pcm_pulsed(algorithm=aimc.algorithms.TikiTakaV1())
    with pytest.raises(aimc.AimcError, match=r"'algorithm\.pair': is for cells of one sign"):
        aimc.presets.reram(algorithm=aimc.algorithms.AnalogSGD(pair=aimc.algorithms.Pair()))
    with pytest.raises(aimc.AimcError, match="field 'scale'"):
        aimc.PulsedMapping(scale=-1.0)


def test_a_subclass_that_multiplies_with_an_embedding_is_no_table():
    class Tied(nn.Embedding):
        def forward(self, x):
            return F.linear(x, self.weight)

    net = nn.Sequential(Tied(5, 4), nn.Linear(5, 4))
    with pytest.raises(aimc.AimcError, match=r"0\.weight"):
        aimc.convert(net, aimc.presets.ideal())
    assert "excluded" in str(aimc.summary(aimc.convert(net, aimc.presets.ideal(), digital=["0"])))


def test_the_report_says_how_many_groups_share_a_tile():
    net = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 8, 3, groups=4), nn.Conv2d(8, 8, 3)
    )
    report = aimc.coverage(aimc.convert(net, IDEAL.replace(**{"tile.rows": 40, "tile.columns": 40})))
    assert [(r.tiles, r.size) for r in report.rows] == [
        (2, "40x40, 4 groups each"),  # 9 rows a group
        (2, "40x40, 2 groups each"),  # 18 rows a group
        (2, "40x40"),
    ]
    assert "4 groups each" in str(report)


def test_the_way_back_keeps_ties_unless_a_gain_was_trained():
    embedding, head, second = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False), nn.Linear(4, 7)
    head.weight = second.weight = embedding.weight
    net = nn.ModuleDict({"embedding": embedding, "head": head, "second": second})
    for hardware in (IDEAL, aimc.presets.pcm()):
        analog = aimc.convert(net, hardware)
        digital = aimc.to_digital(analog)
        assert digital["embedding"].weight is digital["head"].weight is digital["second"].weight
        assert digital["head"].weight is not analog["head"].weight
    with torch.no_grad():
        analog["head"].output_gain[0] = 2.0
    digital = aimc.to_digital(analog)
    assert digital["embedding"].weight is digital["second"].weight is not digital["head"].weight
    assert_close("gain", digital["head"].weight[0], 2 * digital["second"].weight[0])


def test_tied_look_up_and_head_learn_together_and_share_a_file(tmp_path):
    torch.manual_seed(0)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.embed(tokens))

    net, tokens = Tied(), torch.tensor([1, 2, 2])
    analog = aimc.convert(net, IDEAL)
    for module in (net, analog):
        module(tokens).sin().sum().backward()
    assert_close("gradient", analog.embed.weight.grad, net.embed.weight.grad, atol=1e-5)
    assert [p for p, _ in analog.named_parameters()] == ["embed.weight"]
    torch.save(analog.state_dict(), tmp_path / "net.pt")
    again = aimc.convert(Tied(), IDEAL)
    again.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert again.head.weight is again.embed.weight
    assert_close("output", again(tokens), net(tokens), atol=1e-6)


class _Double(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("how", ["parametrized", "pruned"])
def test_a_bias_that_is_made_anew_is_refused(how):
    layer = nn.Linear(4, 2)
    if how == "parametrized":
        nn.utils.parametrize.register_parametrization(layer, "bias", _Double())
    else:
        prune.l1_unstructured(layer, "bias", amount=1)
    with pytest.raises(aimc.AimcError, match="would stay digital"):
        aimc.convert(nn.Sequential(layer), aimc.presets.ideal())


_HOOKED = {
    "pruned weight": (lambda: nn.Linear(4, 2), lambda m: prune.identity(m, "weight"), "weight"),
    "pruned bias": (lambda: nn.Linear(4, 2), lambda m: prune.identity(m, "bias"), "bias"),
    "normalised": (lambda: nn.Linear(4, 2), nn.utils.weight_norm, "weight"),
    "spectral": (lambda: nn.Linear(4, 2), nn.utils.spectral_norm, "weight"),
    "pruned part": (lambda: nn.LSTM(4, 2), lambda m: prune.identity(m, "weight_ih_l0"), "weight_ih_l0"),
    "bare matrix": (lambda: Halving(), lambda m: prune.identity(m, "matrix"), "matrix"),
}


class Halving(nn.Module):
    """Multiplies by a bare parameter; of a name that no hook of torch ends with."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(2, 4) / 2)

    def forward(self, x):
        return F.linear(x, self.matrix)


aimc.register_products(Halving, weights=["matrix"])


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("how", _HOOKED)
def test_hooks_that_compute_a_weight_on_tiles_are_refused(how):
    make, hook, name = _HOOKED[how]
    hardware = aimc.presets.pcm().replace(**{"input_range.value": 1.0})
    net, x = aimc.convert(nn.Sequential(make()), hardware, seed=0), torch.ones(3, 4)
    net(x)
    net.eval()
    net(x)
    hook(net[0])
    said = f"layer '0', field '{name}'.*: .*prune"
    for use in (
        lambda: net(x),
        lambda: net.train()(x),
        lambda: aimc.program(net, seed=1),
        lambda: aimc.to_digital(net),
    ):
        with pytest.raises(aimc.AimcError, match=said):
            use()
    # Other networks are trained beside it.
    other = aimc.convert(nn.Linear(4, 2), hardware, seed=0)
    other(x).sum().backward()
    torch.optim.SGD(other.parameters(), 0.1).step()
    if how == "pruned weight":
        prune.remove(net[0], "weight")
        net(x).sum().backward()


def test_a_hook_on_a_digital_bias_beside_cells_is_not_exported():
    net = aimc.convert(nn.Sequential(nn.Linear(4, 2)), PULSED, seed=0)
    prune.identity(net[0], "bias")
    with pytest.raises(aimc.AimcError, match="layer '0', field 'bias': .*prune.remove"):
        aimc.to_digital(net)


def test_a_parametrization_that_clips_do_not_reach_is_spoken_of():
    hardware = aimc.presets.pcm().replace(**{"input_range.value": 1.0})
    net, x = aimc.convert(nn.Sequential(nn.Linear(4, 2)), hardware, seed=0), torch.ones(3, 4)
    nn.utils.parametrize.register_parametrization(net[0], "weight", _Double())
    with pytest.warns(UserWarning, match="layer '0': training.clip does not reach"):
        net(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(x)
        net[0].set_hardware(hardware.replace(**{"training.clip": None}))
        twin = aimc.convert(nn.Sequential(nn.Linear(4, 2)), net[0].hardware, seed=0)
        nn.utils.parametrize.register_parametrization(twin[0], "weight", _Double())
        twin(x)


class Experts(nn.Module):
    """Weights of all experts in one tensor."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 8, 8) / 8)

    def forward(self, x):
        return sum(F.linear(x, self.experts[k]) for k in range(3))


class Everything(nn.Module):
    """A layer, a subclass, a bare parameter, attention, a weight that lies as [in, out], a stack, a tied head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.linear, self.renamed = nn.Linear(8, 8), Renamed(8, 8)
        self.bare = nn.Parameter(torch.randn(8, 8) / 4)
        self.attention = nn.MultiheadAttention(8, 2)
        self.lying = nn.Parameter(torch.randn(8, 8) / 4)
        self.moe = Experts()
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.renamed(self.linear(self.embed(tokens)))
        x = F.linear(x, self.bare) @ self.lying
        x = self.moe(x + self.attention(x, x, x)[0])
        return self.head(x)


def test_every_way_to_multiply_is_converted_or_named():
    torch.manual_seed(0)
    net, tokens = Everything().eval(), torch.randint(11, (5, 2))
    hardware = IDEAL.replace(cell=aimc.cells.PCM())
    with pytest.raises(aimc.AimcError, match="would stay digital") as refused:
        aimc.convert(net, hardware)
    lines = str(refused.value).splitlines()[1:-1]
    assert [line.split()[0] for line in lines] == ["bare", "lying", "moe.experts"]

    def aged(analog):
        """How far a year moves the output."""
        analog.eval()
        fresh = analog(tokens)
        with aimc.program(analog, seed=0, compensation=None).at("1y"):
            return float((analog(tokens) - fresh).detach().abs().max())

    part = aimc.convert(net, hardware, strict=False)
    placed = 8 * 8 * 2 + 4 * 8 * 8 + 8 * 11
    assert aimc.coverage(part).analog_share == placed / (placed + 2 * 64 + 3 * 64)
    left = [row.name for row in aimc.coverage(part).rows if row.where == "unsupported"]
    assert left == ["bare", "lying", "moe.experts"]
    assert aged(part) > 0.01

    aimc.register_products(Experts, weights=["experts"])
    aimc.register_products(Everything, weights=["bare", "lying"], transposed=["lying"])
    whole = aimc.convert(net, hardware)
    assert aimc.coverage(whole).analog_share == 1.0 and len(aimc.analog_layers(whole)) == 2 + 2 + 4 + 3 + 1
    assert whole.head.weight is whole.embed.weight
    assert_close("ideal", aimc.convert(net, IDEAL)(tokens), net(tokens), atol=1e-5)
    assert aged(whole) > 0.01

    none = aimc.coverage(net)
    assert none.analog_share == 0.0
    with pytest.raises(aimc.AimcError, match="no analog layer"):
        aimc.program(net)


def test_files_are_safe_and_whole(tmp_path):
    """Plain tensors only: what may be loaded without running code, and what safetensors takes."""
    from safetensors.torch import load_file, save_file

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.up, self.lstm = nn.Conv1d(3, 4, 3), nn.ConvTranspose1d(4, 6, 3), nn.LSTM(6, 6)
            self.attention, self.experts, self.head = nn.MultiheadAttention(6, 2), Stack(), nn.Linear(6, 2)

        def forward(self, x):
            x = self.lstm(self.up(self.conv(x)).transpose(1, 2))[0]
            return self.head(self.experts(self.attention(x, x, x)[0]))

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = nn.Parameter(torch.randn(2, 6, 6) / 3)

        def forward(self, x):
            return sum(F.linear(x, self.stack[k]) for k in range(2))

    aimc.register_products(Stack, weights=["stack"])
    torch.manual_seed(0)
    hardware, x = aimc.presets.pcm().replace(**{"input_range.init_batches": 1}), torch.randn(2, 3, 9)
    net = aimc.convert(Net(), hardware, seed=0)
    net(x).sum().backward()
    net.eval()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    again = aimc.convert(Net(), hardware, seed=99).eval()
    clean = aimc.convert(Net(), hardware, seed=99).eval()
    again.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    clean.load_state_dict(load_file(tmp_path / "net.safetensors"))
    expected = net(x)
    for other in (again, clean):
        assert_close("output", other(x), expected)
    cells = aimc.convert(
        Net(), aimc.presets.reram(100, w_max_dtod=0.0, w_min_dtod=0.0), digital=("up",), seed=0
    )
    save_file(cells.state_dict(), tmp_path / "cells.safetensors")
    other = aimc.convert(
        Net(), aimc.presets.reram(100, w_max_dtod=0.0, w_min_dtod=0.0), digital=("up",), seed=1
    )
    other.load_state_dict(load_file(tmp_path / "cells.safetensors"))
    assert_close("from cells", other(x), cells(x))


@pytest.mark.parametrize("half", ["pcm", "reram"])
def test_a_network_made_in_inference_mode_can_be_trained(half):
    with torch.inference_mode():
        net = aimc.convert(nn.Sequential(nn.Linear(4, 3)), getattr(aimc.presets, half)(), seed=0)
        digital = aimc.to_digital(net)
    before = [net[0].weight.detach().clone(), digital[0].weight.detach().clone()]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for one, step in (
        (net, aimc.optim.wrap(optimizer, net) if half == "reram" else optimizer),
        (digital, torch.optim.SGD(digital.parameters(), lr=0.1)),
    ):
        one(torch.ones(8, 4)).sum().backward()
        step.step()
    assert not torch.equal(net[0].weight, before[0]) and not torch.equal(digital[0].weight, before[1])


@pytest.mark.parametrize("half", ["pcm", "reram"])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.ones(2, 4, dtype=torch.int64), "expects floating-point inputs, got torch.int64"),
        (torch.ones(2, 4, dtype=torch.complex64), "expects floating-point inputs, got torch.complex64"),
        (torch.ones(2, 4).to_sparse(), "expects a dense tensor, got a sparse_coo one"),
        (torch.nested.nested_tensor([torch.ones(2, 4)]), "expects a dense tensor, got a nested one"),
    ],
    ids=["int", "complex", "sparse", "nested"],
)
def test_inputs_of_other_kinds_are_refused_by_name(half, wrong, said):
    net = aimc.convert(nn.Sequential(nn.Linear(4, 3)), getattr(aimc.presets, half)(), seed=0)
    with pytest.raises(aimc.AimcError, match=f"layer '0'.*{said}"):
        net(wrong)
