"""Grey CIFAR-10. `task.path` is cifar-10-binary.tar.gz, its folder, or a folder with train_gray.npy and its like;
leave it empty for TFDS's cifar10. For a GPU: the published size.

Command:  dartformer run --config=search_spaces/image_published.py --workdir=runs/image_published
Compare:  Long Range Arena gives its Transformer 42.44%; the nearest mean image has 24.2%.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="image")
    config.task.path = "cifar10_gray"
    # sizes; heads * head_dim need not be model_dim
    config.model.layers = 1
    config.model.heads = 8
    config.model.head_dim = 8
    config.model.model_dim = 128
    config.model.mlp_dim = 128
    # "model": one attention everywhere; "layer"; "head"
    config.space.granularity = "layer"
    # examples in a step
    config.data.batch_size = 256
    # how long
    config.search.steps = 17500
    config.search.weights.learning_rate = 0.0005
    config.retrain.steps = 35000
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.0005
    config.log.every = 100
    config.log.eval_every = 1750
    config.log.checkpoint_every = 1750
    # compare with every candidate alone, a random genotype, and all candidates mixed
    config.baselines.homogeneous = True
    config.baselines.random = True
    config.baselines.uniform = True
    config.model.pooling = "cls"
    config.model.positions = "learned"
    config.model.classifier = "mlp"
    config.model.dropout = 0.3
    # what is searched over (see `dartformer list attentions`)
    config.space.candidates = ("full", "local(window=50)", "linear", "linformer(rank=32)", "performer", "bigbird")
    config.data.eval_batch_size = 250
    return config
