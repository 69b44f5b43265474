//! A fault as it is written down: `error:code=500,rate=0.1,resource=pods`.
//!
//! ```text
//! KIND[:KEY=VALUE[,KEY=VALUE…]]
//! ```

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::attributes::Attributes;

/// No delay is longer.
const DELAY_MAX: Duration = Duration::from_mins(5);
/// No clock is further off (ten years, in seconds).
const SKEW_MAX: i64 = 10 * 366 * 24 * 3600;
/// Verbs that write.
const WRITES: &[&str] = &["create", "update", "patch", "delete", "deletecollection"];
/// The key of a user's extra that names the node it works on (virt-handler's tokens carry it).
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// What goes wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Requests are answered late, by `delay` and up to `jitter` more.
    Latency {
        /// At least so late.
        delay: Duration,
        /// Up to so much later.
        jitter: Duration,
    },
    /// Requests are refused before anything is done.
    Error {
        /// 409, 429, 500, 503 or 504.
        code: u16,
    },
    /// Requests are carried out, and the connection breaks before the answer.
    LostAnswer,
    /// The connection breaks before anything is done: nobody hears of this client, nor it of anybody.
    Partition,
    /// A client dies right after a write, and is back after `down`.
    Crash {
        /// How long it is away.
        down: Duration,
    },
    /// Watches break off after so many events.
    WatchDrop {
        /// Events that still come.
        events: u64,
    },
    /// Every event of a watch waits so long.
    WatchLag {
        /// The wait.
        delay: Duration,
    },
    /// Versions and pages are too old: watches and continued lists get 410.
    Gone,
    /// Webhooks are asked so much later.
    WebhookSlow {
        /// The wait; a webhook's own timeout ends it.
        delay: Duration,
    },
    /// Webhooks refuse the connection.
    WebhookDown,
    /// Webhooks answer with something that is no review.
    WebhookGarbage,
    /// The API server's clock is off.
    ClockSkew {
        /// Seconds; negative: it is behind.
        seconds: i64,
    },
    /// etcd has no space: what would grow is refused, removals are not.
    DiskFull,
    /// etcd does not tell how far it is: streaming lists fail, and so does a watch from now of a quiet kind.
    NoProgress,
}

/// Where something goes wrong, how often and how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// Of so many matching requests, 0 to 1.
    pub rate: f64,
    /// Which.
    pub scope: Scope,
    /// At most so often; `None`: no limit.
    pub times: Option<u64>,
    /// For so long; `None`: until it is cleared.
    pub lasts: Option<Duration>,
}

/// Which requests; everything empty: all of them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Scope {
    verbs: Vec<String>,
    /// `pods`, `pods/status`, `virtualmachines.kubevirt.io`
    resources: Vec<String>,
    namespace: String,
    /// Pattern.
    name: String,
    /// Pattern.
    user: String,
    node: String,
    /// Pattern, for faults of webhooks.
    webhook: String,
}

/// A fault that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("fault `{spec}`: {wrong}")]
pub struct SpecError {
    spec: String,
    wrong: String,
}

/// The kinds with the keys of their own, as help and errors show them.
pub const KINDS: &[(&str, &str)] = &[
    ("latency", "ms=N[,jitter=N]"),
    ("error", "code=409|429|500|503|504"),
    ("lost-answer", ""),
    ("partition", "user=PATTERN or node=NAME"),
    ("node-loss", "node=NAME"),
    ("crash", "user=PATTERN[,down=MS]"),
    ("watch-drop", "[events=N]"),
    ("watch-lag", "ms=N"),
    ("gone", ""),
    ("webhook-slow", "ms=N"),
    ("webhook-down", ""),
    ("webhook-garbage", ""),
    ("clock-skew", "seconds=N"),
    ("disk-full", ""),
    ("no-progress", ""),
];

/// The keys of a spec, taken out one by one, so that what is left is not known.
struct Keys(Vec<(String, String)>);

impl Keys {
    fn take(&mut self, key: &str) -> Option<String> {
        let at = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.swap_remove(at).1)
    }

    fn number<T: FromStr>(&mut self, key: &str) -> Result<Option<T>, String> {
        let Some(text) = self.take(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("`{key}={text}` is not a number that fits"))
    }

    fn millis(&mut self, key: &str) -> Result<Option<Duration>, String> {
        let delay = self.number(key)?.map(Duration::from_millis);
        if delay.is_some_and(|delay| delay > DELAY_MAX) {
            return Err(format!("`{key}` is at most {} ms", DELAY_MAX.as_millis()));
        }
        Ok(delay)
    }

    fn list(&mut self, key: &str) -> Vec<String> {
        let text = self.take(key).unwrap_or_default();
        text.split('+').filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }
}

