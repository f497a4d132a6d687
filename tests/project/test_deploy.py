"""The files of deploy/ agree with the server, Kubernetes and Prometheus, as far as can be checked without a cluster."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import kubernetes_validate
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from gruve.bench.chaos.replicas import free_port
from gruve.client import Client
from gruve.serve.server import ServeConfig
from requiring import need, need_program

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
RULES = yaml.safe_load((DEPLOY / "prometheus/rules.yaml").read_text())["groups"][0]["rules"]
GRUVE = Path(sys.executable).parent / "gruve"
KUBERNETES = "1.27"
"""The oldest version that the README names."""
NOBODY = "10001"
SERVE = ServeConfig()


def objects(file: str) -> dict[str, dict]:
    """The objects of a manifest, by kind."""
    return {found["kind"]: found for found in yaml.safe_load_all((DEPLOY / "kubernetes" / file).read_text())}


DEPLOYMENT, SERVICE = (objects("gruve.yaml")[kind] for kind in ("Deployment", "Service"))
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
IMAGE_ENV = dict(re.findall(r"(\w+)=(\S+)", re.search(r"^ENV (.*)$", DOCKERFILE, re.MULTILINE)[1]))
POD_ENV = {entry["name"]: entry.get("value") for entry in CONTAINER["env"]}


# ---- what is written down


def test_what_kustomize_renders_is_what_kubernetes_takes():
    kubectl = need_program("kubectl", "apt-get install kubernetes-client")
    rendered = subprocess.run([kubectl, "kustomize", DEPLOY / "kubernetes"], capture_output=True, text=True, check=True)
    found = list(yaml.safe_load_all(rendered.stdout))
    for one in found:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    assert {one["metadata"].get("namespace", "gruve") for one in found} == {"gruve"}
    images = re.findall(r"image: (\S+)", rendered.stdout)
    assert sorted(images) == ["docker.io/library/redis:7.2-bookworm", "registry.example.com/gruve:0.1.0"]


def test_a_field_that_kubernetes_does_not_know_would_be_noticed():
    wrong = json.loads(json.dumps(DEPLOYMENT))
    wrong["spec"]["template"]["spec"]["containers"][0]["readyProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_every_variable_is_one_that_the_server_reads():
    told = subprocess.run([GRUVE, "serve", "--help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"GRUVE_[A-Z_]+", told))
    assert {name for name in {**IMAGE_ENV, **POD_ENV} if name.startswith("GRUVE_")} <= known


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
    assert POD_ENV["GRUVE_STORE"] == f"redis://{redis['Service']['metadata']['name']}:6379/0"


def test_the_image_is_made_from_what_is_there_and_let_through():
    through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if re.match(r"COPY (?!--from)", line)]
    sources = {source for names in copied for source in names}
    assert sources == through
    assert all((ROOT / source).exists() for source in sources)
    assert f"--uid {POD['securityContext']['runAsUser']} " in DOCKERFILE
    assert re.search(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)[1] == NOBODY == str(POD["securityContext"]["runAsUser"])


# ---- as a pod runs it


def ended(process: subprocess.Popen, within_s: float) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(within_s)


@pytest.fixture
def redis(tmp_path):
    """The manifest's Redis, on a port and in a folder of the test."""
    program = need_program("redis-server", "apt-get install redis-server")
    (container,) = objects("redis.yaml")["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    words = [word.replace("/data", str(tmp_path)) for word in container["args"][1:]]
    port = free_port()
    with subprocess.Popen([program, *words, "--port", str(port)], stdout=subprocess.DEVNULL) as process:
        for _ in range(200):
            with socket.socket() as connection:
                if connection.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
        process.kill()


@contextlib.contextmanager
def running(command: list) -> Iterator[subprocess.Popen]:
    """A process that is ended after the test in any case."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def as_a_pod(environment: dict[str, str]) -> list[str]:
    """`gruve serve` as user nobody, with write access only to /tmp.

    It keeps the privilege to read every file, because the interpreter may be in a folder that only root can read.
    """
    need("unshare", present=os.geteuid() == 0, install="tests that change the user run as root")
    need_program("unshare", "apt-get install util-linux")
    serve = shlex.join(
        [
            *("setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"),
            *("--no-new-privs", "--bounding-set=-all,+dac_read_search"),
            *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
            *("env", "-i", *(f"{name}={value}" for name, value in environment.items())),
            *(str(GRUVE), *CONTAINER["args"]),
        ]
    )
    return ["unshare", "--mount", "sh", "-ec", f"mount -t tmpfs tmpfs /tmp; mount -o remount,bind,ro /; exec {serve}"]


def healthy(address: str) -> str:
    """The answer to a health probe."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5, wait_for_ready=True)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def test_a_pod_serves_is_probed_keeps_sessions_and_ends_in_time(redis):
    port, metrics_port = free_port(), free_port()
    environment = {
        **IMAGE_ENV,
        "PATH": os.environ["PATH"],
        "HOME": "/data",
        "GRUVE_MODELS": str(ROOT / "models"),
        "GRUVE_STORE": POD_ENV["GRUVE_STORE"].replace("//redis:6379", f"//127.0.0.1:{redis}"),
        "GRUVE_INSECURE": POD_ENV["GRUVE_INSECURE"],
        "GRUVE_THREADS": CONTAINER["resources"]["requests"]["cpu"],
        "GRUVE_PORT": str(port),
        "GRUVE_METRICS_PORT": str(metrics_port),
    }
    assert {probe["grpc"]["port"] for key, probe in CONTAINER.items() if key.endswith("Probe")} == {SERVE.port}
    command = as_a_pod(environment)
    address = f"127.0.0.1:{port}"
    for turn in range(2):
        with running(command) as server:
            line = server.stdout.readline()
            assert line, server.stderr.read()
            assert json.loads(line)["models"] == ["folk", "shakespeare", "tiny"]
            assert healthy(address) == "SERVING"
            with Client(address) as client:
                if not turn:
                    with client.generate("To be", model="tiny", new_session=True, max_tokens=20, seed=3) as stream:
                        first = "".join(chunk.text for chunk in stream)
                    session = stream.start.session_id
                else:
                    assert client.get_session(session).session.position == 26
                    second = "".join(chunk.text for chunk in client.generate(session=session, max_tokens=20))
            with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as scraped:
                assert b"gruve_store_up 1.0" in scraped.read()
            assert ended(server, POD["terminationGracePeriodSeconds"]) == 0
    assert len(first) == len(second) == 20


# ---- what is watched


def expressions() -> dict[str, str]:
    """Every expression of the rules and of the dashboard, by its place."""
    dashboard = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
    found = {rule.get("alert") or rule["record"]: rule["expr"] for rule in RULES}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expr = target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*").replace("$job", ".*")
            found[f"{panel['title']} {target['refId']}"] = expr
    return found


@pytest.fixture(scope="module")
def scraped(tmp_path_factory) -> dict[str, set[str]]:
    """The metric names of a server with a store, and the labels of each."""
    folder = tmp_path_factory.mktemp("store")
    command = [GRUVE, "serve", "--port", "0", "--metrics-port", "0", "--models", str(ROOT / "models")]
    command += ["--store", f"sqlite:{folder}/sessions.db"]
    with running(command) as server:
        serving = json.loads(server.stdout.readline())
        with Client(f"127.0.0.1:{serving['port']}") as client:
            list(client.generate("O", model="tiny", new_session=True, max_tokens=70))
        url = f"http://127.0.0.1:{serving['metrics_port']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        ended(server, 30)
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        labels = {label for sample in family.samples for label in sample.labels}
        for ending in endings.get(family.type, ("",)):
            found[family.name + ending] = labels
    return found


@pytest.mark.parametrize("where", expressions())
def test_every_series_that_is_watched_is_one_that_the_server_has(where, scraped):
    known = scraped | {rule["record"]: {"model"} for rule in RULES if "record" in rule}
    expr = expressions()[where]
    named = re.findall(r"\b((?:gruve|grpc_server|process)[\w:]+)(?:\{([^}]*)\})?", expr)
    assert named
    for name, selected in named:
        assert name in known
        # A metric without series has no labels to compare.
        if known[name]:
            assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selected)) <= known[name] | {"job", "instance"}
    grouped = {label.strip() for by in re.findall(r"\bby \(([^)]*)\)", expr) for label in by.split(",")}
    labels = set().union(*(known[name] for name, _ in named))
    assert not labels or grouped <= labels | {"le", "instance"}


def test_promtool_finds_nothing_to_say_and_every_alert_rings_when_it_should(tmp_path):
    promtool = need_program("promtool", "apt-get install prometheus")
    rules = [{"record": f"test:{i}", "expr": expr} for i, expr in enumerate(expressions().values())]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    folder = DEPLOY / "prometheus"
    for command in (
        ["check", "rules", "rules.yaml", str(tmp_path / "panels.yaml")],
        ["test", "rules", "rules_test.yaml"],
    ):
        done = subprocess.run([promtool, *command], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_proved_and_told_of():
    alerts = {rule["alert"] for rule in RULES if "alert" in rule}
    tests = yaml.safe_load((DEPLOY / "prometheus/rules_test.yaml").read_text())["tests"]
    rung = {case["alertname"] for test in tests for case in test.get("alert_rule_test", ()) if case.get("exp_alerts")}
    assert rung == alerts
    assert set(re.findall(r"^\| (Gruve\w+) \|", (DEPLOY / "README.md").read_text(), re.MULTILINE)) == alerts
