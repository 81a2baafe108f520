//! gRPC as a socket sees it: every status code, deadlines, clients that go away, streams, bounds, the graceful
//! end, and both protocols over one Unix socket.

mod calling;
mod serving;

use std::io::{Read, Write};
use std::sync::mpsc;

use blochd::limits::STREAM_REQUESTS;
use blochd::onnx::{DType, ExecError, Tensor};
use blochd::protocol::Signature;
use blochd::protocol::grpc::Message;
use blochd::protocol::grpc::proto::grpc::health::v1 as health;
use blochd::protocol::grpc::proto::inference as proto;
use blochd::shell::slot::{Entry, ModelState};
use blochd::units::Version;
use bytes::Bytes;

use calling::{Caller, WATCH, framed, infer, values};
use serving::{Served, gated, spec, sum, sum_signature};

/// Runs `test` beside the server, on its own runtime so that blocking in it holds nothing up.
fn with<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}

const HEALTH: &str = "/grpc.health.v1.Health/Check";

#[test]
fn one_connection_carries_every_call_over_tcp_and_over_the_unix_socket() {
    let served = Served::start(1 << 20);
    served.add("sum", sum_signature(), sum());
    with(async {
        for caller in [Caller::tcp(served.grpc).await, Caller::unix(&served.unix).await] {
            let live: proto::ServerLiveResponse =
                caller.call("ServerLive", &proto::ServerLiveRequest::default()).await.answer();
            let ready: proto::ServerReadyResponse =
                caller.call("ServerReady", &proto::ServerReadyRequest::default()).await.answer();
            assert!(live.live && ready.ready);
            let server: proto::ServerMetadataResponse = caller
                .call("ServerMetadata", &proto::ServerMetadataRequest::default())
                .await
                .answer();
            assert_eq!(server.name, "blochd");
            assert!(server.extensions.iter().any(|word| word == "system_shared_memory"));
            let (name, version) = ("sum".to_owned(), "1".to_owned());
            let asked = proto::ModelReadyRequest { name: name.clone(), ..Default::default() };
            let ready: proto::ModelReadyResponse = caller.call("ModelReady", &asked).await.answer();
            assert!(ready.ready);
            let asked = proto::ModelMetadataRequest { name: name.clone(), version };
            let model: proto::ModelMetadataResponse =
                caller.call("ModelMetadata", &asked).await.answer();
            assert_eq!(
                (model.versions, model.inputs[0].shape.clone()),
                (vec!["1".to_owned()], vec![-1])
            );
            let asked = proto::ModelConfigRequest { name: name.clone(), ..Default::default() };
            let config: proto::ModelConfigResponse =
                caller.call("ModelConfig", &asked).await.answer();
            assert_eq!(config.config.input[0].data_type, proto::DataType::TYPE_FP32);
            assert_eq!(config.config.default_model_filename, "model.onnx");
            let ended = caller.call("ModelInfer", &infer("sum", "7", &[1.0, 2.0])).await;
            assert_eq!(ended.headers["blochd-variant"], "dense");
            assert_eq!(ended.headers["content-type"], "application/grpc");
            let answer: proto::ModelInferResponse = ended.answer();
            assert_eq!((answer.id.as_str(), values(&answer)), ("7", vec![3.0]));
            assert_eq!((answer.model_name.as_str(), answer.model_version.as_str()), ("sum", "1"));
            let asked = proto::ModelStatisticsRequest { name, ..Default::default() };
            let stats: proto::ModelStatisticsResponse =
                caller.call("ModelStatistics", &asked).await.answer();
            assert!(stats.model_stats[0].inference_stats.success.count >= 1);
            let index: proto::RepositoryIndexResponse = caller
                .call("RepositoryIndex", &proto::RepositoryIndexRequest::default())
                .await
                .answer();
            assert_eq!(index.models[0].state, "READY");
            let asked = health::HealthCheckRequest::default().encode_to_vec();
            let checked = caller.path(HEALTH, &[], framed(&asked)).await;
            let status = checked.answer::<health::HealthCheckResponse>().status;
            assert_eq!(status, health::health_check_response::ServingStatus::SERVING);
        }
    });
}

#[test]
fn rest_is_spoken_over_the_unix_socket_too() {
    let served = Served::start(1 << 20);
    let mut stream = std::os::unix::net::UnixStream::connect(&served.unix).unwrap();
    let request = "GET /v2/health/ready HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with(r#"{"ready":true}"#), "{answer}");
}

