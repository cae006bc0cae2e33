"""Texts as tensors: a running text as numbers of words, sentences as what an encoder's tokenizer makes of them."""

from __future__ import annotations

import collections
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aimc.arguments import checked
from aimc.data.catalogue import TextSource, text_source
from aimc.data.formats import class_names, find_column, find_parquet
from aimc.data.loading import data_root, look_up, name_a_folder
from aimc.data.tables import decode_lines, decode_parquet
from aimc.errors import AimcError, suggest

TEXT_SPLITS = ("train", "validation", "test")
END, UNKNOWN = "<eos>", "<unk>"
"""What ends every line, and what stands for a word that the vocabulary lacks."""

Tokenizer = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Sentences to token numbers and mask, both int64 ``[sentences, tokens]``; the mask is 1 where there is a token."""


@dataclass(frozen=True, eq=False)
class TokenData:
    """A running text, or the beginning of one, in memory.

    Args:
        tokens: int64 [n], numbers of words.
        words: the vocabulary: every word of the training text, the commonest first, equally common ones by alphabet.
        name: of the data set.
        split: which part of it.
        sha256: of these tokens and the vocabulary: the data hash of a run.
    """

    tokens: Tensor
    words: tuple[str, ...]
    name: str
    split: str
    sha256: str

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device | str) -> TokenData:
        """The same text on another device."""
        return replace(self, tokens=self.tokens.to(device))


@dataclass(frozen=True, eq=False)
class SentenceData:
    """Labelled sentences, or a part of them, in memory.

    Args:
        inputs: token numbers and mask, both int64 [n, tokens], padded to the longest.
        targets: int64 [n].
        classes: names in the order of the labels.
        name: of the data set.
        split: which part of it.
        sha256: of the sentences and labels: the data hash of a run.
    """

    inputs: tuple[Tensor, Tensor]
    targets: Tensor
    classes: tuple[str, ...]
    name: str
    split: str
    sha256: str

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> SentenceData:
        """The same sentences on another device."""
        numbers, mask = self.inputs
        return replace(self, inputs=(numbers.to(device), mask.to(device)), targets=self.targets.to(device))


@checked
def load_tokens(
    name: str, split: str, root: str | os.PathLike[str] | None = None, limit: int | None = None
) -> TokenData:
    """Load a running text as numbers of words.

    A line's words are what white space divides; ``<eos>`` follows each line. The vocabulary is that of the whole
    training text, also where ``limit`` cuts it; a word that it lacks becomes ``<unk>``.

    Args:
        name: of the running texts in :data:`aimc.data.TEXTS`.
        split: ``train``, ``validation`` or ``test``.
        root: a folder with parquet or jsonl files in a folder ``<name>``; None as for :func:`aimc.data.load`.
        limit: at most this many tokens, the first ones.

    Raises:
        AimcError: an unknown name or split, no files, damaged files, or a word unknown to a vocabulary without
            ``<unk>``.

    Example:
        >>> text = load_tokens("wikitext-2", "test")                            # doctest: +SKIP
        >>> len(text), len(text.words), text.words[:4]                          # doctest: +SKIP
        (245569, 33278, ('the', ',', '.', 'of'))
    """
    about = text_source(name, labelled=False)
    _check(split, limit)
    lines = _words(_read(name, about, "train", root))
    counts = collections.Counter(word for line in lines for word in line)
    words = tuple(sorted(counts, key=lambda word: (-counts[word], word)))
    numbers = {word: number for number, word in enumerate(words)}
    if split != "train":
        lines = _words(_read(name, about, split, root))
    text = [word for line in lines for word in line][:limit]
    unknown = numbers.get(UNKNOWN)
    if unknown is None:
        strange = next((word for word in text if word not in numbers), None)
        if strange is not None:
            raise AimcError(
                f"the training text of {name!r} has neither {UNKNOWN} nor {strange!r}, which is in {split}",
                field="name",
            )
    tokens = np.array([numbers.get(word, unknown) for word in text], dtype=np.int64)
    digest = hashlib.sha256("\n".join(words).encode())
    digest.update(tokens.astype("<i8").data)
    return TokenData(torch.from_numpy(tokens), words, name, split, digest.hexdigest())


def _words(texts: _Texts) -> list[list[str]]:
    return [[*line.split(), END] for line in texts.lines]


@checked
def load_sentences(
    name: str,
    split: str,
    tokenizer: Tokenizer,
    root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> SentenceData:
    """Load labelled sentences as what a tokenizer makes of them.

    Args:
        name: of the labelled sentences in :data:`aimc.data.TEXTS`.
        split: ``train``, ``validation`` or ``test``.
        tokenizer: of the encoder that reads them.
        root: a folder with parquet or jsonl files in a folder ``<name>``; None as for :func:`aimc.data.load`.
        limit: at most this many sentences, the first ones.

    Raises:
        AimcError: an unknown name or split, no files, damaged files, or labels that fit no class.

    Example:
        >>> def letters(sentences):
        ...     return torch.tensor([[ord(s[0])] for s in sentences]), torch.ones(len(sentences), 1, dtype=torch.int64)
        >>> load_sentences("sst2", "validation", letters, limit=5).inputs[0].shape      # doctest: +SKIP
        torch.Size([5, 1])
    """
    about = text_source(name, labelled=True)
    _check(split, limit)
    texts = _read(name, about, split, root)
    assert texts.labels is not None
    lines, labels = texts.lines[:limit], texts.labels[:limit]
    digest = hashlib.sha256("\n".join(lines).encode())
    digest.update(labels.astype("<i8").data)
    inputs = tokenizer(lines)
    return SentenceData(
        inputs, torch.from_numpy(labels), texts.classes or about.classes, name, split, digest.hexdigest()
    )


def _check(split: str, limit: int | None) -> None:
    if split not in TEXT_SPLITS:
        raise AimcError(f"no split is called {split!r}; {suggest(split, TEXT_SPLITS)}", field="split")
    if limit is not None and limit < 1:
        raise AimcError(f"must be at least 1, got {limit}", field="limit")


@dataclass(frozen=True)
class _Texts:
    """The texts of one split in the order of their rows; labels int64 [n], or None; ``classes`` may be empty."""

    lines: tuple[str, ...]
    labels: np.ndarray | None
    classes: tuple[str, ...]


def _read(name: str, about: TextSource, split: str, root: str | os.PathLike[str] | None) -> _Texts:
    """From a folder, or from the hub by Hugging Face's library."""
    place = data_root(root)
    kinds = f"{split}-*.parquet or {split}.jsonl"
    if place is None:
        return _from_hub(name, about, split, name_a_folder(f"{name}/{kinds}"))
    files = look_up(name, about.folders, split, place, _find_texts, kinds)
    parts = []
    for file in files:
        try:
            parts.append(_from_file(file, about))
        except AimcError as error:
            raise AimcError(f"{file}: {error.message}", field="root") from None
    if not any(part.lines for part in parts):
        raise AimcError(f"{', '.join(map(str, files))}: no text", field="root")
    labels = np.concatenate([part.labels for part in parts]) if about.classes else None
    return _Texts(tuple(line for part in parts for line in part.lines), labels, parts[0].classes)


