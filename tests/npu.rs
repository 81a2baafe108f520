//! The simulated accelerator that further tests run on: a real plugin of ONNX Runtime, held to what it claims to be.
//! Its numbers are those of the runtime's own kernels, its time goes by a rule, and it fails when told to.

#[allow(dead_code)]
#[path = "standin/npu/abi.rs"]
mod abi;
mod nets;
mod running;
mod standins;

use std::fs;
use std::mem::offset_of;
use std::time::{Duration, Instant};

use blochd::onnx::{attr_int as int, attr_ints};
use nets::{Image, Net, attr_float};
use running::model;
use standins::npu::{self, NAME, Npu, environment, on_cpu, run};

/// Compares a run with the processor's, for some batch sizes.
fn same(npu: &Npu, what: &str, model: &[u8], shape: &[usize]) {
    let (mut ours, mut theirs) = (npu.open(model).unwrap(), on_cpu(model));
    for batch in [1, 3] {
        let shape = [&[batch], shape].concat();
        let found = run(&mut ours, &shape, 7).unwrap();
        let expected = run(&mut theirs, &shape, 7).unwrap();
        assert_eq!(found.len(), expected.len(), "{what}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.len(), expected.len(), "{what}");
            let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
            let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart <= 1e-5 * largest.max(1.0), "{what}: {apart} of {largest}");
        }
    }
}

#[test]
fn the_slots_of_its_tables_are_those_of_the_bindings() {
    macro_rules! places {
        ($($name:ident)*) => {
            [$((stringify!($name), offset_of!(ort::sys::OrtApi, $name) / size_of::<usize>())),*]
        };
    }
    let places = places! {
        CreateStatus GetErrorMessage GetTensorMutableData CastTypeInfoToTensorInfo
        GetTensorElementType GetDimensionsCount GetDimensions GetTensorTypeAndShape
        KernelContext_GetInput KernelContext_GetOutput ReleaseStatus ReleaseTensorTypeAndShapeInfo
        ReadOpAttr GetValueInfoName GetValueInfoTypeInfo CreateKeyValuePairs AddKeyValuePair
        ReleaseKeyValuePairs HardwareDevice_Type GetEpApi Graph_GetNumNodes Graph_GetNodes
        Node_GetOperatorType Node_GetDomain Node_GetNumInputs Node_GetInputs Node_GetNumOutputs
        Node_GetOutputs Node_GetNumAttributes Node_GetAttributes OpAttr_GetType OpAttr_GetName
        GetTensorData
    };
    assert_eq!(abi::Api::SLOTS, &places[..]);
    // The bindings do not know the other table; its own order is in the header.
    assert!(abi::EpApi::SLOTS.is_sorted_by_key(|(_, at)| *at));
}

#[test]
fn it_shows_a_device_of_its_own_or_attaches_to_the_processor() {
    let own = Npu::new("");
    assert_eq!(own.devices(), [(true, 0x19e5, 0xd500)]);
    own.unregister().unwrap();
    assert_eq!(own.devices(), []);
    assert!(own.unregister().unwrap_err().contains("npu.virtual"), "it is not there any more");
    drop(own);
    assert_eq!(Npu::registered("npu", "").unwrap().devices(), [], "nobody allowed it one");
    let attached = Npu::registered("npu", "npu.attach = 1").unwrap();
    assert!(matches!(attached.devices()[..], [(false, _, _)]), "{:?}", attached.devices());
    same(&attached, "attached", &fs::read(model("fixtures/residual.onnx")).unwrap(), &[1, 28, 28]);
}

