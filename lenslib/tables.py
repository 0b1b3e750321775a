"""Tables that commands print."""

import json


def print_table(rows: list[dict], as_json: bool) -> None:
    """Rows as columns of text under their names, or as JSON."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        return
    names = list(rows[0])
    texts = [names] + [
        [f"{row[name]:.4f}" if isinstance(row[name], float) else str(row[name]) for name in names] for row in rows
    ]
    widths = [max(len(line[k]) for line in texts) for k in range(len(names))]
    for line in texts:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
