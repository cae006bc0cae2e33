"""Models of Hugging Face transformers, randomly initialised: every matrix on tiles, and nothing of the library lost."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import aimc
from tests.helpers import assert_close

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'aimc[language]'")
transformers.logging.set_verbosity_error()

IDEAL = aimc.presets.ideal()
PCM = aimc.presets.pcm().replace(**{"input_range.value": 2.0, "input_range.init_batches": 0})
CELLS = aimc.presets.reram(1000, w_max_dtod=0.0, w_min_dtod=0.0)
VOCABULARY = 50
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**TEXT, "num_key_value_heads": 1}


def configured(name, config, **settings):
    return lambda: getattr(transformers, name)(getattr(transformers, config)(**settings))


MODELS = {
    "BERT": (configured("BertForSequenceClassification", "BertConfig", **TEXT), 14),
    "BERT, masked": (configured("BertForMaskedLM", "BertConfig", **TEXT), 14),
    "GPT-2": (
        configured(
            "GPT2LMHeadModel", "GPT2Config", vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32,
            initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        ), 9,
    ),
    "Llama": (configured("LlamaForCausalLM", "LlamaConfig", **GROUPED), 15),
    "Llama, tied": (configured("LlamaForCausalLM", "LlamaConfig", **GROUPED, tie_word_embeddings=True), 15),
    "Phi-3": (configured("Phi3ForCausalLM", "Phi3Config", **GROUPED), 9),
    "Mixtral": (configured("MixtralForCausalLM", "MixtralConfig", **GROUPED, num_local_experts=4), 2 * (4 + 1 + 8) + 1),
    "GPT-OSS": (
        configured(
            "GptOssForCausalLM", "GptOssConfig", **GROUPED, num_local_experts=4, num_experts_per_tok=2, head_dim=8,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        ), 2 * (4 + 1 + 8) + 1,
    ),
    "ViT": (
        configured(
            "ViTForImageClassification", "ViTConfig", hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, image_size=8, patch_size=4, initializer_range=0.2,
        ), 14,
    ),
}  # fmt: skip
TIED = ["BERT, masked", "GPT-2", "Llama, tied"]
GENERATORS = ["GPT-2", "Llama", "Phi-3", "Mixtral", "GPT-OSS"]


@pytest.fixture(params=MODELS, ids=str)
def name(request):
    return request.param


def made(name):
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def inputs(name):
    torch.manual_seed(1)
    return (
        {"pixel_values": torch.randn(2, 3, 8, 8)}
        if name == "ViT"
        else {"input_ids": torch.randint(3, 50, (2, 7))}
    )


def test_every_matrix_is_analog_and_ideal_hardware_is_digital(name):
    net, x = made(name), inputs(name)
    analog = aimc.convert(net, IDEAL)
    report = aimc.coverage(analog)
    assert report.analog_share == 1.0 and len(aimc.analog_layers(analog)) == MODELS[name][1]
    assert not [row for row in report.rows if row.where in ("unsupported", "excluded")]
    expected = net(**x).logits
    assert float(expected.detach().std()) > 0.05
    for module in (analog, aimc.to_digital(analog)):
        assert_close("logits", module(**x).logits, expected, atol=1e-5)
    if name not in TIED:  # cells are one layer's
        assert_close("in cells", aimc.convert(net, CELLS)(**x).logits, expected, atol=1e-5)


@torch.no_grad()
def test_patches_of_more_pixels_than_a_tile_has_rows():
    """Of 32 x 32, 512 rows: two tiles for each colour."""
    torch.manual_seed(0)
    make = configured(
        "ViTModel", "ViTConfig", hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, image_size=64, patch_size=32,
    )  # fmt: skip
    net, x = make().eval(), {"pixel_values": torch.randn(1, 3, 64, 64)}
    analog = aimc.convert(net, IDEAL)
    assert sorted(row.tiles for row in aimc.coverage(analog).rows if row.where == "analog")[-1] == 6
    for module in (analog, aimc.convert(net, CELLS)):
        assert_close("states", module(**x).last_hidden_state, net(**x).last_hidden_state, atol=1e-5)


def test_gradients_are_the_digital_ones(name):
    net, x = made(name), inputs(name)
    analog = aimc.convert(net, IDEAL)
    for module in (net, analog):
        (module(**x).logits ** 2).mean().backward()
    found = dict(analog.named_parameters())
    for parameter, value in net.named_parameters():
        assert (value.grad is None) == (found[parameter].grad is None), parameter
        if value.grad is not None:
            size = float(value.grad.abs().max())
            assert_close(parameter, found[parameter].grad, value.grad, atol=1e-5 * max(1.0, size))


def test_drift_changes_the_output(name):
    net, x = made(name), inputs(name)
    analog = aimc.convert(net, PCM, seed=0).eval()
    clean = net(**x).logits
    chip = aimc.program(analog, seed=0, compensation=None)
    logits = []
    for time in (0.0, "1h", "1y"):
        with torch.no_grad(), chip.at(time):
            logits.append(analog(**x).logits)
    fresh, hour, year = logits
    assert 0 < float((fresh - clean).std())
    assert 0 < float((hour - fresh).std()) < float((year - fresh).std())


@pytest.mark.parametrize("name", GENERATORS)
def test_text_is_generated(name):
    net, prompt = made(name), inputs(name)["input_ids"]
    analog = aimc.convert(net, IDEAL)
    settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    assert torch.equal(analog.generate(prompt, **settings), net.generate(prompt, **settings))
    noisy = aimc.convert(net, PCM, seed=0).eval()
    with aimc.program(noisy, seed=0).at("1d"):
        assert noisy.generate(prompt, **settings).shape[1] > prompt.shape[1]


def test_saved_and_loaded(name, tmp_path):
    """Into a digital model of the library by its own means, and from there back onto the same tiles, to the bit."""
    from safetensors.torch import load_file

    net, x = made(name), inputs(name)
    analog = aimc.convert(net, PCM, seed=0)
    with torch.no_grad():
        for layer in aimc.analog_layers(analog).values():
            layer.input_range *= 1.5
    analog.eval()
    for options in ({}, {"save_original_format": False}):
        folder = tmp_path / f"{len(options)}"
        analog.save_pretrained(folder, **options)
        loaded, report = type(net).from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()), report
        assert_close("digital", loaded.eval()(**x).logits, net(**x).logits, atol=1e-6)
        again = aimc.convert(loaded, PCM, seed=99)
        missing, unexpected = again.load_state_dict(load_file(folder / "analog.safetensors"), strict=False)
        assert not unexpected and set(missing) == net.state_dict().keys()
        assert_close("analog", copy.deepcopy(again).eval()(**x).logits, copy.deepcopy(analog)(**x).logits)


@pytest.mark.parametrize("hands_state_over", [False, True], ids=["by hand", "by the Trainer"])
def test_trained_gains_are_saved(name, hands_state_over, tmp_path):
    """The preset as it is. Gains untie a head, and what is loaded has to stay untied."""
    from safetensors.torch import load_file

    net, x = made(name), inputs(name)
    analog = aimc.convert(net, aimc.presets.pcm(), seed=0).eval()
    with torch.no_grad():
        for layer in aimc.analog_layers(analog).values():
            layer.output_gain *= 1.3
            layer.set_input_range(torch.full_like(layer.input_range, 2.0))
    expected = aimc.to_digital(analog)(**x).logits
    assert float((expected - net(**x).logits).detach().abs().max()) > 0.1
    state = {"state_dict": None} if hands_state_over else {}
    analog.save_pretrained(tmp_path, **state)
    loaded = type(net).from_pretrained(tmp_path).eval()
    assert_close("digital", loaded(**x).logits, expected, atol=1e-6)
    assert (
        not getattr(loaded.config, "tie_word_embeddings", False) or name not in TIED
    )  # some versions of the library would tie it again
    aimc.to_digital(analog).save_pretrained(tmp_path / "twin")
    twin = type(net).from_pretrained(tmp_path / "twin").eval()
    assert_close("digital twin", twin(**x).logits, expected, atol=1e-6)
    again = aimc.convert(loaded, aimc.presets.pcm(), seed=99)
    file = "model.safetensors" if hands_state_over else "analog.safetensors"
    missing, unexpected = again.load_state_dict(load_file(tmp_path / file), strict=False)
    assert not unexpected and not (hands_state_over and missing)
    assert_close("analog", again.eval()(**x).logits, copy.deepcopy(analog)(**x).logits)
    other = aimc.convert(copy.deepcopy(loaded), IDEAL)  # tiles that have no gains to take
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other.load_state_dict(load_file(tmp_path / file), strict=False)
    assert_close("other tiles", other.eval()(**x).logits, expected, atol=1e-5)
    for layer in aimc.analog_layers(analog).values():  # the network itself is as it was
        assert float(layer.output_gain.min()) > 1.2


def test_a_part_of_the_state_is_saved_as_it_is_with_a_warning(tmp_path):
    analog = aimc.convert(made("Llama"), aimc.presets.pcm(), seed=0)
    part = {n: v for n, v in analog.state_dict().items() if n.endswith(".weight")}
    analog.save_pretrained(tmp_path, state_dict=part)
    with torch.no_grad():
        analog.lm_head.output_gain *= 1.3
    with pytest.warns(UserWarning, match=r"1 layers have trained output gains \(lm_head"):
        analog.save_pretrained(tmp_path, state_dict=part)


def test_a_state_that_is_handed_over_is_the_one_that_is_saved(tmp_path):
    analog = aimc.convert(made("Llama"), aimc.presets.pcm(), seed=0)
    averaged = {n: 0 * v if n == "lm_head.weight" else v for n, v in analog.state_dict().items()}
    analog.save_pretrained(tmp_path, state_dict=averaged)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert not loaded.lm_head.weight.any() and bool(analog.lm_head.weight.any())


def test_a_model_in_cells_is_saved(tmp_path):
    from safetensors.torch import load_file

    net, x = made("Llama"), inputs("Llama")
    analog = aimc.convert(net, CELLS, seed=0)
    analog.save_pretrained(tmp_path)
    loaded = type(net).from_pretrained(tmp_path).eval()
    assert_close("digital", loaded(**x).logits, net(**x).logits, atol=1e-5)
    again = aimc.convert(loaded, CELLS, seed=1)
    _, unexpected = again.load_state_dict(load_file(tmp_path / "analog.safetensors"), strict=False)
    assert not unexpected
    for layer, other in zip(
        aimc.pulsed_layers(again).values(), aimc.pulsed_layers(analog).values(), strict=True
    ):
        for field, value in other.cells.state.items():
            assert torch.equal(layer.cells.state[field], value), field


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "Llama", "Mixtral"])
def test_in_bfloat16(name):
    net, x = made(name), inputs(name)
    expected = net(**x).logits
    analog = aimc.convert(net, IDEAL).to(torch.bfloat16)
    found = analog(**x).logits
    assert found.dtype == torch.bfloat16
    assert {p.dtype for p in analog.parameters()} == {torch.bfloat16}
    scale = float(expected.detach().abs().max())
    assert_close("logits", found.float(), expected, atol=2.0**-6 * scale)
    (found.float() ** 2).mean().backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in analog.parameters())


@pytest.mark.parametrize("name", TIED)
def test_tied_weights_stay_one(name):
    net, x = made(name), inputs(name)
    analog = aimc.convert(net, aimc.presets.pcm(), seed=0)
    for module in (analog, copy.deepcopy(analog), aimc.to_digital(analog)):
        module.tie_weights()
        assert module.get_output_embeddings().weight is module.get_input_embeddings().weight
    analog = aimc.convert(net, IDEAL)
    for module in (net, analog):
        logits = module(**x).logits
        (logits * logits.detach().cos()).mean().backward()
    both, found = net.get_input_embeddings().weight.grad, analog.get_input_embeddings().weight.grad
    assert_close("gradient of look-up and head", found, both, atol=1e-5)
    assert (
        int((both.abs().sum(1) > 0).sum()) == VOCABULARY
    )  # the head reaches every row, the look-up 14 of them


MIXED = {
    "Llama4ForCausalLM": ("Llama4TextConfig", {"num_local_experts": 4, "intermediate_size_mlp": 20, "head_dim": 8}),
    "JetMoeForCausalLM": ("JetMoeConfig", {"num_local_experts": 4, "kv_channels": 8}),
    "AfmoeForCausalLM": (
        "AfmoeConfig", {
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "num_dense_layers": 1,
            "head_dim": 8,
        },
    ),
    "Ernie4_5_MoeForCausalLM": ("Ernie4_5_MoeConfig", {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 8}),
}  # fmt: skip


@pytest.mark.parametrize("model", MIXED)
def test_experts_of_whatever_form_are_on_tiles(model):
    """Stacks as [in, out] and as [out, in], a stack in a module of its own, routers of another make."""
    config, settings = MIXED[model]
    if not hasattr(transformers, model):
        pytest.skip("this version of transformers does not have it")
    torch.manual_seed(0)
    net = configured(model, config, **GROUPED, **settings, tie_word_embeddings=False)().eval()
    for parameter in net.parameters():  # some stacks begin as zeros
        nn.init.normal_(parameter, std=0.2)
    analog, x = aimc.convert(net, IDEAL), inputs("Mixtral")
    assert aimc.coverage(analog).analog_share == 1.0
    assert any("experts" in name for name in aimc.analog_layers(analog))
    expected = net(**x).logits
    for module in (analog, aimc.to_digital(analog), aimc.convert(net, CELLS)):
        assert_close("logits", module(**x).logits, expected, atol=1e-4 * float(expected.detach().abs().max()))


def test_mixtrals_experts_are_analog():
    analog = aimc.convert(made("Mixtral"), IDEAL, digital=("*.gate", "lm_head"))
    rows = aimc.coverage(analog).rows
    assert sum("experts" in r.name and r.where == "analog" for r in rows) == 16
    assert {r.name.split(".")[-1] for r in rows if r.where == "excluded"} == {"gate", "lm_head"}
    experts = analog.model.layers[0].mlp.experts
    assert isinstance(experts, type(made("Mixtral").model.layers[0].mlp.experts))
    assert isinstance(experts.gate_up_proj, nn.Parameter) and experts.gate_up_proj.dim() == 3


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_no_implementation_of_experts_bypasses_the_tiles(implementation):
    net, x = made("Mixtral"), inputs("Mixtral")
    net.set_experts_implementation(implementation)
    coarse = IDEAL.replace(
        dac=aimc.periphery.DAC(bits=2), input_range=aimc.periphery.InputRange(mode="static", value=1.0)
    )
    analog = aimc.convert(net, coarse, digital=("*.self_attn", "*.gate", "lm_head")).eval()
    assert len(aimc.analog_layers(analog)) == 16
    with torch.no_grad():
        assert float((analog(**x).logits - net(**x).logits).abs().max()) > 0.01


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_vocabulary_that_grows_after_the_conversion_is_an_error(tied):
    analog = aimc.convert(made("Llama, tied" if tied else "Llama"), PCM, seed=0).eval()
    analog.resize_token_embeddings(60)
    said = (
        r"layer 'lm_head'.*\[50, 16\].*before aimc.convert"
        if tied
        else r"(?s)came after.*lm_head \(Linear, 960 "
    )
    for act in (lambda: analog(**inputs("Llama")), lambda: aimc.program(analog, seed=0)):
        with pytest.raises(aimc.AimcError, match=said):
            act()


TABLES = {
    "Gemma 2": (configured("Gemma2ForCausalLM", "Gemma2Config", **GROUPED, head_dim=8), "Llama"),
    "OPT": (
        configured("OPTForCausalLM", "OPTConfig", **TEXT, ffn_dim=24, word_embed_proj_dim=16), "Llama",
    ),
    "Swin": (
        configured(
            "SwinForImageClassification", "SwinConfig", image_size=8, patch_size=2, embed_dim=8, depths=[1],
            num_heads=[2], window_size=4,
        ), "ViT",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_are_only_looked_up_are_no_products(name):
    torch.manual_seed(0)
    net, x = TABLES[name][0]().eval(), inputs(TABLES[name][1])
    analog = aimc.convert(net, IDEAL, example=x if name == "Swin" else None)
    assert_close("logits", analog(**x).logits, net(**x).logits, atol=1e-5)
    assert aimc.coverage(analog).analog_share == 1.0
