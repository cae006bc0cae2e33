"""Attention on tiles: torch's results on ideal hardware with every option, and no way around the tiles."""

import copy

import pytest
import torch
from torch import nn

import aimc
from tests.helpers import assert_close

IDEAL = aimc.presets.ideal()
CELLS = aimc.presets.reram(20, w_max_dtod=0.0, w_min_dtod=0.0)
COARSE = IDEAL.replace(
    dac=aimc.periphery.DAC(bits=2), input_range=aimc.periphery.InputRange(mode="static", value=1.0)
)
INF = float("inf")

KINDS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "without bias": {"bias": False},
    "other widths": {"kdim": 5, "vdim": 7},
    "other widths, no bias": {"kdim": 5, "vdim": 7, "bias": False, "batch_first": True},
    "more keys": {"add_bias_kv": True},
    "zero key": {"add_zero_attn": True, "batch_first": True},
    "all": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 5, "vdim": 7},
}
BATCH, LENGTH, KEYS, HEADS = 3, 5, 6, 2
MASKS = {
    "none": lambda: {},
    "seen": lambda: {"attn_mask": torch.rand(LENGTH, KEYS) < 0.3},
    "added": lambda: {"attn_mask": torch.randn(LENGTH, KEYS), "need_weights": False},
    "per head": lambda: {
        "attn_mask": torch.randn(BATCH * HEADS, LENGTH, KEYS),
        "average_attn_weights": False,
    },
    "padded": lambda: {"key_padding_mask": torch.arange(KEYS) >= torch.tensor([[3], [6], [5]])},
    "both": lambda: {
        "key_padding_mask": torch.arange(KEYS) >= torch.tensor([[3], [6], [5]]),
        "attn_mask": torch.arange(KEYS) > torch.arange(LENGTH)[:, None],
        "need_weights": False,
    },
    "both, added": lambda: {
        "key_padding_mask": torch.zeros(BATCH, KEYS).masked_fill(torch.arange(KEYS) > 3, -INF),
        "attn_mask": torch.randn(LENGTH, KEYS),
    },
}


def inputs(layer, batched=True):
    """Query, key and value in the layer's order of dimensions."""
    found = []
    for length, width in ((LENGTH, layer.embed_dim), (KEYS, layer.kdim), (KEYS, layer.vdim)):
        x = torch.randn(BATCH, length, width) if batched else torch.randn(length, width)
        found.append(x if layer.batch_first or not batched else x.transpose(0, 1))
    return found


def results(module, given, options):
    """Output, weights, and every gradient."""
    module.zero_grad()
    given = [x.clone().requires_grad_() for x in given]
    y, weights = module(*given, **options)
    loss = (y * torch.cos(torch.arange(float(y.numel()))).view_as(y)).sum()
    loss = loss if weights is None else loss + weights.square().sum()
    loss.backward()
    gradients = {n: p.grad for n, p in module.named_parameters()}
    return {"output": y, "weights": weights, **dict(zip("qkv", (x.grad for x in given))), **gradients}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", MASKS)
def test_ideal_hardware_is_digital(kind, mask):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, HEADS, **KINDS[kind])
    nn.init.normal_(layer.out_proj.bias) if layer.out_proj.bias is not None else None
    options, given = MASKS[mask](), inputs(layer)
    expected = results(layer, given, options)
    analog = aimc.convert(layer, IDEAL.replace(**{"tile.rows": 3}))
    for module in (analog, aimc.to_digital(analog)):
        found = results(module, given, options)
        for name, e in expected.items():
            if e is not None:
                assert_close(name, found[name], e, atol=1e-5 * max(1.0, float(e.detach().abs().max())))
    assert (
        found["weights"] is None or not options.get("need_weights", True) or expected["weights"] is not None
    )
    assert type(aimc.to_digital(analog)) is nn.MultiheadAttention
    cells = aimc.convert(layer, CELLS)
    assert_close("cells", cells(*given, **options)[0], expected["output"], atol=1e-5)
    assert_close("out of cells", aimc.to_digital(cells)(*given, **options)[0], expected["output"], atol=1e-5)


@pytest.mark.parametrize("need", [True, False])
def test_without_a_batch(need):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, HEADS, add_bias_kv=True)
    analog, given = aimc.convert(layer, IDEAL), inputs(layer, batched=False)
    options = {"key_padding_mask": torch.arange(KEYS) > 3, "need_weights": need}
    for a, e in zip(analog(*given, **options), layer(*given, **options), strict=True):
        assert (a is None and e is None) or assert_close("result", a, e, atol=1e-6) is None


def lie(tensor):
    """Strides of the dimensions that have more than one entry."""
    return [s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]