impl FromStr for Fault {
    type Err = SpecError;

    fn from_str(spec: &str) -> Result<Self, SpecError> {
        parse(spec).map_err(|wrong| SpecError { spec: spec.to_owned(), wrong })
    }
}

fn parse(spec: &str) -> Result<Fault, String> {
    let (name, rest) = spec.trim().split_once(':').unwrap_or((spec.trim(), ""));
    let mut pairs = Vec::new();
    for pair in rest.split(',').filter(|pair| !pair.trim().is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("`{pair}` is not KEY=VALUE"))?;
        pairs.push((key.trim().to_owned(), value.trim().to_owned()));
    }
    let mut keys = Keys(pairs);
    let mut scope = Scope {
        verbs: keys.list("verb"),
        resources: keys.list("resource"),
        namespace: keys.take("namespace").unwrap_or_default(),
        name: keys.take("name").unwrap_or_default(),
        user: keys.take("user").unwrap_or_default(),
        node: keys.take("node").unwrap_or_default(),
        webhook: keys.take("webhook").unwrap_or_default(),
    };
    let kind = kind(name, &mut keys)?;
    let rate = keys.number::<f64>("rate")?.unwrap_or(1.0);
    let times = keys.number("times")?;
    let lasts = keys.number::<u64>("for")?.map(Duration::from_secs);
    if let Some((key, _)) = keys.0.first() {
        return Err(format!("`{name}` has no `{key}`"));
    }
    if !(rate > 0.0 && rate <= 1.0) {
        return Err("`rate` is more than 0 and at most 1".into());
    }
    let state = matches!(kind, Kind::ClockSkew { .. } | Kind::DiskFull | Kind::NoProgress);
    if state && (rate < 1.0 || times.is_some() || scope != Scope::default()) {
        return Err(format!("`{name}` is about the whole server: it takes `for` alone"));
    }
    if matches!(kind, Kind::Partition | Kind::Crash { .. }) && scope.user.is_empty() && scope.node.is_empty()
    {
        return Err(format!("`{name}` needs `user=PATTERN` or `node=NAME`"));
    }
    let webhooks = matches!(kind, Kind::WebhookSlow { .. } | Kind::WebhookDown | Kind::WebhookGarbage);
    if !scope.webhook.is_empty() && !webhooks {
        return Err(format!("`{name}` is not about webhooks"));
    }
    if scope.verbs.is_empty() {
        scope.verbs = default_verbs(&kind).iter().map(|verb| (*verb).to_owned()).collect();
    }
    Ok(Fault { kind, rate, scope, times, lasts })
}

fn kind(name: &str, keys: &mut Keys) -> Result<Kind, String> {
    let needed = |delay: Option<Duration>| delay.ok_or_else(|| format!("`{name}` needs `ms=N`"));
    Ok(match name {
        "latency" => Kind::Latency {
            delay: needed(keys.millis("ms")?)?,
            jitter: keys.millis("jitter")?.unwrap_or_default(),
        },
        "error" => match keys.number("code")?.unwrap_or(500) {
            code @ (409 | 429 | 500 | 503 | 504) => Kind::Error { code },
            other => return Err(format!("`code={other}` is none of 409, 429, 500, 503, 504")),
        },
        "lost-answer" => Kind::LostAnswer,
        "partition" | "node-loss" => Kind::Partition,
        "crash" => Kind::Crash { down: keys.millis("down")?.unwrap_or(Duration::from_secs(2)) },
        "watch-drop" => Kind::WatchDrop { events: keys.number("events")?.unwrap_or(0) },
        "watch-lag" => Kind::WatchLag { delay: needed(keys.millis("ms")?)? },
        "gone" => Kind::Gone,
        "webhook-slow" => Kind::WebhookSlow { delay: needed(keys.millis("ms")?)? },
        "webhook-down" => Kind::WebhookDown,
        "webhook-garbage" => Kind::WebhookGarbage,
        "clock-skew" => match keys.number("seconds")? {
            Some(seconds) if (-SKEW_MAX..=SKEW_MAX).contains(&seconds) => Kind::ClockSkew { seconds },
            _ => return Err(format!("`clock-skew` needs `seconds=N`, at most {SKEW_MAX} either way")),
        },
        "disk-full" => Kind::DiskFull,
        "no-progress" => Kind::NoProgress,
        other => {
            let known: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
            return Err(format!("`{other}` is none of {}", known.join(", ")));
        }
    })
}

