//! What the server makes of objects of built-in kinds: defaults, the form of amounts, what it refuses.

use serde_json::{Value, json};

use crate::cluster::Cluster;

fn object(api_version: &str, kind: &str, rest: &Value) -> Value {
    let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "a"}});
    object.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    object
}

fn template(restart: &str) -> Value {
    json!({"metadata": {"labels": {"a": "b"}},
        "spec": {"restartPolicy": restart, "containers": [{"name": "c", "image": "registry.example/x:1"}]}})
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_in_the_servers_words() {
    let c = Cluster::new("kinds").await;
    let apps = c.group("apps/v1", "deployments");
    let jobs = c.group("batch/v1", "jobs");
    let budgets = c.group("policy/v1", "poddisruptionbudgets");
    let cases = [
        (
            c.path("configmaps"),
            "v1",
            "ConfigMap",
            json!({"data": {"a b": "1"}}),
            "data[a b]: Invalid value: \"a b\": a valid config key must consist of",
        ),
        (
            c.path("secrets"),
            "v1",
            "Secret",
            json!({"type": "kubernetes.io/tls"}),
            "[data[tls.crt]: Required value, data[tls.key]: Required value]",
        ),
        (c.path("services"), "v1", "Service", json!({"spec": {}}), "spec.ports: Required value"),
        (
            c.path("services"),
            "v1",
            "Service",
            json!({"spec": {"ports": [{"port": 80}, {"port": 81}]}}),
            "[spec.ports[0].name: Required value, spec.ports[1].name: Required value]",
        ),
        (
            c.path("persistentvolumeclaims"),
            "v1",
            "PersistentVolumeClaim",
            json!({"spec": {}}),
            "[spec.accessModes: Required value: at least 1 access mode is required, spec.resources[storage]: Required value]",
        ),
        (
            c.path("limitranges"),
            "v1",
            "LimitRange",
            json!({"spec": {"limits": [{"type": "Container", "max": {"memory": "1Gi"}, "default": {"memory": "2Gi"}, "defaultRequest": {"memory": "1Gi"}}]}}),
            "spec.limits[0].default[memory]: Invalid value: \"1Gi\": default value 2Gi is greater than max value 1Gi",
        ),
        (
            apps.clone(),
            "apps/v1",
            "Deployment",
            json!({"spec": {}}),
            "[spec.selector: Required value, spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`, spec.template.spec.containers: Required value]",
        ),
        (
            jobs.clone(),
            "batch/v1",
            "Job",
            json!({"spec": {"template": template("Always")}}),
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
        ),
        (
            budgets,
            "policy/v1",
            "PodDisruptionBudget",
            json!({"spec": {"minAvailable": "150%"}}),
            "spec.minAvailable: Invalid value: \"150%\": must not be greater than 100%",
        ),
        (
            c.group("coordination.k8s.io/v1", "leases"),
            "coordination.k8s.io/v1",
            "Lease",
            json!({"spec": {"leaseDurationSeconds": 0}}),
            "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
        ),
        (
            c.group("rbac.authorization.k8s.io/v1", "roles"),
            "rbac.authorization.k8s.io/v1",
            "Role",
            json!({"rules": [{"verbs": ["get"]}]}),
            "[rules[0].apiGroups: Required value: resource rules must supply at least one api group, rules[0].resources: Required value: resource rules must supply at least one resource]",
        ),
        (
            c.path("pods"),
            "v1",
            "Pod",
            json!({"spec": {"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]}}),
            "spec.containers[1].name: Duplicate value: \"c\"",
        ),
        (
            c.path("pods"),
            "v1",
            "Pod",
            json!({"spec": {"containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}}),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            c.path("pods"),
            "v1",
            "Pod",
            json!({"spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"example.com/x": "1"}}}]}}),
            "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources",
        ),
        (
            c.path("pods"),
            "v1",
            "Pod",
            json!({"spec": {"restartPolicy": "Perhaps", "containers": [{"name": "c", "image": "i"}]}}),
            "spec.restartPolicy: Unsupported value: \"Perhaps\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ),
    ];
    for (path, version, kind, rest, why) in cases {
        let refused =
            c.post(&format!("{path}?dryRun=All"), &object(version, kind, &rest)).await.fails(422, "Invalid");
        let message = refused["message"].as_str().unwrap();
        assert!(message.contains(&format!(" \"a\" is invalid: {why}")), "{message}");
    }
    c.end().await;
}

#[tokio::test]
async fn amounts_are_written_in_their_shortest_form() {
    let c = Cluster::new("amounts").await;
    let claim = |storage: &str| {
        object(
            "v1",
            "PersistentVolumeClaim",
            &json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "resources": {"requests": {"storage": storage}}}}),
        )
    };
    let path = format!("{}?dryRun=All", c.path("persistentvolumeclaims"));
    for (given, written) in [("1.5Gi", "1536Mi"), ("1024Mi", "1Gi"), ("1000M", "1G"), ("35M", "35M")] {
        let made = c.post(&path, &claim(given)).await.is(201);
        assert_eq!(made["spec"]["resources"]["requests"]["storage"], written);
    }
    let refused = c.post(&path, &claim("1Qi")).await.fails(400, "BadRequest");
    assert!(refused["message"].as_str().unwrap().contains("quantities must match the regular expression"));
    c.end().await;
}

#[tokio::test]
async fn the_server_completes_what_it_is_given() {
    let c = Cluster::new("defaults").await;
    let made =
        async |path: String, object: Value| c.post(&format!("{path}?dryRun=All"), &object).await.is(201);
    let spec = json!({"spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": template("Always")}});
    let deployment = made(c.group("apps/v1", "deployments"), object("apps/v1", "Deployment", &spec)).await;
    let rolling =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}});
    assert_eq!(deployment["spec"]["strategy"], rolling);
    let daemons = made(c.group("apps/v1", "daemonsets"), object("apps/v1", "DaemonSet", &spec)).await;
    assert_eq!(
        daemons["spec"]["updateStrategy"]["rollingUpdate"],
        json!({"maxSurge": 0, "maxUnavailable": 1})
    );

    let job = made(
        c.group("batch/v1", "jobs"),
        object("batch/v1", "Job", &json!({"spec": {"template": template("Never")}})),
    )
    .await;
    let uid = &job["metadata"]["uid"];
    assert_eq!(job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], *uid);
    let labels = &job["spec"]["template"]["metadata"]["labels"];
    assert_eq!(
        (&labels["job-name"], &labels["controller-uid"], &labels["a"]),
        (&json!("a"), uid, &json!("b"))
    );

    let snapshot = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
    let claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "",
        "resources": {"requests": {"storage": "1Gi"}}, "dataSource": snapshot}});
    let claim = made(c.path("persistentvolumeclaims"), object("v1", "PersistentVolumeClaim", &claim)).await;
    assert_eq!(claim["spec"]["dataSourceRef"], snapshot);
    assert_eq!(claim["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));

    let pod = json!({"spec": {"hostNetwork": true, "volumes": [{"name": "v"}], "containers": [{"name": "c", "image": "i",
        "ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"port": 80}}}]}});
    let pod = made(c.path("pods"), object("v1", "Pod", &pod)).await;
    assert_eq!(pod["spec"]["volumes"][0]["emptyDir"], json!({}));
    assert_eq!(pod["spec"]["containers"][0]["ports"][0]["hostPort"], 80);
    assert_eq!(pod["spec"]["containers"][0]["livenessProbe"]["httpGet"]["scheme"], "HTTP");
    c.end().await;
}

#[tokio::test]
async fn a_claim_in_use_outlives_its_deletion() {
    let c = Cluster::new("claims").await;
    let claim = object(
        "v1",
        "PersistentVolumeClaim",
        &json!({"spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}}),
    );
    c.post(&c.path("persistentvolumeclaims"), &claim).await.is(201);
    let mut user = object(
        "v1",
        "Pod",
        &json!({"spec": {"nodeName": "conformance-no-such-node",
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "a"}}],
        "containers": [{"name": "c", "image": "registry.example/x:1"}]}}),
    );
    user["metadata"]["name"] = "user".into();
    c.post(&c.path("pods"), &user).await.is(201);
    let path = c.path("persistentvolumeclaims/a");
    let going = c.delete(&path).await.is(200);
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    // The controller has had time to see it when it has let another claim go that nobody uses.
    let mut idle = claim.clone();
    idle["metadata"]["name"] = "idle".into();
    c.post(&c.path("persistentvolumeclaims"), &idle).await.is(201);
    c.delete(&c.path("persistentvolumeclaims/idle")).await.is(200);
    c.until(&c.path("persistentvolumeclaims/idle"), |answer| answer.code == 404).await;
    c.get(&path).await.is(200);
    c.delete_with(&c.path("pods/user"), &json!({"gracePeriodSeconds": 0})).await.is(200);
    c.until(&path, |answer| answer.code == 404).await;
    c.end().await;
}

#[tokio::test]
async fn a_bound_volume_outlives_its_deletion() {
    let c = Cluster::new("volumes").await;
    let volume = |name: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "none",
                "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/tmp/none"}}})
    };
    let (name, idle) = (format!("{}-v", c.namespace), format!("{}-i", c.namespace));
    let path = format!("/api/v1/persistentvolumes/{name}");
    for name in [&name, &idle] {
        let made = c.post("/api/v1/persistentvolumes", &volume(name)).await.is(201);
        assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pv-protection"]));
    }
    // What a controller for volumes makes of the two, where there is one.
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "a"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "none", "volumeName": name,
            "resources": {"requests": {"storage": "1Gi"}}}});
    let claim = c.post(&c.path("persistentvolumeclaims"), &claim).await.is(201);
    let reference = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": c.namespace, "name": "a",
        "uid": claim["metadata"]["uid"]});
    c.patch("merge", &path, &json!({"spec": {"claimRef": reference}})).await.is(200);
    let bound = json!({"status": {"phase": "Bound"}});
    c.patch("merge", &format!("{path}/status"), &bound).await.is(200);
    c.patch("merge", &c.path("persistentvolumeclaims/a/status"), &bound).await.is(200);

    assert!(c.delete(&path).await.is(200)["metadata"]["deletionTimestamp"].is_string());
    c.delete(&format!("/api/v1/persistentvolumes/{idle}")).await.is(200);
    c.until(&format!("/api/v1/persistentvolumes/{idle}"), |answer| answer.code == 404).await;
    c.get(&path).await.is(200);
    c.delete(&c.path("persistentvolumeclaims/a")).await.is(200);
    c.patch("merge", &format!("{path}/status"), &json!({"status": {"phase": "Released"}})).await;
    c.until(&path, |answer| answer.code == 404).await;
    c.end().await;
}
