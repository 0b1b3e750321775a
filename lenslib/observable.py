"""What no regression can learn: targets that images do not show, and the errors that labels force on every method."""

import warnings

import numpy as np

from lenslib.information import UnobservableWarning, check_targets
from lenslib.targets import Targets

# scenes whose Fisher matrices tell whether targets can be seen
CHECKED = 4


def hidden_targets(recipe, targets: Targets) -> dict[str, float]:
    """Targets that most images of a recipe do not show, with the shares that do not, by the Fisher matrices of a few.

    Warns (`UnobservableWarning`) as `information.check_targets` of these, and of labels of which an image has two.
    Amplitudes follow from place and Einstein radius, which are asked for in their stead. Masses of substructure, which
    are no parameters of a smooth image, are not checked.
    """
    if targets.kind not in ("parameters", "raw", "amplitudes"):
        return {}
    asked = ("x", "y", "einstein_radius") if targets.kind == "amplitudes" else targets.names
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnobservableWarning)
        shares = check_targets(recipe, asked, CHECKED, ordered=targets.kind == "parameters")
    # theta of the round sources among others is not judged
    hidden = {name: share for name, share in shares.items() if share > 0.5}
    two_labels = any("two labels" in str(warning.message) for warning in caught)
    if hidden or two_labels:
        for warning in caught:
            warnings.warn(str(warning.message), UnobservableWarning, stacklevel=2)
    return dict.fromkeys(targets.names, max(hidden.values())) if hidden and targets.kind == "amplitudes" else hidden


def least_errors(recipe, count: int = 20000, seed: int = 0) -> dict[str, dict[str, float]]:
    """Least `mae` and `mse` of sigma1, sigma2 and theta that any method has on labels as a roulette recipe draws them.

    One image has several labels: theta and theta + 180; the two sigmas exchanged and theta + 90; any theta for a round
    source. Those that the recipe draws are equally likely, and who sees the image cannot tell them apart: the best
    answer is their median (their mean, for squares). Errors are plain differences of labels, as drawn.
    """
    size = recipe.chunk_size
    drawn = [recipe.draw(seed, chunk) for chunk in range(-(-count // size))]
    labels = {name: np.concatenate([part[name] for part in drawn])[:count] for name in ("sigma1", "sigma2", "theta")}
    low, high = recipe.sampling.theta
    angles, apart = np.arange(low, high + 1), np.abs(labels["sigma1"] - labels["sigma2"])
    errors = np.zeros((count, 2, 2))  # of a sigma and of theta, mae and mse
    for angle in np.unique(labels["theta"]):
        mine = labels["theta"] == angle
        same, twin = (angles[(angles - angle - turn) % 180 == 0] for turn in (0, 90))
        share = len(twin) / (len(same) + len(twin))
        errors[mine, 0, 0], errors[mine, 0, 1] = (
            min(share, 1 - share) * apart[mine],
            share * (1 - share) * apart[mine] ** 2,
        )
        errors[mine, 1] = _spread(np.concatenate([same, twin]))
    errors[apart == 0, 1] = _spread(angles)
    sigma, theta = (dict(zip(("mae", "mse"), errors[:, k].mean(0).tolist(), strict=True)) for k in range(2))
    return {"sigma1": sigma, "sigma2": dict(sigma), "theta": theta, "theta_round": _means(errors, apart == 0)}


def _means(errors, rows) -> dict[str, float]:
    """What those rows alone make of the errors of theta."""
    return dict(zip(("mae", "mse"), (errors[:, 1] * rows[:, None]).mean(0).tolist(), strict=True))


def _spread(values) -> tuple[float, float]:
    return float(np.abs(values - np.median(values)).mean()), float(values.var())
