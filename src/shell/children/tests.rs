use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;

use super::trial::{TrialJob, attempt};
use super::*;
use crate::config::{Provider, Sandbox};

/// A folder with one program in it.
fn script(body: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("child");
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    (dir, path)
}

fn bounds(timeout: Duration) -> Bounds {
    Bounds {
        timeout,
        processor: processor_time(timeout, 1),
        memory: Memory::Bytes(1 << 40),
        priority: Priority::Normal,
        folder: None,
        homes: &[],
    }
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
    for _ in 0..6000 {
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
        lines_of("echo $$; sleep 600 & echo $!; wait", bounds(Duration::from_secs(3))).await;
    assert!(matches!(done, Err(ChildError::TimedOut { .. })), "{done:?}");
    assert_eq!(lines.len(), 2);
    eventually(|| lines.iter().all(|pid| !is_alive(pid))).await;
}

#[tokio::test]
async fn a_child_that_eats_the_memory_is_told_as_such() {
    let body = "exec python3 -c 'x = bytearray(2 << 30)' 2>&1 >/dev/null | \
                sed 's/^MemoryError.*/std::bad_alloc/' >&2; exit 1";
    let memory = Memory::Bytes(256 << 20);
    let (done, _) = lines_of(body, Bounds { memory, ..bounds(LONG) }).await;
    assert!(matches!(done, Err(ChildError::OutOfMemory { .. })), "{done:?}");
    // What the box happened to have is no measure of the work.
    let memory = Memory::Available { parts: 1 << 40 };
    let (done, _) = lines_of(body, Bounds { memory, ..bounds(LONG) }).await;
    let short = done.unwrap_err();
    assert!(matches!(short, ChildError::Short { .. }), "{short}");
    assert_eq!(short.blame(), Blame::Either);
}

#[tokio::test]
async fn a_large_mapped_file_is_not_memory_of_ones_own() {
    let body = r#"
        f=$(mktemp); truncate -s 64G "$f"
        exec python3 -c "import mmap, sys
f = open(sys.argv[1], 'rb')
m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
print(m[0], m[32 << 30], len(m) >> 30)" "$f""#;
    let memory = Memory::Bytes(256 << 20);
    let (done, lines) = lines_of(body, Bounds { memory, ..bounds(LONG) }).await;
    assert_eq!((done, lines), (Ok(()), vec!["0 0 64".to_owned()]));
}

#[tokio::test]
async fn a_share_of_the_memory_is_taken_when_the_child_starts() {
    let total = crate::shell::probe::HostProbe::new().host().memory.total;
    let data = |memory| async move {
        let (done, lines) = lines_of("ulimit -d", Bounds { memory, ..bounds(LONG) }).await;
        assert_eq!(done, Ok(()));
        lines[0].parse::<u64>().unwrap() * 1024
    };
    let all = data(Memory::Available { parts: 1 }).await;
    let tenth = data(Memory::Available { parts: 10 }).await;
    assert!(all <= total.max(crate::limits::CHILD_MEMORY) && tenth < all, "{tenth} {all} {total}");
    assert_eq!(data(Memory::Available { parts: 1 << 40 }).await, crate::limits::CHILD_MEMORY);
    let size = Some(crate::units::ByteSize(1 << 30));
    assert_eq!(Memory::or_part(size, 2), Memory::Bytes(1 << 30));
    assert_eq!(Memory::or_part(None, 2), Memory::Available { parts: 2 });
}

#[tokio::test]
async fn a_signal_from_elsewhere_is_no_crash() {
    for signal in ["KILL", "TERM", "XFSZ"] {
        let (done, _) = lines_of(&format!("kill -{signal} $$"), bounds(LONG)).await;
        let killed = done.unwrap_err();
        assert!(matches!(killed, ChildError::Killed { .. }), "{signal}: {killed}");
        assert_eq!(killed.blame(), Blame::Either);
        assert!(killed.to_string().contains(signal), "{killed}");
    }
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

#[tokio::test]
async fn a_child_that_uses_up_its_processor_time_is_to_blame_for_it() {
    let limit = Duration::from_secs(1);
    let busy = Bounds { processor: limit, ..bounds(LONG) };
    let (done, _) = lines_of("while :; do :; done", busy.clone()).await;
    assert_eq!(done, Err(ChildError::OutOfTime { limit, said: String::new() }));
    assert_eq!(done.unwrap_err().blame(), Blame::Work);
    // Waiting takes none.
    let (done, lines) = lines_of("sleep 3; echo done", busy).await;
    assert_eq!((done, lines), (Ok(()), vec!["done".to_owned()]));
    assert_eq!(processor_time(Duration::from_secs(10), 3), Duration::from_secs(40));
    assert_eq!(processor_time(Duration::from_secs(10), 0), Duration::from_secs(20));
    assert_eq!(processor_time(Duration::MAX, usize::MAX), Duration::MAX);
}

#[tokio::test]
async fn children_are_bounded_in_all_that_the_kernel_counts_and_gain_no_rights() {
    let body = "ulimit -c; ulimit -t; ulimit -n; ulimit -H -n; ulimit -f; \
                grep NoNewPrivs /proc/$$/status";
    let (done, lines) = lines_of(body, bounds(LONG)).await;
    assert_eq!(done, Ok(()));
    // The shell counts files in blocks of 512 bytes.
    let size = (crate::limits::CHILD_FILE_BYTES / 512).to_string();
    let files = crate::limits::CHILD_FILES.to_string();
    assert_eq!(lines, ["0", "120", &files, &files, &size, "NoNewPrivs:\t1"]);
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
    let limit = bounds(Duration::from_secs(10));
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
    tokio::time::sleep(Duration::from_secs(11)).await;
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
        provider: Provider::Cpu,
        served: Vec::new(),
        fixed: BTreeMap::new(),
        cache: None,
        threads: 1,
        cpus: Vec::new(),
        runs: 20,
        timeout,
        memory: Memory::Bytes(1 << 40),
        sandbox: Sandbox::Auto,
        folders: std::env::temp_dir(),
        samples: None,
    }
}

async fn trial(body: &str, timeout: Duration) -> Result<trial::TrialReport, trial::TrialError> {
    let (_dir, path) = script(body);
    let (_wisher, wish) = watch::channel(Wish::Run);
    attempt(&path, &job(timeout), wish, &mut |_| ()).await
}

#[tokio::test]
async fn a_trial_tells_how_it_is_confined_before_anything_else_and_only_then() {
    let told = |abi: u32| {
        format!(r#"echo '{{"event":"confined","landlock":{abi},"seccomp":true,"missing":[]}}'"#)
    };
    let report = r#"echo '{"load_ms":1,"p50_us":2,"p99_us":3,"runs":20}'"#;
    let cases = [
        (format!("{}\n{}\n{report}", told(7), told(99)), vec![7]),
        // Whatever printed before it may have printed this, too.
        (format!("echo banner\n{}\n{report}", told(99)), vec![]),
        (report.to_owned(), vec![]),
    ];
    for (body, expected) in cases {
        let (_dir, path) = script(&body);
        let (_wisher, wish) = watch::channel(Wish::Run);
        let mut heard = Vec::new();
        let mut hear = |confined: confine::Confined| heard.extend(confined.landlock);
        let report = attempt(&path, &job(LONG), wish, &mut hear).await.unwrap();
        assert_eq!((report.p50_us, heard), (Some(2.0), expected), "{body}");
    }
}

#[tokio::test]
async fn a_trial_works_in_a_folder_of_its_own_that_goes_with_it_however_it_ends() {
    for end in ["exit 0", "kill -KILL $$"] {
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("note");
        let body = format!(
            "echo \"$PWD\" > {0}; echo \"$TMPDIR\" >> {0}; echo \"$@\" >> {0}; \
             touch left; mktemp > /dev/null; {end}",
            note.display()
        );
        let _ = trial(&body, LONG).await;
        let text = fs::read_to_string(note).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], lines[1], "{text}");
        assert!(lines[2].contains(&format!("--sandbox auto --scratch {}", lines[0])), "{text}");
        // What it works on is named as seen from anywhere.
        let model = std::env::current_dir().unwrap().join("m.onnx");
        assert!(lines[2].starts_with(&format!("trial {}", model.display())), "{text}");
        assert!(!PathBuf::from(lines[0]).exists(), "{text}");
    }
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
        assert_eq!(error.blame(), Blame::Work, "{body}: {error}");
    }
    // A missing ONNX Runtime is not the model's fault.
    for (body, blame) in [("exit 69", Blame::Circumstances), ("kill -KILL $$", Blame::Either)] {
        assert_eq!(trial(body, LONG).await.unwrap_err().blame(), blame, "{body}");
    }
}