def _from_file(file: Path, about: TextSource) -> _Texts:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise AimcError(f"cannot be read: {error.strerror}") from None
    if file.suffix == ".jsonl":
        rows = decode_lines(data)
        names = list(dict.fromkeys(name for row in rows for name in row))
        return _texts(names, lambda name: [row.get(name) for row in rows], (), about)
    table = decode_parquet(data)
    names = table.column_names
    return _texts(names, lambda name: table[name].to_pylist(), class_names(table, "label"), about)


def _from_hub(name: str, about: TextSource, split: str, way_out: str) -> _Texts:
    try:
        import datasets
    except ImportError:
        raise AimcError(
            f"no folder with {name!r} is known, and datasets, which reads the hub's, is not installed: {way_out}; or "
            "install aimc[language]",
            field="root",
        ) from None
    where = f"{about.hub[0]} on the hub"
    try:
        rows: Any = datasets.load_dataset(*about.hub, split=split)
        classes = getattr((rows.features or {}).get("label"), "names", ())
        found = _texts(rows.column_names, lambda column: list(rows[column]), tuple(classes), about)
        if not found.lines:
            raise AimcError("no text")
        return found
    except AimcError as error:
        raise AimcError(f"{where}: {error.message}", field="root") from None
    except Exception as error:  # of the library and of those below it, some without a word
        raise AimcError(
            f"cannot read {where}: {type(error).__name__} {error}; {way_out}", field="root"
        ) from error


def _find_texts(folder: Path, split: str) -> list[Path] | None:
    lines = folder / f"{split}.jsonl"
    return find_parquet(folder, split) or ([lines] if lines.is_file() else None)


def _texts(
    names: list[str], column: Callable[[str], list[Any]], classes: tuple[str, ...], about: TextSource
) -> _Texts:
    """What the columns of these names hold."""
    lines = tuple(_values(column, find_column(names, about.columns), str))
    for row, line in enumerate(lines):
        if not _encodable(line):
            raise AimcError(f"row {row} holds half a character, which is no text: {line!r}")
    if not about.classes:
        return _Texts(lines, None, ())
    labels = _values(column, find_column(names, ("label",)), int)
    top = len(about.classes)
    if labels and (min(labels) < 0 or max(labels) >= top):
        raise AimcError(f"labels run from {min(labels)} to {max(labels)}, not within 0 to {top - 1}")
    if classes and len(classes) != top:
        raise AimcError(f"{len(classes)} class names, not {top}")
    return _Texts(lines, np.array(labels, np.int64), classes)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _values(column: Callable[[str], list[Any]], name: str, kind: type) -> list[Any]:
    """A column of values that are all of a kind."""
    values = column(name)
    for row, value in enumerate(values):
        if type(value) is not kind:  # True is an int as well
            raise AimcError(f"row {row} of the column {name!r} holds {value!r}, no {kind.__name__}")
    return values
