"""The files of deploy/ agree with the server and Kubernetes, as far as can be checked without a cluster."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from certificates import Authority
from deployment import (
    DEPLOY,
    DOCKERFILE,
    GRUVE,
    IMAGE_ENV,
    ROOT,
    as_a_pod,
    container,
    ended,
    mount,
    objects,
    rendered,
    running,
    variables,
)
from gruve.bench.chaos.replicas import free_port
from gruve.client import Client, Tls
from gruve.client.errors import AccessDenied
from gruve.serve.server import ServeConfig
from requiring import need_program

KUBERNETES = "1.27"
"""The oldest version that the README names."""
SERVE = ServeConfig()
DEPLOYMENT, SERVICE = (objects("gruve.yaml")[kind] for kind in ("Deployment", "Service"))
POD = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER = container(DEPLOYMENT)
REDIS = container(objects("redis.yaml")["StatefulSet"])
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


# ---- what is written down


@pytest.mark.parametrize("folder", ["kubernetes", "kubernetes-insecure"])
def test_what_kustomize_renders_is_what_kubernetes_takes(folder):
    found = rendered(folder)
    for one in found:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    assert {one["metadata"].get("namespace", "gruve") for one in found} == {"gruve"}
    images = [container(one)["image"] for one in found if one["kind"] in ("Deployment", "StatefulSet")]
    assert sorted(images) == ["docker.io/library/redis:7.2-bookworm", "registry.example.com/gruve:0.1.0"]


def test_a_field_that_kubernetes_does_not_know_would_be_noticed():
    wrong = json.loads(json.dumps(DEPLOYMENT))
    wrong["spec"]["template"]["spec"]["containers"][0]["readyProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_every_variable_is_one_that_the_server_reads():
    told = subprocess.run([GRUVE, "serve", "--help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"GRUVE_[A-Z_]+", told))
    assert {name for name in {**IMAGE_ENV, **variables(DEPLOYMENT)} if name.startswith("GRUVE_")} <= known


def test_ports_are_the_servers_own():
    defaults = {"grpc": SERVE.port, "metrics": SERVE.metrics_port}
    assert {port["name"]: port["containerPort"] for port in CONTAINER["ports"]} == defaults
    assert {port["name"]: port["port"] for port in SERVICE["spec"]["ports"]} == defaults
    assert {port["targetPort"] for port in SERVICE["spec"]["ports"]} == set(defaults)
    assert set(re.search(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE)[1].split()) == set(map(str, defaults.values()))
    annotations = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(SERVE.metrics_port)


def test_labels_meet():
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"].items()
    server = objects("gruve.yaml")
    policies = list(yaml.safe_load_all((DEPLOY / "kubernetes/network.yaml").read_text()))
    selectors = [
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        SERVICE["spec"]["selector"],
        server["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        POD["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
        policies[0]["spec"]["podSelector"]["matchLabels"],
        policies[1]["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels for selector in selectors)
    redis = objects("redis.yaml")
    assert redis["StatefulSet"]["spec"]["template"]["metadata"]["labels"] == redis["Service"]["spec"]["selector"]
    assert policies[1]["spec"]["podSelector"]["matchLabels"] == redis["Service"]["spec"]["selector"]
    assert variables(DEPLOYMENT)["GRUVE_STORE"] == f"redis://{redis['Service']['metadata']['name']}:6379/0"


def test_the_image_is_made_from_what_is_there_and_let_through():
    through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if re.match(r"COPY (?!--from)", line)]
    sources = {source for names in copied for source in names}
    assert {source.partition("/")[0] for source in sources} == through
    assert all((ROOT / source).exists() for source in sources)
    user = str(POD["securityContext"]["runAsUser"])
    assert f"--uid {user} " in DOCKERFILE
    assert re.search(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)[1] == user


def test_only_the_insecure_overlay_gives_up_tls_and_keys():
    files = [path for path in DEPLOY.rglob("*") if path.suffix in (".yaml", "") and path.is_file()]
    lines = {(path, line) for path in files for line in path.read_text().splitlines() if "insecure" in line.lower()}
    settings = {path.relative_to(DEPLOY).as_posix() for path, line in lines if not line.lstrip().startswith("#")}
    assert {name for name in settings if "insecure" not in Path(name).parent.name} == set()
    secure, insecure = (
        next(one for one in rendered(folder) if one["kind"] == "Deployment")
        for folder in ("kubernetes", "kubernetes-insecure")
    )
    assert container(secure)["args"] == ["serve"]
    assert container(insecure)["args"] == ["serve", "--insecure"]
    gone = variables(secure).keys() - variables(insecure).keys()
    assert gone == {"GRUVE_TLS_CERT", "GRUVE_TLS_KEY", "GRUVE_KEYS"}
    schemes = [
        {
            *(container(one)[probe]["httpGet"]["scheme"] for probe in PROBES),
            one["spec"]["template"]["metadata"]["annotations"]["prometheus.io/scheme"].upper(),
        }
        for one in (secure, insecure)
    ]
    assert schemes == [{"HTTPS"}, {"HTTP"}]


def test_a_server_that_is_not_ready_keeps_no_node_from_being_drained():
    assert objects("gruve.yaml")["PodDisruptionBudget"]["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


# ---- as a pod runs it


@contextlib.contextmanager
def redis_of_the_manifest(folder: Path, *more: str) -> Iterator[int]:
    """The manifest's Redis with its data in a folder, and perhaps with `more` arguments. Yields its port."""
    program = need_program("redis-server", "apt-get install redis-server")
    words = [word.replace("/data", str(folder)) for word in REDIS["args"][1:]]
    port = free_port()
    with subprocess.Popen([program, *words, *more, "--port", str(port)], stdout=subprocess.DEVNULL) as process:
        try:
            for _ in range(200):
                with socket.socket() as connection:
                    if connection.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield port
        finally:
            process.kill()


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    """The manifest's Redis, on a port and in a folder of the test."""
    with redis_of_the_manifest(tmp_path_factory.mktemp("redis")) as port:
        yield port


