"""Multi-query associative recall, at the published size for a GPU.

Which value followed this key? The data are generated, and every attention here is causal.

Command:  dartformer run --config=search_spaces/recall_published.py --workdir=runs/recall
Compare:  Zoology (arXiv 2312.04927) reports that softmax attention solves it at every size.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="recall")

    # The data (see `dartformer list tasks`).
    config.task.length = 512
    config.task.pairs = 64
    config.task.keys = 4096
    config.task.train = 100000
    config.task.valid = 1000
    config.task.test = 3000

    # Batches.
    config.data.batch_size = 64

    # The Transformer. heads * head_dim need not be model_dim.
    config.model.layers = 2
    config.model.heads = 1
    config.model.head_dim = 128
    config.model.model_dim = 128
    config.model.mlp_dim = 512

    # What to search over (see `dartformer list attentions`), and what chooses: the whole "model" at
    # once, each "layer", or each "head".
    config.space.granularity = "layer"
    config.space.candidates = ("full", "local(window=8)", "linear")

    # The search.
    config.search.steps = 50000
    config.search.weights.learning_rate = 0.001

    # Training from scratch, once with each seed.
    config.retrain.steps = 50000
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.001

    # Rivals in the race: every candidate alone, and a random genotype.
    config.baselines.homogeneous = True
    config.baselines.random = True

    # Steps between lines of metrics, evaluations and checkpoints.
    config.log.every = 100
    config.log.eval_every = 2500
    config.log.checkpoint_every = 2500

    return config