/// What a fault is about when it names no verbs.
fn default_verbs(kind: &Kind) -> &'static [&'static str] {
    match kind {
        Kind::Error { code: 409 } => &["update", "patch"],
        Kind::LostAnswer | Kind::Crash { .. } => WRITES,
        Kind::WatchDrop { .. } | Kind::WatchLag { .. } => &["watch"],
        Kind::Gone => &["watch", "list"],
        _ => &[],
    }
}

impl Scope {
    /// Whether a request is meant.
    pub fn matches(&self, attributes: &Attributes) -> bool {
        let any = |list: &[String], matches: &dyn Fn(&str) -> bool| {
            list.is_empty() || list.iter().any(|item| matches(item))
        };
        any(&self.verbs, &|verb| verb == attributes.verb)
            && any(&self.resources, &|resource| is_resource(resource, attributes))
            && (self.namespace.is_empty() || self.namespace == attributes.namespace)
            && fits(&self.name, &attributes.name)
            && self.is_from(attributes)
    }

    /// Whether a request comes from whom the fault is about.
    pub fn is_from(&self, attributes: &Attributes) -> bool {
        let user = &attributes.user;
        let of_node = |node: &str| {
            user.name.strip_prefix("system:node:") == Some(node)
                || user.extra.get(NODE_NAME).is_some_and(|values| values.iter().any(|value| value == node))
        };
        fits(&self.user, &user.name) && (self.node.is_empty() || of_node(&self.node))
    }

    /// Whether a webhook is meant.
    pub fn matches_webhook(&self, name: &str) -> bool {
        fits(&self.webhook, name)
    }
}

/// `pods` means the object and no subresource, as in RBAC; `pods/*` every subresource; a group can
/// follow the resource.
fn is_resource(pattern: &str, attributes: &Attributes) -> bool {
    let (resource, subresource) = pattern.split_once('/').unwrap_or((pattern, ""));
    let (resource, group) = match resource.split_once('.') {
        Some((resource, group)) => (resource, Some(group)),
        None => (resource, None),
    };
    resource == attributes.resource
        && group.is_none_or(|group| group == attributes.group)
        && (subresource == "*" && !attributes.subresource.is_empty() || subresource == attributes.subresource)
}

