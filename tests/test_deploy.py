"""The files in deploy/ are what their tools take without a complaint, and know their options."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cli.main import main
from cloud_runtime.status.metrics import exposition
from cloud_runtime.status.snapshot import Fleet
from cloud_runtime.status.tally import Tally
from edge_runtime.api.metrics import Metrics

DEPLOY = Path(__file__).parents[1] / "deploy"
HADOLINT = Path(sys.executable).parent / "hadolint"


@pytest.mark.parametrize("file", sorted(DEPLOY.glob("*.Containerfile")), ids=lambda f: f.name)
@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint is there for x86-64")
def test_container_files(file):
    done = subprocess.run([HADOLINT, file], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
@pytest.mark.parametrize("unit", sorted(DEPLOY.glob("*.service")), ids=lambda file: file.name)
def test_the_units(unit, tmp_path):
    """With a program that is there in place of the installed one."""
    text = unit.read_text()
    copy = tmp_path / unit.name
    copy.write_text(text.replace("/opt/edgespec/bin/edgespec", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


STARTED = [*DEPLOY.glob("*.Containerfile"), *DEPLOY.glob("*.service"), DEPLOY / "compose.yaml"]


@pytest.mark.parametrize("file", sorted(STARTED), ids=lambda f: f.name)
def test_options_exist(file):
    known = {
        option
        for command in ("cloud-run", "edge-run", "export", "keygen", "serve")
        for parameter in main.get_command(None, command).params
        for option in parameter.opts
    }
    text = file.read_text()
    text = re.sub(r"^#.*(podman|pip|build-arg) .*$", "", text, flags=re.M)
    text = re.sub(r"^(FROM|COPY|RUN|HEALTHCHECK) .*$", "", text, flags=re.M)
    used = set(re.findall(r"--[a-z][a-z-]+", text))
    assert used
    assert used <= known


COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


@pytest.mark.parametrize(("service", "command"), [("cloud", "cloud-run"), ("device", "serve")])
def test_the_services_start_with_options_that_parse(service, command, monkeypatch):
    about = COMPOSE[service]
    container = DEPLOY.parent / about["build"]["dockerfile"]
    entry = about.get("entrypoint") or json.loads(
        re.search(r"^ENTRYPOINT (.*)$", container.read_text(), re.M)[1]
    )
    assert entry[1] == command
    words = [*entry[2:], *about["command"].split()]
    with main.get_command(None, command).make_context(command, words) as context:
        assert str(context.params["bundle"]) == "/bundle"


def test_what_the_services_mount_is_there():
    for service in COMPOSE.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).is_file(), source
            else:
                assert source == "prometheus" or source.startswith(("../smollm2", "../keys"))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_its_configuration():
    command = ["promtool", "check", "config", "--syntax-only", DEPLOY / "prometheus.yml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    targets = {job["static_configs"][0]["targets"][0].split(":")[0] for job in jobs}
    assert targets == {job["job_name"] for job in jobs} == {"cloud", "device"} <= set(COMPOSE)


DASHBOARD = json.loads((DEPLOY / "grafana/edgespec.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_understands_the_dashboards_queries(tmp_path):
    exprs = [query.replace("$__rate_interval", "1m") for query in QUERIES]
    rules = [{"record": f"r{number}", "expr": expr} for number, expr in enumerate(exprs)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboards_metrics_are_there():
    cloud = exposition(Fleet(target="a target", state="ready"), Tally())[1].decode()
    device = Metrics()
    device.finished(200, 1.0)
    text = cloud + device.exposition()[1].decode()
    for query in QUERIES:
        for metric in re.findall(r"edgespec[:_][a-z_]+", query):
            name = re.sub(r"_(total|bucket|sum|count)$", "", metric)
            assert re.search(rf"^# TYPE {name}(_total)? ", text, re.M), metric


def test_the_dashboard_is_provisioned():
    source = yaml.safe_load((DEPLOY / "grafana/datasource.yml").read_text())["datasources"][0]
    uids = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]}
    assert uids == {source["uid"]} and source["url"] == "http://prometheus:9090"
    provider = yaml.safe_load((DEPLOY / "grafana/dashboards.yml").read_text())["providers"][0]
    mounted = {volume.split(":")[1] for volume in COMPOSE["grafana"]["volumes"]}
    assert f"{provider['options']['path']}/edgespec.json" in mounted
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
