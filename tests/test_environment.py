"""pip, uv and conda give one environment: what pyproject.toml asks for is what requirements.lock pins."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
LOCK = (REPOSITORY / "requirements.lock").read_text()
PINS = {canonicalize_name(name): pin for name, pin in re.findall(r"^([\w.-]+)(?:\[.*\])?==(\S+)", LOCK, re.MULTILINE)}
WANTED = PROJECT["dependencies"] + [line for lines in PROJECT["optional-dependencies"].values() for line in lines]


@pytest.mark.parametrize("line", WANTED)
def test_every_dependency_is_pinned_within_its_range(line):
    wanted = Requirement(line)
    assert canonicalize_name(wanted.name) in PINS
    assert wanted.specifier.contains(PINS[canonicalize_name(wanted.name)], prereleases=True)


def test_every_pin_has_hashes_and_no_address():
    blocks = re.split(r"\n(?=[a-z0-9])", LOCK)
    assert all("--hash=sha256:" in block for block in blocks if "==" in block.split("\n")[0])
    assert "://" not in LOCK


def test_conda_gives_python_and_pip_and_the_lock_gives_the_rest():
    dependencies = yaml.safe_load((REPOSITORY / "environment.yml").read_text())["dependencies"]
    assert dependencies[-1] == {"pip": ["--requirement requirements.lock"]}
    names = {re.split(r"[=<>]", text)[0] for text in dependencies[:-1]}
    assert names == {"python", "pip"}
    python = next(text for text in dependencies[:-1] if text.startswith("python")).split("=")[1]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python)


@pytest.fixture
def old_machine(tmp_path):
    """Runs make where the only Python is the one given as a shell script."""

    def run(python):
        for tool in ("sh", "make", "awk"):
            (tmp_path / tool).symlink_to(shutil.which(tool))
        (tmp_path / "python3").write_text(f"#!{shutil.which('sh')}\n{python}\n")
        (tmp_path / "python3").chmod(0o755)
        command = ["make", "setup", f"VENV={tmp_path / 'venv'}"]
        return subprocess.run(
            command, cwd=REPOSITORY, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("exit 1", "Python 3.11 or newer is needed"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "install its venv package"),
    ],
)
def test_make_says_in_one_line_what_is_missing(old_machine, python, message):
    done = old_machine(python)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
