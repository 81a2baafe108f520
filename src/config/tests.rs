use std::collections::BTreeMap;

use proptest::prelude::*;

use super::checked::{Budget, Cpus, LogLevel, Method, Threads};
use super::*;
use crate::units::{ByteSize, Percentile, Span};

fn load_all(
    text: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, &str, &str)],
) -> Result<Loaded, ConfigErrors> {
    let own = |text: &&str| (*text).to_owned();
    let environment: BTreeMap<String, String> =
        environment.iter().map(|(name, text)| (own(name), own(text))).collect();
    let flags: Vec<Flag> = flags
        .iter()
        .map(|(flag, path, text)| Flag { flag: own(flag), path: own(path), text: own(text) })
        .collect();
    let files = &[Text { file: "/etc/blochd/agent.yaml", text }];
    Layers { base: Config::default(), files, fleet: None, environment: &environment, flags: &flags }
        .load()
}

fn load(text: &str) -> Result<Config, ConfigErrors> {
    load_all(text, &[], &[]).map(|loaded| loaded.config)
}

fn lines(text: &str) -> Vec<String> {
    load(text).unwrap_err().to_string().lines().map(str::to_owned).collect()
}

/// The only line of errors, without the file's folder.
fn line(text: &str) -> String {
    let lines = lines(text);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    lines[0].strip_prefix("/etc/blochd/").unwrap().to_owned()
}

#[test]
fn the_documented_file_is_complete_and_parses_to_exactly_the_defaults() {
    let text = include_str!("../../configs/agent.yaml");
    assert_eq!(load(text).unwrap(), Config::default());
    let node = raw::parse(text).unwrap();
    let mut written = Vec::new();
    leaves(&node, "", &mut written);
    written.retain(|path| !["models", "plugins", "access", version::KEY].contains(&path.as_str()));
    let mut known: Vec<String> =
        settings(&Config::default()).into_iter().map(|(path, _)| path).collect();
    known.sort();
    written.sort();
    assert_eq!(written, known);
}

fn leaves(node: &raw::Node, prefix: &str, into: &mut Vec<String>) {
    match &node.value {
        raw::Value::Map(entries) if !entries.is_empty() => {
            for (key, node) in entries {
                let dot = if prefix.is_empty() { "" } else { "." };
                leaves(node, &format!("{prefix}{dot}{}", key.text), into);
            }
        }
        raw::Value::Map(_) | raw::Value::Null | raw::Value::Scalar(_) | raw::Value::List(_) => {
            into.push(prefix.to_owned());
        }
    }
}

#[test]
fn an_empty_file_is_the_defaults() {
    for text in ["", "# nothing\n", "defaults:\nmodels:\n", "---\n"] {
        assert_eq!(load(text).unwrap(), Config::default(), "{text:?}");
    }
}

#[test]
fn every_value_is_read_into_its_type() {
    let config = load(
        "model_dir: models\nstate_dir: /s\nhttp_address: '[::1]:80'\nmetrics_address: localhost:9\n\
         runtime_library: lib/ort.so\nlog_level: debug\nlog_format: json\n\
         trial: {memory: 1GiB}\nbuild: {nice: 5}\n\
         defaults:\n  budget: {p95: 12.5ms}\n  intra_op_threads: 3\n  cpus: [3, 0]\n  \
         ladder: {ratios: [0.5, 0.8], method: magnitude, enabled: false}\n",
    )
    .unwrap();
    assert_eq!(config.model_dir.to_str(), Some("/etc/blochd/models"));
    assert_eq!(config.runtime_library.unwrap().to_str(), Some("/etc/blochd/lib/ort.so"));
    assert_eq!(config.http_address.to_string(), "[::1]:80");
    assert_eq!(config.metrics_address.to_string(), "127.0.0.1:9");
    assert_eq!(config.log_level, LogLevel::Debug);
    assert_eq!(config.trial.memory, Some(ByteSize(1 << 30)));
    assert_eq!(config.build.nice, 5);
    let defaults = &config.defaults;
    let limit = Span::micros(12_500);
    assert_eq!(defaults.budget, Some(Budget { percentile: Percentile::P95, limit }));
    assert_eq!(defaults.intra_op_threads, Threads::Count(3));
    assert_eq!(defaults.cpus, Cpus::List(vec![3, 0]));
    assert_eq!(defaults.ladder.ratios, [0.8, 0.5]);
    assert_eq!(defaults.ladder.method, Method::Magnitude);
    assert!(!defaults.ladder.enabled);
}

