use std::path::Path;

use super::faulty::{Fault, FaultyDisk};
use super::*;
use crate::ladder::Manifest;
use crate::ladder::manifest::{
    Calibration, CalibrationSource, Figures, MANIFEST_FILE, MANIFEST_FORMAT, Rung, Source,
};
use crate::ladder::plan::Plan;
use crate::ladder::task::{self, Finished, SoFar};
use crate::shell::unfinished::{UNFINISHED_FILE, Unfinished};
use crate::units::Version;

fn root() -> &'static Path {
    Path::new("/state")
}

fn id() -> LadderId {
    LadderId::new(Digest::of(b"dense"), "cpu", "ratios 0.5")
}

fn figures(ratio: f64) -> Figures {
    Figures {
        p50_us: 100.0,
        p99_us: 120.0,
        ratio,
        macs: 1,
        params: 1,
        bytes: 1,
        quality: 1.0,
        explained: 1.0,
        accuracy: None,
    }
}

fn manifest(seed: u64) -> Manifest {
    Manifest {
        format: MANIFEST_FORMAT,
        blochd: "0".into(),
        source: Source { file: "model.onnx".into(), digest: id().dense },
        engine: "cpu".into(),
        method: "obs".into(),
        seed,
        calibration: Calibration { source: CalibrationSource::File, samples: 1 },
        dense: figures(1.0),
        rungs: vec![Rung {
            name: "r0.5".into(),
            asked: 0.5,
            file: "r0.5.onnx".into(),
            digest: Digest::of(b"rung"),
            figures: figures(0.5),
            cuts: vec![],
            bypassed: vec![],
            in_two: vec![],
            substituted: vec![],
            repairs: vec![],
            nested: None,
        }],
        not_built: vec![],
        groups: vec![],
        frozen: vec![],
    }
}

/// Everything that a store tells of itself.
#[derive(Debug, Clone, PartialEq, Default)]
struct Told {
    model: ModelRecord,
    quarantine: BTreeMap<Digest, Quarantined>,
    build: Option<LadderRecord>,
    /// The manifest's seed names the ladder.
    ladder: Option<u64>,
    samples: Option<usize>,
}

fn told(store: &mut Store) -> Told {
    Told {
        model: store.model("m"),
        quarantine: store.quarantined().clone(),
        build: store.build(&id()).cloned(),
        ladder: store.ladder(&id()).map(|ladder| ladder.manifest.seed),
        samples: store.reservoir("m").map(|(_, reservoir)| reservoir.drawn.samples),
    }
}

fn drawn(samples: usize) -> Drawn {
    Drawn { samples, seen: 1000, inputs: Digest::of(b"x") }
}

/// What a child writes: unsynced files in the folder that it was given.
fn child_builds(disk: &FaultyDisk, dir: &Path, seed: u64) -> std::io::Result<()> {
    disk.write(&dir.join("r0.5.onnx"), b"the rung's weights")?;
    disk.write(&dir.join(MANIFEST_FILE), &serde_json::to_vec(&manifest(seed)).unwrap())
}

type Step = fn(&FaultyDisk, &mut Store) -> Result<(), StoreError>;

fn build(disk: &FaultyDisk, store: &mut Store, seed: u64) -> Result<(), StoreError> {
    let dir = store.begin_ladder(&id())?;
    let io = |source| StoreError::Io { doing: "build", path: dir.clone(), source };
    child_builds(disk, &dir, seed).map_err(io)?;
    store.commit_ladder(&id()).map(drop)
}

/// A life of a store, each step of which changes one thing that [`told`] shows.
fn life() -> Vec<Step> {
    fn quarantined(at: u64) -> Quarantined {
        Quarantined { what: "m r0.5".into(), reason: "said NaN".into(), at, floor: None }
    }
    fn in_service(variant: &str) -> Option<InService> {
        let dense = id().dense;
        Some(InService { version: Version(1), dense, variant: variant.to_owned() })
    }
    vec![
        |_, s| s.put_model("m", ModelRecord { in_service: in_service("dense"), ..s.model("m") }),
        |_, s| s.put_build(id(), LadderRecord::default()),
        |disk, s| build(disk, s, 1),
        |_, s| s.put_build(id(), LadderRecord { build: BuildState::Done, ..Default::default() }),
        |_, s| s.put_model("m", ModelRecord { in_service: in_service("r0.5"), ..s.model("m") }),
        |_, s| s.put_quarantine(Digest::of(b"a"), quarantined(1)),
        |_, s| s.put_reservoir("m", b"forty samples", drawn(40)),
        |_, s| s.put_quarantine(Digest::of(b"b"), quarantined(2)),
        |disk, s| build(disk, s, 2),
        |_, s| s.put_reservoir("m", b"eighty samples", drawn(80)),
        |_, s| s.release(&Digest::of(b"a")),
    ]
}