#[tokio::test]
async fn a_provider_is_to_blame_for_all_but_what_the_cpu_refuses_too() {
    let on_provider = async |body: &str, timeout| {
        let (_dir, path) = script(body);
        let (_wisher, wish) = watch::channel(Wish::Run);
        let cann = Provider::Cann(crate::config::Cann::default());
        let job = TrialJob { provider: cann, ..job(timeout) };
        attempt(&path, &job, wish, &mut |_| ()).await.unwrap_err().blame()
    };
    for body in ["kill -SEGV $$", "exit 76", "kill -KILL $$", "echo garbage"] {
        assert_eq!(on_provider(body, LONG).await, Blame::Provider, "{body}");
    }
    assert_eq!(on_provider("sleep 600", Duration::from_millis(300)).await, Blame::Provider);
    assert_eq!(on_provider("exit 65", LONG).await, Blame::Work);
    assert_eq!(on_provider("exit 69", LONG).await, Blame::Circumstances);
}

#[tokio::test]
async fn a_trial_is_told_its_provider_and_shapes_and_tells_what_they_came_to() {
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("note");
    let body = format!(
        r#"printf '%s\n' "$@" > {}
        echo '{{"load_ms":1,"compile_us":7.5,"compiled":[{{"inputs":"x[1,2]","us":7.5}}],'\
        '"differs":0.1,'\
        '"placement":{{"providers":{{"Npu":{{"operators":{{"Conv":2}},"share":1.0}}}}}}}}'"#,
        note.display()
    );
    let (_dir, path) = script(&body);
    let (_wisher, wish) = watch::channel(Wish::Run);
    let plugin = crate::config::Plugin {
        name: "npu".to_owned(),
        library: "lib/ep.so".into(),
        sha256: "0".repeat(64),
        provider: None,
        device: 0,
        options: BTreeMap::new(),
    };
    let job = TrialJob {
        provider: Provider::Plugin(plugin.clone()),
        served: vec![[("N".to_owned(), 1), ("H".to_owned(), 8)].into()],
        fixed: [("W".to_owned(), 4)].into(),
        cache: Some("cache".into()),
        ..job(LONG)
    };
    let report = attempt(&path, &job, wish, &mut |_| ()).await.unwrap();
    assert_eq!((report.compile_us, report.differs), (Some(7.5), Some(0.1)));
    assert_eq!(report.compiled[0].inputs, "x[1,2]");
    assert_eq!(report.placement.unwrap().providers["Npu"].count(), 2);
    let text = fs::read_to_string(note).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let after = |flag: &str| lines[lines.iter().position(|line| *line == flag).unwrap() + 1];
    let here = std::env::current_dir().unwrap();
    let expected = crate::config::Plugin { library: here.join("lib/ep.so"), ..plugin };
    assert_eq!(after("--provider").parse(), Ok(Provider::Plugin(expected)));
    assert_eq!((after("--served"), after("--fix")), ("H=8,N=1", "W=4"));
    assert_eq!(after("--cache"), here.join("cache").display().to_string());
}

