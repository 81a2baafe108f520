//! The machine on a box that is cut off at every step: whatever happens in whatever order, the box has the old
//! state or the new one, and comes to rest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use minisign::KeyPair;
use proptest::prelude::*;

use super::apply::*;
use super::health::{Before, Health, Seen as Looked};
use super::*;
use crate::limits;
use crate::units::{Digest, Version};

/// Bundles, good and bad ones.
struct Pool {
    trusted: KeySet,
    node: Node,
    bundles: Vec<Offered>,
}

struct Offered {
    what: &'static str,
    bytes: Arc<[u8]>,
    digest: Digest,
    revision: u64,
    expires: u64,
    /// Whether this node may ever have it in force.
    sound: bool,
    models: Vec<Placed>,
}

const EXPIRES: u64 = 10_000;

fn document(revision: u64, expires: u64, whom: &str, models: &[(&str, u64)]) -> String {
    let expires = Timestamp(expires);
    let mut text = format!("fleet: 1\nrevision: {revision}\nexpires: {expires}\nfor: {whom}\n");
    if !models.is_empty() {
        text.push_str("models:\n");
    }
    for (name, version) in models {
        let sum = "0".repeat(64);
        text.push_str(&format!(
            "- {{name: {name}, version: {version}, file: f, size: 1, sha256: '{sum}'}}\n"
        ));
    }
    text
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| {
        let [ours, theirs] = [(); 2].map(|()| KeyPair::generate_unencrypted_keypair().unwrap());
        let key = Key::parse(&ours.pk.to_base64()).unwrap();
        let trusted = KeySet::new(vec![key], 1).unwrap();
        let all = "all";
        let long = 4_000_000_000;
        let one = |what, revision, expires, whom, models: &[(&str, u64)], pair: &KeyPair| {
            let text = document(revision, expires, whom, models);
            let signed = minisign::sign(None, &pair.sk, text.as_bytes(), None, None).unwrap();
            let bundle = Envelope::seal(&text, &[&signed.into_string()]).unwrap();
            Offered {
                what,
                digest: Digest::of(text.as_bytes()),
                bytes: bundle.into_bytes().into(),
                revision,
                expires,
                sound: what == "sound",
                models: models
                    .iter()
                    .map(|(name, version)| Placed {
                        name: (*name).to_owned(),
                        version: Version(*version),
                    })
                    .collect(),
            }
        };
        let bundles = vec![
            one("sound", 1, long, all, &[("a", 1)], &ours),
            one("sound", 2, long, all, &[("a", 2), ("b", 1)], &ours),
            one("sound", 3, EXPIRES, all, &[("b", 2)], &ours),
            one("sound", 4, long, all, &[], &ours),
            one("sound", 5, long, all, &[("a", 5), ("b", 5), ("c", 5)], &ours),
            one("sound", 5, long, all, &[("a", 6)], &ours),
            one("foreign", 9, long, "{nodes: [other]}", &[("a", 9)], &ours),
            one("unsigned", 9, long, all, &[("a", 9)], &theirs),
            one("expired", 9, 1, all, &[("a", 9)], &ours),
        ];
        Pool { trusted, node: Node { id: "box".into(), ..Node::default() }, bundles }
    })
}

fn known(digest: Digest) -> &'static Offered {
    pool().bundles.iter().find(|one| one.digest == digest).unwrap()
}

/// What happens to the box.
#[derive(Debug, Clone)]
enum Action {
    Offer(usize),
    /// The task that runs comes to an end: well, or with one of the ways to fail.
    Finish(u8),
    Look(u8),
    Pass(u64),
    /// The power is cut.
    Cut,
}

