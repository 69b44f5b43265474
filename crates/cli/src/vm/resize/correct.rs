//! Other requests and limits for a launcher that runs, and nothing else: what users asked for on
//! VEP 45, where a wrong `limits.memory` needs a restart.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use ::resize::ledger::{self, LEDGER, Ledger};
use ::resize::machine::Actuation;
use ::resize::quantity::{bytes, millis, show_bytes, show_cpu};
use ::resize::size::{Amount, Compute};
use ::resize::{qos, view};
use anyhow::Result;
use http::Method;
use serde_json::{Value, json};

use super::read::Found;
use super::{Where, shape};
use crate::cli::DENIED;
use crate::cluster::Cluster;
use crate::output::print;
use crate::presented::{Document, document};
use crate::problem::Problem;
use crate::table;

/// How often the pod is looked at.
const LOOK: Duration = Duration::from_millis(300);
/// From here on memory limits of running pods may be lowered.
const LOWER_LIMITS: u32 = 34;

/// The launcher pod's own requests and limits.
#[derive(Debug, Default, clap::Args)]
#[group(multiple = true)]
pub struct Corrections {
    /// Memory limit of the launcher pod alone
    #[arg(long, value_name = "AMOUNT", conflicts_with_all = ["sockets", "memory"])]
    limit_memory: Option<String>,
    /// Memory request of the launcher pod alone
    #[arg(long, value_name = "AMOUNT", conflicts_with_all = ["sockets", "memory"])]
    request_memory: Option<String>,
    /// CPU limit of the launcher pod alone
    #[arg(long, value_name = "CPUS", conflicts_with_all = ["sockets", "memory"])]
    limit_cpu: Option<String>,
    /// CPU request of the launcher pod alone
    #[arg(long, value_name = "CPUS", conflicts_with_all = ["sockets", "memory"])]
    request_cpu: Option<String>,
}

impl Corrections {
    /// Whether any is asked for.
    pub fn are_asked_for(&self) -> bool {
        [&self.limit_memory, &self.request_memory, &self.limit_cpu, &self.request_cpu]
            .iter()
            .any(|one| one.is_some())
    }

    fn of(&self, now: Compute) -> Result<Compute> {
        let memory = |text: &Option<String>| read(text.as_deref(), bytes, "memory", "8Gi or 512Mi");
        let cpu = |text: &Option<String>| read(text.as_deref(), millis, "CPU", "2 or 500m");
        let corrected = |now: Amount, request: Option<u64>, limit: Option<u64>| Amount {
            request: request.unwrap_or(now.request),
            limit: limit.or(now.limit),
        };
        Ok(Compute {
            cpu: corrected(now.cpu, cpu(&self.request_cpu)?, cpu(&self.limit_cpu)?),
            memory: corrected(now.memory, memory(&self.request_memory)?, memory(&self.limit_memory)?),
        })
    }
}

fn read(text: Option<&str>, of: fn(&Value) -> Option<u64>, what: &str, forms: &str) -> Result<Option<u64>> {
    let Some(text) = text else { return Ok(None) };
    match of(&json!(text)).filter(|amount| *amount > 0) {
        Some(amount) => Ok(Some(amount)),
        None => Err(Problem::new(
            format!("reading the amount `{text}`"),
            format!("it is no amount of {what}"),
            format!("write it as {forms}"),
        )
        .into()),
    }
}

/// What stands against it; nothing when it may be tried.
fn against(found: &Found, now: Compute, then: Compute) -> Option<(String, &'static str)> {
    if let Ok(Some(ledger)) = ledger::read::<Ledger>(&found.vmi, LEDGER)
        && ledger.phase.is_under_way()
    {
        let wrong = "a resize of this VM is under way, which sets them itself".into();
        return Some((wrong, "wait for it: see `virt-steward vm resize-status`"));
    }
    for (name, amount, show) in
        [("CPU", then.cpu, show_cpu as fn(u64) -> String), ("memory", then.memory, show_bytes)]
    {
        if let Some(limit) = amount.limit
            && limit < amount.request
        {
            let wrong = format!(
                "the {name} limit {} would be less than the pod requests, {}",
                show(limit),
                show(amount.request)
            );
            return Some((wrong, "give at least what is requested, or lower the request as well"));
        }
    }
    if then.memory.limit < now.memory.limit && found.kubernetes_minor < LOWER_LIMITS {
        let wrong =
            format!("Kubernetes 1.{} does not lower memory limits of running pods", found.kubernetes_minor);
        return Some((wrong, "upgrade to 1.34 or newer, or restart the VM"));
    }
    let (before, after) = (qos::class_with(&found.pod, now), qos::class_with(&found.pod, then));
    (before != after).then(|| {
        let wrong = format!("the pod's QoS class would change from {before} to {after}");
        (wrong, "keep requests and limits alike, or restart the VM with another template")
    })
}

/// What the run was asked to do beside the corrections.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub dry_run: bool,
    pub wait: bool,
    pub timeout: Duration,
    pub output: Option<Document>,
}

