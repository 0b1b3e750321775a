"""Does a data set give its classes away? Features that say nothing of substructure, and how well they classify.

found = audit_dataset(open_dataset("data/train"))
found.table                                       # one row a feature
found.words                                       # the verdict
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from lenslib.comparison import delong, holm
from lenslib.errors import InputError, unknown
from lenslib.resampling import no_surer, room_at_one

# of features that substructure cannot honestly set, and of the coarse outline of the ring, which it can set a little
KINDS = ("trivial", "morphology")
ALL = "all together"
FOLDS = 5
LEVEL = 0.05
# no interval may reach further above one half, or an audit that finds nothing has looked at too few images
TOLERANCE = 0.07
LEAST = 10  # images of either class: two a fold
RINGS = 10  # of the radial profile
# images whose features are measured at once
_AT_ONCE = 256


def trivial_features(images: np.ndarray, pixel_scale: float) -> pd.DataFrame:
    """Numbers anyone can measure without looking for substructure, one row an image.

    images: [n, h, w]. `brightness` features depend on exposure and noise. `shape` features depend on the size and
    outline of the ring, so on the mass of the lens: they tell classes apart where one class is heavier. Lengths in
    arcsec.
    """
    radius, x, y = _grid(images, pixel_scale)
    background, noise = _border(images)
    light = images - background[:, None, None]
    flux = light.sum((1, 2))
    # moments over pixels that clearly hold light, so that they are not moments of the noise
    bright = np.where(light > 3 * noise[:, None, None], light, 0)
    weight = np.maximum(bright.sum((1, 2)), 1e-12)

    def mean(quantity: np.ndarray) -> np.ndarray:
        return (bright * quantity).sum((1, 2)) / weight

    return pd.DataFrame(
        {
            "brightness: total flux": flux,
            "brightness: peak": light.max((1, 2)),
            "brightness: background level": background,
            "brightness: background noise": noise,
            "shape: mean radius": mean(radius),
            "shape: radius scatter": np.sqrt(np.maximum(mean(radius**2) - mean(radius) ** 2, 0)),
            "shape: area": (bright > 0).sum((1, 2)) * pixel_scale**2,
            "shape: centroid": np.hypot(mean(x), mean(y)),
            "shape: quadrupole": np.hypot(mean(x**2 - y**2), 2 * mean(x * y)) / np.maximum(mean(radius**2), 1e-12),
        }
    )


def _grid(images: np.ndarray, pixel_scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Radius, x and y [h, w] of the pixels from the image's centre, in arcsec."""
    height, width = images.shape[1:]
    y, x = np.mgrid[:height, :width] * float(pixel_scale)
    x, y = x - x.mean(), y - y.mean()
    return np.hypot(x, y), x, y


