//! Whether a client can read what a verb answers with, by go-restful's rule (`Route.matchesAccept`, v3.13): most of
//! virt-api's routes name no type that they produce (`composeSubresources`, v1.9), and such a route serves only
//! those who accept everything, or say nothing.

use http::header::ACCEPT;
use http::{HeaderMap, Method};

use super::Failure;

/// # Errors
/// 406 when the client accepts nothing that the route produces.
pub fn check(method: &Method, route: &[&str], headers: &HeaderMap) -> Result<(), Failure> {
    let accepted: Vec<&str> =
        headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let accepted = accepted.join(",");
    if accepted.is_empty() {
        return Ok(());
    }
    let json = produces_json(method, route);
    let fits = |entry: &str| {
        let media = entry.split(';').next().unwrap_or_default().trim();
        media == "*/*" || json && media == "application/json"
    };
    if accepted.split(',').any(fits) {
        return Ok(());
    }
    let types = if json { "application/json" } else { "" };
    Err(Failure::Plain(406, format!("406: Not Acceptable\n\nAvailable representations: {types}")))
}

/// Routes with `Produces(restful.MIME_JSON)`: questions, and the expansion of a VM that is given.
fn produces_json(method: &Method, route: &[&str]) -> bool {
    match (method, route) {
        (&Method::PUT, [_, _, "expand-vm-spec"]) => true,
        (&Method::GET, [_, _, _, _, "console" | "vnc" | "usbredir" | "portforward" | "vsock", ..]) => false,
        (method, _) => method == Method::GET,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn only_who_accepts_everything_may_give_orders() {
        let order = ["namespaces", "ns", "virtualmachines", "web", "start"];
        let question = ["namespaces", "ns", "virtualmachineinstances", "web", "guestosinfo"];
        let screen = ["namespaces", "ns", "virtualmachineinstances", "web", "vnc", "screenshot"];
        let expand = ["namespaces", "ns", "expand-vm-spec"];
        let (put, get) = (Method::PUT, Method::GET);
        for (method, route, accept, served) in [
            (&put, &order[..], "application/json", false),
            (&put, &order, "application/json, */*", true),
            (&put, &order, "", true),
            (&get, &question, "application/json", true),
            (&get, &question, "text/html", false),
            (&get, &question, "*/*;q=0.8", true),
            (&get, &screen, "image/png", false),
            (&put, &expand, "application/json", true),
            (&get, &["version"], "application/json", true),
        ] {
            let mut headers = HeaderMap::new();
            if !accept.is_empty() {
                headers.insert(ACCEPT, HeaderValue::from_static(accept));
            }
            assert_eq!(check(method, route, &headers).is_ok(), served, "{method} {route:?} {accept}");
        }
    }
}
