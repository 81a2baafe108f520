//! Which requests run together, and that nobody is late for it.

use std::time::Duration;

use proptest::prelude::*;

use super::site::{Fate, simulate};
use super::tests::{Fixed, due};
use super::*;
use crate::units::Digest;

const MS: Duration = Duration::from_millis(1);

fn kind(number: u64) -> Digest {
    Digest::of(&number.to_le_bytes())
}

/// A request of kind 1 with a row, due after so many milliseconds.
fn asked(id: u64, ms: u32) -> Asked {
    Asked {
        id,
        level: Level::DEFAULT,
        arrived: Duration::ZERO,
        deadline: Some(ms * MS),
        kind: Some(kind(1)),
        rows: 1,
    }
}

/// One session, 10 ms a row alone; `known` are numbers of rows and what they take together.
fn server(rows: usize, delay: u32, known: &[(usize, u32)]) -> Server {
    let mut service = ServiceTime::new(Some(10 * MS));
    known.iter().for_each(|(rows, ms)| service.observe(*rows, *ms * MS));
    Server { instances: 1, service, batching: Batching { rows, delay: delay * MS } }
}

/// What is run of `all`, which came to a busy session and wait since, at `now`.
fn first(all: &[Asked], server: &Server, now: u32) -> Vec<u64> {
    let mut queue = Queue::new(100);
    all.iter().for_each(|one| drop(queue.offer(*one, one.id, &roomy(server), Duration::ZERO)));
    assert_eq!(queue.waiting(), all.len());
    match queue.take(server, now * MS, false).next {
        Next::Run { jobs, .. } => jobs,
        other => panic!("{other:?}"),
    }
}

/// The same box with so many sessions that it refuses nobody.
fn roomy(server: &Server) -> Server {
    Server { instances: 1000, ..*server }
}

#[test]
fn requests_of_one_kind_run_together_in_their_order_up_to_so_many_rows() {
    let four = server(4, 0, &[]);
    let many: Vec<Asked> = (0..6).map(|id| asked(id, 1000 - id as u32)).collect();
    assert_eq!(first(&many, &four, 1), [5, 4, 3, 2]);
    assert_eq!(first(&many, &server(1, 0, &[]), 1), [5]);
    let wide =
        [asked(0, 900), Asked { rows: 3, ..asked(1, 910) }, Asked { rows: 2, ..asked(2, 920) }];
    assert_eq!(first(&wide, &four, 1), [0, 1]);
    let wider = [asked(0, 900), Asked { rows: 4, ..asked(1, 910) }, asked(2, 920)];
    assert_eq!(first(&wider, &four, 1), [0, 2], "who does not fit is passed over");
    let mixed = [
        asked(0, 900),
        Asked { kind: Some(kind(2)), ..asked(1, 910) },
        Asked { kind: None, ..asked(2, 920) },
        asked(3, 930),
    ];
    assert_eq!(first(&mixed, &four, 1), [0, 3]);
    let alone = [Asked { kind: None, ..asked(0, 900) }, Asked { kind: None, ..asked(1, 910) }];
    assert_eq!(first(&alone, &four, 1), [0]);
}

#[test]
fn nobody_joins_who_would_make_the_batch_late_or_slow() {
    let pair = |one, two| [asked(0, one), asked(1, two)];
    assert_eq!(first(&pair(20, 90), &server(2, 0, &[]), 0), [0, 1], "20 ms for both");
    assert_eq!(first(&pair(19, 90), &server(2, 0, &[]), 0), [0]);
    assert_eq!(first(&pair(19, 90), &server(2, 0, &[(2, 12)]), 0), [0, 1], "12 ms, as was seen");
    assert_eq!(first(&pair(90, 91), &server(2, 0, &[(2, 21)]), 0), [0], "slower than apart");
    // The first is too late in any case: that is no reason to run the others one by one.
    assert_eq!(first(&pair(5, 90), &server(2, 0, &[]), 0), [0, 1]);
}

#[test]
fn nobody_is_passed_over_who_would_be_late_for_it() {
    let other = |ms| Asked { kind: Some(kind(2)), ..asked(1, ms) };
    let of = |ms| first(&[asked(0, 29), other(ms), asked(2, 90)], &server(2, 0, &[]), 0);
    assert_eq!(of(30), [0, 2], "10 ms after the 20 of the two");
    assert_eq!(of(29), [0]);
    assert_eq!(of(15), [1], "it is the first itself");
}

#[test]
fn a_session_waits_for_more_while_that_keeps_nobody_from_running() {
    let box_of = |delay| server(3, delay, &[]);
    let hold = |all: &[Asked], delay: u32, now: u32| {
        let mut queue = Queue::new(100);
        all.iter().for_each(|one| drop(queue.offer(*one, one.id, &roomy(&box_of(delay)), MS)));
        match queue.take(&box_of(delay), now * MS, false).next {
            Next::Hold { until } => Some(until.as_millis()),
            Next::Run { .. } => None,
            Next::Nothing => panic!("something waits"),
        }
    };
    let one = [asked(0, 1000)];
    assert_eq!(hold(&one, 0, 1), None);
    assert_eq!(hold(&one, 8, 1), Some(9), "8 ms since it came");
    assert_eq!(hold(&one, 8, 8), Some(9));
    assert_eq!(hold(&one, 8, 9), None);
    assert_eq!(hold(&one, 5000, 1), Some(495), "half of the 989 ms that it has to spare");
    assert_eq!(hold(&[asked(0, 1000), asked(1, 51)], 5000, 1), Some(16), "half of 30, of both");
    assert_eq!(hold(&[asked(0, 1000), asked(1, 1000), asked(2, 1000)], 8, 1), None, "it is full");
    let others = [asked(0, 900), Asked { kind: Some(kind(2)), ..asked(1, 1000) }];
    assert_eq!(hold(&others, 8, 1), None, "another kind could run");
    assert_eq!(hold(&[Asked { kind: None, ..asked(0, 900) }], 8, 1), None, "nobody can join it");
    let mut queue = Queue::new(1);
    queue.offer(one[0], 0, &box_of(8), MS).unwrap();
    assert!(matches!(queue.take(&box_of(8), MS, true).next, Next::Run { .. }), "a close");
}

