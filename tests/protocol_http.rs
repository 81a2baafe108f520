//! The server as a socket sees it: every documented status code, keep-alive, graceful end, clients
//! that go away.

mod serving;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use blochd::onnx::DType;
use blochd::protocol::Signature;
use blochd::shell::metrics::BuildOutcome;
use blochd::shell::slot::{Entry, ModelState};
use blochd::units::Version;
use serde_json::{Value, json};

use serving::{Served, gated, spec, sum, sum_signature};

struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    fn error(&self) -> String {
        self.json()["error"].as_str().expect("an error body").to_owned()
    }
}

/// One connection; requests go over it one after another.
struct Client(BufReader<TcpStream>);

impl Client {
    fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !headers.iter().any(|(name, _)| *name == "content-length") {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        self.0.get_mut().write_all(&[head.as_bytes(), body].concat()).unwrap();
    }

    fn receive(&mut self) -> Reply {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).expect("a status line").parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.push((name.to_owned(), value.to_owned()));
        }
        let mut reply = Reply { status, headers, body: Vec::new() };
        let length = reply.header("content-length").expect("a length").parse().unwrap();
        reply.body.resize(length, 0);
        self.0.read_exact(&mut reply.body).unwrap();
        reply
    }

    fn call(&mut self, method: &str, path: &str, body: &[u8]) -> Reply {
        self.send(method, path, &[], body);
        self.receive()
    }

    fn get(&mut self, path: &str) -> Reply {
        self.call("GET", path, b"")
    }

    fn post(&mut self, path: &str, body: &str) -> Reply {
        self.call("POST", path, body.as_bytes())
    }
}

const SUM: &str = "/v2/models/sum/infer";

fn body(values: &str, parameters: &str) -> String {
    let count = values.split(',').count();
    format!(
        r#"{{"parameters":{{{parameters}}},"inputs":[
            {{"name":"x","shape":[{count}],"datatype":"FP32","data":[{values}]}}]}}"#
    )
}

#[test]
fn one_connection_carries_every_call_of_the_protocol() {
    let served = Served::start(1 << 20);
    served.add("sum", sum_signature(), sum());
    let client = &mut Client::to(served.http);
    for (path, expected) in [
        ("/v2/health/live", json!({ "live": true })),
        ("/v2/health/ready", json!({ "ready": true })),
        ("/v2/models/sum/ready", json!({ "ready": true })),
        ("/v2/models/sum/versions/1/ready", json!({ "ready": true })),
        ("/v2/blochd/status", json!({ "models": [] })),
    ] {
        let reply = client.get(path);
        assert_eq!((reply.status, reply.json()), (200, expected), "{path}");
    }
    assert_eq!(client.get("/v2").json()["name"], "blochd");
    assert_eq!(client.get("/v2/").json()["name"], "blochd");
    let metadata = client.get("/v2/models/sum").json();
    assert_eq!(metadata["versions"], json!(["1"]));
    assert_eq!(metadata["inputs"], json!([{"name": "x", "datatype": "FP32", "shape": [-1]}]));
    assert_eq!(client.get("/v2/models/sum/versions/1").json()["name"], "sum");
    assert_eq!(client.get("/v2/models/sum/config").json()["max_batch_size"], 0);
    for path in [SUM, "/v2/models/sum/versions/1/infer"] {
        let reply = client.post(path, &body("1,2,3", ""));
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.header("blochd-variant"), Some("dense"));
        let y = json!({"name": "y", "datatype": "FP32", "shape": [1], "data": [6.0]});
        assert_eq!(
            reply.json(),
            json!({"model_name": "sum", "model_version": "1", "outputs": [y]})
        );
    }
    let index = json!([{"name": "sum", "version": "1", "state": "READY", "reason": ""}]);
    assert_eq!(client.post("/v2/repository/index", "").json(), index);
    let stats = client.get("/v2/models/sum/stats").json();
    assert_eq!(stats["model_stats"][0]["inference_stats"]["success"]["count"], 2);
    let batches = &stats["model_stats"][0]["batch_stats"];
    assert_eq!(
        (&batches[0]["batch_size"], &batches[0]["compute_infer"]["count"]),
        (&1.into(), &2.into())
    );
    assert!(batches[0]["compute_infer"]["ns"].as_u64() > Some(0) && batches[1].is_null());
    assert_eq!(client.get("/v2/models/stats").json()["model_stats"][0]["name"], "sum");
    assert_eq!(client.get("/v2/models/sum/versions/1/stats").status, 200);
}

