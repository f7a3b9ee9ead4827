"""A planted answer, `quartet`, for two CPU cores: 625 models, of which 24 are right.

Only a mix of four kinds of attention can get these labels right. A search that does not find it
cannot be trusted on a task whose answer nobody knows.

Command:  dartformer run --config=search_spaces/planted_quartet.py --workdir=runs/planted
Takes:    about five minutes on two cores.
Expect:   `local(window=4)` in a layer below `strided(stride=8)`, and `block(size=8)` and `full` or
          `linear` in the other two, at about 80% on test. `full` everywhere scores about 70%.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="planted")

    # The planted answer (see `dartformer.tasks.planted`).
    config.task.kind = "quartet"

    # Batches.
    config.data.batch_size = 16

    # The Transformer. heads * head_dim need not be model_dim.
    config.model.layers = 4
    config.model.heads = 2
    config.model.head_dim = 16
    config.model.model_dim = 32
    config.model.mlp_dim = 64
    config.model.stem = "bigram"

    # What to search over (see `dartformer list attentions`), and what chooses: the whole "model" at
    # once, each "layer", or each "head".
    config.space.candidates = (
        "full",
        "local(window=4)",
        "strided(stride=8)",
        "block(size=8)",
        "linear",
    )
    config.space.granularity = "layer"

    # The search.
    config.search.steps = 400
    config.search.weights.learning_rate = 0.005

    # Training from scratch, once with each seed.
    config.retrain.steps = 400
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.005

    # Rivals in the race: every candidate alone, and a random genotype.
    config.baselines.homogeneous = True
    config.baselines.random = True

    # Steps between lines of metrics, evaluations and checkpoints.
    config.log.eval_every = 150
    config.log.checkpoint_every = 150

    return config