def redis_probes(port: int) -> list[bool]:
    """Whether the manifest's Redis is ready, and whether it is alive, by its probes."""
    commands = [REDIS[which]["exec"]["command"] for which in ("readinessProbe", "livenessProbe")]
    here = [[*command[:-1], "-p", str(port), command[-1]] for command in commands]
    return [subprocess.run(command, capture_output=True, check=False).returncode == 0 for command in here]


def test_a_redis_that_answers_errors_as_while_it_loads_its_file_is_unready_and_is_not_killed(redis, tmp_path):
    assert redis_probes(redis) == [True, True]
    with redis_of_the_manifest(tmp_path, "--requirepass", "unknown to the probes") as port:
        assert redis_probes(port) == [False, True]


def test_the_gateway_of_the_readme_reaches_servers_with_the_certificate_of_the_manifests(tmp_path):
    authority = Authority(tmp_path)
    cert, key = authority.issue("server", "gruve.gruve")
    words = re.search(r"gateway (--address gruve\.gruve:50051 [^`]+)`", (DEPLOY / "README.md").read_text())[1].split()
    serve = ["--models", ROOT / "models/tiny", "--port", "0", "--metrics-port", "0", "--store", "memory"]
    with running([GRUVE, "serve", *serve, "--tls-cert", cert, "--tls-key", key]) as server:
        here = {
            "gruve.gruve:50051": f"127.0.0.1:{json.loads(server.stdout.readline())['port']}",
            "/etc/gruve/ca.pem": str(authority.ca),
        }
        with running([GRUVE, "gateway", *(here.get(word, word) for word in words), "--port", "0"]) as gateway:
            url = f"http://127.0.0.1:{json.loads(gateway.stdout.readline())['port']}/health"
            with urllib.request.urlopen(url, timeout=30) as answer:
                assert answer.status == 200


def commands_for_secrets() -> list[str]:
    """The commands of the README that make the keys and the Secrets, without those that need a cluster."""
    section = (DEPLOY / "README.md").read_text().split("**Secrets.**")[1]
    lines = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1].splitlines()
    return [line.removesuffix(" | kubectl apply -f -") for line in lines if not line.startswith("kubectl apply")]


def make_secrets(folder: Path) -> tuple[str, list[dict]]:
    """Runs the README's commands in a folder with a certificate; returns the key that they print and the Secrets."""
    need_program("kubectl", "apt-get install kubernetes-client")
    environment = {**os.environ, "PATH": f"{GRUVE.parent}:{os.environ['PATH']}"}
    outputs = [
        subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        for command in commands_for_secrets()
    ]
    key, *secrets = (done.stdout for done in outputs)
    return key.strip(), [yaml.safe_load(secret) for secret in secrets]


def probe(deployment: dict, which: str, metrics_port: int) -> int:
    """The status of a probe, sent as the kubelet sends it: it verifies no certificate."""
    asked = container(deployment)[which]["httpGet"]
    assert asked["port"] == "metrics"
    url = f"{asked['scheme'].lower()}://127.0.0.1:{metrics_port}{asked['path']}"
    context = ssl._create_unverified_context() if asked["scheme"] == "HTTPS" else None
    with urllib.request.urlopen(url, timeout=10, context=context) as answer:
        return answer.status