#[test]
fn every_failure_has_its_code_and_words_and_leaves_the_connection_open() {
    let served = Served::start(4096);
    served.add("sum", sum_signature(), sum());
    let (state, reason) = (ModelState::Loading, "its first variant is on trial".to_owned());
    served.repository.set("slow", Version(1), Entry::Unready { state, reason });
    with(async {
        let caller = &Caller::tcp(served.grpc).await;
        let whole = |request: &proto::ModelInferRequest| framed(&request.encode_to_vec());
        let at = |version: &str| proto::ModelInferRequest {
            model_version: version.to_owned(),
            ..infer("sum", "", &[1.0])
        };
        let fine = whole(&infer("sum", "", &[1.0]));
        let twice = Bytes::from([&fine[..], &fine].concat());
        let compressed = Bytes::from([&[1][..], &fine[1..]].concat());
        let large = Bytes::from_static(&[0, 0, 0, 0x10, 1]);
        let cases: [(&str, Bytes, u32, &str); 18] = [
            ("ModelInfer", whole(&infer("q", "", &[1.0])), 5, "unknown model: 'q' is not found"),
            ("ModelInfer", whole(&at("9")), 5, "version 9 is not found"),
            ("ModelInfer", whole(&at("one")), 3, "'one' is not a model version"),
            ("ModelInfer", whole(&infer("slow", "", &[1.0])), 14, "not ready: its first variant"),
            (
                "ModelInfer",
                whole(&proto::ModelInferRequest { model_name: "sum".into(), ..Default::default() }),
                3,
                "missing 'x'",
            ),
            ("ModelInfer", whole(&infer("sum", "", &[-1.0])), 13, "running node Sqrt_3: negative"),
            ("ModelInfer", framed(&[0x0B]), 3, "failed to parse the request message"),
            ("ModelInfer", fine.slice(..fine.len() - 1), 3, "ends in the midst of a message"),
            ("ModelInfer", fine.slice(..3), 3, "ends in the midst of a message"),
            ("ModelInfer", Bytes::new(), 3, "the call has no message"),
            ("ModelInfer", twice, 3, "more than one message"),
            ("ModelInfer", compressed, 12, "compressed messages are not supported"),
            ("ModelInfer", large, 8, "4097 bytes, more than the limit of 4096"),
            ("ServerLive", framed(&[0x0A, 9]), 3, "failed to parse the request message"),
            ("Nothing", framed(&[]), 12, "there is no call Nothing"),
            ("CudaSharedMemoryStatus", framed(&[]), 12, "CUDA shared memory is not supported"),
            ("RepositoryModelLoad", framed(&[0x12, 1, b'q']), 7, "unloaded at the admin port"),
            (
                "SystemSharedMemoryStatus",
                framed(&[0x0A, 1, b'q']),
                5,
                "Unable to find shared memory region: 'q'",
            ),
        ];
        let broken = framed(&[0x12, 6, b'b', b'r', b'o', b'k', b'e', b'n']);
        let commands: [(&str, Bytes, u32, &str); 4] = [
            ("RepositoryModelLoad", framed(&[0x12, 1, b'q']), 5, "there is no model 'q'"),
            ("RepositoryModelLoad", broken, 3, "model.onnx is truncated"),
            ("ModelInfer", fine.clone(), 7, "not at the admin port"),
            ("SystemSharedMemoryStatus", framed(&[]), 7, "not at the admin port"),
        ];
        let admin = &Caller::tcp(served.admin).await;
        let all = cases.into_iter().map(|case| (caller, case));
        for (caller, (name, body, code, words)) in
            all.chain(commands.into_iter().map(|case| (admin, case)))
        {
            let ended = caller.bytes(name, &[], body).await;
            assert_eq!(ended.code, code, "{name} {words}: {ended:?}");
            assert!(ended.message.contains(words), "{words:?} is not in {:?}", ended.message);
            assert_eq!(ended.pushback.is_some(), code == 14, "{ended:?}");
            assert_eq!(ended.message.contains("try again after"), code == 14, "{ended:?}");
        }
        let parameters = [("config".to_owned(), proto::ModelRepositoryParameter::default())].into();
        let load = proto::RepositoryModelLoadRequest {
            model_name: "sum".to_owned(),
            parameters,
            ..Default::default()
        };
        let ended = admin.call("RepositoryModelLoad", &load).await;
        assert_eq!((ended.code, ended.message.contains("'config' is not supported")), (3, true));
        let ended = caller.bytes("ModelInfer", &[("grpc-timeout", "soon")], fine.clone()).await;
        assert_eq!((ended.code, ended.message.as_str()), (3, "grpc-timeout is no time"));
        let unknown = health::HealthCheckRequest { service: "other".to_owned() }.encode_to_vec();
        assert_eq!(caller.path(HEALTH, &[], framed(&unknown)).await.code, 5);
        assert_eq!(caller.path("/other.Service/Call", &[], framed(&[])).await.code, 12);
        served.repository.set_ready(false);
        let checked = caller.path(HEALTH, &[], framed(&[])).await;
        let status = checked.answer::<health::HealthCheckResponse>().status;
        assert_eq!(status, health::health_check_response::ServingStatus::NOT_SERVING);
        let ended = caller.bytes("ModelInfer", &[], fine).await;
        assert_eq!(ended.code, 0);
    });
}

