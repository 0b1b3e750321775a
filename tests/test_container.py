"""The Containerfile's steps, in a clean Debian where one can be made; no container engine is needed."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
WHY = "takes gigabytes and some twenty minutes: name a folder for the Debian in LENSLIB_CHROOT"


def instructions() -> list[tuple[str, str]]:
    """The Containerfile's instructions and what they say, in order."""
    lines = (REPOSITORY / "Containerfile").read_text().splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]


def test_it_runs_the_commands_of_the_readme():
    told = re.findall(r"^make (\w+)", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    said = dict(instructions())
    assert said["RUN"] == "make setup"
    assert "setup" in targets
    assert json.loads(said["CMD"]) == ["make", "book"]
    assert "book" in told


def test_what_it_is_built_from_holds_no_results_of_this_computer():
    left_out = (REPOSITORY / ".dockerignore").read_text().split()
    made = re.search(r"rm -rf \$\(VENV\) (.*)", (REPOSITORY / "Makefile").read_text())[1].split()
    assert {".venv", *made} - {"lenslib.egg-info"} <= set(left_out)


class Debian:
    """A Debian in a folder, in which commands run as a container's would: with processes and network, no host files."""

    certificates = "/etc/certificates-of-the-host.crt"  # where no package puts any

    def __init__(self, root: Path, suite: str):
        self.root, self.user, self.folder = root, "root", "/"
        subprocess.run(["debootstrap", "--variant=minbase", suite, str(root)], check=True)
        # how this computer reaches a network at all, which an engine passes on as well
        for name in ("resolv.conf", "hosts"):
            shutil.copy(Path("/etc") / name, root / "etc" / name)
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / self.certificates.lstrip("/"))

    def run(self, command: str) -> str:
        enter = ["unshare", "--mount", "--pid", "--fork", f"--mount-proc={self.root / 'proc'}"]
        enter += ["chroot", f"--userspec={self.user}:", str(self.root), "sh", "-c"]
        home = "/root" if self.user == "root" else f"/home/{self.user}"
        environment = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": home, "LANG": "C.UTF-8"}
        environment |= {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")}
        environment |= dict.fromkeys(("SSL_CERT_FILE", "PIP_CERT"), self.certificates)
        done = subprocess.run(
            [*enter, f"cd {self.folder} && {command}"], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def copy(self, owner: str) -> None:
        """The files of the repository into the present folder, as COPY lays them there."""
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\0")
        for name in filter(None, names):
            place = self.root / self.folder.lstrip("/") / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, place)
        user, self.user = self.user, "root"
        self.run(f"chown --recursive {owner} .")
        self.user = user


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can enter another Debian")
@pytest.mark.skipif(not shutil.which("debootstrap"), reason="no debootstrap (Debian: apt install debootstrap)")
@pytest.mark.skipif("LENSLIB_CHROOT" not in os.environ, reason=WHY)
def test_its_steps_work_in_a_clean_debian():
    debian = None
    for instruction, said in instructions():
        match instruction:
            case "FROM":
                debian = Debian(Path(os.environ["LENSLIB_CHROOT"]), re.fullmatch(r".*/debian:(\w+)-slim", said)[1])
            case "RUN":
                debian.run(said)
            case "WORKDIR":
                debian.folder = said
            case "USER":
                debian.user = said
            case "COPY":
                debian.copy(re.fullmatch(r"--chown=(\S+) \. \.", said)[1])
            case "CMD":
                first, *words = json.loads(said)
                assert first == "make"
                assert debian.run(f"make --dry-run {' '.join(words)}")
            case _:
                pytest.fail(f"the Containerfile has {instruction}, which this check does not know")
    assert "deeplense_1" in debian.run(".venv/bin/python -c 'import lenslib; print(lenslib.list_recipes())'")
    debian.run(".venv/bin/lenslib simulate deeplense_1 --count 96 --out data/few")
    assert "96" in debian.run(".venv/bin/lenslib verify data/few")
