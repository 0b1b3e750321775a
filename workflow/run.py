"""Run the workflow for one profile: python workflow/run.py workflow/laptop.yaml [options of snakemake].

It resumes where a killed run stopped, goes on with other work when one run fails, and refuses a second run in the same
folder. Snakemake's own lock outlives a killed process and would have to be removed by hand; this one does not.
"""

import fcntl
import os
import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    if not arguments or not Path(arguments[0]).is_file():
        sys.exit("usage: python workflow/run.py workflow/PROFILE.yaml [options of snakemake]")
    Path(".snakemake").mkdir(exist_ok=True)
    lock = os.open(".snakemake/run.lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("error: another run is at work in this folder; wait for it or stop it", file=sys.stderr)
        sys.exit(2)
    os.set_inheritable(lock, True)  # held until snakemake ends, however it ends
    options = ["--snakefile", "workflow/Snakefile", "--configfile", arguments[0], "--nolock"]
    options += ["--rerun-incomplete", "--keep-going", "--quiet", "host", "reason", *arguments[1:]]
    if not any(option.startswith(("--cores", "-c", "--jobs", "-j", "--profile")) for option in arguments[1:]):
        options += ["--cores", "all"]
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *options])


if __name__ == "__main__":
    main(sys.argv[1:])
