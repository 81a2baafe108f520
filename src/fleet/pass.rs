//! Which of several bundles that lie there together is offered: a broker hands over what it retains of every
//! topic at once, and a box would bring one after the other into force on the way to the newest.

use std::sync::Arc;

use super::admit::{Seen, admit, verify};
use super::keys::KeySet;
use super::refused::Refused;
use super::select::Node;
use super::time::Timestamp;

/// A bundle that has come: its name and bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Came {
    pub name: String,
    pub bytes: Arc<[u8]>,
}

/// What is to become of bundles that came together, by their places among them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pass {
    /// The newest that may be begun.
    pub first: Option<usize>,
    /// Those that it, or the one that is in force already, has overtaken, and why.
    pub superseded: Vec<(usize, Refused)>,
    /// All others: what is said of each is for the machine to say.
    pub rest: Vec<usize>,
}

/// Sorts bundles that came together.
pub fn pass(
    came: &[Came],
    trusted: Option<&KeySet>,
    node: &Node,
    seen: Option<&Seen>,
    now: Timestamp,
) -> Pass {
    let judged: Vec<(Option<u64>, bool)> =
        came.iter().map(|one| judge(one, trusted, node, seen, now)).collect();
    // The first by name where several have the newest revision: the others are told that it is taken.
    let may = (0..came.len()).filter(|index| judged[*index].1);
    let first = may.rev().max_by_key(|index| judged[*index].0);
    let known = judged.iter().filter_map(|(revision, _)| *revision);
    let seen = seen.map(|seen| seen.revision).filter(|seen| known.clone().any(|one| one == *seen));
    let newest = first.and_then(|index| judged[index].0).max(seen);
    let mut pass = Pass { first, ..Pass::default() };
    for (index, (revision, _)) in judged.iter().enumerate() {
        match (*revision, newest) {
            _ if first == Some(index) => {}
            (Some(revision), Some(by)) if revision < by => {
                pass.superseded.push((index, Refused::Superseded { revision, by }));
            }
            _ => pass.rest.push(index),
        }
    }
    pass
}

/// The revision of a bundle that is verified and for this node, and whether it may be begun.
fn judge(
    came: &Came,
    trusted: Option<&KeySet>,
    node: &Node,
    seen: Option<&Seen>,
    now: Timestamp,
) -> (Option<u64>, bool) {
    let Ok(bundle) = verify(&came.name, &came.bytes, trusted) else { return (None, false) };
    let revision = bundle.document.revision;
    match admit(&bundle, node, seen, now) {
        Ok(()) => (Some(revision), true),
        Err(Refused::NotForThisNode { .. } | Refused::NotChosen { .. }) => (None, false),
        // One that is none of the revision that was seen says nothing about that.
        Err(Refused::OtherContents { .. }) => (None, false),
        Err(_) => (Some(revision), false),
    }
}

#[cfg(test)]
mod tests {
    use minisign::KeyPair;

    use super::super::admit::Standing;
    use super::super::{Envelope, Key};
    use super::*;
    use crate::units::Digest;

    struct Bench {
        signer: KeyPair,
        trusted: KeySet,
        node: Node,
    }

    impl Bench {
        fn new() -> Self {
            let signer = KeyPair::generate_unencrypted_keypair().unwrap();
            let key = Key::parse(&signer.pk.to_base64()).unwrap();
            let trusted = KeySet::new(vec![key], 1).unwrap();
            let node = Node { id: "box-1".into(), labels: Default::default() };
            Self { signer, trusted, node }
        }

        fn document(revision: u64, whom: &str) -> String {
            format!("fleet: 1\nrevision: {revision}\nexpires: 2096-01-01T00:00:00Z\nfor: {whom}\n")
        }

        fn bundle(&self, name: &str, document: &str) -> Came {
            let sk = &self.signer.sk;
            let signed = minisign::sign(None, sk, document.as_bytes(), None, None).unwrap();
            let sealed = Envelope::seal(document, &[&signed.into_string()]).unwrap();
            Came { name: name.to_owned(), bytes: sealed.into_bytes().into() }
        }

        fn came(&self, revision: u64) -> Came {
            self.bundle(&format!("{revision}"), &Self::document(revision, "all"))
        }

        fn pass(&self, came: &[Came], seen: Option<&Seen>) -> Pass {
            pass(came, Some(&self.trusted), &self.node, seen, Timestamp(1_800_000_000))
        }
    }

    fn seen(revision: u64, standing: Standing) -> Seen {
        let document = Bench::document(revision, "all");
        Seen { revision, digest: Digest::of(document.as_bytes()), standing }
    }

    fn by(revision: u64, by: u64) -> Refused {
        Refused::Superseded { revision, by }
    }

    #[test]
    fn the_newest_of_all_is_begun_and_the_others_are_overtaken() {
        let bench = Bench::new();
        let came = [bench.came(5), bench.came(7), bench.came(6)];
        let told = bench.pass(&came, Some(&seen(4, Standing::Applied)));
        let superseded = vec![(0, by(5, 7)), (2, by(6, 7))];
        assert_eq!(told, Pass { first: Some(1), superseded, rest: vec![] });
    }

    #[test]
    fn what_lies_there_still_is_overtaken_by_the_one_in_force_beside_it_and_old_where_it_is_alone()
    {
        let bench = Bench::new();
        let came = [bench.came(5), bench.came(7)];
        for standing in [Standing::Applied, Standing::GivenUp { why: "x".into() }] {
            let told = bench.pass(&came, Some(&seen(7, standing)));
            assert_eq!(told, Pass { first: None, superseded: vec![(0, by(5, 7))], rest: vec![1] });
        }
        // Somebody has sent it now, and is to be told that it is too old.
        let told = bench.pass(&came[..1], Some(&seen(7, Standing::Applied)));
        assert_eq!(told, Pass { first: None, superseded: vec![], rest: vec![0] });
    }

    #[test]
    fn bundles_of_others_and_of_nobody_overtake_nothing() {
        let bench = Bench::new();
        let elsewhere = bench.bundle("e", &Bench::document(9, "{nodes: [box-2]}"));
        let forged = Bench::new().came(8);
        let expired = Bench::document(10, "all").replace("2096", "2020");
        let expired = bench.bundle("x", &expired);
        let noise = Came { name: "n".into(), bytes: b"noise".as_slice().into() };
        let came = [elsewhere, forged, expired, noise, bench.came(5), bench.came(4)];
        let told = bench.pass(&came, None);
        let superseded = vec![(5, by(4, 5))];
        assert_eq!(told, Pass { first: Some(4), superseded, rest: vec![0, 1, 2, 3] });
        assert_eq!(bench.pass(&[], None), Pass::default());
    }

    #[test]
    fn of_two_with_one_revision_the_first_is_begun_and_the_other_left_to_be_refused() {
        let bench = Bench::new();
        let other = bench.bundle("b", &(Bench::document(5, "all") + "config: {log_level: warn}\n"));
        let told = bench.pass(&[bench.came(5), other], None);
        assert_eq!(told, Pass { first: Some(0), superseded: vec![], rest: vec![1] });
    }
}