/// What [`told`] says after each number of steps.
fn expected() -> Vec<Told> {
    let disk = FaultyDisk::default();
    let mut store = Store::open_on(Arc::new(disk.clone()), root()).unwrap();
    let mut all = vec![told(&mut store)];
    for step in life() {
        step(&disk, &mut store).unwrap();
        all.push(told(&mut store));
    }
    assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "each step shows");
    all
}

fn operations_of_a_life() -> usize {
    let disk = FaultyDisk::default();
    let mut store = Store::open_on(Arc::new(disk.clone()), root()).unwrap();
    life().iter().for_each(|step| step(&disk, &mut store).unwrap());
    disk.done()
}

#[test]
fn a_crash_at_any_operation_leaves_the_old_state_or_the_new_one() {
    let expected = expected();
    for at in 1..=operations_of_a_life() {
        for seed in 0..24 {
            let disk = FaultyDisk::default();
            disk.fail_at(at, Fault::Crash);
            let mut done = 0;
            if let Ok(mut store) = Store::open_on(Arc::new(disk.clone()), root()) {
                done = life().iter().take_while(|step| step(&disk, &mut store).is_ok()).count();
            }
            let left = disk.after_crash(seed);
            let mut store = Store::open_on(Arc::new(left.clone()), root()).unwrap();
            let found = told(&mut store);
            // A reservoir's record follows its file: nothing may be called damaged.
            assert_eq!(store.moved(), [], "at {at}, seed {seed}");
            let (old, new) = (&expected[done], expected.get(done + 1));
            assert!(
                found == *old || Some(&found) == new,
                "crash at operation {at}, seed {seed}, after {done} steps: found {found:?}"
            );
            // And life goes on from there.
            assert!(life()[5..].iter().all(|step| step(&left, &mut store).is_ok()));
        }
    }
}

#[test]
fn a_full_disk_at_any_operation_loses_nothing_that_was_acknowledged() {
    let expected = expected();
    for at in 1..=operations_of_a_life() {
        let disk = FaultyDisk::default();
        disk.fail_at(at, Fault::Once);
        let Ok(mut store) = Store::open_on(Arc::new(disk.clone()), root()) else { continue };
        for (place, step) in life().iter().enumerate() {
            if let Err(error) = step(&disk, &mut store) {
                assert!(error.to_string().contains("no space left"), "{error}");
                let found = told(&mut store);
                assert!(found == expected[place] || found == expected[place + 1], "{found:?}");
                // There is space again.
                step(&disk, &mut store).unwrap();
            }
            assert_eq!(told(&mut store), expected[place + 1], "at operation {at}");
        }
        let mut again = Store::open_on(Arc::new(disk.after_crash(7)), root()).unwrap();
        assert_eq!(Some(&told(&mut again)), expected.last());
    }
}

#[test]
fn any_damaged_file_is_moved_aside_and_never_stops_the_start() {
    let disk = FaultyDisk::default();
    let mut store = Store::open_on(Arc::new(disk.clone()), root()).unwrap();
    life().iter().for_each(|step| step(&disk, &mut store).unwrap());
    let files = disk.files();
    assert!(files.len() >= 7, "{files:?}");
    for file in files {
        let disk = disk.after_crash(0);
        disk.damage(&file);
        let mut store = Store::open_on(Arc::new(disk.clone()), root()).unwrap();
        let found = told(&mut store);
        assert_ne!(Some(&found), expected().last(), "{file:?} is not checked");
        assert_eq!(store.moved().len(), 1, "{file:?}");
        let to = store.moved()[0].to.clone().unwrap();
        assert!(disk.list(&to).is_ok() || disk.read(&to).is_ok(), "{to:?} is kept to be looked at");
        assert!(life().iter().all(|step| step(&disk, &mut store).is_ok()), "and it goes on");
    }
}

#[test]
fn what_is_no_ladder_of_the_model_does_not_replace_one() {
    let disk = FaultyDisk::default();
    let mut store = Store::open_on(Arc::new(disk.clone()), root()).unwrap();
    build(&disk, &mut store, 1).unwrap();
    let bad: [(&str, Manifest); 3] = [
        ("a newer format", Manifest { format: MANIFEST_FORMAT + 1, ..manifest(2) }),
        ("another model", {
            let mut other = manifest(2);
            other.source.digest = Digest::of(b"other");
            other
        }),
        ("a file outside its folder", {
            let mut outside = manifest(2);
            outside.rungs[0].file = "../r0.5.onnx".into();
            outside
        }),
    ];
    for (what, manifest) in bad {
        let dir = store.begin_ladder(&id()).unwrap();
        disk.write(&dir.join("r0.5.onnx"), b"x").unwrap();
        let bytes = serde_json::to_vec(&manifest).unwrap();
        disk.write(&dir.join(MANIFEST_FILE), &bytes).unwrap();
        assert!(store.commit_ladder(&id()).is_err(), "{what}");
        assert_eq!(store.ladder(&id()).unwrap().manifest.seed, 1, "{what}");
    }
}

