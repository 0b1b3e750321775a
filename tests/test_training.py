"""The training loop: it learns, it repeats itself, it turns images as it says, and it stops at nonsense."""

import numpy as np
import pytest
import torch
from torch import nn

from lenslib.augmentation import AUGMENTATIONS, augmented, draw_kinds, shift_images, turn_images
from lenslib.classification import train_classifier
from lenslib.errors import InputError
from lenslib.metrics import macro_auc
from lenslib.models import create_model
from lenslib.processes import open_fabric
from lenslib.settings import OPTIMIZERS, SCHEDULES, Settings
from lenslib.training import Resident, predict_logits, train

QUICK = Settings(epochs=3, batch_size=32, learning_rate=3e-3, ema=0.8)


def _blobs(n, seed):
    """Images of noise, half of them with a bright blob somewhere: trivially told apart, yet not by one pixel."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    y, x = np.mgrid[:32, :32]
    center = rng.uniform(6, 26, (2, n, 1, 1))
    blobs = 4 * np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / 8)
    images = rng.normal(size=(n, 32, 32)) + blobs * labels[:, None, None]
    return torch.from_numpy(images[:, None].astype(np.float32)), torch.from_numpy(labels)


def _network(seed=0):
    torch.manual_seed(seed)
    return create_model("small_cnn", 2, 32)


def test_it_learns_what_is_easy():
    trained = train(_network(), _blobs(400, 0), _blobs(60, 1), QUICK, macro_auc, device="cpu")
    images, labels = _blobs(300, 2)
    scores = predict_logits(trained.model, images).softmax(1).numpy()
    assert macro_auc(labels.numpy(), scores) > 0.95
    assert trained.history[-1]["train_loss"] < trained.history[0]["train_loss"]
    assert [row["epoch"] for row in trained.history] == [1, 2, 3]
    assert trained.device == "cpu"
    assert not trained.model.training


def test_the_same_seed_gives_the_same_weights(threads):
    threads(1)
    settings = Settings(epochs=2, batch_size=32, seed=4)
    same = [train(_network(), _blobs(96, 0), _blobs(32, 1), settings, macro_auc, device="cpu") for _ in range(2)]
    for one, other in zip(*(trained.model.state_dict().values() for trained in same), strict=True):
        assert torch.equal(one, other)
    other = Settings(epochs=2, batch_size=32, seed=5)
    differs = train(_network(), _blobs(96, 0), _blobs(32, 1), other, macro_auc, device="cpu")
    assert not torch.equal(same[0].model.head.weight, differs.model.head.weight)


def test_a_source_of_images_trains_as_the_images_do(threads):
    threads(1)
    images, asked = Resident(*_blobs(80, 0)), []

    class Source:
        def __len__(self):
            return 80

        def batches(self, epoch, batch_size, generator):
            asked.append((epoch, batch_size))
            return images.batches(epoch, batch_size, generator)

    settings = Settings(epochs=3, batch_size=32)
    one = train(_network(), _blobs(80, 0), _blobs(32, 1), settings, macro_auc, device="cpu")
    other = train(_network(), Source(), _blobs(32, 1), settings, macro_auc, device="cpu")
    assert asked == [(0, 32), (1, 32), (2, 32)]
    assert [row["train_loss"] for row in one.history] == [row["train_loss"] for row in other.history]
    for mine, theirs in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_every_resident_image_is_shown_once_an_epoch_in_a_new_order():
    labels = torch.arange(10)
    resident, generator = Resident(labels.view(-1, 1, 1, 1), labels), torch.Generator().manual_seed(0)
    epochs = []
    for epoch in range(2):
        batches = list(resident.batches(epoch, 4, generator))
        assert [len(part) for _, part in batches] == [4, 4, 2]
        for images, part in batches:
            assert torch.equal(images.flatten(), part)
        epochs.append(torch.cat([part for _, part in batches]).tolist())
    assert sorted(epochs[0]) == sorted(epochs[1]) == labels.tolist()
    assert epochs[0] != epochs[1]


def test_the_validation_set_chooses_the_epoch():
    validation, seen = _blobs(40, 1), []

    def score(labels, probabilities):
        np.testing.assert_array_equal(labels, validation[1].numpy())
        seen.append(probabilities)
        return (0.2, 0.9, 0.9, 0.4)[len(seen) - 1]

    settings = Settings(epochs=4, batch_size=32)
    trained = train(_network(), _blobs(96, 0), validation, settings, score, device="cpu")
    # the first of the two best
    assert trained.best["epoch"] == 2
    assert trained.best["val_score"] == max(row["val_score"] for row in trained.history)
    kept = predict_logits(trained.model, validation[0]).softmax(1).numpy()
    np.testing.assert_allclose(kept, seen[1], atol=1e-6)
    assert np.abs(kept - seen[3]).max() > 1e-4


def test_the_network_kept_has_the_moving_average_of_the_weights():
    training, validation = _blobs(32, 0), _blobs(8, 1)

    def run(ema):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(1024, 2))
        weights = [network[1].weight.detach().clone()]

        def score(*_):
            weights.append(network[1].weight.detach().clone())
            return len(weights)

        # one batch an epoch, so that the score sees the weights of every step
        settings = Settings(epochs=5, batch_size=32, learning_rate=0.01, ema=ema, augment="none")
        return train(network, training, validation, settings, score, device="cpu").model[1].weight, weights

    last, weights = run(0.0)
    torch.testing.assert_close(last, weights[-1])
    average = weights[0]
    for step, present in enumerate(weights[1:], start=1):
        # the average starts short: the decay grows to 0.4 by the fifth step
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * present
    assert not torch.allclose(average, last, atol=1e-4)
    torch.testing.assert_close(run(0.3)[0], average)


def test_training_says_nothing_but_its_progress(caplog):
    settings = Settings(epochs=1, precision="bf16-mixed")
    train(_network(), _blobs(8, 0), _blobs(8, 1), settings, macro_auc, device="cpu")
    assert not caplog.records


def test_the_eight_symmetries_are_distinct_and_a_group():
    image = torch.arange(9.0).view(1, 1, 3, 3)
    turned = [turn_images(image, kind) for kind in range(8)]
    pictures = {tuple(picture.ravel().tolist()) for picture in turned}
    assert torch.equal(turned[0], image)
    assert len(pictures) == 8
    for picture in turned:
        for kind in range(8):
            assert tuple(turn_images(picture, kind).ravel().tolist()) in pictures


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_are_groups(name):
    """Else an image and its turned copy would not be shown in the same ways."""
    image = torch.arange(9.0).view(1, 1, 3, 3)
    pictures = {tuple(turn_images(image, kind).ravel().tolist()) for kind in AUGMENTATIONS[name]}
    for first in AUGMENTATIONS[name]:
        for second in AUGMENTATIONS[name]:
            assert tuple(turn_images(turn_images(image, first), second).ravel().tolist()) in pictures


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_image_is_turned_in_its_place_and_evenly(name):
    kinds = AUGMENTATIONS[name]
    images = torch.arange(9.0).view(1, 1, 3, 3) + 10 * torch.arange(4000).view(-1, 1, 1, 1)
    turned = augmented(images, draw_kinds(len(images), kinds, torch.Generator().manual_seed(0)))
    hits = torch.stack([(turned == turn_images(images, kind)).all((1, 2, 3)) for kind in kinds])
    # every image is one of its own turns, so that labels stay right
    assert (hits.sum(0) == 1).all()
    expected = 4000 / len(kinds)
    assert ((hits.sum(1) - expected).abs() < 5 * np.sqrt(expected)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_shifted_by_its_own_whole_pixels(channels):
    """Numbered pixels tell where they come from: inside, one move for the whole image; at the border, its mirror."""
    numbered = torch.arange(channels * 63.0).reshape(1, channels, 7, 9).expand(2000, -1, -1, -1)
    shifted = shift_images(numbered, 2, torch.Generator().manual_seed(0))
    rows, columns = shifted[:, 0, 3, 4] // 9 - 3, shifted[:, 0, 3, 4] % 9 - 4
    moves = torch.stack([rows, columns], 1).long()
    kinds, counts = moves.unique(dim=0, return_counts=True)
    assert kinds.tolist() == [[down, right] for down in range(-2, 3) for right in range(-2, 3)]
    assert ((counts - 80).abs() < 5 * 80**0.5).all()
    mirrored = np.pad(numbered[0].numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
    for image, (down, right) in zip(shifted[:50], moves.tolist(), strict=False):
        np.testing.assert_array_equal(image, mirrored[:, 2 + down : 9 + down, 2 + right : 11 + right])


def test_a_shift_as_long_as_the_image_is_refused():
    with pytest.raises(InputError, match="below the 8 pixels"):
        shift_images(torch.zeros(1, 1, 8, 9), 8, torch.Generator())


@pytest.mark.parametrize(("patience", "epochs"), [(0, 8), (1, 3), (2, 6), (7, 8)])
def test_patience_ends_a_run_that_no_longer_improves(patience, epochs):
    """By scores on validation images alone: the best so far are epochs 1, 2 and 4."""
    scores = iter([0.1, 0.5, 0.4, 0.6, 0.6, 0.2, 0.3, 0.1])
    settings = Settings(epochs=8, batch_size=8, patience=patience)
    trained = train(_linear(), _sides(8, 0), _sides(8, 1), settings, Scored(scores), device="cpu")
    assert len(trained.history) == epochs
    assert trained.best["epoch"] == (2 if patience == 1 else 4)


def test_dropout_leaves_out_a_share_of_what_the_last_layer_sees():
    seen = []

    class Watched(nn.Linear):
        def forward(self, values):
            seen.append((self.training, values.detach().clone()))
            return super().forward(values)

    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 500), Watched(500, 1))
    settings = Settings(epochs=1, batch_size=64, dropout=0.25, augment="none")
    kept = train(network, _sides(64, 0), _sides(8, 1), settings, Numbers(), device="cpu").model
    (training, values), (evaluation, whole) = seen
    assert (training, evaluation) == (True, False)
    assert abs(float((values == 0).float().mean()) - 0.25) < 5 * (0.25 * 0.75 / values.numel()) ** 0.5
    assert not (whole == 0).any()
    seen.clear()
    kept.train()(_sides(64, 0)[0])
    assert not (seen[0][1] == 0).any(), "dropout stays behind after training"


def test_whole_batches_alone_are_compiled(monkeypatch):
    seen = []

    def compiled(network, device):
        return lambda images: seen.append((device, len(images))) or network(images)

    monkeypatch.setattr("lenslib.training.compiled", compiled)
    losses = []
    for choice in (True, False):
        settings = Settings(epochs=2, batch_size=16, compile=choice)
        trained = train(_linear(), _sides(40, 0), _sides(8, 1), settings, Numbers(), device="cpu")
        losses.append([row["train_loss"] for row in trained.history])
    assert seen == [("cpu", 16)] * 4
    assert losses[0] == losses[1]


def _hungry(limit):
    """A network that asks for more memory than any machine has where a batch is larger than `limit`."""

    class Hungry(nn.Linear):
        def forward(self, values):
            if len(values) > limit:
                torch.empty(2**48)
            return super().forward(values)

    return nn.Sequential(nn.Flatten(), Hungry(64, 1))


@pytest.mark.parametrize(
    ("limit", "said"), [(31, "of 64 images .* one of 16 does"), (3, "one of 2 does"), (1, "nor do two")]
)
def test_a_batch_too_large_for_memory_names_one_that_fits(limit, said):
    with pytest.raises(InputError, match=said) as error:
        train(_hungry(limit), _sides(64, 0), _sides(1, 1), Settings(batch_size=64), Numbers(), device="cpu")
    assert "\n" not in str(error.value)


def test_other_errors_of_a_network_are_its_own():
    class Broken(nn.Linear):
        def forward(self, values):
            raise RuntimeError("shapes cannot be multiplied")

    network = nn.Sequential(nn.Flatten(), Broken(64, 1))
    with pytest.raises(RuntimeError, match="multiplied"):
        train(network, _sides(8, 0), _sides(8, 1), QUICK, Numbers(), device="cpu")


@pytest.mark.parametrize(
    ("known", "precision"), [({"avx512_bf16": True}, "bf16-mixed"), ({"avx512_bf16": False}, "32-true")]
)
def test_bf16_only_where_the_processor_computes_it(monkeypatch, known, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known | {"cpu_name": "abacus", "avx2": True})
    assert open_fabric(Settings(), "cpu", "bf16-mixed").strategy.precision.precision == precision
    assert open_fabric(Settings(precision="bf16-mixed"), "cpu", "32-true").strategy.precision.precision == "bf16-mixed"


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_is_fused_where_gradients_can_still_be_bounded(optimizer):
    """Fabric refuses to bound those of scaled losses with a fused one, and None is torch's own fastest."""
    for precision, fused in (("auto", True), ("bf16-mixed", True), ("16-mixed", None)):
        built = OPTIMIZERS[optimizer]([nn.Parameter(torch.ones(1))], Settings(precision=precision))
        assert built.defaults["fused"] is fused


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("loss is nan", lambda weight, images: weight * torch.full((len(images), 2), float("nan"))),
        # finite, but at 0 the root has no slope
        ("gradient is nan", lambda weight, images: weight.abs().sqrt() + images.mean((1, 2, 3))[:, None]),
    ],
)
def test_what_is_not_finite_stops_the_run(said, answer):
    class Exploding(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, images):
            return answer(self.weight, images)

    with pytest.raises(FloatingPointError, match=f"{said} in batch 0 of epoch 1"):
        train(Exploding(), _blobs(8, 0), _blobs(8, 1), QUICK, macro_auc, device="cpu")


