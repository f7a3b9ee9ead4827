"""Pathfinder: are two dots joined by a dashed path? Generated. For a GPU: the published size.

Command:  dartformer run --config=search_spaces/pathfinder_published.py --workdir=runs/pathfinder_published
Compare:  Long Range Arena gives its Transformer 71.40% on its own pictures of 14 dashes.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="pathfinder")
    config.task.contour_length = 14
    config.task.train = 160000
    config.task.valid = 20000
    config.task.test = 20000
    # sizes; heads * head_dim need not be model_dim
    config.model.layers = 4
    config.model.heads = 4
    config.model.head_dim = 4
    config.model.model_dim = 32
    config.model.mlp_dim = 32
    # "model": one attention everywhere; "layer"; "head"
    config.space.granularity = "layer"
    # examples in a step
    config.data.batch_size = 512
    # how long
    config.search.steps = 31200
    config.search.weights.learning_rate = 0.001
    config.retrain.steps = 62400
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.001
    config.log.every = 100
    config.log.eval_every = 3120
    config.log.checkpoint_every = 3120
    # compare with every candidate alone, a random genotype, and all candidates mixed
    config.baselines.homogeneous = True
    config.baselines.random = True
    config.baselines.uniform = True
    config.model.pooling = "cls"
    config.model.positions = "sinusoidal"
    config.model.classifier = "mlp"
    config.model.dropout = 0.2
    # what is searched over (see `dartformer list attentions`)
    config.space.candidates = ("full", "local(window=50)", "linear", "linformer(rank=32)", "performer", "bigbird")
    config.data.eval_batch_size = 250
    return config
