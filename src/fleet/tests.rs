//! Bundles made by stock minisign (`tests/fixtures/fleet`), by this program's own signer, and by nobody.

use minisign::KeyPair;
use proptest::prelude::*;

use super::*;
use crate::units::Digest;

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("../../tests/fixtures/fleet/", $name))
    };
}

const DOCUMENT: &str = fixture!("document.yaml");

fn set(keys: &[&str], threshold: usize) -> KeySet {
    KeySet::new(keys.iter().map(|key| Key::parse(key).unwrap()).collect(), threshold).unwrap()
}

fn alice_and_bob(threshold: usize) -> KeySet {
    set(&[fixture!("alice.pub"), fixture!("bob.pub")], threshold)
}

fn sealed(document: &str, signatures: &[&str]) -> Vec<u8> {
    Envelope::seal(document, signatures).unwrap().into_bytes()
}

fn refused(bytes: &[u8], trusted: &KeySet) -> Refused {
    verify("bundle", bytes, Some(trusted)).unwrap_err()
}

/// Signs as the command does.
fn sign(pair: &KeyPair, document: &str) -> String {
    let signed = minisign::sign(None, &pair.sk, document.as_bytes(), Some("t"), Some("u"));
    signed.unwrap().into_string()
}

fn pair() -> (KeyPair, String) {
    let pair = KeyPair::generate_unencrypted_keypair().unwrap();
    let public = pair.pk.to_base64();
    (pair, public)
}

#[test]
fn what_stock_minisign_signed_and_cat_put_together_is_verified_and_read() {
    let bytes = fixture!("document.bundle").as_bytes();
    let verified = verify("bundle", bytes, Some(&alice_and_bob(2))).unwrap();
    let comments: Vec<&str> = verified.by.by.values().map(String::as_str).collect();
    assert_eq!(comments.len(), 2);
    assert!(comments.contains(&"by alice") && comments.contains(&"by bob"));
    assert_eq!(verified.digest, Digest::of(DOCUMENT.as_bytes()));
    let document = verified.document;
    assert_eq!(document.revision, 42);
    assert_eq!(document.expires.to_string(), "2096-12-31T00:00:00Z");
    let share = document.selector.share.unwrap();
    assert_eq!((share.parts, share.salt.as_str()), (2550, "spring"));
    assert_eq!(document.selector.labels["site"].len(), 2);
    assert_eq!(document.models.len(), 2);
    assert_eq!(document.models[0].from, Source::File("digits-7.onnx".into()));
    let url = "http://depot.example:8080/ocr/2.onnx";
    assert_eq!(document.models[1].from, Source::Web(url.parse().unwrap()));
    assert_eq!(document.models[1].size, 1 << 20);
    // The name of a key is the one that minisign shows in its file's comment.
    let comment = fixture!("alice.pub").lines().next().unwrap();
    assert!(comment.ends_with(&Key::parse(fixture!("alice.pub")).unwrap().id()), "{comment}");
}

#[test]
fn too_few_trusted_signatures_are_refused_and_each_one_is_told() {
    let alice = fixture!("document.alice.minisig");
    let mallory = fixture!("document.mallory.minisig");
    let of_alice = sealed(DOCUMENT, &[alice]);
    assert!(verify("bundle", &of_alice, Some(&alice_and_bob(1))).is_ok());
    assert_eq!(verify("bundle", &of_alice, None), Err(Refused::NoKeys));
    // Twice the same signer is one signer.
    for signatures in [vec![alice], vec![alice, alice], vec![alice, mallory]] {
        let refused = refused(&sealed(DOCUMENT, &signatures), &alice_and_bob(2));
        assert_eq!(refused.kind(), "signatures");
        assert!(refused.to_string().starts_with("1 of the 2 "), "{refused}");
    }
    let said = refused(&sealed(DOCUMENT, &[mallory]), &alice_and_bob(1)).to_string();
    let id = Key::parse(fixture!("mallory.pub")).unwrap().id();
    assert!(said.contains(&format!("not trusted here is {id}")), "{said}");
}

