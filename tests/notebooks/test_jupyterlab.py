"""The explorer in JupyterLab, as its readers use it: a slider is moved, and the picture follows."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

REPOSITORY = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    """JupyterLab with settings of its own, on a free port, in a folder that holds the explorer down to its sliders."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    folder, token, port = tmp_path_factory.mktemp("lab"), secrets.token_hex(16), free_port()
    notebook = nbformat.read(REPOSITORY / "notebooks/explorer.ipynb", as_version=4)
    shown = next(k for k, cell in enumerate(notebook.cells) if "explore(recipe" in cell.source)
    notebook.cells = notebook.cells[: shown + 1]
    (folder / "work").mkdir()
    nbformat.write(notebook, folder / "work/explorer.ipynb")
    settings = folder / "config/labconfig/page_config.json"  # no news from elsewhere
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
    places = {f"JUPYTER_{name.upper()}_DIR": str(folder / name) for name in ("config", "data", "runtime")}
    environment = os.environ | places | {"IPYTHONDIR": str(folder / "ipython"), "JUPYTER_PREFER_ENV_PATH": "1"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--notebook-dir={folder / 'work'}"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_it_answers(f"{address}/api/status?token={token}", server, folder / "log")
        yield f"{address}/lab/tree/explorer.ipynb?token={token}"
    finally:
        server.terminate()
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_until_it_answers(url: str, server: subprocess.Popen, log: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}", pytrace=False)


def test_a_slider_of_the_explorer_moves_its_picture(chromium, lab):
    page, said = chromium.new_page(), []
    page.set_default_timeout(180_000)
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(lab)
    # until its kernel is there, a notebook that is run asks for one
    page.get_by_text("| Idle").wait_for()
    page.locator(".lm-MenuBar-item", has_text="Run").click()
    page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()
    picture = page.locator("img.widget-image")
    picture.wait_for()
    before = picture.get_attribute("src")
    slider = page.locator(".widget-slider", has_text="θ_E [arcsec]")
    value = slider.locator(".widget-readout").inner_text()
    slider.locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("before => document.querySelector('img.widget-image').src !== before", arg=before)
    assert slider.locator(".widget-readout").inner_text() != value
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert said == []
    page.close()
