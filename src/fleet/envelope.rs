//! A bundle as one file: the document, and behind it signatures as minisign writes them.
//!
//! ```text
//! fleet: 1
//! …                                   the document: YAML, signed to the last byte
//! untrusted comment: …                the first signature: four lines
//! RUQ…
//! trusted comment: …
//! …
//! untrusted comment: …                the next
//! ```
//!
//! `cat document.yaml alice.minisig bob.minisig > bundle` makes one, and
//! `sed '/^untrusted comment: /,$d' bundle` gives the document back, which stock `minisign -V` verifies. No
//! line of a document can begin like that: it would be a key that there is not.

use crate::limits::{FLEET_BUNDLE_BYTES, FLEET_SIGNATURE_BYTES, FLEET_SIGNATURES};
use crate::units::ByteSize;

use super::refused::Refused;

/// How a signature's first line begins.
const SIGNATURE: &str = "untrusted comment: ";

/// Lines of a signature.
const LINES: usize = 4;

/// A document and its signatures, none of which has been verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// What is signed, to the byte.
    pub document: &'a str,
    /// Four lines each.
    pub signatures: Vec<&'a str>,
}

impl<'a> Envelope<'a> {
    /// Takes a bundle apart.
    ///
    /// # Errors
    /// Where it is too large, no text, or not of this form.
    pub fn open(bytes: &'a [u8]) -> Result<Self, Refused> {
        if bytes.len() > FLEET_BUNDLE_BYTES {
            return Err(Refused::TooLarge { size: ByteSize(bytes.len() as u64) });
        }
        let malformed =
            |line: usize, what: &str| Refused::Malformed { line, what: what.to_owned() };
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            malformed(line + 1, "this is not text in UTF-8")
        })?;
        let lines = Lines::of(text);
        let first = lines.iter().position(|line| line.text.starts_with(SIGNATURE));
        let Some(first) = first else { return Err(Refused::Unsigned) };
        let document = &text[..lines[first].start];
        let mut signatures = Vec::new();
        let mut at = first;
        while let Some(line) = lines.get(at) {
            if line.text.trim().is_empty() {
                at += 1;
                continue;
            }
            if !line.text.starts_with(SIGNATURE) {
                return Err(malformed(at + 1, "behind the document stand signatures only"));
            }
            let Some(last) = lines.get(at + LINES - 1) else {
                return Err(malformed(at + 1, "the signature is cut short: it has four lines"));
            };
            let signature = &text[line.start..last.end];
            if signature.len() > FLEET_SIGNATURE_BYTES {
                return Err(malformed(at + 1, "the signature's comments are too long"));
            }
            if signatures.len() == FLEET_SIGNATURES {
                let what = format!("there are more than {FLEET_SIGNATURES} signatures");
                return Err(Refused::Malformed { line: at + 1, what });
            }
            signatures.push(signature);
            at += LINES;
        }
        Ok(Self { document, signatures })
    }

    /// The bundle of a document and its signatures.
    ///
    /// # Errors
    /// [`Refused::Malformed`] where the document does not end with its line, so that the first signature would
    /// become a part of it; or where what comes out cannot be taken apart again.
    pub fn seal(document: &str, signatures: &[&str]) -> Result<String, Refused> {
        let malformed =
            |line: usize, what: &str| Refused::Malformed { line, what: what.to_owned() };
        let last = document.lines().count();
        if !document.ends_with('\n') {
            return Err(malformed(last, "the document's last line has no end: add a line break"));
        }
        if let Some(at) = document.lines().position(|line| line.starts_with(SIGNATURE)) {
            return Err(malformed(at + 1, "a signature begins here: the document is a bundle"));
        }
        let mut bundle = document.to_owned();
        for signature in signatures {
            bundle.push_str(signature.trim_end());
            bundle.push('\n');
        }
        let opened = Envelope::open(bundle.as_bytes())?;
        if opened.document != document || opened.signatures.len() != signatures.len() {
            return Err(malformed(last + 1, "a signature has other than four lines"));
        }
        Ok(bundle)
    }
}

/// A line without its end, and where it stands.
struct Line<'a> {
    text: &'a str,
    start: usize,
    end: usize,
}

struct Lines;

impl Lines {
    fn of(text: &str) -> Vec<Line<'_>> {
        let mut start = 0;
        let line = |line: &'_ str| {
            let begin = start;
            start += line.len();
            (begin, line.len())
        };
        let places: Vec<(usize, usize)> = text.split_inclusive('\n').map(line).collect();
        let one = |(start, length): (usize, usize)| {
            let line = text[start..start + length].trim_end_matches(['\n', '\r']);
            Line { text: line, start, end: start + line.len() }
        };
        places.into_iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: &str = "untrusted comment: a\nRUQ\ntrusted comment: b\nxyz";

    #[test]
    fn a_document_and_its_signatures_are_put_together_and_taken_apart_to_the_byte() {
        let document = "fleet: 1\n\n# the end  \n";
        let bundle = Envelope::seal(document, &[ONE, &format!("{ONE}\n")]).unwrap();
        let opened = Envelope::open(bundle.as_bytes()).unwrap();
        assert_eq!(opened, Envelope { document, signatures: vec![ONE, ONE] });
        // As `cat` makes it, and with empty lines between.
        let by_hand = format!("{document}{ONE}\n\n{ONE}\r\n\n");
        assert_eq!(Envelope::open(by_hand.as_bytes()).unwrap(), opened);
    }

    #[test]
    fn what_is_no_bundle_is_refused_with_its_line() {
        let line = |bytes: &[u8]| match Envelope::open(bytes) {
            Err(Refused::Malformed { line, .. }) => line,
            other => panic!("{other:?}"),
        };
        assert_eq!(Envelope::open(b"fleet: 1\n"), Err(Refused::Unsigned));
        assert_eq!(line(b"fleet: 1\nuntrusted comment: a\nRUQ\n"), 2);
        assert_eq!(line(format!("a: 1\n{ONE}\nb: 2\n").as_bytes()), 6);
        assert_eq!(line(b"a: 1\nb: \xFF\n"), 2);
        assert_eq!(line(format!("a: 1\n{}", format!("{ONE}\n").repeat(17)).as_bytes()), 66);
        let long = format!("a: 1\n{}\n", ONE.replace('b', &"b".repeat(3000)));
        assert_eq!(line(long.as_bytes()), 2);
        let large = vec![b' '; FLEET_BUNDLE_BYTES + 1];
        assert!(matches!(Envelope::open(&large), Err(Refused::TooLarge { .. })));
    }

    #[test]
    fn a_document_that_would_run_into_its_signature_is_not_sealed() {
        for (document, signatures) in
            [("fleet: 1", vec![ONE]), (&format!("a: 1\n{ONE}\n"), vec![ONE]), ("a: 1\n", vec!["x"])]
        {
            let sealed = Envelope::seal(document, &signatures);
            assert!(matches!(sealed, Err(Refused::Malformed { .. } | Refused::Unsigned)));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Envelope::open(&bytes);
        }

        #[test]
        fn no_text_with_marks_breaks_it(parts in proptest::collection::vec(0..5usize, 0..20)) {
            let words = ["untrusted comment: ", "\n", "x", "\r\n", "é"];
            let text: String = parts.into_iter().map(|part| words[part]).collect();
            if let Ok(opened) = Envelope::open(text.as_bytes()) {
                prop_assert!(text.starts_with(opened.document));
                prop_assert!(opened.signatures.iter().all(|one| one.lines().count() <= LINES));
            }
        }
    }
}
