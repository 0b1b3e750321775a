"""Run the workflow for one profile: python workflow/run.py workflow/laptop.yaml [options of snakemake].

It resumes where a killed run stopped, goes on with other work when one run fails, and refuses a second run in the same
folder. Snakemake's own lock outlives a killed process and would have to be removed by hand; this one does not.
"""

import fcntl
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

# what steps read and write
FOLDERS = ("lenslib", "workflow", "notebooks", "book", "data", "results")


def date_back(folders=FOLDERS) -> int:
    """Date now what is dated ahead, and count it: the clock went back since it was written. Of a file that it reads and
    that is newer than what it made, Snakemake would say that the clocks differ, and remove what it made."""
    now, count = time.time(), 0
    for folder in folders:
        for place, _, files in os.walk(folder):
            for path in (place, *(os.path.join(place, name) for name in files)):
                with suppress(OSError):  # it is gone, or somebody else's
                    if os.stat(path, follow_symlinks=False).st_mtime > now:
                        os.utime(path, (now, now), follow_symlinks=False)
                        count += 1
    return count


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
    if count := date_back():
        print(f"{count} files are dated ahead: the clock went back, and they are dated now", file=sys.stderr)
    os.set_inheritable(lock, True)  # held until snakemake ends, however it ends
    options = ["--snakefile", "workflow/Snakefile", "--configfile", arguments[0], "--nolock"]
    options += ["--rerun-incomplete", "--keep-going", "--quiet", "host", "reason", *arguments[1:]]
    if not any(option.startswith(("--cores", "-c", "--jobs", "-j", "--profile")) for option in arguments[1:]):
        options += ["--cores", "all"]
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *options])


if __name__ == "__main__":
    main(sys.argv[1:])
