//! virt-launcher's side of hook sidecars against sidecars that behave and misbehave as in the
//! recordings (`../shared/golden/launcher/hooks`). What it says is compared with the log of the
//! real one where the recordings are at hand, and with the same words otherwise.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use apimachinery::tree::{Value, json};
use bytes::Bytes;
use hook_api::callbacks::{OnDefineDomainParams, OnDefineDomainResult, ShutdownResult};
use hook_api::info::{HookPoint, InfoResult};
use hook_api::plugins::{MutateDomainRequest, MutateDomainResponse};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use sandbox::sim::hooks::{Manager, PluginTiming, Timing, apply_plugins};
use tokio::net::UnixListener;

/// As the real ones, but what is waited for in vain is waited for shorter.
fn timing() -> Timing {
    Timing {
        poll: Duration::from_millis(10),
        dial: Duration::from_millis(200),
        info: Duration::from_secs(1),
        collect: Duration::from_secs(1),
        call: Duration::from_secs(2),
    }
}

/// How a sidecar behaves; the names are those of the recordings.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Case {
    Ok,
    Err,
    Empty,
    BadXml,
    Slow,
    InfoErr,
    InfoSlow,
    /// Speaks these versions.
    Versions(&'static [&'static str]),
    /// Appends a comment.
    Mark(&'static str),
}

type Log = Arc<Mutex<Vec<String>>>;