#[test]
fn a_request_that_is_no_call_of_grpc_gets_the_code_that_it_asks_for() {
    let served = Served::start(4096);
    with(async {
        let caller = Caller::tcp(served.grpc).await;
        for content in ["application/json", "application/grpc-web", "application/grpc+json"] {
            let body = http_body_util::combinators::BoxBody::default();
            let answer = caller.send("/v2", &[("content-type", content)], body).await.unwrap();
            assert_eq!(answer.status(), 415, "{content}");
        }
        // Over the Unix socket it is REST, over HTTP/2.
        let caller = Caller::unix(&served.unix).await;
        let body = http_body_util::combinators::BoxBody::default();
        let json = [("content-type", "application/json")];
        let answer = caller.send("/v2/repository/index", &json, body).await.unwrap();
        assert_eq!(answer.status(), 200);
    });
}

#[test]
fn a_deadline_is_kept_whether_the_header_or_the_parameter_says_it() {
    let served = Served::start(4096);
    let (session, started, go) = gated();
    let slot = served.add_with_queue("sum", sum_signature(), session, 2);
    with(async {
        let caller = Caller::tcp(served.grpc).await;
        let first = tokio::spawn({
            let caller = caller.clone();
            async move { caller.call("ModelInfer", &infer("sum", "", &[1.0])).await }
        });
        started.recv().unwrap();
        // The only session hangs: five milliseconds are not enough, ten minutes by the other word do not help.
        let parameter = |us: i64| {
            let choice = proto::infer_parameter::ParameterChoice::Int64Param(us);
            let value = proto::InferParameter { parameter_choice: Some(choice) };
            let mut request = infer("sum", "", &[2.0]);
            request.parameters.insert("timeout".to_owned(), value);
            framed(&request.encode_to_vec())
        };
        for (header, us) in [("5m", 600_000_000), ("10M", 5_000)] {
            let ended =
                caller.bytes("ModelInfer", &[("grpc-timeout", header)], parameter(us)).await;
            assert_eq!(ended.code, 4, "{ended:?}");
        }
        let ended = caller.bytes("ModelInfer", &[("grpc-timeout", "0n")], parameter(0)).await;
        assert_eq!(
            (ended.code, ended.message.contains("before the request had arrived")),
            (4, true)
        );
        for n in 0..2 {
            let caller = caller.clone();
            tokio::spawn(async move { caller.call("ModelInfer", &infer("sum", "", &[1.0])).await });
            while slot.pending() != (n + 1, 1) {
                tokio::task::yield_now().await;
            }
        }
        let ended = caller.call("ModelInfer", &infer("sum", "", &[3.0])).await;
        assert_eq!((ended.code, ended.pushback.is_some()), (14, true));
        assert!(ended.message.contains("the queue of 2 requests is full"), "{ended:?}");
        (0..3).for_each(|_| go.send(()).unwrap());
        assert_eq!(first.await.unwrap().code, 0);
    });
}