#[test]
fn networks_give_the_numbers_of_the_processor() {
    let npu = Npu::new("npu.time = 0");
    for (name, programs, operators, image) in [
        ("digits_resnet.onnx", 1, 52, [1, 28, 28]),
        ("digits_mobile.onnx", 1, 55, [1, 28, 28]),
        // Statistics are folded by the runtime before it asks anybody.
        ("digits_resnet_bn.onnx", 1, 52, [1, 28, 28]),
    ] {
        let before = [npu.count("simnpu_programs"), npu.count("simnpu_operators")];
        same(&npu, name, &fs::read(model(name)).unwrap(), &image);
        let made = [npu.count("simnpu_programs"), npu.count("simnpu_operators")];
        assert_eq!([made[0] - before[0], made[1] - before[1]], [programs, operators], "{name}");
    }
}

#[test]
fn operators_give_the_numbers_of_the_processor_whatever_their_attributes() {
    let npu = Npu::new("npu.time = 0");
    let try_out = |what: &str, make: &dyn Fn(&mut Net, &Image) -> String| {
        let mut net = Net::plain(3);
        let x = net.input(6, 9, 7);
        let end = make(&mut net, &x);
        net.output(&end);
        let before = npu.count("simnpu_operators");
        same(&npu, what, &net.model().encode_inline().unwrap(), &[6, 9, 7]);
        assert!(npu.count("simnpu_operators") > before, "{what} ran on the processor");
    };
    let window = |pads: [i64; 4], strides: [i64; 2], dilations: [i64; 2]| {
        let lists = [("pads", &pads[..]), ("strides", &strides), ("dilations", &dilations)];
        lists.map(|(name, list)| attr_ints(name, list)).to_vec()
    };
    for (pads, strides, dilations) in [
        ([0, 0, 0, 0], [1, 1], [1, 1]),
        ([1, 0, 2, 1], [2, 1], [1, 1]),
        ([2, 2, 2, 2], [1, 3], [2, 2]),
        ([3, 3, 0, 0], [2, 2], [1, 3]),
    ] {
        for (groups, channels) in [(1, 5), (2, 4), (6, 6), (6, 12)] {
            try_out(&format!("Conv {pads:?} {strides:?} {dilations:?} {groups}"), &|net, x| {
                let weight = net.weight(&[channels, 6 / groups, 3, 2]);
                let bias = net.bias(channels);
                let mut attributes = window(pads, strides, dilations);
                attributes.push(int("group", groups as i64));
                net.node("Conv", &[&x.name, &weight, &bias], attributes)
            });
        }
    }
    for kind in ["MaxPool", "AveragePool"] {
        for counts in [0, 1] {
            try_out(kind, &|net, x| {
                let mut attributes = vec![
                    attr_ints("kernel_shape", &[3, 2]),
                    attr_ints("pads", &[1, 0, 1, 1]),
                    attr_ints("strides", &[2, 1]),
                ];
                if kind == "AveragePool" {
                    attributes.push(int("count_include_pad", counts));
                }
                net.node(kind, &[&x.name], attributes)
            });
        }
    }
    for kind in ["Relu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "LeakyRelu"] {
        try_out(kind, &|net, x| net.node(kind, &[&x.name], Vec::new()));
    }
    for kind in ["Add", "Sub", "Mul", "Div"] {
        try_out(kind, &|net, x| {
            let other = net.reals(&[6, 1, 7], |chance| 2.0 + chance.real());
            net.node(kind, &[&other, &x.name], Vec::new())
        });
    }
    try_out("Clip", &|net, x| {
        let bounds = [net.reals(&[], |_| -0.25), net.reals(&[], |_| 0.5)];
        net.node("Clip", &[&x.name, &bounds[0], &bounds[1]], Vec::new())
    });
    try_out("Clip from above", &|net, x| {
        let most = net.reals(&[], |_| 0.5);
        net.node("Clip", &[&x.name, "", &most], Vec::new())
    });
    try_out("MatMul", &|net, x| {
        let weight = net.weight(&[6, 7, 4]);
        net.node("MatMul", &[&x.name, &weight], Vec::new())
    });
    try_out("Gemm", &|net, x| {
        let rows = net.node("GlobalAveragePool", &[&x.name], Vec::new());
        let rows = net.node("Flatten", &[&rows], Vec::new());
        let weight = net.weight(&[6, 5]);
        let bias = net.bias(5);
        let scales = vec![attr_float("alpha", 0.5), attr_float("beta", 2.0)];
        net.node("Gemm", &[&rows, &weight, &bias], scales)
    });
    try_out("Gemm, turned", &|net, x| {
        let flat = net.node("Flatten", &[&x.name], Vec::new());
        let weight = net.weight(&[5, 6 * 9 * 7]);
        net.node("Gemm", &[&flat, &weight], vec![int("transB", 1)])
    });
}

