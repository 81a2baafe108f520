use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// After how many observations a rung is withdrawn that is right with probability `right`.
fn withdrawn_after(
    tracker: &mut Tracker,
    right: f64,
    most: usize,
    rng: &mut ChaCha8Rng,
) -> Option<usize> {
    let draw = |rng: &mut ChaCha8Rng| f64::from(u8::from(rng.random::<f64>() < right));
    (1..=most).find(|_| {
        let compared = Compared { quality: draw(rng), requests: 1 };
        matches!(tracker.observe(compared), Judgement::Withdrawn(_))
    })
}

#[test]
fn a_rung_at_its_floor_is_withdrawn_by_chance_no_more_often_than_stated() {
    // With odds of 1000 at most one in ten within 100 observations, and the same of 3000 and 300.
    for (floor, odds, length) in
        [(0.5, 1000.0, 100), (0.9, 1000.0, 100), (0.98, 1000.0, 100), (0.9, 3000.0, 300)]
    {
        let caught = (0..2000).filter(|seed| {
            let mut tracker = Tracker { odds, ..Tracker::new(floor) };
            let mut rng = ChaCha8Rng::seed_from_u64(*seed);
            withdrawn_after(&mut tracker, floor, length, &mut rng).is_some()
        });
        let caught = caught.count();
        assert!(caught <= 200, "{caught} of 2000 at a floor of {floor}");
    }
    // Those in use, and rungs that are a little better than they must be.
    for (floor, right) in [(0.5, 0.55), (0.9, 0.92), (0.98, 0.985)] {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let one = withdrawn_after(&mut Tracker::new(floor), right, 400_000, &mut rng);
        assert_eq!(one, None, "at a floor of {floor}");
    }
}

#[test]
fn a_bad_rung_is_withdrawn_soon_however_long_it_was_good_before() {
    for (right, most) in [(0.0, 16), (0.5, 120), (0.7, 400), (0.8, 1500)] {
        for seed in 0..100 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut tracker = Tracker::new(0.9);
            let good = if seed % 2 == 0 { 0 } else { 5000 };
            assert_eq!(withdrawn_after(&mut tracker, 0.97, good, &mut rng), None);
            let after = withdrawn_after(&mut tracker, right, most, &mut rng);
            assert!(after.is_some(), "agreement {right} passes {most} requests, seed {seed}");
            let Judgement::Withdrawn(why) = tracker.judgement() else { panic!("it was withdrawn") };
            assert!(why.agreement < 0.9 && why.floor == 0.9 && why.requests >= 16, "{why}");
        }
    }
}

#[test]
fn parts_of_a_variance_are_weighed_like_answers_that_are_right_or_wrong() {
    let feed = |quality: f64, count: usize| {
        let mut tracker = Tracker::new(0.9);
        let all = (0..count).map(|_| tracker.observe(Compared { quality, requests: 16 }));
        all.into_iter().position(|judged| matches!(judged, Judgement::Withdrawn(_)))
    };
    assert_eq!(feed(0.905, 20_000), None);
    assert!(feed(0.8, 400).is_some());
    assert!(feed(0.0, 16).is_some());
    assert!(feed(f64::NAN, 16).is_some(), "what is no number agrees in nothing");
    // A floor of nothing is held by everything, one of 1 by what differs in nothing.
    let mut any = Tracker::new(0.0);
    let mut none = Tracker::new(1.0);
    for _ in 0..1000 {
        let nothing = any.observe(Compared { quality: 0.0, requests: 1 });
        assert!(!matches!(nothing, Judgement::Withdrawn(_)));
        let all = none.observe(Compared { quality: 1.0, requests: 1 });
        assert!(!matches!(all, Judgement::Withdrawn(_)));
    }
    let twice = [0; 2].map(|_| none.observe(Compared { quality: 0.0, requests: 1 }));
    assert!(!matches!(twice[0], Judgement::Withdrawn(_)), "one alone may be chance");
}

#[test]
fn little_is_judged_by_nothing_and_drift_shows_in_the_window() {
    let mut tracker = Tracker::new(0.9);
    assert_eq!((tracker.judgement(), tracker.recent()), (Judgement::Open, None));
    for _ in 1..limits::SHADOW_LEAST {
        let judged = tracker.observe(Compared { quality: 0.0, requests: 1 });
        assert_eq!(judged, Judgement::Open);
    }
    let mut tracker = Tracker::new(0.5);
    for _ in 0..1000 {
        tracker.observe(Compared { quality: 1.0, requests: 1 });
    }
    let before = tracker.interval().unwrap();
    assert!(tracker.recent() == Some((1.0, limits::SHADOW_WINDOW)) && before.1 == 1.0);
    for _ in 0..limits::SHADOW_WINDOW / 4 {
        tracker.observe(Compared { quality: 0.6, requests: 1 });
    }
    let (mean, over) = tracker.recent().unwrap();
    assert!((mean - 0.9).abs() < 1e-9 && over == limits::SHADOW_WINDOW);
    let (low, high) = tracker.interval().unwrap();
    assert!(low < 0.9 && 0.9 < high && high < before.1);
    assert_eq!(tracker.requests(), 1000 + limits::SHADOW_WINDOW as u64 / 4);
}

