//! Every operation through three faces: the command line, REST and the library. Each is told the same in its own
//! words, and the answers, or what is wrong and what to do about it, are compared.
//!
//! What only reads is asked about one VM, and the answers are the same to the letter. What changes something is done
//! to a VM for each face, and names, times and what is drawn are left out of the comparison.

use std::pin::Pin;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::program::{SandboxProgram, virt_steward};
use super::service::Service;
use super::{library, text};
use provider::{Error, Provider, VmId};

mod changes;
mod inside;
mod jobs;
mod kept;
mod reads;
mod running;

/// Nothing takes longer, even on a busy machine.
const MINUTES: Duration = Duration::from_mins(3);

/// The opening of a `WebSocket` (RFC 6455, section 1.3).
const HANDSHAKE: [&str; 4] = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

/// A cluster, seen from three sides.
struct Faces {
    sandbox: SandboxProgram,
    service: Service,
    library: Provider,
}

/// What a face answered, or what was wrong and what to do about it.
type Outcome = Result<Value, (String, String)>;

type Answer = Pin<Box<dyn Future<Output = Result<Value, Error>>>>;

/// Something that the library does to the VM of a name.
type Act = Box<dyn Fn(Provider, String) -> Answer>;

/// An operation, told to each face; `{}` stands for the name of the VM.
struct Row {
    /// Arguments of the program; empty where it has no such verb.
    line: &'static str,
    /// The verb says what it did in words alone.
    in_words: bool,
    /// REST is asked for a `WebSocket`.
    upgrades: bool,
    /// Method and path.
    rest: &'static str,
    body: Value,
    /// Where in the answer of REST that is which the others give.
    part: &'static str,
    code: Act,
    /// It is refused, by each face with the same words.
    refused: bool,
    /// What is compared instead of the answers, where the faces answer differently: what the library sees then.
    seen: Option<Act>,
}