#[test]
fn what_it_does_not_claim_runs_on_the_processor() {
    let file = fs::read(model("digits_resnet.onnx")).unwrap();
    for (ops, operators, programs) in
        [("Conv", 21, None), ("Relu, Gemm", 20, None), ("", 0, Some(0))]
    {
        let npu = Npu::new(&format!("npu.time = 0\nnpu.ops = {ops}\n"));
        same(&npu, ops, &file, &[1, 28, 28]);
        assert_eq!(npu.count("simnpu_operators"), operators, "{ops}");
        let made = npu.count("simnpu_programs");
        assert!(programs.map_or(made > 1, |programs| made == programs), "{ops}: {made}");
    }
    // What it has no code for is never claimed, named or not.
    let npu = Npu::new("npu.time = 0\nnpu.ops = Conv, Concat, Softmax\n");
    same(&npu, "named", &fs::read(model("fixtures/concat_dense.onnx")).unwrap(), &[1, 28, 28]);
}

#[test]
fn time_goes_in_steps_of_16_channels_on_both_sides() {
    let npu = Npu::new("");
    let time = |from: usize, to: usize| {
        let mut net = Net::plain(5);
        let x = net.input(from, 8, 8);
        let y = net.conv(&x, to, 3, 1, 1);
        net.output(&y.name);
        let mut session = npu.open(&net.model().encode_inline().unwrap()).unwrap();
        npu.modelled(&mut session, &[1, from, 8, 8])
    };
    let whole = time(16, 16);
    assert_eq!([time(16, 1), time(1, 16), time(9, 15)], [whole; 3]);
    let two = time(16, 32);
    assert_eq!([time(16, 17), time(17, 16), time(32, 16)], [two; 3]);
    assert_eq!(time(17, 31), time(32, 32));
    // A product of equal work costs the same again; only the start is paid once.
    let start = 2 * whole - two;
    assert_eq!(time(33, 16) - start, 3 * (whole - start));
    assert!(start > 0 && whole > start, "{start} of {whole}");
    // Eight cores share a batch.
    let mut session = npu.session(&model("fixtures/residual.onnx"));
    let [one, eight, nine] = [1, 8, 9].map(|n| npu.modelled(&mut session, &[n, 1, 28, 28]));
    assert!(one == eight && nine > eight && nine < 2 * one, "{one} {eight} {nine}");
}

#[test]
fn a_run_takes_what_the_rule_says_and_more_when_the_card_is_hot() {
    let npu = Npu::new("");
    let mut session = npu.session(&model("fixtures/residual.onnx"));
    let shape = [1, 1, 28, 28];
    let mut taken = |scenario: &str| {
        npu.play(scenario);
        let begun = Instant::now();
        let modelled = npu.modelled(&mut session, &shape);
        assert!(begun.elapsed() >= Duration::from_nanos(modelled), "{scenario}: it took less");
        modelled
    };
    let cool = taken("temperature = 60");
    assert!(cool > 0);
    assert_eq!(taken("temperature = 84\nnpu.throttle = 300"), cool);
    assert_eq!(taken("temperature = 85\nnpu.throttle = 300"), 3 * cool);
    assert_eq!(taken("temperature = 85\nnpu.hot = 90"), cool);
    assert_eq!(taken("npu.time = 50"), cool / 2);
    assert_eq!(taken("npu.time = 0"), 0);
}