#[test]
fn the_share_that_is_asked_for_is_drawn_and_periods_of_the_traffic_do_not_matter() {
    let mut draw = Draw::new(0.01, 3);
    let mut again = Draw::new(0.01, 3);
    let mut by_camera = [0; 100];
    for number in 0..1_000_000u64 {
        let now = Duration::from_secs(number);
        let taken = draw.takes(now);
        assert_eq!(taken, again.takes(now));
        by_camera[(number % 100) as usize] += u32::from(taken);
    }
    let total: u32 = by_camera.iter().sum();
    assert!((9_500..=10_500).contains(&total), "{total}");
    assert!(by_camera.iter().all(|count| (50..=150).contains(count)), "{by_camera:?}");
}

#[test]
fn draws_keep_their_distance_and_rest_after_long_runs() {
    let mut draw = Draw::new(1.0, 0);
    let at = Duration::from_millis;
    assert!(draw.takes(at(0)));
    assert!(!draw.takes(limits::SHADOW_GAP - at(1)));
    assert!(draw.takes(limits::SHADOW_GAP));
    draw.ran(at(1000), at(500));
    assert!(!draw.takes(at(999) + at(500) * limits::SHADOW_REST));
    assert!(draw.takes(at(1000) + at(500) * limits::SHADOW_REST));
}

fn scores(rows: &[[f32; 3]]) -> Vec<Tensor> {
    let flat: Vec<f32> = rows.iter().flatten().copied().collect();
    vec![Tensor::from_f32(&[rows.len(), 3], &flat)]
}

#[test]
fn each_request_of_a_classifier_is_compared_as_ladders_are() {
    let dense = scores(&[[1.0, 2.0, 0.0], [5.0, 2.0, 0.0]]);
    let rung = scores(&[[1.0, 2.5, 0.0], [1.0, 2.0, 0.0]]);
    let mut comparison = Comparison::default();
    let half = comparison.take(&dense, &rung);
    assert_eq!(half, Some(Compared { quality: 0.5, requests: 1 }));
    let nan = scores(&[[1.0, f32::NAN, 0.0], [1.0, 2.0, 0.0]]);
    assert_eq!(comparison.take(&dense, &nan).map(|c| c.quality), Some(0.0));
    assert_eq!(comparison.take(&nan, &rung), None, "dense itself does not know");
    assert_eq!(comparison.take(&dense, &scores(&[[1.0, 2.0, 0.0]])).map(|c| c.quality), Some(0.0));
}

#[test]
fn explained_variance_is_told_of_several_requests_of_one_shape() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    // Dense says x, the rung errs by a part of the variance of 0.08.
    let mut pair = |width: usize| {
        let dense: Vec<f32> = (0..width).map(|_| rng.random::<f32>()).collect();
        let rung: Vec<f32> = dense
            .iter()
            .map(|value| value + 0.0816 * (rng.random::<f32>() - 0.5) * 3.464)
            .collect();
        [dense, rung].map(|values| vec![Tensor::from_f32(&[1, 1, width], &values)])
    };
    let mut comparison = Comparison::default();
    let mut found = Vec::new();
    // Other shapes come between, more than have a place.
    for number in 0..limits::SHADOW_PACK * 40 {
        let [dense, rung] = pair(64);
        found.extend(comparison.take(&dense, &rung));
        let [dense, rung] = pair(100 + number);
        assert_eq!(comparison.take(&dense, &rung), None);
        assert!(comparison.packs.len() <= limits::SHADOW_PACKS);
    }
    assert_eq!(found.len(), 40);
    assert!(found.iter().all(|one| one.requests == limits::SHADOW_PACK));
    let mean = found.iter().map(|one| one.quality).sum::<f64>() / found.len() as f64;
    assert!((mean - 0.92).abs() < 0.005, "{mean}");
}

#[test]
fn large_outputs_wait_within_their_bytes() {
    let large = vec![Tensor::from_f32(&[1, 3, 1 << 20], &vec![1.0; 3 << 20])];
    let mut comparison = Comparison::default();
    assert_eq!(comparison.take(&large, &large), None, "one alone explains nothing");
    let both = comparison.take(&large, &large).unwrap();
    assert_eq!((both.quality, both.requests), (1.0, 2));
    assert!(comparison.packs.is_empty());
}
