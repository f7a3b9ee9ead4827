"""ListOps at the length of Long Range Arena: 500 to 2,000 symbols. For a GPU: the published size.

Command:  dartformer run --config=search_spaces/listops_published.py --workdir=runs/listops_published
Compare:  Long Range Arena gives its Transformer 36.37% on test; a rule that sees the root operator only has 36.2%.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="listops")
    # sizes; heads * head_dim need not be model_dim
    config.model.layers = 4
    config.model.heads = 8
    config.model.head_dim = 64
    config.model.model_dim = 512
    config.model.mlp_dim = 1024
    # "model": one attention everywhere; "layer"; "head"
    config.space.granularity = "layer"
    # examples in a step
    config.data.batch_size = 32
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
    config.model.pooling = "cls"
    config.model.positions = "sinusoidal"
    config.model.classifier = "mlp"
    config.model.dropout = 0.1
    # what is searched over (see `dartformer list attentions`)
    config.space.candidates = ("full", "local(window=50)", "linear", "linformer(rank=32)", "performer", "bigbird")
    config.data.eval_batch_size = 32
    return config
