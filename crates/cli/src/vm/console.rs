//! `virt-steward vm console|vnc|screenshot|port-forward`: ways into a guest.

use std::io::{IsTerminal as _, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use provider::cluster::Channel;
use provider::{Provider, VmId};
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::net::{TcpListener, TcpStream};

use crate::connection::{Scope, problem};
use crate::output::print;
use crate::problem::Problem;
use crate::terminal::Raw;

/// Control-], which ends a console as it does with virtctl and telnet.
const ESCAPE: u8 = 0x1d;

/// How long the guest may be silent after the end of the input.
const LINGER: Duration = Duration::from_secs(2);

/// The same for a connection to a port: an answer may take its time.
const PORT_LINGER: Duration = Duration::from_secs(10);

/// Connections through one forwarded port at once.
const CONNECTIONS: usize = 64;

/// Arguments of `vm console`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm console web
  printf '\\nroot\\nuname -r\\n' | virt-steward vm console web

On a terminal, control-] ends it. From a pipe, it ends when the input has ended and the guest is silent.")]
pub struct Args {
    /// The VM, as `name` or `namespace/name`
    #[arg(value_name = "VM", add = crate::completing::vms())]
    vm: String,
    #[command(flatten)]
    scope: Scope,
}

/// Arguments of `vm vnc`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm vnc web
  virt-steward vm vnc web --port 5901 --proxy-only
  virt-steward vm vnc web --viewer 'vncviewer %a::%p'

Without a viewer it says where it listens, until ctrl-c.")]
pub struct VncArgs {
    /// The VM, as `name` or `namespace/name`
    #[arg(value_name = "VM", add = crate::completing::vms())]
    vm: String,
    /// Local port; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Local address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    address: IpAddr,
    /// The viewer to start; `%a` is the address, `%p` the port. Otherwise the first of remote-viewer,
    /// vncviewer and xtigervncviewer that is there
    #[arg(long, value_name = "COMMAND", conflicts_with = "proxy_only")]
    viewer: Option<String>,
    /// Start no viewer
    #[arg(long)]
    proxy_only: bool,
    #[command(flatten)]
    scope: Scope,
}

/// Arguments of `vm screenshot`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm screenshot web --file web.png
  virt-steward vm screenshot web --file - | display")]
pub struct ScreenshotArgs {
    /// The VM, as `name` or `namespace/name`
    #[arg(value_name = "VM", add = crate::completing::vms())]
    vm: String,
    /// Where the PNG goes; `-` is standard output
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    scope: Scope,
}

/// Arguments of `vm port-forward`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm port-forward web 8080:80
  virt-steward vm port-forward web 2222:22 8443
  ssh -o ProxyCommand='virt-steward vm port-forward web 22 --stdio' root@web

TCP only. It listens on loopback until ctrl-c.")]
pub struct ForwardArgs {
    /// The VM, as `name` or `namespace/name`
    #[arg(value_name = "VM", add = crate::completing::vms())]
    vm: String,
    /// Ports as LOCAL:GUEST, or one number for both; local port 0 takes a free one
    #[arg(value_name = "PORT", required = true, value_parser = ports)]
    ports: Vec<(u16, u16)>,
    /// Local address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    address: IpAddr,
    /// Couple the port to standard input and output instead of listening
    #[arg(long)]
    stdio: bool,
    #[command(flatten)]
    scope: Scope,
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let wrong = || format!("`{text}` is no port: write `80` or `8080:80`");
    let (local, guest) = text.split_once(':').unwrap_or((text, text));
    let local = local.parse().map_err(|_| wrong())?;
    let guest: u16 = guest.parse().map_err(|_| wrong())?;
    if guest == 0 { Err(wrong()) } else { Ok((local, guest)) }
}

/// Opens the serial console.
pub async fn console(args: Args) -> Result<ExitCode> {
    let (provider, vm) = args.scope.connect_for(&args.vm).await?;
    let tunnel = provider.open(&vm, Channel::Console).await.map_err(problem)?;
    let interactive = std::io::stdin().is_terminal();
    if interactive {
        eprintln!("Connected to the console of VM `{vm}`; control-] ends it.\r");
    }
    let raw = Raw::enter();
    let coupled = tunnel.couple(typed(interactive), Output, LINGER).await;
    drop(raw);
    coupled.map_err(problem)?;
    if interactive {
        eprintln!();
    }
    Ok(ExitCode::SUCCESS)
}

/// Standard input as it comes. A thread reads it, which the end of the program does not wait for.
fn typed(interactive: bool) -> DuplexStream {
    let (mut near, far) = tokio::io::duplex(16 << 10);
    let (send, mut receive) = tokio::sync::mpsc::channel::<Vec<u8>>(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = std::io::stdin().read(&mut buffer) {
            let typed = buffer.get(..count).unwrap_or_default();
            let end = typed.iter().position(|byte| interactive && *byte == ESCAPE);
            let sent = send.blocking_send(typed.get(..end.unwrap_or(count)).unwrap_or_default().to_vec());
            if end.is_some() || sent.is_err() {
                break;
            }
        }
    });
    tokio::spawn(async move {
        while let Some(typed) = receive.recv().await {
            if near.write_all(&typed).await.is_err() {
                break;
            }
        }
    });
    far
}

/// Standard output, written as it comes.
struct Output;