#[tokio::test]
async fn a_trial_that_went_well_tells_its_times_whatever_else_is_printed() {
    let body = r#"echo "a vendor's banner"
        echo '{"load_ms":1,"p50_us":2,"p99_us":3,"runs":20,"peak_memory_bytes":4,"engine":"cpu"}'
        echo bye"#;
    let report = trial(body, LONG).await.unwrap();
    assert_eq!((report.p50_us, report.peak_memory_bytes), (Some(2.0), Some(4)));
    assert_eq!((report.ran_on, report.why), (None, None));
}

#[tokio::test]
async fn a_trial_tells_what_it_ran_on_and_that_it_ran_on_nothing() {
    let line = |rest: &str| format!(r#"echo '{{"load_ms":1,"runs":0,{rest}}}'"#);
    let body = line(r#""p50_us":null,"p99_us":null,"ran_on":null,"why":"none suits""#);
    let report = trial(&body, LONG).await.unwrap();
    assert_eq!((report.p99_us, report.ran_on, report.why), (None, None, Some("none suits".into())));
    for ran_on in [
        trial::RanOn::Samples,
        trial::RanOn::MadeUp(crate::protocol::Example { first: 1, free: 32, integer: 0 }),
    ] {
        let told = serde_json::to_string(&ran_on).unwrap();
        let report = trial(&line(&format!(r#""ran_on":{told}"#)), LONG).await.unwrap();
        assert_eq!(report.ran_on, Some(ran_on), "{told}");
    }
}

#[test]
fn a_build_is_to_blame_for_what_comes_again() {
    let said = String::new;
    let signal = || "SIGSEGV".to_owned();
    let limit = crate::units::ByteSize(1);
    for (error, expected) in [
        (ChildError::Failed { code: WORK_REFUSED, said: said() }, Blame::Work),
        (ChildError::Crashed { signal: signal(), said: said() }, Blame::Work),
        (ChildError::OutOfMemory { limit, said: said() }, Blame::Work),
        (ChildError::TimedOut { limit: LONG, said: said() }, Blame::Work),
        // A full disk, no runtime, an error of this program.
        (ChildError::Failed { code: 74, said: said() }, Blame::Circumstances),
        (ChildError::Failed { code: 69, said: said() }, Blame::Circumstances),
        (ChildError::Failed { code: 70, said: said() }, Blame::Circumstances),
        (ChildError::Output { problem: said() }, Blame::Circumstances),
        (ChildError::Ended, Blame::Circumstances),
        (ChildError::Killed { signal: signal(), said: said() }, Blame::Either),
        (ChildError::Short { limit, said: said() }, Blame::Either),
    ] {
        assert_eq!(builder::blame(&error), expected, "{error}");
    }
}
