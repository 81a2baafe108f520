use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;

use super::trial::{TrialJob, attempt};
use super::*;

/// A folder with one program in it.
fn script(body: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("child");
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    (dir, path)
}

fn bounds(timeout: Duration) -> Bounds {
    Bounds { timeout, memory: None, priority: Priority::Normal }
}

const LONG: Duration = Duration::from_secs(60);

async fn lines_of(body: &str, bounds: Bounds) -> (Result<(), ChildError>, Vec<String>) {
    let (_dir, path) = script(body);
    let (_wisher, wish) = watch::channel(Wish::Run);
    let mut lines = Vec::new();
    let mut line = |line: &str| {
        lines.push(line.to_owned());
        if line == "refuse me" { Err("refused".to_owned()) } else { Ok(()) }
    };
    let done = run(&path, &[], &bounds, wish, &mut line).await;
    (done, lines)
}

fn is_alive(pid: &str) -> bool {
    // A zombie has ended; only its parent has not noticed.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
}

async fn eventually(mut what: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not come true");
}

#[tokio::test]
async fn hands_on_every_line_and_ends_well() {
    let (done, lines) = lines_of("echo a; echo; printf b", bounds(LONG)).await;
    assert_eq!(done, Ok(()));
    assert_eq!(lines, ["a", "", "b"]);
}

#[tokio::test]
async fn a_failure_carries_the_code_and_the_last_words() {
    let body = "i=0; while [ $i -lt 2000 ]; do echo noise >&2; i=$((i+1)); done; \
                echo 'blochd: no such operator: Foo' >&2; exit 65";
    let (done, _) = lines_of(body, bounds(LONG)).await;
    let Err(ChildError::Failed { code: 65, said }) = done else { panic!("{done:?}") };
    assert!(said.ends_with("no such operator: Foo"), "{said}");
    assert!(said.len() <= crate::limits::CHILD_SAID_BYTES + 2);
}

#[tokio::test]
async fn a_crash_names_its_signal() {
    let (done, _) = lines_of("kill -SEGV $$", bounds(LONG)).await;
    let crashed = ChildError::Crashed { signal: "SIGSEGV".to_owned(), said: String::new() };
    assert_eq!(done, Err(crashed));
}

#[tokio::test]
async fn a_child_that_hangs_is_ended_with_all_that_it_started() {
    let (done, lines) =
        lines_of("echo $$; sleep 600 & echo $!; wait", bounds(Duration::from_millis(300))).await;
    assert!(matches!(done, Err(ChildError::TimedOut { .. })), "{done:?}");
    assert_eq!(lines.len(), 2);
    eventually(|| lines.iter().all(|pid| !is_alive(pid))).await;
}

#[tokio::test]
async fn a_child_that_eats_the_memory_is_told_as_such() {
    let body = "exec python3 -c 'x = bytearray(2 << 30)' 2>&1 >/dev/null | \
                sed 's/^MemoryError.*/std::bad_alloc/' >&2; exit 1";
    let limit = Some(256 << 20);
    let (done, _) = lines_of(body, Bounds { memory: limit, ..bounds(LONG) }).await;
    assert!(matches!(done, Err(ChildError::OutOfMemory { .. })), "{done:?}");
}

#[tokio::test]
async fn a_line_without_an_end_is_refused_before_it_fills_the_memory() {
    let (done, lines) = lines_of("exec cat /dev/zero", bounds(LONG)).await;
    assert!(matches!(done, Err(ChildError::Output { .. })), "{done:?}");
    assert_eq!(lines.len(), 0);
}

#[tokio::test]
async fn a_flood_of_lines_is_refused() {
    let (done, _) = lines_of("exec yes", bounds(LONG)).await;
    assert!(matches!(done, Err(ChildError::Output { .. })), "{done:?}");
}