#[test]
fn grpc_and_the_unix_socket_can_be_put_elsewhere_and_switched_off() {
    let config = load("grpc_address: none\nunix_socket: none\n").unwrap();
    assert_eq!((config.grpc_address, config.unix_socket), (None, Socket::Off));
    let config = load("grpc_address: localhost:9\nunix_socket: run/b.sock\n").unwrap();
    assert_eq!(config.grpc_address.unwrap().to_string(), "127.0.0.1:9");
    // As other paths, from the file's folder.
    assert_eq!(config.unix_socket, Socket::At("/etc/blochd/run/b.sock".into()));
    assert_eq!(load("unix_socket: auto").unwrap().unix_socket, Socket::Auto);
    assert_eq!(
        line("grpc_address: no"),
        "agent.yaml:1:15: \"no\" is not a socket address; write an IP address and a port, such as \
         127.0.0.1:8000 or [::]:8000, or none"
    );
    let long = format!("unix_socket: /{}", "x".repeat(100));
    assert_eq!(line(&long), "agent.yaml:1:14: the path has 101 bytes; write one of at most 100");
}

#[test]
fn accelerators_are_looked_after_by_the_library_that_is_named_or_not_at_all() {
    let text = "devices: {interval: 1s, timeout: 3s, ascend: lib/libdcmi.so, cambricon: none}\n";
    let devices = load(text).unwrap().devices;
    assert_eq!((devices.interval, devices.timeout), (Span::secs(1), Span::secs(3)));
    assert_eq!(devices.ascend, Accelerator::At("/etc/blochd/lib/libdcmi.so".into()));
    assert_eq!((devices.cambricon, devices.kunlunxin), (Accelerator::Off, Accelerator::Auto));
    assert_eq!(
        line("devices: {interval: 1ms}"),
        "agent.yaml:1:21: 1ms is out of range; write a time from 100ms to 3600s"
    );
    assert_eq!(
        line("devices: {nvidia: auto}"),
        "agent.yaml:1:11: unknown key `nvidia`; known here: ascend, cambricon, interval, \
         kunlunxin, timeout"
    );
}

#[test]
fn all_errors_are_reported_at_once_each_at_its_place() {
    let text = "http_adress: 127.0.0.1:1\n\
                log_level: inf\n\
                defaults:\n  budget: {p99: -4ms}\n  instances: 0\n  \
                ladder:\n    ratios: [0.9, 1.5]\n\
                models:\n  ocr:\n    qualty_floor: 0.9\n    queue_length: many\n  \
                .hidden:\n    instances: 1\n\
                log_level: info\n";
    let expected = [
        "1:1: unknown key `http_adress`; did you mean `http_address`?",
        "2:12: \"inf\" is not known; did you mean `info`? (one of error, warn, info, debug, trace)",
        "4:11: \"-4ms\" is not a duration; write a budget such as p99: 40ms, or none",
        "5:14: 0 is out of range; write a whole number from 1 to 64",
        "7:19: 1.5 is no latency ratio of a faster variant; write numbers between 0.05 and 1, such \
         as [0.9, 0.75, 0.6, 0.5]",
        "10:5: unknown key `qualty_floor`; did you mean `quality_floor`?",
        "11:19: \"many\" is not a whole number; write a whole number from 1 to 65536",
        "12:3: \".hidden\" is no name of a model: it has 1 to 128 letters (a-z, A-Z), digits, \
         dots, dashes and underscores, and does not begin with a dot; rename the model",
        "14:1: `log_level` stands here for the second time; the first is in line 2: keep one",
    ];
    let expected: Vec<String> =
        expected.iter().map(|line| format!("/etc/blochd/agent.yaml:{line}")).collect();
    assert_eq!(lines(text), expected);
}

#[test]
fn ratios_that_no_ladder_can_have_are_refused_at_their_place() {
    let of = |ratios: &str| lines(&format!("defaults:\n  ladder:\n    ratios: {ratios}\n"));
    for (ratios, place, words) in [
        ("[0.9, 0.03]", "3:19", "0.03 is no latency ratio"),
        ("[0.05]", "3:14", "0.05 is no latency ratio"),
        ("[1]", "3:14", "1 is no latency ratio"),
        ("[nan]", "3:14", "nan is no latency ratio"),
        ("[]", "3:13", "without a ratio has no rung; write numbers between 0.05 and 1"),
    ] {
        let told = of(ratios);
        let at = format!("/etc/blochd/agent.yaml:{place}: ");
        assert!(told.len() == 1 && told[0].starts_with(&at), "{ratios}: {told:?}");
        assert!(told[0].contains(words), "{ratios}: {told:?}");
    }
    let sound = load("defaults: {ladder: {ratios: [0.06, 0.99]}}").unwrap();
    assert_eq!(sound.defaults.ladder.ratios, [0.99, 0.06]);
}

