"""IMDb reviews as words: positive or negative? `task.path` says where they are: a folder aclImdb/, the archive, a
folder with train.jsonl and test.jsonl; leave it empty for TFDS's imdb_reviews. For a GPU: the published size.

Command:  dartformer run --config=search_spaces/imdb_tokens_published.py --workdir=runs/imdb_tokens_published
Compare:  naive Bayes on the first 256 words has 83.1% on test.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="imdb_tokens")
    config.task.path = "aclImdb_v1.tar.gz"
    config.task.length = 1000
    config.task.vocabulary_size = 16000
    # sizes; heads * head_dim need not be model_dim
    config.model.layers = 6
    config.model.heads = 8
    config.model.head_dim = 64
    config.model.model_dim = 512
    config.model.mlp_dim = 2048
    # "model": one attention everywhere; "layer"; "head"
    config.space.granularity = "layer"
    # examples in a step
    config.data.batch_size = 32
    # how long
    config.search.steps = 15000
    config.search.weights.learning_rate = 0.0005
    config.retrain.steps = 30000
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.0005
    config.log.every = 100
    config.log.eval_every = 1500
    config.log.checkpoint_every = 1500
    # compare with every candidate alone, a random genotype, and all candidates mixed
    config.baselines.homogeneous = True
    config.baselines.random = True
    config.baselines.uniform = True
    config.model.pooling = "cls"
    config.model.positions = "sinusoidal"
    config.model.classifier = "mlp"
    config.model.dropout = 0.1
    # what is searched over (see `dartformer list attentions`)
    config.space.candidates = ("full", "local(window=50)", "linear", "linformer(rank=32)", "performer", "bigbird")
    config.data.eval_batch_size = 32
    return config
