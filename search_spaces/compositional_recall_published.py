"""Recall by two keys together (Zoology), at the published size for a GPU.

Which value followed this pair of keys? Neither key tells it alone. The data are generated, and
every attention here is causal.

Command:  dartformer run --config=search_spaces/compositional_recall_published.py --workdir=runs/compositional_recall
Compare:  Zoology (github.com/HazyResearch/zoology) trains at this length, among others.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="compositional_recall")

    # The data (see `dartformer list tasks`).
    config.task.length = 64
    config.task.grid = 2
    config.task.keys = 2730
    config.task.train = 100000
    config.task.valid = 1000
    config.task.test = 1000

    # Batches.
    config.data.batch_size = 256

    # The Transformer. heads * head_dim need not be model_dim.
    config.model.layers = 2
    config.model.heads = 1
    config.model.head_dim = 128
    config.model.model_dim = 128
    config.model.mlp_dim = 512
    config.model.positions = "none"

    # What to search over (see `dartformer list attentions`), and what chooses: the whole "model" at
    # once, each "layer", or each "head".
    config.space.candidates = ("full", "local(window=32)", "linear", "gated_delta", "conv")
    config.space.granularity = "layer"

    # The search.
    config.search.steps = 12500
    config.search.weights.learning_rate = 0.001

    # Training from scratch, once with each seed.
    config.retrain.steps = 12500
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.001

    # Rivals in the race: every candidate alone, and a random genotype.
    config.baselines.homogeneous = True
    config.baselines.random = True

    # Steps between lines of metrics, evaluations and checkpoints.
    config.log.every = 100
    config.log.eval_every = 1250
    config.log.checkpoint_every = 1250

    return config
