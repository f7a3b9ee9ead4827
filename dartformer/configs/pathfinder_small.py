"""Pathfinder, for two CPU cores.

Are two dots joined by a dashed path? The pictures are generated.

Command:  dartformer run --config=search_spaces/pathfinder_small.py --workdir=runs/pathfinder
Compare:  chance is 50%; a threshold on the distance of the dots, fitted on 2,000 pictures, scores
          62%.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="pathfinder")

    # The data (see `dartformer list tasks`).
    config.task.contour_length = 6
    config.task.distractors = 4

    # Batches.
    config.data.batch_size = 32
    config.data.eval_batch_size = 100

    # The Transformer. heads * head_dim need not be model_dim.
    config.model.layers = 2
    config.model.heads = 4
    config.model.head_dim = 16
    config.model.model_dim = 64
    config.model.mlp_dim = 128

    # What to search over (see `dartformer list attentions`), and what chooses: the whole "model" at
    # once, each "layer", or each "head".
    config.space.candidates = ("full", "local(window=8)", "linear", "uniform")
    config.space.granularity = "layer"

    # The search.
    config.search.steps = 600
    config.search.weights.learning_rate = 0.003

    # Training from scratch, once with each seed.
    config.retrain.steps = 600
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.003

    # Rivals in the race: every candidate alone, and a random genotype.
    config.baselines.homogeneous = True
    config.baselines.random = True

    # Steps between lines of metrics, evaluations and checkpoints.
    config.log.eval_every = 150
    config.log.checkpoint_every = 150

    return config
