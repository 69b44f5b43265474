//! What virt-handler does for virt-api about a running guest (`pkg/virt-handler/rest`, v1.9): the
//! calls that virt-api makes to the node, without the connection between the two.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::Value;
use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::events::{Note, Recorder};
use super::guest::console::Effect;
use super::guest::{agent, screen, usb, vnc};
use super::identity::Identity;
use super::json::{self, text};
use super::launcher::Launchers;

const COMPONENT: &str = "virt-handler";
/// How many bytes a stream holds between its two ends.
const BUFFER: usize = 64 << 10;
/// The port that every guest answers on, with what it was sent (RFC 862).
const ECHO: u16 = 7;

/// A change of a guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    Pause,
    Unpause,
    /// Thaw by itself after this time.
    Freeze(Duration),
    Unfreeze,
    Reset,
    SoftReboot,
}

/// A question to a guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Question {
    System,
    Users,
    FileSystems,
}

/// A connection into a guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stream {
    Console,
    Vnc,
    UsbRedirection,
    Port(u16),
    /// `None`: the port that was asked for is none.
    Vsock(Option<u32>),
}

/// Reaches every guest of the simulated nodes.
#[derive(Clone)]
pub struct HandlerCalls {
    launchers: Arc<Launchers>,
    recorder: Recorder,
}

impl HandlerCalls {
    pub fn new(launchers: Arc<Launchers>, recorder: Recorder) -> Self {
        Self { launchers, recorder }
    }

    fn pod_of(&self, vmi: &Value) -> Result<String, String> {
        let gone = || format!("No command socket found for vmi {}", json::uid(vmi));
        self.launchers.of_vmi(&json::key(vmi)).ok_or_else(gone)
    }

    /// Carries an order out and notes the event.
    ///
    /// # Errors
    /// When no guest runs.
    pub fn order(&self, vmi: &Value, order: Order, now: Timestamp) -> Result<(), String> {
        let pod = self.pod_of(vmi)?;
        if matches!(order, Order::Freeze(_))
            && let Some(why) = super::guest::refused_freeze(vmi)
        {
            return Err(format!("server error. command Freeze failed: \"{why}\""));
        }
        let done = self.launchers.change_guest(&pod, |guest| match order {
            Order::Pause => guest.paused = true,
            Order::Unpause => guest.paused = false,
            Order::Freeze(time) => guest.freeze(now.checked_add(time).unwrap_or(Timestamp::MAX)),
            Order::Unfreeze => guest.thaw(),
            Order::Reset | Order::SoftReboot => guest.reset(),
        });
        done.ok_or("the guest does not run any more")?;
        let event = match order {
            Order::Pause => Some(("Paused", "VirtualMachineInstance paused")),
            Order::Unpause => Some(("Unpaused", "VirtualMachineInstance unpaused")),
            Order::Reset => Some(("Reset", "VirtualMachineInstance reset")),
            Order::SoftReboot => Some(("SoftRebooted", "VirtualMachineInstance soft rebooted")),
            Order::Freeze(_) | Order::Unfreeze => None,
        };
        if let Some((reason, message)) = event {
            let who = Identity::virt_handler(text(vmi, "/status/nodeName"));
            self.recorder.note(&who, COMPONENT, Note::normal(vmi, reason, message));
        }
        Ok(())
    }

    /// Asks the guest's agent.
    ///
    /// # Errors
    /// When no guest runs.
    pub fn ask(&self, vmi: &Value, question: Question, now: Timestamp) -> Result<Value, String> {
        let pod = self.pod_of(vmi)?;
        let frozen = self.launchers.guest(&pod, |guest| guest.frozen(now).is_some()).unwrap_or(false);
        Ok(match question {
            Question::System => agent::information(vmi, frozen),
            Question::Users => agent::users(),
            Question::FileSystems => agent::file_systems(vmi),
        })
    }

    /// The screen as a PNG.
    ///
    /// # Errors
    /// When no guest runs.
    pub fn screenshot(&self, vmi: &Value) -> Result<Vec<u8>, String> {
        let pod = self.pod_of(vmi)?;
        let paused = self.launchers.guest(&pod, |guest| guest.paused).unwrap_or(false);
        screen::png(paused).map_err(|error| error.to_string())
    }

    /// Connects to something in the guest.
    ///
    /// # Errors
    /// When no guest runs, or nothing in it listens on the port.
    pub fn connect(&self, vmi: &Value, stream: Stream) -> Result<DuplexStream, String> {
        let pod = self.pod_of(vmi)?;
        let (near, far) = tokio::io::duplex(BUFFER);
        let (launchers, name) = (self.launchers.clone(), json::key(vmi));
        if let Stream::Port(port) = stream
            && port != ECHO
        {
            let address = text(vmi, "/status/interfaces/0/ipAddress");
            return Err(format!("dialing VM: dial tcp {address}:{port}: connect: connection refused"));
        }
        if let Stream::Vsock(port) = stream
            && port != Some(ECHO.into())
        {
            return Err("dialing VM: connect: connection reset by peer".into());
        }
        tokio::spawn(async move {
            let ended = match stream {
                Stream::Console => console(far, &launchers, &pod).await,
                Stream::Vnc => {
                    let paused = || launchers.guest(&pod, |guest| guest.paused).unwrap_or(true);
                    vnc::serve(far, &name, paused).await
                }
                Stream::UsbRedirection => usb::serve(far).await,
                Stream::Port(_) | Stream::Vsock(_) => {
                    let (mut read, mut write) = tokio::io::split(far);
                    tokio::io::copy(&mut read, &mut write).await.map(|_| ())
                }
            };
            if let Err(error) = ended {
                tracing::debug!(vmi = name, %error, "a connection into a guest ended");
            }
        });
        Ok(near)
    }
}

/// Couples a connection to a guest's serial line until either goes or somebody else takes the line.
async fn console(mut line: DuplexStream, launchers: &Launchers, pod: &str) -> std::io::Result<()> {
    let taken = launchers.guest(pod, |guest| (guest.take_console(), guest.console.greeting()));
    let Some((taken_over, greeting)) = taken else { return Ok(()) };
    line.write_all(&greeting).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let count = tokio::select! {
            biased;
            () = taken_over.cancelled() => return Ok(()),
            read = line.read(&mut buffer) => read?,
        };
        if count == 0 {
            return Ok(());
        }
        let typed = launchers.guest(pod, |guest| {
            // What is typed at a paused guest stays unread.
            if guest.paused { (Vec::new(), None) } else { guest.console.input(&buffer[..count]) }
        });
        let Some((shown, effect)) = typed else { return Ok(()) };
        line.write_all(&shown).await?;
        match effect {
            Some(Effect::Reboot) => {
                launchers.guest(pod, |guest| guest.boots = guest.boots.saturating_add(1));
            }
            Some(Effect::PowerOff) => {
                launchers.end(pod, false);
                return Ok(());
            }
            None => {}
        }
    }
}