/// What a child leaves that is stopped in the middle: one finished rung that its record names, and half of
/// another.
fn child_is_stopped(disk: &FaultyDisk, dir: &Path) {
    let rung = dir.join("r0.5.onnx");
    let Rung { file, .. } = manifest(1).rungs[0].clone();
    let step = task::Step { plan: Plan::default(), needed: 1.0, ratio: 0.5 };
    let rungs = manifest(1).rungs.into_iter();
    let so_far = SoFar {
        dense: figures(1.0),
        finished: rungs.map(|rung| Finished { rung, step: step.clone() }).collect(),
        not_built: vec![],
    };
    let files = [(file, Digest::of(b"the rung's weights"))].into();
    let unfinished = Unfinished { conditions: Digest::of(b"a"), samples: 1, so_far, files };
    disk.write(&rung, b"the rung's weights").unwrap();
    disk.sync_file(&rung).unwrap();
    let record = dir.join(UNFINISHED_FILE);
    disk.write(&record, &seal::seal(&unfinished).unwrap()).unwrap();
    disk.sync_file(&record).unwrap();
    disk.sync_dir(dir).unwrap();
    disk.write(&dir.join("r0.25.onnx"), b"half of").unwrap();
    disk.write(&dir.join(".temporary"), b"half of").unwrap();
    disk.sync_dir(dir).unwrap();
}

#[test]
fn an_interrupted_build_keeps_what_it_finished_and_nothing_else() {
    let files = |disk: &FaultyDisk, dir: &Path| -> Vec<String> {
        let names = disk.list(dir).unwrap().into_iter();
        names.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    };
    let building = LadderRecord { build: BuildState::Building, ..Default::default() };
    let failed = BuildState::Failed { reason: "it crashed".into() };
    for seed in 0..24 {
        let disk = FaultyDisk::default();
        let mut store = Store::open_on(Arc::new(disk.clone()), root()).unwrap();
        store.put_build(id(), building.clone()).unwrap();
        let dir = store.begin_ladder(&id()).unwrap();
        child_is_stopped(&disk, &dir);
        let disk = disk.after_crash(seed);
        let mut store = Store::open_on(Arc::new(disk.clone()), root()).unwrap();
        assert_eq!(store.ladder(&id()), None, "what is unfinished is no ladder");
        assert_eq!(store.begin_ladder(&id()).unwrap(), dir);
        assert_eq!(files(&disk, &dir), [UNFINISHED_FILE, "r0.5.onnx"]);
        // The next child goes on and finishes.
        disk.write(&dir.join(MANIFEST_FILE), &serde_json::to_vec(&manifest(1)).unwrap()).unwrap();
        let built = store.commit_ladder(&id()).unwrap();
        assert_eq!(files(&disk, &built.folder), ["manifest.json", "r0.5.onnx", "seal"]);
        // A build that is given up leaves nothing.
        let dir = store.begin_ladder(&id()).unwrap();
        child_is_stopped(&disk, &dir);
        let record = LadderRecord { build: failed.clone(), ..Default::default() };
        store.put_build(id(), record).unwrap();
        let disk = disk.after_crash(seed);
        let mut store = Store::open_on(Arc::new(disk.clone()), root()).unwrap();
        assert!(disk.list(&dir).is_err());
        assert!(store.ladder(&id()).is_some());
    }
}

#[test]
fn a_ladder_that_was_whole_when_the_agent_stopped_is_taken() {
    let disk = FaultyDisk::default();
    let mut store = Store::open_on(Arc::new(disk.clone()), root()).unwrap();
    let building = LadderRecord { build: BuildState::Building, ..Default::default() };
    store.put_build(id(), building).unwrap();
    let dir = store.begin_ladder(&id()).unwrap();
    child_is_stopped(&disk, &dir);
    let mut store = Store::open_on(Arc::new(disk.after_crash(1)), root()).unwrap();
    assert_eq!(store.finished_ladder(&id()), None, "it was not whole");
    let manifest = dir.join(MANIFEST_FILE);
    disk.write(&manifest, &serde_json::to_vec(&super::tests::manifest(1)).unwrap()).unwrap();
    disk.sync_file(&manifest).unwrap();
    disk.sync_dir(&dir).unwrap();
    let disk = disk.after_crash(2);
    let mut store = Store::open_on(Arc::new(disk.clone()), root()).unwrap();
    let taken = store.finished_ladder(&id()).unwrap();
    assert_eq!(store.ladder(&id()), Some(taken));
}

