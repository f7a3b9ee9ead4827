"""Grey CIFAR-10, for two CPU cores.

Pictures pixel by pixel. `task.path` is cifar-10-binary.tar.gz, its folder, or a folder with
train_gray.npy and the other arrays. Leave it empty for TFDS's cifar10.

Command:  dartformer run --config=search_spaces/image_small.py --workdir=runs/image
Compare:  the nearest mean image scores 24.2% on test.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="image")

    # The data (see `dartformer list tasks`).
    config.task.path = "cifar10_gray"
    config.task.patch = 4

    # Batches.
    config.data.batch_size = 32

    # The Transformer. heads * head_dim need not be model_dim.
    config.model.layers = 2
    config.model.heads = 4
    config.model.head_dim = 16
    config.model.model_dim = 64
    config.model.mlp_dim = 128

    # What to search over (see `dartformer list attentions`), and what chooses: the whole "model" at
    # once, each "layer", or each "head".
    config.space.candidates = (
        "full",
        "local(window=8)",
        "linear",
        "fourier",
        "conv",
        "identity",
    )
    config.space.granularity = "layer"

    # The search.
    config.search.steps = 800
    config.search.weights.learning_rate = 0.003

    # Training from scratch, once with each seed.
    config.retrain.steps = 800
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.003

    # Rivals in the race: every candidate alone, and a random genotype.
    config.baselines.homogeneous = True
    config.baselines.random = True

    # Steps between lines of metrics, evaluations and checkpoints.
    config.log.eval_every = 200
    config.log.checkpoint_every = 200

    return config