#[tokio::test]
async fn a_line_that_the_reader_refuses_ends_the_child() {
    let (done, lines) = lines_of("echo $$; echo refuse me; sleep 600", bounds(LONG)).await;
    assert_eq!(done, Err(ChildError::Output { problem: "refused".to_owned() }));
    eventually(|| !is_alive(&lines[0])).await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told() {
    let (_wisher, wish) = watch::channel(Wish::Run);
    let done = run("/no/such/program".as_ref(), &[], &bounds(LONG), wish, &mut |_| Ok(())).await;
    assert!(matches!(done, Err(ChildError::Start { .. })), "{done:?}");
}

#[tokio::test]
async fn builds_are_idle_and_the_first_to_go() {
    let body = "cat /proc/$$/oom_score_adj; cut -d' ' -f19,41 /proc/$$/stat";
    let priority = Priority::Idle { nice: 19 };
    let (done, lines) = lines_of(body, Bounds { priority, ..bounds(LONG) }).await;
    assert_eq!(done, Ok(()));
    // The policy SCHED_IDLE has number 5.
    assert_eq!(lines, ["1000", "19 5"]);
}

fn state_of(pid: &str) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('?')
}

#[tokio::test]
async fn a_paused_child_stands_still_its_time_does_not_run_and_it_goes_on() {
    // It works until it is told to end: however slow the box, it cannot be done before it is paused.
    let body = "echo $$ > \"$1/pid\"; while [ ! -e \"$1/enough\" ]; do sleep 0.05; done; echo done";
    let (dir, path) = script(body);
    let (wisher, wish) = watch::channel(Wish::Run);
    let pid_file = dir.path().join("pid");
    let arguments = [dir.path().to_string_lossy().into_owned()];
    let limit = bounds(Duration::from_secs(5));
    let child = tokio::spawn(async move {
        let mut lines = Vec::new();
        let mut line = |line: &str| {
            lines.push(line.to_owned());
            Ok(())
        };
        let done = run(&path, &arguments, &limit, wish, &mut line).await;
        (done, lines)
    });
    eventually(|| fs::read_to_string(&pid_file).is_ok_and(|pid| pid.ends_with('\n'))).await;
    let pid = fs::read_to_string(&pid_file).unwrap().trim().to_owned();
    wisher.send(Wish::Pause).unwrap();
    eventually(|| state_of(&pid) == 'T').await;
    // Longer than the limit on its time.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(state_of(&pid), 'T');
    assert!(!child.is_finished());
    fs::write(dir.path().join("enough"), "").unwrap();
    wisher.send(Wish::Run).unwrap();
    assert_eq!(child.await.unwrap(), (Ok(()), vec!["done".to_owned()]));
}

#[tokio::test]
async fn a_child_ends_on_request_even_while_it_is_paused() {
    let (_dir, path) = script("sleep 600");
    let (wisher, wish) = watch::channel(Wish::Pause);
    let child =
        tokio::spawn(async move { run(&path, &[], &bounds(LONG), wish, &mut |_| Ok(())).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    wisher.send(Wish::End).unwrap();
    assert_eq!(child.await.unwrap(), Err(ChildError::Ended));
}

fn job(timeout: Duration) -> TrialJob {
    TrialJob {
        model: "m.onnx".into(),
        runtime: "lib.so".into(),
        threads: 1,
        runs: 20,
        timeout,
        memory: None,
    }
}

async fn trial(body: &str, timeout: Duration) -> Result<trial::TrialReport, trial::TrialError> {
    let (_dir, path) = script(body);
    let (_wisher, wish) = watch::channel(Wish::Run);
    attempt(&path, &job(timeout), wish).await
}

#[tokio::test]
async fn a_trial_that_crashes_hangs_or_says_nothing_blames_the_variant() {
    let short = Duration::from_millis(300);
    for (body, timeout) in [
        ("sleep 600", short),
        ("kill -SEGV $$", LONG),
        ("echo 'bad graph' >&2; exit 65", LONG),
        ("echo garbage; echo '{\"load_ms\": \"soon\"}'", LONG),
    ] {
        let error = trial(body, timeout).await.unwrap_err();
        assert!(error.blames_the_variant(), "{body}: {error}");
    }
    // A missing ONNX Runtime is not the model's fault.
    assert!(!trial("exit 69", LONG).await.unwrap_err().blames_the_variant());
}

#[tokio::test]
async fn a_trial_that_went_well_tells_its_times_whatever_else_is_printed() {
    let body = r#"echo "a vendor's banner"
        echo '{"load_ms":1,"p50_us":2,"p99_us":3,"runs":20,"peak_memory_bytes":4,"engine":"cpu"}'
        echo bye"#;
    let report = trial(body, LONG).await.unwrap();
    assert_eq!((report.p50_us, report.peak_memory_bytes), (2.0, Some(4)));
}