#[test]
fn every_further_shape_waits_for_its_program() {
    let npu = Npu::new("npu.time = 0\nnpu.compile_ms = 40\n");
    let mut session = npu.session(&model("fixtures/residual.onnx"));
    assert_eq!(npu.count("simnpu_builds"), 0, "a session alone builds nothing");
    for (batch, builds) in [(1, 1), (1, 1), (2, 2), (1, 2), (2, 2)] {
        let (before, begun) = (npu.count("simnpu_builds"), Instant::now());
        run(&mut session, &[batch, 1, 28, 28], 1).unwrap();
        assert_eq!(npu.count("simnpu_builds"), builds);
        let waited = Duration::from_millis(40 * (builds - before));
        assert!(begun.elapsed() >= waited, "it did not wait");
    }
}

#[test]
fn a_card_that_is_lost_fails_runs_and_sessions_until_it_is_back() {
    let npu = Npu::new("npu.time = 0");
    let path = model("fixtures/residual.onnx");
    let mut session = npu.session(&path);
    let shape = [1, 1, 28, 28];
    let expected = run(&mut session, &shape, 1).unwrap();
    for scenario in ["npu.vanished = 1", "gone = 0", "cards = 2\nnpu.gone = 0,1"] {
        npu.play(scenario);
        let words = run(&mut session, &shape, 1).unwrap_err();
        assert!(words.contains("device[0] is lost") && words.contains("507018"), "{words}");
        let words = npu.open(&fs::read(&path).unwrap()).map(|_| ()).unwrap_err();
        assert!(words.contains("CreateEp failed"), "{words}");
        npu.play("npu.time = 0");
        assert_eq!(run(&mut session, &shape, 1).unwrap(), expected, "after {scenario}");
        npu.session(&path);
    }
    // It looks by itself, a little later.
    npu.bench.play("gone = 0");
    let begun = Instant::now();
    while run(&mut session, &shape, 1).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it never looked");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn every_call_fails_on_demand_with_its_own_words() {
    for call in ["CreateEpFactories", "GetSupportedDevices"] {
        let scenario = format!("npu.error.{call} = 500002");
        let words = Npu::registered("npu.virtual", &scenario).map(|_| ()).unwrap_err();
        assert!(words.contains(&format!("{call} failed, ret=500002")), "{words}");
    }
    let npu = Npu::new("npu.time = 0");
    let file = fs::read(model("fixtures/residual.onnx")).unwrap();
    let mut session = npu.open(&file).unwrap();
    for call in ["CreateEp", "Compile"] {
        npu.play(&format!("npu.error.{call} = 500001"));
        let words = npu.open(&file).map(|_| ()).unwrap_err();
        assert!(words.contains(&format!("{call} failed, ret=500001")), "{words}");
    }
    npu.play("npu.error.Compute = 507011");
    let words = run(&mut session, &[1, 1, 28, 28], 1).unwrap_err();
    assert!(words.contains("Compute failed, ret=507011"), "{words}");
}

#[test]
fn it_can_be_registered_again_and_again_and_notes_what_it_does() {
    for _ in 0..3 {
        let npu = Npu::new("");
        let log = npu.bench.path().join("log");
        npu.play(&format!("npu.time = 0\nnpu.log = {}\n", log.display()));
        let mut session = npu.session(&model("fixtures/residual.onnx"));
        run(&mut session, &[1, 1, 28, 28], 1).unwrap();
        drop(session);
        let text = fs::read_to_string(log).unwrap();
        let own = std::process::id().to_string();
        let lines: Vec<&str> =
            text.lines().map(|line| line.strip_prefix(&own).unwrap().trim()).collect();
        assert_eq!(lines, ["program of 16 operators", "build [1, 1, 28, 28]", "run 0 ns"]);
        npu.unregister().unwrap();
        assert!(environment().devices().all(|device| device.ep().is_ok_and(|ep| ep != NAME)));
    }
    assert!(npu::environment().devices().count() > 0, "the processor stays");
}
