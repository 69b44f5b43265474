//! `<qemu:commandline>` with more arguments (libvirt `drvqemu`, "Pass-through of arbitrary qemu
//! commands"). Which are allowed is decided at admission, by the administrator's list.

use crate::domain::{Domain, QEMU, qemu};

use super::{Splice, append, attribute};

/// What to replace; nothing when the arguments are there, one behind the other.
pub(super) fn splice(domain: &Domain<'_>, arguments: &[String]) -> Option<Splice> {
    if arguments.is_empty() {
        return None;
    }
    let declared = format!(" xmlns:qemu='{QEMU}'");
    let written = |declared: &str| {
        let all: Vec<String> =
            arguments.iter().map(|one| format!("<qemu:arg{declared} value='{}'/>", attribute(one))).collect();
        all.concat()
    };
    let Some(line) = qemu(domain.root(), "commandline").next() else {
        let content = format!("<qemu:commandline{declared}>{}</qemu:commandline>", written(""));
        return Some(append(domain.text(), domain.root(), &content));
    };
    let known: Vec<&str> = qemu(line, "arg").filter_map(|argument| argument.attribute("value")).collect();
    let is_there = known.windows(arguments.len()).any(|window| window == arguments);
    (!is_there).then(|| append(domain.text(), line, &written(&declared)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::{Edit, apply};

    fn edited(text: &str, arguments: &[&str]) -> String {
        let arguments = arguments.iter().map(|one| (*one).to_owned()).collect();
        apply(&Domain::parse(text.as_bytes()).unwrap(), &[Edit::QemuArguments(arguments)]).unwrap()
    }

    #[test]
    fn arguments_are_added_once_behind_those_of_others() {
        let bare = edited("<domain></domain>", &["-fw_cfg", "name=opt/a,string=<&'>"]);
        assert_eq!(
            bare,
            "<domain><qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\
             <qemu:arg value='-fw_cfg'/><qemu:arg value='name=opt/a,string=&lt;&amp;&apos;>'/></qemu:commandline></domain>"
        );
        assert_eq!(edited(&bare, &["-fw_cfg", "name=opt/a,string=<&'>"]), bare);
        let other = format!(
            "<domain xmlns:q='{QEMU}'><q:commandline><q:arg value='-fw_cfg'/><q:env name='A'/></q:commandline></domain>"
        );
        let both = edited(&other, &["-fw_cfg", "x"]);
        assert!(both.contains("<q:env name='A'/><qemu:arg xmlns:qemu="), "{both}");
        assert_eq!(edited(&both, &["-fw_cfg", "x"]), both);
        assert_eq!(edited(&other, &["-fw_cfg"]), other, "it is there");
        assert_eq!(edited(&other, &[]), other);
    }
}
