//! Fifty nodes on one real broker take a push: some are away, some have disks that fail, some trust other keys.
//! The bench of the same name has a thousand.

#[path = "broker/mod.rs"]
mod broker;
#[path = "swarm/mod.rs"]
mod swarm;

use std::sync::atomic::Ordering;

use blochd::fleet::Record;
use blochd::fleet::roll_call::Standing;
use broker::{Broker, PATIENCE, SignIn};
use swarm::{Ill, Member, Signers, Tower, join, online, progress};

fn name(n: usize) -> String {
    format!("box-{n:04}")
}

fn ill(n: usize) -> Ill {
    match n {
        0..=3 => Ill::Disk,
        4..=7 => Ill::Keys,
        _ => Ill::Not,
    }
}

/// A node that refused or could not write is as it was.
fn untouched(member: &Member) -> bool {
    *member.record.lock().unwrap() == Record::default()
        && member.reloads.load(Ordering::Relaxed) == 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_reaches_all_who_can_take_it_and_changes_nothing_elsewhere() {
    let names: Vec<String> = (0..50).map(name).collect();
    let users: Vec<&str> = names.iter().map(String::as_str).collect();
    let broker = Broker::start(SignIn::Passwords, &users);
    let signers = Signers::new();
    let start = |n: usize| join(broker.settings(&names[n]), &names[n], ill(n), &signers, n as u64);
    let mut members: Vec<Member> = (0..40).map(start).collect();
    let mut tower = Tower::new(&broker).await;
    tower.until("40 are there", PATIENCE, |roll| online(roll) == 40).await;
    let (bytes, first) = signers.bundle(1);
    tower.push(bytes).await;
    tower
        .until("32 have it and 4 refuse it", PATIENCE, |roll| {
            let progress = progress(roll, &first);
            progress.applied == 32 && progress.refused == 4
        })
        .await;
    let Standing::Refused(why) = tower.roll.standing(&names[4], &first) else { panic!() };
    assert!(why.contains("signatures"), "{why}");
    assert!(members[..8].iter().all(untouched));
    // Those who were away find it.
    members.extend((40..50).map(start));
    tower.until("10 come later", PATIENCE, |roll| progress(roll, &first).applied == 42).await;
    // The disks are mended, and need nobody to push again.
    for member in &members[..4] {
        member.disk_fails.store(false, Ordering::Relaxed);
    }
    tower.until("the disks", PATIENCE, |roll| progress(roll, &first).applied == 46).await;
    // An old bundle that is pushed again is refused by all, and changes nothing.
    let (bytes, second) = signers.bundle(2);
    tower.push(bytes).await;
    tower.until("the second", PATIENCE, |roll| progress(roll, &second).applied == 46).await;
    let before: Vec<Record> =
        members.iter().map(|member| member.record.lock().unwrap().clone()).collect();
    let (bytes, _) = signers.bundle(1);
    tower.push(bytes).await;
    tower
        .until("all refuse the old one", PATIENCE, |roll| {
            let refused = |node: &blochd::fleet::roll_call::Seen| {
                node.state.as_ref().is_some_and(|state| state.refused.is_some())
            };
            roll.nodes().values().filter(|node| refused(node)).count() == 50
        })
        .await;
    let after: Vec<Record> =
        members.iter().map(|member| member.record.lock().unwrap().clone()).collect();
    assert_eq!(before, after);
}