/// A pattern is a text in which each `*` stands for anything; an empty one fits everything.
fn fits(pattern: &str, text: &str) -> bool {
    if pattern.is_empty() {
        return true;
    }
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match text.find(part) {
            Some(at) => text = text.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    text.ends_with(last)
}

/// As it can be read again.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut keys: Vec<String> = Vec::new();
        let name = match &self.kind {
            Kind::Latency { delay, jitter } => {
                keys.push(format!("ms={}", delay.as_millis()));
                if !jitter.is_zero() {
                    keys.push(format!("jitter={}", jitter.as_millis()));
                }
                "latency"
            }
            Kind::Error { code } => {
                keys.push(format!("code={code}"));
                "error"
            }
            Kind::LostAnswer => "lost-answer",
            Kind::Partition => "partition",
            Kind::Crash { down } => {
                keys.push(format!("down={}", down.as_millis()));
                "crash"
            }
            Kind::WatchDrop { events } => {
                keys.push(format!("events={events}"));
                "watch-drop"
            }
            Kind::WatchLag { delay } => {
                keys.push(format!("ms={}", delay.as_millis()));
                "watch-lag"
            }
            Kind::Gone => "gone",
            Kind::WebhookSlow { delay } => {
                keys.push(format!("ms={}", delay.as_millis()));
                "webhook-slow"
            }
            Kind::WebhookDown => "webhook-down",
            Kind::WebhookGarbage => "webhook-garbage",
            Kind::ClockSkew { seconds } => {
                keys.push(format!("seconds={seconds}"));
                "clock-skew"
            }
            Kind::DiskFull => "disk-full",
            Kind::NoProgress => "no-progress",
        };
        if self.rate < 1.0 {
            keys.push(format!("rate={}", self.rate));
        }
        let scope = &self.scope;
        if scope.verbs != default_verbs(&self.kind) {
            keys.push(format!("verb={}", scope.verbs.join("+")));
        }
        if !scope.resources.is_empty() {
            keys.push(format!("resource={}", scope.resources.join("+")));
        }
        let texts = [
            ("namespace", &scope.namespace),
            ("name", &scope.name),
            ("user", &scope.user),
            ("node", &scope.node),
            ("webhook", &scope.webhook),
        ];
        keys.extend(
            texts.iter().filter(|(_, text)| !text.is_empty()).map(|(key, text)| format!("{key}={text}")),
        );
        keys.extend(self.times.map(|times| format!("times={times}")));
        keys.extend(self.lasts.map(|lasts| format!("for={}", lasts.as_secs())));
        if keys.is_empty() { f.write_str(name) } else { write!(f, "{name}:{}", keys.join(",")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::User;

    #[test]
    fn what_is_written_down_can_be_read_again() {
        for spec in [
            "latency:ms=200,jitter=100",
            "error:code=409",
            "error:code=429,rate=0.25,verb=create+patch,resource=pods/status+virtualmachines.kubevirt.io",
            "lost-answer:namespace=n,name=vm-*,times=3,for=60",
            "partition:node=node01",
            "crash:down=2000,user=system:serviceaccount:kubevirt:*",
            "watch-drop:events=3",
            "watch-lag:ms=50",
            "gone",
            "webhook-slow:ms=3000,webhook=*.kubevirt.io",
            "webhook-down",
            "webhook-garbage",
            "clock-skew:seconds=-3600",
            "disk-full:for=5",
            "no-progress",
        ] {
            let fault: Fault = spec.parse().unwrap();
            assert_eq!(fault.to_string(), spec);
            assert_eq!(fault.to_string().parse::<Fault>().unwrap(), fault);
        }
        assert_eq!("node-loss:node=a".parse::<Fault>().unwrap().to_string(), "partition:node=a");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        for (spec, why) in [
            ("boom", "none of latency"),
            ("latency", "needs `ms=N`"),
            ("latency:ms=x", "not a number"),
            ("latency:ms=999999999", "at most 300000 ms"),
            ("error:code=200", "none of 409"),
            ("error:rate=0", "more than 0"),
            ("error:rate=NaN", "more than 0"),
            ("error:colour=red", "has no `colour`"),
            ("error:rate", "not KEY=VALUE"),
            ("partition", "needs `user=PATTERN`"),
            ("disk-full:rate=0.5", "whole server"),
            ("no-progress:user=x", "whole server"),
            ("gone:webhook=a", "not about webhooks"),
        ] {
            let error = spec.parse::<Fault>().unwrap_err().to_string();
            assert!(error.contains(why), "{spec}: {error}");
        }
    }

    #[test]
    fn a_scope_is_about_whom_and_what_it_names() {
        let request = |user: &str, resource: &str, subresource: &str| Attributes {
            user: User { name: user.into(), ..User::default() },
            verb: "patch".into(),
            group: if resource == "virtualmachines" { "kubevirt.io".into() } else { String::new() },
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: "n".into(),
            name: "vm-1".into(),
            ..Attributes::default()
        };
        for (spec, user, resource, subresource, want) in [
            ("error", "a", "pods", "", true),
            ("error:resource=pods", "a", "pods", "status", false),
            ("error:resource=pods/status", "a", "pods", "status", true),
            ("error:resource=pods/*", "a", "pods", "", false),
            ("error:resource=virtualmachines.kubevirt.io", "a", "virtualmachines", "", true),
            ("error:resource=virtualmachines.example.com", "a", "virtualmachines", "", false),
            ("error:verb=get", "a", "pods", "", false),
            ("error:namespace=m", "a", "pods", "", false),
            ("error:name=*-1", "a", "pods", "", true),
            ("error:name=v*x*1", "a", "pods", "", false),
            ("error:user=system:*:a", "system:node:a", "pods", "", true),
            ("partition:node=a", "system:node:a", "pods", "", true),
            ("partition:node=a", "system:node:b", "pods", "", false),
        ] {
            let fault: Fault = spec.parse().unwrap();
            assert_eq!(fault.scope.matches(&request(user, resource, subresource)), want, "{spec}");
        }
    }
}
