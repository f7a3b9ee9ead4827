"""Pairs of documents, at the published size for a GPU.

Does one document cite the other? `task.path` is a folder or an archive with docs.jsonl and
pairs.*.tsv, or with Long Range Arena's new_aan_pairs.*.tsv.

Command:  dartformer run --config=search_spaces/matching_published.py --workdir=runs/matching
Compare:  Long Range Arena reports 57.46% for its Transformer, on its own pairs.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="matching")

    # The data (see `dartformer list tasks`).
    config.task.path = "lra_release"
    config.task.length = 4000

    # Batches.
    config.data.batch_size = 32
    config.data.eval_batch_size = 32

    # The Transformer. heads * head_dim need not be model_dim.
    config.model.layers = 4
    config.model.heads = 4
    config.model.head_dim = 32
    config.model.model_dim = 128
    config.model.mlp_dim = 512
    config.model.pooling = "cls"
    config.model.positions = "sinusoidal"
    config.model.classifier = "mlp"
    config.model.dropout = 0.1

    # What to search over (see `dartformer list attentions`), and what chooses: the whole "model" at
    # once, each "layer", or each "head".
    config.space.granularity = "layer"
    config.space.candidates = (
        "full",
        "local(window=50)",
        "linear",
        "linformer(rank=32)",
        "performer",
        "bigbird",
    )

    # The search.
    config.search.steps = 5000
    config.search.weights.learning_rate = 0.001

    # Training from scratch, once with each seed.
    config.retrain.steps = 5000
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.001

    # Rivals in the race: every candidate alone, and a random genotype.
    config.baselines.homogeneous = True
    config.baselines.random = True

    # Steps between lines of metrics, evaluations and checkpoints.
    config.log.every = 100
    config.log.eval_every = 250
    config.log.checkpoint_every = 250

    return config
