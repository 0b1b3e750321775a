"""`lenslib benchmark`: a user's own model beside the networks on record."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from lenslib.errors import InputError
from lenslib.tables import print_table

_ABOUT = """\
FILE is an ONNX file (one input, images float32 [n, c, h, w]; its first output, probabilities [n, classes]), or a Python
file with a function `model(recipe)` that returns a torch network or a function of such images. A Python file is your
own code and runs as such, with your rights, in a process of its own that is shown no labels; an ONNX file of others is
only read by onnxruntime. Exit code: 0 where every recipe was judged, 1 where some were not, 2 where none was.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _ABOUT
    parser.add_argument("file", type=Path, help="FILE.onnx, or FILE.py with a function model(recipe)")
    parser.add_argument("--recipe", action="append", metavar="NAME", help="may be repeated (default: all on record)")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--profile", help="whose records (default: of each recipe the best that there is)")
    parser.add_argument("--name", help="of the model (default: that of the file)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="data sets; what is not there is drawn again")
    parser.add_argument("--out", type=Path, default=Path("benchmark"), metavar="DIR", help="for NAME.png")
    parser.add_argument("--logits", action="store_true", help="the model gives logits: take their softmax")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="show it normalised images of this size (default: raw ones)"
    )
    parser.add_argument("--crop", type=int, metavar="PIXELS", help="and of them the central square of so many pixels")
    parser.add_argument("--first", type=int, metavar="N", help="a quick look at N images; nothing is recorded")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="a recipe, start included")
    parser.add_argument("--memory", type=float, default=8, metavar="GB", help="that the model may take (default: 8)")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="images at once (default: 128)")
    parser.add_argument("--json", action="store_true")


def run(options) -> int:
    """0, 1 where some recipes have no scores, 2 where none has."""
    from lenslib.benchmark import benchmark, figure, title
    from lenslib.benchmark_process import Submitted
    from lenslib.ceiling import ceiling_of
    from lenslib.records import Records

    for name, least in (("timeout", 0), ("memory", 0), ("batch_size", 0), ("image_size", 0), ("crop", 0), ("first", 9)):
        value = getattr(options, name)
        if value is not None and not least < value < 1e6:
            raise InputError(f"--{name.replace('_', '-')} must be above {least} and below a million, not {value:g}")
    model = Submitted(options.file, options.logits, options.timeout, options.memory, options.batch_size)
    judged = benchmark(
        model, options.results, options.recipe, options.profile, options.name, options.data, options.image_size,
        options.crop, options.first,
    )  # fmt: skip
    records = Records(options.results)
    ceilings = {one.recipe: ceiling_of(records, one.recipe) for one in judged}
    drawn = figure(judged, {title(one): ceilings[one.recipe] for one in judged})
    place = options.out / f"{options.name or options.file.stem}.png"
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        drawn.savefig(place, dpi=150)
    except OSError as error:
        raise InputError(f"cannot write '{place}': {error.strerror}") from None
    _print(judged, ceilings, place, options)
    failed = sum(bool(one.failed) for one in judged)
    return 0 if not failed else 1 if failed < len(judged) else 2


def _print(judged, ceilings, place, options) -> None:
    if options.json:
        plain = [asdict(one) | {"pairs": [] if one.pairs is None else one.pairs.to_dict("records")} for one in judged]
        print(json.dumps({"figure": str(place), "recipes": plain}, indent=1, default=float))
        return
    from lenslib.benchmark import YOURS
    from lenslib.ceiling import share_text

    rows = [
        {"recipe": one.recipe, "model": row["model"], "macro_auc": row["value"], "low": row["low"], "high": row["high"]}
        | {"share_of_ceiling": share_text(row, ceilings[one.recipe]), "weights": _known(row["weights"], ",.0f")}
        | {"images/s": _known(row["images_per_second"], ",.0f")}
        for one in judged
        for row in one.rows
    ]
    name = YOURS + (options.name or options.file.stem)
    for one in judged:
        if one.failed:
            blank = dict.fromkeys(rows[0], "") | {"recipe": one.recipe, "model": name}
            rows.append(blank | {"images/s": f"no scores: {one.failed}"})
    print_table(rows, False)
    pairs = [
        {"recipe": one.recipe, "yours less": pair["second"], "difference": pair["difference"], "low": pair["low"]}
        | {"high": pair["high"], "p_auc_holm": pair["p_bootstrap_holm"], "yours alone right": pair["only_first"]}
        | {"other alone right": pair["only_second"], "p_mcnemar_holm": pair["p_mcnemar_holm"]}
        for one in judged
        if one.pairs is not None
        for pair in one.pairs.to_dict("records")
    ]
    if pairs:
        print()
        print_table(pairs, False)
    print()
    for one in judged:
        if not one.exact and not options.first:
            print(f"{one.recipe}: the test images were drawn again, with pixels that may differ by rounding")
    print(f"{place}: the figure" + ("" if options.first else f"; records under {options.results}"))


def _known(value, form: str) -> str:
    return "" if value is None else format(value, form)
