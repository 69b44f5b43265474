#!/usr/bin/env python3
"""Checks the chart with the real Helm engine.

    chart.py check                      lint, render and inspect every value set, try what the schema must refuse
    chart.py configs DIR                write the rendered configuration file of each value set to DIR
    chart.py manifests DIR              write what kubectl would apply for each value set to DIR
    chart.py install KUBECONFIG         install, upgrade and uninstall every value set through the Helm client

Value sets: the defaults and `charts/virt-steward/ci/*-values.yaml`. Every check is one line of
output; the exit status is 1 when one of them failed. Needs the packages helm-python-sdk and PyYAML.
"""

import json
import pathlib
import re
import sys
import tempfile

import helm_python as helm
import yaml

CHART = pathlib.Path(__file__).resolve().parent.parent / "charts" / "virt-steward"
METRICS = CHART.parent.parent / "crates" / "operator" / "src" / "telemetry" / "metrics.rs"
REGISTERED = METRICS.parent.parent / "register" / "snapshots" / "operator__register__objects__tests__configurations_as_they_are_applied.snap"
RELEASE, NAMESPACE = "virt-steward", "virt-steward-system"

failures = 0
checks = 0


def check(what, holds, detail=""):
    global failures, checks
    checks += 1
    if not holds:
        failures += 1
        print(f"  FAILED {what}{': ' + str(detail) if detail != '' else ''}")


def value_sets():
    sets = {"default": {}}
    for path in sorted((CHART / "ci").glob("*-values.yaml")):
        sets[path.name.removesuffix("-values.yaml")] = yaml.safe_load(path.read_text())
    return sets


def render(chart, values):
    """The rendered objects, and the notes."""
    objects, notes = [], ""
    for path, text in chart.render(values, name=RELEASE, namespace=NAMESPACE).items():
        if path.endswith("NOTES.txt"):
            notes = text
        else:
            objects += [document for document in yaml.safe_load_all(text) if document]
    return objects, notes


def of_kind(objects, kind):
    return [o for o in objects if o["kind"] == kind]


def config_file(objects):
    maps = of_kind(objects, "ConfigMap")
    return maps[0]["data"]["config.yaml"] if maps else ""


def rules(objects):
    return [rule for o in objects if o["kind"] in ("ClusterRole", "Role") for rule in o["rules"]]


