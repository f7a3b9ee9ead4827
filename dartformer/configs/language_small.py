"""A text file, character by character, for two CPU cores.

Predicts the next character, in bits per character. Every attention here is causal.

Command:  dartformer run --config=search_spaces/language_small.py --workdir=runs/language
Compare:  on tinyshakespeare the frequencies of pairs of characters give 3.62 bits. After 200 steps
          (one seed, test) `gated_delta` has 3.04 bits, `conv` 3.05, `local(window=8)` 3.12, `full`
          3.29 and `retention` 3.39. Without rotary positions, which `linear` does not support, each
          of them but `conv` is worse, `full` by 0.29.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="language")

    # The data (see `dartformer list tasks`).
    config.task.path = "tinyshakespeare.txt"
    config.task.length = 128
    config.task.vocabulary_size = 96

    # Batches.
    config.data.batch_size = 32

    # The Transformer. heads * head_dim need not be model_dim.
    config.model.layers = 2
    config.model.heads = 4
    config.model.head_dim = 16
    config.model.model_dim = 64
    config.model.mlp_dim = 128
    config.model.positions = "rotary"

    # What to search over (see `dartformer list attentions`), and what chooses: the whole "model" at
    # once, each "layer", or each "head".
    config.space.candidates = (
        "full",
        "local(window=8)",
        "retention",
        "gated_delta",
        "conv",
    )
    config.space.granularity = "layer"

    # The search.
    config.search.steps = 500
    config.search.weights.learning_rate = 0.003

    # Training from scratch, once with each seed.
    config.retrain.steps = 500
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.003

    # Rivals in the race: every candidate alone, and a random genotype.
    config.baselines.homogeneous = True
    config.baselines.random = True

    # Steps between lines of metrics, evaluations and checkpoints.
    config.log.eval_every = 125
    config.log.checkpoint_every = 125

    return config
