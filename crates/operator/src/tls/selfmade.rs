//! A CA and a leaf made by ourselves, and when which of them is made anew.
//!
//! ```text
//!            CA ≤ 1/3 of its life left            leaf ≤ 1/3 left, or other names
//!  Keep ───────────────────────────► NewCa   Keep ──────────────────────────────► NewLeaf
//!                                      │                                           ▲
//!                                      └── bundle = new + old CA; the leaf stays ──┘ (later)
//! ```
//!
//! A new CA is published beside the old one while the old leaf is still served; only a later leaf is
//! signed by it. So at no time is a certificate served whose CA an API server has not yet been told.

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;

use super::identity::validity;

const CA_LIFE: SignedDuration = SignedDuration::from_hours(3 * 365 * 24);
const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(90 * 24);
/// Clocks of API servers may be behind ours.
const BACKDATE: SignedDuration = SignedDuration::from_hours(1);

/// What replicas share.
#[derive(Clone, Eq, PartialEq)]
pub struct Material {
    /// PEM certificates that API servers must trust: the newest CA first, then older ones that a
    /// leaf may still be signed by.
    pub ca_bundle: String,
    /// PEM key of the first of them.
    pub ca_key: String,
    /// PEM leaf.
    pub certificate: String,
    /// PEM key of the leaf.
    pub key: String,
}

impl std::fmt::Debug for Material {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Material").field("ca_bundle", &self.ca_bundle).finish_non_exhaustive()
    }
}

/// Why material cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// A certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// What is stored cannot be read.
    #[error("the stored certificates cannot be read: {0}")]
    Stored(String),
}

/// What has to be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// A leaf, signed by the newest CA.
    NewLeaf,
    /// A CA, beside the one that there is.
    NewCa,
    /// Both: there is nothing that could still be served.
    Everything,
}

/// Decides what to make so that `names` are served at `now`.
pub fn decide(material: Option<&Material>, names: &[String], now: Timestamp) -> Step {
    let Some(material) = material else { return Step::Everything };
    let (Ok(ca), Ok(leaf)) = (life(&material.ca_bundle), life(&material.certificate)) else {
        return Step::Everything;
    };
    let leaf_serves = leaf.0 <= now && now < leaf.1 && ca.0 <= now;
    if !leaf_serves && due(ca, now) {
        return Step::Everything;
    }
    if due(ca, now) {
        return Step::NewCa;
    }
    let named = leaf_names(&material.certificate).unwrap_or_default();
    if due(leaf, now) || !leaf_serves || names.iter().any(|name| !named.contains(name)) {
        return Step::NewLeaf;
    }
    Step::Keep
}

/// A third of its life or less is left, or it is not yet valid.
fn due((from, to): (Timestamp, Timestamp), now: Timestamp) -> bool {
    now < from || to.duration_since(now) <= to.duration_since(from) / 3
}

/// Does a step. Old CAs leave the bundle when they have expired.
pub fn carry_out(
    step: Step,
    material: Option<&Material>,
    names: &[String],
    now: Timestamp,
) -> Result<Option<Material>, MaterialError> {
    let old_cas = || material.map(|old| still_valid(&old.ca_bundle, now)).unwrap_or_default();
    match (step, material) {
        (Step::Keep, _) => Ok(None),
        (Step::NewLeaf, Some(old)) => {
            let (certificate, key) = make_leaf(&old.ca_bundle, &old.ca_key, names, now)?;
            let ca_bundle = first(&old.ca_bundle) + &still_valid(rest(&old.ca_bundle), now);
            Ok(Some(Material { ca_bundle, ca_key: old.ca_key.clone(), certificate, key }))
        }
        (Step::NewCa, Some(old)) => {
            let (ca, ca_key) = make_ca(now)?;
            Ok(Some(Material { ca_bundle: ca + &old_cas(), ca_key, ..old.clone() }))
        }
        (Step::NewLeaf | Step::NewCa | Step::Everything, _) => {
            let (ca, ca_key) = make_ca(now)?;
            let (certificate, key) = make_leaf(&ca, &ca_key, names, now)?;
            Ok(Some(Material { ca_bundle: ca + &old_cas(), ca_key, certificate, key }))
        }
    }
}

fn make_ca(now: Timestamp) -> Result<(String, String), MaterialError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    // The time tells an old CA from a new one in a bundle.
    params
        .distinguished_name
        .push(DnType::CommonName, format!("virt-steward webhook CA {}", now.as_second()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now, CA_LIFE);
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn make_leaf(
    ca: &str,
    ca_key: &str,
    names: &[String],
    now: Timestamp,
) -> Result<(String, String), MaterialError> {
    let issuer = Issuer::from_ca_cert_pem(&first(ca), KeyPair::from_pem(ca_key)?)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "virt-steward webhook");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, now, LEAF_LIFE);
    Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, life: SignedDuration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |time: Timestamp| {
        epoch + std::time::Duration::from_secs(u64::try_from(time.as_second()).unwrap_or_default())
    };
    params.not_before = at(now - BACKDATE);
    params.not_after = at(now + life);
}