/// An action, of whose effects only the first ones happen before the power is cut or a write fails.
#[derive(Debug, Clone)]
struct Turn {
    action: Action,
    fault: Option<(usize, Fault)>,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Cut,
    /// The disk is full.
    Full,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let action = prop_oneof![
        4 => (0..9usize).prop_map(Action::Offer),
        10 => prop_oneof![6 => Just(0u8), 1 => Just(1), 1 => Just(2)].prop_map(Action::Finish),
        4 => prop_oneof![5 => Just(0u8), 1 => Just(1), 1 => Just(2)].prop_map(Action::Look),
        3 => prop_oneof![1..700u64, Just(EXPIRES)].prop_map(Action::Pass),
        1 => Just(Action::Cut),
    ];
    let fault = prop_oneof![
        4 => Just(None),
        1 => (0..6usize, prop_oneof![Just(Fault::Cut), Just(Fault::Full)]).prop_map(Some),
    ];
    let turn = (action, fault).prop_map(|(action, fault)| Turn { action, fault });
    prop::collection::vec(turn, 1..60)
}

/// A box: what lasts, and what runs.
struct Simulated {
    saved: Record,
    bundles: BTreeMap<Digest, Arc<[u8]>>,
    models: BTreeSet<Placed>,
    /// Models of bundles that served their probations.
    good: BTreeSet<Placed>,
    machine: Machine,
    running: Option<(u64, Task)>,
    now: u64,
    up: u64,
    reports: Vec<Report>,
}

const PROBATION: u64 = 600;

impl Simulated {
    fn new() -> Self {
        Self {
            saved: Record::default(),
            bundles: BTreeMap::new(),
            models: BTreeSet::new(),
            good: BTreeSet::new(),
            machine: Machine::default(),
            running: None,
            now: 100,
            up: 0,
            reports: Vec::new(),
        }
    }

