"""The files of deploy/, and processes that run as the containers of its manifests do."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from requiring import need, need_program

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
GRUVE = Path(sys.executable).parent / "gruve"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
IMAGE_ENV = dict(re.findall(r"(\w+)=(\S+)", re.search(r"^ENV (.*)$", DOCKERFILE, re.MULTILINE)[1]))
MOUNTED = "/etc/gruve"
"""Where the manifest mounts its Secrets."""
REMAPPED = "/mnt"
"""Where the tests mount them, because every machine has that folder."""


def objects(file: str) -> dict[str, dict]:
    """The objects of a manifest, by kind."""
    return {found["kind"]: found for found in yaml.safe_load_all((DEPLOY / "kubernetes" / file).read_text())}


def rendered(folder: str) -> list[dict]:
    """The objects that `kubectl apply -k deploy/FOLDER` sends."""
    kubectl = need_program("kubectl", "apt-get install kubernetes-client")
    done = subprocess.run([kubectl, "kustomize", DEPLOY / folder], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def container(deployment: dict) -> dict:
    """The only container of a Deployment."""
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return found


def variables(deployment: dict) -> dict[str, str]:
    """The variables of a Deployment's container; one that refers to a resource has what the container requests."""
    found = {}
    for entry in container(deployment)["env"]:
        value = entry.get("value")
        if value is None:
            kind, _, name = entry["valueFrom"]["resourceFieldRef"]["resource"].partition(".")
            value = container(deployment)["resources"][kind][name]
        found[entry["name"]] = value
    return found


def mount(secret: dict, deployment: dict, folder: Path) -> None:
    """Writes a Secret below `folder` as the kubelet mounts it: files behind a link that a change replaces at once."""
    pod = deployment["spec"]["template"]["spec"]
    (volume,) = [v for v in pod["volumes"] if v.get("secret", {}).get("secretName") == secret["metadata"]["name"]]
    (place,) = [m for m in container(deployment)["volumeMounts"] if m["name"] == volume["name"]]
    at = folder / Path(place["mountPath"]).relative_to(MOUNTED)
    version = at / f"..{len(list(at.glob('..[0-9]*'))) if at.exists() else 0}"
    version.mkdir(parents=True)
    for name, data in secret["data"].items():
        (version / name).write_bytes(base64.b64decode(data))
        (version / name).chmod(volume["secret"]["defaultMode"])
        os.chown(version / name, 0, pod["securityContext"]["fsGroup"])
    (at / "..new").symlink_to(version.name)
    os.replace(at / "..new", at / "..data")
    for name in secret["data"]:
        if not (at / name).is_symlink():
            (at / name).symlink_to(f"..data/{name}")


def as_a_pod(deployment: dict, secrets: Path, **replaced: str) -> list[str]:
    """The command that runs the container: its user, arguments and variables, write access only to /tmp.

    `secrets` is mounted, read-only, in place of `MOUNTED`; `replaced` are variables that differ on this machine. The
    process keeps the privilege to read every file, because the interpreter may be in a folder that only root can read.
    """
    need("unshare", present=os.geteuid() == 0, install="tests that change the user run as root")
    need_program("unshare", "apt-get install util-linux")
    user = deployment["spec"]["template"]["spec"]["securityContext"]
    environment = {**IMAGE_ENV, "PATH": os.environ["PATH"], "HOME": "/data", **variables(deployment), **replaced}
    serve = shlex.join(
        [
            *("setpriv", "--reuid", str(user["runAsUser"]), "--regid", str(user["runAsGroup"]), "--clear-groups"),
            *("--no-new-privs", "--bounding-set=-all,+dac_read_search"),
            *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
            *("env", "-i", *(f"{name}={value.replace(MOUNTED, REMAPPED)}" for name, value in environment.items())),
            *(str(GRUVE), *container(deployment)["args"]),
        ]
    )
    steps = (
        f"mount --bind {shlex.quote(str(secrets))} {REMAPPED}",
        f"mount -o remount,bind,ro {REMAPPED}",
        "mount -t tmpfs tmpfs /tmp",
        "mount -o remount,bind,ro /",
        f"exec {serve}",
    )
    return ["unshare", "--mount", "sh", "-ec", "; ".join(steps)]


@contextlib.contextmanager
def running(command: list) -> Iterator[subprocess.Popen]:
    """A process that is ended after the test in any case."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen, within_s: float) -> int:
    """The exit status of a process after SIGTERM."""
    process.send_signal(signal.SIGTERM)
    return process.wait(within_s)