/// A sidecar at a socket; what it is asked goes to the log.
fn sidecar(socket: &Path, case: Case, log: &Log) {
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    let log = log.clone();
    tokio::spawn(async move {
        loop {
            let stream = listener.accept().await.unwrap().0;
            let log = log.clone();
            let service = hyper::service::service_fn(move |request| answer(request, case, log.clone()));
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
}

type Body = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

async fn answer(
    request: Request<Incoming>,
    case: Case,
    log: Log,
) -> Result<Response<Body>, std::convert::Infallible> {
    let path = request.uri().path().to_owned();
    let header = |name: &str| request.headers().get(name).unwrap().to_str().unwrap().to_owned();
    // as in raw-http2-client.txt
    assert_eq!(request.uri().authority().unwrap(), "localhost");
    assert_eq!(request.uri().scheme_str(), Some("http"));
    assert_eq!((header("content-type").as_str(), header("te").as_str()), ("application/grpc", "trailers"));
    assert!(header("grpc-timeout").ends_with('u') && header("user-agent").starts_with("grpc-go/"));
    log.lock().unwrap().push(path.clone());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let message = &body[5..];
    let method = path.rsplit('/').next().unwrap();
    let result: Result<Vec<u8>, (&str, &str)> = match (method, case) {
        ("Info", Case::InfoErr) => Err(("13", "boom")),
        ("Info", case) => {
            if case == Case::InfoSlow {
                std::future::pending::<()>().await;
            }
            let versions = match case {
                Case::Versions(versions) => versions,
                _ => &["v1alpha3"],
            };
            let point = |name: &str| HookPoint { name: name.to_owned(), priority: 0 };
            Ok(InfoResult {
                name: "lab".into(),
                hook_points: vec![point("OnDefineDomain"), point("Shutdown"), point("Unknown")],
                versions: versions.iter().map(|one| (*one).to_owned()).collect(),
            }
            .encode_to_vec())
        }
        ("OnDefineDomain" | "MutateDomain", Case::Err) => Err(("9", "sidecar says no")),
        ("OnDefineDomain", case) => {
            let mut domain_xml = OnDefineDomainParams::decode(message).unwrap().domain_xml;
            match case {
                Case::Empty => domain_xml.clear(),
                Case::BadXml => domain_xml.truncate(domain_xml.len() - "</domain>".len()),
                Case::Slow => std::future::pending().await,
                Case::Mark(mark) => domain_xml.extend(format!("<!--{mark}-->").bytes()),
                _ => {}
            }
            Ok(OnDefineDomainResult { domain_xml }.encode_to_vec())
        }
        ("MutateDomain", _) => {
            let mut domain = MutateDomainRequest::decode(message).unwrap().domain;
            let end = domain.len() - "</domain>".len();
            domain.splice(end..end, *b"<!--plugin-->");
            Ok(MutateDomainResponse { domain }.encode_to_vec())
        }
        ("Shutdown", _) => Ok(ShutdownResult {}.encode_to_vec()),
        other => panic!("{other:?}"),
    };
    let mut response = Response::builder().header("content-type", "application/grpc");
    let frames = match result {
        Ok(message) => {
            let mut frame = vec![0];
            frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
            frame.extend(message);
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            vec![Ok(Frame::data(Bytes::from(frame))), Ok(Frame::trailers(trailers))]
        }
        Err((code, text)) => {
            response = response.header("grpc-status", code).header("grpc-message", text);
            vec![]
        }
    };
    let body = StreamBody::new(futures::stream::iter(frames));
    Ok(response.body(BodyExt::boxed(body)).unwrap())
}

struct Lab {
    directory: tempfile::TempDir,
    log: Log,
}

impl Lab {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), log: Log::default() }
    }

    fn socket(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn with(self, path: &str, case: Case) -> Self {
        sidecar(&self.socket(path), case, &self.log);
        self
    }

    async fn collect(&self, count: usize) -> Result<Manager, String> {
        Manager::collect(self.directory.path(), count, timing()).await.map_err(|error| error.to_string())
    }

    async fn define(&self, count: usize) -> Result<String, String> {
        let manager = self.collect(count).await.unwrap();
        let defined = manager.on_define_domain("<domain>\n</domain>".into(), b"{}").await;
        defined.map(|xml| String::from_utf8(xml).unwrap()).map_err(|error| error.to_string())
    }

    fn calls(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

const ONE: &str = "hook-sidecar-0/lab.sock";

/// The reasons in the log of the real virt-launcher; `None`: no recordings are at hand.
fn recorded(case: &str) -> Option<String> {
    let named = std::env::var_os("GOLDEN_HOOKS").map(PathBuf::from);
    let usual = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden/launcher/hooks"));
    let directory = named.or(Some(usual)).filter(|path| path.is_dir())?;
    Some(std::fs::read_to_string(directory.join(case).join("launcher-excerpt.log")).unwrap())
}

fn as_recorded(case: &str, said: &str) {
    match recorded(case) {
        Some(log) => assert!(log.contains(said), "{case}: the real one did not say {said:?}: {log}"),
        None => eprintln!("skipped: no recording to compare {said:?} with"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_a_launcher_ends_ours_with_the_same_words() {
    for (name, case, said) in [
        ("infoerr", Case::InfoErr, "rpc error: code = Internal desc = boom"),
        (
            "v9",
            Case::Versions(&["v1beta9"]),
            "Hook sidecar does not expose a supported version. Exposed versions: [v1beta9], supported versions: [v1alpha3 v1alpha2 v1alpha1]",
        ),
    ] {
        let lab = Lab::new().with(ONE, case);
        assert_eq!(lab.collect(1).await.unwrap_err(), said);
        as_recorded(name, said);
    }
    // grpc-go says either of two things, by whose clock runs out first
    let lab = Lab::new().with(ONE, Case::InfoSlow);
    assert!(lab.collect(1).await.unwrap_err().starts_with("rpc error: code = DeadlineExceeded desc = "));
    as_recorded("infoslow", "rpc error: code = DeadlineExceeded desc = ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sidecars_that_are_not_found_are_waited_for_in_vain() {
    let said = "Failed to collect all expected sidecar hook sockets within given timeout";
    let none = Lab::new();
    assert_eq!(none.collect(1).await.unwrap_err(), said);
    let flat = Lab::new().with("lab.sock", Case::Ok);
    assert_eq!(flat.collect(1).await.unwrap_err(), said);
    assert!(flat.calls().is_empty(), "a socket at the top is not looked at");
    let same = Lab::new().with(ONE, Case::Ok).with("hook-sidecar-1/lab.sock", Case::Ok);
    assert_eq!(same.collect(2).await.unwrap_err(), said);
    assert_eq!(same.calls().len(), 1, "the second of the same name is never dialled");
    for case in ["none", "flat", "two-same"] {
        as_recorded(case, said);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_socket_costs_time_and_no_more() {
    let lab = Lab::new().with(ONE, Case::Ok);
    std::fs::write(lab.socket("hook-sidecar-0/a.rom"), "stray").unwrap();
    std::fs::create_dir(lab.socket("hook-sidecar-0/vbios")).unwrap();
    std::fs::write(lab.socket("hook-sidecar-0/vbios/b.rom"), "not looked at").unwrap();
    assert!(lab.collect(1).await.is_ok());
    as_recorded("stray", "context deadline exceeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_sidecar_refuses_is_said_word_for_word() {
    for (name, case, said) in [
        ("err", Case::Err, "rpc error: code = FailedPrecondition desc = sidecar says no"),
        ("slow", Case::Slow, "rpc error: code = DeadlineExceeded desc = context deadline exceeded"),
    ] {
        assert_eq!(Lab::new().with(ONE, case).define(1).await.unwrap_err(), said);
        as_recorded(name, said);
    }
    assert_eq!(Lab::new().with(ONE, Case::Empty).define(1).await.unwrap(), "");
    assert_eq!(Lab::new().with(ONE, Case::BadXml).define(1).await.unwrap(), "<domain>\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_common_version_is_called_and_sidecars_follow_each_other() {
    for (versions, method) in [
        (&["v1alpha2", "v1alpha1"][..], "/kubevirt.hooks.v1alpha2.Callbacks/OnDefineDomain"),
        (&["v9", "v1alpha3"], "/kubevirt.hooks.v1alpha3.Callbacks/OnDefineDomain"),
        (&["v1alpha1", "v1alpha2", "v1alpha3"], "/kubevirt.hooks.v1alpha3.Callbacks/OnDefineDomain"),
    ] {
        let lab = Lab::new().with(ONE, Case::Versions(versions));
        let manager = lab.collect(1).await.unwrap();
        manager.on_define_domain("<domain/>".into(), b"{}").await.unwrap();
        manager.shutdown().await;
        let mut expected = vec!["/kubevirt.hooks.info.Info/Info".to_owned(), method.to_owned()];
        if method.contains("v1alpha3") {
            expected.push("/kubevirt.hooks.v1alpha3.Callbacks/Shutdown".to_owned());
        }
        assert_eq!(lab.calls(), expected, "{versions:?}");
    }
    let two = Lab::new().with("hook-sidecar-1/b.sock", Case::Mark("1")).with(ONE, Case::Mark("0"));
    assert_eq!(two.define(2).await.unwrap(), "<domain>\n</domain><!--0--><!--1-->");
}

/// Plugins are asked by name, when their condition is met; with any Plugin what KubeVirt does not know is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_are_asked_as_virt_launcher_asks_them() {
    let lab = Lab::new().with("good/a.sock", Case::Ok).with("bad/a.sock", Case::Err);
    let plugin = |name: &str, condition: &str, strategy: &str| {
        json!({"metadata": {"name": name}, "spec": {"condition": condition, "failureStrategy": strategy,
            "domainHooks": [{"sidecar": {"socketPath": format!("/var/run/kubevirt-plugin/{name}/a.sock")}}]}})
    };
    let vmi = json!({"metadata": {"name": "v", "annotations": {"ours": "1"}}});
    let hostdev =
        |rom: &str| format!("<domain><devices><hostdev><alias name='a'/>{rom}</hostdev></devices></domain>");
    let before = hostdev("<rom file='/x'/>");
    let timing = PluginTiming {
        poll: Duration::from_millis(5),
        ready: Duration::from_millis(50),
        dial: Duration::from_millis(200),
        call: Duration::from_secs(2),
    };
    let apply = async |plugins: &[Value]| {
        let applied =
            apply_plugins(plugins, &vmi, before.clone().into_bytes(), lab.directory.path(), timing).await;
        applied.map(|xml| String::from_utf8(xml).unwrap())
    };
    assert_eq!(apply(&[]).await.unwrap(), before, "without a Plugin the ROM stays");
    assert_eq!(apply(&[plugin("good", "'theirs' in vmi.Annotations", "")]).await.unwrap(), hostdev(""));
    assert!(lab.calls().is_empty());
    let both = [plugin("good", "'ours' in vmi.Annotations", ""), plugin("bad", "", "Ignore")];
    let expected = hostdev("").replace("</domain>", "<!--plugin--></domain>");
    assert_eq!(apply(&both).await.unwrap(), expected);
    let method = "/kubevirt.hooks.plugins.v1alpha1.DomainHookService/MutateDomain";
    assert_eq!(lab.calls(), [method, method]);
    for (plugins, said) in [
        (
            plugin("bad", "", ""),
            "plugin bad hook 0 failed: MutateDomain RPC to bad failed with FailedPrecondition: sidecar says no",
        ),
        (
            plugin("gone", "", "Fail"),
            "plugin gone hook 0 failed: sidecar socket /var/run/kubevirt-plugin/gone/a.sock not ready",
        ),
        (plugin("good", "vmi.metadata", ""), "plugin good condition evaluation failed"),
    ] {
        let error = apply(std::slice::from_ref(&plugins)).await.unwrap_err();
        assert!(error.starts_with(said), "{error}");
    }
    let mut outside = plugin("good", "", "");
    outside["spec"]["domainHooks"][0]["sidecar"]["socketPath"] = json!("/var/run/kubevirt-plugin/bad/a.sock");
    assert!(apply(&[outside]).await.unwrap_err().contains("is outside /var/run/kubevirt-plugin/good/"));
}

/// A domain and its VMI as they were sent, and what was answered.
type Exchange = (Vec<u8>, Vec<u8>, Option<Vec<u8>>);

/// Answers the recorded bytes to the recorded question, and complains about any other.
async fn recorded_sidecar(socket: PathBuf, rounds: Vec<Exchange>) {
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let rounds = Arc::new(Mutex::new(rounds.into_iter()));
    loop {
        let stream = listener.accept().await.unwrap().0;
        let rounds = rounds.clone();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let rounds = rounds.clone();
            async move {
                let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let point = |name: &str| HookPoint { name: name.to_owned(), priority: 0 };
                let message = if method == "Info" {
                    InfoResult {
                        name: "recorded".into(),
                        hook_points: vec![point("OnDefineDomain")],
                        versions: vec!["v1alpha3".into()],
                    }
                    .encode_to_vec()
                } else {
                    let (xml, vmi, answer) = rounds.lock().unwrap().next().unwrap();
                    let asked = OnDefineDomainParams::decode(&body[5..]).unwrap();
                    assert_eq!((asked.domain_xml, asked.vmi), (xml, vmi));
                    // nothing was recorded where nothing was answered
                    OnDefineDomainResult { domain_xml: answer.unwrap_or_default() }.encode_to_vec()
                };
                let mut frame = vec![0];
                frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
                frame.extend(message);
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                let frames: Vec<Result<_, std::convert::Infallible>> =
                    vec![Ok(Frame::data(Bytes::from(frame))), Ok(Frame::trailers(trailers))];
                let response = Response::builder().header("content-type", "application/grpc");
                let body = StreamBody::new(futures::stream::iter(frames));
                Ok::<_, std::convert::Infallible>(response.body(body).unwrap())
            }
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
    }
}

/// Every exchange of a real virt-launcher with a sidecar, once more between ours and one that answers as recorded:
/// the same bytes go out and come in, and what was defined then is defined.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_recorded_exchange_replays() {
    // cases in which no domain was asked for are told word by word in the tests above
    const WITHOUT_DOMAIN: [&str; 7] = ["flat", "infoerr", "infoslow", "none", "raw", "two-same", "v9"];
    let named = std::env::var_os("GOLDEN_HOOKS").map(PathBuf::from);
    let usual = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden/launcher/hooks"));
    let Some(recordings) = named.or(Some(usual)).filter(|path| path.is_dir()) else {
        eprintln!("skipped: no recordings (set GOLDEN_HOOKS)");
        return;
    };
    let mut replayed = 0;
    for case in
        std::fs::read_dir(recordings).unwrap().map(|one| one.unwrap().path()).filter(|path| path.is_dir())
    {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let read =
            |round: usize, kind: &str| std::fs::read(case.join(format!("ondefine-{round}.{kind}"))).ok();
        let rounds: Vec<_> = (1..=2)
            .filter_map(|round| {
                Some((read(round, "in.xml")?, read(round, "vmi.json")?, read(round, "out.xml")))
            })
            .collect();
        assert_eq!(rounds.is_empty(), WITHOUT_DOMAIN.contains(&name.as_str()), "{name}");
        if rounds.is_empty() {
            continue;
        }
        let home = tempfile::tempdir().unwrap();
        let server = tokio::spawn(recorded_sidecar(home.path().join(ONE), rounds.clone()));
        let manager = Manager::collect(home.path(), 1, timing()).await.unwrap();
        for (xml, vmi, answer) in rounds {
            let defined = manager.on_define_domain(String::from_utf8(xml).unwrap(), &vmi).await.unwrap();
            assert_eq!(defined, answer.unwrap_or_default(), "{name}");
            replayed += 1;
        }
        server.abort();
    }
    assert!(replayed >= 20, "only {replayed} exchanges were found");
}
