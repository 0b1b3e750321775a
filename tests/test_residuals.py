"""Residual data sets: what a fit leaves is noise where there is no substructure, and a set as any other."""

import numpy as np
import pytest
import torch

from lenslib.classification import train_classifier
from lenslib.cli import main
from lenslib.dataset import open_dataset, write_dataset
from lenslib.errors import InputError
from lenslib.residuals import CHANNELS, write_residuals
from lenslib.training import Settings


@pytest.fixture(scope="module")
def data(small_matched, tmp_path_factory):
    folder = tmp_path_factory.mktemp("residuals") / "data"
    return write_dataset(small_matched({"substructure.mass_fraction": 0.03}), 36, 5, folder, start=7, progress=False)


@pytest.fixture(scope="module")
def residuals(data):
    return write_residuals(data, data.folder.parent / "residuals", templates=2048, progress=False)


def test_images_keep_their_order_labels_and_parameters(data, residuals):
    opened = open_dataset(residuals.folder)
    assert opened.digest == residuals.digest
    assert opened.recipe.name == "matched_hst_residual"
    assert opened.images.shape == (36, 4, 40, 40)
    for name in data.params:
        np.testing.assert_array_equal(opened.params[name], data.params[name])
    # the first channel is the image over its noise: with that of the bare sky where there is no light
    corner = data.images[:, 0, :3, :3] / data.params["background_rms"].to_numpy()[:, None, None]
    np.testing.assert_allclose(opened.images[:, 0, :3, :3], corner, rtol=0.2, atol=0.1)


def test_a_smooth_lens_leaves_noise_of_deviation_one(residuals):
    smooth = residuals.params["fit_good"].to_numpy() & (residuals.labels == 0)
    assert smooth.sum() >= 8
    left = residuals.images[smooth, 1]
    # 15 of 1600 numbers of each image are fitted
    assert left.std() == pytest.approx(np.sqrt(1 - 15 / 1600), abs=4 / np.sqrt(2 * left.size))
    assert abs(left.mean()) < 5 / np.sqrt(left.size)
    chi_square = residuals.params["fit_chi_square"].to_numpy()
    assert chi_square[residuals.labels > 0].mean() > chi_square[smooth].mean()


def test_networks_train_on_image_and_residual(residuals):
    trained = train_classifier(residuals, "small_cnn", 40, Settings(epochs=1, batch_size=8))
    assert torch.isfinite(trained.model(torch.zeros(2, 4, 40, 40))).all()


def test_what_networks_see_keeps_its_scale(residuals):
    seen, _ = residuals.prepared(40)
    assert residuals.units == open_dataset(residuals.folder).units == "deviations"
    torch.testing.assert_close(seen.sinh(), torch.from_numpy(np.array(residuals.images)), rtol=1e-4, atol=1e-4)


def test_a_missing_mass_shows_in_the_significance(residuals):
    """Of smooth lenses it is noise of deviation one."""
    seen = residuals.params["fit_good"].to_numpy()
    highest = residuals.images[:, CHANNELS.index("significance")].max((1, 2))
    smooth = residuals.labels == 0
    assert np.median(highest[~smooth]) > 1.5 * np.median(highest[smooth & seen])


def test_the_command_writes_the_same_set(data, residuals, tmp_path, capsys):
    command = ["fit", str(data.folder), "--out", str(tmp_path / "again"), "--templates", "2048"]
    for code, said in ((0, residuals.digest), (2, "not empty")):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == code
        written = capsys.readouterr()
        assert said in written.out + written.err


def test_what_cannot_be_fitted_is_said(residuals, training_data, tmp_path):
    with pytest.raises(InputError, match="one band"):
        write_residuals(residuals, tmp_path / "twice")
    with pytest.raises(InputError, match="not that of photons"):
        write_residuals(training_data, tmp_path / "deeplense", templates=96)
    assert not list(tmp_path.iterdir())
