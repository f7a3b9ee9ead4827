"""IMDb reviews as bytes: positive or negative? `task.path` says where they are: a folder aclImdb/, the archive, a
folder with train.jsonl and test.jsonl; leave it empty for TFDS's imdb_reviews. For two CPU cores.

Command:  dartformer run --config=search_spaces/imdb_bytes_small.py --workdir=runs/imdb_bytes
Compare:  one layer of `full` has about 70% on test after these 700 steps, one epoch; naive Bayes on four-grams of
          the same bytes 81.5%.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="imdb_bytes")
    config.task.path = "aclImdb_v1.tar.gz"
    config.task.length = 512
    config.task.crop = "ends"
    # sizes; heads * head_dim need not be model_dim
    config.model.layers = 1
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
    config.search.steps = 200
    config.search.weights.learning_rate = 0.005
    config.retrain.steps = 700
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.005
    config.log.eval_every = 175
    config.log.checkpoint_every = 175
    # compare with every candidate alone, a random genotype, and all candidates mixed
    config.baselines.homogeneous = True
    config.baselines.random = True
    config.baselines.uniform = True
    config.model.stem = "bigram"
    config.data.eval_batch_size = 100
    return config