@pytest.mark.parametrize(
    "given",
    [
        {"epochs": 0},
        {"devices": 0},
        {"strategy": "deepspeed"},
        {"strategy": "fsdp"},
        {"strategy": "fsdp", "devices": 2, "precision": "64-true"},
        {"compile": True, "devices": 2},
        {"batch_size": 3, "devices": 4},
        {"batch_size": -1},
        {"learning_rate": 0.0},
        {"learning_rate": -1e-3},
        {"learning_rate": float("nan")},
        {"weight_decay": -0.1},
        {"warmup": 1.5},
        {"ema": 1.0},
        {"ema": -0.1},
        {"label_smoothing": 1.5},
        {"dropout": 1.0},
        {"shift": -1},
        {"patience": -1},
        {"checkpoint": -1},
        {"frozen": True},
        {"augment": "d5"},
        {"clip_norm": -1.0},
        {"optimizer": "adamax"},
        {"schedule": "linear"},
        {"loss": "cross_entropy"},
        {"precision": "8-bit"},
        {"seed": -1},
    ],
)
def test_bad_settings_are_named(given):
    with pytest.raises(InputError, match=next(iter(given))) as error:
        Settings(**given)
    assert "\n" not in str(error.value)


def test_images_that_do_not_fit_are_refused():
    images, labels = _blobs(8, 0)
    spoiled = images.clone()
    spoiled[3, 0, 0, 0] = float("nan")
    for training, validation, said in (
        ((images, labels[:-1]), (images, labels), "the training set"),
        ((images, labels), (images[:0], labels[:0]), "the validation set"),
        ((spoiled, labels), (images, labels), "not finite"),
    ):
        with pytest.raises(InputError, match=said):
            train(_network(), training, validation, QUICK, macro_auc, device="cpu")