#[test]
fn values_of_the_wrong_form_say_what_would_be_right() {
    let cases = [
        (
            "defaults: [1]",
            "1:11: defaults is not a map; write `key: value` lines, indented by two spaces",
        ),
        (
            "log_level: [info]",
            "1:12: `log_level` has a value of the wrong form; write a single value",
        ),
        (
            "log_level:",
            "1:10: `log_level` has no value; write one, or remove the line for the default",
        ),
        (
            "defaults: {budget: {p99: 1ms, p50: 1ms}}",
            "1:20: `budget` takes one percentile and its bound; write it as {p99: 40ms}",
        ),
        (
            "defaults: {budget: {p98: 1ms}}",
            "1:20: \"p98\" is not a percentile; write p50, p90, p95, p99, p99.9 or max",
        ),
        (
            "defaults: {budget: 40}",
            "1:20: \"40\" is not a duration; write a budget such as p99: 40ms, or none",
        ),
        (
            "arrivals: {settle: 500}",
            "1:20: \"500\" is not a duration; write a number and a unit, \
             such as 40ms, 1.5s or 200us",
        ),
        (
            "trial: {memory: 512}",
            "1:17: \"512\" is not a size; write a number and a unit, such as 512MiB, 2GiB or 64KB",
        ),
        (
            "http_address: somewhere",
            "1:15: \"somewhere\" is not a socket address; write an IP address and a \
             port, such as 127.0.0.1:8000 or [::]:8000",
        ),
        (
            "defaults: {quality_floor: .nan}",
            "1:27: \".nan\" is not a number; write a number from 0 to 1",
        ),
        (
            "defaults: {ladder: {enabled: yes}}",
            "1:30: \"yes\" is not yes or no; write true or false",
        ),
        (
            "defaults: {quality: {shadow: 0}}",
            "1:30: 0 is out of range; write a number above 0 and up to 1, or none",
        ),
        (
            "defaults: {quality: {shadow: 2 %}}",
            "1:30: \"2 %\" is not a number; write a number above 0 and up to 1, or none",
        ),
        ("defaults: {max_batch: 0}", "1:23: 0 is out of range; write a whole number from 1 to 128"),
        (
            "defaults: {max_queue_delay: 2s}",
            "1:29: 2s is out of range; write a time from 0us to 1s",
        ),
        (
            "otlp_endpoint: https://collector:4318",
            "1:16: spans are sent to a collector on this box or in its network, without TLS; write \
             http://, a host and a port, such as http://127.0.0.1:4318, or none",
        ),
        (
            "otlp_endpoint: 127.0.0.1:4318",
            "1:16: \"127.0.0.1:4318\" is no collector's address; write http://, a host and a port, \
             such as http://127.0.0.1:4318, or none",
        ),
        ("otlp_share: 1.5", "1:13: 1.5 is out of range; write a number from 0 to 1"),
        ("model_dir: ''", "1:12: the path is empty; write a path"),
        ("- a", "1:1: the file is not a map; write `key: value` lines, indented by two spaces"),
    ];
    for (text, expected) in cases {
        assert_eq!(line(text), format!("agent.yaml:{expected}"), "{text}");
    }
}

#[test]
fn a_collectors_address_is_taken_as_it_is_written_and_none_that_is_no_address() {
    let url = |text: &str| {
        let config = load(&format!("otlp_endpoint: \"{text}\"")).ok()?;
        config.otlp_endpoint.map(|collector| collector.url())
    };
    for (text, expected) in [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://collector/", "http://collector/v1/traces"),
        ("http://[::1]:4318/otlp/v1/traces", "http://[::1]:4318/otlp/v1/traces"),
        ("http://[fe80::1]", "http://[fe80::1]/v1/traces"),
    ] {
        assert_eq!(url(text).as_deref(), Some(expected), "{text}");
    }
    for text in [
        "http://",
        "http://:4318",
        "http://a:0",
        "http://a:70000",
        "http://a b",
        "http://u@a:1",
        "http://a?x=1",
        "http://[::1",
        "http://::1",
        "ftp://a",
        "http://a:1\\r\\nx: y",
    ] {
        assert_eq!(url(text), None, "{text}");
    }
    assert_eq!(load("otlp_endpoint: none").unwrap().otlp_endpoint, None);
}

#[test]
fn values_that_do_not_fit_each_other_are_refused_where_they_stand() {
    let cases = [
        (
            "metrics_address: 127.0.0.1:8000",
            "1:18: http_address and metrics_address are both 127.0.0.1:8000",
        ),
        ("state_dir: /x\nmodel_dir: /x", "2:12: /x is both model_dir and state_dir"),
        ("arrivals:\n  rescan: 100ms", "2:11: rescan 100ms is shorter than settle 500ms"),
        ("defaults: {governor: {headroom: 1.05}}", "1:33: headroom 1.05 is below margin 1.1"),
        ("models: {a: {governor: {margin: 2}}}", "1:33: headroom 1.25 is below margin 2"),
        (
            "defaults: {budget: 20s}",
            "1:20: the budget p99: 20s is longer than the request timeout 10s",
        ),
        (
            "defaults: {max_queue_delay: 5ms, budget: 5ms}",
            "1:29: max_queue_delay 5ms leaves nothing of the 5ms that a request may take",
        ),
    ];
    for (text, expected) in cases {
        assert!(line(text).starts_with(&format!("agent.yaml:{expected}")), "{}", line(text));
    }
}

