"""One run of the whole workflow, with the sizes of the test profile, for all tests of its results."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Workflow:
    """Where one run of the workflow put its files, and how to call it again."""

    root: Path

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def html(self) -> Path:
        return self.root / "build" / "html"

    def run(self, *options: str) -> subprocess.CompletedProcess:
        places = [f"{name}={self.root / name}" for name in ("results", "data", "build", "logs")]
        command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--cores", "all", "--nolock"]
        command += ["--configfile", "workflow/test.yaml", "--config", *places, "--keep-going", *options]
        # what is drawn and trained here is too little to compile for, which other tests do
        environment = os.environ | {"TORCHDYNAMO_DISABLE": "1"}
        said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.run(command, cwd=REPOSITORY, env=environment, check=False, **said)


@pytest.fixture(scope="session")
def workflow(tmp_path_factory) -> Workflow:
    """The test profile, from nothing to the rendered book."""
    workflow = Workflow(tmp_path_factory.mktemp("workflow"))
    # what is measured apart from the workflow comes with the repository
    shutil.copytree(REPOSITORY / "results/desk/bench", workflow.results / "desk/bench")
    done = workflow.run()
    if done.returncode:
        pytest.fail(f"the workflow failed:\n{done.stdout[-8000:]}", pytrace=False)
    return workflow