@pytest.mark.parametrize(
    "heads, options", [(2, {}), (1, {}), (2, {"bias": False}), (2, {"add_bias_kv": True})]
)
@pytest.mark.parametrize("batch_first", [True, False])
def test_results_lie_in_memory_as_torchs(heads, options, batch_first):
    """Those of torch's fast path as well: what is written with ``.view`` for torch goes on working."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, heads, batch_first=batch_first, **options)
    analog = aimc.convert(layer, IDEAL)
    x, single = torch.randn(4, 4, 8), torch.randn(4, 8)
    mask = torch.zeros(4, 4)
    for training in (True, False):
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                for given, named in (
                    ((x, x, x), {}),
                    ((x, x, x), {"attn_mask": mask > 0}),
                    ((x, x, x), {"attn_mask": mask}),
                    ((x, x.clone(), x), {"need_weights": False}),
                    ((single, single, single), {}),
                ):
                    found = analog.train(training)(*given, **named)
                    expected = layer.train(training)(*given, **named)
                    for a, e in zip(found, expected, strict=True):
                        assert (a is None and e is None) or lie(a) == lie(e)
                    assert_close("output", found[0], expected[0], atol=1e-6)


def test_every_projection_has_tiles_of_its_own():
    layer = nn.MultiheadAttention(8, 2)
    analog = aimc.convert(nn.Sequential(layer), aimc.presets.pcm().replace(**{"tile.rows": 4}), inplace=True)
    assert list(aimc.analog_layers(analog)) == ["0.q_proj", "0.k_proj", "0.v_proj", "0.out_proj"]
    report = aimc.coverage(analog)
    assert report.analog_share == 1.0 and [row.tiles for row in report.rows] == [2] * 4
    assert analog[0].in_proj_weight is layer.in_proj_weight  # an optimizer made before stays valid


def test_dropout_of_the_attention_weights():
    torch.manual_seed(0)
    analog = aimc.convert(nn.MultiheadAttention(8, 1, dropout=0.25), IDEAL)
    x = torch.randn(100, 2, 8)
    weights = analog(x, x, x)[1]
    assert abs(float((weights == 0).float().mean()) - 0.25) < 0.02
    a, b = analog(x, x, x, need_weights=False)[0], analog(x, x, x, need_weights=False)[0]
    assert not torch.equal(a, b)
    analog.eval()
    assert bool((analog(x, x, x)[1] > 0).all())


@pytest.mark.parametrize("hardware", [IDEAL, CELLS], ids=["inference", "in memory"])
def test_a_checkpoint_of_torch_loads(hardware):
    torch.manual_seed(0)
    layer, analog = (
        nn.Sequential(nn.MultiheadAttention(8, 2)), aimc.convert(nn.Sequential(nn.MultiheadAttention(8, 2)), hardware)
    )  # fmt: skip
    nn.init.normal_(layer[0].in_proj_bias)
    analog.load_state_dict(layer.state_dict())
    x = torch.randn(5, 3, 8)
    assert_close("output", analog[0](x, x, x)[0], layer[0](x, x, x)[0], atol=1e-5)
    if hardware is IDEAL:
        assert layer.state_dict().keys() <= analog.state_dict().keys()
    again = aimc.convert(nn.Sequential(nn.MultiheadAttention(8, 2)), hardware)
    again.load_state_dict(analog.state_dict())
    assert_close("output", again[0](x, x, x)[0], analog[0](x, x, x)[0])


def test_matrices_in_one_parameter_are_clipped_once_each():
    """Clipping at 1.5 standard deviations shrinks what it clips every time it is applied."""
    torch.manual_seed(0)
    training = aimc.hwa.HardwareAware(clip=aimc.hwa.GaussianClip(sigma=1.5))
    analog = aimc.convert(nn.MultiheadAttention(40, 2), IDEAL.replace(training=training))
    with torch.no_grad():
        analog.in_proj_weight[:40] *= 10.0
    x = torch.randn(5, 3, 40)
    expected = analog.in_proj_weight.detach().clone()
    for rows in expected.split(40):
        rows.clamp_(-1.5 * float(rows.std()), 1.5 * float(rows.std()))
    loss = analog(x, x, x)[0].sum()  # clips what the line above has written
    assert_close("clipped", analog.in_proj_weight, expected)
    for module in (analog, copy.deepcopy(analog)):
        module(x, x, x)
        assert_close("not again", module.in_proj_weight, expected)
    loss.backward()
    torch.optim.SGD(analog.parameters(), lr=1e-9).step()
    once = analog.in_proj_weight.detach().clone()
    assert float((once - expected).abs().max()) > 1e-3
    analog(x, x, x)
    assert_close("after a step", analog.in_proj_weight, once)


def test_errors_name_the_layer_and_the_argument():
    analog = aimc.convert(nn.ModuleDict({"a": nn.MultiheadAttention(8, 2)}), IDEAL)["a"]
    x = torch.randn(5, 3, 8)
    for args, options, message in (
        ((x, x, x), {"is_causal": True}, r"layer 'a', field 'attn_mask': needs attn_mask"),
        ((x, x, x), {"attn_mask": torch.zeros(4, 5)}, r"field 'attn_mask'.*\[5, 5\] or \[6, 5, 5\]"),
        ((x, x, x), {"key_padding_mask": torch.zeros(2, 5)}, r"field 'key_padding_mask'.*\[3, 5\]"),
        ((x, x, x[:4]), {}, r"layer 'a': batch and length"),
        ((x, x[0], x), {}, r"layer 'a': expects query, key and value"),
        ((x[..., :7], x, x), {}, r"layer 'a.q_proj'.*expects 8 features"),
        ((x, x, x * float("nan")), {}, r"layer 'a.v_proj'.*NaN"),
    ):
        with pytest.raises(aimc.AimcError, match=message):
            analog(*args, **options)
    nested = torch.nested.nested_tensor([torch.randn(2, 8), torch.randn(3, 8)])
    with pytest.raises(aimc.AimcError, match="a nested one"):
        analog(nested, nested, nested)


# Blocks --------------------------------------------------------------------------------------------------------


def encoder(**changes):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, **changes)
    return nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8))


BLOCKS = {
    "encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), 1),
    "encoder layer, norm first": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, dropout=0.0), 1
    ),
    "encoder": (encoder, 1),
    "encoder, gelu": (lambda: encoder(activation="gelu"), 1),
    "decoder layer": (lambda: nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0), 2),
    "decoder": (lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0), 2), 2),
    "transformer": (lambda: nn.Transformer(8, 2, 1, 1, 16, 0.0, batch_first=True), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("training", [True, False])
def test_blocks_are_all_analog_and_digital_on_ideal_hardware(name, training):
    torch.manual_seed(0)
    make, sources = BLOCKS[name]
    net = make().train(training)
    given = [torch.randn(4, 5, 8) for _ in range(sources)]
    analog = aimc.convert(net, IDEAL)
    assert aimc.coverage(analog).analog_share == 1.0
    for module in (analog, aimc.to_digital(analog), aimc.convert(net, CELLS)):
        assert_close("output", module(*given), net(*given), atol=1e-5)


@pytest.mark.parametrize("name", ["encoder layer", "encoder layer, norm first", "encoder", "encoder, gelu"])
@pytest.mark.parametrize("padded", [True, False])
def test_torchs_fast_path_bypasses_no_tile(name, padded):
    """Evaluation without gradients, where torch would compute with the bare weights."""
    torch.manual_seed(0)
    net = BLOCKS[name][0]().eval()
    analog = aimc.convert(net, COARSE).eval()
    x, hidden = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    mask = hidden if padded else None
    calls: list[str] = []
    for layer in aimc.analog_layers(analog).values():
        layer.register_forward_hook(lambda module, *_: calls.append(module.name))
    for hooks in (True, False):
        with torch.no_grad():
            fast = analog(x, src_key_padding_mask=mask)
        if hooks:
            assert sorted(calls) == sorted(aimc.analog_layers(analog))
            for layer in aimc.analog_layers(analog).values():
                layer._forward_hooks.clear()
    slow, digital = analog(x, src_key_padding_mask=mask), net(x, src_key_padding_mask=mask)
    if padded:
        fast, slow, digital = (y[~hidden] for y in (fast, slow, digital))
    assert_close("with and without gradient", fast, slow, atol=1e-6)
    assert float((fast - digital).detach().abs().max()) > 0.1


def test_torchs_fast_path_is_back_in_the_digital_twin():
    for net in (encoder(), encoder(activation="gelu"), BLOCKS["encoder layer"][0]()):
        analog = aimc.convert(net, IDEAL)
        twins = aimc.to_digital(analog), aimc.to_digital(copy.deepcopy(analog))
        for module, *others in zip(*(n.modules() for n in (net, *twins)), strict=True):
            for name in ("activation_relu_or_gelu", "enable_nested_tensor", "use_nested_tensor"):
                for other in others:
                    assert getattr(other, name, None) == getattr(module, name, None), name
                    assert "_aimc_fast" not in vars(other)
        again = aimc.convert(twins[0], IDEAL)
        assert not any(getattr(m, "activation_relu_or_gelu", 0) for m in again.modules())


def test_attention_whose_forward_was_changed_is_refused_whole():
    class Changed(nn.MultiheadAttention):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    net = nn.ModuleDict({"a": Changed(8, 2), "ok": nn.Linear(2, 2)})
    with pytest.raises(aimc.AimcError, match=r"\n  a \(Changed"):
        aimc.convert(net, IDEAL)
    assert list(aimc.analog_layers(aimc.convert(net, IDEAL, digital=("a",)))) == ["ok"]