#[test]
fn broken_yaml_names_its_place() {
    for (text, at) in [("a: [1", "1:"), ("log_level: info\n  x: 1\n", "2:"), ("a: b: c", "1:")] {
        assert!(line(text).starts_with(&format!("agent.yaml:{at}")), "{}", line(text));
    }
    assert!(line("log_level: info\n---\nlog_level: warn\n").starts_with("agent.yaml:"));
}

#[test]
fn alias_bombs_deep_nesting_and_huge_files_are_refused_without_being_unfolded() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let below = format!("*a{}, ", level - 1).repeat(10);
        bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    let message = line(&bomb);
    assert!(message.contains("limit") || message.contains("budget"), "{message}");
    assert!(line(&format!("{}1{}", "[".repeat(100), "]".repeat(100))).contains("agent.yaml:1:"));
    assert!(line(&"# x\n".repeat(300_000)).contains("more than 1MiB"));
}

#[test]
fn aliases_and_merge_keys_share_settings_between_models() {
    let text = "models:\n  a: &shared\n    instances: 2\n  b:\n    <<: *shared\n    \
                queue_length: 3\n  c: *shared\n";
    let config = load(text).unwrap();
    for (model, instances, queue) in [("a", 2, 256), ("b", 2, 3), ("c", 2, 256)] {
        let model = config.model(model, None).unwrap();
        assert_eq!((model.instances, model.queue_length), (instances, queue));
    }
}

#[test]
fn environment_wins_over_the_file_and_flags_over_the_environment() {
    let text = "log_level: warn\nhttp_address: 127.0.0.1:1\nmodel_dir: /file\n";
    let environment = [
        ("BLOCHD_HTTP_ADDRESS", "127.0.0.1:2"),
        ("BLOCHD_MODEL_DIR", "env"),
        ("BLOCHD_CONFIG", "/x"),
        ("BLOCHD_URL", "http://127.0.0.1:1"),
        ("BLOCHD_TEST_PYTHON", "python3"),
        ("BLOCHD_BENCH_MODELS", "/m"),
        ("BLOCHD_DEFAULTS__BUDGET__P95", "30ms"),
        ("BLOCHD_DEFAULTS__GOVERNOR__DWELL", "7s"),
        ("BLOCHD_MODELS__My__Model__QUEUE_LENGTH", "9"),
        ("BLOCHD_MODELS__a.b__GOVERNOR__DWELL", "8s"),
        ("HOME", "/root"),
    ];
    let flags = [("--model-dir", "model_dir", "flag"), ("--set", "models.a.b.budget", "p99=5ms")];
    let loaded = load_all(text, &environment, &flags).unwrap();
    assert_eq!(loaded.warnings, []);
    let config = loaded.config;
    assert_eq!(config.log_level, LogLevel::Warn);
    assert_eq!(config.http_address.port(), 2);
    assert_eq!(config.model_dir.to_str(), Some("flag"));
    assert_eq!(config.defaults.budget.unwrap().to_string(), "p95: 30ms");
    assert_eq!(config.defaults.governor.dwell, Span::secs(7));
    assert_eq!(config.model("My__Model", None).unwrap().queue_length, 9);
    assert_eq!(config.model("a.b", None).unwrap().governor.dwell, Span::secs(8));
    assert_eq!(config.model("a.b", None).unwrap().budget.unwrap().to_string(), "p99: 5ms");
}

#[test]
fn errors_of_variables_and_flags_name_them_and_unknown_variables_only_warn() {
    let environment = [("BLOCHD_HTTP_ADDRESS", "x"), ("BLOCHD_MODEL_DIRR", "/m")];
    let flags = [("--drain-timeout", "drain_timeout", "soon")];
    let errors = load_all("", &environment, &flags).unwrap_err().to_string();
    let lines: Vec<&str> = errors.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].starts_with("environment variable BLOCHD_HTTP_ADDRESS: \"x\" is not"));
    assert!(lines[1].starts_with("flag --drain-timeout: \"soon\" is not a duration; write"));
    let loaded = load_all("", &environment[1..], &[]).unwrap();
    let warning = loaded.warnings[0].to_string();
    assert!(warning.ends_with("there is no setting `model_dirr`; did you mean `model_dir`?"));
    let errors = load_all("", &[], &[("--set", "nothing", "x")]).unwrap_err();
    assert!(errors.to_string().starts_with("flag --set: there is no setting `nothing`"));
}