#[test]
fn a_changed_document_comment_or_name_of_a_key_is_refused() {
    let alice = fixture!("document.alice.minisig");
    let changed = DOCUMENT.replace("revision: 42", "revision: 43");
    let said = refused(&sealed(&changed, &[alice]), &alice_and_bob(1)).to_string();
    assert!(said.contains("is not what was signed"), "{said}");
    // The trusted comment is signed too.
    let comment = alice.replace("by alice", "by bob!!");
    assert_eq!(refused(&sealed(DOCUMENT, &[&comment]), &alice_and_bob(1)).kind(), "signatures");
    // Mallory's signature under the name of Alice's key.
    let second = |text: &str| text.lines().nth(1).unwrap().to_owned();
    let (own, other) = (second(fixture!("document.mallory.minisig")), second(alice));
    let forged = fixture!("document.mallory.minisig")
        .replace(&own, &format!("{}{}", &other[..14], &own[14..]));
    let refused = refused(&sealed(DOCUMENT, &[&forged]), &alice_and_bob(1));
    let Refused::Signatures { tally, .. } = refused else { panic!("{refused:?}") };
    assert!(tally.by.is_empty() && tally.wrong.len() == 1, "{tally:?}");
}

#[test]
fn the_older_form_of_signature_is_not_taken_and_named() {
    let legacy = sealed(DOCUMENT, &[fixture!("document.alice-legacy.minisig")]);
    let said = refused(&legacy, &alice_and_bob(1)).to_string();
    assert!(said.contains("older form"), "{said}");
}

#[test]
fn a_set_of_keys_has_each_signer_once_whatever_name_it_goes_by() {
    let alice = Key::parse(fixture!("alice.pub")).unwrap();
    assert_eq!(Key::parse(alice.text()).unwrap(), alice);
    let twice = KeySet::new(vec![alice.clone(), alice.clone()], 2);
    assert_eq!(twice, Err(NoKeys::Twice(alice.id())));
    // The same key under another name: that is all but the first three letters before the key itself.
    let text = alice.text();
    let renamed = Key::parse(&format!("{}AAAAAAAAAA{}", &text[..3], &text[13..])).unwrap();
    assert_ne!(renamed.id(), alice.id());
    assert!(matches!(KeySet::new(vec![alice.clone(), renamed], 1), Err(NoKeys::Twice(_))));
    let bob = Key::parse(fixture!("bob.pub")).unwrap();
    for threshold in [0, 3] {
        let set = KeySet::new(vec![alice.clone(), bob.clone()], threshold);
        assert_eq!(set, Err(NoKeys::Threshold { threshold, count: 2 }));
    }
    assert_eq!(KeySet::new(vec![], 1), Err(NoKeys::Count { count: 0 }));
    let set = |keys: &[&Key], n| KeySet::new(keys.iter().map(|key| (*key).clone()).collect(), n);
    let digest = |keys: &[&Key], n| set(keys, n).unwrap().digest();
    assert_eq!(digest(&[&alice, &bob], 1), digest(&[&bob, &alice], 1));
    assert_ne!(digest(&[&alice, &bob], 1), digest(&[&alice, &bob], 2));
    let kept = serde_json::to_string(&set(&[&alice, &bob], 2).unwrap()).unwrap();
    assert_eq!(serde_json::from_str::<KeySet>(&kept).unwrap(), set(&[&alice, &bob], 2).unwrap());
    for text in ["", "RWQ", "untrusted comment: x\n", fixture!("alice.key")] {
        assert_eq!(Key::parse(text), Err(NoKeys::NotAKey), "{text:?}");
    }
}

const HEAD: &str = "fleet: 1\nrevision: 5\nexpires: 2030-01-01T00:00:00Z\nfor: all\n";

