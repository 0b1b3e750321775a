"""`lenslib audit`: whether a data set gives its classes away."""

from pathlib import Path

from lenslib.tables import print_table


def add_parser(command) -> None:
    """Add the command; `command(name, handler, summary)` gives a new parser."""
    parser = command("audit", _audit, "whether trivial features of a data set's images and files give its classes away")
    parser.add_argument("data", type=Path, help="data-set folder, of this library or a DeepLense one")
    parser.add_argument("--count", type=int, help="measure so many images, spread over the set (default: all)")
    parser.add_argument("--against", metavar="CLASS", help="held against all others (default: the first that there is)")
    parser.add_argument("--seed", type=int, default=0, help="of the folds")
    parser.add_argument("--json", action="store_true")


def _audit(options) -> None:
    from lenslib.dataset import open_dataset
    from lenslib.leaks import audit_dataset

    found = audit_dataset(open_dataset(options.data), options.count, options.against, options.seed)
    rows = found.table.to_dict("records")
    if options.json:
        print_table([*rows, {"verdict": found.verdict, "words": found.words}], True)
        return
    print_table(rows, False)
    print(found.words)