impl tokio::io::AsyncWrite for Output {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        data: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::task::Poll::Ready(std::io::Write::write(&mut std::io::stdout(), data))
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(std::io::Write::flush(&mut std::io::stdout()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        self.poll_flush(context)
    }
}

/// Listens for a viewer, and starts one.
pub async fn vnc(args: VncArgs) -> Result<ExitCode> {
    let (provider, vm) = args.scope.connect_for(&args.vm).await?;
    // what is wrong is known before anything listens
    drop(provider.open(&vm, Channel::Vnc).await.map_err(problem)?);
    let listener = listen(&vm, SocketAddr::new(args.address, args.port)).await?;
    let address = listener.local_addr()?;
    print(&format!("The screen of VM `{vm}` is at {address} until ctrl-c\n"))?;
    let viewer = if args.proxy_only { None } else { viewer(args.viewer.as_deref(), address)? };
    let stop = crate::shutdown::token()?;
    let serving = serve(&provider, &vm, Channel::Vnc, listener);
    let watched = async {
        match viewer {
            Some(mut viewer) => drop(viewer.wait().await),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = serving => {}
        () = watched => {}
        () = stop.cancelled() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// The viewers that are looked for, with their arguments.
const VIEWERS: [(&str, &str); 3] =
    [("remote-viewer", "vnc://%a:%p"), ("vncviewer", "%a::%p"), ("xtigervncviewer", "%a::%p")];

fn viewer(wanted: Option<&str>, address: SocketAddr) -> Result<Option<tokio::process::Child>> {
    let fill =
        |text: &str| text.replace("%a", &address.ip().to_string()).replace("%p", &address.port().to_string());
    if let Some(command) = wanted {
        let words: Vec<String> = command.split_whitespace().map(fill).collect();
        let Some((program, arguments)) = words.split_first() else { return Ok(None) };
        let started = tokio::process::Command::new(program).args(arguments).kill_on_drop(true).spawn();
        let doing = format!("starting the viewer `{program}`");
        let remedy = "name a viewer that is on the path, or give `--proxy-only`";
        return Ok(Some(started.map_err(|error| Problem::new(doing, error, remedy))?));
    }
    for (program, argument) in VIEWERS {
        let started = tokio::process::Command::new(program).arg(fill(argument)).kill_on_drop(true).spawn();
        if let Ok(viewer) = started {
            return Ok(Some(viewer));
        }
    }
    eprintln!("No viewer was found; connect one to {address}.");
    Ok(None)
}

/// Writes a picture of the screen.
pub async fn screenshot(args: ScreenshotArgs) -> Result<ExitCode> {
    use std::io::Write as _;
    let (provider, vm) = args.scope.connect_for(&args.vm).await?;
    let picture = provider.screenshot(&vm).await.map_err(problem)?;
    if args.file.as_os_str() == "-" {
        std::io::stdout().write_all(&picture)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).create_new(!args.force);
    let written = options.open(&args.file).and_then(|mut file| file.write_all(&picture));
    let doing = format!("writing `{}`", args.file.display());
    written.map_err(|error| Problem::new(doing, error, "choose another file, or give `--force`"))?;
    Ok(ExitCode::SUCCESS)
}

/// Forwards ports.
pub async fn port_forward(args: ForwardArgs) -> Result<ExitCode> {
    let (provider, vm) = args.scope.connect_for(&args.vm).await?;
    if args.stdio {
        let [(_, port)] = args.ports.as_slice() else {
            let wrong = "standard input and output are one connection";
            return Err(Problem::new("forwarding ports", wrong, "give one port with `--stdio`").into());
        };
        let tunnel = provider.open(&vm, Channel::Port(*port)).await.map_err(problem)?;
        tunnel.couple(typed(false), Output, LINGER).await.map_err(problem)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut serving = Vec::new();
    for (local, guest) in &args.ports {
        let listener = listen(&vm, SocketAddr::new(args.address, *local)).await?;
        print(&format!("Forwarding {} to port {guest} of VM `{vm}` until ctrl-c\n", listener.local_addr()?))?;
        serving.push(serve(&provider, &vm, Channel::Port(*guest), listener));
    }
    let stop = crate::shutdown::token()?;
    tokio::select! {
        _ = futures::future::join_all(serving) => {}
        () = stop.cancelled() => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn listen(vm: &VmId, address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    let doing = format!("listening on {address} for VM `{vm}`");
    Ok(listener.map_err(|error| Problem::new(doing, error, "choose another port, or 0 for a free one"))?)
}

/// Takes connections and couples each to the guest.
async fn serve(provider: &Provider, vm: &VmId, channel: Channel, listener: TcpListener) {
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (provider, vm) = (provider.clone(), vm.clone());
                tokio::spawn(async move {
                    let _slot = slot;
                    if let Err(error) = couple(&provider, &vm, channel, stream).await {
                        eprintln!("error: {:#}", problem(error));
                    }
                });
            }
            Err(error) => {
                eprintln!("error: taking a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn couple(
    provider: &Provider,
    vm: &VmId,
    channel: Channel,
    stream: TcpStream,
) -> Result<(), provider::Error> {
    let tunnel = provider.open(vm, channel).await?;
    let (reader, writer) = stream.into_split();
    tunnel.couple(reader, writer, PORT_LINGER).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_kubectl_writes_them() {
        for (text, expected) in [
            ("80", Some((80, 80))),
            ("8080:80", Some((8080, 80))),
            ("0:22", Some((0, 22))),
            (":80", None),
            ("80:0", None),
            ("http", None),
            ("70000", None),
            ("1:2:3", None),
        ] {
            assert_eq!(ports(text).ok(), expected, "{text}");
        }
    }
}
