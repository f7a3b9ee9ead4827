"""Multi-query associative recall, for two CPU cores.

Which value followed this key? The data are generated, and every attention here is causal.

Command:  dartformer run --config=search_spaces/recall_small.py --workdir=runs/recall
Compare:  the value that most often followed a key in train scores 3%.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="recall")

    # The data (see `dartformer list tasks`).
    config.task.length = 32
    config.task.pairs = 4
    config.task.keys = 32

    # Batches.
    config.data.batch_size = 32

    # The Transformer. heads * head_dim need not be model_dim.
    config.model.stem = "bigram"
    config.model.layers = 1
    config.model.heads = 4
    config.model.head_dim = 16
    config.model.model_dim = 64
    config.model.mlp_dim = 128

    # What to search over (see `dartformer list attentions`), and what chooses: the whole "model" at
    # once, each "layer", or each "head".
    config.space.candidates = ("full", "local(window=8)", "linear")
    config.space.granularity = "layer"

    # The search.
    config.search.steps = 800
    config.search.weights.learning_rate = 0.01

    # Training from scratch, once with each seed.
    config.retrain.steps = 800
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.01

    # Rivals in the race: every candidate alone, and a random genotype.
    config.baselines.homogeneous = True
    config.baselines.random = True

    # Steps between lines of metrics, evaluations and checkpoints.
    config.log.eval_every = 200
    config.log.checkpoint_every = 200

    return config