#[test]
fn half_a_record_of_an_interrupted_build_counts_for_nothing() {
    let disk = FaultyDisk::default();
    let mut store = Store::open_on(Arc::new(disk.clone()), root()).unwrap();
    let dir = store.begin_ladder(&id()).unwrap();
    child_is_stopped(&disk, &dir);
    let record = disk.read(&dir.join(UNFINISHED_FILE)).unwrap();
    disk.remove(&dir.join(UNFINISHED_FILE)).unwrap();
    disk.write(&dir.join(UNFINISHED_FILE), &record[..record.len() / 2]).unwrap();
    assert_eq!(store.begin_ladder(&id()).unwrap(), dir);
    assert_eq!(disk.list(&dir).unwrap(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn the_quarantine_and_the_ladders_are_bounded() {
    let disk = FaultyDisk::default();
    let mut store = Store::open_on(Arc::new(disk.clone()), root()).unwrap();
    let entry = |at: u64| Quarantined { what: "m".into(), reason: "x".into(), at, floor: None };
    let digest = |n: u64| Digest::of(&n.to_le_bytes());
    let all: BTreeMap<_, _> =
        (1..=limits::QUARANTINE_ENTRIES as u64).map(|n| (digest(n), entry(n))).collect();
    store.quarantine = all;
    store.put_quarantine(digest(0), entry(1 << 40)).unwrap();
    assert_eq!(store.quarantined().len(), limits::QUARANTINE_ENTRIES);
    assert!(!store.quarantined().contains_key(&digest(1)), "the oldest went");
    assert!(store.quarantined().contains_key(&digest(0)), "the newest is there");

    let ladder = |n: u64| LadderId::new(digest(n), "cpu", "");
    for n in 0..limits::LADDERS_KEPT as u64 + 3 {
        store.put_build(ladder(n), LadderRecord { used: n, ..Default::default() }).unwrap();
    }
    store.drop_old_ladders(&[ladder(0)]);
    assert!(store.build(&ladder(0)).is_some(), "in use");
    assert_eq!((1..=4).filter(|n| store.build(&ladder(*n)).is_some()).count(), 1);
}

#[test]
fn folders_that_a_killed_agent_left_of_its_children_are_gone_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    std::fs::create_dir_all(store.children_dir().join("one/more")).unwrap();
    drop(store);
    assert!(!Store::open(dir.path()).unwrap().children_dir().exists());
}

#[test]
fn two_agents_cannot_share_a_state_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = Store::open(dir.path()).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::InUse { .. })));
    drop(first);
    Store::open(dir.path()).unwrap();
}

#[test]
fn the_real_file_system_keeps_what_the_made_up_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    store.put_model("m", ModelRecord::default()).unwrap();
    store.put_reservoir("m", b"samples", drawn(3)).unwrap();
    let folder = store.begin_ladder(&id()).unwrap();
    std::fs::write(folder.join("r0.5.onnx"), "weights").unwrap();
    let bytes = serde_json::to_vec(&manifest(1)).unwrap();
    std::fs::write(folder.join(MANIFEST_FILE), bytes).unwrap();
    let built = store.commit_ladder(&id()).unwrap();
    let before = told(&mut store);
    drop(store);
    let mut store = Store::open(dir.path()).unwrap();
    assert_eq!(told(&mut store), before);
    assert_eq!(store.ladder(&id()), Some(built.clone()));
    std::fs::write(built.folder.join("r0.5.onnx"), "others").unwrap();
    assert_eq!(store.ladder(&id()), None, "a rung that was changed is not served");
    assert_eq!(store.moved().len(), 1);
}

/// Where nothing else is said, models are dropped into the folder `models` of the state directory.
#[test]
fn models_that_lie_in_the_state_directory_are_not_the_stores() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    std::fs::create_dir_all(models.join("digits/1")).unwrap();
    let dropped = [models.join("digits/1/model.onnx"), models.join("other.onnx")];
    for path in &dropped {
        std::fs::write(path, "a model").unwrap();
    }
    let record = ModelRecord::default();
    for _ in 0..2 {
        let mut store = Store::open(dir.path()).unwrap();
        assert_eq!(store.moved(), []);
        store.put_model("digits", record.clone()).unwrap();
        store.put_model("other.onnx", record.clone()).unwrap();
    }
    for path in &dropped {
        assert_eq!(std::fs::read_to_string(path).unwrap(), "a model");
    }
}