def inspect(name, objects):
    """What must hold whatever the values are."""
    keys = [(o["apiVersion"], o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    check(f"{name}: no object twice", len(keys) == len(set(keys)), keys)
    for rule in rules(objects):
        check(f"{name}: no wildcard in RBAC", "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"], rule)

    pod = of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    check(f"{name}: pod runs as non-root", pod["securityContext"]["runAsNonRoot"] is True)
    check(f"{name}: seccomp is RuntimeDefault", pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault")
    check(f"{name}: root filesystem is read-only", container["securityContext"]["readOnlyRootFilesystem"] is True)
    check(f"{name}: all capabilities dropped", container["securityContext"]["capabilities"]["drop"] == ["ALL"])
    check(f"{name}: no privilege escalation", container["securityContext"]["allowPrivilegeEscalation"] is False)
    check(f"{name}: all three probes", all(p in container for p in ("startupProbe", "livenessProbe", "readinessProbe")))
    check(f"{name}: pods are spread", len(pod["topologySpreadConstraints"]) > 0)
    mounts, volumes = {m["name"] for m in container["volumeMounts"]}, {v["name"] for v in pod["volumes"]}
    check(f"{name}: every mount has its volume", mounts == volumes, (mounts, volumes))
    accounts = of_kind(objects, "ServiceAccount")
    check(f"{name}: account gives no token unasked", all(a["automountServiceAccountToken"] is False for a in accounts))

    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    for port in of_kind(objects, "Service")[0]["spec"]["ports"]:
        check(f"{name}: service port {port['name']} reaches the pod", port["targetPort"] in [*ports, *ports.values()], port)
    selector = of_kind(objects, "Deployment")[0]["spec"]["selector"]["matchLabels"]
    check(f"{name}: service selects the pods", of_kind(objects, "Service")[0]["spec"]["selector"] == selector)
    for policy in of_kind(objects, "NetworkPolicy") + of_kind(objects, "PodDisruptionBudget"):
        labels = policy["spec"].get("podSelector", policy["spec"].get("selector"))["matchLabels"]
        check(f"{name}: {policy['kind']} selects the pods", labels == selector, labels)

    for configuration in objects:
        if not configuration["kind"].endswith("WebhookConfiguration"):
            continue
        check(f"{name}: sorts before harvester-mutator", configuration["metadata"]["name"] < "harvester-mutator")
        for hook in configuration["webhooks"]:
            excluded = [e for e in hook["namespaceSelector"]["matchExpressions"] if e["operator"] == "NotIn"]
            check(f"{name}: own namespace and kube-system are exempt",
                  {NAMESPACE, "kube-system"} <= set(excluded[0]["values"]), excluded)
            if configuration["metadata"]["name"].endswith("-launcher"):
                check(f"{name}: only launcher pods of VMs that ask for a hook wait for us",
                      hook["objectSelector"]["matchLabels"] == {"kubevirt.io": "virt-launcher"}
                      and "launcher-hooks" in hook["matchConditions"][0]["expression"], hook)
            elif configuration["metadata"]["name"].endswith("-hotplug"):
                narrowed = "objectSelector" in hook or "matchConditions" in hook
                # Every migration is asked about when it begins; none waits for us when we are away.
                begins = (hook["rules"][0]["resources"] == ["virtualmachineinstancemigrations"]
                          and hook["rules"][0]["operations"] == ["CREATE"] and hook["failurePolicy"] == "Ignore")
                check(f"{name}: hooks of hotplugged volumes are asked about what hotplug needs only",
                      narrowed or begins, hook["name"])
                deletes = any("DELETE" in r["operations"] for r in hook["rules"])
                exempt = any("generic-garbage-collector" in c["expression"] for c in hook.get("matchConditions", []))
                check(f"{name}: controllers that clean up are exempt", exempt or not deletes, hook["name"])
            else:
                check(f"{name}: only virtualmachines and their instances, so our own pods never wait for us",
                      all(set(r["resources"]) <= {"virtualmachines", "virtualmachineinstances"} for r in hook["rules"]), hook["rules"])
                check(f"{name}: deletion is exempt",
                      any("deletionTimestamp" in c["expression"] for c in hook["matchConditions"]))
            service = hook["clientConfig"]["service"]
            check(f"{name}: webhook names the service",
                  service["name"] == of_kind(objects, "Service")[0]["metadata"]["name"])

    config = yaml.safe_load(config_file(objects))
    own_name = of_kind(objects, "Service")[0]["metadata"]["name"]
    check(f"{name}: program and Service agree on name and ports",
          (config["register"]["serviceName"], config["server"]["port"]) == (own_name, ports["webhook"]), config)
    check(f"{name}: program and webhook agree on the timeout",
          config["server"]["requestTimeoutSeconds"] < config["register"]["timeoutSeconds"], config)
    check(f"{name}: Secrets are read exactly when they may be",
          config["kubernetes"]["readSecrets"] == config["features"]["userDataSecrets"] == bool(reads(objects, "secrets")))
    features = config["features"]
    check(f"{name}: configuration has every feature",
          {"nestedVirtualization", "vbiosInjection", "pciPassthrough", "gpuDevicePlugin"} <= set(features))
    modes = [features["errorHandling"]] + [f["errorHandling"] for f in features.values() if isinstance(f, dict) and "errorHandling" in f]
    check(f"{name}: error modes in their documented spelling",
          set(modes) <= {"reject", "allow-and-log", "strip-label"}, modes)


def reads(objects, resource):
    """Namespaces in which the account may get a resource: a name, or `*` for all of them."""
    found = []
    for o in objects:
        # The role of pods of export jobs is bound in the namespaces that ask for it, to another account.
        if o["kind"] in ("ClusterRole", "Role") and not o["metadata"]["name"].endswith("-exporter"):
            for rule in o["rules"]:
                if resource in rule["resources"] and "get" in rule["verbs"] and "resourceNames" not in rule:
                    found.append("*" if o["kind"] == "ClusterRole" else o["metadata"]["namespace"])
    return found


def inspect_each(rendered):
    """What particular values must do."""
    default, notes = rendered["default"]
    check("default: two replicas", of_kind(default, "Deployment")[0]["spec"]["replicas"] == 2)
    check("default: Secrets are not readable", reads(default, "secrets") == [], reads(default, "secrets"))
    check("default: no permission on Secrets at all", not any("secrets" in r["resources"] for r in rules(default)))
    check("default: no write permission at all",
          all(set(r["verbs"]) <= {"get", "list", "watch"} for r in rules(default)), rules(default))
    check("default: ConfigMaps are readable, one by one",
          reads(default, "configmaps") == ["*"] and not any("configmaps" in r["resources"] and "list" in r["verbs"] for r in rules(default)))
    hook = of_kind(default, "MutatingWebhookConfiguration")[0]
    check("default: name and order", hook["metadata"]["name"] == "00-virt-steward")
    check("default: cert-manager gives the CA",
          hook["metadata"]["annotations"]["cert-manager.io/inject-ca-from"] == f"{NAMESPACE}/virt-steward")
    chart_made = hook["webhooks"][0]
    registered = json.loads(REGISTERED.read_text().split("---\n", 2)[2])[0]["webhooks"][0]
    same = ["name", "rules", "admissionReviewVersions", "matchPolicy", "failurePolicy", "timeoutSeconds", "sideEffects",
            "reinvocationPolicy", "matchConditions"]
    for key in same:
        check(f"default: the chart and the program register the same {key}", chart_made[key] == registered[key],
              (chart_made[key], registered[key]))
    check("default: reinvoked when others change the VM", hook["webhooks"][0]["reinvocationPolicy"] == "IfNeeded")
    check("default: fails closed", hook["webhooks"][0]["failurePolicy"] == "Fail")
    check("default: notes say the way out", "kubectl delete mutatingwebhookconfiguration 00-virt-steward" in notes)
    validating = of_kind(default, "ValidatingWebhookConfiguration")[0]["webhooks"][0]
    check("default: the validating webhook fails open", validating["failurePolicy"] == "Ignore")
    check("default: the chart and the program ask /validate about the same VMs",
          validating["matchConditions"] == json.loads(REGISTERED.read_text().split("---\n", 2)[2])[1]["webhooks"][0]["matchConditions"],
          validating["matchConditions"])
    check("default: no Plugin, no agent", of_kind(default, "Plugin") + of_kind(default, "DaemonSet") == [])

    seed, notes = rendered["seed"]
    hook = of_kind(seed, "MutatingWebhookConfiguration")[0]["webhooks"][0]
    check("seed: replicas", of_kind(seed, "Deployment")[0]["spec"]["replicas"] == 3)
    check("seed: timeout", hook["timeoutSeconds"] == 7)
    check("seed: namespaceSelector", hook["namespaceSelector"]["matchLabels"] == {"vm-features": "enabled"})
    check("seed: issuer", of_kind(seed, "Certificate")[0]["spec"]["issuerRef"]["name"] == "selfsigned-issuer")
    check("seed: no issuer made", of_kind(seed, "Issuer") == [])
    features = yaml.safe_load(config_file(seed))["features"]
    check("seed: mode per feature", features["pciPassthrough"]["errorHandling"] == "strip-label")
    check("seed: maxDevices", features["pciPassthrough"]["maxDevices"] == 4)
    check("seed: the stock shim is no hook image", features["vbiosInjection"]["hookImage"] == "" and "sidecar-shim" in notes)

    older, notes = rendered["older-program"]
    features = yaml.safe_load(config_file(older))["features"]
    check("older-program: StripLabel is strip-label, said aloud",
          features["errorHandling"] == "strip-label" and "StripLabel" in notes)
    check("older-program: labels are the source", features["source"] == "labels")
    check("older-program: feature switched off", features["gpuDevicePlugin"]["enabled"] is False)
    issuer = of_kind(older, "Certificate")[0]["spec"]["issuerRef"]
    check("older-program: issuerName", (issuer["kind"], issuer["name"]) == ("ClusterIssuer", "my-cluster-issuer"))
    check("older-program: no metrics port", len(of_kind(older, "Service")[0]["spec"]["ports"]) == 1)

    own, _ = rendered["self-made"]
    check("self-made: no cert-manager objects", of_kind(own, "Certificate") + of_kind(own, "Issuer") == [])
    configurations = [o for o in own if o["kind"].endswith("WebhookConfiguration")]
    check("self-made: two webhook configurations, left to the program",
          [o["webhooks"] for o in configurations] == [[], []])
    config = yaml.safe_load(config_file(own))
    check("self-made: the program registers itself",
          (config["tls"]["source"], config["register"]["mode"]) == ("self-signed", "service"))
    check("self-made: and leaves kube-system and its own namespace alone",
          set(config["register"]["namespaceSelector"]["matchExpressions"][0]["values"]) == {"kube-system", NAMESPACE})
    named = [r for r in rules(own) if "mutatingwebhookconfigurations" in r["resources"]]
    check("self-made: only its own webhook configuration is writable",
          len(named) == 1 and named[0]["resourceNames"] == ["00-virt-steward"], named)
    named = [r for r in rules(own) if "secrets" in r["resources"] and "get" in r["verbs"]]
    check("self-made: only its own Secret is readable", [r.get("resourceNames") for r in named] == [["virt-steward-tls"]], named)

    rest, _ = rendered["rest"]
    ports = {port["name"]: port["port"] for port in of_kind(rest, "Service")[0]["spec"]["ports"]}
    check("rest: the Service has its port", ports.get("rest") == 8444, ports)
    config = yaml.safe_load(config_file(rest))["rest"]
    check("rest: the program is told", (config["enabled"], config["auth"], config["audiences"]) == (True, "impersonate", ["virt-steward"]), config)
    pod = of_kind(rest, "Deployment")[0]["spec"]["template"]["spec"]
    mounted = [m["mountPath"] for m in pod["containers"][0]["volumeMounts"] if m["name"] == "clients"]
    check("rest: authorities of clients are where the program looks", mounted == [config["clientCaFile"].rsplit("/", 1)[0]], mounted)
    peers = [r["from"] for r in of_kind(rest, "NetworkPolicy")[0]["spec"]["ingress"] if r["ports"][0]["port"] == "rest"]
    check("rest: only who is named may connect", peers and "automation" in str(peers[0]), peers)
    out = [p["port"] for rule in of_kind(rest, "NetworkPolicy")[0]["spec"]["egress"] for p in rule["ports"]]
    check("rest: a Prometheus behind a Service needs no way out", out == [443, 6443, 53, 53], out)
    for name, (objects, _) in rendered.items():
        check(f"{name}: impersonation is granted exactly where it is asked for",
              any("impersonate" in r["verbs"] and "groups" in r["resources"] for r in rules(objects)) == (name == "rest"))

    manual, _ = rendered["manual"]
    check("manual: Secret of type tls", of_kind(manual, "Secret")[0]["type"] == "kubernetes.io/tls")
    check("manual: caBundle", of_kind(manual, "MutatingWebhookConfiguration")[0]["webhooks"][0]["clientConfig"]["caBundle"])

    devices, _ = rendered["devices"]
    agent = of_kind(devices, "DaemonSet")[0]["spec"]["template"]["spec"]
    check("devices: the agent of the inventory has nothing of the host",
          "volumes" not in agent and agent["securityContext"]["runAsNonRoot"] is True
          and agent["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}, agent)
    own_rules = [o["rules"] for o in of_kind(devices, "ClusterRole") if o["metadata"]["name"].endswith("-inventory")]
    check("devices: and may write inventories alone",
          [r["resources"] for r in own_rules[0] if set(r["verbs"]) - {"get"}] == [["nodeinventories"]], own_rules)
    source = (CHART.parent.parent / "crates" / "features" / "src" / "launcher.rs").read_text()
    spec = of_kind(devices, "Plugin")[0]["spec"]
    check("devices: the chart's Plugin waits for the socket of the program",
          spec["failureStrategy"] == "Fail" and "virt-steward.sock" in source and "launcherHooks" not in spec
          and spec["domainHooks"][0]["sidecar"]["socketPath"]
          == "/var/run/kubevirt-plugin/virt-steward/virt-steward.sock", spec)
    features = yaml.safe_load(config_file(devices))["features"]
    check("devices: the program knows", (features["availability"], features["vbiosInjection"]["registerPlugin"]) == ("Deny", True))

    existing, _ = rendered["existing-secret"]
    pod = of_kind(existing, "Deployment")[0]["spec"]["template"]["spec"]
    check("existing-secret: mounted", any(v.get("secret", {}).get("secretName") == "webhook-certificate" for v in pod["volumes"]))
    check("existing-secret: no Secret made", of_kind(existing, "Secret") == [])

    strict, _ = rendered["strict"]
    check("strict: Secrets only where asked", reads(strict, "secrets") == ["team-a"], reads(strict, "secrets"))
    check("strict: ConfigMaps only where asked", reads(strict, "configmaps") == ["team-a", "team-b"])
    check("strict: digest", of_kind(strict, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]["image"].endswith("@sha256:" + 64 * "0"))
    objects, _ = rendered["files"]
    files = yaml.safe_load(config_file(objects))
    check("files: the paths are the program's", (files["tls"]["certFile"], files["tls"]["source"]) == ("/path/to/tls.crt", "files"))
    check("files: no Secret of ours is mounted", all(v["name"] != "certs" for v in of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]["volumes"]))
    check("files: traces are sent", files["telemetry"]["otlpEndpoint"].endswith(":4318"))
    out = [p["port"] for rule in of_kind(objects, "NetworkPolicy")[0]["spec"]["egress"] for p in rule["ports"]]
    check("files: the collector is let out", 4318 in out, out)
    check("files: the Prometheus that is named by URL is let out", 9090 in out, out)
    alerts = {r["alert"] for g in of_kind(strict, "PrometheusRule")[0]["spec"]["groups"] for r in g["rules"]}
    runbooks = (CHART.parent.parent / "docs" / "runbooks.md").read_text()
    for alert in sorted(alerts):
        check(f"strict: {alert} has a runbook", f"## {alert}" in runbooks)
    check("strict: four alerts", len(alerts) == 4, alerts)
    exported = METRICS.read_text()
    expressions = " ".join(r["expr"] for g in of_kind(strict, "PrometheusRule")[0]["spec"]["groups"] for r in g["rules"])
    used = set(re.findall(r"\b((?:webhook|feature)_[a-z_]+)\{", expressions))
    check("strict: alerts use at least three of our metrics", len(used) >= 3, used)
    for metric in sorted(used):
        name = re.sub("_(total|bucket)$", "", metric)
        check(f"strict: the program exports {metric}", f'"{name}"' in exported)


    resize, _ = rendered["resize"]
    alerts = {r["alert"] for g in of_kind(resize, "PrometheusRule")[0]["spec"]["groups"] for r in g["rules"]}
    check("resize: alerts", {"VirtStewardResizeLasts", "VirtStewardResizesFail"} <= alerts, alerts)
    for alert in sorted(alerts):
        check(f"resize: {alert} has a runbook", f"## {alert}" in runbooks)
    expressions = " ".join(r["expr"] for g in of_kind(resize, "PrometheusRule")[0]["spec"]["groups"] for r in g["rules"])
    for metric in sorted(set(re.findall(r"\b(resize[a-z_]*)\{", expressions))):
        check(f"resize: the program exports {metric}", f'"{re.sub("_(total|bucket)$", "", metric)}"' in exported)
    grants = [o for o in resize if o["kind"] in ("ClusterRole", "Role") and any("impersonate" in r["verbs"] for r in o["rules"])]
    check("resize: acting as virt-controller is a Role of its own, in KubeVirt's namespace, for one account",
          [(o["kind"], o["metadata"]["namespace"], [(r["resourceNames"], r["verbs"]) for r in o["rules"]]) for o in grants]
          == [("Role", "kubevirt", [(["kubevirt-controller"], ["impersonate"])])], grants)
    for name, (objects, _) in rendered.items():
        check(f"{name}: nobody acts as virt-controller unasked",
              name == "resize" or not any("impersonate" in r["verbs"] and "serviceaccounts" in r["resources"]
                                          for r in rules(objects)))
    agent = of_kind(resize, "DaemonSet")[0]["spec"]["template"]["spec"]
    context = agent["containers"][0]["securityContext"]
    check("resize: the agent is root with one capability, and no more",
          (context["runAsUser"], context["capabilities"], context["allowPrivilegeEscalation"], context.get("privileged", False))
          == (0, {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]}, False, False), context)
    check("resize: the agent has neither the node's network nor its processes, and opens no port",
          not any(agent.get(k) for k in ("hostNetwork", "hostPID", "hostIPC")) and "ports" not in agent["containers"][0])
    check("resize: the agent reads kubelet's pods and nothing else of the node",
          [(v["hostPath"]["path"], m["readOnly"]) for v, m in zip(agent["volumes"], agent["containers"][0]["volumeMounts"])]
          == [("/var/lib/kubelet/pods", True)], agent["volumes"])


REFUSED = {
    "an unknown key": {"replicaCont": 2},
    "an unknown feature": {"features": {"teleport": {"enabled": True}}},
    "an unknown key of a feature": {"features": {"pciPassthrough": {"max": 4}}},
    "a wrong error mode": {"errorHandling": {"mode": "ignore"}},
    "a wrong error mode of a feature": {"features": {"pciPassthrough": {"errorHandling": "deny"}}},
    "a wrong failure policy": {"webhook": {"failurePolicy": "fail"}},
    "a timeout over Kubernetes' limit": {"webhook": {"timeoutSeconds": 31}},
    "a wrong source": {"configSource": "env"},
    "no replica": {"replicaCount": 0},
    "a malformed address": {"features": {"pciPassthrough": {"addressMap": {"00:02.0": "a/b"}}}},
    "a digest that is none": {"image": {"digest": "latest"}},
    "a privileged port": {"webhook": {"port": 443}},
    "a wrong way to tell callers apart": {"rest": {"enabled": True, "auth": "none"}},
    "a certificate without its CA": {"tls": {"certManager": {"enabled": False}, "manual": {"existingSecret": "x"}}},
    "a key without its certificate": {"tls": {"certManager": {"enabled": False}, "manual": {"tlsKey": "eA==", "caCert": "eA=="}}},
    "a certificate file without its key": {"tls": {"certManager": {"enabled": False}, "manual": {"caCert": "eA=="}, "certFile": "/a"}},
    "a foreign issuer without a name": {"tls": {"certManager": {"createIssuer": False}}},
}


def refused(chart):
    for what, values in REFUSED.items():
        try:
            chart.validate_schema(chart.merge_values(values))
            render(chart, values)
            check(f"refuses {what}", False, values)
        except helm.HelmError as error:
            check(f"refuses {what}", str(error) != "")


def closed(schema, path="values"):
    """Every object of the schema whose keys are known refuses others; env entries are Kubernetes' own."""
    if isinstance(schema, dict):
        if "properties" in schema and path != "values.properties.env.items":
            check(f"schema refuses unknown keys at {path}", schema.get("additionalProperties") is False)
        for key, inner in schema.items():
            closed(inner, f"{path}.{key}")


def documented():
    """Every value has a row in the chart's README."""
    readme = (CHART / "README.md").read_text()

    def walk(prefix, value):
        if isinstance(value, dict) and value and prefix not in OPAQUE:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            check(f"README explains {prefix}", f"`{prefix}`" in readme)

    walk("", yaml.safe_load((CHART / "values.yaml").read_text()))


OPAQUE = {"resources", "podSecurityContext", "securityContext", "livenessProbe", "readinessProbe"}


def run_check():
    print(f"helm engine {helm.helm_sdk_version()}")
    with helm.Chart.load(CHART) as chart:
        rendered = {}
        for name, values in value_sets().items():
            report = helm.lint(CHART, values, strict=True, kube_version="v1.30.0")
            worst = [m for m in report["messages"] if m["severity"] >= 2]
            check(f"{name}: lint", not report["errors"] and not worst, report)
            chart.validate_schema(chart.merge_values(values))
            objects, notes = render(chart, values)
            inspect(name, objects)
            rendered[name] = objects, notes
            print(f"  {name}: {len(objects)} objects")
        inspect_each(rendered)
        refused(chart)
        closed(chart.schema)
    documented()


def write_configs(directory):
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with helm.Chart.load(CHART) as chart:
        for name, values in value_sets().items():
            (directory / f"{name}.yaml").write_text(config_file(render(chart, values)[0]))


def prerequisites():
    """What the value sets expect of a cluster: namespaces, and the kinds of cert-manager and Prometheus."""
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in (NAMESPACE, "team-a", "team-b")
    ]
    kinds = {
        "cert-manager.io/v1": ["Certificate", "Issuer"],
        "monitoring.coreos.com/v1": ["ServiceMonitor", "PrometheusRule"],
    }
    for group_version, names in kinds.items():
        group, version = group_version.split("/")
        for kind in names:
            plural = f"{kind.lower()}s"
            schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
            objects.append({
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": f"{plural}.{group}"},
                "spec": {
                    "group": group,
                    "scope": "Namespaced",
                    "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
                    "versions": [{"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
                },
            })
    return objects


def write_manifests(directory):
    directory = pathlib.Path(directory)
    (directory / "prerequisites").mkdir(parents=True, exist_ok=True)
    (directory / "prerequisites" / "all.yaml").write_text(yaml.safe_dump_all(prerequisites(), sort_keys=False))
    with helm.Chart.load(CHART) as chart:
        for name, values in value_sets().items():
            text = yaml.safe_dump_all(render(chart, values)[0], sort_keys=False)
            (directory / f"{name}.yaml").write_text(text)


def prepare(config):
    """Brings the prerequisites into the cluster as a release of their own."""
    with tempfile.TemporaryDirectory() as directory:
        chart = pathlib.Path(directory) / "prerequisites"
        (chart / "templates").mkdir(parents=True)
        (chart / "Chart.yaml").write_text("apiVersion: v2\nname: prerequisites\nversion: 0.1.0\n")
        objects = [o for o in prerequisites() if o["metadata"]["name"] != NAMESPACE]
        (chart / "templates" / "all.yaml").write_text(yaml.safe_dump_all(objects, sort_keys=False))
        config.install(chart, "prerequisites", namespace=NAMESPACE, create_namespace=True, timeout=60)


def install(kubeconfig):
    print(f"helm engine {helm.helm_sdk_version()}")
    # Releases in memory: Helm 4 writes its own Secrets as protobuf, which the sandbox does not read.
    config = helm.Config(kubeconfig_path=kubeconfig, namespace=NAMESPACE, storage_driver="memory")
    prepare(config)
    for name, values in value_sets().items():
        try:
            release = config.install(CHART, RELEASE, values, namespace=NAMESPACE, timeout=60)
            objects = [d for d in yaml.safe_load_all(release["manifest"]) if d]
            check(f"{name}: installs", len(objects) > 0)
            config.upgrade(CHART, RELEASE, {**values, "logLevel": "warn"}, namespace=NAMESPACE, timeout=60)
            check(f"{name}: upgrades", config.status(RELEASE).get("revision") == 2, config.status(RELEASE))
            config.uninstall(RELEASE)
            print(f"  {name}: {len(objects)} objects installed, upgraded and removed")
        except helm.HelmError as error:
            check(f"{name}: install, upgrade, uninstall", False, error)
    config.close()


def main():
    match sys.argv[1:]:
        case ["check"]:
            run_check()
        case ["configs", directory]:
            write_configs(directory)
        case ["manifests", directory]:
            write_manifests(directory)
        case ["install", kubeconfig]:
            install(kubeconfig)
        case _:
            sys.exit(__doc__)
    if checks:
        print(f"COUNT: {checks} checks, {failures} failed")
    sys.exit(1 if failures else 0)


main()
