"""`lenslib`: the library from the command line. Bad input ends with one line on standard error and exit code 2."""

import argparse
import re
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

from lenslib.errors import InputError
from lenslib.tables import print_table


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exits 0, 1 where some files of many failed, 2 for bad input."""
    options = _parser().parse_args(arguments)
    try:
        code = options.handler(options)
    # a loss that is not finite comes from the settings or the images given
    except (InputError, FloatingPointError) as error:
        if not (isinstance(error, FloatingPointError) and _is_helper()):
            print(f"lenslib: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("lenslib: stopped", file=sys.stderr)
        code = 130
    sys.exit(code or 0)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """One line, without the usage text, which `--help` shows."""
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lenslib", description="Dark-matter substructure in strong lenses: data, models, metrics.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    from lenslib import bench, commands_audit, commands_benchmark, commands_weights, notebooks, prediction

    def command(name: str, handler, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(handler=handler)
        return added

    for name, handler in (("recipes", _recipes), ("models", _models)):
        command(name, handler, f"list the {name}").add_argument("--json", action="store_true")
    _add_simulate(command("simulate", _simulate, "draw a data-set folder"))
    join = command("join", _join, "make one data-set folder of the shards of a set")
    join.add_argument("folders", type=Path, nargs="+", help="data-set folders that `lenslib simulate --shard` wrote")
    join.add_argument("--out", type=Path, required=True, help="new folder")
    fit = command("fit", _fit, "fit smooth lenses to a data set and write images and residuals as a new one")
    fit.add_argument("data", type=Path, help="data-set folder")
    fit.add_argument("--out", type=Path, required=True, help="new folder")
    fit.add_argument("--templates", type=int, default=16384, help="smooth lenses that the search starts from")
    fit.add_argument(
        "--start",
        choices=("search", "truth"),
        default="search",
        help="truth: fits begin with the parameters drawn, the same minimum sooner, for sets to train on",
    )
    _add_train(command("train", _train, "train a network, on a folder or a stream, and write its run folder"))
    _add_regress(command("regress", _regress, "train a network to measure parameters, and write its run folder"))
    evaluate = command("evaluate", _evaluate, "judge trained weights on a data-set folder")
    evaluate.add_argument("weights", help="weights.safetensors, or a name that `lenslib weights` lists")
    evaluate.add_argument("data", type=Path, help="data-set folder")
    evaluate.add_argument("--json", action="store_true")
    prediction.add_options(
        command("predict", prediction.predict, "what weights say of images (.npy, FITS, HDF5, PNG, or folders of them)")
    )
    commands_weights.add_parsers(command)
    commands_audit.add_parser(command)
    commands_benchmark.add_options(
        command("benchmark", commands_benchmark.run, "judge a model of your own beside the networks on record")
    )
    verify = command("verify", _verify, "check every byte of a data-set folder, or of a run's")
    verify.add_argument("folder", type=Path)
    status = command("status", _status, "what ran, what is at work, what failed and what remains")
    status.add_argument("results", type=Path, nargs="?", default=Path("results"))
    status.add_argument("--logs", type=Path, default=Path("logs"), help="where runs that are not over leave their logs")
    status.add_argument("--plan", type=Path, metavar="YAML", help="a profile of workflow/: names what has not begun")
    status.add_argument("--json", action="store_true")
    bench.add_parser(commands, _device)
    notebooks.add_parser(commands)
    return parser


def _device(name: str) -> str:
    import torch

    if name not in ("auto", "cpu", "cuda") and not re.fullmatch(r"cuda:\d{1,3}", name):
        raise argparse.ArgumentTypeError(f"unknown device '{name}': valid choices: cpu, cuda, cuda:N")
    if name.startswith("cuda") and int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"no device '{name}' here: use cpu")
    return name


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a name (see `lenslib recipes`) or the path of a YAML file")
    parser.add_argument("--count", type=int, required=True, help="number of images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="index of the first image")
    parser.add_argument(
        "--shard", metavar="K/N", help="draw the K-th of N shards alone: `lenslib join` makes the whole set of them"
    )
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--device", type=_device, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a line of the recipe")


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a name (see `lenslib models`)")
    parser.add_argument(
        "--train", type=Path, required=True, metavar="DIR", help="data-set folder to train on; with --stream, a recipe"
    )
    parser.add_argument("--stream", type=int, metavar="COUNT", help="simulate as it trains: COUNT new images an epoch")
    parser.add_argument("--stream-seed", type=int, default=0, metavar="SEED", help="of the images trained on")
    parser.add_argument(
        "--validation-seed", type=int, default=3, metavar="SEED", help="of the images that choose a stream's epoch"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a stream's recipe")
    _add_run(parser)


def _add_regress(parser: argparse.ArgumentParser) -> None:
    from lenslib.targets import KINDS

    parser.add_argument("model", help="a name (see `lenslib models`)")
    parser.add_argument("--train", type=Path, required=True, metavar="DIR", help="data-set folder to train on")
    parser.add_argument("--targets", choices=KINDS, default=KINDS[0], help=f"what to learn (default: {KINDS[0]})")
    _add_run(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    """The options of every training run."""
    from lenslib.settings import Settings

    parser.add_argument("--test", type=Path, required=True, metavar="DIR", help="data-set folder never trained on")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--profile", default="laptop", help="first folder under results")
    parser.add_argument("--image-size", type=int, default=64, help="pixels a side that the network sees")
    parser.add_argument("--device", type=_device, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--crop", type=int, metavar="PIXELS", help="the network sees this central square (default: all)"
    )
    for name, value in vars(Settings()).items():
        kind = {"action": "store_true"} if isinstance(value, bool) else {"type": type(value), "default": value}
        parser.add_argument(f"--{name.replace('_', '-')}", **kind)


def _recipes(options) -> None:
    from lenslib.recipe import list_recipes, load_recipe

    recipes = [load_recipe(name) for name in list_recipes()]
    rows = [
        {"recipe": r.name, "title": r.title, "pixels": r.instrument.pixels, "classes": " ".join(r.classes)}
        for r in recipes
    ]
    print_table(rows, options.json)


def _models(options) -> None:
    from lenslib.models import list_models, model_info

    infos = [model_info(name) for name in list_models()]
    print_table(
        [{"model": i.name, "family": i.family, "sizes": i.size_rule, "source": i.source} for i in infos], options.json
    )


def _load_recipe(name, settings: list[str]):
    """The recipe, changed as the `--set` options say."""
    from lenslib.recipe import load_recipe
    from lenslib.untrusted import parse_yaml

    overrides = {}
    for text in settings:
        key, separator, value = text.partition("=")
        if not separator:
            raise InputError(f"--set needs KEY=VALUE, such as --set substructure.mass_fraction=0.01, not '{text}'")
        try:
            overrides[key] = parse_yaml(value)
        except ValueError:
            raise InputError(f"--set {text}: the value is not valid YAML") from None
    return load_recipe(name, overrides)


def _simulate(options) -> None:
    from lenslib.dataset import write_dataset
    from lenslib.shards import shard

    recipe = _load_recipe(options.recipe, options.set)
    start, count = options.start, options.count
    if options.shard is not None:
        start, count = shard(options.shard, count, recipe.chunk_size, start)
    data = write_dataset(recipe, count, options.seed, options.out, start, options.device)
    print(f"{options.out}: {len(data)} images of {recipe.name}, digest {data.digest}")


def _join(options) -> None:
    from lenslib.shards import join_datasets

    data = join_datasets(options.folders, options.out)
    print(f"{options.out}: {len(data)} images of {data.recipe.name}, digest {data.digest}")


def _fit(options) -> None:
    from lenslib.dataset import open_dataset
    from lenslib.residuals import write_residuals

    data = write_residuals(open_dataset(options.data), options.out, options.templates, start=options.start)
    good = data.params["fit_good"].mean()
    print(f"{options.out}: {len(data)} images of {data.recipe.name}, {good:.1%} fitted well, digest {data.digest}")


def _train(options) -> None:
    from lenslib.classification import classify, open_pair, open_stream, record_run, train_classifier
    from lenslib.records import run_folder
    from lenslib.settings import Settings

    settings = Settings(**{name: getattr(options, name) for name in vars(Settings())})
    if options.stream is not None:
        recipe = _load_recipe(options.train, options.set)
        training, test = open_stream(recipe, options.stream, options.test, options.stream_seed, options.validation_seed)
    else:
        if options.set:
            raise InputError("--set changes the recipe of a --stream: a folder is as it was simulated")
        training, test = open_pair(options.train, options.test)
    model, size, crop = options.model, options.image_size, options.crop
    folder = run_folder(options.results, options.profile, "classification", training.recipe.name, model, settings.seed)
    trained = train_classifier(training, model, size, settings, options.device, crop=crop, folder=folder)
    if _is_helper():
        return
    scores, rate = classify(trained, test, model, size, crop)
    place = (options.results, options.profile, model, size, settings, trained, training, test)
    run = record_run(*place, scores, rate, crop=crop)
    auc = run.metrics["macro_auc"]
    print(f"{run.folder}: macro AUC {auc['value']:.4f} (95 % interval {auc['low']:.4f} to {auc['high']:.4f})")


def _regress(options) -> None:
    from lenslib.observable import hidden_targets
    from lenslib.records import run_folder
    from lenslib.regression import TASKS, check_settings, estimate, open_sets, record_regression, train_regressor
    from lenslib.settings import Settings

    settings = Settings(**{name: getattr(options, name) for name in vars(Settings())})
    training, test, targets = open_sets(options.train, options.test, options.targets)
    check_settings(targets, settings)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        hidden = hidden_targets(training.recipe, targets)
    for warning in said:
        print(f"lenslib: warning: {warning.message}", file=sys.stderr)
    model, size, crop = options.model, options.image_size, options.crop
    task, name = TASKS[targets.kind], training.recipe.name
    folder = run_folder(options.results, options.profile, task, name, model, settings.seed)
    trained, targets = train_regressor(
        training, targets, model, size, settings, options.device, crop=crop, folder=folder
    )
    if _is_helper():
        return
    truth, found, rate = estimate(trained, test, targets, model, size, crop)
    place = (options.results, options.profile, model, size, settings, trained, training, test, targets)
    run = record_regression(*place, truth, found, rate, hidden, crop=crop)
    error = run.metrics.get("mae", {})
    print(f"{run.folder}: " + (_interval("mean absolute error", error) if error else "no target can be seen"))


def _is_helper() -> bool:
    """Whether another process writes and says what there is to say."""
    from lenslib.processes import is_helper

    return is_helper()


def _interval(name: str, metric: dict) -> str:
    return f"{name} {metric['value']:.4g} (95 % interval {metric['low']:.4g} to {metric['high']:.4g})"


def _evaluate(options) -> None:
    from lenslib.dataset import open_dataset
    from lenslib.inference import estimates_numbers, load_classifier, load_estimator
    from lenslib.metrics import classification_metrics
    from lenslib.regression import judge
    from lenslib.weights import find_weights

    weights = find_weights(options.weights)
    if estimates_numbers(weights):
        data = open_dataset(options.data)
        _print_metrics(judge(load_estimator(weights, data.recipe), data), options.json)
        return
    classifier, data = load_classifier(weights), open_dataset(options.data)
    if classifier.classes != data.classes or classifier.native_size != data.images.shape[-1]:
        raise InputError(
            f"'{weights}' was trained on {classifier.recipe} ({classifier.native_size} pixels, classes "
            f"{', '.join(classifier.classes)}); '{options.data}' holds {data.recipe.name}"
        )
    metrics = classification_metrics(data.labels, classifier.probabilities(data.images), data.classes)
    _print_metrics(metrics, options.json)


def _print_metrics(metrics: dict, as_json: bool) -> None:
    row = {"value": "", "low": "", "high": ""}  # a metric may lack an interval, or be a text
    rows = [row | (metric if isinstance(metric, dict) else {"value": metric}) for metric in metrics.values()]
    print_table([{"metric": name} | row for name, row in zip(metrics, rows, strict=True)], as_json)


def _verify(options) -> None:
    from lenslib.dataset import open_dataset
    from lenslib.notebooks import verify_run

    if (options.folder / "record.json").exists():
        run = verify_run(options.folder)
        print(f"{options.folder}: whole; {run.model} on {run.recipe}, seed {run.seed}, of {run.started}")
        return
    data = open_dataset(options.folder)
    print(f"{options.folder}: whole; {len(data)} images of {data.recipe.name}, seed {data.seed}, digest {data.digest}")


def _status(options) -> None:
    from lenslib.status import overview, summary

    found = overview(options.results, options.logs, options.plan)
    print_table([asdict(one) for one in found], options.json)
    if not options.json:
        print(summary(found))


if __name__ == "__main__":
    main()