/// Admission does not count on batches, and still a box with them answers more of a flood.
#[test]
fn batches_answer_more_of_a_flood() {
    let flood: Vec<Asked> = (0..4000)
        .map(|id| {
            let arrived = id as u32 * MS;
            Asked { arrived, deadline: Some(arrived + 100 * MS), ..asked(id, 0) }
        })
        .collect();
    let answered = |rows| {
        let known = [(2, 12), (4, 15), (8, 20)];
        let fates = simulate(&flood, 256, &mut Fixed(server(rows, 0, &known), vec![1]));
        assert!(!fates.contains(&Fate::Expired));
        fates.iter().filter(|fate| matches!(fate, Fate::Answered { .. })).count()
    };
    let (alone, together) = (answered(1), answered(8));
    assert!((400..=410).contains(&alone), "{alone}");
    assert!(together > 3 * alone, "{together} against {alone}");
}

fn arrivals() -> impl Strategy<Value = Vec<Asked>> {
    let one = (0u64..80, 0u64..4, 0u32..9000, 0u64..4, 1usize..6);
    prop::collection::vec(one, 1..150).prop_map(|all| {
        let mut now = Duration::ZERO;
        let request =
            |(id, (gap, priority, timeout, kinds, rows)): (usize, (u64, _, u32, _, _))| {
                now += gap as u32 * MS;
                Asked {
                    id: id as u64,
                    level: Level::of(priority),
                    arrived: now,
                    deadline: (timeout % 8 != 0).then(|| now + timeout * MS / 3),
                    kind: (kinds > 0).then(|| kind(kinds)),
                    rows,
                }
            };
        all.into_iter().enumerate().map(request).collect()
    })
}

fn boxes() -> impl Strategy<Value = Server> {
    let known = prop::collection::vec((1usize..20, 1u32..200), 0..6);
    (1usize..4, 1usize..12, 0u32..200, 1u32..10, known).prop_map(
        |(instances, rows, delay, service, known)| {
            let mut service = ServiceTime::new(Some(service * MS));
            // Each size once: a second run of a size would make the estimate uncertain.
            let mut sizes = vec![1];
            for (rows, ms) in known {
                let size = rows.next_power_of_two();
                if !sizes.contains(&size) {
                    sizes.push(size);
                    service.observe(rows, ms * MS);
                }
            }
            Server { instances, service, batching: Batching { rows, delay: delay * MS } }
        },
    )
}

proptest! {
    #[test]
    fn what_runs_together_is_of_one_kind_within_bounds_and_begins_with_the_first(
        all in arrivals(), server in boxes(), later in 0u32..3000,
    ) {
        let mut queue = Queue::new(1000);
        for one in &all {
            queue.offer(*one, *one, &roomy(&server), one.arrived).unwrap();
        }
        let now = all.last().unwrap().arrived + later * MS;
        let order = |one: &Asked| (one.level, due(one), one.id);
        loop {
            let before = queue.waiting();
            let Taken { expired, next } = queue.take(&server, now, true);
            prop_assert!(expired.iter().all(|one| one.deadline.is_some_and(|due| due < now)));
            let Next::Run { jobs, .. } = next else { break };
            prop_assert_eq!(queue.waiting() + jobs.len() + expired.len(), before);
            queue.forget_running();
            let rows: usize = jobs.iter().map(|one| one.rows).sum();
            prop_assert!(jobs.len() == 1 || rows <= server.batching.rows);
            prop_assert!(jobs.len() == 1 || jobs[0].kind.is_some());
            prop_assert!(jobs.iter().all(|one| one.kind == jobs[0].kind));
            prop_assert!(jobs[1..].is_sorted_by_key(order));
            let alone: Duration = jobs.iter().map(|one| server.service.upper(one.rows)).sum();
            prop_assert!(server.service.upper(rows) <= alone + Duration::from_micros(1));
        }
        prop_assert_eq!(queue.waiting(), 0);
    }

    /// With batches, waits for them to fill, and requests that are passed over.
    #[test]
    fn who_is_taken_in_is_answered_in_time_in_a_batch_too(
        all in arrivals(), server in boxes(), capacity in 1usize..12,
    ) {
        let fates = simulate(&all, capacity, &mut Fixed(server, vec![1]));
        for (asked, fate) in all.iter().zip(fates) {
            // Who cannot be in time at all is tried by a session that has nothing else to do.
            let hopeless = asked.arrived + server.service.upper(asked.rows) > due(asked);
            match fate {
                Fate::Refused(_) => {}
                Fate::Displaced => prop_assert!(asked.deadline.is_some()),
                Fate::Expired => prop_assert!(hopeless, "{:?} expired", asked),
                Fate::Answered { ended, .. } => {
                    // One microsecond a batch that takes as long as its requests apart.
                    let limit = due(asked) + MS / 10;
                    prop_assert!(hopeless || ended <= limit, "{:?} ended at {:?}", asked, ended);
                }
            }
        }
    }
}