    fn context(&self) -> Context<'static> {
        Context {
            node: &pool().node,
            configured: Some(&pool().trusted),
            probation: Duration::from_secs(PROBATION),
            now: Timestamp(self.now),
            up: Duration::from_secs(self.up),
        }
    }

    /// The machine starts from what lasted.
    fn start(&mut self) {
        self.running = None;
        let kept = self.saved.candidate().and_then(|kept| self.bundles.get(&kept.digest));
        let kept = kept.cloned();
        let stepped = Machine::resume(self.saved.clone(), kept.as_deref(), &self.context());
        self.perform(stepped, None);
    }

    fn cut(&mut self) {
        // A task that runs may have got half-way.
        if let Some((_, task)) = self.running.take() {
            self.work(&task, 1);
        }
        self.up = 0;
        self.start();
    }

    /// What a task does to the disk, wholly (0) or in part.
    fn work(&mut self, task: &Task, outcome: u8) {
        let part = |count: usize| if outcome == 0 { count } else { count / 2 };
        match task {
            Task::Place { artifacts } => {
                let place =
                    |one: &Artifact| Placed { name: one.name.clone(), version: one.version };
                let count = part(artifacts.len());
                self.models.extend(artifacts.iter().take(count).map(place));
            }
            Task::Remove { placed } => {
                for one in placed.iter().take(part(placed.len())) {
                    self.models.remove(one);
                }
            }
            Task::Reserve { .. }
            | Task::Fetch { .. }
            | Task::Check
            | Task::Try { .. }
            | Task::Survey { .. } => {}
        }
    }

    fn outcome(&self, task: &Task, how: u8) -> Outcome {
        let plain = |how: u8| if how == 0 { Ok(()) } else { Err("no".to_owned()) };
        let typed = match how {
            0 => Ok(()),
            1 => Err(Failure::Later("later".into())),
            _ => Err(Failure::ForGood("never".into())),
        };
        match task {
            Task::Reserve { .. } => Outcome::Reserved(plain(how)),
            Task::Fetch { .. } => Outcome::Fetched(typed),
            Task::Check => Outcome::Checked(plain(how)),
            Task::Try { .. } => Outcome::Tried(typed),
            Task::Survey { artifacts } => {
                let place =
                    |one: &Artifact| Placed { name: one.name.clone(), version: one.version };
                let there = artifacts.iter().map(place).filter(|one| self.models.contains(one));
                let before = [("z".to_owned(), Before { missed: false })].into();
                let survey = Survey { before, there: there.collect() };
                Outcome::Surveyed(plain(how).map(|()| survey))
            }
            Task::Place { .. } => Outcome::Placed(plain(how)),
            Task::Remove { .. } => Outcome::Removed(plain(how)),
        }
    }

    fn health(&self, how: u8) -> Health {
        let mut health = Health::new();
        health.insert("z".into(), Looked { serving: Some(Version(1)), ..Looked::default() });
        for one in &self.models {
            let seen: &mut Looked = health.entry(one.name.clone()).or_default();
            match how {
                0 => seen.serving = seen.serving.max(Some(one.version)),
                1 => {
                    seen.refused.insert(one.version, "bad".into());
                }
                _ => {}
            }
        }
        health
    }

    fn event(&mut self, action: &Action) -> Option<Event> {
        match action {
            Action::Offer(index) => {
                let bytes = Arc::clone(&pool().bundles[*index].bytes);
                Some(Event::Offered { name: "b".into(), bytes })
            }
            Action::Finish(how) => {
                let (job, task) = self.running.take()?;
                let outcome = self.outcome(&task, *how);
                self.work(&task, *how);
                Some(Event::Done { job, outcome })
            }
            Action::Look(how) => Some(Event::Looked(self.health(*how))),
            Action::Pass(seconds) => {
                self.now += seconds;
                self.up += seconds;
                Some(Event::Tick)
            }
            Action::Cut => None,
        }
    }

    fn turn(&mut self, turn: &Turn) {
        let Some(event) = self.event(&turn.action) else {
            if matches!(turn.action, Action::Cut) {
                self.cut();
            }
            return;
        };
        let stepped = self.machine.step(event.clone(), &self.context());
        self.refused_changes_nothing(&event, &stepped);
        self.perform(stepped, turn.fault);
    }

    /// Performs effects in their order, as the shell does.
    fn perform(&mut self, (machine, effects): Stepped, fault: Option<(usize, Fault)>) {
        for (index, effect) in effects.into_iter().enumerate() {
            match fault {
                Some((at, Fault::Cut)) if at == index => return self.cut(),
                Some((at, Fault::Full)) if at == index => {
                    if matches!(effect, Effect::Keep { .. } | Effect::Save(_)) {
                        return self.start();
                    }
                }
                Some(_) | None => {}
            }
            self.effect(effect);
        }
        self.machine = machine;
        if self.running.as_ref().is_some_and(|(job, _)| *job != self.machine.job()) {
            self.running = None;
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Keep { digest, bytes } => drop(self.bundles.insert(digest, bytes)),
            Effect::Save(record) => self.save(*record),
            Effect::Begin { job, task } => self.running = Some((job, task)),
            Effect::Reload => {}
            Effect::Sweep { keep } => self.bundles.retain(|digest, _| keep.contains(digest)),
            Effect::Report(report) => self.reports.push(report),
        }
    }

    /// Every bundle that comes into force is one that may.
    fn save(&mut self, record: Record) {
        let (old, new) = (self.saved.in_force(), record.in_force());
        let begins = matches!(record.step, Step::Applying { starts: 0, .. });
        if let Some(kept) = new.filter(|_| begins && old != new) {
            let bundle = known(kept.digest);
            assert!(bundle.sound, "a bundle that is {} came into force", bundle.what);
            assert!(self.now < bundle.expires, "an expired bundle came into force");
            assert!(old.is_none_or(|old| old.revision < bundle.revision), "an older one");
        }
        if record.good != self.saved.good
            && let Some(good) = &record.good
        {
            self.good.extend(known(good.digest).models.iter().cloned());
        }
        self.saved = record;
    }

    fn refused_changes_nothing(&self, event: &Event, (machine, effects): &Stepped) {
        let refused = |effect: &Effect| matches!(effect, Effect::Report(Report::Refused { .. }));
        if matches!(event, Event::Offered { .. }) && effects.iter().any(refused) {
            assert_eq!(effects.len(), 1, "a refused bundle has an effect");
            assert_eq!(machine, &self.machine, "a refused bundle changes something");
        }
    }

    fn check(&self) {
        assert_eq!(self.machine.record().in_force(), self.saved.in_force());
        if let Some(kept) = self.saved.in_force() {
            assert!(self.bundles.contains_key(&kept.digest), "what is in force is not on disk");
        }
        match &self.saved.step {
            Step::Idle | Step::Staging { .. } | Step::Downloading { .. } | Step::Trying { .. } => {
                assert_eq!(self.models, self.good, "the box is between two states");
            }
            Step::Probation { bundle, .. } => {
                let wanted = &known(bundle.digest).models;
                assert!(wanted.iter().all(|one| self.models.contains(one)), "something is missing");
            }
            Step::Applying { .. } | Step::RollingBack { .. } => {
                assert!(self.good.is_subset(&self.models), "something of the good one is gone");
            }
        }
        if let Some(seen) = &self.saved.seen {
            assert!(self.saved.good.as_ref().is_none_or(|good| good.revision <= seen.revision));
        }
    }

    /// All goes well from now on: the box comes to rest.
    fn settle(&mut self) {
        for _ in 0..200 {
            if self.saved.step == Step::Idle {
                return;
            }
            let action = match (&self.running, &self.saved.step) {
                (Some(_), _) => Action::Finish(0),
                (None, Step::Probation { .. }) if self.up.is_multiple_of(2) => {
                    Action::Pass(PROBATION + 1)
                }
                (None, Step::Probation { .. }) => {
                    self.up += 1;
                    Action::Look(0)
                }
                (None, _) => Action::Pass(limits::FLEET_FETCH_LONGEST.as_secs()),
            };
            self.turn(&Turn { action, fault: None });
            self.check();
        }
        panic!("it does not come to rest: {:?}", self.saved.step);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn whatever_happens_a_box_has_the_old_state_or_the_new_one_and_comes_to_rest(
        turns in turns()
    ) {
        let mut node = Simulated::new();
        for turn in &turns {
            node.turn(turn);
            node.check();
        }
        node.settle();
    }
}

