"""Pairs of documents, for two CPU cores.

Does one document cite the other? `task.path` is a folder or an archive with docs.jsonl and
pairs.*.tsv, or with Long Range Arena's new_aan_pairs.*.tsv.

Command:  dartformer run --config=search_spaces/matching_small.py --workdir=runs/matching
Compare:  on pairs of ACL papers one layer of `full` scores about 75% on test, a threshold on the
          overlap of these words 69.8%, naive Bayes 48.4%.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="matching")

    # The data (see `dartformer list tasks`).
    config.task.path = "minaan.tar.xz"
    config.task.tokens = "words"
    config.task.length = 128

    # Batches.
    config.data.batch_size = 64
    config.data.eval_batch_size = 100

    # The Transformer. heads * head_dim need not be model_dim.
    config.model.layers = 1
    config.model.heads = 2
    config.model.head_dim = 16
    config.model.model_dim = 128
    config.model.mlp_dim = 128
    config.model.classifier = "mlp"
    config.model.positions = "none"

    # What to search over (see `dartformer list attentions`), and what chooses: the whole "model" at
    # once, each "layer", or each "head".
    config.space.candidates = ("full", "local(window=8)", "linear", "uniform")
    config.space.granularity = "layer"

    # The search.
    config.search.steps = 600
    config.search.weights.learning_rate = 0.003

    # Training from scratch, once with each seed.
    config.retrain.steps = 600
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.003
    config.retrain.optimizer.weight_decay = 0.3

    # Rivals in the race: every candidate alone, and a random genotype.
    config.baselines.homogeneous = True
    config.baselines.random = True

    # Steps between lines of metrics, evaluations and checkpoints.
    config.log.eval_every = 150
    config.log.checkpoint_every = 150

    return config
