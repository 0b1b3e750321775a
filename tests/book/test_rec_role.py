"""The role `rec`, in a book of one page."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lenslib.records import run_folder, write_run

EXTENSIONS = Path(__file__).parents[2] / "book/_ext"


@pytest.fixture
def render(tmp_path):
    """Builds a page of the given text with warnings as errors; returns the exit code, the page and the messages."""
    for seed, value in enumerate((0.5, 0.75)):
        place = {"profile": "laptop", "task": "t", "recipe": "r", "model": "m", "seed": seed}
        metrics = {"auc": {"value": value, "low": value - 0.25, "high": value + 0.25}, "bare": 0.125, "name": "<B&1>"}
        parameters = {"count": 12000}
        write_run(run_folder(tmp_path / "results", **place), **place, parameters=parameters, metrics=metrics)

    def build(text):
        source, out = tmp_path / "source", tmp_path / "html"
        source.mkdir()
        (source / "conf.py").write_text(
            f"import sys\nsys.path.insert(0, {str(EXTENSIONS)!r})\nextensions = ['myst_parser', 'records']\n"
        )
        (source / "index.md").write_text(f"# Page\n\n{text}\n")
        command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-a", "-E", str(source), str(out)]
        environment = os.environ | {"LENSLIB_RESULTS": str(tmp_path / "results")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, (out / "index.html").read_text(), done.stderr

    return build


def test_numbers_are_formatted_and_say_where_they_come_from(render):
    code, page, messages = render(
        "{rec}`t.r.m.auc:.3f`; {rec}`t.r.m.auc:ci.2f`; {rec}`t.r.m.bare:.1%`; {rec}`t.r.m.parameters.count:,d`; "
        "{rec}`t.r.m.name`; {rec}`t.r.m.seeds`; {rec}`t.r.m.profile`"
    )
    assert code == 0, messages
    place = 'href="records/laptop/t/r/m/seed0.json" title="profile laptop, t/r/m, mean of 2 seeds"'
    shown = ["0.625", "0.62 (95 % interval 0.38 to 0.88)", "12.5%", "12,000", "&lt;B&amp;1&gt;", "2", "laptop"]
    assert [text.split("</a>")[0] for text in page.split(f'<a class="rec" {place}>')[1:]] == shown


def test_a_sum_is_reckoned_with_the_record(render):
    code, page, messages = render(
        "{rec}`3 * t.r.m.bare:.3f`; {rec}`1e6 / t.r.m.parameters.count / 60:.4f`; {rec}`t.r.m.bare * 4 / 2:.2f`"
    )
    assert code == 0, messages
    numbers = [text.split(">")[1].split("<")[0] for text in page.split('<a class="rec"')[1:]]
    assert numbers == ["0.375", f"{1e6 / 12000 / 60:.4f}", "0.25"]


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ("t.r.m.acu:.3f", "did you mean auc"),
        ("t.r.gone.auc", "unknown model"),
        ("t.r.m.bare:ci.2f", "unknown field"),
        ("t.r.m.auc:.3q", "Invalid format|Unknown format"),
        ("t.r.m.name * 2", "no number"),
        ("t.r.m.bare ** 2", "numbers, \\* and / alone"),
        ("t.r.m.bare + 2", "numbers, \\* and / alone"),
        ("nonsense", "expected task.recipe.model.field"),
    ],
)
def test_a_number_without_a_record_fails_the_build(render, role, message):
    import re

    code, _, messages = render(f"{{rec}}`{role}`")
    assert code == 1
    assert re.search(message, messages), messages
    assert "index.md:3" in messages
