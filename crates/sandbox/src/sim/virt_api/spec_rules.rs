//! More of what virt-api refuses in a VMI's spec, in its words, as a virt-api of v1.9 gave them: memory, firmware,
//! disks, what volumes hold, probes and names.

use apimachinery::quantity::milli;
use apimachinery::tree::Value;
use apimachinery::validation::{dns1123_label, dns1123_subdomain};
use base64::Engine as _;

use super::validate::{Cause, INVALID, NOT_SUPPORTED, REQUIRED, cause};
use crate::sim::cluster::ClusterConfig;
use crate::sim::json::{list, text};

/// User data in the object itself may be this long, in bytes.
const MAX_CLOUD_INIT: usize = 2048;
const MAX_SERIAL: usize = 256;
const BUSES: [&str; 4] = ["virtio", "scsi", "sata", "usb"];

/// The causes against a spec at `field`.
pub fn check(field: &str, spec: &Value, config: &ClusterConfig, causes: &mut Vec<Cause>) {
    memory(field, spec, causes);
    firmware(field, spec, causes);
    for (index, disk) in list(spec, "/domain/devices/disks").iter().enumerate() {
        self::disk(&format!("{field}.domain.devices.disks[{index}]"), disk, spec, causes);
    }
    boot_orders(field, spec, causes);
    for (index, volume) in list(spec, "/volumes").iter().enumerate() {
        self::volume(&format!("{field}.volumes[{index}]"), volume, config, causes);
    }
    for name in ["readinessProbe", "livenessProbe"] {
        probe(&format!("{field}.{name}"), spec.get(name), causes);
    }
    names(field, spec, causes);
    let policy = text(spec, "/domain/ioThreadsPolicy");
    if !matches!(policy, "" | "shared" | "auto" | "supplementalPool") {
        causes.push(cause(
            INVALID,
            format!("Invalid IOThreadsPolicy ({policy})"),
            format!("{field}.domain.ioThreadsPolicy"),
        ));
    }
    let start = text(spec, "/startStrategy");
    if !matches!(start, "" | "Paused") {
        let message = format!("{field}.startStrategy is set with an unrecognized option: {start}");
        causes.push(cause(INVALID, message, format!("{field}.startStrategy")));
    }
}

