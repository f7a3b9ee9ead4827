"""Pairs of documents: does one cite the other? `task.path` is a folder or an archive with docs.jsonl and pairs.*.tsv,
or with Long Range Arena's new_aan_pairs.*.tsv. For two CPU cores.

Command:  dartformer run --config=search_spaces/matching_small.py --workdir=runs/matching
Compare:  on pairs of ACL papers a threshold on the overlap of four-grams has 70.8% on test at this length, naive
          Bayes 48.4%.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="matching")
    config.task.path = "minaan.tar.xz"
    config.task.length = 1024
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
    config.data.batch_size = 16
    # how long
    config.search.steps = 400
    config.search.weights.learning_rate = 0.003
    config.retrain.steps = 400
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.003
    config.log.eval_every = 100
    config.log.checkpoint_every = 100
    # compare with every candidate alone, a random genotype, and all candidates mixed
    config.baselines.homogeneous = True
    config.baselines.random = True
    config.baselines.uniform = True
    config.model.classifier = "mlp"
    config.data.eval_batch_size = 50
    return config
