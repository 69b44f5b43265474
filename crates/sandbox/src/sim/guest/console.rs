//! The serial console: a login prompt and a small shell, as a state machine over bytes.
//!
//! ```text
//!  login ──name──► shell ──exit──► login
//!                    ├── reboot ──► login, with the boot's messages
//!                    └── poweroff
//! ```

/// A line that is longer is cut.
const LINE: usize = 1024;
const KERNEL: &str = "6.12.0-sandbox";

/// What the guest does beside answering.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    Reboot,
    PowerOff,
}

/// The far end of the serial line.
#[derive(Clone, Debug, Default)]
pub struct Console {
    host: String,
    /// Who is logged in.
    user: Option<String>,
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed after it is no second line.
    after_return: bool,
}

impl Console {
    pub fn new(host: &str) -> Self {
        Self { host: host.into(), ..Self::default() }
    }

    /// What shows when somebody connects.
    pub fn greeting(&self) -> Vec<u8> {
        format!("\r\n{}", self.prompt()).into_bytes()
    }

    /// Forgets who is logged in and what was typed.
    pub fn reset(&mut self) {
        *self = Self::new(&self.host);
    }

    fn prompt(&self) -> String {
        match &self.user {
            None => format!("{} login: ", self.host),
            Some(user) if user == "root" => format!("[root@{} ~]# ", self.host),
            Some(user) => format!("[{user}@{} ~]$ ", self.host),
        }
    }

    /// Takes what was typed and returns what shows.
    pub fn input(&mut self, typed: &[u8]) -> (Vec<u8>, Option<Effect>) {
        let mut shown = Vec::new();
        let mut effect = None;
        for byte in typed {
            let feed_after_return = *byte == b'\n' && self.after_return;
            self.after_return = *byte == b'\r';
            match *byte {
                b'\n' if feed_after_return => {}
                b'\r' | b'\n' => {
                    shown.extend_from_slice(b"\r\n");
                    let line = std::mem::take(&mut self.line);
                    let (answer, done) = self.enter(String::from_utf8_lossy(&line).trim());
                    shown.extend_from_slice(answer.replace('\n', "\r\n").as_bytes());
                    effect = effect.or(done);
                    if done != Some(Effect::PowerOff) {
                        shown.extend_from_slice(self.prompt().as_bytes());
                    }
                }
                // Backspace and delete take back what is on the line.
                8 | 127 if self.line.pop().is_some() => shown.extend_from_slice(b"\x08 \x08"),
                8 | 127 => {}
                // Control-C and control-U give the line up.
                3 | 21 => {
                    self.line.clear();
                    shown.extend_from_slice(format!("\r\n{}", self.prompt()).as_bytes());
                }
                // Control-D at an empty line.
                4 if self.line.is_empty() && self.user.is_some() => {
                    self.user = None;
                    shown.extend_from_slice(format!("logout\r\n\r\n{}", self.prompt()).as_bytes());
                }
                byte if byte >= b' ' && self.line.len() < LINE => {
                    self.line.push(byte);
                    shown.push(byte);
                }
                _ => {}
            }
        }
        (shown, effect)
    }

    fn enter(&mut self, line: &str) -> (String, Option<Effect>) {
        if self.user.is_none() {
            if line.is_empty() {
                return (String::new(), None);
            }
            self.user = Some(line.chars().filter(|c| c.is_alphanumeric() || *c == '-').take(32).collect());
            return ("This guest is simulated. `help` lists what it knows.\n".into(), None);
        }
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let answer = match command {
            "" => String::new(),
            "help" => "echo exit help hostname poweroff reboot uname whoami\n".into(),
            "echo" => format!("{rest}\n"),
            "hostname" => format!("{}\n", self.host),
            "whoami" => format!("{}\n", self.user.as_deref().unwrap_or_default()),
            "uname" if rest == "-a" => {
                format!("Linux {} {KERNEL} #1 SMP x86_64 GNU/Linux\n", self.host)
            }
            "uname" if rest == "-r" => format!("{KERNEL}\n"),
            "uname" => "Linux\n".into(),
            "exit" | "logout" => {
                self.user = None;
                "logout\n\n".into()
            }
            "poweroff" | "shutdown" => {
                self.user = None;
                return ("[  OK  ] Reached target System Power Off.\n".into(), Some(Effect::PowerOff));
            }
            "reboot" => {
                self.user = None;
                let booted = format!("[  OK  ] Reached target System Reboot.\nLinux version {KERNEL}\n\n");
                return (booted, Some(Effect::Reboot));
            }
            unknown => format!("sh: {unknown}: command not found\n"),
        };
        (answer, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(console: &mut Console, text: &str) -> (String, Option<Effect>) {
        let (shown, effect) = console.input(text.as_bytes());
        (String::from_utf8(shown).unwrap(), effect)
    }

    #[test]
    fn somebody_logs_in_and_works() {
        let mut console = Console::new("web");
        assert_eq!(console.greeting(), b"\r\nweb login: ");
        assert_eq!(typed(&mut console, "\r\n").0, "\r\nweb login: ", "one line, not two");
        let (shown, _) = typed(&mut console, "root\r");
        assert!(shown.starts_with("root\r\n") && shown.ends_with("[root@web ~]# "), "{shown}");
        for (line, answer) in [
            ("echo hello there\n", "hello there\r\n"),
            ("hostnamX\x7fe\n", "web\r\n"),
            ("uname -r\n", "6.12.0-sandbox\r\n"),
            ("nothing\n", "sh: nothing: command not found\r\n"),
        ] {
            let (shown, effect) = typed(&mut console, line);
            assert!(shown.contains(answer), "{line:?}: {shown:?}");
            assert_eq!(effect, None);
        }
        assert!(typed(&mut console, "\x04").0.ends_with("web login: "));
    }

    #[test]
    fn a_guest_reboots_and_ends_by_its_own_command() {
        for (command, effect) in [("reboot\n", Effect::Reboot), ("poweroff\n", Effect::PowerOff)] {
            let mut console = Console::new("web");
            typed(&mut console, "me\n");
            assert_eq!(typed(&mut console, command).1, Some(effect));
            assert!(console.greeting().ends_with(b"login: "), "nobody is logged in after {command}");
        }
    }

    #[test]
    fn a_line_has_an_end() {
        let mut console = Console::new("web");
        let (shown, _) = typed(&mut console, &"x".repeat(5000));
        assert_eq!(shown.len(), LINE);
    }
}
