"""Figures that more than one chapter draws. Every function returns the figure."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe & Ito's palette, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")


def image_grid(
    images: np.ndarray,
    titles: Sequence[str],
    pixel_scale: float,
    columns: int = 4,
    stretch: str = "asinh",
    colour_map: str = "magma",
    limits: tuple[float, float] | None = None,
    unit: str = "",
) -> Figure:
    """Images [n, h, w] side by side with axes in arcsec; `limits` shares one colour scale, drawn as a bar."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.7 * columns, 2.75 * rows), squeeze=False, layout="constrained"
    )
    half = images.shape[-1] * pixel_scale / 2
    for axis in axes.flat[len(images) :]:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        low, high = limits or (np.percentile(image, 0.5), image.max())
        shown = axis.imshow(
            np.arcsinh(8 * (image - low) / (high - low)) if stretch == "asinh" else image,
            origin="lower",
            extent=(-half, half, -half, half),
            cmap=colour_map,
            **({} if stretch == "asinh" else {"vmin": low, "vmax": high}),
        )
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in axes[:, 0]:
        axis.set_ylabel("arcsec", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("arcsec", fontsize=8)
    if limits is not None and stretch != "asinh":
        figure.colorbar(shown, ax=axes, shrink=0.8, label=unit)
    return figure


def roc_curves(labels: np.ndarray, scores: np.ndarray, classes: Sequence[str]) -> Figure:
    """One-against-rest ROC curves, the false-positive rate on a logarithmic axis as well."""
    from sklearn.metrics import roc_auc_score, roc_curve

    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for k, name in enumerate(classes):
        false_positive, true_positive, _ = roc_curve(labels == k, scores[:, k])
        label = f"{name} (AUC {roc_auc_score(labels == k, scores[:, k]):.4f})"
        for axis in axes:
            axis.plot(false_positive, true_positive, color=COLOURS[k], label=label)
    axes[1].set(xscale="log", xlim=(1 / len(labels), 1))
    for axis in axes:
        axis.set(xlabel="false-positive rate", ylabel="true-positive rate")
    axes[0].legend()
    return figure


def confusion(labels: np.ndarray, scores: np.ndarray, classes: Sequence[str]) -> Figure:
    """Confusion matrix in shares of each true class."""
    from sklearn.metrics import ConfusionMatrixDisplay

    figure, axis = plt.subplots(figsize=(4.4, 3.8), layout="constrained")
    ConfusionMatrixDisplay.from_predictions(
        labels,
        scores.argmax(1),
        labels=range(len(classes)),
        display_labels=classes,
        normalize="true",
        values_format=".3f",
        cmap="Blues",
        ax=axis,
    )
    return figure


def judgements(
    answers: Mapping[str, tuple[np.ndarray, np.ndarray]], classes: Sequence[str], columns: int = 4
) -> Figure:
    """ROC curves of each network, one class against the rest, over its confusion matrix in shares of each true class.

    answers: name -> labels [n] and scores [n, classes]. False-positive rates are on a logarithmic axis.
    """
    from sklearn.metrics import confusion_matrix, roc_curve

    columns = min(columns, len(answers))
    rows = -(-len(answers) // columns)
    figure, axes = plt.subplots(
        2 * rows, columns, figsize=(2.6 * columns, 4.6 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for place, (name, (labels, scores)) in enumerate(answers.items()):
        above, below = axes[2 * (place // columns) : 2 * (place // columns) + 2, place % columns]
        above.axis("on"), below.axis("on")
        for k, label in enumerate(classes):
            false_positive, true_positive, _ = roc_curve(labels == k, scores[:, k])
            above.plot(false_positive, true_positive, color=COLOURS[k], lw=1, label=label)
        above.set(xscale="log", xlim=(1 / len(labels), 1), ylim=(0, 1))
        above.set_title(fill(name, 30), fontsize=9)
        shares = confusion_matrix(labels, scores.argmax(1), labels=range(len(classes)), normalize="true")
        below.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (true, said), share in np.ndenumerate(shares):
            colour = "w" if share > 0.6 else "k"
            below.text(said, true, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=8)
        below.set_xticks(range(len(classes)), classes, fontsize=7)
        below.set_yticks(range(len(classes)), classes, fontsize=7)
        above.tick_params(labelsize=7)
        if not place % columns:
            above.set_ylabel("true-positive rate", fontsize=8)
            below.set_ylabel("true class", fontsize=8)
    axes[0, 0].legend(fontsize=7)
    return figure


def reliability(diagrams: Mapping[str, "object"]) -> Figure:
    """Accuracy against confidence with 95 % intervals, and the images in each bin below.

    diagrams: label -> data frame of `lenslib.calibration.reliability`.
    """
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(4.8, 5.4), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    above.plot((0, 1), (0, 1), ":", color="grey", label="right as often as it says")
    for colour, (label, bins) in zip(COLOURS, diagrams.items(), strict=False):
        errors = [bins["accuracy"] - bins["low"], bins["high"] - bins["accuracy"]]
        above.errorbar(
            bins["confidence"], bins["accuracy"], yerr=errors, fmt="o", ms=4, capsize=2, color=colour, label=label
        )
        below.hlines(bins["images"], bins["from"], bins["to"], color=colour, linewidth=2)
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right")
    above.legend(fontsize=8)
    below.set(xlabel="confidence: the largest probability", ylabel="images", yscale="log")
    return figure


def loss_curves(
    histories: Mapping[str, "object"], loss: str = "cross entropy", score: str = "validation macro AUC"
) -> Figure:
    """Training and validation loss, and validation score, by epoch; `histories` maps a label to a data frame."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for colour, (label, history) in zip(cycle(COLOURS), histories.items(), strict=False):
        axes[0].plot(history["epoch"], history["train_loss"], "--", color=colour)
        axes[0].plot(history["epoch"], history["val_loss"], "-", color=colour, label=label)
        axes[1].plot(history["epoch"], history["val_score"], "-o", ms=3, color=colour, label=label)
    axes[0].set(xlabel="epoch", ylabel=f"{loss} (dashed: training)", yscale="log")
    axes[1].set(xlabel="epoch", ylabel=score)
    axes[1].legend(fontsize=8)
    return figure


def loss_multiples(
    histories: Mapping[str, "object"],
    columns: int = 4,
    loss: str = "cross entropy",
    score: str = "validation macro AUC",
) -> Figure:
    """As `loss_curves`, a small panel each: loss (dashed: training) to the left, validation score to the right."""
    columns = min(columns, len(histories))
    rows = -(-len(histories) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 2 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(histories) :]:
        axis.axis("off")
    for axis, (label, history) in zip(axes.flat, histories.items(), strict=False):
        scale = axis.twinx()
        axis.plot(history["epoch"], history["train_loss"], "--.", ms=4, color=COLOURS[0])
        axis.plot(history["epoch"], history["val_loss"], "-o", ms=3, color=COLOURS[0])
        scale.plot(history["epoch"], history["val_score"], "-s", ms=3, color=COLOURS[1])
        scale.set_ylim(0.4, 1.02)
        axis.set_title(fill(label, 34), fontsize=8)
        for side, colour in ((axis, COLOURS[0]), (scale, COLOURS[1])):
            side.tick_params(axis="y", labelsize=7, colors=colour)
        axis.tick_params(axis="x", labelsize=7)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel(f"{loss} (dashed: training)", fontsize=9, color=COLOURS[0])
    figure.text(1.0, 0.5, score, rotation=270, ha="left", va="center", fontsize=9, color=COLOURS[1])
    return figure


def intervals(
    rows: Sequence[tuple[str, Mapping[str, float]]], label: str, ticks: Mapping[str, Sequence[float]] | None = None
) -> Figure:
    """Values with their intervals, one row each; `rows` holds (name, {"value", "low", "high"}).

    `ticks`: by name, values without intervals that stand in the same row.
    """
    figure, axis = plt.subplots(figsize=(7, 0.6 + 0.34 * len(rows)), layout="constrained")
    for place, (name, metric) in enumerate(rows):
        errors = [[metric["value"] - metric["low"]], [metric["high"] - metric["value"]]]
        axis.errorbar(metric["value"], -place, xerr=errors, fmt="o", ms=4, capsize=3, color=COLOURS[0])
        more = (ticks or {}).get(name, ())
        axis.plot(more, [-place] * len(more), "|", ms=9, color=COLOURS[4])
    axis.set_yticks([-place for place in range(len(rows))], [name for name, _ in rows], fontsize=8)
    axis.set_xlabel(label)
    axis.grid(axis="x", alpha=0.3)
    return figure


def forest(
    panels: Mapping[str, Sequence[tuple[str, Mapping[str, float], bool]]],
    label: str,
    ceilings: Mapping[str, Mapping[str, float] | None] | None = None,
    others: Mapping[str, Sequence[float]] | None = None,
) -> Figure:
    """Values with their intervals, and both in numbers, one panel a title; rows: (name, {"value", "low", "high"},
    whether to mark it). `ceilings`: by title, a band that no value should pass. `others`: by title, values without
    intervals, in a row of their own."""
    ceilings, others = ceilings or {}, others or {}
    lengths = [len(rows) + (title in others) for title, rows in panels.items()]
    figure, axes = plt.subplots(
        len(panels),
        figsize=(8, 0.7 + sum(0.55 + 0.27 * length for length in lengths)),
        height_ratios=[length + 0.6 for length in lengths],
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, rows), length in zip(axes[:, 0], panels.items(), lengths, strict=True):
        if (bounds := ceilings.get(title)) is not None:
            axis.axvspan(bounds["low"], bounds["high"], color=COLOURS[2], alpha=0.25, lw=0)
            axis.axvline(bounds["value"], color=COLOURS[2], lw=1)
        for place, (_, metric, marked) in enumerate(rows):
            errors = [[metric["value"] - metric["low"]], [metric["high"] - metric["value"]]]
            style = {"fmt": "D" if marked else "o", "color": COLOURS[4 if marked else 0], "ms": 5 if marked else 4}
            axis.errorbar(metric["value"], -place, xerr=errors, capsize=3, **style)
            text = f"{metric['value']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}]"
            axis.annotate(text, (1.01, -place), xycoords=("axes fraction", "data"), va="center", fontsize=7)
        if title in others:
            axis.plot(others[title], [-len(rows)] * len(others[title]), "|", color="grey", ms=9)
        names = [name for name, *_ in rows] + (["published"] if title in others else [])
        axis.set_yticks([-place for place in range(length)], names, fontsize=8)
        axis.set_ylim(0.6 - length, 0.6)
        axis.set_title(title, fontsize=9, loc="left")
        axis.axvline(0.5, color="grey", ls=":", lw=1)
        axis.grid(axis="x", alpha=0.3)
    axes[-1, 0].set_xlabel(label)
    return figure


def bin_count(count: int, most: int = 41) -> int:
    """Bins of a histogram of so many values, an odd number by Rice's rule, so that few values make no comb."""
    return min(most, 1 + 2 * round(count ** (1 / 3)))


def deviations(values: Mapping[str, np.ndarray], middle: float = 0.9, most: int = 6) -> Figure:
    """Histograms of deviations [n] by name, the first `most`: all above, the `middle` share of them below."""
    names = list(values)[:most]
    figure, axes = plt.subplots(
        2, len(names), figsize=(2.1 * len(names) + 0.6, 4.2), squeeze=False, layout="constrained"
    )
    for (above, below), name in zip(axes.T, names, strict=True):
        shown = values[name][np.isfinite(values[name])]
        low, high = np.quantile(shown, [(1 - middle) / 2, (1 + middle) / 2])
        for axis, bounds in ((above, (shown.min(), shown.max())), (below, (low, high))):
            # one outline, which is drawn much faster than as many bars
            axis.hist(shown, bin_count(len(shown)), range=bounds, color=COLOURS[0], histtype="stepfilled")
            axis.axvline(shown.mean(), color=COLOURS[4], ls="--", lw=1)
            for side in (-1, 1):
                axis.axvline(shown.mean() + side * shown.std(), color=COLOURS[1], ls=":", lw=1)
            axis.set_xlim(*bounds)
            axis.tick_params(labelsize=7)
        above.set_yscale("log")
        above.set_title(name.replace("_", " "), fontsize=9)
    axes[0, 0].set_ylabel("images", fontsize=8)
    axes[1, 0].set_ylabel("images, the middle part", fontsize=8)
    figure.supxlabel("estimate less truth", fontsize=9)
    return figure


def against_truth(truth: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], most: int = 6) -> Figure:
    """Estimates against truths [n] by name, the first `most`."""
    names = list(found)[:most]
    figure, axes = plt.subplots(
        1, len(names), figsize=(2.1 * len(names) + 0.6, 2.4), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], names, strict=True):
        axis.plot(truth[name], found[name], ",", color=COLOURS[0])
        axis.axline((np.median(truth[name]),) * 2, slope=1, color=COLOURS[4], lw=0.8)
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.tick_params(labelsize=7)
    axes[0, 0].set_ylabel("estimate", fontsize=8)
    figure.supxlabel("truth", fontsize=9)
    return figure