#[test]
fn the_next_keys_must_have_signed_as_well_or_nobody_could_send_anything_any_more() {
    let (old, old_public) = pair();
    let (new, new_public) = pair();
    let document = format!("{HEAD}keys: {{threshold: 1, public: [{new_public}]}}\n");
    let trusted = set(&[&old_public], 1);
    let (by_old, by_new) = (sign(&old, &document), sign(&new, &document));
    let verified = verify("b", &sealed(&document, &[&by_old, &by_new]), Some(&trusted)).unwrap();
    assert_eq!(verified.document.keys, Some(set(&[&new_public], 1)));
    assert_eq!(refused(&sealed(&document, &[&by_old]), &trusted).kind(), "next_keys");
    assert_eq!(refused(&sealed(&document, &[&by_new]), &trusted).kind(), "signatures");
}

fn parse(text: &str) -> Result<Document, Vec<String>> {
    let parsed = Document::parse("b", text);
    parsed.map_err(|errors| errors.to_string().lines().map(str::to_owned).collect())
}

#[test]
fn every_error_of_a_document_is_told_at_once_with_its_place() {
    let text = "fleet: 1\nrevision: 0\nexpires: tomorrow\nfor: {nods: [a], percent: 10}\n\
                modles: []\nconfig: {state_dir: /x, defaults: {budget: fast}}\nmodels:\n\
                - {name: ../a, size: 1}\n\
                revision: 2\n";
    let said = parse(text).unwrap_err();
    let begins =
        |start: &str| assert!(said.iter().any(|line| line.starts_with(start)), "{said:#?}");
    begins("b:2:11: `revision` is \"0\"; write a whole number");
    begins("b:3:10: \"tomorrow\" is not a moment");
    begins("b:4:7: unknown key `nods`; did you mean `nodes`?");
    begins("b:4:18: `percent` without `salt`");
    begins("b:5:1: unknown key `modles`; did you mean `models`?");
    begins("b:6:21: a bundle may not set `state_dir`");
    begins("b:6:44: \"fast\" is not a duration");
    begins("b:8:10: \"../a\" is no name of a model");
    begins("b:8:3: a model has no `version`");
    begins("b:8:3: a model has one of `url` and `file`");
    begins("b:8:3: a model has no `sha256`");
    begins("b:9:1: `revision` stands here for the second time");
}

#[test]
fn a_document_of_another_form_is_not_read_any_further() {
    let said = parse("fleet: 2\nrevision: {new: form}\n").unwrap_err();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("has form 2; this blochd reads form 1"), "{said:?}");
    assert!(parse("revision: 1\n").is_err() && parse("").is_err() && parse("[1]").is_err());
    // Its configuration has a form of its own.
    assert!(parse(&format!("{HEAD}config: {{version: 1, log_level: debug}}\n")).is_ok());
    let said =
        parse(&format!("{HEAD}config: {{version: 2, log_levels: {{all: 7}}}}\n")).unwrap_err();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("is written for version 2 of the configuration"), "{said:?}");
}

#[test]
fn what_artifacts_may_be_called_and_where_they_may_lie_is_bounded() {
    let sum = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    let model = |from: &str| {
        let text =
            format!("{HEAD}models:\n- {{name: m, version: 1, {from}, size: 4, sha256: {sum}}}\n");
        parse(&text)
    };
    for good in ["file: a.onnx", "file: a/b.onnx", "url: 'http://h/a'", "url: 'https://h:1/a?b=c'"]
    {
        assert!(model(good).is_ok(), "{good}: {:?}", model(good));
    }
    for bad in [
        "file: ../a",
        "file: /etc/passwd",
        "file: a/../b",
        "file: .a",
        "file: a//b",
        "file: ''",
        "url: 'ftp://h/a'",
        "url: 'ftp://h/a'",
        "url: 'http:///a'",
        "url: 'http://u:p@h/a'",
        "url: 'http://h/a b'",
        "url: \"http://h/\\n\"",
        "url: 'file:///etc/passwd'",
        "url: 'http://h', file: a",
    ] {
        assert!(model(bad).is_err(), "{bad}");
    }
    let twice = format!(
        "{HEAD}models:\n{0}{0}",
        format!("- {{name: m, version: 1, file: a, size: 4, sha256: {sum}}}\n")
    );
    assert!(parse(&twice).unwrap_err()[0].contains("model m stands twice"));
    let large = format!("- {{name: m, version: 1, file: a, size: 99999999999, sha256: {sum}}}\n");
    assert!(parse(&format!("{HEAD}models:\n{large}")).is_err());
    for wrong in ["percent: 101", "percent: -1", "percent: 0.001", "percent: NaN", "percent: x"] {
        let text = HEAD.replace("for: all", &format!("for: {{{wrong}, salt: s}}"));
        assert!(parse(&text).unwrap_err()[0].contains("`percent` is"), "{wrong}");
    }
    assert!(parse(&HEAD.replace("for: all", "for: {}")).is_err());
    assert!(parse(&HEAD.replace("for: all\n", "")).is_err());
}

