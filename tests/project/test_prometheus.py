"""Every query of the dashboard and of the rules, answered by a real Prometheus that scrapes a real server over TLS."""

from __future__ import annotations

import contextlib
import json
import math
import re
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from certificates import Authority
from deployment import DEPLOY, GRUVE, ROOT, ended, running
from gruve.bench.chaos.replicas import free_port
from gruve.client import Client, Tls
from gruve.client.errors import DeadlineExceeded, Overloaded
from gruve.serve.callers.api_keys import add_key
from requiring import need_program

pytestmark = pytest.mark.slow
RULES_FILE = DEPLOY / "prometheus/rules.yaml"
RULES = yaml.safe_load(RULES_FILE.read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
ALERTS = {rule["alert"]: rule["expr"] for rule in RULES if "alert" in rule}
RECORDED = [rule["record"] for rule in RULES if "record" in rule]
MAY_BE_EMPTY = {
    "Store errors A": "a store that has never failed has no series of failures",
    "GruveAbsent": "absent() has a result only while no server is scraped",
}
"""The expressions that have no data while a server does well, and why."""
SCRAPE_S = 1
LOAD_S = 8.0


def panels() -> dict[str, tuple[str, str]]:
    """The expression and the legend of each query of the dashboard, its variables filled in as Grafana does."""
    values = {"$__rate_interval": f"{4 * SCRAPE_S}s", "$model": "(folk|tiny)", "$job": "(gruve)"}
    found = {}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            expr = target["expr"]
            for variable, value in values.items():
                expr = expr.replace(variable, value)
            found[f"{panel['title']} {target['refId']}"] = (expr, target["legendFormat"])
    return found


def compared(alert: str) -> str:
    """What an alert compares with its threshold."""
    return re.sub(r" (>|==|<) [\d.]+$", "", ALERTS[alert])


class Prometheus:
    """A running Prometheus, asked through its HTTP interface."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/"

    def ask(self, path: str, **parameters: str) -> object:
        """The data of an answer; an expression that does not parse is an HTTP error."""
        url = f"{self._url}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def series(self, expr: str) -> list[dict[str, str]]:
        """The labels of each series that has a number now."""
        found = self.ask("query", query=expr)["result"]
        return [one["metric"] for one in found if not math.isnan(float(one["value"][1]))]


def configuration(folder: Path, ca: Path, metrics_port: int) -> Path:
    """The scrape job and the rules of deploy/, for one server on this machine instead of pods."""
    config = yaml.safe_load((DEPLOY / "prometheus/scrape.yaml").read_text())
    (job,) = config["scrape_configs"]
    del job["kubernetes_sd_configs"], job["relabel_configs"]  # Debian's Prometheus is built without Kubernetes
    job["static_configs"] = [{"targets": [f"127.0.0.1:{metrics_port}"]}]
    job["tls_config"]["ca_file"] = str(ca)
    config["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
    config["rule_files"] = [str(RULES_FILE)]
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def use(client: Client, until_s: float) -> None:
    """Generates in sessions until then; now and then a user is refused, or on a busy machine too late."""
    while time.monotonic() < until_s:
        with contextlib.suppress(Overloaded, DeadlineExceeded):
            stream = client.generate(
                "O", model="tiny", new_session=True, max_tokens=60, max_tokens_per_second=200, timeout_s=5.0
            )
            list(stream)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """A Prometheus that has scraped a server under load, and still scrapes it."""
    program = need_program("prometheus", "apt-get install prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    authority = Authority(folder)
    cert, key_file = authority.issue("server", "gruve.gruve")
    key = add_key(folder / "keys.json", "ann", "ann")
    metrics_port, port = free_port(), free_port()
    config = configuration(folder, authority.ca, metrics_port)
    serve = [GRUVE, "serve", "--port", "0", "--metrics-port", str(metrics_port), "--models", str(ROOT / "models")]
    serve += ["--tls-cert", cert, "--tls-key", key_file, "--keys", folder / "keys.json"]
    serve += ["--store", f"sqlite:{folder}/sessions.db", "--slots", "1", "--max-waiting", "1"]
    watch = [program, f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
    watch += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    with running(serve) as server, running(watch) as watcher:
        grpc_port = json.loads(server.stdout.readline())["port"]
        metadata = [("authorization", f"Bearer {key}")]
        with Client(f"127.0.0.1:{grpc_port}", credentials=Tls(authority.ca), metadata=metadata) as client:
            until_s = time.monotonic() + LOAD_S
            users = [threading.Thread(target=use, args=(client, until_s)) for _ in range(4)]
            for user in users:
                user.start()
            wait_for_port(port, watcher)
            for user in users:
                user.join()
        yield Prometheus(port)
        ended(server, 30)
        ended(watcher, 30)


def wait_for_port(port: int, process: subprocess.Popen) -> None:
    for _ in range(200):
        assert process.poll() is None, process.stderr.read()
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("Prometheus does not answer after 10 s")


def test_prometheus_scrapes_over_tls_and_evaluates_every_rule(prometheus):
    (target,) = prometheus.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert target["scrapeUrl"].startswith("https:")
    rules = prometheus.ask("rules")["groups"][0]["rules"]
    assert {rule["name"]: rule["health"] for rule in rules} == dict.fromkeys([*RECORDED, *ALERTS], "ok")


def test_every_query_of_the_dashboard_has_data_with_the_labels_of_its_legend(prometheus):
    wrong = {}
    for where, (expr, legend) in panels().items():
        series = prometheus.series(expr)
        labels = set(re.findall(r"{{(\w+)}}", legend))
        if not series and where not in MAY_BE_EMPTY:
            wrong[where] = f"no data: {expr}"
        elif any(not labels <= one.keys() for one in series):
            wrong[where] = f"{series} lacks a label of {legend!r}"
    assert not wrong


def test_the_variables_of_the_dashboard_have_values(prometheus):
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
            assert prometheus.ask(f"label/{label}/values", **{"match[]": metric}), variable["name"]


def test_every_recorded_series_and_what_every_alert_compares_has_data(prometheus):
    exprs = {name: name for name in RECORDED} | {name: compared(name) for name in ALERTS}
    empty = {name for name, expr in exprs.items() if not prometheus.series(expr)}
    assert empty <= set(MAY_BE_EMPTY)


def test_an_expression_that_may_be_empty_names_metrics_that_exist(prometheus):
    exprs = {name: expr for name, (expr, _) in panels().items()} | ALERTS
    metrics = prometheus.ask("metadata")
    for name in MAY_BE_EMPTY:
        for metric in re.findall(r"\b(?:gruve|grpc_server)_\w+", exprs[name]):
            assert re.sub("_(total|info)$", "", metric) in metrics, metric


def test_a_healthy_server_sets_off_no_alert_but_that_of_the_refusals(prometheus):
    about_the_machine = {"GruveFirstTokensLate", "GruveStoreSlow"}  # it may be busy
    alerts = {alert["labels"]["alertname"] for alert in prometheus.ask("alerts")["alerts"]}
    assert alerts - about_the_machine <= {"GruveRefuses"}
    assert prometheus.series(ALERTS["GruveRefuses"])
