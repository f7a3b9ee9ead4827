"""The next character of a text file, in bits per character: everything here is causal. For two CPU cores.

Command:  dartformer run --config=search_spaces/language_small.py --workdir=runs/language
Compare:  on tinyshakespeare the frequencies of pairs of characters have 3.62 bits.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="language")
    config.task.path = "tinyshakespeare.txt"
    config.task.length = 128
    config.task.vocabulary_size = 96
    # sizes; heads * head_dim need not be model_dim
    config.model.layers = 2
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
    config.search.steps = 500
    config.search.weights.learning_rate = 0.003
    config.retrain.steps = 500
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.003
    config.log.eval_every = 125
    config.log.checkpoint_every = 125
    # compare with every candidate alone, a random genotype, and all candidates mixed
    config.baselines.homogeneous = True
    config.baselines.random = True
    config.baselines.uniform = True
    return config
