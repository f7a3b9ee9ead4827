"""Multi-query associative recall: which value stood after this key? Causal, generated. For a GPU: the published size.

Command:  dartformer run --config=search_spaces/recall_published.py --workdir=runs/recall_published
Compare:  Zoology (arXiv 2312.04927) says that softmax attention solves it at every size.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="recall")
    config.task.length = 512
    config.task.pairs = 64
    config.task.keys = 4096
    config.task.train = 100000
    config.task.valid = 1000
    config.task.test = 3000
    # sizes; heads * head_dim need not be model_dim
    config.model.layers = 2
    config.model.heads = 1
    config.model.head_dim = 128
    config.model.model_dim = 128
    config.model.mlp_dim = 512
    # "model": one attention everywhere; "layer"; "head"
    config.space.granularity = "layer"
    # examples in a step
    config.data.batch_size = 64
    # how long
    config.search.steps = 25000
    config.search.weights.learning_rate = 0.001
    config.retrain.steps = 50000
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.001
    config.log.every = 100
    config.log.eval_every = 2500
    config.log.checkpoint_every = 2500
    # compare with every candidate alone, a random genotype, and all candidates mixed
    config.baselines.homogeneous = True
    config.baselines.random = True
    config.baselines.uniform = True
    # what is searched over (see `dartformer list attentions`)
    config.space.candidates = ("full", "local(window=8)", "linear")
    return config