def here(redis: int) -> tuple[int, int, dict[str, str]]:
    """Two free ports, and the variables that differ on this machine."""
    port, metrics_port = free_port(), free_port()
    return (
        port,
        metrics_port,
        {
            "GRUVE_MODELS": str(ROOT / "models"),
            "GRUVE_STORE": variables(DEPLOYMENT)["GRUVE_STORE"].replace("//redis:6379", f"//127.0.0.1:{redis}"),
            "GRUVE_PORT": str(port),
            "GRUVE_METRICS_PORT": str(metrics_port),
        },
    )


def connected(port: int, ca: Path, key: str) -> Client:
    return Client(f"127.0.0.1:{port}", credentials=Tls(ca), metadata=[("authorization", f"Bearer {key}")])


def test_a_pod_serves_with_tls_and_keys_keeps_sessions_and_ends_in_time(redis, tmp_path):
    authority = Authority(tmp_path)
    authority.issue("server", "gruve.gruve")
    key, secrets = make_secrets(tmp_path)
    mounted = tmp_path / "mounted"
    for secret in secrets:
        mount(secret, DEPLOYMENT, mounted)
    port, metrics_port, different = here(redis)
    command = as_a_pod(DEPLOYMENT, mounted, **different)
    for turn in range(2):
        with running(command) as server:
            line = server.stdout.readline()
            assert line, server.stderr.read()
            assert json.loads(line)["models"] == ["folk", "shakespeare", "tiny"]
            assert [probe(DEPLOYMENT, which, metrics_port) for which in PROBES] == [200, 200, 200]
            with connected(port, authority.ca, key) as client:
                if not turn:
                    with client.generate("To be", model="tiny", new_session=True, max_tokens=20, seed=3) as stream:
                        first = "".join(chunk.text for chunk in stream)
                    session = stream.start.session_id
                else:
                    assert client.get_session(session).session.position == 26
                    second = "".join(chunk.text for chunk in client.generate(session_id=session, max_tokens=20))
            context = ssl.create_default_context(cafile=authority.ca)
            url = f"https://127.0.0.1:{metrics_port}/metrics"
            with urllib.request.urlopen(url, timeout=10, context=context) as scraped:
                assert b"gruve_store_up 1.0" in scraped.read()
            assert ended(server, POD["terminationGracePeriodSeconds"]) == 0
    assert len(first) == len(second) == 20


@pytest.mark.slow
def test_a_replaced_secret_is_used_by_the_running_pod(redis, tmp_path):
    authority = Authority(tmp_path)
    authority.issue("server")
    old, secrets = make_secrets(tmp_path)
    mounted = tmp_path / "mounted"
    for secret in secrets:
        mount(secret, DEPLOYMENT, mounted)
    port, _, different = here(redis)
    with running(as_a_pod(DEPLOYMENT, mounted, **different)) as server:
        assert server.stdout.readline(), server.stderr.read()
        os.replace(tmp_path / "keys.json", tmp_path / "old.json")
        new, secrets = make_secrets(tmp_path)
        mount(secrets[1], DEPLOYMENT, mounted)
        with connected(port, authority.ca, new) as client:
            for _ in range(100):
                try:
                    client.models()
                    break
                except AccessDenied:
                    time.sleep(0.05)
        with connected(port, authority.ca, old) as client, pytest.raises(AccessDenied):
            client.models()
        assert ended(server, POD["terminationGracePeriodSeconds"]) == 0


@pytest.mark.slow
def test_a_pod_without_its_secrets_does_not_start_and_says_why(redis, tmp_path):
    _, _, different = here(redis)
    with running(as_a_pod(DEPLOYMENT, tmp_path, **different)) as server:
        said, errors = server.communicate(timeout=60)
    assert not said
    assert server.returncode != 0
    assert "/mnt/tls/tls." in errors


@pytest.mark.slow
def test_the_insecure_pod_serves_everybody(redis, tmp_path):
    insecure = next(one for one in rendered("kubernetes-insecure") if one["kind"] == "Deployment")
    port, metrics_port, different = here(redis)
    with running(as_a_pod(insecure, tmp_path, **different)) as server:
        assert server.stdout.readline(), server.stderr.read()
        assert [probe(insecure, which, metrics_port) for which in PROBES] == [200, 200, 200]
        with Client(f"127.0.0.1:{port}") as client:
            assert [model.name for model in client.models()] == ["folk", "shakespeare", "tiny"]