#[test]
fn binary_data_goes_both_ways() {
    let served = Served::start(1 << 20);
    served.add("sum", sum_signature(), sum());
    let client = &mut Client::to(served.http);
    let json = r#"{"id":"a","parameters":{"binary_data_output":true},"inputs":[{"name":"x","shape":[2],
        "datatype":"FP32","parameters":{"binary_data_size":8}}]}"#;
    let tail = [1.5f32.to_le_bytes(), 2f32.to_le_bytes()].concat();
    let length = json.len().to_string();
    let headers = [("Inference-Header-Content-Length", length.as_str())];
    client.send("POST", SUM, &headers, &[json.as_bytes(), &tail].concat());
    let reply = client.receive();
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("application/octet-stream"));
    let length: usize = reply.header("inference-header-content-length").unwrap().parse().unwrap();
    let head: Value = serde_json::from_slice(&reply.body[..length]).unwrap();
    assert_eq!(head["id"], "a");
    assert_eq!(head["outputs"][0]["parameters"], json!({ "binary_data_size": 4 }));
    assert_eq!(reply.body[length..], 3.5f32.to_le_bytes());
}

#[test]
fn every_failure_has_its_status_and_words_and_leaves_the_connection_open() {
    let served = Served::start(4096);
    served.add("sum", sum_signature(), sum());
    let (state, reason) = (ModelState::Loading, "its first variant is on trial".to_owned());
    served.repository.set("slow", Version(1), Entry::Unready { state, reason });
    let client = &mut Client::to(served.http);
    let whole = body("1,2", "");
    let cases = [
        ("GET", "/v2/nothing", "", 404, "there is nothing at /v2/nothing"),
        ("GET", "/v2/models/q", "", 404, "unknown model: 'q' is not found"),
        ("POST", "/v2/models/q/infer", &whole, 404, "unknown model: 'q' is not found"),
        ("POST", "/v2/models/sum/versions/9/infer", &whole, 404, "version 9 is not found"),
        ("POST", "/v2/models/sum/versions/one/infer", &whole, 400, "'one' is not a model version"),
        ("GET", "/v2/models/sum/versions/9/ready", "", 404, "version 9 is not found"),
        ("POST", "/v2/models/slow/infer", &whole, 503, "not ready: its first variant is on trial"),
        ("GET", SUM, "", 405, "GET is not a method of /v2/models/sum/infer"),
        ("POST", SUM, "{", 400, "failed to parse the request JSON: EOF"),
        ("POST", SUM, r#"{"inputs":[]}"#, 400, "missing 'x' (FP32 [-1])"),
        ("POST", SUM, &body("-1", ""), 500, "running node Sqrt_3: negative"),
        ("POST", "/v2/repository/index", "[3", 400, "failed to parse the request JSON"),
        (
            "POST",
            "/v2/repository/models/sum/load",
            "",
            403,
            "loaded and unloaded at the admin port",
        ),
        ("POST", "/v2/repository/models/sum/unload", "{}", 403, "at the admin port"),
    ];
    let commands = [
        ("POST", "/v2/repository/models/q/load", "", 404, "there is no model 'q'"),
        ("POST", "/v2/repository/models/broken/load", "{}", 400, "model.onnx is truncated"),
        (
            "POST",
            "/v2/repository/models/sum/load",
            r#"{"parameters":{"config":"{}"}}"#,
            400,
            "'config' is not supported",
        ),
        ("POST", "/v2/repository/index", "[3", 400, "failed to parse the request JSON"),
        ("GET", "/v2/models/q", "", 404, "unknown model: 'q' is not found"),
        ("POST", SUM, &whole, 403, "models are asked at http_address"),
        ("GET", "/v2/systemsharedmemory/status", "", 403, "not at the admin port"),
    ];
    let admin = &mut Client::to(served.admin);
    let all = cases.into_iter().map(|case| (false, case));
    for (at_admin, (method, path, body, status, words)) in
        all.chain(commands.into_iter().map(|case| (true, case)))
    {
        let client = if at_admin { &mut *admin } else { &mut *client };
        let reply = client.call(method, path, body.as_bytes());
        assert_eq!(reply.status, status, "{method} {path}: {:?}", reply.json());
        assert!(reply.error().contains(words), "{method} {path}: {}", reply.error());
        assert_eq!(reply.header("retry-after").is_some(), status == 503, "{method} {path}");
    }
    assert_eq!(admin.get("/v2/blochd/status").status, 200);
    assert_eq!(admin.get("/v2/models/sum").status, 200);
    let reply = client.get("/v2/models/slow/ready");
    assert_eq!((reply.status, reply.json()), (503, json!({ "ready": false })));
    served.repository.set_ready(false);
    assert_eq!(client.get("/v2/health/ready").status, 503);
    let mut with = |headers: &[(&str, &str)], body: &[u8]| {
        client.send("POST", SUM, headers, body);
        let reply = client.receive();
        (reply.status, reply.error())
    };
    let (status, words) = with(&[("Inference-Header-Content-Length", "many")], b"{}");
    assert_eq!((status, words.contains("not a number of bytes")), (400, true));
    let (status, words) = with(&[("Inference-Header-Content-Length", "9")], b"{}");
    assert_eq!((status, words.contains("the body has 2 bytes")), (400, true));
    let (status, words) = with(&[("content-encoding", "gzip")], b"{}");
    assert_eq!((status, words.contains("compressed")), (415, true));
    let (status, words) = with(&[("content-length", "99999999999")], b"{}");
    assert_eq!((status, words.contains("limit of 4096 bytes")), (413, true));
}

#[test]
fn a_body_that_grows_past_the_limit_without_saying_so_is_refused() {
    let served = Served::start(4096);
    served.add("sum", sum_signature(), sum());
    let mut client = Client::to(served.http);
    let chunk = format!("1000\r\n{}\r\n", " ".repeat(4096));
    let head = format!("POST {SUM} HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n");
    client
        .0
        .get_mut()
        .write_all([head, chunk.repeat(2), "0\r\n\r\n".into()].concat().as_bytes())
        .unwrap();
    assert_eq!(client.receive().status, 413);
}

#[test]
fn a_full_queue_and_a_passed_deadline_are_answered_by_503_with_retry_after() {
    let served = Served::start(4096);
    let (session, started, go) = gated();
    let slot = served.add_with_queue("sum", sum_signature(), session, 2);
    let mut clients: Vec<Client> = (0..4).map(|_| Client::to(served.http)).collect();
    clients[0].send("POST", SUM, &[], body("0", "").as_bytes());
    started.recv().unwrap();
    // Five milliseconds, and the only session hangs.
    let reply = clients[3].post(SUM, &body("3", r#""timeout":5000"#));
    assert_eq!(reply.status, 503);
    assert!(reply.error().contains("the deadline passed while the request waited"));
    assert!(reply.header("retry-after").is_some());
    for (n, client) in clients[1..3].iter_mut().enumerate() {
        client.send("POST", SUM, &[], body(&(n + 1).to_string(), "").as_bytes());
    }
    while slot.pending() != (2, 1) {
        std::thread::yield_now();
    }
    let reply = clients[3].post(SUM, &body("3", ""));
    assert_eq!(reply.status, 503);
    assert!(reply.error().contains("the queue of 2 requests is full"));
    assert!(reply.header("retry-after").is_some());
    (0..3).for_each(|_| go.send(()).unwrap());
    for client in &mut clients[..3] {
        assert_eq!(client.receive().status, 200);
    }
}

#[test]
fn in_a_full_queue_a_request_of_high_priority_takes_the_place_of_a_low_one_and_is_run_first() {
    let served = Served::start(4096);
    let (session, started, go) = gated();
    let slot = served.add_with_queue("sum", sum_signature(), session, 2);
    let mut clients: Vec<Client> = (0..5).map(|_| Client::to(served.http)).collect();
    clients[0].send("POST", SUM, &[], body("0", "").as_bytes());
    assert_eq!(started.recv().unwrap(), 0.0);
    // Ten minutes, so that nothing is late.
    let with = |value: &str, priority: u8| {
        body(value, &format!(r#""timeout":600000000,"priority":{priority}"#))
    };
    for (waiting, value) in [(1, "1"), (2, "2")] {
        clients[waiting].send("POST", SUM, &[], with(value, 5).as_bytes());
        while slot.pending() != (waiting, 1) {
            std::thread::yield_now();
        }
    }
    let reply = clients[4].post(SUM, &with("4", 5));
    assert_eq!(
        (reply.status, reply.error().contains("the queue of 2 requests is full")),
        (503, true)
    );
    clients[3].send("POST", SUM, &[], with("3", 1).as_bytes());
    let reply = clients[2].receive();
    assert_eq!(reply.status, 503);
    assert!(reply.error().contains("requests of higher priority took its place"));
    assert!(reply.header("retry-after").is_some());
    (0..3).for_each(|_| go.send(()).unwrap());
    assert_eq!([started.recv().unwrap(), started.recv().unwrap()], [3.0, 1.0]);
    for client in [0, 1, 3] {
        assert_eq!(clients[client].receive().status, 200);
    }
    assert_eq!(slot.refusals()["displaced"], 1);
}

#[test]
fn a_client_that_goes_away_frees_its_place_in_the_queue() {
    let served = Served::start(4096);
    let (session, started, go) = gated();
    let slot = served.add("sum", sum_signature(), session);
    let mut first = Client::to(served.http);
    first.send("POST", SUM, &[], body("1", "").as_bytes());
    started.recv().unwrap();
    let mut second = Client::to(served.http);
    second.send("POST", SUM, &[], body("2", "").as_bytes());
    while slot.pending() != (1, 1) {
        std::thread::yield_now();
    }
    drop(second);
    while slot.pending() != (0, 1) {
        std::thread::yield_now();
    }
    go.send(()).unwrap();
    assert_eq!(first.receive().status, 200);
    assert_eq!((slot.totals().success, slot.totals().cancelled), (1, 1));
}

#[test]
fn a_stopping_server_answers_what_it_has_begun_and_takes_nothing_new() {
    let mut served = Served::start(4096);
    let (session, started, go) = gated();
    served.add("sum", sum_signature(), session);
    let mut busy = Client::to(served.http);
    let mut idle = Client::to(served.http);
    assert_eq!(idle.get("/v2/health/live").status, 200);
    busy.send("POST", SUM, &[], body("1", "").as_bytes());
    started.recv().unwrap();
    served.stop.cancel();
    let mut rest = Vec::new();
    idle.0.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "idle connections end soon");
    go.send(()).unwrap();
    assert_eq!(busy.receive().status, 200);
    assert_eq!(served.finish(), 0, "no connection was cut off");
    assert!(TcpStream::connect(served.http).is_err());
}

/// What was sent before the end of the connection was known is answered: by one that was never used, and by
/// one that was.
#[test]
fn a_request_that_meets_the_servers_end_is_answered_and_told_that_it_was_the_last() {
    for asked_before in [false, true] {
        let mut served = Served::start(4096);
        let mut client = Client::to(served.http);
        if asked_before {
            assert_eq!(client.get("/v2/health/live").status, 200);
        } else {
            // So that the connection was accepted: they are in their order.
            assert_eq!(Client::to(served.http).get("/v2/health/live").status, 200);
        }
        served.stop.cancel();
        let answer = client.get("/v2/health/live");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("connection"), Some("close"));
        let mut rest = Vec::new();
        client.0.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
        assert_eq!(served.finish(), 0);
    }
}

#[test]
fn no_request_fails_while_its_slot_is_replaced_again_and_again() {
    let served = Served::start(4096);
    served.add("sum", sum_signature(), sum());
    let answered = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut client = Client::to(served.http);
            for n in 0..500 {
                let reply = client.post(SUM, &body(&n.to_string(), ""));
                assert_eq!((reply.status, n), (200, n), "{:?}", reply.json());
                assert_eq!(reply.json()["outputs"][0]["data"][0], f64::from(n));
            }
            answered.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let mut replaced = 0;
        while !client.is_finished() && !answered.load(std::sync::atomic::Ordering::Relaxed) {
            let slot = serving::slot("sum", 1, sum_signature(), sum());
            let old = served.repository.set("sum", Version(1), Entry::Ready(slot.into()));
            if let Some(Entry::Ready(old)) = old {
                old.close();
            }
            replaced += 1;
        }
        client.join().unwrap();
        assert!(replaced > 1);
    });
}

#[test]
fn a_closed_slot_without_a_successor_is_answered_by_503() {
    let served = Served::start(4096);
    served.add("sum", sum_signature(), sum()).close();
    let client = &mut Client::to(served.http);
    let reply = client.post(SUM, &body("1", ""));
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
    served.add("sum", sum_signature(), sum());
    assert_eq!(client.post(SUM, &body("1", "")).status, 200);
}

#[test]
fn large_json_is_read_and_written_off_the_event_loop() {
    let served = Served::start(16 << 20);
    let signature = Signature {
        inputs: vec![spec("in_a", DType::F32, &[-1])],
        outputs: vec![spec("out_a", DType::F32, &[-1])],
    };
    served.add("echo", signature, serving::echo());
    let count = 100_000;
    let values: Vec<f32> = (0..count).map(|n| n as f32 / 7.0).collect();
    let data = serde_json::to_string(&values).unwrap();
    let request = format!(
        r#"{{"inputs":[{{"name":"in_a","shape":[{count}],"datatype":"FP32","data":{data}}}]}}"#
    );
    let reply = Client::to(served.http).post("/v2/models/echo/infer", &request);
    assert_eq!(reply.status, 200);
    let back: Vec<f32> =
        serde_json::from_value(reply.json()["outputs"][0]["data"].clone()).unwrap();
    assert_eq!(back, values);
}

#[test]
fn the_metrics_page_counts_what_was_answered_refused_and_told() {
    let served = Served::start(4096);
    served.add("sum", sum_signature(), sum());
    let client = &mut Client::to(served.http);
    assert_eq!(client.post(SUM, &body("1", "")).status, 200);
    assert_eq!(client.post(SUM, &body("-1", "")).status, 500);
    served.metrics.swapped("sum", Version(1), "over_budget");
    served.metrics.budget_held("sum", Version(1), false, Duration::from_millis(1500));
    served.metrics.slowdown("sum", Version(1), Some(1.25));
    served.metrics.built("sum", Version(1), BuildOutcome::Built);
    served.metrics.reused("sum", Version(1), 2, 30);
    served.metrics.reused("sum", Version(1), 1, 0);
    served.metrics.ladder("sum", Version(1), 0, [("in service", 1), ("loading", 2)].into());
    served.metrics.ladder("sum", Version(1), 1, [("in service", 1), ("ready", 2)].into());
    let page = Client::to(served.metrics_at).get("/metrics");
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = String::from_utf8(page.body).unwrap();
    for line in [
        r#"nv_inference_request_success{model="sum",version="1"} 1"#,
        r#"nv_inference_request_failure{model="sum",version="1",reason="BACKEND"} 1"#,
        r#"nv_inference_count{model="sum",version="1"} 1"#,
        r#"nv_inference_exec_count{model="sum",version="1"} 2"#,
        r#"nv_inference_pending_request_count{model="sum",version="1"} 0"#,
        r#"blochd_request_duration_seconds_count{model="sum",version="1",variant="dense"} 1"#,
        r#"blochd_variant_latency_ratio{model="sum",version="1",variant="dense"} 1"#,
        r#"blochd_swaps_total{model="sum",version="1",reason="over_budget"} 1"#,
        r#"blochd_budget_seconds_total{model="sum",version="1",met="false"} 1.5"#,
        r#"blochd_slowdown_ratio{model="sum",version="1"} 1.25"#,
        r#"blochd_queue_duration_seconds_count{model="sum",version="1",variant="dense"} 1"#,
        r#"blochd_compute_duration_seconds_count{model="sum",version="1",variant="dense"} 1"#,
        r#"blochd_rung{model="sum",version="1"} 1"#,
        r#"blochd_variants{model="sum",version="1",state="loading"} 0"#,
        r#"blochd_variants{model="sum",version="1",state="ready"} 2"#,
        r#"blochd_builds_total{model="sum",version="1",outcome="built"} 1"#,
        r#"blochd_analysis_reused_total{model="sum",version="1",what="rungs"} 3"#,
        r#"blochd_analysis_reused_total{model="sum",version="1",what="latencies"} 30"#,
    ] {
        assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
    }
    let sum_of = |name: &str| -> f64 {
        let start = format!("nv_inference_{name}_duration_us{{");
        let line = text.lines().find(|line| line.starts_with(&start));
        let value = line.and_then(|line| line.rsplit(' ').next()).expect(name);
        value.parse().unwrap()
    };
    let parts = ["queue", "compute_input", "compute_infer", "compute_output"].map(sum_of);
    assert!(parts.iter().all(|part| *part > 0.0), "{parts:?}");
    let (parts, whole) = (parts.iter().sum::<f64>(), sum_of("request"));
    assert!((parts - whole).abs() < 1e-3 * whole, "{parts} {whole}");
    served.metrics.forget("sum", Version(1));
    served.repository.remove("sum", Version(1));
    let page = Client::to(served.metrics_at).get("/metrics");
    assert!(!String::from_utf8(page.body).unwrap().contains("sum"), "what is gone leaves the page");
    assert_eq!(Client::to(served.metrics_at).get("/").status, 404);
}