def test_a_last_batch_is_never_one_image():
    images, labels = torch.arange(7.0).reshape(7, 1, 1, 1), torch.arange(7)
    batches = list(Resident(images, labels).batches(0, 3, torch.Generator().manual_seed(0)))
    assert [len(seen) for _, seen in batches] == [3, 4]
    assert sorted(torch.cat([seen for _, seen in batches]).tolist()) == list(range(7))
    assert all(torch.equal(pictures.ravel().long(), seen) for pictures, seen in batches)


def test_one_training_image_is_refused(training_data):
    with pytest.raises(InputError, match="train_count must be at least 2, not 1"):
        train_classifier(training_data, "small_cnn", 32, Settings(epochs=1), train_count=1)


class Numbers:
    """A task of one number an image, which changes its sign where left and right change places."""

    def loss(self, outputs, targets):
        return (outputs - targets).abs().mean()

    def judge(self, outputs, targets):
        loss = float(self.loss(outputs, targets))
        return {"val_loss": loss, "val_score": -loss, "val_worst": float((outputs - targets).abs().max())}

    def turned(self, targets, kind):
        return -targets if kind in (2, 4) else targets


class Scored(Numbers):
    """The same, judged by given scores."""

    def __init__(self, scores):
        self.scores = scores

    def judge(self, outputs, targets):
        return {"val_loss": 0.0, "val_score": next(self.scores)}


