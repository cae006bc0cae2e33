"""Running texts and labelled sentences, from files of their layout and from the real ones."""

import hashlib
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from aimc.data import TEXT_SPLITS, batches, load_sentences, load_tokens
from aimc.errors import AimcError

TRAIN = [" ", " = A title = \n", " the cat <unk> the dog \n", " b a the"]
TEST = [" ", " the zebra sleeps \n"]


def write(folder, rows, split="train", column="text", labels=None, shards=1):
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // shards)
    for number in range(shards):
        part = slice(number * size, (number + 1) * size)
        columns = {column: rows[part]} | (
            {"label": pa.array(labels[part], pa.int32())} if labels is not None else {}
        )
        pq.write_table(pa.table(columns), folder / f"{split}-{number:05d}-of-{shards:05d}.parquet")


@pytest.fixture
def running(tmp_path):
    write(tmp_path / "wikitext-2", TRAIN, shards=2)
    for split in ("validation", "test"):
        write(tmp_path / "wikitext-2", TEST, split)
    return tmp_path


def read(data):
    return " ".join(data.words[i] for i in data.tokens)


def test_words_lines_and_vocabulary(running):
    train = load_tokens("wikitext-2", "train", running)
    assert read(train) == "<eos> = A title = <eos> the cat <unk> the dog <eos> b a the <eos>"
    # four <eos>, three the, two =, and the rest by alphabet
    assert train.words == ("<eos>", "the", "=", "<unk>", "A", "a", "b", "cat", "dog", "title")
    test = load_tokens("wikitext-2", "test", running)
    assert test.words == train.words
    assert read(test) == "<eos> the <unk> <unk> <eos>"
    assert test.tokens.dtype == torch.int64


def test_a_limit_cuts_the_text_and_not_the_vocabulary(running):
    whole = load_tokens("wikitext-2", "train", running)
    part = load_tokens("wikitext-2", "train", running, limit=5)
    assert part.words == whole.words and torch.equal(part.tokens, whole.tokens[:5])
    assert len(part) == 5 and part.sha256 != whole.sha256
    assert load_tokens("wikitext-2", "train", running).sha256 == whole.sha256


def test_a_word_without_a_place_is_named(tmp_path):
    folder = tmp_path / "wikitext-2"
    write(folder, ["a b"])
    write(folder, ["a zebra"], "test")
    with pytest.raises(AimcError, match="neither <unk> nor 'zebra', which is in test"):
        load_tokens("wikitext-2", "test", tmp_path)


def letters(sentences):
    numbers = torch.tensor([[ord(s[0]), len(s)] for s in sentences])
    return numbers, torch.ones_like(numbers)


@pytest.fixture
def labelled(tmp_path):
    for split in TEXT_SPLITS:
        write(tmp_path / "sst2", [f"{split} good", "bad", "c"], split, "sentence", [1, 0, 1])
    return tmp_path


def test_sentences_of_several_files(tmp_path):
    write(tmp_path / "sst2", ["a", "b", "c", "d"], "train", "sentence", [0, 1, 1, 0], shards=2)
    data = load_sentences("sst2", "train", letters, tmp_path)
    assert data.targets.tolist() == [0, 1, 1, 0] and data.inputs[0][:, 0].tolist() == [*map(ord, "abcd")]


def test_sentences_and_labels(labelled):
    data = load_sentences("sst2", "validation", letters, labelled)
    assert data.inputs[0].tolist() == [[ord("v"), 15], [ord("b"), 3], [ord("c"), 1]]
    assert data.targets.tolist() == [1, 0, 1] and data.classes == ("negative", "positive")
    assert (
        data.sha256
        == hashlib.sha256(b"validation good\nbad\nc" + torch.tensor([1, 0, 1]).numpy().tobytes()).hexdigest()
    )
    short = load_sentences("sst2", "validation", letters, labelled, limit=2)
    assert len(short) == 2 and short.sha256 != data.sha256


