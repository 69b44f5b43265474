//! For any domain, an edit changes the bytes that it is about and no others.
#![allow(clippy::unwrap_used, reason = "a test may fail this way")]

use hook::arguments::Device;
use hook::domain::Domain;
use hook::edit::{Edit, RomBar, apply};
use proptest::prelude::*;
use proptest::sample::select;

/// What may stand between elements.
fn noise() -> impl Strategy<Value = String> {
    prop::collection::vec(
        select(vec![
            "",
            " ",
            "\n\t\t",
            "\r\n",
            "<!-- <hostdev><alias name='ua-gpu-a'/></hostdev> -->",
            "<?note </hostdev> ?>",
            "&amp;&lt;&#x41;",
            "<![CDATA[</hostdev><rom file='x'/>]]>",
            "text é 日本",
            "<qemu:commandline><qemu:arg value='-device'/></qemu:commandline>",
            "<k:hostdev xmlns:k=\"http://kubevirt.io\"><alias name='ua-gpu-a'/></k:hostdev>",
            "<kubevirt xmlns='http://kubevirt.io'><hostdev><alias name=\"ua-gpu-a\"/></hostdev></kubevirt>",
            "<address type=\"pci\" bus='0x01' slot='0x00' function='0x0'></address>",
            "<driver name = 'vfio' />",
        ]),
        0..4,
    )
    .prop_map(|parts| parts.concat())
}

/// Spellings of a ROM that a device may have already.
fn rom() -> impl Strategy<Value = &'static str> {
    select(vec!["", "<rom/>", "<rom bar=\"off\"></rom>", "<rom enabled='no'> </rom>", "<rom file='&lt;'/>"])
}

fn alias(name: &str) -> impl Strategy<Value = String> + use<> {
    let encoded = name.replace('-', "&#45;");
    select(vec![
        format!("<alias name='{name}'/>"),
        format!("<alias  name = \"{name}\"></alias>"),
        format!("<alias name=\"{encoded}\" />"),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn nothing_else_changes_by_one_byte(
        head in select(vec!["", "<?xml version='1.0'?>\n", "<!-- é -->", "\u{feff}"]),
        parts in prop::array::uniform6(noise()),
        alias in alias("ua-gpu-a"),
        old in rom(),
        other in alias("ua-gpu-b"),
        file in "/[ -~é]{0,24}",
    ) {
        let [p0, p1, p2, p3, p4, p5] = &parts;
        let before = format!(
            "{head}<domain xmlns:qemu='urn:qemu'>{p0}<devices>{p1}<hostdev>{other}</hostdev>\
             <hostdev type=\"pci\">{p2}{alias}{p3}");
        let after = format!("{p4}</hostdev>{p5}</devices></domain>");
        let text = format!("{before}{old}{after}");
        let edits = [Edit::Rom(RomBar { device: Device::Alias("ua-gpu-a".into()), file: file.clone() })];
        let result = apply(&Domain::parse(text.as_bytes()).unwrap(), &edits).unwrap();
        // a new element goes to the end of the device, in place of an old one otherwise
        let (before, after) = if old.is_empty() {
            (format!("{before}{p4}"), format!("</hostdev>{p5}</devices></domain>"))
        } else {
            (before, after)
        };
        prop_assert!(result.starts_with(&before) && result.ends_with(&after), "{}", result);
        let added = &result[before.len()..result.len() - after.len()];
        prop_assert!(added.starts_with("<rom bar='on' file='") && added.ends_with("'/>"), "{}", added);
        // what was written is what is read
        let document = roxmltree::Document::parse(&result).unwrap();
        let read = document.descendants().find(|node| node.attribute("bar") == Some("on")).unwrap();
        prop_assert_eq!(read.attribute("file"), Some(file.as_str()));
        // and a second call finds nothing to do
        let again = apply(&Domain::parse(result.as_bytes()).unwrap(), &edits).unwrap();
        prop_assert_eq!(again, result);
    }

    /// Whatever is done, only bytes are added, in one place for each element that is missing.
    #[test]
    fn other_edits_only_add_and_a_second_call_finds_nothing_to_do(
        parts in prop::array::uniform4(noise()),
        features in select(vec!["", "<features/>", "<features><acpi/></features>", "<features><kvm/></features>"]),
        alias in alias("ua-gpu-a"),
        argument in "-[ -~é]{1,24}",
    ) {
        let [p0, p1, p2, p3] = &parts;
        let text = format!(
            "<domain xmlns:qemu='urn:qemu'>{p0}{features}<devices>{p1}<hostdev>{p2}{alias}</hostdev></devices>{p3}</domain>");
        let device = Device::Alias("ua-gpu-a".into());
        let edits = [Edit::HideKvm, Edit::QemuArguments(vec![argument.clone()])];
        let result = apply(&Domain::parse(text.as_bytes()).unwrap(), &edits).unwrap();
        let mut rest = result.as_str();
        // what was there is there, in order; an empty element got a closing tag
        for piece in [p0, p1, p2, p3, &alias] {
            prop_assert!(result.contains(piece.as_str()));
        }
        for piece in [p0.as_str(), "<devices>", p1, "<hostdev>", p2, &alias, "</hostdev></devices>", p3, "</domain>"] {
            let at = rest.find(piece);
            prop_assert!(at.is_some(), "{piece} in {rest}");
            rest = &rest[at.unwrap() + piece.len()..];
        }
        let again = apply(&Domain::parse(result.as_bytes()).unwrap(), &edits).unwrap();
        prop_assert_eq!(&again, &result);
        let igd = [Edit::Igd(device)];
        let moved = apply(&Domain::parse(result.as_bytes()).unwrap(), &igd).unwrap();
        prop_assert!(moved.contains("x-igd-opregion"));
        prop_assert_eq!(apply(&Domain::parse(moved.as_bytes()).unwrap(), &igd).unwrap(), moved);
        // what was written is what is read
        let document = roxmltree::Document::parse(&result).unwrap();
        let read = document.descendants().find(|node| node.has_tag_name(("http://libvirt.org/schemas/domain/qemu/1.0", "arg")));
        prop_assert_eq!(read.and_then(|node| node.attribute("value")), Some(argument.as_str()));
    }

    #[test]
    fn any_bytes_are_a_domain_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        if let Ok(domain) = Domain::parse(&bytes) {
            let same = apply(&domain, &[]).unwrap();
            prop_assert_eq!(same.as_bytes(), &bytes[..]);
        }
    }

    #[test]
    fn any_bytes_are_a_rom_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        drop(hook::rom::check(&bytes));
        for (at, value) in [0x55, 0xaa].into_iter().enumerate() {
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
        }
        if let Some(pointer) = bytes.get_mut(0x18..0x1a) { pointer.copy_from_slice(&[0x1c, 0]); }
        if let Some(data) = bytes.get_mut(0x1c..0x20) { data.copy_from_slice(b"PCIR"); }
        if let Ok(images) = hook::rom::check(&bytes) {
            prop_assert!(images.iter().all(|image| image.offset + image.length <= bytes.len()));
        }
    }
}
