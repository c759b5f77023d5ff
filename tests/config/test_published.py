"""The configs of the Ladder VAE and the DVP-VAE have the published settings (Kuzina and Tomczak 2024)."""

import pytest

from nvae.config import load_config

# batch size, epochs, patience, learning rate, its end, warm-up epochs, clipping, validation images
PUBLISHED = {
    "ladder_mnist": (250, 300, 150, 1e-2, 1e-5, 2, 5, 5000),
    "ladder_omniglot": (250, 500, 150, 1e-2, 1e-4, 2, 2, 1000),
    "dvp_mnist": (250, 300, 150, 1e-2, 1e-5, 2, 5, 5000),
    "dvp_omniglot": (250, 500, 200, 1e-2, 1e-4, 2, 2, 1000),
    "dvp_cifar10": (128, 3000, 300, 3e-3, 1e-4, 5, 150, 5000),
}
# context size, steps, first and last gamma, channels, blocks and dropout of the U-Net
DIFFUSION = {
    "dvp_mnist": (7, 25, -6, 7, 16, 2, 0),
    "dvp_omniglot": (5, 50, -6, 7, 32, 3, 0.05),
    "dvp_cifar10": (7, 25, -10, 7, 32, 3, 0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_training_settings_are_the_published_ones(name):
    config = load_config(name)
    training = config.training_parameters
    assert PUBLISHED[name] == (
        training.batch_size,
        training.epochs,
        training.early_stopping_patience,
        training.learning_rate,
        training.learning_rate_min,
        training.learning_rate_warmup_epochs,
        training.gradient_clipping,
        config.dataset.validation_images,
    )
    assert (training.optimizer, training.optimizer_epsilon, training.weight_decay) == ("adamax", 1e-8, 1e-6)
    assert (training.loss_scale, training.ema_decay) == ("bits_per_dimension", 0.999)
    assert (training.learning_rate_decay, training.learning_rate_update) == ("from_start", "epoch")
    assert (training.warmup_epochs, training.kl_balancing, training.kl_constant) == (0, False, 1)
    assert config.dataset.horizontal_flip == (name == "dvp_cifar10")
    assert config.dataset.encoder_input == ("binary" if name == "dvp_cifar10" else "gray")
    assert config.dataset.binarize == (name != "dvp_cifar10")


@pytest.mark.parametrize("name", DIFFUSION)
def test_diffusion_settings_are_the_published_ones(name):
    config = load_config(name)
    assert (config.context, config.top_prior, config.unet_attention_heads) == ("dct", "diffusion", 1)
    assert (config.diffusion_schedule, config.diffusion_parametrization) == ("linear", "eps")
    assert DIFFUSION[name] == (
        config.context_size,
        config.diffusion_steps,
        config.diffusion_min_gamma,
        config.diffusion_max_gamma,
        config.unet_channels,
        config.unet_blocks,
        config.unet_dropout,
    )
