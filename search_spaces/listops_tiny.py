"""ListOps for two CPU cores.

Nested lists such as `[MAX 2 9 [MIN 4 7 ] 0 ]`, each worth one of ten digits.

Command:  dartformer run --config=search_spaces/listops_tiny.py --workdir=runs/listops
Takes:    about two minutes on two cores.
Expect:   about 44% on test. The majority class scores about 10%, a rule that sees only the root
          operator about 22%, the homogeneous `uniform` model about 40%. The three attentions that
          mix by content (full, local, linear) lie within a few points of one another at this size,
          so the report calls them ties. That is the truth about this task, not a failure of the
          search.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="listops")

    # The data (see `dartformer list tasks`).
    config.task.max_depth = 3
    config.task.max_args = 4
    config.task.min_length = 8
    config.task.max_length = 64
    config.task.train = 10000
    config.task.valid = 1000
    config.task.test = 2000

    # The Transformer. heads * head_dim need not be model_dim.
    config.model.layers = 2
    config.model.heads = 4
    config.model.head_dim = 16
    config.model.model_dim = 64
    config.model.mlp_dim = 128

    # What to search over (see `dartformer list attentions`), and what chooses: the whole "model" at
    # once, each "layer", or each "head".
    config.space.candidates = ("full", "local(window=4)", "linear", "uniform")
    config.space.granularity = "layer"

    # The search.
    config.search.steps = 500

    # Training from scratch, once with each seed.
    config.retrain.steps = 500
    config.retrain.seeds = (0, 1, 2)

    # Rivals in the race: every candidate alone, and a random genotype.
    config.baselines.homogeneous = True
    config.baselines.random = True

    # Steps between lines of metrics, evaluations and checkpoints.
    config.log.eval_every = 250
    config.log.checkpoint_every = 250

    return config