/// Plans, and unless it is a dry run, writes them.
pub async fn run(
    cluster: &Cluster,
    of: &Where,
    found: &Found,
    corrections: &Corrections,
    way: Way,
) -> Result<ExitCode> {
    let doing = format!("correcting requests and limits of the VM `{}`", of.name);
    let problem = |wrong: String, remedy: &str| Problem::new(doing.clone(), wrong, remedy);
    if found.pod.is_null() {
        return Err(problem("it does not run".into(), "change its template, and start it").into());
    }
    let now = view::pod_compute(&found.pod);
    let then = corrections.of(now)?;
    if let Some((wrong, remedy)) = against(found, now, then) {
        return Err(problem(wrong, remedy).into());
    }
    let line = |what: &str, of: fn(&Compute) -> Amount, show| {
        vec![what.to_owned(), super::line(of(&now), show), super::line(of(&then), show)]
    };
    let rows = vec![
        vec![String::new(), "NOW".into(), "THEN".into()],
        line("pod CPU", |compute| compute.cpu, show_cpu),
        line("pod memory", |compute| compute.memory, show_bytes),
    ];
    match way.output {
        None => print(&table::render(&rows))?,
        Some(format) => {
            let pod = json!({"name": found.pod["metadata"]["name"], "now": shape::resources(now),
                "then": shape::resources(then)});
            document(format, &json!({"namespace": of.namespace, "virtualMachine": of.name, "pod": pod}))?;
        }
    }
    eprintln!("the next start and the next migration take them from the VM's template: change it there, too");
    if way.dry_run || now == then {
        return Ok(ExitCode::SUCCESS);
    }
    write(cluster, of, &found.pod, then, &doing).await?;
    if way.wait { follow(cluster, of, &found.pod, now, way.timeout).await } else { Ok(ExitCode::SUCCESS) }
}

fn pod_path(of: &Where, pod: &Value) -> String {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    format!("/api/v1/namespaces/{}/pods/{name}", of.namespace)
}

async fn write(cluster: &Cluster, of: &Where, pod: &Value, to: Compute, doing: &str) -> Result<()> {
    let mut resources =
        json!({"requests": {"cpu": show_cpu(to.cpu.request), "memory": show_bytes(to.memory.request)}});
    if let Some(limit) = to.cpu.limit {
        resources["limits"]["cpu"] = show_cpu(limit).into();
    }
    if let Some(limit) = to.memory.limit {
        resources["limits"]["memory"] = show_bytes(limit).into();
    }
    let patch = json!({"metadata": {"uid": pod["metadata"]["uid"]},
        "spec": {"containers": [{"name": "compute", "resources": resources}]}});
    let path = format!("{}/resize", pod_path(of, pod));
    cluster
        .send(Method::PATCH, &path, "application/strategic-merge-patch+json", &patch)
        .await?
        .object(doing)?;
    Ok(())
}

/// Waits until kubelet has done it. What it will never do, or does not do in time, is put back, so
/// that no quota is held for it.
async fn follow(
    cluster: &Cluster,
    of: &Where,
    pod: &Value,
    before: Compute,
    timeout: Duration,
) -> Result<ExitCode> {
    let (begun, path) = (Instant::now(), pod_path(of, pod));
    let mut told = String::new();
    loop {
        let object: Value = cluster.get(&path).await.map_err(|error| {
            Problem::new(format!("reading `{path}`"), error, "check that the VM still runs")
        })?;
        let state = view::pod(&object).state;
        let (words, hopeless) = match &state {
            Actuation::Done => {
                eprintln!("done after {} s", begun.elapsed().as_secs());
                return Ok(ExitCode::SUCCESS);
            }
            Actuation::Pending => ("waiting for kubelet".to_owned(), false),
            Actuation::Deferred(why) => (format!("kubelet waits for room: {why}"), false),
            Actuation::Infeasible(why) => (format!("kubelet cannot do it: {why}"), true),
            Actuation::Error(why) => (format!("kubelet tried and failed: {why}"), false),
        };
        if words != told {
            eprintln!("{words}");
            told = words;
        }
        if hopeless || begun.elapsed() >= timeout {
            write(cluster, of, pod, before, "putting requests and limits back").await?;
            eprintln!("put back");
            return Ok(ExitCode::from(DENIED));
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compute(request: u64, limit: Option<u64>) -> Compute {
        let cpu = Amount { request: 200, limit: None };
        Compute { cpu, memory: Amount { request: request << 30, limit: limit.map(|limit| limit << 30) } }
    }

    #[test]
    fn what_cannot_be_corrected_is_said_before_it_is_sent() {
        let found = |minor| {
            let pod = json!({"spec": {"containers": [{"name": "compute"}, {"name": "side"}]}});
            Found { pod, kubernetes_minor: minor, ..Found::default() }
        };
        let (now, small) = (compute(1, Some(4)), compute(1, Some(2)));
        assert_eq!(against(&found(36), now, small), None);
        assert!(against(&found(33), now, small).unwrap().0.contains("does not lower memory limits"));
        assert!(
            against(&found(36), now, compute(3, Some(2))).unwrap().0.contains("less than the pod requests")
        );
        let mut lone = found(36);
        lone.pod = json!({"spec": {"containers": [{"name": "compute"}]}});
        let full =
            |memory| Compute { cpu: Amount { request: 200, limit: Some(200) }, ..compute(memory, Some(2)) };
        assert!(against(&lone, full(1), full(2)).unwrap().0.contains("from Burstable to Guaranteed"));
    }

    #[test]
    fn only_what_is_given_changes() {
        let corrections = Corrections {
            limit_memory: Some("8Gi".into()),
            request_cpu: Some("500m".into()),
            ..Corrections::default()
        };
        let then = corrections.of(compute(1, Some(4))).unwrap();
        assert_eq!(then.memory, compute(1, Some(8)).memory);
        assert_eq!(then.cpu.request, 500);
        let wrong = Corrections { limit_cpu: Some("much".into()), ..Corrections::default() };
        assert!(wrong.of(compute(1, None)).unwrap_err().to_string().contains("no amount of CPU"));
    }
}
