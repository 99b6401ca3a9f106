# Owns the checks of deploy/ that need the tools' own eyes: Helm's SDK lints and renders the chart, docker compose reads
# its file, hadolint the Dockerfile. Run by tests/deploy.rs in an environment with scripts/lib/deploy_check.txt; prints
# what was rendered as one JSON object. No cluster and no Docker engine is asked for anything.
import json
import os
import subprocess
import sys

import helm_python
import yaml

root, bin_dir = sys.argv[1], os.path.dirname(sys.executable)
chart_dir = f"{root}/deploy/helm/ruvector"


def tool(*command):
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def rendered(values):
    with helm_python.Chart.load(chart_dir) as chart:
        texts = chart.render(values, name="try", namespace="search")
    documents = []
    for path, text in texts.items():
        if path.endswith(".yaml"):
            documents += [one for one in yaml.safe_load_all(text) if one]
    return documents


collections = """
[[collections]]
table = "public.docs"
[[collections.vectors]]
column = "embedding"
"""
base = {"config": collections, "http": {"insecure": True}}
key = '[http.keys.app]\nhash = ["sha256:' + "ab" * 32 + '"]\nscopes = ["read", "metrics"]\n'
secret = {**base, "source": {"existingSecret": "pg", "existingSecretKey": "url"}}
full = {
    **secret,
    "sql": {"enabled": True},
    "serviceMonitor": {
        "enabled": True,
        "labels": {"release": "prometheus"},
        "endpoint": {"tlsConfig": {"serverName": "search.example"}},
    },
    "config": collections + key,
    "http": {"tlsSecret": "certificate"},
    "volumes": [{"name": "ca", "configMap": {"name": "authority"}}],
    "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
    "persistence": {"storageClass": "fast"},
    "env": [{"name": "RUVECTOR__SQL__USERS__APP__PASSWORD", "value": "secret"}],
    "tolerations": [{"operator": "Exists"}],
    "imagePullSecrets": [{"name": "registry"}],
}
report = helm_python.lint(chart_dir, values=secret, strict=True)
# Severity 1 is information: an icon is recommended.
bad = [message for message in report["messages"] if message["severity"] > 1]
if bad or report["errors"]:
    sys.exit(f"helm lint: {bad} {report['errors']}")
refused = []
wrong = [
    base,
    {**base, "source": {"dsn": "x", "existingSecret": "y"}},
    {**secret, "replicas": 2},
    {"source": secret["source"]},
    {**secret, "http": {}},
]
for values in wrong:
    try:
        rendered(values)
        refused.append("")
    except helm_python.HelmError as error:
        refused.append(str(error))
print(json.dumps({
    "small": rendered(secret),
    "full": rendered(full),
    "plain": rendered({**base, "source": {"dsn": "postgresql://u:p@h/d"}, "persistence": {"enabled": False}}),
    "refused": refused,
    "compose": json.loads(tool(f"{bin_dir}/docker-compose", "-f", "deploy/docker-compose.yml", "config", "--format", "json")),
    "hadolint": tool(f"{bin_dir}/hadolint", "deploy/Dockerfile"),
    "yaml": {
        path: yaml.safe_load(open(f"{root}/{path}"))
        for path in ["config/alerts.yml", "deploy/compose/prometheus.yml", "deploy/compose/grafana.yml", "deploy/compose/dashboards.yml"]
    },
}))
