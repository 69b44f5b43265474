//! Any bytes are a domain or an error. With a domain every host device can get a ROM, every other edit can be made,
//! and what is written is a domain again in which there is nothing left to do.
#![no_main]

use hook::arguments::Device;
use hook::domain::Domain;
use hook::edit::{Edit, EditError, RomBar, apply};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(domain) = Domain::parse(data) else { return };
    assert_eq!(apply(&domain, &[]).expect("no edit is possible").as_bytes(), data);
    let mut aliases: Vec<_> = domain.host_devices().filter_map(|device| device.alias()).collect();
    aliases.sort_unstable();
    aliases.dedup();
    let device = |alias: &str| Device::Alias(alias.to_owned());
    let mut edits: Vec<_> = aliases
        .iter()
        .map(|alias| Edit::Rom(RomBar { device: device(alias), file: "/a & 'b' <c>".to_owned() }))
        .collect();
    edits.push(Edit::HideKvm);
    edits.push(Edit::QemuArguments(vec!["-fw_cfg".to_owned(), "name=<&'\">".to_owned()]));
    edits.extend(aliases.first().map(|alias| Edit::Igd(device(alias))));
    let edited = match apply(&domain, &edits) {
        Ok(edited) => edited,
        // at the limits of size and depth one more element is too much
        Err(EditError::Broken(_)) => return,
        Err(error) => panic!("the devices are there: {error}"),
    };
    let again = Domain::parse(edited.as_bytes()).expect("a domain");
    assert_eq!(apply(&again, &edits).expect("the devices are there"), edited);
});
