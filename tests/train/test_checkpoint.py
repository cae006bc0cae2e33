"""Checkpoints are whole, checked, and refused by name when they are not."""

import os

import pytest
import torch
from safetensors.torch import save_file

from aimc.errors import AimcError
from aimc.files import read_records, record_line, write_atomic
from aimc.train import load_checkpoint, save_checkpoint


def _tensors():
    return {
        "weight": torch.arange(6.0).view(2, 3).t(),  # not contiguous
        "step": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "empty": torch.empty(0, 4),
    }


def test_round_trip_keeps_every_bit_and_the_details(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, _tensors(), {"epoch": 3, "history": [{"loss": 0.1}]})
    tensors, details = load_checkpoint(path)
    assert details == {"epoch": 3, "history": [{"loss": 0.1}]}
    assert tensors.keys() == _tensors().keys()
    for name, value in _tensors().items():
        assert tensors[name].dtype == value.dtype and torch.equal(tensors[name], value), name


def test_shared_memory_is_no_obstacle(tmp_path):
    tied = torch.ones(3)
    save_checkpoint(tmp_path / "a.safetensors", {"a": tied, "b": tied, "c": tied[1:]}, {})
    tensors, _ = load_checkpoint(tmp_path / "a.safetensors")
    assert {name: len(value) for name, value in tensors.items()} == {"a": 3, "b": 3, "c": 2}


def test_a_view_of_conjugates_is_saved_as_the_values_it_shows(tmp_path):
    numbers = torch.tensor([1 + 2j, 3 - 1j])
    save_checkpoint(tmp_path / "a.safetensors", {"a": numbers.conj(), "b": numbers.conj().imag}, {})
    tensors, _ = load_checkpoint(tmp_path / "a.safetensors")
    assert tensors["a"].tolist() == [1 - 2j, 3 + 1j] and tensors["b"].tolist() == [-2.0, 1.0]


_KINDS = {
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
    "meta device": lambda: torch.ones(2, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "layout torch.sparse_coo": lambda: torch.eye(2).to_sparse(),
    "no torch.complex128": lambda: torch.ones(2, dtype=torch.complex128),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", _KINDS)
def test_a_tensor_that_a_file_cannot_hold_is_named(tmp_path, kind):
    with pytest.raises(AimcError, match=rf"'tensors.odd': .*{kind}"):
        save_checkpoint(tmp_path / "a.safetensors", {"fine": torch.ones(1), "odd": _KINDS[kind]()}, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "details, message",
    [
        ({"a": float("nan")}, "'details': a is nan"),
        ({"a": [torch.ones(1)]}, r"'details': a\[0\] is a Tensor"),
        ({"a": {3: 4}}, "'details': a has the key 3"),
        ({3: 4}, "'details': expects a dict of text to anything, got a dict with the key 3"),
    ],
)
def test_details_that_are_not_json_are_named(tmp_path, details, message):
    with pytest.raises(AimcError, match=message):
        save_checkpoint(tmp_path / "a.safetensors", {}, details)
    assert os.listdir(tmp_path) == []


def test_a_pipe_is_not_replaced_by_a_file_and_a_link_is_written_through(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to the pipe").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link to the pipe"):
        with pytest.raises(AimcError, match="no file but a device, pipe or socket"):
            write_atomic(tmp_path / name, "text")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link to the pipe").is_symlink()
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to("deep/file")  # points to nothing yet
    for text in ("new", "newer"):
        write_atomic(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "deep" / "file").read_text() == text
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(AimcError, match="symbolic links"):
        write_atomic(tmp_path / "round", "text")
    with pytest.raises(AimcError, match="Is a directory"):
        write_atomic(tmp_path / "deep", "text")


@pytest.mark.parametrize("damage", ["cut", "flip", "details", "foreign", "text", "missing", "newer"])
def test_a_damaged_or_foreign_file_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, _tensors(), {"epoch": 3})
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-5])
    elif damage == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "details":
        path.write_bytes(data.replace(b'\\"epoch\\": 3', b'\\"epoch\\": 4'))
        assert path.read_bytes() != data
    elif damage == "foreign":
        save_file({"w": torch.ones(1)}, path)
    elif damage == "text":
        path.write_text("hello")
    elif damage == "missing":
        path.unlink()
    elif damage == "newer":
        path.write_bytes(data.replace(b'"version":"1"', b'"version":"9"'))
        assert path.read_bytes() != data
    with pytest.raises(AimcError, match=r"model\.safetensors") as caught:
        load_checkpoint(path)
    expected = {"missing": "no such", "foreign": "not written", "newer": "another version"}.get(
        damage, "damaged"
    )
    assert expected in str(caught.value)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomic(path, "old")

    def fail(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("kind", ["text", "checkpoint"])
def test_a_file_is_on_the_disk_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch, kind):
    """Otherwise a power cut leaves an empty file where the old one was, or the old one where the new one was."""
    calls, place = [], tmp_path / "a.safetensors"

    def name_of(handle):
        return os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))

    def fsync(handle, real=os.fsync):
        whole = "folder" if os.path.isdir(f"/proc/self/fd/{handle}") else os.fstat(handle).st_size == size
        calls.append(("fsync", name_of(handle), whole))
        real(handle)

    def replace(source, target, real=os.replace):
        calls.append(("replace", os.path.basename(source), os.path.basename(target)))
        real(source, target)

    def write():
        write_atomic(place, "hello") if kind == "text" else save_checkpoint(place, _tensors(), {})

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("there is no /proc to see what a handle is of")
    write()
    size = place.stat().st_size
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write()
    part = calls[0][1]
    assert part.startswith(".a.safetensors.") and part.endswith(".part")
    assert calls == [
        ("fsync", part, True),  # when all of it was written
        ("replace", part, "a.safetensors"),
        ("fsync", tmp_path.name, "folder"),
    ]


def test_a_checkpoint_that_cannot_be_written_is_an_error_and_leaves_the_old_one(tmp_path, monkeypatch):
    import safetensors

    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"a": torch.ones(2)}, {})

    def fail(*args):
        raise safetensors.SafetensorError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(AimcError, match="cannot write .*no space left"):
        save_checkpoint(path, {"a": torch.zeros(2)}, {})
    assert os.listdir(tmp_path) == ["a.safetensors"] and float(load_checkpoint(path)[0]["a"].sum()) == 2


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(AimcError, match="nowhere"):
        write_atomic(tmp_path / "nowhere" / "a", "x")


def test_a_record_cut_short_is_left_out_and_one_in_the_middle_is_an_error(tmp_path):
    place = tmp_path / "records.jsonl"
    whole = record_line({"kind": "a"})
    place.write_text(whole + '{"kind": "b')
    assert read_records(tmp_path) == [{"kind": "a"}]
    for damaged in ('{"kind": "b\n', whole.replace("a", "b", 1), '{"kind": "a"}\n'):
        place.write_text(damaged + whole)
        with pytest.raises(AimcError, match="line 1"):
            read_records(tmp_path)
