import math
import re
from dataclasses import replace

import pytest
import torch

from nvae.checkpoint import CheckpointError, load, save
from nvae.config.migrations import migrate_weights
from nvae.data.images import Data
from nvae.optim import OPTIMIZERS
from nvae.system.devices import set_deterministic
from nvae.system.errors import Remedy, UserError
from nvae.system.torch_files import write_whole
from nvae.training.resuming import resume_training, save_training, start_from
from nvae.training.trainer import Trainer
from nvae.training.validation import record_validation, result

from .helpers import DVP, LADDER, NVLABS, TOY_FACES, VDVAE, advance, differences, everything


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.checkpoint"


@pytest.mark.parametrize("interrupted_after", [1, 3, 5])  # within an epoch, at its end, in the next one
def test_resume_equals_an_uninterrupted_run_bit_for_bit(make_trainer, path, interrupted_after):
    whole, first, second = make_trainer(), make_trainer(), make_trainer()
    advance(whole, 8)
    advance(first, interrupted_after)
    save_training(first, path)
    assert resume_training(second, path) == []
    advance(second, 8 - interrupted_after)
    assert not differences(everything(whole), everything(second))


VARIANTS = {
    "nvlabs": (NVLABS, {}),
    **{name: ({}, {"optimizer": name}) for name in OPTIMIZERS},
    "annealed": (NVLABS, {"regularization_constant_initial": 1.0, "warmup_delay_portion": 0.2}),
    "spectral": ({"spectral_normalization": True, "num_flows": 1}, {}),
    "spectral and recomputing": (
        NVLABS | {"spectral_normalization": True, "arch_instance": "mbconv_sep"},
        {"use_tensor_checkpoints": True},
    ),
    "half precision": (NVLABS | {"spectral_normalization": True}, {"half_precision": True}),
    "not balanced": ({}, {"kl_balancing": False}),
    "warm-up in steps": ({}, {"warmup_steps": 5}),
    "flipped": ({"dataset": TOY_FACES | {"horizontal_flip": True}}, {}),
    "cropped": ({"dataset": TOY_FACES | {"random_crop": 2, "horizontal_flip": True}}, {}),
    "jittered": ({"dataset": TOY_FACES | {"sharpness": 2.0, "color_jitter": [0.3, 0.3, 0.1, 0.1]}}, {}),
    "dequantized": ({"dataset": TOY_FACES | {"random_crop": 1, "dequantize": True}}, {}),
    "binarized": ({"dataset": TOY_FACES | {"binarize": True}, "sampling_method": "bernoulli"}, {}),
    "no batch norms": (NVLABS | {"arch_instance": "res_elu"}, {}),
    "uneven": ({"groups_per_scale": [1, 2], "latent_size": [4, 1]}, {}),
    "plain": (NVLABS | {"number_of_scales": 1, "initial_splits_per_scale": 1}, {}),
    "five bits": (NVLABS | {"pixel_bits": 5}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_of_every_variant_equals_an_uninterrupted_run_bit_for_bit(make_trainer, path, variant):
    model, schedule = VARIANTS[variant]
    model = {"initial_splits_per_scale": 1} | model  # a group on each of two scales is enough here
    whole, resumed = make_trainer(model, **schedule), make_trainer(model, **schedule)
    advance(whole, 2)
    save_training(whole, path)
    at_the_break = everything(whole)
    advance(whole, 3)  # across the end of an epoch
    resume_training(resumed, path)
    advance(resumed, 3)
    assert not differences(everything(whole), everything(resumed))
    assert math.isfinite(whole.running_mean.values()["loss"])
    moved = differences(at_the_break, everything(whole))
    assert any(key.endswith("stem.bias") for key in moved)
    assert any(key.endswith("weight.0.right") for key in moved) == model.get("spectral_normalization", False)


def test_resume_of_two_groups_with_states_of_their_own_equals_an_uninterrupted_run_bit_for_bit(make_trainer, path):
    """Muon keeps one moment of a kernel, AdamW two of everything else; each group has its own learning rate."""

    def trainer():
        trainer = make_trainer(optimizer="muon", ema_decay=0.8, gradient_accumulation=2)
        trainer.optimizer.param_groups[0]["rate_factor"] = 0.5
        return trainer

    whole, first, second = trainer(), trainer(), trainer()
    advance(whole, 5)
    advance(first, 2)
    save_training(first, path)
    assert resume_training(second, path) == []
    advance(second, 3)
    assert not differences(everything(whole), everything(second))
    kernels, others = second.optimizer.param_groups
    assert kernels["lr"] == others["lr"] / 2 > 0
    kept = [{frozenset(second.optimizer.state[p]) for p in group["params"]} for group in (kernels, others)]
    assert not kept[0] & kept[1]


@pytest.fixture
def deterministic():
    set_deterministic(True)
    yield
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("half", [False, True])
def test_resume_on_a_gpu_with_deterministic_equals_an_uninterrupted_run_bit_for_bit(
    make_trainer, path, deterministic, half
):
    whole, resumed = (make_trainer(NVLABS, "cuda:0", half_precision=half) for _ in range(2))
    advance(whole, 2)
    save_training(whole, path)
    advance(whole, 3)
    resume_training(resumed, path)
    advance(resumed, 3)
    assert not differences(everything(whole), everything(resumed))


ALL_FEATURES = {
    "batch_size": 4,
    "epochs": 6,
    "epochs_per_checkpoint": 1,
    "ema_decay": 0.8,
    "gradient_accumulation": 2,
    "early_stopping_patience": 4,
    "loss_scale": "bits_per_dimension",
    "gradient_clipping": 0.05,
}
BINARIZED = {"dataset": TOY_FACES | {"binarize": True, "horizontal_flip": True}, "sampling_method": "bernoulli"}
SCHEDULES = {
    "plateau": {"learning_rate_schedule": "plateau", "plateau_patience": 1},
    "cosine": {
        "learning_rate_update": "epoch",
        "learning_rate_decay": "from_start",
        "learning_rate_warmup_epochs": 1.0,
    },
}


def advance_and_validate(trainer, steps):
    """Take some steps; validate after every second one, with an ELBO that is best at the fourth step."""
    for _ in range(steps):
        advance(trainer, 1)
        if trainer.position.step % 2 == 0:
            record_validation(
                trainer,
                -float(abs(trainer.position.step - 4)),
                [float(len(trainer.model.groups))] * len(trainer.model.groups),
            )


@pytest.mark.slow
@pytest.mark.parametrize("rates", SCHEDULES)
@pytest.mark.parametrize("family", ["nvae", "ladder", "dvp", "linear dvp", "vdvae"])
@pytest.mark.parametrize("interrupted_after", [1, 5])  # in the middle of an epoch of three steps
def test_resume_with_all_features_equals_an_uninterrupted_run_bit_for_bit(
    make_trainer, path, family, rates, interrupted_after
):
    families = {"nvae": {}, "ladder": LADDER, "dvp": DVP, "linear dvp": DVP | {"context": "linear"}, "vdvae": VDVAE}
    model = BINARIZED | families[family]
    whole, first, second = (make_trainer(model, **ALL_FEATURES | SCHEDULES[rates]) for _ in range(3))
    assert whole.has_batch_norm == (family == "nvae")
    advance_and_validate(whole, 10)
    advance_and_validate(first, interrupted_after)
    save_training(first, path)
    resume_training(second, path)
    assert second.position.image > 0
    advance_and_validate(second, 10 - interrupted_after)
    assert not differences(everything(whole), everything(second))
    assert second.history.validations == whole.history.validations
    best, expected = result(second)[0].state_dict(), result(whole)[0].state_dict()
    assert second.best_weights.best.validation.elbo == 0
    assert all(torch.equal(expected[name], tensor) for name, tensor in best.items())
    assert any(not torch.equal(tensor, best[name]) for name, tensor in second.eval_model.state_dict().items())


@pytest.mark.slow
def test_resume_of_a_checkpoint_without_the_newer_keys_and_states(make_trainer, path):
    """A file of version 2 from before the EMA, the history and the newer schedules."""
    whole, first, second = make_trainer(), make_trainer(), make_trainer()
    advance(whole, 5)
    advance(first, 2)
    save_training(first, path)
    content = torch.load(path, weights_only=True)
    for key in ("ema_decay", "workers", "wandb", "learning_rate_schedule", "early_stopping_patience", "loss_scale"):
        del content["config"]["training_parameters"][key]
    del content["training"]["history"], content["training"]["best"], content["training"]["recovery"]
    content["training"]["progress"]["consecutive_skips"] = 0
    write_whole(content, path)
    assert load(path)["config"] == first.config
    assert resume_training(second, path) == []
    advance(second, 3)
    assert differences(everything(whole), everything(second)) == {".recovery.losses"}  # of the last three steps


@pytest.mark.slow
def test_resume_restores_the_loss_scale(make_trainer, path):
    trainer, other = make_trainer(), make_trainer()
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    other.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    advance(trainer, 2)
    save_training(trainer, path)
    resume_training(other, path)
    assert other.scaler.get_scale() == 2.0**8
    assert resume_training(make_trainer(), path) == []  # on a device that needs no scale


def test_save_refuses_weights_that_are_not_finite(make_trainer, path):
    trainer = make_trainer()
    trainer.model.constant.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        save_training(trainer, path)
    assert not path.exists()


def test_resume_with_a_larger_batch_than_is_left_begins_the_next_epoch(make_trainer, path):
    trainer, again = make_trainer(), make_trainer(batch_size=8)
    advance(trainer, 2)
    save_training(trainer, path)
    resume_training(again, path)
    assert (again.position.epoch, again.position.image) == (1, 0)


def test_resume_takes_the_schedule_from_the_config(make_trainer, path):
    trainer = make_trainer()
    advance(trainer, 1)
    save_training(trainer, path)
    changes = {"spectral_exponent": 1, "kl_balancing": False, "warmup_portion": 0.5, "optimizer_betas": [0.5, 0.9]}
    again = make_trainer(epochs=9, learning_rate=0.002, optimizer_epsilon=1e-5, gradient_skip_threshold=1e6, **changes)
    resume_training(again, path)
    advance(again, 1)
    (group,) = again.optimizer.param_groups
    assert (group["lr"], group["eps"], group["betas"]) == (0.002, 1e-5, (0.5, 0.9))


@pytest.mark.parametrize(
    ("model", "changes", "key"),
    [
        ({}, {"seed": 5}, "training_parameters.seed"),
        ({}, {"spectral_scope": "all"}, "training_parameters.spectral_scope"),
        ({}, {"optimizer": "adam"}, "training_parameters.optimizer"),
        ({"latent_size": 3}, {}, "latent_size"),
        (NVLABS, {}, "style"),
    ],
)
def test_resume_refuses_other_changes_and_names_them(make_trainer, path, model, changes, key):
    save_training(make_trainer(), path)
    with pytest.raises(UserError, match=rf"{key} \(was") as raised:
        resume_training(make_trainer(model, **changes), path)
    assert raised.value.remedies == (Remedy.START_OVER,)


def test_resume_refuses_other_images(make_trainer, data, path):
    trainer = make_trainer()
    save_training(trainer, path)
    images = data.training.clone()
    images[0, 0, 0, 0] ^= 1
    other = Trainer(trainer.config, Data(images, data.validation), torch.device("cpu"))
    with pytest.raises(UserError, match="images"):
        resume_training(other, path)


def test_resume_refuses_a_model_file(make_trainer, path):
    trainer = make_trainer()
    save(trainer.model, path)
    with pytest.raises(CheckpointError, match="training state"):
        resume_training(trainer, path)


def put(*keys):
    """A function that sets a value of nested dictionaries and lists; the last of `keys` is the value."""
    *path, last, value = keys

    def change(training):
        for key in path:
            training = training[key]
        training[last] = value

    return change


def remove(*keys):
    *path, last = keys

    def change(training):
        for key in path:
            training = training[key]
        del training[last]

    return change


DAMAGES = {
    "progress.step": [put("progress", "step", value) for value in ("x", -1, 1.5, None, True, 2**70)],
    "progress": [put("progress", []), remove("progress", "image"), remove("progress")],
    "running_mean.images": [put("running_mean", "images", -1)],
    "running_mean.means": [
        put("running_mean", "means", "kl_per_group", "x"),
        put("running_mean", "means", "loss", torch.tensor(math.nan)),
    ],
    "running_mean.maxima": [put("running_mean", "maxima", 7)],
    "optimizer.state": [
        put("optimizer", "state", 3),
        put("optimizer", "state", 0, []),
        remove("optimizer", "state", 0, "exp_inf"),
        put("optimizer", "state", 0, "exp_inf", torch.zeros(1, 2)),
        put("optimizer", "state", {}),
        put("optimizer", "state", 10**6, {}),
        put("optimizer", "state", 0, "step", torch.tensor(-1.0)),
        put("optimizer", "state", 0, "step", torch.tensor(True)),
        put("optimizer", "state", 0, "exp_inf", torch.zeros(1)),
        lambda training: [moments.clear() for moments in training["optimizer"]["state"].values()],
        lambda training: [moments.pop("exp_inf") for moments in training["optimizer"]["state"].values()],
    ],
    "optimizer.param_groups": [
        put("optimizer", "param_groups", "x"),
        put("optimizer", "param_groups", []),
        put("optimizer", "param_groups", 0, "params", [0]),
        remove("optimizer", "param_groups", 0, "params"),
    ],
    "optimizer": [put("optimizer", None), remove("optimizer")],
    "regularizers": [put("regularizers", {}), put("regularizers", "spectral.right0", torch.zeros(1))],
    "recovery": [put("recovery", None), put("recovery", "count", -1), remove("recovery", "tries")],
    "recovery.losses": [put("recovery", "losses", value) for value in ("x", torch.zeros(3), torch.ones(1, 3) / 0)],
    "data": [put("data", 5), remove("data")],
}


@pytest.mark.slow
@pytest.mark.parametrize(("part", "change"), [(part, change) for part in DAMAGES for change in DAMAGES[part]])
def test_resume_refuses_a_state_of_other_kinds_and_changes_nothing(make_trainer, path, part, change):
    trainer, again = make_trainer(), make_trainer()
    advance(trainer, 2)
    save_training(trainer, path)
    content = torch.load(path, weights_only=True)
    change(content["training"])
    write_whole(content, path)
    damaged, before = path.read_bytes(), everything(again)
    with pytest.raises(UserError) as error:
        resume_training(again, path)
    assert isinstance(error.value, CheckpointError) or part == "data"
    assert part == "data" or re.search(rf"training\.{part.partition('.')[0]}: .", str(error.value))
    assert path.read_bytes() == damaged
    assert not differences(before, everything(again))


HARMLESS = [
    put("running_mean", "means", "loss", torch.zeros(3)),
    put("running_mean", "means", 5, torch.zeros(())),
    put("optimizer", "param_groups", 0, "betas", "x"),
    put("optimizer", "param_groups", 0, "lr", None),
    put("scaler", []),
]


@pytest.mark.slow
@pytest.mark.parametrize("change", HARMLESS)
def test_resume_takes_nothing_from_a_file_that_the_config_decides(make_trainer, path, change):
    trainer, again = make_trainer(), make_trainer()
    advance(trainer, 2)
    save_training(trainer, path)
    content = torch.load(path, weights_only=True)
    change(content["training"])
    write_whole(content, path)
    resume_training(again, path)
    metrics = [advance(either, 2)[1]["loss"] for either in (trainer, again)]
    assert torch.equal(*metrics)
    moved = differences(everything(trainer), everything(again))
    assert all(key.startswith((".running_mean", ".recovery.losses")) for key in moved)


@pytest.mark.slow
def old_training(root, name):
    """Return the path of a checkpoint in tests/data, what its program computed, and a trainer for it on its images."""
    folder = root / "tests" / "data"
    path = folder / f"{name}.checkpoint"
    expected = torch.load(folder / f"{name}_expected.pt", weights_only=True)
    data = Data(expected["pixels"][:14], expected["pixels"][14:])
    return path, expected, Trainer(load(path)["config"], data, torch.device("cpu"))


@pytest.mark.parametrize("change", [remove("spectral"), put("spectral", [1]), put("spectral", {"right0": 3})])
def test_resume_of_version1_without_the_state_of_the_regularization_starts_the_state_anew(root, tmp_path, change):
    source, _, trainer = old_training(root, "version1_nvlabs_style")
    content = torch.load(source, weights_only=True)
    change(content["training"])
    torch.save(content, tmp_path / "a.checkpoint")
    assert len(resume_training(trainer, tmp_path / "a.checkpoint")) == 1
    advance(trainer, 1)


def test_resume_that_fails_in_the_middle_of_a_run_changes_nothing(make_trainer, path):
    trainer, later = make_trainer(ema_decay=0.5), make_trainer(ema_decay=0.5)
    advance(trainer, 2)
    save_training(trainer, path)
    content = torch.load(path, weights_only=True)
    remove("recovery", "tries")(content["training"])  # the last parts to be loaded
    write_whole(content, path)
    advance(later, 5)
    before = everything(later)
    with pytest.raises(CheckpointError):
        resume_training(later, path)
    assert not differences(before, everything(later))
    advance(trainer, 5)
    advance(later, 2)
    assert not differences(everything(trainer), everything(later))


@pytest.mark.slow
@pytest.mark.parametrize("style", ["seed_style", "nvlabs_style"])
def test_resume_of_version1(root, style):
    """A checkpoint at step 4 of the code before version 2, and the weights that this code had at step 8."""
    path, expected, trainer = old_training(root, f"version1_{style}")
    warnings = resume_training(trainer, path)
    assert trainer.position.step == 4
    advance(trainer, 4)
    assert math.isfinite(trainer.running_mean.values()["loss"])
    if style == "nvlabs_style":
        assert warnings == []
        weights = migrate_weights(expected["weights_after_8_steps"])
        for name, tensor in trainer.model.state_dict().items():
            if not name.endswith("num_batches_tracked"):  # version 1 did not count where it upsampled
                torch.testing.assert_close(tensor, weights[name], rtol=1e-5, atol=1e-5, msg=name)


def test_resume_of_version1_with_other_regularized_convolutions_starts_their_vectors_anew(root, tmp_path):
    source, _, trainer = old_training(root, "version1_seed_style")
    content = torch.load(source, weights_only=True)
    vectors = content["training"]["spectral"]
    vectors["right0"] = torch.cat([vectors["right0"], vectors["right0"][:1]])  # one more convolution
    torch.save(content, tmp_path / "a.checkpoint")
    own = {name: tensor.clone() for name, tensor in trainer.regularizers.state_dict().items()}
    assert len(resume_training(trainer, tmp_path / "a.checkpoint")) == 1
    assert all(torch.equal(own[name], tensor) for name, tensor in trainer.regularizers.state_dict().items())
    assert trainer.position.step == 4


def test_resume_with_changed_data_only_when_asked(make_trainer, tmp_path, data):
    trainer = make_trainer()
    advance(trainer, 2)
    save_training(trainer, tmp_path / "a.checkpoint")
    changed = make_trainer()
    changed.data = replace(data, training=data.training.flip(0))
    with pytest.raises(UserError) as raised:
        resume_training(changed, tmp_path / "a.checkpoint")
    assert raised.value.remedies == (Remedy.START_OVER, Remedy.CHANGED_DATA)
    (warning,) = resume_training(changed, tmp_path / "a.checkpoint", changed_data=True)
    assert "14 training images" in warning
    assert changed.position.step == 2


def test_resume_accepts_the_recipe_or_the_pixels_of_drawn_images(make_trainer, tmp_path, data):
    """A checkpoint from before there were recipes has the digest of the pixels."""
    trainer = make_trainer()
    save_training(trainer, tmp_path / "pixels.checkpoint")
    trainer.data = replace(data, recipe="faces 1")
    resume_training(trainer, tmp_path / "pixels.checkpoint")
    save_training(trainer, tmp_path / "recipe.checkpoint")
    trainer.data = replace(data, recipe="faces 1", training=data.training // 2)  # drawn by another Pillow
    resume_training(trainer, tmp_path / "recipe.checkpoint")
    trainer.data = replace(data, recipe="faces 2", training=data.training // 2)
    with pytest.raises(UserError, match="images"):
        resume_training(trainer, tmp_path / "recipe.checkpoint")


@pytest.mark.parametrize("decay", [None, 0.5])
def test_initialize_takes_the_weights_alone(make_trainer, tmp_path, decay):
    trained = make_trainer()
    advance(trained, 2)
    save(trained.model, tmp_path / "a.model")
    trainer = make_trainer(ema_decay=decay)
    start_from(trainer, tmp_path / "a.model")
    for model in (trainer.model, trainer.eval_model):
        assert all(
            torch.equal(a, b)
            for a, b in zip(model.state_dict().values(), trained.model.state_dict().values(), strict=True)
        )
    assert trainer.position.step == 0 and not trainer.optimizer.state


@pytest.mark.parametrize("model", [{"sampling_method": "logistic_mixture"}, NVLABS])
def test_resume_keeps_the_likelihood_of_the_file_where_the_config_does_not_name_it(make_trainer, path, model):
    """The default of likelihood_tails has changed: a run that began before continues as it was, bit for bit."""
    whole, first = (make_trainer(model | {"likelihood_tails": "original"}) for _ in range(2))
    advance(whole, 5)
    advance(first, 3)
    save_training(first, path)
    second = make_trainer(model, ema_decay=None)
    assert second.config.likelihood_tails == "exact" and second.model.likelihood.is_normalized
    assert resume_training(second, path) == []
    assert second.config == second.model.config == first.config
    assert not second.eval_model.likelihood.is_normalized
    assert advance(second, 2)[-1]["loss"] == advance(first, 2)[-1]["loss"]
    assert not differences(everything(whole), everything(second))
    named = make_trainer(model | {"likelihood_tails": "exact"})
    with pytest.raises(UserError, match="likelihood_tails"):
        resume_training(named, path)
    assert named.config.likelihood_tails == "exact" and named.position.step == 0


VERSION2 = ("nvae", "seed", "ladder", "dvp")  # files of commit e679c48, see tests/data/README.md
# Biases that a normalization or a softmax removes: their gradients are rounding errors, other ones on other processors.
WITHOUT_EFFECT = re.compile(r"\.unet\..*\.(conv1|conv2|skip|qkv)\.bias")


@pytest.mark.slow
@pytest.mark.parametrize("name", VERSION2)
def test_resume_of_version2(root, name):
    """A checkpoint at step 7, in the middle of an epoch, and the weights of the uninterrupted training at step 12."""
    path, expected, trainer = old_training(root, f"version2_{name}")
    assert resume_training(trainer, path) == []
    assert (trainer.position.step, trainer.position.image) == (7, 4)
    metrics = advance(trainer, 5)[-1]
    assert metrics["loss"].item() == pytest.approx(expected["loss_of_step_12"].item(), rel=1e-5)
    assert metrics["learning_rate"] == expected["learning_rate_of_step_12"]
    for key, model in (
        ("weights_after_12_steps", trainer.model),
        ("averaged_weights_after_12_steps", trainer.eval_model),
    ):
        for weight, tensor in model.state_dict().items() if key in expected else ():
            tolerance = 1e-2 if WITHOUT_EFFECT.search(weight) else 1e-5
            torch.testing.assert_close(tensor, expected[key][weight], rtol=1e-5, atol=tolerance, msg=weight)
