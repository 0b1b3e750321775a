"""The page of faults: its tables are those of the record, and without one it says so."""

import os
import re
import subprocess
import sys
from pathlib import Path

from lenslib.bench_faults import record_bench

EXTENSIONS = Path(__file__).parents[2] / "book/_ext"
METRICS = {"corrupted_byte_tried": 9, "corrupted_byte_detected": 5, "corrupted_byte_harmless": 3}
METRICS |= {"corrupted_byte_unnoticed": 1, "kills": 4, "kills_survived": 3, "kills_book": 4, "kills_book_survived": 3}
METRICS |= {"overhead": 0.031, "sweep_jobs": 22, "planning_seconds": 41.4}


def test_the_page_shows_the_record_or_says_that_there_is_none(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(EXTENSIONS)!r})\nextensions = ['myst_parser', 'faults']\n"
    )
    (source / "index.md").write_text("# Page\n\n```{faults}\n```\n")
    assert "No record of such" in build(source, tmp_path / "results")
    record_bench(tmp_path / "results", "laptop", METRICS, {"kills": 4, "sweep": 20, "planned": 10000}, 0)
    page = build(source, tmp_path / "results")
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    assert [row[1:] for row in rows if row] == [["9", "5", "3", "1"], ["4", "3"], ["4", "3"]]
    assert "3.1% of the time of a sweep of 22 jobs" in page
    assert "took 41 seconds" in page
    assert 'href="records/laptop/bench/deeplense_1/faults/seed0.json"' in page


def build(source: Path, results: Path) -> str:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-a", "-E", str(source), f"{source}-html"]
    environment = os.environ | {"LENSLIB_RESULTS": str(results)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(f"{source}-html", "index.html").read_text()