fn bundle(revision: u64, byte: u8) -> Verified {
    let document = parse(&HEAD.replace("revision: 5", &format!("revision: {revision}"))).unwrap();
    Verified { document, digest: Digest::from_bytes([byte; 32]), by: Tally::default() }
}

#[test]
fn an_older_revision_other_contents_and_an_expired_bundle_are_each_refused_by_name() {
    let node = Node { id: "box".into(), ..Node::default() };
    let now: Timestamp = "2029-12-31T23:59:59Z".parse().unwrap();
    let later = Timestamp(now.0 + 1);
    let seen = |standing| Seen { revision: 5, digest: Digest::from_bytes([5; 32]), standing };
    let kind = |bundle: &Verified, seen: Option<&Seen>, now| {
        admit(bundle, &node, seen, now).err().map(|refused| refused.kind())
    };
    let applied = &seen(Standing::Applied);
    assert_eq!(kind(&bundle(1, 1), None, now), None);
    assert_eq!(kind(&bundle(6, 6), Some(applied), now), None);
    assert_eq!(kind(&bundle(6, 6), Some(applied), later), Some("expired"));
    assert_eq!(kind(&bundle(4, 4), Some(applied), now), Some("old_revision"));
    assert_eq!(kind(&bundle(5, 4), Some(applied), now), Some("other_contents"));
    assert_eq!(kind(&bundle(5, 5), Some(applied), now), Some("applied"));
    let why = || "it erred".to_owned();
    let given_up = &seen(Standing::GivenUp { why: why() });
    assert_eq!(kind(&bundle(5, 5), Some(given_up), now), Some("given_up"));
    // What failed here is no way back to what was before it.
    assert_eq!(kind(&bundle(4, 4), Some(given_up), now), Some("old_revision"));
    let interrupted = &seen(Standing::Interrupted { why: why() });
    assert_eq!(kind(&bundle(5, 5), Some(interrupted), now), None);
    assert_eq!(kind(&bundle(5, 5), Some(&seen(Standing::Underway)), now), Some("busy"));
    let mut for_another = bundle(4, 4);
    for_another.document.selector.nodes.insert("other".into());
    assert_eq!(kind(&for_another, Some(applied), later), Some("not_for_this_node"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A byte that differs anywhere in a bundle is refused, or lies in what is not signed: the first line of a
    /// signature, an empty line's end.
    #[test]
    fn no_flipped_byte_of_a_bundle_passes(at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let mut bytes = fixture!("document.bundle").as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(verified) = verify("b", &bytes, Some(&alice_and_bob(2))) {
            prop_assert_eq!(verified.digest, Digest::of(DOCUMENT.as_bytes()));
            let line = bytes[..at].iter().filter(|byte| **byte == b'\n').count();
            let of_signature = (line - DOCUMENT.lines().count()) % 4;
            let blank = bytes[at].is_ascii_whitespace() || at + 1 == bytes.len();
            prop_assert!(of_signature == 0 || blank);
        }
    }

    #[test]
    fn no_text_breaks_the_reader(parts in prop::collection::vec(0..16usize, 0..40)) {
        let words = [
            "fleet: 1\n", "revision: 3\n", "for: ", "all\n", "{", "}", "models:\n",
            "- name: a\n", "  size: 1\n",
            "keys: ", "[", "]", "config:\n", "  defaults: ", "percent: 1", "\n",
        ];
        let text: String = parts.into_iter().map(|part| words[part]).collect();
        let _ = Document::parse("b", &text);
    }
}
