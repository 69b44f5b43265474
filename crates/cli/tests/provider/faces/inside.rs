//! What leads into a guest. Connections cannot be compared as answers are: the same is said to the guest through each
//! face, and it answers the same; where there is no way in, each face says why in the same words.

use futures::{SinkExt as _, StreamExt as _};
use provider::cluster::Channel;
use provider::order::Order;
use provider::wait::Goal;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::*;

/// The ways in, as each face names them.
const WAYS: [(&str, &str, Channel); 3] = [
    ("vm console {}", "GET /kubevirt/vms/default/{}/console", Channel::Console),
    ("vm vnc {} --proxy-only", "GET /kubevirt/vms/default/{}/vnc", Channel::Vnc),
    ("vm port-forward {} 7 --stdio", "GET /kubevirt/vms/default/{}/portforward/7", Channel::Port(7)),
];

/// Each way into a VM that is off, and into one that is not there.
fn closed(name: &'static str) -> Vec<Row> {
    let filled = |text: &str| -> &'static str { text.replace("{}", name).leak() };
    let mut rows: Vec<Row> = WAYS
        .into_iter()
        .map(|(line, rest, channel)| {
            row(filled(line), filled(rest), Value::Null, move |p, _| async move {
                p.open(&id(name), channel).await.map(|_| ())
            })
            .upgrades()
            .refused()
        })
        .collect();
    let screenshot = row(
        filled("vm screenshot {} --file never-written.png"),
        filled("GET /kubevirt/vms/default/{}/screenshot"),
        Value::Null,
        move |p, _| async move { p.screenshot(&id(name)).await.map(|_| ()) },
    );
    rows.push(screenshot.in_words().refused());
    rows
}

impl Faces {
    /// What the guest has answered through the library when it falls silent.
    async fn said_to_library(&self, channel: Channel, input: &str) -> String {
        let mut heard = Vec::new();
        let tunnel = self.library.open(&id("web"), channel).await.unwrap();
        tunnel.couple(input.as_bytes(), &mut heard, Duration::from_secs(1)).await.unwrap();
        String::from_utf8_lossy(&heard).into_owned()
    }

    /// What it has answered through REST by the time that it has answered `until`.
    async fn said_to_rest(&self, path: &str, input: &str, until: &str) -> String {
        let mut request = format!("ws://{}{path}", self.service.address).into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "plain.kubevirt.io".parse().unwrap());
        let stream = tokio::net::TcpStream::connect(&self.service.address).await.unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        socket.send(Message::Binary(input.to_owned().into())).await.unwrap();
        let mut heard = String::new();
        let hearing = async {
            while !heard.contains(until) {
                match socket.next().await.unwrap().unwrap() {
                    Message::Binary(data) => heard.push_str(&String::from_utf8_lossy(&data)),
                    Message::Close(_) => panic!("{heard}"),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(MINUTES, hearing).await.unwrap();
        heard
    }

    /// What it has answered through the program when it falls silent.
    fn said_to_program(&self, line: &str, input: &str) -> String {
        let mut arguments: Vec<&str> = line.split(' ').collect();
        arguments.extend(["--kubeconfig", self.sandbox.kubeconfig.to_str().unwrap()]);
        let run = virt_steward(&arguments, input);
        assert_eq!(run.status, 0, "{line}: {}", run.stderr);
        run.stdout
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ways_into_a_guest_are_the_same_through_every_face() {
    let faces = Faces::start("1").await;
    let library = &faces.library;
    let mut web = super::super::vm("web");
    let spec = &mut web["spec"]["template"]["spec"];
    spec["domain"]["devices"]["interfaces"] = json!([{"name": "default", "masquerade": {}}]);
    spec["networks"] = json!([{"name": "default", "pod": {}}]);
    library.create_vm("default", &web, false).await.unwrap();
    for row in closed("none").iter().chain(&closed("web")) {
        faces.same(row, |answer| answer).await;
    }
    library.order(&id("web"), Order::Start { paused: false }, false).await.unwrap();
    library.wait(&id("web"), &Goal::Running, MINUTES, &mut |_| ()).await.unwrap();

    // the first one logs in, and the others go on in its session
    let (input, answer) = ("\nroot\necho the same\n", "\r\nthe same\r\n");
    let by_code = faces.said_to_library(Channel::Console, input).await;
    let by_rest = faces.said_to_rest("/kubevirt/vms/default/web/console", input, answer).await;
    let by_line = faces.said_to_program("vm console web", input);
    for heard in [by_code, by_rest, by_line] {
        assert!(heard.contains(answer), "{heard:?}");
    }

    // what listens on port 7 sends everything back (RFC 862)
    let input = "over every face\n";
    let by_code = faces.said_to_library(Channel::Port(7), input).await;
    let by_rest = faces.said_to_rest("/kubevirt/vms/default/web/portforward/7", input, input).await;
    let by_line = faces.said_to_program("vm port-forward web 7 --stdio", input);
    assert_eq!([by_code, by_rest, by_line], [input, input, input]);
}
