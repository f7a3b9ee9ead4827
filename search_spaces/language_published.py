"""The next character of a text file, in bits per character: everything here is causal. For a GPU: the published size.

Command:  dartformer run --config=search_spaces/language_published.py --workdir=runs/language_published
Compare:  the size is that of nanoGPT's character model; on tinyshakespeare the frequencies of pairs of characters
          have 3.62 bits.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="language")
    config.task.path = "tinyshakespeare.txt"
    config.task.length = 256
    config.task.vocabulary_size = 96
    # sizes; heads * head_dim need not be model_dim
    config.model.layers = 6
    config.model.heads = 6
    config.model.head_dim = 64
    config.model.model_dim = 384
    config.model.mlp_dim = 1536
    # "model": one attention everywhere; "layer"; "head"
    config.space.granularity = "layer"
    # examples in a step
    config.data.batch_size = 64
    # how long
    config.search.steps = 2500
    config.search.weights.learning_rate = 0.001
    config.retrain.steps = 5000
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.001
    config.log.every = 100
    config.log.eval_every = 250
    config.log.checkpoint_every = 250
    # compare with every candidate alone, a random genotype, and all candidates mixed
    config.baselines.homogeneous = True
    config.baselines.random = True
    config.baselines.uniform = True
    config.model.dropout = 0.2
    # what is searched over (see `dartformer list attentions`)
    config.space.candidates = ("full", "local(window=8)", "linear")
    return config
