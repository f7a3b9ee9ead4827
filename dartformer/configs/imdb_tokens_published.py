"""IMDb reviews as words, at the published size for a GPU.

Is a review positive or negative? `task.path` is the folder aclImdb/, its archive, or a folder with
train.jsonl and test.jsonl. Leave it empty for TFDS's imdb_reviews.

Command:  dartformer run --config=search_spaces/imdb_tokens_published.py --workdir=runs/imdb_tokens
Compare:  naive Bayes on the first 256 words scores 83.1% on test.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="imdb_tokens")

    # The data (see `dartformer list tasks`).
    config.task.path = "aclImdb_v1.tar.gz"
    config.task.length = 1000
    config.task.vocabulary_size = 16000

    # Batches.
    config.data.batch_size = 32
    config.data.eval_batch_size = 32

    # The Transformer. heads * head_dim need not be model_dim.
    config.model.layers = 6
    config.model.heads = 8
    config.model.head_dim = 64
    config.model.model_dim = 512
    config.model.mlp_dim = 2048
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
    config.search.steps = 30000
    config.search.weights.learning_rate = 0.0005

    # Training from scratch, once with each seed.
    config.retrain.steps = 30000
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.0005

    # Rivals in the race: every candidate alone, and a random genotype.
    config.baselines.homogeneous = True
    config.baselines.random = True

    # Steps between lines of metrics, evaluations and checkpoints.
    config.log.every = 100
    config.log.eval_every = 1500
    config.log.checkpoint_every = 1500

    return config
