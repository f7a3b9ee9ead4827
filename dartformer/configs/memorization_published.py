"""Memorization of a fixed map (MAD), at the published size for a GPU.

Which value belongs to this key? It is the same in every example, and never given. The data are
generated, and every attention here is causal.

Command:  dartformer run --config=search_spaces/memorization_published.py --workdir=runs/memorization
Compare:  MAD (arXiv 2403.17844) takes the mean over its settings of the best of six rates and decays.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="memorization")

    # The data (see `dartformer list tasks`).
    config.task.length = 32
    config.task.keys = 127
    config.task.train = 256
    config.task.test = 1280

    # Batches.
    config.data.batch_size = 128

    # The Transformer. heads * head_dim need not be model_dim.
    config.model.layers = 2
    config.model.heads = 16
    config.model.head_dim = 8
    config.model.model_dim = 128
    config.model.mlp_dim = 512
    config.model.positions = "none"

    # What to search over (see `dartformer list attentions`), and what chooses: the whole "model" at
    # once, each "layer", or each "head".
    config.space.candidates = ("full", "local(window=32)", "linear", "gated_delta", "conv")
    config.space.granularity = "layer"

    # The search.
    config.search.steps = 400
    config.search.weights.learning_rate = 0.0005

    # Training from scratch, once with each seed.
    config.retrain.steps = 400
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.0005

    # Rivals in the race: every candidate alone, and a random genotype.
    config.baselines.homogeneous = True
    config.baselines.random = True

    # Steps between lines of metrics, evaluations and checkpoints.
    config.log.every = 100
    config.log.eval_every = 100
    config.log.checkpoint_every = 100

    return config