def _sides(n, seed):
    """Images with one bright column, and how far right of the middle it is, from -1 to 1."""
    place = torch.randint(8, (n,), generator=torch.Generator().manual_seed(seed))
    images = torch.zeros(n, 1, 8, 8)
    images[torch.arange(n), 0, :, place] = 1.0
    return images, ((place - 3.5) / 3.5)[:, None]


def _linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_numbers_are_learned_with_targets_that_turn_with_the_images(optimizer):
    rate = {"sgd": 0.05, "lion": 3e-3}.get(optimizer, 0.01)
    settings = Settings(
        epochs=20, batch_size=16, learning_rate=rate, weight_decay=0.0, augment="flips", optimizer=optimizer
    )
    trained = train(_linear(), _sides(128, 0), _sides(64, 1), settings, Numbers(), device="cpu")
    # always zero, which is all that unturned targets would leave, has a mean error of 0.57
    assert trained.best["val_loss"] < 0.1
    assert trained.best["val_worst"] >= trained.best["val_loss"]


def test_learning_rates_follow_the_schedule():
    rates = {}
    for schedule in SCHEDULES:
        settings = Settings(epochs=8, batch_size=16, learning_rate=0.01, warmup=0.0, augment="none", schedule=schedule)
        trained = train(_linear(), _sides(16, 0), _sides(8, 1), settings, Numbers(), device="cpu")
        rates[schedule] = [row["learning_rate"] for row in trained.history]
    assert rates["constant"] == [0.01] * 8
    assert rates["step"][0] == 0.01
    assert rates["step"][-1] == pytest.approx(0.001)
    assert rates["cosine"] == sorted(rates["cosine"], reverse=True)
    assert rates["cosine"][-1] == pytest.approx(0.0, abs=1e-9)


def test_the_norm_of_a_gradient_is_bounded():
    """A first step of plain gradient descent is as long as rate times norm."""
    lengths = {}
    for bound in (0.0, 1e-3):
        network = _linear()
        before = network[1].weight.detach().clone()
        settings = Settings(
            epochs=1, batch_size=16, learning_rate=0.5, weight_decay=0.0, ema=0.0, optimizer="sgd", clip_norm=bound
        )
        after = train(network, _sides(16, 0), _sides(8, 1), settings, Numbers(), device="cpu").model[1].weight.detach()
        lengths[bound] = float((after - before).norm())
    assert lengths[1e-3] < 0.5e-3 * 1.001
    assert lengths[0.0] > 10 * lengths[1e-3]
