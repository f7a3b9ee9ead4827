"""A text file, character by character, at the published size for a GPU.

Predicts the next character, in bits per character. Every attention here is causal.

Command:  dartformer run --config=search_spaces/language_published.py --workdir=runs/language
Compare:  the size is that of nanoGPT's character model. On tinyshakespeare the frequencies of pairs
          of characters give 3.62 bits.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="language")

    # The data (see `dartformer list tasks`).
    config.task.path = "tinyshakespeare.txt"
    config.task.length = 256
    config.task.vocabulary_size = 96

    # Batches.
    config.data.batch_size = 64

    # The Transformer. heads * head_dim need not be model_dim.
    config.model.layers = 6
    config.model.heads = 6
    config.model.head_dim = 64
    config.model.model_dim = 384
    config.model.mlp_dim = 1536
    config.model.dropout = 0.2

    # What to search over (see `dartformer list attentions`), and what chooses: the whole "model" at
    # once, each "layer", or each "head".
    config.space.granularity = "layer"
    config.space.candidates = ("full", "local(window=8)", "linear")

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
