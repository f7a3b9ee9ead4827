"""Grey CIFAR-10. `task.path` is cifar-10-binary.tar.gz, its folder, or a folder with train_gray.npy and its like;
leave it empty for TFDS's cifar10. For two CPU cores.

Command:  dartformer run --config=search_spaces/image_small.py --workdir=runs/image
Compare:  the nearest mean image has 24.2% on test.
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="image")
    config.task.path = "cifar10_gray"
    config.task.patch = 4
    # sizes; heads * head_dim need not be model_dim
    config.model.layers = 2
    config.model.heads = 4
    config.model.head_dim = 16
    config.model.model_dim = 64
    config.model.mlp_dim = 128
    # what is searched over (see `dartformer list attentions`)
    config.space.candidates = ("full", "linear", "uniform", "identity")
    # "model": one attention everywhere; "layer"; "head"
    config.space.granularity = "layer"
    # examples in a step
    config.data.batch_size = 32
    # how long
    config.search.steps = 800
    config.search.weights.learning_rate = 0.003
    config.retrain.steps = 800
    config.retrain.seeds = (0, 1, 2)
    config.retrain.optimizer.learning_rate = 0.003
    config.log.eval_every = 200
    config.log.checkpoint_every = 200
    # compare with every candidate alone, a random genotype, and all candidates mixed
    config.baselines.homogeneous = True
    config.baselines.random = True
    config.baselines.uniform = True
    return config