fn act<T: Serialize, F>(act: impl Fn(Provider, String) -> F + 'static) -> Act
where
    F: Future<Output = Result<T, Error>> + 'static,
{
    Box::new(move |provider, name| {
        let doing = act(provider, name);
        Box::pin(async move { doing.await.map(|answer| serde_json::to_value(answer).unwrap()) })
    })
}

fn row<T: Serialize, F>(
    line: &'static str,
    rest: &'static str,
    body: Value,
    code: impl Fn(Provider, String) -> F + 'static,
) -> Row
where
    F: Future<Output = Result<T, Error>> + 'static,
{
    Row {
        line,
        in_words: false,
        upgrades: false,
        rest,
        body,
        part: "",
        code: act(code),
        refused: false,
        seen: None,
    }
}

impl Row {
    /// The table says what is refused, so that nothing is the same only because all of it fails.
    fn is_as_expected(&self, outcome: &Outcome) {
        assert_eq!(outcome.is_err(), self.refused, "{}: {outcome:?}", self.rest);
        if let Err((wrong, remedy)) = outcome {
            assert!(wrong.contains(": ") && !remedy.is_empty(), "{}: {wrong} / {remedy}", self.rest);
        }
    }

    fn in_words(self) -> Self {
        Self { in_words: true, ..self }
    }

    fn upgrades(self) -> Self {
        Self { in_words: true, upgrades: true, ..self }
    }

    fn refused(self) -> Self {
        Self { refused: true, ..self }
    }

    fn part(self, part: &'static str) -> Self {
        Self { part, ..self }
    }

    fn seen<T: Serialize, F>(self, look: impl Fn(Provider, String) -> F + 'static) -> Self
    where
        F: Future<Output = Result<T, Error>> + 'static,
    {
        Self { seen: Some(act(look)), ..self }
    }
}

fn id(name: &str) -> VmId {
    VmId::new("default", name).unwrap()
}

/// A body with a name in the place of each `{}` of its texts.
fn filled(body: &Value, name: &str) -> Value {
    match body {
        Value::String(text) => text.replace("{}", name).into(),
        Value::Array(all) => all.iter().map(|one| filled(one, name)).collect(),
        Value::Object(all) => all.iter().map(|(key, one)| (key.clone(), filled(one, name))).collect(),
        other => other.clone(),
    }
}

/// A list as the program and REST give it.
fn items<T: Serialize>(all: T) -> Value {
    json!({"items": all})
}

fn problem(error: &Error) -> (String, String) {
    (error.to_string(), error.remedy.clone())
}

impl Faces {
    async fn start(nodes: &str) -> Self {
        let sandbox = SandboxProgram::start(&["--nodes", nodes, "--no-operator"]);
        let service = Service::start(&sandbox.kubeconfig, &[]);
        let library = library(&sandbox.kubeconfig).await;
        Self { sandbox, service, library }
    }

    /// An object of the API, made as an administrator makes it.
    async fn create(&self, path: &str, object: &Value) {
        let request = http::Request::post(path).header("content-type", "application/json");
        let request = request.body(object.to_string().into_bytes()).unwrap();
        self.library.client().request::<Value>(request).await.unwrap();
    }

    fn line(&self, row: &Row, name: &str) -> Outcome {
        let line = row.line.replace("{}", name);
        let mut arguments: Vec<&str> = line.split_whitespace().collect();
        if !row.in_words {
            arguments.extend(["-o", "json"]);
        }
        arguments.extend(["--kubeconfig", self.sandbox.kubeconfig.to_str().unwrap()]);
        // what REST has in its body, the program reads from standard input
        let input =
            if row.line.ends_with(" -") { filled(&row.body, name).to_string() } else { String::new() };
        let run = virt_steward(&arguments, &input);
        if run.status == 0 {
            let answer = if row.in_words { Ok(Value::Null) } else { serde_json::from_str(&run.stdout) };
            return Ok(answer.unwrap_or_else(|_| panic!("{line}\n{}", run.stdout)));
        }
        let said = run.stderr.split_once("error: ").map_or(run.stderr.as_str(), |(_, said)| said);
        let (wrong, remedy) = said.trim_end().split_once("\n  try: ").unwrap_or((said, ""));
        Err((wrong.to_owned(), remedy.to_owned()))
    }

    fn rest(&self, row: &Row, name: &str) -> Outcome {
        let (method, path) = row.rest.split_once(' ').unwrap();
        let body = if row.body.is_null() { String::new() } else { filled(&row.body, name).to_string() };
        let headers: &[&str] = if row.upgrades { &HANDSHAKE } else { &[] };
        let answer = self.service.ask(method, &path.replace("{}", name), headers, &body);
        if answer.status < 300 {
            let part = answer.json().pointer(row.part).cloned().unwrap_or_default();
            return Ok(if part.is_array() { items(part) } else { part });
        }
        assert!(answer.head.contains("content-type: application/problem+json"), "{}", answer.head);
        let problem = answer.json();
        let part = |key: &str| text(&problem[key]);
        Err((format!("{}: {}", part("title"), part("detail")), part("remedy")))
    }

    /// Asks one thing through each face, and compares the answers to the letter. The library is asked before and
    /// after the others: what changed in between is asked again.
    async fn same(&self, row: &Row, mask: impl Fn(Value) -> Value) {
        let what = if row.line.is_empty() { row.rest } else { row.line };
        let code =
            async || (row.code)(self.library.clone(), String::new()).await.map_err(|error| problem(&error));
        let still = async {
            loop {
                let before = code().await.map(&mask);
                let rest = self.rest(row, "").map(&mask);
                let line = (!row.line.is_empty()).then(|| self.line(row, "").map(&mask));
                if before == code().await.map(&mask) {
                    return (before, rest, line);
                }
            }
        };
        let (code, rest, line) = tokio::time::timeout(MINUTES, still).await.unwrap();
        assert_eq!(rest, code, "{what}: REST and the library");
        if let Some(line) = line {
            assert_eq!(line, code, "{what}: the command line and the library");
        }
        row.is_as_expected(&code);
    }

    /// Does one thing through each face, to a VM for each, and compares what is not drawn or of the time.
    async fn each(&self, row: &Row, names: [&str; 3], mask: impl Fn(Value, &str) -> Value) {
        let [by_line, by_rest, by_code] = names;
        let what = if row.line.is_empty() { row.rest } else { row.line };
        let seen = async |name: &str, outcome: Outcome| -> Outcome {
            let answer = match (outcome, &row.seen) {
                (Ok(_), Some(look)) => look(self.library.clone(), name.to_owned()).await.unwrap(),
                (Ok(answer), None) => answer,
                (Err((wrong, remedy)), _) => {
                    return Err((wrong.replace(name, "NAME"), remedy.replace(name, "NAME")));
                }
            };
            Ok(mask(answer, name))
        };
        let code = (row.code)(self.library.clone(), by_code.to_owned()).await;
        let code = seen(by_code, code.map_err(|error| problem(&error))).await;
        let rest = seen(by_rest, self.rest(row, by_rest)).await;
        assert_eq!(rest, code, "{what}: REST and the library");
        if !row.line.is_empty() {
            let line = seen(by_line, self.line(row, by_line)).await;
            assert_eq!(line, code, "{what}: the command line and the library");
        }
        row.is_as_expected(&code);
    }
}
