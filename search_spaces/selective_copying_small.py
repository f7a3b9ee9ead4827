"""Selective copying (MAD), for two CPU cores.

Write down the letters among blanks, in their order. The data are generated, and every attention
here is causal.

Command:  dartformer run --config=search_spaces/selective_copying_small.py --workdir=runs/selective_copying
Compare:  guessing a letter scores about 1 in 8.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="selective_copying")

    # The data (see `dartformer list tasks`).
    config.task.length = 32
    config.task.copies = 6
    config.task.letters = 8

    # Batches.
    config.data.batch_size = 32

    # The Transformer. heads * head_dim need not be model_dim. Without positions a causal model can
    # be tested at other lengths, too.
    config.model.layers = 2
    config.model.heads = 2
    config.model.head_dim = 32
    config.model.model_dim = 64
    config.model.mlp_dim = 128
    config.model.positions = "none"

    # What to search over (see `dartformer list attentions`), and what chooses: the whole "model" at
    # once, each "layer", or each "head".
    config.space.candidates = ("full", "local(window=8)", "linear", "gated_delta", "conv")
    config.space.granularity = "layer"

    # The search.
    config.search.steps = 800
    config.search.weights.learning_rate = 0.005

    # Training from scratch, once with each seed.
    config.retrain.steps = 800
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.005

    # Rivals in the race: every candidate alone, and a random genotype.
    config.baselines.homogeneous = True
    config.baselines.random = True

    # Steps between lines of metrics, evaluations and checkpoints.
    config.log.eval_every = 200
    config.log.checkpoint_every = 200

    return config
