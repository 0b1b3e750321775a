"""Tables that commands print."""

import csv
import json
import sys


def print_table(rows: list[dict], as_json: bool, as_csv: bool = False) -> None:
    """Rows as columns of text under their names, as JSON, or as CSV."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        return
    names = list(rows[0])
    if as_csv:
        writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return
    texts = [names] + [
        [f"{row[name]:.4f}" if isinstance(row[name], float) else str(row[name]) for name in names] for row in rows
    ]
    widths = [max(len(line[k]) for line in texts) for k in range(len(names))]
    for line in texts:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
