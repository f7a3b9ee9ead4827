"""Multi-query associative recall: which value stood after this key? Causal, generated. For two CPU cores.

Command:  dartformer run --config=search_spaces/recall_small.py --workdir=runs/recall
Compare:  the value that most often followed a key in train has 3%.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="recall")
    config.task.length = 32
    config.task.pairs = 4
    config.task.keys = 32
    config.model.stem = "bigram"
    # sizes; heads * head_dim need not be model_dim
    config.model.layers = 1
    config.model.heads = 4
    config.model.head_dim = 16
    config.model.model_dim = 64
    config.model.mlp_dim = 128
    # what is searched over (see `dartformer list attentions`)
    config.space.candidates = ("full", "local(window=8)", "linear")
    # "model": one attention everywhere; "layer"; "head"
    config.space.granularity = "layer"
    # examples in a step
    config.data.batch_size = 32
    # how long
    config.search.steps = 800
    config.search.weights.learning_rate = 0.01
    config.retrain.steps = 800
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.01
    config.log.eval_every = 200
    config.log.checkpoint_every = 200
    # compare with every candidate alone, a random genotype, and all candidates mixed
    config.baselines.homogeneous = True
    config.baselines.random = True
    config.baselines.uniform = True
    return config