def _border(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Level and scatter [n] of the pixels along the edge."""
    height, width = images.shape[1:]
    edge = np.ones((height, width), bool)
    edge[height // 15 : -(height // 15), width // 15 : -(width // 15)] = False
    return np.median(images[:, edge], axis=1), images[:, edge].std(1)


def ring_radius(images: np.ndarray, pixel_scale: float) -> np.ndarray:
    """Einstein radii [n] in arcsec of images [n, h, w]: the constant term of the ring fitted to the light.

    To first order in what breaks the symmetry of a lens, the images of a source near its axis lie on a curve
    r(phi) = theta_E + f(phi) (Alard 2007, MNRAS 382, L58). Here f = a cos phi + b sin phi + c cos 2 phi + d sin 2 phi:
    a and b are the source's place, c and d the ellipticity and the shear. The curve is fitted by least squares to all
    pixels above a quarter of the 99.5th percentile (and three times the border's scatter), weighted with their light.
    It needs no recipe, so any set can be audited; light of the lens galaxy, where it is left in, draws it inwards.
    """
    radius, x, y = (part.ravel() for part in _grid(images, pixel_scale))
    phi = np.arctan2(y, x)
    terms = np.stack([np.ones_like(phi), np.cos(phi), np.sin(phi), np.cos(2 * phi), np.sin(2 * phi)], 1)
    background, noise = _border(images)
    light = (images - background[:, None, None]).reshape(len(images), -1)
    threshold = np.maximum(0.25 * np.quantile(light, 0.995, axis=1), 3 * noise)
    weight = np.where(light > threshold[:, None], light, 0).astype(np.float64)
    weight /= np.maximum(weight.sum(1, keepdims=True), 1e-300)
    products = (terms[:, :, None] * terms[:, None]).reshape(len(terms), -1)
    # a little damping, for the few pixels of a faint image do not settle five terms
    normal = (weight @ products).reshape(-1, 5, 5) + np.diag([1e-9, 1e-3, 1e-3, 1e-3, 1e-3])
    return np.linalg.solve(normal, (weight @ (terms * radius[:, None]))[:, :, None])[:, 0, 0]


def radial_profile(images: np.ndarray, pixel_scale: float) -> np.ndarray:
    """The share of an image's light in each of `RINGS` rings of one width about its centre, [n, RINGS]."""
    radius, x, _ = _grid(images, pixel_scale)
    ring = (radius / (x.max() + pixel_scale / 2) * RINGS).astype(int).ravel()
    inside = (ring[:, None] == np.arange(RINGS)).astype(np.float64)
    light = (images - _border(images)[0][:, None, None]).reshape(len(images), -1) @ inside
    return light / np.maximum(np.abs(light).sum(1, keepdims=True), 1e-300)


def image_features(images: np.ndarray, pixel_scale: float) -> pd.DataFrame:
    """What an audit measures of images [n, c, h, w]; columns (kind, feature, part), the features of each channel."""
    columns, channels = {}, images.shape[1]
    for k in range(channels):
        channel, said = np.asarray(images[:, k], np.float64), f", channel {k}" if channels > 1 else ""
        columns["morphology", f"Einstein radius{said}", 0] = ring_radius(channel, pixel_scale)
        for ring, share in enumerate(radial_profile(channel, pixel_scale).T):
            columns["morphology", f"radial profile{said}", ring] = share
        for name, values in trivial_features(channel, pixel_scale).items():
            group, name = name.split(": ")
            columns["trivial" if group == "brightness" else "morphology", name + said, 0] = values.to_numpy()
    return pd.DataFrame(columns)


def file_features(data) -> pd.DataFrame:
    """What the files of a data set say before an image is looked at; columns as of `image_features`.

    `file order`: the place of an image in its set, or, where classes have folders of their own, of its name among
    those of all classes (numbers that go on further in one class leak as well). Of images in files of their own also
    `file size` (bytes) and `dtype`. Of one file a class there is nothing to say.
    """
    if "file" not in data.params:
        return pd.DataFrame(_order(data.params["index"].to_numpy()))
    from lenslib.foreign import natural
    from lenslib.npy_files import read_npy

    paths = data.params["file"].map(Path)
    # a file that lies beside those of the other classes is named after its class
    if not all(len(path.parts) > 1 for path in paths):
        return pd.DataFrame(index=data.params.index)
    keys = list(zip(map(natural, paths), data.params["file_index"], strict=True))
    rank = {key: k for k, key in enumerate(sorted(set(keys)))}
    columns = _order(np.array([rank[key] for key in keys]))
    if (data.params.groupby("file").size() == 1).all():
        files = [data.folder / path for path in paths]
        columns["trivial", "file size", 0] = np.array([file.stat().st_size for file in files], float)
        kinds = [str(read_npy(file, mapped=True).dtype) for file in files]
        columns["trivial", "dtype", 0] = pd.factorize(np.array(kinds), sort=True)[0].astype(float)
    return pd.DataFrame(columns)


def _order(place: np.ndarray) -> dict[tuple, np.ndarray]:
    """Which sixth of the set a place is in, and what it leaves divided by six: sorted classes, and alternating ones.

    No finer, because where classes are shuffled in even shares, the images of a fold are the opposite of those beside
    them that the trees were fitted to, and the AUC of a fine place falls below one half.
    """
    place = place - place.min()
    sixth = 6 * place // (place.max() + 1)
    return {("trivial", "file order", k): part.astype(float) for k, part in enumerate((sixth, place % 6))}


def cross_validated_auc(positive: np.ndarray, columns: np.ndarray, seed: int = 0) -> dict[str, float]:
    """{"value", "low", "high", "p"}: AUC of boosted trees on features [n, k], judged on images they were not fitted to.

    The mean AUC of five folds. Its variance is that of one fold (DeLong et al. 1988, averaged over the folds) times
    1/5 + 1/4 (Nadeau & Bengio 2003, Machine Learning 52, 239, sec. 3): folds share most of what they are trained on,
    and 1/5 would take them for independent. p is two-sided, of one half, by the variance of random scores (Mann &
    Whitney 1947), because DeLong's vanishes in folds of a few images.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold

    if (columns == columns[0]).all():
        return {"value": 0.5, "low": 0.5, "high": 0.5, "p": 1.0}
    aucs, variances, of_chance = [], [], []
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(columns, positive):
        trees = HistGradientBoostingClassifier(
            max_iter=60,
            max_leaf_nodes=8,
            min_samples_leaf=max(2, min(20, len(train) // 15)),
            early_stopping=False,
            random_state=seed,
        )
        scores = trees.fit(columns[train], positive[train]).predict_proba(columns[test])[:, 1]
        (auc,), ((variance,),) = delong(positive[test], scores)
        aucs.append(auc)
        right = positive[test].sum()
        of_chance.append((len(test) + 1) / (12 * right * (len(test) - right)))
        # trees that say the same of all images know nothing: as uncertain as random scores
        variances.append(variance or (auc == 0.5) * of_chance[-1])
    auc, shared = float(np.mean(aucs)), 1 / FOLDS + 1 / (FOLDS - 1)
    error, chance = (float(np.sqrt(shared * np.mean(part))) for part in (variances, of_chance))
    low, high = np.clip(auc + norm.ppf([LEVEL / 2, 1 - LEVEL / 2]) * error, 0, 1)
    p = 2 * norm.sf(abs(auc - 0.5) / chance)
    room = room_at_one(positive.sum(), (~positive).sum())
    return no_surer({"value": auc, "low": float(low), "high": float(high), "p": float(p)}, room)


@dataclass(frozen=True)
class Audit:
    """table: one row a feature, and one for all of a kind: `kind`, `feature`, `value`, `low`, `high` (AUC with its own
    95 % interval), `p` and `p_holm`, corrected for all rows of the table. A row `leaks` where `p_holm` is below 0.05
    and the AUC above one half. count: the images; against: the class that is held against all others.
    """

    table: pd.DataFrame
    count: int
    against: str

    @property
    def leaking(self) -> pd.DataFrame:
        return self.table[self.table.leaks]

    @property
    def verdict(self) -> str:
        """leaks, clear, or too few to tell."""
        if len(self.leaking):
            return "leaks"
        return "clear" if (self.table.high <= 0.5 + TOLERANCE).all() else "too few to tell"

    @property
    def words(self) -> str:
        """The verdict, on what it rests, and what it does not exclude."""
        what = f"{self.count:,} images, {self.against} against the rest, {len(self.table)} AUCs looked at (Holm)"
        if self.verdict == "leaks":
            found = []
            for kind, rows in self.leaking.groupby("kind", sort=False):
                rows = rows.sort_values("value", ascending=False)
                of = "" if kind == "trivial" else ", which substructure may honestly set a little"
                found.append(
                    f"{kind} features{of}: " + ", ".join(f"{r.feature} {r.value:.3f}" for r in rows.itertuples())
                )
            return f"leaks: {'; '.join(found)} ({what})"
        if self.verdict == "clear":
            return f"clear: no feature tells the classes apart, and none is above {self.table.high.max():.3f} ({what})"
        return f"too few to tell: nothing was found, but an AUC of {self.table.high.max():.2f} could hide ({what})"

    def metrics(self) -> dict:
        """For a record: the AUC of each feature and of all of a kind, which of them leak, and the verdict."""
        found = {"verdict": self.verdict, "words": self.words, "count": self.count, "looked_at": len(self.table)}
        for kind, rows in self.table.groupby("kind", sort=False):
            whole, single = rows[rows.feature == ALL].iloc[0], rows[rows.feature != ALL]
            names = single.feature.str.replace(", ", "_").str.replace(" ", "_")
            rows_of = zip(names, single.iterrows(), strict=True)
            found |= {kind: _metric(whole)} | {f"{kind}_{name}": _metric(row) for name, (_, row) in rows_of}
            found[f"{kind}_leaks"] = ", ".join(single.feature[single.leaks]) or "none"
        return found


def _metric(row: pd.Series) -> dict[str, float]:
    return {name: float(row[name]) for name in ("value", "low", "high")}


def audit(
    labels: np.ndarray, features: pd.DataFrame, classes: tuple[str, ...], against: str | None = None, seed: int = 0
) -> Audit:
    """How well each feature, and all of a kind, tell the images of one class from all others.

    labels: int [n]; features: [n rows], columns (kind, feature, part), the parts of one feature judged together;
    `against` is the class held against all others, by default the first of `classes` that there is. InputError for a
    class that is not there, images of one class, or fewer than 10 images on either side.
    """
    present = [name for k, name in enumerate(classes) if (labels == k).any()]
    against = against or (present[0] if present else None)
    if against not in present:
        raise InputError(f"no images of '{against}': the classes are {', '.join(present)}")
    positive = labels != classes.index(against)
    if len(present) < 2:
        raise InputError(f"all {len(labels)} images are of the class {against}: an audit needs two classes")
    if min(positive.sum(), (~positive).sum()) < LEAST:
        few = f"{(~positive).sum()} images of {against} and {positive.sum()} of others"
        raise InputError(f"{few} are too few to audit: give {LEAST} or more of each")
    rows = []
    for kind in (kind for kind in KINDS if kind in features):
        own = features[kind]
        groups = {name: own[name].to_numpy() for name in dict.fromkeys(own.columns.get_level_values(0))}
        for name, columns in (groups | {ALL: own.to_numpy()}).items():
            rows.append({"kind": kind, "feature": name} | cross_validated_auc(positive, columns, seed))
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table.p)
    table["leaks"] = (table.p_holm < LEVEL) & (table.value > 0.5)
    return Audit(table, len(labels), against)


def audit_dataset(data, count: int | None = None, against: str | None = None, seed: int = 0) -> Audit:
    """The audit of an opened data set, ours or another's: of its files and of its images, `count` of them spread over
    the set (all, if None); see `audit`. InputError for a count below 1.
    """
    wanted, features = _measured(data, count)
    return audit(data.labels[wanted], features, data.classes, against, seed)


def auc_of_kind(data, kind: str, seed: int = 0) -> dict[str, float]:
    """{"value", "low", "high"}: the AUC of all features of a kind together, as `audit_dataset` finds it for a whole
    data set, without those of each feature alone, which take most of its time. InputError for an unknown kind."""
    if kind not in KINDS:
        raise unknown("kind of feature", kind, KINDS)
    found = cross_validated_auc(data.labels != data.labels.min(), _measured(data)[1][kind].to_numpy(), seed)
    return {name: found[name] for name in ("value", "low", "high")}


def _measured(data, count: int | None = None) -> tuple[np.ndarray, pd.DataFrame]:
    """Which images are audited, int [n], and the features of these images and their files."""
    from tqdm import tqdm

    if count is not None and count < 1:
        raise InputError(f"count must be at least 1, not {count}")
    wanted = np.linspace(0, len(data) - 1, min(count or len(data), len(data))).round().astype(int)
    firsts = tqdm(range(0, len(wanted), _AT_ONCE), desc="measure images", delay=2, leave=False, disable=None)
    scale = data.recipe.instrument.pixel_scale
    parts = [image_features(np.asarray(data.images[wanted[k : k + _AT_ONCE]]), scale) for k in firsts]
    features, of_files = pd.concat(parts, ignore_index=True), file_features(data).iloc[wanted]
    for name in of_files:
        features[name] = of_files[name].to_numpy()
    return wanted, features
