"""Grey CIFAR-10, at the published size for a GPU.

Pictures pixel by pixel. `task.path` is cifar-10-binary.tar.gz, its folder, or a folder with
train_gray.npy and the other arrays. Leave it empty for TFDS's cifar10.

Command:  dartformer run --config=search_spaces/image_published.py --workdir=runs/image
Compare:  Long Range Arena reports 42.44% for its Transformer; the nearest mean image scores 24.2%.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="image")

    # The data (see `dartformer list tasks`).
    config.task.path = "cifar10_gray"

    # Batches.
    config.data.batch_size = 256
    config.data.eval_batch_size = 250

    # The Transformer. heads * head_dim need not be model_dim.
    config.model.layers = 1
    config.model.heads = 8
    config.model.head_dim = 8
    config.model.model_dim = 128
    config.model.mlp_dim = 128
    config.model.pooling = "cls"
    config.model.positions = "learned"
    config.model.classifier = "mlp"
    config.model.dropout = 0.3

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
    config.search.steps = 35000
    config.search.weights.learning_rate = 0.0005

    # Training from scratch, once with each seed.
    config.retrain.steps = 35000
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.0005

    # Rivals in the race: every candidate alone, and a random genotype.
    config.baselines.homogeneous = True
    config.baselines.random = True

    # Steps between lines of metrics, evaluations and checkpoints.
    config.log.every = 100
    config.log.eval_every = 1750
    config.log.checkpoint_every = 1750

    return config