/// A file's paths start from its folder once, however its name is written; others from where one stands.
#[test]
fn a_relative_path_starts_from_its_files_folder_or_from_where_one_stands() {
    let nothing = BTreeMap::new();
    let flags = [Flag { flag: "--state-dir".into(), path: "state_dir".into(), text: "s".into() }];
    let dirs = |name: &str, text: &str, flags: &[Flag]| {
        let files = &[Text { file: name, text }];
        let layers =
            Layers { base: Config::default(), files, fleet: None, environment: &nothing, flags };
        let config = layers.load().unwrap().config;
        [config.model_dir, config.state_dir].map(|dir| dir.display().to_string())
    };
    let both = "model_dir: models\nstate_dir: state\n";
    assert_eq!(dirs("configs/a.yaml", both, &[]), ["configs/models", "configs/state"]);
    assert_eq!(dirs("a.yaml", both, &[]), ["models", "state"]);
    assert_eq!(dirs("configs/a.yaml", both, &flags), ["configs/models", "s"]);
    // The models go along with the state.
    assert_eq!(dirs("configs/a.yaml", "state_dir: /v\n", &[]), ["/v/models", "/v"]);
    assert_eq!(dirs("configs/a.yaml", "", &flags), ["s/models", "s"]);
}

#[test]
fn every_setting_can_be_given_by_its_variable() {
    for (path, text) in settings(&Config::default()) {
        let name = format!("BLOCHD_{}", path.replace('.', "__").to_uppercase());
        let loaded = load_all("", &[(&name, &text)], &[]).unwrap();
        assert_eq!((loaded.warnings, loaded.config), (vec![], Config::default()), "{name}");
    }
}

#[test]
fn a_policy_file_comes_over_the_defaults_and_under_the_boxs_own_word() {
    let config =
        load("defaults: {instances: 2, priority: 1}\nmodels: {ocr: {queue_length: 7}}").unwrap();
    let text = "instances: 3\nqueue_length: 8\nbudget: {p99: 40ms}\n";
    let policy = Policy::parse("ocr/policy.yaml", text).unwrap();
    let model = config.model("ocr", Some(&policy)).unwrap();
    assert_eq!((model.instances, model.queue_length, model.priority), (3, 7, 1));
    assert_eq!(config.model("other", None).unwrap().instances, 2);
    let wrong = Policy::parse("ocr/policy.yaml", "instances: none\nmodel_dir: /x\n").unwrap_err();
    assert_eq!(
        wrong.0.iter().map(|problem| problem.origin.to_string()).collect::<Vec<_>>(),
        ["ocr/policy.yaml:2:1", "ocr/policy.yaml:1:12"]
    );
    let clash = Policy::parse("p.yaml", "governor: {margin: 3}").unwrap();
    let clash = config.model("ocr", Some(&clash)).unwrap_err().to_string();
    assert!(clash.starts_with("p.yaml:1:20: headroom 1.25 is below margin 3"), "{clash}");
}

