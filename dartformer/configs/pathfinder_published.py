"""Pathfinder, at the published size for a GPU.

Are two dots joined by a dashed path? The pictures are generated.

Command:  dartformer run --config=search_spaces/pathfinder_published.py --workdir=runs/pathfinder
Compare:  Long Range Arena reports 71.40% for its Transformer, on its own pictures of 14 dashes.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="pathfinder")

    # The data (see `dartformer list tasks`).
    config.task.contour_length = 14
    config.task.train = 160000
    config.task.valid = 20000
    config.task.test = 20000

    # Batches.
    config.data.batch_size = 512
    config.data.eval_batch_size = 250

    # The Transformer. heads * head_dim need not be model_dim.
    config.model.layers = 4
    config.model.heads = 4
    config.model.head_dim = 4
    config.model.model_dim = 32
    config.model.mlp_dim = 32
    config.model.pooling = "cls"
    config.model.positions = "sinusoidal"
    config.model.classifier = "mlp"
    config.model.dropout = 0.2

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
    config.search.steps = 62400
    config.search.weights.learning_rate = 0.001

    # Training from scratch, once with each seed.
    config.retrain.steps = 62400
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.001

    # Rivals in the race: every candidate alone, and a random genotype.
    config.baselines.homogeneous = True
    config.baselines.random = True

    # Steps between lines of metrics, evaluations and checkpoints.
    config.log.every = 100
    config.log.eval_every = 3120
    config.log.checkpoint_every = 3120

    return config
