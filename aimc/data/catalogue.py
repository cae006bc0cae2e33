"""What is known of each data set before a file is opened. To add one: a line here and a case in the tests."""

from __future__ import annotations

from dataclasses import dataclass

from aimc.errors import AimcError, suggest


@dataclass(frozen=True)
class Source:
    """One image data set.

    Args:
        shape: channels, height, width.
        mean: per channel, of the training pixels scaled to 0..1.
        std: likewise.
        classes: their names in the order of the labels; a file that carries names of its own wins.
        folders: where the files may lie under a root, the usual place first.
        hub: repository and the folder of its parquet files; empty where there is none.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    folders: tuple[str, ...] = ()
    hub: tuple[str, str] | None = None


@dataclass(frozen=True)
class TextSource:
    """One data set of texts, with splits train, validation and test.

    Args:
        columns: names that the column of the text may have, the usual one first.
        hub: repository, and its configuration where it has several.
        classes: what the column ``label`` counts, one text a sample; empty for running text, a line a row.
        folders: where the files may lie under a root, the usual place first.
    """

    columns: tuple[str, ...]
    hub: tuple[str, str | None]
    classes: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


_DIGITS = tuple("0123456789")
_CLOTHES = tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(","))
_THINGS = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
_HUNDRED = tuple(
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly "
    "camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup "
    "dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower "
    "leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid "
    "otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray "
    "road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar "
    "sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle "
    "wardrobe whale willow_tree wolf woman worm".split()
)

DATASETS: dict[str, Source] = {
    "mnist": Source(
        (1, 28, 28), (0.1307,), (0.3081,), _DIGITS, ("mnist", "MNIST/raw", "MNIST"), ("ylecun/mnist", "mnist")
    ),
    "fashion_mnist": Source(
        (1, 28, 28),
        (0.2860,),
        (0.3530,),
        _CLOTHES,
        ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "FashionMNIST"),
        ("zalando-datasets/fashion_mnist", "fashion_mnist"),
    ),
    "cifar10": Source(
        (3, 32, 32),
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        _THINGS,
        ("cifar10",),
        ("uoft-cs/cifar10", "plain_text"),
    ),
    "cifar100": Source(
        (3, 32, 32),
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        _HUNDRED,
        ("cifar100",),
        ("uoft-cs/cifar100", "cifar100"),
    ),
    "mnist_small": Source((1, 28, 28), (0.1307,), (0.3081,), _DIGITS),
}
"""Name to description. ``mnist_small`` is part of the package and needs no files."""


TEXTS: dict[str, TextSource] = {
    # Merity et al., arXiv:1609.07843; words, with <unk> for rare ones
    "wikitext-2": TextSource(
        ("text",), ("Salesforce/wikitext", "wikitext-2-v1"), folders=("wikitext-2", "wikitext-2-v1")
    ),
    # Socher et al., EMNLP 2013; the 6,920 whole sentences, whose test labels are known. GLUE's version on the hub has
    # phrases for training and hides the labels.
    "sst2": TextSource(
        ("sentence", "text"), ("SetFit/sst2", None), ("negative", "positive"), folders=("sst2", "SST-2")
    ),
}
"""Name to description, of texts."""


def source(name: str) -> Source:
    """The description of a data set of images, or an error that offers the nearest name."""
    if name not in DATASETS:
        raise AimcError(f"no data set is called {name!r}; {suggest(name, DATASETS)}", field="name")
    return DATASETS[name]


def text_source(name: str, labelled: bool) -> TextSource:
    """The description of a data set of texts, running or ``labelled``; an error offers the nearest name."""
    known = [n for n, about in TEXTS.items() if bool(about.classes) == labelled]
    if name not in known:
        kind = "labelled sentences" if labelled else "running text"
        raise AimcError(f"no data set of {kind} is called {name!r}; {suggest(name, known)}", field="name")
    return TEXTS[name]