#[test]
fn in_a_full_queue_a_call_of_high_priority_takes_the_place_of_a_low_one_and_is_run_first() {
    use proto::infer_parameter::ParameterChoice;
    let served = Served::start(4096);
    let (session, started, go) = gated();
    let slot = served.add_with_queue("sum", sum_signature(), session, 2);
    with(async {
        let caller = Caller::tcp(served.grpc).await;
        let call = |value: f32, priority: u64| {
            let parameter = |choice| proto::InferParameter { parameter_choice: Some(choice) };
            let mut request = infer("sum", "", &[value]);
            // Ten minutes, so that nothing is late.
            let timeout = parameter(ParameterChoice::Int64Param(600_000_000));
            request.parameters.insert("timeout".to_owned(), timeout);
            let priority = parameter(ParameterChoice::Uint64Param(priority));
            request.parameters.insert("priority".to_owned(), priority);
            let caller = caller.clone();
            tokio::spawn(async move { caller.call("ModelInfer", &request).await })
        };
        let first = call(0.0, 5);
        assert_eq!(started.recv().unwrap(), 0.0);
        let mut low = Vec::new();
        for waiting in 1..=2 {
            low.push(call(waiting as f32, 5));
            while slot.pending() != (waiting, 1) {
                tokio::task::yield_now().await;
            }
        }
        let refused = call(4.0, 5).await.unwrap();
        assert_eq!(
            (refused.code, refused.message.contains("queue of 2 requests is full")),
            (14, true)
        );
        let high = call(3.0, 1);
        let displaced = low.pop().unwrap().await.unwrap();
        assert_eq!((displaced.code, displaced.pushback.is_some()), (14, true));
        assert!(displaced.message.contains("higher priority took its place"), "{displaced:?}");
        (0..3).for_each(|_| go.send(()).unwrap());
        assert_eq!([started.recv().unwrap(), started.recv().unwrap()], [3.0, 1.0]);
        for call in [first, low.pop().unwrap(), high] {
            assert_eq!(call.await.unwrap().code, 0);
        }
    });
}

#[test]
fn a_health_watch_tells_every_change_of_the_server_or_of_its_model_and_nothing_else() {
    use health::health_check_response::ServingStatus::*;
    let mut served = Served::start(4096);
    let (grpc, stop) = (served.grpc, served.stop.clone());
    with(async {
        let caller = Caller::tcp(grpc).await;
        let mut server = caller.watch("").await;
        let mut model = caller.watch("sum").await;
        let mut left = caller.watch("sum").await;
        assert_eq!(server.health().await, Ok(SERVING));
        assert_eq!(model.health().await, Ok(SERVICE_UNKNOWN));
        assert_eq!(left.health().await, Ok(SERVICE_UNKNOWN));
        // One that goes away is in nobody's way.
        drop(left);
        served.repository.set_ready(false);
        assert_eq!(server.health().await, Ok(NOT_SERVING));
        served.repository.set_ready(true);
        assert_eq!(server.health().await, Ok(SERVING));
        // Another model is none of its business.
        served.add("other", sum_signature(), sum());
        let (state, reason) = (ModelState::Loading, "its first variant is on trial".to_owned());
        served.repository.set("sum", Version(1), Entry::Unready { state, reason });
        assert_eq!(model.health().await, Ok(NOT_SERVING));
        served.add("sum", sum_signature(), sum());
        assert_eq!(model.health().await, Ok(SERVING));
        let check = async |service: &str| {
            let service = service.to_owned();
            let asked = health::HealthCheckRequest { service }.encode_to_vec();
            caller.path(HEALTH, &[], framed(&asked)).await
        };
        let checked = check("sum").await.answer::<health::HealthCheckResponse>();
        assert_eq!(checked.status, SERVING);
        assert_eq!(check("nowhere").await.code, 5);
        served.repository.remove("sum", Version(1));
        assert_eq!(model.health().await, Ok(SERVICE_UNKNOWN));
        served.repository.set_ready(false);
        stop.cancel();
        assert_eq!(server.health().await, Ok(NOT_SERVING));
        for mut watch in [server, model] {
            let (code, words) = watch.health().await.unwrap_err();
            assert_eq!((code, words.contains("the server stops")), (14, true), "{words}");
        }
    });
    assert_eq!(served.finish(), 0, "no connection was cut off");
}

#[test]
fn a_health_watch_keeps_the_deadline_that_its_client_sets() {
    let served = Served::start(4096);
    with(async {
        let caller = Caller::tcp(served.grpc).await;
        let asked = framed(&health::HealthCheckRequest::default().encode_to_vec());
        let ended = caller.path(WATCH, &[("grpc-timeout", "50m")], asked).await;
        assert_eq!((ended.code, ended.messages.len()), (4, 1), "{ended:?}");
    });
}

