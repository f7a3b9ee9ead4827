"""Where to start with each task: values of a config at a size for two CPU cores ("small"), and at
the published one.

What `dartformer new --task=NAME --size=SIZE` prints, and the files of `search_spaces/`.
"""

import textwrap
from typing import Any, NamedTuple

SIZES = ("small", "published")

ARENA = {
    "model.pooling": "cls",
    "model.positions": "sinusoidal",
    "model.classifier": "mlp",
    "model.dropout": 0.1,
    "space.candidates": (
        "full",
        "local(window=50)",
        "linear",
        "linformer(rank=32)",
        "performer",
        "bigbird",
    ),
    "data.eval_batch_size": 32,
}
"""What Long Range Arena's text tasks have in common."""


class Example(NamedTuple):
    """A task at a size.

    Attributes:
      about: one sentence for the config's docstring.
      expect: what a run is to be compared with.
      values: dotted fields of the config.
    """

    about: str
    expect: str
    values: dict[str, Any]


def small(steps: int, more: dict[str, Any], rate: float = 3e-3, layers: int = 1) -> dict[str, Any]:
    """A model and a schedule for two CPU cores, and `more` values."""
    return {
        "model.layers": layers,
        "model.heads": 4,
        "model.head_dim": 16,
        "model.model_dim": 64,
        "model.mlp_dim": 128,
        "space.candidates": ("full", "local(window=8)", "linear", "uniform"),
        "space.granularity": "layer",
        "data.batch_size": 32,
        "search.steps": steps,
        "search.weights.learning_rate": rate,
        "retrain.steps": steps,
        "retrain.seeds": (0, 1, 2),
        "retrain.optimizer.learning_rate": rate,
        "log.eval_every": max(50, steps // 4),
        "log.checkpoint_every": max(50, steps // 4),
        "baselines.homogeneous": True,
        "baselines.random": True,
        "baselines.uniform": True,
        **more,
    }


def published(
    steps: int, batch: int, sizes: tuple[int, int, int, int, int], rate: float, more: dict[str, Any]
) -> dict[str, Any]:
    """A model of (layers, heads, head width, model width, feed-forward width), a schedule, and
    `more`, for a GPU."""
    layers, heads, head_dim, model_dim, mlp_dim = sizes
    return {
        "model.layers": layers,
        "model.heads": heads,
        "model.head_dim": head_dim,
        "model.model_dim": model_dim,
        "model.mlp_dim": mlp_dim,
        "space.granularity": "layer",
        "data.batch_size": batch,
        "search.steps": steps // 2,
        "search.weights.learning_rate": rate,
        "retrain.steps": steps,
        "retrain.seeds": (0, 1, 2),
        "retrain.optimizer.learning_rate": rate,
        "log.every": 100,
        "log.eval_every": max(1, steps // 20),
        "log.checkpoint_every": max(1, steps // 20),
        "baselines.homogeneous": True,
        "baselines.random": True,
        "baselines.uniform": True,
        **more,
    }


CAUSAL = ("full", "local(window=8)", "linear")
BYTES = (
    "IMDb reviews as {}: positive or negative? `task.path` says where they are: a folder aclImdb/, the archive, "
    "a folder with train.jsonl and test.jsonl; leave it empty for TFDS's imdb_reviews."
)
PAIRS = (
    "Pairs of documents: does one cite the other? `task.path` is a folder or an archive with docs.jsonl and "
    "pairs.*.tsv, or with Long Range Arena's new_aan_pairs.*.tsv."
)
PICTURES = (
    "Grey CIFAR-10. `task.path` is cifar-10-binary.tar.gz, its folder, or a folder with train_gray.npy and its "
    "like; leave it empty for TFDS's cifar10."
)
LETTERS = "The next character of a text file, in bits per character: everything here is causal."
ASKED = "Multi-query associative recall: which value stood after this key? Causal, generated."
DASHES = "Pathfinder: are two dots joined by a dashed path? Generated."
ARCHIVE = "aclImdb_v1.tar.gz"

SMALL = {
    "imdb_bytes": Example(
        BYTES.format("bytes"),
        "one layer of `full` has about 70% on test after these 700 steps, one epoch; naive "
        "Bayes on four-grams of the same bytes 81.5%.",
        {
            "task.path": ARCHIVE,
            "task.length": 512,
            "task.crop": "ends",
            **small(
                700,
                {"model.stem": "bigram", "search.steps": 200, "data.eval_batch_size": 100},
                rate=5e-3,
            ),
        },
    ),
    "imdb_tokens": Example(
        BYTES.format("words"),
        "one layer of `full` has about 85% on test after these 700 steps, one epoch; naive "
        "Bayes on the same words 84.1%.",
        {
            "task.path": ARCHIVE,
            "task.length": 256,
            "task.crop": "ends",
            **small(
                700,
                {
                    "model.heads": 2,
                    "model.model_dim": 32,
                    "model.mlp_dim": 32,
                    "model.dropout": 0.3,
                    "search.steps": 200,
                    "data.eval_batch_size": 100,
                },
                rate=1e-2,
            ),
        },
    ),
    "matching": Example(
        PAIRS,
        "on pairs of ACL papers one layer of `full` has about 75% on test, a threshold on the overlap of these "
        "words 69.8%, naive Bayes 48.4%.",
        {
            "task.path": "minaan.tar.xz",
            "task.tokens": "words",
            "task.length": 128,
            **small(
                600,
                {
                    "model.classifier": "mlp",
                    "model.positions": "none",
                    "model.heads": 2,
                    "model.model_dim": 128,
                    "retrain.optimizer.weight_decay": 0.3,
                    "search.steps": 200,
                    "data.batch_size": 64,
                    "data.eval_batch_size": 100,
                },
            ),
        },
    ),
    "image": Example(
        PICTURES,
        "the nearest mean image has 24.2% on test.",
        {
            "task.path": "cifar10_gray",
            "task.patch": 4,
            **small(800, {"space.candidates": ("full", "linear", "uniform", "identity")}, layers=2),
        },
    ),
    "pathfinder": Example(
        DASHES,
        "chance is 50%; a threshold on the distance of the dots, fitted on 2,000 pictures, has 62%.",
        {
            "task.contour_length": 6,
            "task.distractors": 4,
            **small(600, {"data.eval_batch_size": 100}, layers=2),
        },
    ),
    "language": Example(
        LETTERS,
        "on tinyshakespeare the frequencies of pairs of characters have 3.62 bits.",
        {
            "task.path": "tinyshakespeare.txt",
            "task.length": 128,
            "task.vocabulary_size": 96,
            **small(500, {"space.candidates": CAUSAL}, layers=2),
        },
    ),
    "recall": Example(
        ASKED,
        "the value that most often followed a key in train has 3%.",
        {
            "task.length": 32,
            "task.pairs": 4,
            "task.keys": 32,
            "model.stem": "bigram",
            **small(800, {"space.candidates": CAUSAL}, rate=1e-2),
        },
    ),
}

PUBLISHED = {
    "listops": Example(
        "ListOps at the length of Long Range Arena: 500 to 2,000 symbols.",
        "Long Range Arena gives its Transformer 36.37% on test; a rule that sees the root operator only has 36.2%.",
        published(5_000, 32, (4, 8, 64, 512, 1024), 1e-3, ARENA),
    ),
    "imdb_bytes": Example(
        BYTES.format("bytes"),
        "Long Range Arena gives its Transformer 64.27% on test, on which it also chose; naive "
        "Bayes on four-grams of 1,024 bytes has 80.4%.",
        {
            "task.path": ARCHIVE,
            "task.length": 1000,
            **published(20_000, 32, (4, 4, 64, 256, 1024), 1e-3, ARENA),
        },
    ),
    "imdb_tokens": Example(
        BYTES.format("words"),
        "naive Bayes on the first 256 words has 83.1% on test.",
        {
            "task.path": ARCHIVE,
            "task.length": 1000,
            "task.vocabulary_size": 16_000,
            **published(30_000, 32, (6, 8, 64, 512, 2048), 5e-4, ARENA),
        },
    ),
    "matching": Example(
        PAIRS,
        "Long Range Arena gives its Transformer 57.46% on its own pairs.",
        {
            "task.path": "lra_release",
            "task.length": 4000,
            **published(5_000, 32, (4, 4, 32, 128, 512), 1e-3, ARENA),
        },
    ),
    "image": Example(
        PICTURES,
        "Long Range Arena gives its Transformer 42.44%; the nearest mean image has 24.2%.",
        {
            "task.path": "cifar10_gray",
            **published(
                35_000,
                256,
                (1, 8, 8, 128, 128),
                5e-4,
                {
                    **ARENA,
                    "model.positions": "learned",
                    "model.dropout": 0.3,
                    "data.eval_batch_size": 250,
                },
            ),
        },
    ),
    "pathfinder": Example(
        DASHES,
        "Long Range Arena gives its Transformer 71.40% on its own pictures of 14 dashes.",
        {
            "task.contour_length": 14,
            "task.train": 160_000,
            "task.valid": 20_000,
            "task.test": 20_000,
            **published(
                62_400,
                512,
                (4, 4, 4, 32, 32),
                1e-3,
                {**ARENA, "model.dropout": 0.2, "data.eval_batch_size": 250},
            ),
        },
    ),
    "language": Example(
        LETTERS,
        "the size is that of nanoGPT's character model; on tinyshakespeare the frequencies of pairs of "
        "characters have 3.62 bits.",
        {
            "task.path": "tinyshakespeare.txt",
            "task.length": 256,
            "task.vocabulary_size": 96,
            **published(
                5_000,
                64,
                (6, 6, 64, 384, 1536),
                1e-3,
                {"model.dropout": 0.2, "space.candidates": CAUSAL},
            ),
        },
    ),
    "recall": Example(
        ASKED,
        "Zoology (arXiv 2312.04927) says that softmax attention solves it at every size.",
        {
            "task.length": 512,
            "task.pairs": 64,
            "task.keys": 4096,
            "task.train": 100_000,
            "task.valid": 1_000,
            "task.test": 3_000,
            **published(50_000, 64, (2, 1, 128, 128, 512), 1e-3, {"space.candidates": CAUSAL}),
        },
    ),
}

EXAMPLES = {"small": SMALL, "published": PUBLISHED}


def text_of(example: Example, task: str, file: str, size: str) -> str:
    """The docstring of the config."""
    where = "two CPU cores" if size == "small" else "a GPU: the published size"
    name = task + ("" if size == "small" else "_published")

    def wrapped(start: str, text: str) -> str:
        return textwrap.fill(
            text,
            116,
            initial_indent=start,
            subsequent_indent=" " * len(start),
            break_on_hyphens=False,
        )

    return "\n".join(
        [
            wrapped("", f"{example.about} For {where}."),
            "",
            f"Command:  dartformer run --config={file} --workdir=runs/{name}",
            wrapped("Compare:  ", example.expect),
            "",
        ]
    )
