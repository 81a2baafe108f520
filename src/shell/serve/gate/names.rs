//! The names in a client's certificate. Who vouches for it was verified before; here nothing is decided.

use rustls::pki_types::CertificateDer;

use crate::config::CertificateName;
use crate::limits::{CERTIFICATE_NAME_BYTES, CERTIFICATE_NAMES};

/// Tags of DER.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8: u8 = 0x0C;
const PRINTABLE: u8 = 0x13;
const IA5: u8 = 0x16;

/// The attribute `commonName`, 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// All names of a certificate that can be listed; of one that cannot be read, none.
pub(super) fn of(certificate: &CertificateDer<'_>) -> Vec<CertificateName> {
    let Ok(read) = webpki::EndEntityCert::try_from(certificate) else { return Vec::new() };
    let dns = read.valid_dns_names().map(|name| CertificateName::Dns(name.to_ascii_lowercase()));
    let uris = read.valid_uri_names().map(|name| CertificateName::Uri(name.to_owned()));
    let common = common_names(read.subject()).into_iter().map(CertificateName::Common);
    let fits = |name: &CertificateName| match name {
        CertificateName::Dns(name) | CertificateName::Uri(name) | CertificateName::Common(name) => {
            name.len() <= CERTIFICATE_NAME_BYTES
        }
    };
    dns.chain(uris).chain(common).filter(fits).take(CERTIFICATE_NAMES).collect()
}

/// The common names of a subject: a sequence's content, of sets of pairs of an identifier and a text. What is
/// no such thing ends it.
fn common_names(mut subject: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while let Some((SET, mut set, rest)) = element(subject) {
        subject = rest;
        while let Some((SEQUENCE, pair, rest)) = element(set) {
            set = rest;
            let Some((OBJECT_IDENTIFIER, COMMON_NAME, value)) = element(pair) else { continue };
            let Some((UTF8 | PRINTABLE | IA5, text, [])) = element(value) else { continue };
            names.extend(str::from_utf8(text).map(str::to_owned));
        }
    }
    names
}

/// The first element of `bytes`: its tag, its content, and what comes behind it. Long tags and lengths of more
/// than two bytes have no place in a name.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match length {
        0..=0x7F => (usize::from(length), rest),
        0x81 => {
            let (&[length], rest) = rest.split_first_chunk()?;
            (usize::from(length), rest)
        }
        0x82 => {
            let (&length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(length)), rest)
        }
        _ => return None,
    };
    let (content, behind) = rest.split_at_checked(length)?;
    Some((tag, content, behind))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(common: &[&str], names: Vec<SanType>) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "plant");
        common.iter().for_each(|name| params.distinguished_name.push(DnType::CommonName, *name));
        params.subject_alt_names = names;
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn every_name_is_found_as_what_it_is() {
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        let uri = |name: &str| SanType::URI(name.try_into().unwrap());
        let names = vec![dns("Ops.plant.example"), uri("spiffe://plant/ops"), dns("*.a.example")];
        let long = "n".repeat(300);
        let found = of(&certificate(&[&long], names));
        let expected = [
            CertificateName::Dns("ops.plant.example".to_owned()),
            CertificateName::Dns("*.a.example".to_owned()),
            CertificateName::Uri("spiffe://plant/ops".to_owned()),
            CertificateName::Common(long),
        ];
        assert_eq!(found, expected);
        let bare = CertificateName::Common("größe".to_owned());
        assert_eq!(of(&certificate(&["größe"], Vec::new())), [bare]);
        assert_eq!(of(&CertificateDer::from(vec![0x30, 0x82, 0xFF])), []);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            common_names(&bytes);
            of(&CertificateDer::from(bytes));
        }

        /// A subject that was cut short has no more names than it had.
        #[test]
        fn no_name_comes_of_cutting(cut in 0..40_usize) {
            let whole = [
                &[SET, 16, SEQUENCE, 14, OBJECT_IDENTIFIER, 3, 0x55, 4, 3, UTF8, 7][..],
                b"camera1",
            ].concat();
            prop_assert_eq!(common_names(&whole), vec!["camera1".to_owned()]);
            let cut = cut.min(whole.len() - 1);
            prop_assert!(common_names(&whole[..cut]).is_empty());
        }
    }
}
