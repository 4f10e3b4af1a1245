"""JupyterLab on this machine, with settings of its own: a theme, and every cell drawn."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.error import URLError
from urllib.request import urlopen

TOKEN = "a-token-of-this-test"
Theme = Literal["Light", "Dark"]

SETTINGS = {
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "notebook-extension/tracker": {"windowingMode": "none"},
}


def _environment(folder: Path, theme: Theme) -> dict[str, str]:
    """A place for settings and signatures that no other JupyterLab shares."""
    settings = folder / "settings"
    said = {**SETTINGS, "apputils-extension/themes": {"theme": f"JupyterLab {theme}"}}
    for name, values in said.items():
        path = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    own = {name: str(folder / part) for name, part in places.items()}
    return {**os.environ, **own, "JUPYTERLAB_SETTINGS_DIR": str(settings)}


@contextmanager
def lab(notebooks: Path, folder: Path, theme: Theme, trusted: bool, port: int) -> Iterator[str]:
    """A running JupyterLab; its address.

    Args:
        notebooks: the folder that it shows.
        folder: for its settings.
        theme: its colours.
        trusted: whether the notebooks there are signed, so that their scripts run.
        port: where it listens.
    """
    environment = _environment(folder, theme)
    if trusted:
        signed = [sys.executable, "-m", "jupyter", "trust", *map(str, notebooks.glob("*.ipynb"))]
        subprocess.run(signed, env=environment, check=True, capture_output=True)
    options = {
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "IdentityProvider.token": TOKEN,
        "ServerApp.root_dir": notebooks,
        "LabApp.news_url": "",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    command += [f"--{name}={value}" for name, value in options.items()]
    address = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait(f"{address}/api/status?token={TOKEN}", folder / "log", server)
            yield address
        finally:
            server.terminate()
            server.wait(30)


def _wait(address: str, log: Path, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(240):
        if server.poll() is not None:
            break
        try:
            with urlopen(address, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8')}")
