"""Multi-query associative recall by layer, for two CPU cores: no single type gives the answer.

Which value followed this key? A layer has to join each key with its value, and another has to look
the key up. All candidates take linear time, and none of them can do both.

Command:  dartformer run --config=search_spaces/recall_mixes.py --workdir=runs/recall_mixes
Takes:    about two and a half minutes on two cores.
Expect:   `conv` in the first layer and `linear` in the second, above 90% on test. The best model of
          one type scores about 33%, and the value that most often followed a key in train 3%.
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
    config.model.layers = 2
    config.model.heads = 2
    config.model.head_dim = 16
    config.model.model_dim = 32
    config.model.mlp_dim = 64

    # What to search over (see `dartformer list attentions`), and what chooses: the whole "model" at
    # once, each "layer", or each "head".
    config.space.candidates = ("local(window=8)", "linear", "gated_delta", "conv")
    config.space.granularity = "layer"

    # The search.
    config.search.steps = 300
    config.search.weights.learning_rate = 0.008

    # Training from scratch, once with each seed.
    config.retrain.steps = 300
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.008

    # Rivals in the race: every candidate alone, and a random genotype.
    config.baselines.homogeneous = True
    config.baselines.random = True

    # Steps between lines of metrics, evaluations and checkpoints.
    config.log.eval_every = 150
    config.log.checkpoint_every = 150

    return config
