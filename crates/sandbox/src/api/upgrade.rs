//! Connections that leave HTTP (RFC 9110 section 7.8): a WebSocket to an aggregated API goes through
//! this server unread, as `k8s.io/apimachinery pkg/util/proxy` 1.36 hands it on.

use std::time::Duration;

use apimachinery::Status;
use http::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{Method, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::Api;
use super::reply::{self, Reply};

/// The client's side has switched within this time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the other server for the upgrade that the client asks for.
pub fn ask(from: &HeaderMap, to: &mut HeaderMap) {
    let listed = from.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let wanted =
        listed.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case("upgrade"));
    if let Some(protocol) = from.get(UPGRADE).filter(|_| wanted) {
        to.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        to.insert(UPGRADE, protocol.clone());
    }
}

impl Api {
    /// Answers that the protocol is switched, and joins both connections once it is.
    ///
    /// # Errors
    /// 400 when the client's connection cannot be switched (HTTP/2 cannot).
    pub fn switch<B>(&self, head: &Parts, mut response: Response<B>) -> Result<Reply, Status> {
        let client = head.extensions.get::<OnUpgrade>().cloned();
        let Some(client) = client.filter(|_| head.method == Method::GET) else {
            return Err(Status::bad_request("the connection cannot be upgraded: use HTTP/1.1 and GET"));
        };
        let server = hyper::upgrade::on(&mut response);
        let stop = self.shutdown.clone();
        tokio::spawn(async move {
            let switched = tokio::time::timeout(PATIENCE, async { tokio::try_join!(client, server) }).await;
            let Ok(Ok((client, server))) = switched else {
                tracing::debug!("an upgrade was asked for and did not happen");
                return;
            };
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                copied = tokio::io::copy_bidirectional(&mut client, &mut server) => {
                    if let Err(error) = copied {
                        tracing::debug!(%error, "an upgraded connection broke off");
                    }
                }
            }
        });
        let (head, _) = response.into_parts();
        Ok(Response::from_parts(head, reply::whole("")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_upgrade_that_is_asked_for_is_handed_on() {
        for (connection, protocol, handed_on) in [
            ("Upgrade", "websocket", true),
            ("keep-alive, upgrade", "websocket", true),
            ("keep-alive", "websocket", false),
            ("", "", false),
        ] {
            let mut from = HeaderMap::new();
            for (name, value) in [(CONNECTION, connection), (UPGRADE, protocol)] {
                if !value.is_empty() {
                    from.insert(name, HeaderValue::from_static(value));
                }
            }
            let mut to = HeaderMap::new();
            ask(&from, &mut to);
            assert_eq!(to.contains_key(UPGRADE), handed_on, "{connection}");
        }
    }
}