#[test]
fn a_call_that_is_cancelled_frees_its_place_in_the_queue_and_so_does_a_stream() {
    let served = Served::start(4096);
    let (session, started, go) = gated();
    let slot = served.add("sum", sum_signature(), session);
    with(async {
        let caller = Caller::tcp(served.grpc).await;
        let call = |value: f32| {
            let caller = caller.clone();
            tokio::spawn(
                async move { caller.call("ModelInfer", &infer("sum", "", &[value])).await },
            )
        };
        let first = call(1.0);
        started.recv().unwrap();
        let second = call(2.0);
        let waiting = async |count: usize| {
            while slot.pending() != (count, 1) {
                tokio::task::yield_now().await;
            }
        };
        waiting(1).await;
        second.abort();
        waiting(0).await;
        let (mut requests, answers) = caller.stream().await;
        for value in [3.0, 4.0] {
            let request = infer("sum", "", &[value]).encode_to_vec();
            requests.send_data(framed(&request)).await.unwrap();
        }
        waiting(2).await;
        drop((requests, answers));
        waiting(0).await;
        go.send(()).unwrap();
        assert_eq!(first.await.unwrap().code, 0);
        assert_eq!((slot.totals().success, slot.totals().cancelled), (1, 3));
    });
}

#[test]
fn a_stream_answers_in_the_order_of_its_requests_and_goes_on_after_an_error() {
    let served = Served::start(4096);
    served.add("sum", sum_signature(), sum());
    with(async {
        for caller in [Caller::tcp(served.grpc).await, Caller::unix(&served.unix).await] {
            let (mut requests, mut answers) = caller.stream().await;
            // One that fails early stands behind ones that run, and one that fails late before others.
            let asked = [
                infer("sum", "0", &[1.0]),
                infer("nowhere", "1", &[1.0]),
                infer("sum", "2", &[-1.0]),
                infer("sum", "3", &[2.0, 2.0]),
            ];
            let mut wire: Vec<u8> = Vec::new();
            for request in &asked {
                wire.extend_from_slice(&framed(&request.encode_to_vec()));
            }
            wire.extend_from_slice(&framed(&[0x0B]));
            wire.extend_from_slice(&framed(&infer("sum", "5", &[5.0]).encode_to_vec()));
            // In pieces that keep to no message's bounds.
            for piece in wire.chunks(7) {
                requests.send_data(Bytes::copy_from_slice(piece)).await.unwrap();
            }
            let mut got = Vec::new();
            for _ in 0..6 {
                let answer = answers.next().await.unwrap();
                let id = answer.infer_response.id.clone();
                let value = match answer.error_message.as_str() {
                    "" => values(&answer.infer_response)[0].to_string(),
                    error => error.to_owned(),
                };
                got.push((id, value));
            }
            let ids: Vec<&str> = got.iter().map(|(id, _)| id.as_str()).collect();
            assert_eq!(ids, ["0", "1", "2", "3", "", "5"]);
            assert_eq!((got[0].1.as_str(), got[3].1.as_str(), got[5].1.as_str()), ("1", "4", "5"));
            assert!(got[1].1.contains("'nowhere' is not found"), "{got:?}");
            assert!(got[2].1.contains("Sqrt_3"), "{got:?}");
            assert!(got[4].1.contains("failed to parse"), "{got:?}");
            drop(requests);
            assert_eq!(answers.next().await.unwrap_err(), (0, String::new()));
        }
    });
}

#[test]
fn a_stream_has_so_many_requests_under_way_and_ends_with_one_that_is_too_large() {
    let served = Served::start(4096);
    let (tell, started) = mpsc::channel();
    let (go, wait) = mpsc::channel();
    let mut inner = sum();
    let run = move |inputs: &[(&str, &Tensor)], wanted: &[&str]| {
        tell.send(()).unwrap();
        wait.recv().unwrap();
        inner.run(inputs, wanted)
    };
    let slot = served.add("sum", sum_signature(), Box::new(run));
    with(async {
        let caller = Caller::tcp(served.grpc).await;
        let (mut requests, mut answers) = caller.stream().await;
        let all = 3 * STREAM_REQUESTS;
        let sending = tokio::spawn(async move {
            for n in 0..all {
                let request = infer("sum", &n.to_string(), &[n as f32]).encode_to_vec();
                requests.send_data(framed(&request)).await.unwrap();
            }
            requests.send_data(Bytes::from_static(&[0, 0, 0, 0x20, 0])).await.unwrap();
            requests
        });
        started.recv().unwrap();
        while slot.pending() != (STREAM_REQUESTS - 1, 1) {
            tokio::task::yield_now().await;
        }
        for n in 0..all {
            go.send(()).unwrap();
            let answer = answers.next().await.unwrap();
            assert_eq!(answer.infer_response.id, n.to_string());
            let (waiting, running) = slot.pending();
            assert!(waiting + running <= STREAM_REQUESTS, "{waiting} {running}");
        }
        let (code, words) = answers.next().await.unwrap_err();
        assert_eq!((code, words.contains("8192 bytes, more than the limit")), (8, true), "{words}");
        drop(sending.await.unwrap());
    });
}