def test_batches_take_both_inputs_of_a_sentence(labelled):
    data = load_sentences("sst2", "train", letters, labelled)
    for (numbers, mask), targets in batches(data, 2, shuffle_seed=1, epoch=0):
        assert len(numbers) == len(mask) == len(targets)
        for row, target in zip(numbers, targets):
            place = (data.inputs[0] == row).all(1).nonzero().item()
            assert data.targets[place] == target
    with pytest.raises(AimcError, match="none"):
        batches(data, 2, shuffle_seed=1, augment="crop_flip")


@pytest.mark.parametrize(
    "rows, labels, message",
    [
        ([], [], "no text"),
        (["a", None], [0, 1], r"row 1 of the column 'sentence' holds None"),
        (["a", "b"], [0, 2], "labels run from 0 to 2"),
        (["a", "b"], None, r"one of \['label'\] is needed"),
        (["a", "b"], [0, None], "row 1 of the column 'label' holds None, no int"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, rows, labels, message):
    write(tmp_path / "sst2", rows, "train", "sentence", labels)
    with pytest.raises(AimcError, match=f"train-00000-of-00001.parquet: .*{message}"):
        load_sentences("sst2", "train", letters, tmp_path)


def test_wrong_names_offer_the_right_ones(tmp_path, running, monkeypatch):
    with pytest.raises(AimcError, match="did you mean 'wikitext-2'"):
        load_tokens("wikitext2", "train", running)
    with pytest.raises(AimcError, match="no data set of running text is called 'sst2'"):
        load_tokens("sst2", "train", running)
    with pytest.raises(AimcError, match="labelled sentences is called 'wikitext-2'"):
        load_sentences("wikitext-2", "train", letters, running)
    with pytest.raises(AimcError, match="did you mean 'validation'"):
        load_tokens("wikitext-2", "valid", running)
    with pytest.raises(AimcError, match="limit"):
        load_tokens("wikitext-2", "train", running, limit=0)
    with pytest.raises(AimcError, match="no test files of 'sst2'.*put test-.*parquet or test.jsonl into"):
        load_sentences("sst2", "test", letters, tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert len(load_tokens("wikitext-2", "train", running)) > 0  # a folder needs no library
    monkeypatch.delenv("AIMC_DATA", raising=False)
    with pytest.raises(
        AimcError, match=r"datasets, which reads the hub's, is not installed: .*install aimc\[language\]"
    ):
        load_tokens("wikitext-2", "train")


def test_lines_of_json_in_a_folder_of_any_name(tmp_path):
    """The columns of the hub's SST-2, and characters that mean something in a pattern of file names."""
    rows = [{"text": "a", "label": 1, "label_text": "positive"}, {"text": "b c", "label": 0}]
    folder = tmp_path / "a [b] c*d" / "sst2"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_sentences("sst2", "train", letters, folder.parent)
    assert data.targets.tolist() == [1, 0] and data.classes == ("negative", "positive")
    assert data.inputs[0].tolist() == [[ord("a"), 1], [ord("b"), 3]]
    for broken, message in (
        ("{", "train.jsonl: line 1 is no JSON"),
        ("", r"train.jsonl: the columns are \[\]"),
        ("[]", r"train.jsonl: the columns are \[\]"),
        ('{"text": "\\ud800", "label": 1}', "train.jsonl: row 0 holds half a character"),
        ('{"text": "a", "label": true}', "train.jsonl: row 0 of the column 'label' holds True, no int"),
        ('{"text": "a"}', r"train.jsonl: the columns are \['text'\]; one of \['label'\]"),
    ):
        (folder / "train.jsonl").write_text(broken)
        with pytest.raises(AimcError, match=message):
            load_sentences("sst2", "train", letters, folder.parent)


def test_columns_that_nobody_needs_may_hold_anything(tmp_path):
    folder = tmp_path / "sst2"
    folder.mkdir()
    rows = [{"sentence": "2026-11-30", "label": 1, "id": 1}, {"sentence": "b", "label": 0, "id": "x"}]
    for content in ("\n".join(map(json.dumps, rows)), json.dumps(rows)):
        (folder / "train.jsonl").write_text(content)
        data = load_sentences("sst2", "train", letters, tmp_path)
        assert data.inputs[0].tolist() == [[ord("2"), 10], [ord("b"), 1]] and data.targets.tolist() == [1, 0]


def test_the_damaged_one_of_several_files_is_named(running):
    (running / "wikitext-2" / "train-00001-of-00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        AimcError, match="root': [^,]*train-00001-of-00002.parquet: cannot be read as parquet"
    ):
        load_tokens("wikitext-2", "train", running)


def test_class_names_come_from_the_file_and_are_as_many(tmp_path):
    write(tmp_path / "sst2", ["a", "b"], "train", "sentence", [0, 1])
    file = tmp_path / "sst2" / "train-00000-of-00001.parquet"
    for names, message in ((["bad", "good"], None), (["a"], "1 class names, not 2")):
        told = json.dumps({"info": {"features": {"label": {"names": names}}}})
        pq.write_table(pq.read_table(file).replace_schema_metadata({"huggingface": told}), file)
        if message is None:
            assert load_sentences("sst2", "train", letters, tmp_path).classes == ("bad", "good")
        else:
            with pytest.raises(AimcError, match=message):
                load_sentences("sst2", "train", letters, tmp_path)


HUB = {
    "SetFit/sst2": {"text": ["good", "bad"], "label": [1, 0], "label_text": ["positive", "negative"]},
    "Salesforce/wikitext": {"text": ["", " = A title = \n"]},
}


def test_without_a_folder_texts_come_from_the_hub(monkeypatch):
    asked = []

    def load_dataset(repository, configuration, split):
        asked.append((repository, configuration, split))
        return datasets.Dataset.from_dict(HUB[repository])

    datasets = pytest.importorskip("datasets", reason="texts need aimc[language]")
    monkeypatch.delenv("AIMC_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_sentences("sst2", "validation", letters)
    assert data.inputs[0].tolist() == [[ord("g"), 4], [ord("b"), 3]] and data.targets.tolist() == [1, 0]
    assert read(load_tokens("wikitext-2", "train")) == "<eos> = A title = <eos>"
    assert asked == [("SetFit/sst2", None, "validation"), ("Salesforce/wikitext", "wikitext-2-v1", "train")]
    monkeypatch.setitem(HUB, "SetFit/sst2", {"phrase": ["good"], "label": [1]})
    with pytest.raises(
        AimcError, match=r"SetFit/sst2 on the hub: .*\['phrase', 'label'\]; one of \['sentence', 'text'\]"
    ):
        load_sentences("sst2", "test", letters)
    monkeypatch.delitem(HUB, "SetFit/sst2")
    with pytest.raises(AimcError, match=r"cannot read SetFit/sst2 .*KeyError.*sst2/test-\*.*AIMC_DATA"):
        load_sentences("sst2", "test", letters)


def test_missing_shards_are_named(tmp_path):
    write(tmp_path / "wikitext-2", TRAIN, shards=2)
    (tmp_path / "wikitext-2" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(AimcError, match="has 1 of 2 files"):
        load_tokens("wikitext-2", "train", tmp_path)


def test_the_real_texts(data_folder):
    for split, tokens in (("train", 2_088_628), ("validation", 217_646), ("test", 245_569)):
        data = load_tokens("wikitext-2", split, data_folder)
        assert len(data) == tokens and len(data.words) == 33_278
    assert (
        read(load_tokens("wikitext-2", "test", data_folder, limit=8))
        == "<eos> = Robert <unk> = <eos> <eos> Robert"
    )
    for split, negative, positive in (("train", 3310, 3610), ("validation", 428, 444), ("test", 912, 909)):
        data = load_sentences("sst2", split, letters, data_folder)
        assert torch.bincount(data.targets).tolist() == [negative, positive]
        assert data.classes == ("negative", "positive")
