//! Spans as a collector gets them: `blochd run` in a process of its own, and in this one a small server that
//! takes what OpenTelemetry's protocol posts.

mod calling;
mod running;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use blochd::protocol::grpc::Message;
use blochd::protocol::grpc::proto::inference as proto;
use calling::{Caller, framed};
use nix::sys::signal::Signal;
use running::{Agent, Home, Load, model};
use serde_json::{Value, json};

/// Takes spans, one connection beside the other.
struct Collector {
    at: SocketAddr,
    spans: Arc<Mutex<Vec<Value>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let spans = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&spans);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, taken) = (stream.unwrap(), Arc::clone(&taken));
                std::thread::spawn(move || serve(stream, &taken));
            }
        });
        Self { at, spans }
    }

    fn all(&self) -> Vec<Value> {
        self.spans.lock().unwrap().clone()
    }

    fn named(&self, name: &str) -> Vec<Value> {
        self.all().into_iter().filter(|span| span["name"] == name).collect()
    }
}

fn serve(stream: TcpStream, taken: &Mutex<Vec<Value>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line.trim_end().is_empty() {
                break;
            }
            head.push(line.trim_end().to_ascii_lowercase());
        }
        assert!(head[0].starts_with("post /v1/traces "), "{head:?}");
        assert!(head.contains(&"content-type: application/json".to_owned()), "{head:?}");
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let resource = &body["resourceSpans"][0]["resource"]["attributes"][0];
        assert_eq!(*resource, json!({"key": "service.name", "value": {"stringValue": "blochd"}}));
        let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
        taken.lock().unwrap().extend(spans.iter().cloned());
        let answer =
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
        reader.get_mut().write_all(answer.as_bytes()).unwrap();
    }
}

fn attribute(span: &Value, key: &str) -> Value {
    let all = span["attributes"].as_array().unwrap();
    let found = all.iter().find(|one| one["key"] == key);
    let value = found.unwrap_or_else(|| panic!("{key} of {span}"))["value"].as_object().unwrap();
    value.values().next().unwrap().clone()
}

fn nanos(span: &Value, key: &str) -> u64 {
    span[key].as_str().unwrap().parse().unwrap()
}

/// Asks with these headers; the status code.
fn ask(home: &Home, name: &str, headers: &[(&str, &str)], request: &Value) -> u16 {
    let config = ureq::Agent::config_builder().http_status_as_error(false).build();
    let url = home.url(&format!("/v2/models/{name}/infer"));
    let mut post = ureq::Agent::new_with_config(config).post(url);
    for (name, value) in headers {
        post = post.header(*name, *value);
    }
    post.send_json(request).unwrap().status().as_u16()
}

fn call(home: &Home, traceparent: &str) {
    let input = proto::model_infer_request::InferInputTensor {
        name: "input".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![1, 1, 28, 28],
        ..Default::default()
    };
    let request = proto::ModelInferRequest {
        model_name: "digits".to_owned(),
        inputs: vec![input],
        raw_input_contents: vec![vec![0; 4 * 28 * 28].into()],
        ..Default::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(async {
        let caller = Caller::tcp(([127, 0, 0, 1], home.grpc).into()).await;
        let headers = [("traceparent", traceparent)];
        caller.bytes("ModelInfer", &headers, framed(&request.encode_to_vec())).await
    });
    assert_eq!(ended.code, 0, "{ended:?}");
}

fn stop(mut agent: Agent<'_>) {
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait().code(), Some(0));
}

const SPAN: &str = "00f067aa0ba902b7";

fn parent(trace: &str, flags: &str) -> String {
    format!("00-{trace}-{SPAN}-{flags}")
}

