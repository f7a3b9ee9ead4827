"""ListOps at the length of Long Range Arena, for a GPU.

Nested lists of 500 to 2,000 symbols, each worth one of ten digits.

Command:  dartformer run --config=search_spaces/listops_published.py --workdir=runs/listops
Compare:  Long Range Arena reports 36.37% on test for its Transformer; a rule that sees only the
          root operator scores 36.2%.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="listops")

    # Batches.
    config.data.batch_size = 32
    config.data.eval_batch_size = 32

    # The Transformer. heads * head_dim need not be model_dim.
    config.model.layers = 4
    config.model.heads = 8
    config.model.head_dim = 64
    config.model.model_dim = 512
    config.model.mlp_dim = 1024
    config.model.pooling = "cls"
    config.model.positions = "sinusoidal"
    config.model.classifier = "mlp"
    config.model.dropout = 0.1

    # What to search over (see `dartformer list attentions`), and what chooses: the whole "model" at
    # once, each "layer", or each "head".
    config.space.granularity = "layer"
    config.space.candidates = (
        "full",
        "local(window=50)",
        "linear",
        "linformer(rank=32)",
        "performer",
        "bigbird",
    )

    # The search.
    config.search.steps = 5000
    config.search.weights.learning_rate = 0.001

    # Training from scratch, once with each seed.
    config.retrain.steps = 5000
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.001

    # Rivals in the race: every candidate alone, and a random genotype.
    config.baselines.homogeneous = True
    config.baselines.random = True

    # Steps between lines of metrics, evaluations and checkpoints.
    config.log.every = 100
    config.log.eval_every = 250
    config.log.checkpoint_every = 250

    return config
