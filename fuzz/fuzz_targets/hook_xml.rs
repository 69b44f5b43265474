//! Any bytes are a domain or an error. With a domain every host device can get a ROM, and what is
//! written is a domain again in which there is nothing left to do.
#![no_main]

use hook::arguments::Device;
use hook::domain::Domain;
use hook::edit::{Edit, RomBar, apply};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(domain) = Domain::parse(data) else { return };
    assert_eq!(apply(&domain, &[]).expect("no edit is possible").as_bytes(), data);
    let mut aliases: Vec<_> = domain.host_devices().filter_map(|device| device.alias()).collect();
    aliases.sort_unstable();
    aliases.dedup();
    let edits: Vec<_> = aliases
        .iter()
        .map(|alias| {
            Edit::Rom(RomBar { device: Device::Alias((*alias).to_owned()), file: "/a & 'b' <c>".to_owned() })
        })
        .collect();
    let edited = apply(&domain, &edits).expect("the devices are there");
    let again = Domain::parse(edited.as_bytes()).expect("a domain");
    assert_eq!(apply(&again, &edits).expect("the devices are there"), edited);
});