#[test]
fn large_tensors_go_through_whole_and_aligned() {
    let served = Served::start(64 << 20);
    let signature = Signature {
        inputs: vec![spec("x", DType::F32, &[-1])],
        outputs: vec![spec("y", DType::F32, &[-1])],
    };
    let run = |inputs: &[(&str, &Tensor)], _: &[&str]| -> Result<Vec<Tensor>, ExecError> {
        let input = inputs[0].1;
        assert_eq!(input.data.as_ptr().addr() % 64, 0, "the input has to be copied again");
        Ok(vec![input.clone()])
    };
    served.add("echo", signature, Box::new(run));
    with(async {
        for caller in [Caller::tcp(served.grpc).await, Caller::unix(&served.unix).await] {
            for count in [300_000, 3_000_000] {
                let sent: Vec<f32> = (0..count).map(|n| n as f32 / 7.0).collect();
                let id = "x".repeat(count % 7);
                let answer: proto::ModelInferResponse =
                    caller.call("ModelInfer", &infer("echo", &id, &sent)).await.answer();
                assert!(values(&answer) == sent);
            }
        }
    });
}

#[test]
fn a_message_that_does_not_fit_beside_those_that_are_held_is_refused_and_memory_comes_back() {
    let served = Served::start(blochd::limits::HTTP_BODY_BYTES);
    served.add("sum", sum_signature(), sum());
    with(async {
        let caller = Caller::tcp(served.grpc).await;
        // Two announce the largest message that there may be, and send nothing more.
        let announced = (blochd::limits::HTTP_BODY_BYTES as u32).to_be_bytes();
        let announced = Bytes::from([&[0][..], &announced].concat());
        let announce = async || {
            let (mut sender, body) = http_body_util::channel::Channel::new(1);
            let path = "/inference.GRPCInferenceService/ModelInfer";
            let caller = caller.clone();
            let call = tokio::spawn(async move {
                let body = http_body_util::BodyExt::boxed(body);
                caller.send(path, &[], body).await
            });
            sender.send_data(announced.clone()).await.unwrap();
            (sender, call)
        };
        let mut held = vec![announce().await, announce().await];
        let fine = infer("sum", "", &[1.0; 1000]);
        let refused = loop {
            let ended = caller.call("ModelInfer", &fine).await;
            if ended.code != 0 {
                break ended;
            }
            // What was taken first may have left too little for one of the two.
            for one in &mut held {
                if one.1.is_finished() {
                    *one = announce().await;
                }
            }
        };
        assert_eq!((refused.code, refused.pushback.is_some()), (14, true));
        assert!(refused.message.contains("too many large requests are in flight"));
        for (sender, call) in held {
            call.abort();
            drop(sender);
        }
        while caller.call("ModelInfer", &fine).await.code != 0 {}
    });
}

#[test]
fn a_stopping_server_answers_what_it_has_begun_and_ends_its_streams() {
    let mut served = Served::start(4096);
    let (session, started, go) = gated();
    served.add("sum", sum_signature(), session);
    let (unix, grpc, stop) = (served.unix.clone(), served.grpc, served.stop.clone());
    with(async {
        let caller = Caller::tcp(grpc).await;
        let (mut requests, mut answers) = caller.stream().await;
        let request = infer("sum", "0", &[1.0]).encode_to_vec();
        requests.send_data(framed(&request)).await.unwrap();
        let idle = Caller::unix(&unix).await;
        assert_eq!(idle.call("ServerLive", &proto::ServerLiveRequest::default()).await.code, 0);
        started.recv().unwrap();
        stop.cancel();
        go.send(()).unwrap();
        assert_eq!(values(&answers.next().await.unwrap().infer_response), [1.0]);
        let (code, words) = answers.next().await.unwrap_err();
        assert_eq!((code, words.contains("the server stops")), (14, true), "{words}");
        drop(requests);
    });
    assert_eq!(served.finish(), 0, "no connection was cut off");
    assert!(!unix.exists() && std::net::TcpStream::connect(grpc).is_err());
}
