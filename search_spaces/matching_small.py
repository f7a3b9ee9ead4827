"""Pairs of documents: does one cite the other? `task.path` is a folder or an archive with docs.jsonl and pairs.*.tsv,
or with Long Range Arena's new_aan_pairs.*.tsv. For two CPU cores.

Command:  dartformer run --config=search_spaces/matching_small.py --workdir=runs/matching
Compare:  on pairs of ACL papers one layer of `full` has about 75% on test, a threshold on the overlap of these
          words 69.8%, naive Bayes 48.4%.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="matching")
    config.task.path = "minaan.tar.xz"
    config.task.tokens = "words"
    config.task.length = 128
    # sizes; heads * head_dim need not be model_dim
    config.model.layers = 1
    config.model.heads = 2
    config.model.head_dim = 16
    config.model.model_dim = 128
    config.model.mlp_dim = 128
    # what is searched over (see `dartformer list attentions`)
    config.space.candidates = ("full", "local(window=8)", "linear", "uniform")
    # "model": one attention everywhere; "layer"; "head"
    config.space.granularity = "layer"
    # examples in a step
    config.data.batch_size = 64
    # how long
    config.search.steps = 200
    config.search.weights.learning_rate = 0.003
    config.retrain.steps = 600
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.003
    config.log.eval_every = 150
    config.log.checkpoint_every = 150
    # compare with every candidate alone, a random genotype, and all candidates mixed
    config.baselines.homogeneous = True
    config.baselines.random = True
    config.baselines.uniform = True
    config.model.classifier = "mlp"
    config.model.positions = "none"
    config.retrain.optimizer.weight_decay = 0.3
    config.data.eval_batch_size = 100
    return config
