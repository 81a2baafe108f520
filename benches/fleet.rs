//! A thousand nodes on one broker: time until a push has reached all who can take it, traffic and memory.
//!
//! `cargo bench --bench fleet -- [--nodes 1000] [--idle 130]`; needs Mosquitto (`apt-get install mosquitto`).

#[path = "../tests/broker/mod.rs"]
mod broker;
#[path = "../tests/swarm/mod.rs"]
mod swarm;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use blochd::fleet::Record;
use blochd::fleet::reported::{Model, Reported};
use broker::{Broker, SignIn};
use swarm::{Ill, Member, Signers, Tower, join, online, progress};

const PATIENCE: Duration = Duration::from_secs(180);

fn main() {
    // `cargo test` runs it too, for one look at whether it still does.
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str, usual: u64| {
        let at = arguments.iter().position(|one| one == name);
        at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(usual)
    };
    if !arguments.iter().any(|one| one == "--bench") {
        return;
    }
    let (nodes, idle) = (number("--nodes", 1000) as usize, number("--idle", 130));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure(nodes, Duration::from_secs(idle)));
}

/// Resident memory of a process, bytes.
fn memory(process: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Bytes over the loopback device, with all headers, of every program.
fn loopback() -> u64 {
    let text = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

async fn measure(nodes: usize, idle: Duration) {
    let names: Vec<String> = (0..nodes).map(|n| format!("box-{n:04}")).collect();
    let users: Vec<&str> = names.iter().map(String::as_str).collect();
    let broker = Broker::start(SignIn::Passwords, &users);
    let signers = Signers::new();
    // Of a hundred: five are away, three have bad disks, two other keys.
    let away = |n: usize| n % 100 < 5;
    let ill = |n: usize| match n % 100 {
        5..=7 => Ill::Disk,
        8..=9 => Ill::Keys,
        _ => Ill::Not,
    };
    let start = |n: usize| join(broker.settings(&names[n]), &names[n], ill(n), &signers, n as u64);
    let count = |which: &dyn Fn(usize) -> bool| (0..nodes).filter(|&n| which(n)).count();
    let (there, well) = (count(&|n| !away(n)), count(&|n| !away(n) && ill(n) == Ill::Not));
    let (disks, keys) = (count(&|n| ill(n) == Ill::Disk), count(&|n| ill(n) == Ill::Keys));
    println!(
        "{nodes} nodes: {} away, {disks} with bad disks, {keys} with other keys",
        nodes - there
    );
    let mut tower = Tower::new(&broker).await;
    let empty = (memory("self"), memory(&broker.id().to_string()));
    let begun = Instant::now();
    let mut members: Vec<Member> = (0..nodes).filter(|&n| !away(n)).map(start).collect();
    tower.until("all are there", PATIENCE, |roll| online(roll) == there).await;
    println!("connected, TLS and all, and reported: {:.1} s", begun.elapsed().as_secs_f64());
    let full = (memory("self"), memory(&broker.id().to_string()));
    let each = |new: u64, old: u64| new.saturating_sub(old) as f64 / there as f64 / 1024.0;
    println!(
        "memory: {:.0} KiB a node (link, machine, two tasks), {:.0} KiB a node at the broker",
        each(full.0, empty.0),
        each(full.1, empty.1)
    );
    for revision in 1..=3 {
        let (bytes, bundle) = signers.bundle(revision);
        let size = bytes.len();
        let before = tower.bytes();
        let begun = Instant::now();
        tower.push(bytes).await;
        let mut in_force = None;
        tower
            .until("all who can have it", PATIENCE, |roll| {
                let now = progress(roll, &bundle);
                let probation = |node: &blochd::fleet::roll_call::Seen| {
                    let state = node.state.as_ref();
                    let underway = state.and_then(|state| state.underway.as_ref());
                    underway.is_some_and(|one| one.revision == revision && one.stage == "probation")
                };
                let on_probation = roll.nodes().values().filter(|node| probation(node)).count();
                if now.applied + on_probation >= well && in_force.is_none() {
                    in_force = Some(begun.elapsed());
                }
                now.applied == well && now.refused == keys
            })
            .await;
        let converged = begun.elapsed();
        tower.listen(Duration::from_secs(3)).await;
        let after = tower.bytes();
        println!(
            "revision {revision} ({size} bytes): in force on {well} after {:.2} s, for good after {:.2} s \
             (probation {:.0} s); broker received {} and sent {} bytes a node",
            in_force.unwrap_or(converged).as_secs_f64(),
            converged.as_secs_f64(),
            swarm::PROBATION.as_secs_f64(),
            (after.0 - before.0) / nodes as u64,
            (after.1 - before.1) / nodes as u64
        );
    }
    let untouched = |member: &&Member| {
        *member.record.lock().unwrap() == Record::default()
            && member.reloads.load(Ordering::Relaxed) == 0
    };
    let kept = members.iter().filter(|member| member.ill != Ill::Not).filter(untouched).count();
    println!("untouched of those who refused or could not write: {kept} of {}", disks + keys);
    quiet(&mut tower, "idle", idle, there, || {}).await;
    // Each node measures two models anew every second.
    let mut turn = 0;
    let busy = || {
        turn += 1;
        for member in &members {
            member.state.send_modify(|state| {
                let mut changed = Reported::clone(state);
                for name in ["detector", "reader"] {
                    let model =
                        changed.models.entry(name.to_owned()).or_insert_with(Model::default);
                    model.figures.p99_ms = Some(20.0 + f64::from(turn % 50));
                    model.figures.watched_s += 1;
                    model.figures.met_s += 1;
                }
                *state = Arc::new(changed);
            });
        }
    };
    quiet(&mut tower, "two models measured every second", idle, there, busy).await;
    let (_, last) = signers.bundle(3);
    let begun = Instant::now();
    members.extend((0..nodes).filter(|&n| away(n)).map(start));
    let all = well + nodes - there;
    tower.until("those who were away", PATIENCE, |roll| progress(roll, &last).applied == all).await;
    println!(
        "{} who were away have it {:.2} s after they came",
        nodes - there,
        begun.elapsed().as_secs_f64()
    );
}

/// Traffic while nothing is pushed.
async fn quiet(
    tower: &mut Tower,
    what: &str,
    time: Duration,
    nodes: usize,
    mut every_second: impl FnMut(),
) {
    let (before, raw, begun) = (tower.bytes(), loopback(), Instant::now());
    while begun.elapsed() < time {
        every_second();
        tower.listen(Duration::from_secs(1)).await;
    }
    let (after, seconds) = (tower.bytes(), begun.elapsed().as_secs_f64());
    let rate = |bytes: u64| bytes as f64 / seconds / nodes as f64;
    println!(
        "{what}, {seconds:.0} s: the broker received {:.1} and sent {:.1} bytes/s a node (to this watcher too); \
         {:.0} bytes/s a node over loopback with TLS, TCP and IP, and with all other programs here",
        rate(after.0 - before.0),
        rate(after.1 - before.1),
        rate(loopback() - raw)
    );
}