#[test]
fn a_difference_says_what_changes_what_needs_a_restart_and_which_models_are_touched() {
    let old = load("log_level: info\nmodels: {a: {instances: 1}, b: {instances: 1}}").unwrap();
    assert!(Config::diff(&old, &old).is_empty());
    let new = load(
        "log_level: debug\nhttp_address: 127.0.0.1:9\n\
         models: {b: {instances: 2}, c: {priority: 1}}",
    )
    .unwrap();
    let diff = Config::diff(&old, &new);
    let changes: Vec<_> = diff.changes.iter().map(|c| (c.path.as_str(), c.restart)).collect();
    assert_eq!(changes, [("http_address", true), ("log_level", false)]);
    assert_eq!(diff.models.iter().map(String::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(!diff.touches("d"));
    let defaults = load("defaults: {instances: 4}").unwrap();
    assert!(Config::diff(&old, &defaults).touches("d"));
    let kept = old.keeping_what_needs_a_restart(&new);
    assert_eq!(Config::diff(&old, &kept).restart().count(), 0);
    assert_eq!(kept.log_level, LogLevel::Debug);
}

#[test]
fn what_needs_a_restart_is_all_that_is_kept_back() {
    let changed = [
        ("model_dir", "/a"),
        ("state_dir", "/b"),
        ("http_address", "127.0.0.1:5"),
        ("grpc_address", "none"),
        ("unix_socket", "/u"),
        ("admin_address", "same"),
        ("shared_memory", "true"),
        ("metrics_address", "127.0.0.1:6"),
        ("runtime_library", "/c"),
        ("log_format", "json"),
        ("otlp_endpoint", "http://a:1"),
        ("otlp_share", "0.5"),
        ("fleet.node_id", "box"),
        ("fleet.labels", "a=b"),
        ("fleet.keys", "k, l"),
        ("fleet.threshold", "2"),
        ("fleet.inbox", "/i"),
        ("fleet.probation", "5s"),
        ("fleet.bandwidth", "1MiB"),
        ("fleet.mqtt.url", "mqtts://broker:8883"),
        ("fleet.mqtt.fleet", "plant"),
        ("fleet.mqtt.ca", "/ca"),
        ("fleet.mqtt.client_certificate", "/c"),
        ("fleet.mqtt.client_key", "credential:key"),
        ("fleet.mqtt.username", "me"),
        ("fleet.mqtt.password_file", "credential:password"),
        ("fleet.mqtt.plaintext", "true"),
        ("fleet.poll.url", "https://depot/{node}.bundle"),
        ("fleet.poll.interval", "7s"),
        ("fleet.poll.ca", "/ca"),
        ("fleet.poll.client_certificate", "/c"),
        ("fleet.poll.client_key", "/k"),
        ("fleet.poll.username", "me"),
        ("fleet.poll.password_file", "/p"),
        ("fleet.poll.token_file", "credential:token"),
        ("fleet.poll.plaintext", "true"),
        ("fleet.artifacts.hosts", "depot, registry:5000"),
        ("fleet.artifacts.ca", "/ca"),
        ("fleet.artifacts.client_certificate", "/c"),
        ("fleet.artifacts.client_key", "/k"),
        ("fleet.artifacts.username", "me"),
        ("fleet.artifacts.password_file", "/p"),
        ("fleet.artifacts.token_file", "credential:token"),
    ];
    let restart: Vec<&str> = schema::AGENT.iter().filter(|s| s.restart).map(|s| s.path).collect();
    assert_eq!(restart, changed.map(|(path, _)| path));
    let flags = changed.map(|(path, text)| ("--set", path, text));
    let new = load_all("", &[], &flags).unwrap().config;
    let old = Config::default();
    assert_eq!(Config::diff(&old, &new).restart().count(), changed.len());
    assert_eq!(old.keeping_what_needs_a_restart(&new), old);
}

/// The settings of a bundle over a file.
fn over(file: &str, bundle: &str, flags: &[Flag]) -> Result<Loaded, ConfigErrors> {
    let config = &raw::parse(bundle).unwrap();
    let fleet = Some(FleetPart { file: "bundle", revision: 7, config });
    let files = &[Text { file: "agent.yaml", text: file }];
    Layers { base: Config::default(), files, fleet, environment: &BTreeMap::new(), flags }.load()
}

#[test]
fn a_bundle_comes_over_files_and_under_whoever_starts_the_agent() {
    let file = "log_level: warn\ndefaults: {priority: 1, instances: 2}\n";
    let bundle = "log_level: debug\ndefaults: {priority: 2}\nmodels: {ocr: {budget: 9ms}}\n";
    let loaded = over(file, bundle, &[]).unwrap();
    assert_eq!(loaded.config.log_level, LogLevel::Debug);
    assert_eq!((loaded.config.defaults.priority, loaded.config.defaults.instances), (2, 2));
    let origin = |path: &str| loaded.origins[path].to_string();
    assert_eq!(origin("defaults.priority"), "bundle:2:22 (fleet revision 7)");
    assert_eq!(origin("models.ocr.budget"), "bundle:3:24 (fleet revision 7)");
    assert_eq!(origin("defaults.instances"), "agent.yaml:2:36");
    let (flag, path, text) = ("--log-level".into(), "log_level".into(), "error".into());
    let loaded = over(file, bundle, &[Flag { flag, path, text }]).unwrap();
    assert_eq!(loaded.config.log_level, LogLevel::Error);
    // What it adds may not fit what the box says; the box's file is as it was.
    let wrong = over("defaults: {request_timeout: 1s}\n", "defaults: {budget: 2s}", &[]);
    assert!(wrong.unwrap_err().to_string().starts_with("bundle:1:20 (fleet revision 7): "));
}

#[test]
fn a_bundle_may_not_set_what_cuts_a_box_off_widens_trust_or_waits_for_a_restart() {
    let plugin = "{x: {library: /l}}";
    let texts = [
        ("state_dir", "/s"),
        ("fleet.keys", "[k]"),
        ("sandbox", "off"),
        ("trace", "/t"),
        ("plugins", plugin),
        ("tls.certificate", "/c"),
        ("access", "{x: {token_file: /t, scopes: infer}}"),
    ];
    for (path, text) in texts {
        let yaml = match path.split_once('.') {
            Some((above, below)) => format!("{above}: {{{below}: {text}}}"),
            None => format!("{path}: {text}"),
        };
        let said = over("", &yaml, &[]).unwrap_err().to_string();
        assert!(said.contains(&format!("a bundle may not set `{path}`: ")), "{said}");
        let problems = fleet_problems("bundle", &raw::parse(&yaml).unwrap());
        assert_eq!(problems.len(), 1, "{problems:?}");
    }
    for setting in schema::AGENT {
        let also = ["sandbox", "allow_plaintext", "cann.dump_graphs"].contains(&setting.path);
        let risky = also || setting.restart || matches!(setting.shape, schema::Shape::Path);
        assert_eq!(fleet::reserved(setting.path).is_some(), risky, "{}", setting.path);
    }
    // Every reason names settings that there are.
    for (name, _) in fleet::RESERVED {
        assert!(schema::AGENT.iter().any(|setting| setting.path.starts_with(name)), "{name}");
    }
    let problems = fleet_problems("bundle", &raw::parse("defaults: {budgit: 1s}\nx: 1").unwrap());
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert_eq!(fleet_problems("bundle", &raw::parse("defaults: {priority: x}").unwrap()).len(), 1);
    assert_eq!(fleet_problems("bundle", &raw::parse("[1]").unwrap()).len(), 1);
}

#[test]
fn how_a_box_belongs_to_a_fleet_is_read_and_must_fit_together() {
    let config = load(
        "fleet:\n  node_id: box-17\n  labels: {site: berlin, rack: 12}\n  keys: [a.pub, \
         /k/b.pub]\n  \
         threshold: 2\n  inbox: in\n  bandwidth: 2MiB\n",
    );
    let fleet = config.unwrap().fleet;
    assert_eq!(fleet.node_id, Some(NodeId("box-17".into())));
    assert_eq!(fleet.labels.0["rack"], "12");
    assert_eq!(fleet.keys.0, ["/etc/blochd/a.pub", "/k/b.pub"].map(std::path::PathBuf::from));
    assert_eq!(fleet.inbox, Some(Inbox("/etc/blochd/in".into())));
    assert_eq!(fleet.bandwidth, Some(Bandwidth(ByteSize(2 << 20))));
    for (text, what) in [
        ("fleet: {inbox: /in}", "every bundle would be refused"),
        ("fleet: {keys: [a], threshold: 2}", "2 signatures are needed and 1 keys are named"),
        ("model_dir: /m\nfleet: {keys: [a], inbox: /m/in}", "a place of the agent's own"),
        ("fleet: {node_id: 'a b'}", "no name in a fleet"),
        ("fleet: {labels: {a: [b]}}", "not a single value"),
        ("fleet: {labels: x}", "wrong form"),
        ("fleet: {bandwidth: 1B}", "too little"),
    ] {
        let said = line(text);
        assert!(said.contains(what), "{said}");
    }
}

#[test]
fn how_a_box_signs_in_at_a_broker_is_read_and_must_fit_together() {
    let config = load(
        "fleet:\n  keys: [a.pub]\n  inbox: /in\n  mqtt:\n    url: mqtts://broker.example\n    \
         fleet: plant\n    ca: ca.pem\n    username: box-17\n    \
         password_file: credential:mqtt\n",
    );
    let mqtt = config.unwrap().fleet.mqtt;
    assert_eq!(mqtt.url.unwrap().to_string(), "mqtts://broker.example:8883");
    assert_eq!(mqtt.fleet, FleetName("plant".into()));
    assert_eq!(mqtt.ca, Some("/etc/blochd/ca.pem".into()));
    assert_eq!(mqtt.username, Some(UserName("box-17".into())));
    assert_eq!(mqtt.password_file, Some(SecretFile("credential:mqtt".into())));
    let here = "fleet: {keys: [a], inbox: /in, mqtt: {url: 'mqtt://localhost', password_file: p}}";
    let password = load(here).unwrap().fleet.mqtt.password_file;
    assert_eq!(password, Some(SecretFile("/etc/blochd/p".into())));
    for (mqtt, what) in [
        ("url: 'mqtt://broker'", "without TLS"),
        ("url: broker", "begins with mqtts://"),
        ("url: 'mqtts://b', client_key: k", "go together"),
        ("url: 'mqtts://b', fleet: a/b", "no name in a fleet"),
        ("url: 'mqtts://b', password_file: 'credential:../k'", "no name in a fleet"),
        ("url: 'mqtts://b', username: ''", "does not fit"),
    ] {
        let said = line(&format!("fleet: {{keys: [a], inbox: /in, mqtt: {{{mqtt}}}}}"));
        assert!(said.contains(what), "{said}");
    }
    let said = lines("fleet: {inbox: /in, mqtt: {url: 'mqtts://b'}}");
    assert!(said.iter().all(|line| line.contains("every bundle would be refused")), "{said:?}");
    let said = line("fleet: {keys: [a], mqtt: {url: 'mqtts://b'}}");
    assert!(said.contains("without an inbox"), "{said}");
    // A password that stands in an address is not repeated.
    let said = line("fleet: {keys: [a], inbox: /in, mqtt: {url: 'mqtts://me:letmein@b'}}");
    assert!(said.contains("credentials") && !said.contains("letmein"), "{said}");
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(?s).{0,200}") {
        let _ = load(&text);
    }

    #[test]
    fn no_near_miss_makes_the_reader_panic(
        cut in 0usize..3000,
        put in "[\\[\\]{}:&*<>!|'\"#\t -]{0,4}",
    ) {
        let mut text = include_str!("../../configs/agent.yaml").to_owned();
        let at = (0..=cut.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
        text.insert_str(at, &put);
        let _ = load(&text);
    }
}

#[test]
fn a_later_file_comes_over_an_earlier_one_and_each_value_knows_its_own() {
    let files = [
        Text {
            file: "/e/agent.yaml",
            text: "sandbox: off\ndefaults:\n  budget: 40ms\nmodels:\n  ocr: {instances: 2}\n",
        },
        Text {
            file: "/e/conf.d/10.yaml",
            text: "defaults:\n  budget: 30ms\nmodels:\n  ocr: {instances: 3}\n",
        },
        Text { file: "/e/conf.d/20.yaml", text: "defaults:\n  queue_length: 9\n" },
    ];
    let environment = [("BLOCHD_LOG_LEVEL".to_owned(), "debug".to_owned())].into();
    let layers = Layers {
        base: Config::default(),
        files: &files,
        fleet: None,
        environment: &environment,
        flags: &[],
    };
    let Loaded { config, origins, .. } = layers.load().unwrap();
    assert_eq!(config.defaults.budget.unwrap().limit, Span::millis(30));
    assert_eq!(config.model("ocr", None).unwrap().instances, 3);
    let told: Vec<String> = origins.iter().map(|(path, at)| format!("{path} {at}")).collect();
    let expected = [
        "defaults.budget /e/conf.d/10.yaml:2:11",
        "defaults.queue_length /e/conf.d/20.yaml:2:17",
        "log_level environment variable BLOCHD_LOG_LEVEL",
        "models.ocr.instances /e/conf.d/10.yaml:4:20",
        "sandbox /e/agent.yaml:1:10",
    ];
    assert_eq!(told, expected);
    // What is wrong in a part is said of the part.
    let wrong = [files[0], Text { file: "/e/conf.d/30.yaml", text: "defaults: {budget: -1ms}\n" }];
    let layers = Layers {
        base: Config::default(),
        files: &wrong,
        fleet: None,
        environment: &environment,
        flags: &[],
    };
    let said = layers.load().unwrap_err().to_string();
    assert!(said.starts_with("/e/conf.d/30.yaml:1:20: "), "{said}");
}

#[test]
fn the_committed_schemas_are_those_of_the_table_of_settings() {
    for (committed, made) in [
        (include_str!("../../configs/agent.schema.json"), json_schema::agent()),
        (include_str!("../../configs/policy.schema.json"), json_schema::policy()),
    ] {
        let committed: serde_json::Value = serde_json::from_str(committed).unwrap();
        assert_eq!(committed, made, "write it anew with `blochd config schema`");
    }
    // Every setting is described in the words of the documented file.
    let made = json_schema::agent();
    let bare = |schema: &serde_json::Value| {
        let all = schema["properties"].as_object().unwrap().iter();
        let bare = all.filter(|(_, one)| one["description"].as_str().is_none_or(str::is_empty));
        bare.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(bare(&made), Vec::<String>::new());
    assert_eq!(bare(&made["$defs"]["model"]), Vec::<String>::new());
}

#[test]
fn cpus_are_a_list_of_numbers_or_a_word() {
    let cpus = |text: &str| load(&format!("defaults: {{cpus: {text}}}")).map(|c| c.defaults.cpus);
    assert_eq!(load("").unwrap().defaults.cpus, Cpus::None);
    assert_eq!(cpus("none").unwrap(), Cpus::None);
    assert_eq!(cpus("auto").unwrap(), Cpus::Auto);
    assert_eq!(cpus("2").unwrap(), Cpus::List(vec![2]));
    assert_eq!(cpus("[2, 0]").unwrap(), Cpus::List(vec![2, 0]));
    for (text, problem) in [
        ("[2, 2]", "stands twice"),
        ("[8192]", "out of range"),
        ("[-1]", "a whole number"),
        ("[2-3]", "a whole number"),
        ("[]", "no CPU is named"),
        ("all", "a whole number"),
        ("{a: 1}", "wrong form"),
    ] {
        let words = cpus(text).unwrap_err().to_string();
        assert!(words.contains(problem) && words.contains("agent.yaml:1:"), "{text}: {words}");
    }
}

#[test]
fn threads_are_bound_in_the_order_of_the_list_or_from_the_last_cpu_down() {
    let usable = [0, 1, 4, 5];
    assert_eq!(Cpus::None.assign(&usable, 3, 0), [0; 0]);
    assert_eq!(Cpus::List(vec![4, 1]).assign(&usable, 3, 7), [4, 1, 4]);
    assert_eq!(Cpus::Auto.assign(&usable, 2, 0), [5, 4]);
    assert_eq!(Cpus::Auto.assign(&usable, 3, 3), [0, 5, 4], "after three threads of another model");
    assert_eq!(Cpus::Auto.assign(&[], 3, 0), [0; 0]);
}
