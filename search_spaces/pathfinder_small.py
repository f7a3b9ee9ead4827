"""Pathfinder: are two dots joined by a dashed path? Generated. For two CPU cores.

Command:  dartformer run --config=search_spaces/pathfinder_small.py --workdir=runs/pathfinder
Compare:  chance is 50%; a threshold on the distance of the dots, fitted on 2,000 pictures, has 62%.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="pathfinder")
    config.task.contour_length = 6
    config.task.distractors = 4
    # sizes; heads * head_dim need not be model_dim
    config.model.layers = 2
    config.model.heads = 4
    config.model.head_dim = 16
    config.model.model_dim = 64
    config.model.mlp_dim = 128
    # what is searched over (see `dartformer list attentions`)
    config.space.candidates = ("full", "local(window=8)", "linear", "uniform")
    # "model": one attention everywhere; "layer"; "head"
    config.space.granularity = "layer"
    # examples in a step
    config.data.batch_size = 32
    # how long
    config.search.steps = 600
    config.search.weights.learning_rate = 0.003
    config.retrain.steps = 600
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.003
    config.log.eval_every = 150
    config.log.checkpoint_every = 150
    # compare with every candidate alone, a random genotype, and all candidates mixed
    config.baselines.homogeneous = True
    config.baselines.random = True
    config.baselines.uniform = True
    config.data.eval_batch_size = 100
    return config
