"""A planted answer for two CPU cores: symbols whose labels only one kind of attention can get right. A search that does
not find it cannot be trusted on a task where nobody knows the answer.

Command:  dartformer run --config=search_spaces/planted_relay.py --workdir=runs/planted
Takes:    about two minutes on two cores.
Expect:   `local(window=4)`, then `strided(stride=8)`, at about 87% on test: the most frequent among every eighth of the
          letters that are the most frequent near by. The other way round gives about 69%.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="planted")
    # which answer is planted (see `dartformer.tasks.planted`)
    config.task.kind = "relay"
    # sizes; heads * head_dim need not be model_dim
    config.model.layers = 2
    config.model.heads = 2
    config.model.head_dim = 16
    config.model.model_dim = 32
    config.model.mlp_dim = 64
    config.model.stem = "bigram"
    # what is searched over (see `dartformer list attentions`)
    config.space.candidates = ("full", "local(window=4)", "strided(stride=8)", "linear")
    # "model": one attention everywhere; "layer"; "head"
    config.space.granularity = "layer"
    # examples in a step
    config.data.batch_size = 16
    # how long
    config.search.steps = 600
    config.search.weights.learning_rate = 0.005
    config.retrain.steps = 300
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.005
    config.log.eval_every = 150
    config.log.checkpoint_every = 150
    # compare with every candidate alone, a random genotype, and all candidates mixed
    config.baselines.homogeneous = True
    config.baselines.random = True
    config.baselines.uniform = True
    return config