/// One bundle after another, with the power cut before the first, second, … effect of the whole life.
#[test]
fn a_power_cut_before_any_effect_of_a_life_leaves_one_of_both_states() {
    let life = |cut: usize| -> (usize, Simulated) {
        let mut node = Simulated::new();
        let mut done = 0;
        for index in [0, 1, 4] {
            let mut actions = vec![Action::Offer(index)];
            actions.extend((0..12).map(|_| Action::Finish(0)));
            // The last one fails on probation.
            let last = if index == 4 { 1 } else { 0 };
            actions.extend([Action::Look(0), Action::Pass(PROBATION + 1)]);
            actions.extend([Action::Look(last), Action::Finish(0)]);
            for action in actions {
                let Some(event) = node.event(&action) else { continue };
                let stepped = node.machine.step(event, &node.context());
                let here = cut.checked_sub(done).filter(|at| *at < stepped.1.len());
                done += stepped.1.len();
                node.perform(stepped, here.map(|at| (at, Fault::Cut)));
                node.check();
            }
        }
        (done, node)
    };
    let (effects, whole) = life(usize::MAX);
    assert!(effects > 40, "{effects}");
    assert_eq!(whole.saved.good.as_ref().map(|good| good.revision), Some(2));
    assert!(matches!(
        whole.reports.last(),
        Some(Report::RolledBack { revision: 5, why }) if why == "a version 5 cannot be served: bad"
    ));
    for cut in 0..effects {
        let (_, mut node) = life(cut);
        node.settle();
    }
}

#[test]
fn a_bundle_that_keeps_ending_the_agent_is_taken_back() {
    let mut node = Simulated::new();
    node.turn(&Turn { action: Action::Offer(0), fault: None });
    while !matches!(node.saved.step, Step::Probation { .. }) {
        node.turn(&Turn { action: Action::Finish(0), fault: None });
    }
    for _ in 0..limits::FLEET_STARTS {
        node.cut();
        assert_eq!(node.saved.in_force().map(|kept| kept.revision), Some(1));
        node.turn(&Turn { action: Action::Finish(0), fault: None });
    }
    node.cut();
    assert_eq!(node.saved.in_force(), None);
    node.settle();
    assert!(node.models.is_empty());
    assert!(matches!(node.saved.seen.as_ref().unwrap().standing, Standing::GivenUp { .. }));
    // It does not come back, and neither does anything before it.
    node.turn(&Turn { action: Action::Offer(0), fault: None });
    assert!(matches!(
        node.reports.last(),
        Some(Report::Refused { why: Refused::GivenUp { revision: 1, .. }, .. })
    ));
}

