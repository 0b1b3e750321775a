"""`lenslib weights`, `validate`, `export` and `demo`: what there is to do with a network once it is trained."""

from pathlib import Path

from lenslib.errors import InputError
from lenslib.tables import print_table


def add_parsers(command) -> None:
    """Add the four commands; `command(name, handler, summary)` gives a new parser."""
    listed = command("weights", _weights, "list the trained weights that have a name, or print the card of one")
    listed.add_argument("name", nargs="?", help="of whose card")
    listed.add_argument("--json", action="store_true")
    fresh = command(
        "validate", _validate, "calibrate weights of a run on fresh images, and learn which images they know"
    )
    fresh.add_argument("weights", help="a run's weights.safetensors, or a name")
    fresh.add_argument("data", type=Path, help="data-set folder, neither trained nor tested on")
    written = command("export", _export, "write a trained network as an ONNX file, from raw images to answers")
    written.add_argument("weights", help="weights.safetensors, or a name")
    written.add_argument("out", type=Path, help="FILE.onnx")
    shown = command("demo", _demo, "a page on which to drop a frame and see what networks and a fit say of it")
    shown.add_argument("weights", nargs="*", help="names or weights.safetensors files (default: all with a name)")
    shown.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others in (default: this computer alone)")
    shown.add_argument("--port", type=int, default=7860, choices=range(1, 65536), metavar="PORT")
    shown.add_argument("--space", type=Path, metavar="DIR", help="write a folder to host instead, as a Space")


def _weights(options) -> None:
    from lenslib.weights import list_weights, model_card

    if options.name:
        print(model_card(options.name))
        return
    rows = []
    for name, run in list_weights().items():
        shown = next((key for key in ("macro_auc", "r2", "mae") if isinstance(run.metrics.get(key), dict)), None)
        metric = run.metrics[shown] if shown else {}
        limits = {part: round(metric[part], 4) if part in metric else "" for part in ("value", "low", "high")}
        rows.append({"name": name, "profile": run.profile, "metric": shown or ""} | limits)
    if not rows:
        raise InputError("no weights have a name: they lie in the records of a checkout of the repository")
    print_table(rows, options.json)


def _validate(options) -> None:
    from lenslib.dataset import open_dataset
    from lenslib.inference import estimates_numbers, load_classifier, load_estimator
    from lenslib.validation import load_validation, record_validation
    from lenslib.weights import check_named

    path = check_named(options.weights)
    network = (load_estimator if estimates_numbers(path) else load_classifier)(path)
    run = record_validation(network, path, open_dataset(options.data))
    print(f"{run.folder}: {load_validation(path).words}")


def _export(options) -> None:
    from lenslib.export import export_calibrated
    from lenslib.weights import check_named

    out, temperature = export_calibrated(check_named(options.weights), options.out)
    said = f", at a temperature of {temperature:.3f}" if temperature != 1 else ""
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB{said}")


def _demo(options) -> None:
    from lenslib.demo_page import serve, write_space

    if options.space is not None:
        print(write_space(options.weights, options.space))
        return
    serve(options.weights, options.host, options.port)