const END: &str = "-----END CERTIFICATE-----\n";

/// The certificates of a bundle, as PEM.
fn each(bundle: &str) -> impl Iterator<Item = &str> {
    bundle.split_inclusive(END).filter(|pem| pem.contains("-----BEGIN CERTIFICATE-----"))
}

fn first(bundle: &str) -> String {
    each(bundle).next().unwrap_or_default().to_owned()
}

fn rest(bundle: &str) -> &str {
    bundle.split_once(END).map_or("", |(_, rest)| rest)
}

fn still_valid(bundle: &str, now: Timestamp) -> String {
    each(bundle).filter(|pem| life(pem).is_ok_and(|(_, to)| now < to)).collect()
}

fn life(pem: &str) -> Result<(Timestamp, Timestamp), MaterialError> {
    let stored = |error: &dyn std::fmt::Display| MaterialError::Stored(error.to_string());
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| stored(&error))?;
    validity(&der).map_err(|error| stored(&error))
}

fn leaf_names(pem: &str) -> Option<Vec<String>> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
    let names = &parsed.subject_alternative_name().ok()??.value.general_names;
    Some(names.iter().filter_map(name_text).collect())
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress([a, b, c, d]) => Some(std::net::Ipv4Addr::new(*a, *b, *c, *d).to_string()),
        GeneralName::IPAddress(bytes) => {
            let bytes: [u8; 16] = (*bytes).try_into().ok()?;
            Some(std::net::Ipv6Addr::from(bytes).to_string())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: SignedDuration = SignedDuration::from_hours(24);

    fn names() -> Vec<String> {
        vec!["svc.ns.svc".into(), "127.0.0.1".into(), "::1".into()]
    }

    fn start() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn everything(now: Timestamp) -> Material {
        carry_out(Step::Everything, None, &names(), now).unwrap().unwrap()
    }

    #[test]
    fn a_fresh_pair_is_kept_and_another_name_needs_a_leaf() {
        let material = everything(start());
        assert_eq!(decide(None, &names(), start()), Step::Everything);
        assert_eq!(decide(Some(&material), &names(), start()), Step::Keep);
        let more = [names(), vec!["other".into()]].concat();
        assert_eq!(decide(Some(&material), &more, start()), Step::NewLeaf);
    }

    #[test]
    fn broken_or_outlived_material_is_made_anew() {
        let material = everything(start());
        let broken = Material { certificate: "x".into(), ..material.clone() };
        assert_eq!(decide(Some(&broken), &names(), start()), Step::Everything);
        assert_eq!(decide(Some(&material), &names(), start() + DAY * 365 * 4), Step::Everything);
        // A clock that was set back: nothing is valid yet.
        assert_eq!(decide(Some(&material), &names(), start() - DAY * 30), Step::Everything);
    }

    /// Ten years, looked at each day: what is served is always valid and always vouched for by the
    /// bundle of the day before, which API servers have had time to learn.
    #[test]
    fn through_ten_years_of_rotations_the_served_leaf_is_valid_and_its_ca_known_before() {
        let (mut material, mut rotations) = (everything(start()), 0);
        for day in 1..3650 {
            let now = start() + DAY * day;
            let known = material.ca_bundle.clone();
            let step = decide(Some(&material), &names(), now);
            if let Some(next) = carry_out(step, Some(&material), &names(), now).unwrap() {
                rotations += 1;
                material = next;
            }
            let (from, to) = life(&material.certificate).unwrap();
            assert!(from <= now && now < to, "day {day}");
            assert!(each(&known).any(|ca| signed_by(&material.certificate, ca)), "day {day}: {step:?}");
            assert!(each(&material.ca_bundle).any(|ca| signed_by(&material.certificate, ca)), "day {day}");
            assert!(each(&material.ca_bundle).count() <= 2, "day {day}: old CAs pile up");
        }
        assert!(rotations > 50, "{rotations}");
    }

    /// By name: each CA has its own.
    fn signed_by(leaf: &str, ca: &str) -> bool {
        let (leaf, ca) = (der(leaf), der(ca));
        let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
        let (_, ca) = x509_parser::parse_x509_certificate(&ca).unwrap();
        leaf.issuer() == ca.subject()
    }

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }
}