fn memory(field: &str, spec: &Value, causes: &mut Vec<Cause>) {
    let amount = |pointer: &str| spec.pointer(pointer).and_then(milli);
    let (guest, most) = (amount("/domain/memory/guest"), amount("/domain/memory/maxGuest"));
    if let (Some(guest), Some(most)) = (guest, most)
        && guest > most
    {
        let message = "Guest memory is greater than the configured maxGuest memory";
        causes.push(cause(INVALID, message, format!("{field}.domain.memory.guest")));
    }
    let Some(page) = spec.pointer("/domain/memory/hugepages/pageSize").filter(|page| page.is_string()) else {
        return;
    };
    let (at, shown) =
        (format!("{field}.domain.memory.hugepages.pageSize"), page.as_str().unwrap_or_default());
    let Some(size) = milli(page) else {
        let message = format!(
            "{at} '{shown}': quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        );
        return causes.push(cause(INVALID, message, at));
    };
    let request = format!("{field}.domain.resources.requests.memory");
    let asked = spec.pointer("/domain/resources/requests/memory").and_then(Value::as_str).unwrap_or("0");
    let Some(memory) = guest.or_else(|| amount("/domain/resources/requests/memory")).filter(|_| size > 0)
    else {
        return;
    };
    if memory < size {
        let message = format!("{request} '{asked}' must be equal to or larger than page size {at} '{shown}'");
        causes.push(cause(INVALID, message, request));
    } else if memory % size != 0 {
        let message = format!("{request} '{asked}' is not a multiple of the page size {at} '{shown}'");
        causes.push(cause(INVALID, message, request));
    }
}

/// Secure boot is the default of EFI, and needs system management mode.
fn firmware(field: &str, spec: &Value, causes: &mut Vec<Cause>) {
    let Some(loader) = spec.pointer("/domain/firmware/bootloader") else { return };
    let (efi, bios) = (loader.get("efi").filter(|efi| efi.is_object()), loader.get("bios"));
    if efi.is_some() && bios.is_some_and(Value::is_object) {
        let at = format!("{field}.domain.firmware.bootloader");
        let message = format!("{at} has both EFI and BIOS configured, but they are mutually exclusive.");
        causes.push(cause(INVALID, message, at));
    }
    let secure = efi.is_some_and(|efi| efi["secureBoot"] != false);
    let managed =
        spec.pointer("/domain/features/smm").is_some_and(|smm| smm.is_object() && smm["enabled"] != false);
    if secure && !managed {
        let at = format!("{field}.domain");
        let message =
            format!("{at} has EFI SecureBoot enabled. SecureBoot requires SMM, which is currently disabled.");
        causes.push(cause(INVALID, message, at));
    }
}

fn disk(at: &str, disk: &Value, spec: &Value, causes: &mut Vec<Cause>) {
    let mut denied =
        |part: &str, message: String| causes.push(cause(INVALID, message, format!("{at}.{part}")));
    for device in ["disk", "cdrom", "lun"].into_iter().filter(|device| disk[*device].is_object()) {
        match text(&disk[device], "/bus") {
            "ide" => denied(&format!("{device}.bus"), "IDE bus is not supported".into()),
            "virtio" if device == "cdrom" => {
                denied("cdrom.bus", "Bus type virtio is invalid for CD-ROM device".into());
            }
            "" => {}
            bus if !BUSES.contains(&bus) => {
                let known = BUSES.join(" ");
                let message =
                    format!("{at} is set with an unrecognized bus {bus}, must be one of: [{known}]");
                denied(&format!("{device}.bus"), message);
            }
            _ => {}
        }
    }
    let is_claim = |volume: &&Value| {
        volume["name"] == disk["name"]
            && (volume["persistentVolumeClaim"].is_object() || volume["dataVolume"].is_object())
    };
    if disk["lun"].is_object() && !list(spec, "/volumes").iter().any(|volume| is_claim(&volume)) {
        denied(
            "lun",
            format!("{at}.lun can only be mapped to a DataVolume or PersistentVolumeClaim volume."),
        );
    }
    if disk["bootOrder"].as_i64().is_some_and(|order| order < 1) {
        denied("bootOrder", format!("{at} must have a boot order > 0, if supplied"));
    }
    let serial = text(disk, "/serial");
    if serial.len() > MAX_SERIAL {
        denied("serial", format!("{at} must be less than or equal to {MAX_SERIAL} in length, if specified"));
    } else if !serial.chars().all(|c| c.is_ascii_alphanumeric() || "_.+-".contains(c)) {
        let message =
            format!("{at} must be made up of the following characters [A-Za-z0-9_.+-], if specified");
        denied("serial", message);
    }
    let cache = text(disk, "/cache");
    if !matches!(cache, "" | "none" | "writethrough" | "writeback") {
        denied("cache", format!("{at}.cache has invalid value {cache}"));
    }
    if !matches!(text(disk, "/io"), "" | "native" | "threads") {
        let (disks, index) = at.split_once('[').unwrap_or((at, ""));
        let message =
            format!("Disk IO mode for {disks} is not supported. Supported modes are: native, threads.");
        causes.push(cause(NOT_SUPPORTED, message, format!("{disks}.domain.devices.disks[{index}.io")));
    }
}

fn boot_orders(field: &str, spec: &Value, causes: &mut Vec<Cause>) {
    let mut taken = Vec::new();
    for (index, disk) in list(spec, "/domain/devices/disks").iter().enumerate() {
        let Some(order) = disk["bootOrder"].as_i64().filter(|order| *order > 0) else { continue };
        if taken.contains(&order) {
            let at = format!("{field}.domain.devices.disks[{index}].bootOrder");
            causes.push(cause(
                INVALID,
                format!("Boot order for {at} already set for a different device."),
                at,
            ));
        }
        taken.push(order);
    }
}

fn volume(at: &str, volume: &Value, config: &ClusterConfig, causes: &mut Vec<Cause>) {
    for (source, key) in
        [("configMap", "name"), ("secret", "secretName"), ("serviceAccount", "serviceAccountName")]
    {
        if volume[source].is_object() && volume[source][key].as_str().is_none_or(str::is_empty) {
            let field = format!("{at}.{source}.{key}");
            causes.push(cause(INVALID, format!("{field} is a required field"), field));
        }
    }
    if volume["hostDisk"].is_object() && !config.gate("HostDisk") {
        causes.push(cause(INVALID, "HostDisk feature gate is not enabled", at));
    }
    for source in ["cloudInitNoCloud", "cloudInitConfigDrive"] {
        if volume[source].is_object() {
            cloud_init(&format!("{at}.{source}"), source, &volume[source], causes);
        }
    }
}

fn cloud_init(at: &str, source: &str, given: &Value, causes: &mut Vec<Cause>) {
    let mut sources = 0;
    for (what, plain, reference) in
        [("userdata", "userData", "secretRef"), ("networkdata", "networkData", "networkDataSecretRef")]
    {
        let encoded = format!("{plain}Base64");
        let mut count = usize::from(given[reference].is_object());
        let mut length = 0;
        if let Some(data) = given[plain].as_str().filter(|data| !data.is_empty()) {
            (count, length) = (count + 1, data.len());
        }
        if let Some(data) = given[&encoded].as_str().filter(|data| !data.is_empty()) {
            count += 1;
            if let Ok(data) = base64::engine::general_purpose::STANDARD.decode(data) {
                length = data.len();
            } else {
                let field = format!("{at}.{encoded}");
                let message = format!("{field}.{source}.{encoded} is not a valid base64 value.");
                causes.push(cause(INVALID, message, field));
            }
        }
        if count > 1 {
            causes.push(cause(INVALID, format!("{at} must have only one {what}source set."), at));
        }
        if length > MAX_CLOUD_INIT {
            let instead = if what == "userdata" { "UserDataSecretRef" } else { "NetworkDataSecretRef" };
            let message = format!(
                "{at} {what} exceeds {MAX_CLOUD_INIT} byte limit. Should use {instead} for larger data."
            );
            causes.push(cause(INVALID, message, at));
        }
        sources += count;
    }
    if sources == 0 {
        let message = format!("{at} must have at least one userdatasource or one networkdatasource set.");
        causes.push(cause(INVALID, message, at));
    }
}

fn probe(at: &str, probe: Option<&Value>, causes: &mut Vec<Cause>) {
    let Some(probe) = probe.filter(|probe| probe.is_object()) else { return };
    let kinds = ["httpGet", "tcpSocket", "exec", "guestAgentPing"];
    match kinds.iter().filter(|kind| probe[**kind].is_object()).count() {
        0 => {
            let message = format!(
                "either {at}.tcpSocket, {at}.exec or {at}.httpGet must be set if a {at} is specified"
            );
            causes.push(cause(REQUIRED, message, at));
        }
        1 => {}
        _ => causes.push(cause(INVALID, format!("{at} must have exactly one probe type set"), at)),
    }
}

fn names(field: &str, spec: &Value, causes: &mut Vec<Cause>) {
    for (key, rules, check) in [
        ("hostname", "DNS_LABEL", dns1123_label as fn(&str) -> Vec<String>),
        ("subdomain", "DNS_SUBDOMAIN", dns1123_subdomain),
    ] {
        let name = text(spec, &format!("/{key}")).to_owned();
        let wrong = if name.is_empty() { Vec::new() } else { check(&name) };
        if !wrong.is_empty() {
            let at = format!("{field}.{key}");
            let message =
                format!("{at} does not conform to the kubernetes {rules} rules : {}", wrong.join(", "));
            causes.push(cause(INVALID, message, at));
        }
    }
}

/// The cause against a `DataVolume` template that no volume of the VM uses.
pub fn data_volume_templates(vm: &Value, causes: &mut Vec<Cause>) {
    let volumes = list(vm, "/spec/template/spec/volumes");
    for (index, template) in list(vm, "/spec/dataVolumeTemplates").iter().enumerate() {
        let name = text(template, "/metadata/name");
        let used = volumes.iter().any(|volume| {
            volume["dataVolume"]["name"] == name || volume["persistentVolumeClaim"]["claimName"] == name
        });
        if !used {
            let at = format!("spec.dataVolumeTemplate[{index}]");
            let message = format!(
                "DataVolumeTemplate entry {at} must be referenced in the VMI template's 'volumes' list"
            );
            causes.push(cause(REQUIRED, message, at));
        }
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    fn against(spec: &Value) -> Vec<String> {
        let mut causes = Vec::new();
        check("spec", spec, &ClusterConfig::of(&Value::Null), &mut causes);
        causes.into_iter().map(|cause| cause.message).collect()
    }

    #[test]
    fn efi_boots_securely_unless_told_otherwise_and_needs_smm_then() {
        let spec = |efi: Value, smm: Value| json!({"domain": {"firmware": {"bootloader": {"efi": efi}}, "features": {"smm": smm}}});
        let refused =
            "spec.domain has EFI SecureBoot enabled. SecureBoot requires SMM, which is currently disabled.";
        assert_eq!(against(&spec(json!({}), Value::Null)), [refused]);
        assert_eq!(against(&spec(json!({"secureBoot": true}), json!({"enabled": false}))), [refused]);
        assert!(against(&spec(json!({}), json!({}))).is_empty());
        assert!(against(&spec(json!({"secureBoot": false}), Value::Null)).is_empty());
    }

    #[test]
    fn memory_is_whole_pages_and_below_its_maximum() {
        let memory = |memory: Value| against(&json!({"domain": {"memory": memory}}));
        assert!(
            memory(json!({"guest": "1Gi", "maxGuest": "4Gi", "hugepages": {"pageSize": "2Mi"}})).is_empty()
        );
        for (given, why) in [
            (
                json!({"guest": "2Gi", "maxGuest": "1Gi"}),
                "Guest memory is greater than the configured maxGuest memory",
            ),
            (
                json!({"guest": "128Mi", "hugepages": {"pageSize": "1Gi"}}),
                "spec.domain.resources.requests.memory '0' must be equal to or larger than page size spec.domain.memory.hugepages.pageSize '1Gi'",
            ),
            (
                json!({"guest": "3Mi", "hugepages": {"pageSize": "2Mi"}}),
                "spec.domain.resources.requests.memory '0' is not a multiple of the page size spec.domain.memory.hugepages.pageSize '2Mi'",
            ),
        ] {
            assert_eq!(memory(given), [why]);
        }
    }

    #[test]
    fn disks_and_what_is_behind_them() {
        let disk = |disk: Value| against(&json!({"domain": {"devices": {"disks": [disk]}}}));
        assert!(
            disk(json!({"name": "d", "disk": {"bus": "virtio"}, "bootOrder": 1, "serial": "a-1"})).is_empty()
        );
        let at = "spec.domain.devices.disks[0]";
        for (given, why) in [
            (
                json!({"disk": {"bus": "foo"}}),
                format!("{at} is set with an unrecognized bus foo, must be one of: [virtio scsi sata usb]"),
            ),
            (json!({"disk": {}, "bootOrder": 0}), format!("{at} must have a boot order > 0, if supplied")),
            (
                json!({"disk": {}, "serial": "a b"}),
                format!("{at} must be made up of the following characters [A-Za-z0-9_.+-], if specified"),
            ),
            (
                json!({"lun": {"bus": "scsi"}}),
                format!("{at}.lun can only be mapped to a DataVolume or PersistentVolumeClaim volume."),
            ),
            (json!({"cdrom": {"bus": "virtio"}}), "Bus type virtio is invalid for CD-ROM device".into()),
            (json!({"disk": {}, "cache": "foo"}), format!("{at}.cache has invalid value foo")),
        ] {
            assert_eq!(disk(given), [why]);
        }
        let cloud = |given: Value| against(&json!({"volumes": [{"name": "c", "cloudInitNoCloud": given}]}));
        let at = "spec.volumes[0].cloudInitNoCloud";
        assert!(cloud(json!({"userData": "x".repeat(2048)})).is_empty());
        for (given, why) in [
            (json!({}), format!("{at} must have at least one userdatasource or one networkdatasource set.")),
            (
                json!({"userData": "x", "secretRef": {"name": "s"}}),
                format!("{at} must have only one userdatasource set."),
            ),
            (
                json!({"userData": "x".repeat(2049)}),
                format!(
                    "{at} userdata exceeds 2048 byte limit. Should use UserDataSecretRef for larger data."
                ),
            ),
        ] {
            assert_eq!(cloud(given), [why]);
        }
    }

    #[test]
    fn probes_are_of_one_kind_and_names_are_names() {
        assert_eq!(
            against(&json!({"readinessProbe": {"guestAgentPing": {}, "tcpSocket": {"port": 1}}})),
            ["spec.readinessProbe must have exactly one probe type set"]
        );
        assert!(
            against(&json!({"hostname": "Bad_"}))[0]
                .starts_with("spec.hostname does not conform to the kubernetes DNS_LABEL rules : ")
        );
        assert_eq!(
            against(&json!({"startStrategy": "Foo"})),
            ["spec.startStrategy is set with an unrecognized option: Foo"]
        );
    }
}