#[test]
fn requests_stand_in_their_clients_traces_over_both_protocols_and_others_in_none() {
    let collector = Collector::start();
    let home = Home::new();
    home.configure(&format!(
        "otlp_endpoint: http://{}\notlp_share: 0\ndefaults: {{ladder: {{enabled: false}}}}",
        collector.at
    ));
    home.drop_model(&model("digits_mobile.onnx"), "digits/1/model.onnx");
    let agent = home.start_ready();
    let request = agent.input("digits").unwrap();
    let [rest, grpc, failed] = ["1", "2", "3"].map(|digit| digit.repeat(32));
    assert_eq!(ask(&home, "digits", &[("traceparent", &parent(&rest, "01"))], &request), 200);
    call(&home, &parent(&grpc, "01"));
    assert_eq!(ask(&home, "nobody", &[("traceparent", &parent(&failed, "03"))], &request), 404);
    // Not recorded by its client, not one, two of them, and none.
    let unknown = "4".repeat(32);
    let (not, version) = (parent(&unknown, "00"), format!("ff{}", &parent(&unknown, "01")[2..]));
    let (upper, good) = (parent(&"A".repeat(32), "01"), parent(&unknown, "01"));
    for header in [&not, &version, &upper, "nonsense"] {
        assert_eq!(ask(&home, "digits", &[("traceparent", header)], &request), 200);
        call(&home, header);
    }
    let twice = [("traceparent", good.as_str()), ("traceparent", &good)];
    assert_eq!(ask(&home, "digits", &twice, &request), 200);
    assert_eq!(ask(&home, "digits", &[], &request), 200);
    // The end sends what is left.
    stop(agent);
    let infers = collector.named("infer");
    let traces: Vec<&str> = infers.iter().map(|span| span["traceId"].as_str().unwrap()).collect();
    assert_eq!(traces, [&rest, &grpc, &failed], "{infers:?}");
    assert_eq!(collector.all().len(), 3 + 4, "{:?}", collector.all());
    for (span, protocol) in infers.iter().zip(["http", "grpc", "http"]) {
        assert_eq!((&span["parentSpanId"], &span["kind"]), (&json!(SPAN), &json!(2)));
        assert_eq!(attribute(span, "network.protocol.name"), protocol);
        assert!(nanos(span, "startTimeUnixNano") <= nanos(span, "endTimeUnixNano"));
    }
    assert_eq!(infers[2]["status"]["code"], 2);
    assert!(infers[2]["status"]["message"].as_str().unwrap().contains("'nobody' is not found"));
    for span in &infers[..2] {
        assert!(span["status"].is_null());
        assert_eq!(attribute(span, "blochd.model"), "digits");
        assert_eq!(attribute(span, "blochd.version"), "1");
        assert_eq!(attribute(span, "blochd.variant"), "dense");
        assert!(attribute(span, "blochd.queue_ms").as_f64().unwrap() >= 0.0);
        let compute = attribute(span, "blochd.compute_ms").as_f64().unwrap();
        assert!(compute > 0.0);
        let inner = |name: &str| {
            let all = collector.named(name);
            all.into_iter().find(|inner| inner["parentSpanId"] == span["spanId"]).unwrap()
        };
        let (queue, ran) = (inner("queue"), inner("compute"));
        for inner in [&queue, &ran] {
            assert_eq!((&inner["traceId"], &inner["kind"]), (&span["traceId"], &json!(1)));
        }
        let took = nanos(&ran, "endTimeUnixNano") - nanos(&ran, "startTimeUnixNano");
        assert!((took as f64 / 1e6 - compute).abs() < 1.0, "{took} ns and {compute} ms");
    }
}

#[test]
fn swaps_and_builds_have_spans_and_so_have_requests_of_no_trace_where_a_share_is_wanted() {
    let collector = Collector::start();
    let home = Home::new();
    let configure = |budget: &str| {
        home.configure(&format!(
            "otlp_endpoint: http://{}/\notlp_share: 1\n\
             defaults: {{budget: {budget}, quality_floor: 0, ladder: {{ratios: [0.7]}}}}",
            collector.at
        ));
    };
    configure("none");
    home.drop_model(&model("digits_mobile.onnx"), "digits/1/model.onnx");
    let mut agent = home.start_ready();
    agent.once_built("a rung stands by", |a| a.model("digits")["ladder"][1]["state"] == "ready");
    configure("{p99: 20us}");
    let load = Load::start(home.http, "digits", agent.input("digits").unwrap());
    agent.eventually("a swap is told", |_| !collector.named("swap").is_empty());
    let (answered, failed) = load.finish();
    assert!(answered > 0 && failed.is_empty(), "{failed:?}");
    stop(agent);
    let (build, swap) = (&collector.named("build")[0], &collector.named("swap")[0]);
    for span in [build, swap] {
        assert!(span["parentSpanId"].is_null() && span["status"].is_null(), "{span}");
        assert_eq!(attribute(span, "blochd.model"), "digits");
    }
    assert_eq!(attribute(swap, "blochd.from"), "dense");
    assert_ne!(attribute(swap, "blochd.variant"), "dense");
    assert_eq!(attribute(swap, "blochd.because"), "budget");
    let infer = &collector.named("infer")[0];
    assert!(infer["parentSpanId"].is_null() && infer["traceId"] != build["traceId"]);
}

#[test]
fn a_collector_that_is_not_there_costs_one_line_in_the_log_and_no_request() {
    // It was free a moment ago, and the kernel does not hand it out again soon.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let home = Home::new();
    home.configure(&format!(
        "otlp_endpoint: http://{nobody}\notlp_share: 1\ndefaults: {{ladder: {{enabled: false}}}}"
    ));
    home.drop_model(&model("fixtures/mlp_gemm.onnx"), "mlp/1/model.onnx");
    let mut agent = home.start_ready();
    let failed = |_: &Agent<'_>| -> u64 {
        let page = ureq::get(format!("http://127.0.0.1:{}/metrics", home.metrics)).call().unwrap();
        let page = page.into_body().read_to_string().unwrap();
        let line =
            page.lines().find_map(|l| l.strip_prefix("blochd_spans_total{outcome=\"failed\"} "));
        line.unwrap().parse().unwrap()
    };
    // More than one attempt fails.
    for _ in 0..3 {
        let before = failed(&agent);
        assert!(agent.infer("mlp").is_ok());
        agent.eventually("its spans are lost", |agent| failed(agent) >= before + 3);
    }
    assert_eq!(home.log().matches("spans are lost").count(), 1, "{}", home.log());
    stop(agent);
}
