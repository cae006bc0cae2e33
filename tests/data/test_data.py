from __future__ import annotations

import gzip
import io
import json
import re
import struct
import sys
import types
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from aimc.data import DATASETS, SPLITS, TensorData, batches, crop_flip, load
from aimc.data import cache as cache_module
from aimc.data import loading as loading_module
from aimc.data.cache import cache_folder
from aimc.errors import AimcError
from tests.helpers import assert_close


def pixels_and_labels(shape, count=40, classes=10, seed=0):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
    return pixels, np.arange(count) % classes


def png(image):
    """image [c, h, w]"""
    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def png_head(side):
    """The beginning of a picture of so many pixels a side."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def picture(kind):
    """A whole picture of 28 times 28 pixels."""
    buffer = io.BytesIO()
    Image.new("L", (28, 28)).save(buffer, kind)
    return buffer.getvalue()


# Writers of every format: (folder, split, pixels [n, c, h, w], labels)


def write_parquet(folder, split, pixels, labels, image="image", label="label", names=None, shards=1):
    parts = np.array_split(np.arange(len(pixels)), shards)
    for number, rows in enumerate(parts):
        rows = rows.tolist()
        columns = {
            image: [{"bytes": png(pixels[i]), "path": f"{i}.png"} for i in rows],
            label: pa.array(labels[rows], pa.int64()),
        }
        table = pa.table(columns)
        if names:
            info = {"info": {"features": {label: {"names": list(names)}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
        pq.write_table(table, folder / f"{split}-{number:05d}-of-{shards:05d}.parquet")


def write_shards(folder, split, pixels, labels):
    write_parquet(folder, split, pixels, labels, image="img", label="fine_label", shards=3)


def write_idx(folder, split, pixels, labels, gz=False, mark="-"):
    prefix = "t10k" if split == "test" else "train"
    squeeze, end = (gzip.compress, ".gz") if gz else (bytes, "")
    n, _, h, w = pixels.shape
    images = struct.pack(">IIII", 2051, n, h, w) + pixels.tobytes()
    numbers = struct.pack(">II", 2049, n) + labels.astype(np.uint8).tobytes()
    (folder / f"{prefix}-images{mark}idx3-ubyte{end}").write_bytes(squeeze(images))
    (folder / f"{prefix}-labels{mark}idx1-ubyte{end}").write_bytes(squeeze(numbers))


def write_idx_gz(folder, split, pixels, labels):
    write_idx(folder, split, pixels, labels, gz=True)


def write_idx_dot(folder, split, pixels, labels):
    write_idx(folder, split, pixels, labels, mark=".")


def write_npz(folder, split, pixels, labels):
    np.savez(folder / f"{split}.npz", x=pixels, y=labels)


def write_npz_channels_last(folder, split, pixels, labels):
    x = pixels[:, 0] if pixels.shape[1] == 1 else pixels.transpose(0, 2, 3, 1)
    np.savez_compressed(folder / f"{split}.npz", x=x, y=labels.astype(np.uint8))


GREY = [
    write_parquet,
    write_shards,
    write_idx,
    write_idx_gz,
    write_idx_dot,
    write_npz,
    write_npz_channels_last,
]
COLOUR = [write_parquet, write_shards, write_npz, write_npz_channels_last]


def make(tmp_path, writer, name="mnist", count=40, folder=None):
    pixels, labels = pixels_and_labels(DATASETS[name].shape, count, len(DATASETS[name].classes))
    where = tmp_path / (folder or name)
    where.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        writer(where, split, pixels, labels)
    return pixels, labels


def raw(data: TensorData):
    """Undo the normalisation."""
    about = DATASETS[data.name]
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (about.mean, about.std))
    return data.inputs * std + mean


# The embedded set


def test_embedded_shapes_and_balance():
    train, test = load("mnist_small", "train+validation"), load("mnist_small", "test")
    assert train.inputs.shape == (5000, 1, 28, 28)
    assert test.inputs.shape == (1000, 1, 28, 28)
    assert train.inputs.dtype == torch.float32
    assert train.targets.dtype == torch.int64
    assert torch.bincount(train.targets).tolist() == [500] * 10
    assert torch.bincount(test.targets).tolist() == [100] * 10
    assert torch.bincount(load("mnist_small", "test", limit=250).targets).tolist() == [25] * 10
    assert train.classes == tuple("0123456789")
    assert len(train) == 5000


def test_embedded_is_normalised():
    inputs = load("mnist_small", "train+validation").inputs
    assert abs(inputs.mean()) < 0.02
    assert abs(inputs.std() - 1) < 0.02
    assert_close("background", inputs.min(), torch.tensor(-0.1307 / 0.3081), atol=1e-6)
    assert_close("ink", inputs.max(), torch.tensor((1 - 0.1307) / 0.3081), atol=1e-6)


def test_embedded_hashes_do_not_change():
    """A different hash is different data: results made with the old one do not compare."""
    assert (
        load("mnist_small", "train").sha256
        == "15cb1a1ad7a7dbb9d7ae18171ebbd90b5c5944c6db55930ef25203c673c8cd80"
    )
    assert (
        load("mnist_small", "test").sha256
        == "9e0167d4420fe63f84f531cfd6b4bcff7f03afa045e3feac4321ef13921b2f09"
    )


def test_embedded_file_is_checked(tmp_path, monkeypatch):
    broken = bytearray(loading_module._EMBEDDED.read_bytes())
    broken[5000] ^= 1
    (tmp_path / "broken.npz").write_bytes(broken)
    monkeypatch.setattr(loading_module, "_EMBEDDED", tmp_path / "broken.npz")
    with pytest.raises(AimcError, match="damaged.*reinstall"):
        load("mnist_small", "test")
    monkeypatch.setattr(loading_module, "_EMBEDDED", tmp_path / "gone.npz")
    with pytest.raises(AimcError, match="cannot be read"):
        load("mnist_small", "test")


def test_embedded_is_a_part_of_mnist(data_folder):
    """Every image, with its label, occurs in the same split of the full set."""
    for split in ("train+validation", "test"):
        full = load("mnist", split, root=data_folder)
        known = {(x.numpy().tobytes(), int(y)) for x, y in zip(full.inputs, full.targets)}
        small = load("mnist_small", split)
        assert all((x.numpy().tobytes(), int(y)) in known for x, y in zip(small.inputs, small.targets))


# Splits


def test_splits_are_disjoint_and_complete(tmp_path):
    pixels, _ = make(tmp_path, write_npz, count=203)
    parts = {split: load("mnist", split, root=tmp_path) for split in SPLITS}
    seen = {split: [x.numpy().tobytes() for x in data.inputs] for split, data in parts.items()}
    assert len(parts["validation"]) == 20
    assert len(parts["train"]) == 183
    assert seen["train"] + seen["validation"] == seen["train+validation"]
    assert len(set(seen["train+validation"])) == len(pixels)
    assert not set(seen["train"]) & set(seen["validation"])
    order = np.random.default_rng(0).permutation(203)
    assert_close(
        "validation", raw(parts["validation"]), torch.tensor(pixels[order[-20:]] / 255).float(), atol=1e-6
    )


def test_the_test_set_keeps_its_order(tmp_path):
    pixels, labels = make(tmp_path, write_npz)
    data = load("mnist", "test", root=tmp_path)
    assert data.targets.tolist() == labels.tolist()
    assert_close("test", raw(data), torch.tensor(pixels / 255).float(), atol=1e-6)


def test_limit_takes_the_first(tmp_path):
    make(tmp_path, write_npz)
    whole, part = load("mnist", "train", root=tmp_path), load("mnist", "train", root=tmp_path, limit=7)
    assert torch.equal(part.inputs, whole.inputs[:7])
    assert torch.equal(part.targets, whole.targets[:7])
    assert part.sha256 != whole.sha256
    assert len(load("mnist", "train", root=tmp_path, limit=1000)) == len(whole)
    with pytest.raises(AimcError, match="at least 1"):
        load("mnist", "train", root=tmp_path, limit=0)


# Formats


@pytest.mark.parametrize(
    ("name", "writer"),
    [("mnist", w) for w in GREY] + [("cifar100", w) for w in COLOUR],
    ids=lambda v: v if isinstance(v, str) else v.__name__,
)
def test_every_format_gives_the_same_tensors(tmp_path, name, writer):
    pixels, labels = make(tmp_path, writer, name)
    data = load(name, "test", root=tmp_path)
    assert data.targets.tolist() == labels.tolist()
    about = DATASETS[name]
    mean, std = (np.array(v).reshape(1, -1, 1, 1) for v in (about.mean, about.std))
    expected = torch.from_numpy((pixels / 255 - mean) / std).float()
    assert_close(f"{name} from {writer.__name__}", data.inputs, expected, atol=2e-6)
    make(tmp_path / "b", write_npz, name)
    assert data.sha256 == load(name, "test", root=tmp_path / "b").sha256


def test_class_names_come_from_the_file_where_it_has_them(tmp_path):
    (tmp_path / "mnist").mkdir()
    pixels, labels = pixels_and_labels((1, 28, 28))
    write_parquet(tmp_path / "mnist", "test", pixels, labels, names="abcdefghij")
    assert load("mnist", "test", root=tmp_path).classes == tuple("abcdefghij")


@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw"])
def test_folders_that_other_tools_make(tmp_path, folder):
    make(tmp_path, write_idx, folder=folder)
    assert len(load("mnist", "test", root=tmp_path)) == 40


def test_the_folder_of_the_set_itself_may_be_the_root(tmp_path):
    make(tmp_path, write_idx)
    assert len(load("mnist", "test", root=tmp_path / "mnist")) == 40
    with pytest.raises(AimcError, match="no test files of 'fashion_mnist'"):
        load("fashion_mnist", "test", root=tmp_path / "mnist")  # the same layout, another data set


# Where it is looked for


def test_root_comes_before_the_environment(tmp_path, monkeypatch):
    make(tmp_path / "a", write_npz, count=10)
    make(tmp_path / "b", write_npz, count=20)
    monkeypatch.setenv("AIMC_DATA", str(tmp_path / "b"))
    assert len(load("mnist", "test")) == 20
    assert len(load("mnist", "test", root=tmp_path / "a")) == 10


def test_missing_files_say_where_to_put_them(tmp_path, monkeypatch):
    with pytest.raises(
        AimcError, match=rf"no train files of 'mnist'.*into {re.escape(str(tmp_path / 'mnist'))}"
    ):
        load("mnist", "train", root=tmp_path)
    monkeypatch.setenv("AIMC_DATA", str(tmp_path / "gone"))
    with pytest.raises(AimcError, match="no train files of 'cifar10'"):
        load("cifar10", "validation")


def test_without_folder_and_without_hub_there_is_a_way_out(monkeypatch):
    monkeypatch.delenv("AIMC_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(AimcError) as caught:
        load("fashion_mnist", "train")
    for word in ("AIMC_DATA", "root=", "fashion_mnist/train-*.parquet", "aimc[hub]", "mnist_small"):
        assert word in str(caught.value)


def test_the_hub_is_asked_last(tmp_path, monkeypatch):
    make(tmp_path, write_parquet, "cifar10")
    asked = []

    def download(repository, filename, repo_type):
        asked.append((repository, filename, repo_type))
        return str(tmp_path / "cifar10" / filename.split("/")[-1])

    monkeypatch.delenv("AIMC_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=download))
    assert len(load("cifar10", "test")) == 40
    assert asked == [("uoft-cs/cifar10", "plain_text/test-00000-of-00001.parquet", "dataset")]

    def fail(*args, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=fail))
    with pytest.raises(AimcError, match="cannot download 'cifar10'.*offline.*AIMC_DATA"):
        load("cifar10", "test")


def test_unknown_names_are_refused_with_a_suggestion():
    with pytest.raises(AimcError, match="did you mean 'fashion_mnist'"):
        load("fashionmnist", "train")
    with pytest.raises(AimcError, match="did you mean 'validation'"):
        load("mnist_small", "valid")


# Broken files


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def flip(path):
    path.write_bytes(b"\x00" * 20 + path.read_bytes()[20:])


@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize(
    "writer", [write_parquet, write_idx, write_idx_gz, write_npz], ids=lambda w: w.__name__
)
def test_a_corrupted_file_is_named(tmp_path, writer, damage):
    make(tmp_path, writer)
    victim = sorted(
        (tmp_path / "mnist").glob("t*est*" if writer in (write_parquet, write_npz) else "t10k-images*")
    )[0]
    damage(victim)
    with pytest.raises(AimcError, match=re.escape(victim.name)):
        load("mnist", "test", root=tmp_path)


def test_a_corrupted_image_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "png", lambda image: b"\x89PNG and nothing more")
    make(tmp_path, write_parquet)
    with pytest.raises(AimcError, match="image in row 0 does not decode"):
        load("mnist", "test", root=tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pa.array([0, None, 1]), "column 'label' has no label in 1 of 3 rows"),
        (pa.array([0.0, 1.0, 1.7]), "column 'label' holds double, and has to hold whole numbers"),
        (pa.array([True, False, True]), "holds bool"),
        (pa.array(["a", "b", "c"]), "holds string"),
        (pa.array(["a", "b", "c"]).dictionary_encode(), "holds dictionary"),
        (pa.array([[0], [1], [2]]), "holds list"),
        (pa.array([0, 1, 1 << 63], pa.uint64()), "labels run from -9223372036854775808"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value.type),
)
def test_labels_that_are_none_are_refused_by_the_name_of_the_file(tmp_path, labels, message):
    image = [{"bytes": png(np.zeros((1, 28, 28), np.uint8)), "path": None}] * 3
    (tmp_path / "mnist").mkdir()
    pq.write_table(
        pa.table({"image": image, "label": labels}), tmp_path / "mnist" / "test-00000-of-00001.parquet"
    )
    with pytest.raises(AimcError, match=f"test-00000-of-00001.parquet: .*{message}"):
        load("mnist", "test", root=tmp_path)


def test_labels_of_any_whole_numbers_are_int64(tmp_path):
    image = [{"bytes": png(np.zeros((1, 28, 28), np.uint8)), "path": None}] * 3
    file = tmp_path / "mnist" / "test-00000-of-00001.parquet"
    file.parent.mkdir()
    for kind in (pa.int8(), pa.uint8(), pa.int32()):
        pq.write_table(pa.table({"image": image, "label": pa.array([3, 0, 9], kind)}), file)
        targets = load("mnist", "test", root=tmp_path).targets
        assert targets.dtype == torch.int64 and targets.tolist() == [3, 0, 9]


def test_the_damaged_one_of_several_files_is_named(tmp_path):
    make(tmp_path, write_shards)
    (tmp_path / "mnist" / "test-00001-of-00003.parquet").write_bytes(b"PAR1")
    with pytest.raises(AimcError, match="root': [^,]*test-00001-of-00003.parquet: cannot be read as parquet"):
        load("mnist", "test", root=tmp_path)


@pytest.mark.parametrize(
    "content",
    # The third is a whole picture, of a kind that nobody stores data sets in.
    [png_head(30_000), b"%!PS-Adobe-3.0 EPSF-3.0", picture("sgi"), b"", "text", 3],
    ids=lambda c: str(c)[:12],
)
def test_an_image_of_any_content_is_decoded_or_named(tmp_path, content):
    image = pa.array([{"bytes": content, "path": None}])
    (tmp_path / "mnist").mkdir()
    table = pa.table({"image": image, "label": [0]})
    pq.write_table(table, tmp_path / "mnist" / "test-00000-of-00001.parquet")
    with pytest.raises(AimcError, match="parquet: the image in row 0 does not decode"):
        load("mnist", "test", root=tmp_path)


def test_a_missing_shard_is_noticed(tmp_path):
    make(tmp_path, write_shards)
    (tmp_path / "mnist" / "test-00001-of-00003.parquet").unlink()
    with pytest.raises(AimcError, match="has 2 of 3 files"):
        load("mnist", "test", root=tmp_path)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((5, 1, 28, 27), np.uint8), np.zeros(5, int), r"images are \[1, 28, 27\]"),
        (np.zeros((5, 3, 28, 28), np.uint8), np.zeros(5, int), r"images are \[3, 28, 28\]"),
        (np.zeros((5, 1, 28, 28), np.uint8), np.zeros(4, int), "5 images and 4 labels"),
        (np.zeros((0, 1, 28, 28), np.uint8), np.zeros(0, int), "0 images"),
        (np.zeros((5, 1, 28, 28), np.uint8), np.full(5, 10), "from 10 to 10"),
        (np.zeros((5, 1, 28, 28), np.uint8), np.full(5, -1), "from -1"),
        (np.zeros((5, 1, 28, 28), np.float32), np.zeros(5, int), "must be uint8"),
        (np.zeros((5, 1, 28, 28), np.uint8), np.zeros(5), "whole numbers"),
    ],
)
def test_data_that_does_not_fit_is_refused(tmp_path, x, y, message):
    (tmp_path / "mnist").mkdir()
    np.savez(tmp_path / "mnist" / "test.npz", x=x, y=y)
    with pytest.raises(AimcError, match=message):
        load("mnist", "test", root=tmp_path)


# The cache


@pytest.fixture
def decodes(monkeypatch, tmp_path):
    """An empty cache, and the list of images decoded so far."""
    from aimc.data import formats

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen, decode = [], formats._decode
    monkeypatch.setattr(formats, "_decode", lambda data, row: seen.append(row) or decode(data, row))
    return seen


def test_a_second_load_decodes_nothing(tmp_path, decodes):
    make(tmp_path, write_parquet)
    first = load("mnist", "test", root=tmp_path)
    assert len(decodes) == 40
    assert cache_folder() == tmp_path / "cache" / "aimc" / "data"
    again = load("mnist", "test", root=tmp_path)
    assert len(decodes) == 40
    assert torch.equal(first.inputs, again.inputs)
    assert first.sha256 == again.sha256
    assert first.classes == again.classes


def test_a_changed_file_is_decoded_again(tmp_path, decodes):
    pixels, labels = make(tmp_path, write_parquet)
    load("mnist", "test", root=tmp_path)
    write_parquet(tmp_path / "mnist", "test", 255 - pixels, labels)
    assert_close(
        "new",
        raw(load("mnist", "test", root=tmp_path)),
        torch.tensor((255 - pixels) / 255).float(),
        atol=1e-6,
    )
    assert len(decodes) == 80


@pytest.mark.parametrize("damage", [cut, flip, lambda p: p.write_bytes(b"")])
def test_a_broken_entry_is_made_again(tmp_path, decodes, damage):
    make(tmp_path, write_parquet)
    first = load("mnist", "test", root=tmp_path)
    (entry,) = cache_folder().iterdir()
    damage(entry)
    assert load("mnist", "test", root=tmp_path).sha256 == first.sha256
    assert len(decodes) == 80
    load("mnist", "test", root=tmp_path)
    assert len(decodes) == 80


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, decodes, monkeypatch):
    make(tmp_path, write_parquet)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load("mnist", "test", root=tmp_path)) == 40

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))

    def refuse(path, data):
        raise AimcError("no space left")

    monkeypatch.setattr(cache_module, "write_atomic", refuse)
    assert len(load("mnist", "test", root=tmp_path)) == 40


# Batches


def positions(data, *args, **kwargs):
    """Which images the batches hold, in order."""
    marked = TensorData(
        torch.arange(len(data)), data.targets, data.classes, data.name, data.split, data.sha256
    )
    return [inputs.tolist() for inputs, _ in batches(marked, *args, **kwargs)]


def test_batches_in_order():
    data = load("mnist_small", "test", limit=25)
    assert positions(data, 10) == [list(range(10)), list(range(10, 20)), list(range(20, 25))]
    inputs, targets = next(batches(data, 4))
    assert torch.equal(inputs, data.inputs[:4])
    assert torch.equal(targets, data.targets[:4])


def test_shuffled_batches_pair_inputs_with_their_targets():
    data = load("mnist_small", "test", limit=25)
    order = sum(positions(data, 7, shuffle_seed=3), [])
    inputs = torch.cat([x for x, _ in batches(data, 7, shuffle_seed=3)])
    targets = torch.cat([y for _, y in batches(data, 7, shuffle_seed=3)])
    assert sorted(order) == list(range(25))
    assert torch.equal(inputs, data.inputs[order])
    assert torch.equal(targets, data.targets[order])


def test_order_depends_on_seed_and_epoch_alone():
    data = load("mnist_small", "test", limit=100)
    first = positions(data, 8, shuffle_seed=1, epoch=5)
    torch.manual_seed(9)
    np.random.seed(9)
    assert positions(data, 8, shuffle_seed=1, epoch=5) == first
    flat = sum(first, [])
    assert sum(positions(data, 30, shuffle_seed=1, epoch=5), []) == flat
    others = [(1, 6), (2, 5), (5, 1), (0, 0)]
    orders = [sum(positions(data, 8, shuffle_seed=s, epoch=e), []) for s, e in others]
    assert len({tuple(o) for o in [flat, *orders]}) == 5


def test_order_is_the_same_on_every_machine():
    assert positions(load("mnist_small", "test", limit=8), 8, shuffle_seed=7, epoch=2) == [
        [4, 1, 3, 7, 6, 2, 0, 5]
    ]


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"batch_size": 4, "shuffle_seed": -1}])
def test_batches_refuse_at_the_call(arguments):
    with pytest.raises(AimcError):
        batches(load("mnist_small", "test", limit=8), **arguments)


# Augmentation


def _augmented(data, size, seed=3, epoch=1):
    """The images that the batches of an epoch hold, in the order of the data."""
    order = sum(positions(data, size, shuffle_seed=seed, epoch=epoch), [])
    images = torch.cat(
        [x for x, _ in batches(data, size, shuffle_seed=seed, epoch=epoch, augment="crop_flip")]
    )
    return images[torch.tensor(order).argsort()]


def test_augmentation_depends_on_seed_epoch_and_position_alone():
    data = load("mnist_small", "train", limit=60)
    first = _augmented(data, 7)
    torch.manual_seed(9)
    assert torch.equal(_augmented(data, 60), first)
    assert torch.equal(_augmented(load("mnist_small", "train", limit=40), 7), first[:40])
    assert not torch.equal(_augmented(data, 7, epoch=2), first)
    assert not torch.equal(_augmented(data, 7, seed=4), first)
    targets = torch.cat([y for _, y in batches(data, 7, shuffle_seed=3, epoch=1, augment="crop_flip")])
    assert torch.equal(targets, torch.cat([y for _, y in batches(data, 7, shuffle_seed=3, epoch=1)]))


def test_every_crop_and_mirror_is_as_likely():
    """Of an image of distinct numbers the place and the mirror of every crop can be read off."""
    count, size = 20_000, 9
    image = torch.arange(1.0, size * size + 1).view(1, 1, size, size)
    data = TensorData(
        image.expand(count, 2, size, size), torch.zeros(count, dtype=torch.int64), ("a",), "x", "train", ""
    )
    images, _ = next(batches(data, count, shuffle_seed=0, augment="crop_flip"))
    assert torch.equal(images[:, 0], images[:, 1])
    padded = torch.zeros(size + 8, size + 8)
    padded[4 : 4 + size, 4 : 4 + size] = image[0, 0]
    seen = torch.zeros(9, 9, 2)
    for top in range(9):
        for left in range(9):
            crop = padded[top : top + size, left : left + size]
            for mirror, wanted in enumerate((crop, crop.flip(1))):
                seen[top, left, mirror] = (images[:, 0] == wanted).flatten(1).all(1).sum()
    assert seen.sum() == count  # nothing else occurs
    mean = count / seen.numel()
    assert (seen - mean).abs().max() < 4.5 * mean**0.5  # 162 counts of 123


def test_augmentation_refuses_what_it_cannot_do():
    data = load("mnist_small", "test", limit=8)
    with pytest.raises(AimcError, match="did you mean 'crop_flip'"):
        batches(data, 4, shuffle_seed=0, augment="cropflip")
    with pytest.raises(AimcError, match="shuffle_seed"):
        batches(data, 4, augment="crop_flip")
    with pytest.raises(AimcError, match=r"shape \[2, 3\].*augment: none"):
        crop_flip(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64))


# The real sets


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_the_real_sets(data_folder, name):
    about = DATASETS[name]
    test = load(name, "test", root=data_folder)
    assert test.inputs.shape == (10_000, *about.shape)
    assert len(test.classes) == len(about.classes)
    if name == "cifar100":
        assert test.classes == about.classes
    if name != "mnist":
        assert torch.bincount(test.targets).tolist() == [10_000 // len(about.classes)] * len(about.classes)
    assert test.inputs.mean().abs() < 0.05
    assert abs(test.inputs.std() - 1) < 0.05


def test_full_mnist_training_set(data_folder):
    train = load("mnist", "train+validation", root=data_folder)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(train.targets).tolist() == counts
    assert len(load("mnist", "train", root=data_folder)) == 54_000
    assert len(load("mnist", "validation", root=data_folder)) == 6_000