#[test]
fn a_bundle_for_which_the_disk_had_no_place_is_taken_back_and_may_come_again() {
    let mut node = Simulated::new();
    node.turn(&Turn { action: Action::Offer(0), fault: None });
    while !matches!(node.saved.step, Step::Applying { .. }) {
        node.turn(&Turn { action: Action::Finish(0), fault: None });
    }
    // Its models cannot be put in their places.
    node.turn(&Turn { action: Action::Finish(1), fault: None });
    assert_eq!(node.saved.in_force(), None);
    node.settle();
    assert!(node.models.is_empty());
    assert!(matches!(node.saved.seen.as_ref().unwrap().standing, Standing::Interrupted { .. }));
    node.turn(&Turn { action: Action::Offer(0), fault: None });
    node.settle();
    assert_eq!(node.saved.good.as_ref().map(|good| good.revision), Some(1));
}

#[test]
fn a_newer_bundle_comes_in_place_of_one_that_is_not_in_force_yet_and_late_answers_do_not_count() {
    let mut node = Simulated::new();
    node.turn(&Turn { action: Action::Offer(1), fault: None });
    node.turn(&Turn { action: Action::Finish(0), fault: None });
    let late = node.running.clone().unwrap();
    node.turn(&Turn { action: Action::Offer(4), fault: None });
    let staging = node.machine.clone();
    let outcome = Outcome::Fetched(Ok(()));
    let (next, effects) = node.machine.step(Event::Done { job: late.0, outcome }, &node.context());
    assert!(next == staging && effects.is_empty());
    node.settle();
    assert_eq!(node.saved.good.as_ref().map(|good| good.revision), Some(5));
}

#[test]
fn an_artifact_that_cannot_be_fetched_is_asked_for_again_and_again_and_then_let_be() {
    let mut node = Simulated::new();
    node.turn(&Turn { action: Action::Offer(0), fault: None });
    node.turn(&Turn { action: Action::Finish(0), fault: None });
    let mut tries = 0;
    while node.saved.step != Step::Idle {
        node.turn(&Turn { action: Action::Finish(1), fault: None });
        tries += 1;
        let before = node.running.is_some();
        node.turn(&Turn {
            action: Action::Pass(limits::FLEET_FETCH_LONGEST.as_secs()),
            fault: None,
        });
        assert!(!before);
    }
    assert_eq!(tries, limits::FLEET_FETCH_TRIES);
    let seen = node.saved.seen.clone().unwrap();
    assert!(matches!(seen.standing, Standing::Interrupted { .. }));
    // The same one may come again.
    node.turn(&Turn { action: Action::Offer(0), fault: None });
    node.settle();
    assert_eq!(node.saved.good.as_ref().map(|good| good.revision), Some(1));
}

#[test]
fn keys_that_came_in_a_bundle_hold_until_the_configuration_names_others() {
    let pair = || KeyPair::generate_unencrypted_keypair().unwrap();
    let set =
        |pair: &KeyPair| KeySet::new(vec![Key::parse(&pair.pk.to_base64()).unwrap()], 1).unwrap();
    let (old, new, other) = (pair(), pair(), pair());
    let from = set(&old).digest();
    let rotated = Some(Rotated { from, keys: set(&new) });
    let record = Record { rotated, ..Record::default() };
    assert_eq!(record.trusted(Some(&set(&old))), Some(&set(&new)));
    assert_eq!(record.trusted(Some(&set(&other))), Some(&set(&other)));
    assert_eq!(record.trusted(None), None);
    let kept = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&kept).unwrap(), record);
}
