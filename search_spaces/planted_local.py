"""A planted answer for two CPU cores: symbols whose labels only one kind of attention can get right. A search that does
not find it cannot be trusted on a task where nobody knows the answer.

Command:  dartformer run --config=search_spaces/planted_local.py --workdir=runs/planted
Takes:    about two minutes on two cores.
Expect:   `local(window=4)`, at 100% on test: the most frequent letter near by. Whatever cannot tell near from far stays
          at about 53%, the token's own letter gives 49%.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="planted")
    # which answer is planted (see `dartformer.tasks.planted`)
    config.task.kind = "local"
    # sizes; heads * head_dim need not be model_dim
    config.model.layers = 1
    config.model.heads = 2
    config.model.head_dim = 16
    config.model.model_dim = 32
    config.model.mlp_dim = 64
    config.model.stem = "bigram"
    # what is searched over (see `dartformer list attentions`)
    config.space.candidates = ("full", "local(window=4)", "strided(stride=8)", "linear", "linformer(rank=8)", "uniform",
                               "identity")
    # "model": one attention everywhere; "layer"; "head"
    config.space.granularity = "model"
    # examples in a step
    config.data.batch_size = 16
    # how long
    config.search.steps = 150
    config.search.weights.learning_rate = 0.005
    config.retrain.steps = 150
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.005
    config.log.eval_every = 150
    config.log.checkpoint_every = 150
    # compare with every candidate alone, a random genotype, and all candidates mixed
    config.baselines.homogeneous = True
    config.baselines.random = True
    config.baselines.uniform = True
    return config
