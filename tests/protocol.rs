//! The forms of the Open Inference Protocol: golden files for the JSON, round trips for every element
//! type, and what a wrong request is told.

mod specs;

use blochd::onnx::{DType, Tensor};
use blochd::protocol::{
    AnswerError, Dim, InferAnswer, InferRequest, ModelConfig, ModelMetadata, RequestError,
    ServerMetadata, Signature, TensorSpec, WantedOutput, datatype, dtype_of,
};
use blochd::units::Version;
use bytes::Bytes;
use proptest::prelude::*;
use specs::{ALL, spec};

/// Compares with `tests/golden/protocol/<name>`; `UPDATE_EXPECT=1` writes it instead.
fn golden(name: &str, actual: &str) {
    let path = format!("{}/tests/golden/protocol/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, expected, "{path} (UPDATE_EXPECT=1 writes it)");
}

/// BYTES elements as they travel.
fn byte_strings(elements: &[&[u8]]) -> Bytes {
    let mut data = Vec::new();
    for element in elements {
        data.extend_from_slice(&u32::try_from(element.len()).unwrap().to_le_bytes());
        data.extend_from_slice(element);
    }
    data.into()
}

fn tensor(dtype: DType, shape: &[usize], data: impl Into<Bytes>) -> Tensor {
    Tensor { dtype, shape: shape.to_vec(), data: data.into() }
}

fn le<const N: usize>(elements: &[[u8; N]]) -> Vec<u8> {
    elements.concat()
}

/// A tensor of two elements of each type, extremes first.
fn two_of(dtype: DType) -> Tensor {
    let data: Bytes = match dtype {
        DType::F32 => le(&[f32::MAX.to_le_bytes(), (-0.1f32).to_le_bytes()]).into(),
        DType::F64 => le(&[f64::MIN_POSITIVE.to_le_bytes(), 0.1f64.to_le_bytes()]).into(),
        DType::F16 => le(&[half::f16::MAX.to_le_bytes(), half::f16::NEG_ONE.to_le_bytes()]).into(),
        DType::BF16 => le(&[half::bf16::MAX.to_le_bytes(), half::bf16::ONE.to_le_bytes()]).into(),
        DType::U8 => vec![u8::MAX, 0].into(),
        DType::I8 => vec![i8::MIN.cast_unsigned(), 1].into(),
        DType::U16 => le(&[u16::MAX.to_le_bytes(), 1u16.to_le_bytes()]).into(),
        DType::I16 => le(&[i16::MIN.to_le_bytes(), 1i16.to_le_bytes()]).into(),
        DType::U32 => le(&[u32::MAX.to_le_bytes(), 1u32.to_le_bytes()]).into(),
        DType::I32 => le(&[i32::MIN.to_le_bytes(), 1i32.to_le_bytes()]).into(),
        DType::U64 => le(&[u64::MAX.to_le_bytes(), 1u64.to_le_bytes()]).into(),
        DType::I64 => le(&[i64::MIN.to_le_bytes(), 1i64.to_le_bytes()]).into(),
        DType::Bool => vec![1, 0].into(),
        DType::String => byte_strings(&["größe\n\"".as_bytes(), b""]),
    };
    tensor(dtype, &[2], data)
}

fn answer(id: &str, outputs: &[(WantedOutput, Tensor)]) -> Result<(String, Vec<u8>), AnswerError> {
    let (wanted, tensors): (Vec<_>, Vec<_>) = outputs.iter().cloned().unzip();
    let (model, version) = ("digits", Version(3));
    let encoded =
        InferAnswer { id, model, version, wanted: &wanted, outputs: &tensors }.encode()?;
    let mut body = encoded.body;
    let tail = body.split_off(encoded.json_length.unwrap_or(body.len()));
    Ok((String::from_utf8(body).unwrap(), tail))
}

fn wanted(name: &str, binary: bool) -> WantedOutput {
    WantedOutput::new(name, binary)
}

#[test]
fn answers_have_the_protocols_json_form_for_every_element_type() {
    let named = |dtype, binary| (wanted(datatype(dtype), binary), two_of(dtype));
    let json: Vec<_> =
        ALL.into_iter().filter(|d| *d != DType::BF16).map(|d| named(d, false)).collect();
    let (text, tail) = answer("request-7", &json).unwrap();
    assert!(tail.is_empty());
    golden("answer.json", &text);
    let mut mixed = vec![named(DType::F32, false), named(DType::BF16, true)];
    mixed.push(named(DType::String, true));
    let (text, tail) = answer("", &mixed).unwrap();
    golden("answer_binary.json", &text);
    let expected = [&two_of(DType::BF16).data[..], &two_of(DType::String).data[..]].concat();
    assert_eq!(tail, expected);
    // NaN and infinity have no JSON form.
    let odd = [f32::NAN, f32::INFINITY, 1.0];
    let (text, _) = answer("", &[(wanted("y", false), Tensor::from_f32(&[3], &odd))]).unwrap();
    golden("answer_not_finite.json", &text);
}

#[test]
fn what_json_cannot_hold_is_refused_by_name() {
    let bf16 = [(wanted("y", false), two_of(DType::BF16))];
    assert_eq!(
        answer("", &bf16).unwrap_err().to_string(),
        "output 'y' is BF16: ask for binary_data"
    );
    let raw = tensor(DType::String, &[1], byte_strings(&[b"\xff\xfe"]));
    let error = answer("", &[(wanted("y", false), raw)]).unwrap_err();
    assert!(matches!(error, AnswerError::NotText { .. }), "{error}");
}

#[test]
fn metadata_and_configuration_have_the_protocols_form() {
    let signature = Signature {
        inputs: vec![spec("image", DType::F32, &[-1, 1, 28, 28]), spec("text", DType::String, &[])],
        outputs: vec![spec("scores", DType::F32, &[-1, 10])],
    };
    let text = |value: serde_json::Value| format!("{value:#}\n");
    let metadata = ModelMetadata::of("digits", &[Version(1), Version(12)], &signature);
    golden("model_metadata.json", &text(serde_json::to_value(metadata).unwrap()));
    let config = ModelConfig::of("digits", &signature, 2);
    golden("model_config.json", &text(serde_json::to_value(config).unwrap()));
    let server = serde_json::to_value(ServerMetadata::this(true)).unwrap();
    assert_eq!(server["name"], "blochd");
    assert_eq!(server["version"], env!("CARGO_PKG_VERSION"));
}

fn digits() -> Signature {
    Signature {
        inputs: vec![spec("x", DType::F32, &[-1, 2]), spec("mask", DType::Bool, &[2])],
        outputs: vec![spec("y", DType::F32, &[-1, 2]), spec("z", DType::I64, &[1])],
    }
}

fn decode(json: &str) -> Result<InferRequest, RequestError> {
    InferRequest::decode(&Bytes::copy_from_slice(json.as_bytes()), None, "digits", &digits())
}

fn with_binary(json: &str, tail: &[u8]) -> Result<InferRequest, RequestError> {
    let body = [json.as_bytes(), tail].concat().into();
    InferRequest::decode(&body, Some(json.len()), "digits", &digits())
}

#[test]
fn a_request_is_read_whatever_the_order_and_nesting_of_its_parts() {
    let flat = decode(
        r#"{"id":"7","inputs":[
            {"name":"x","shape":[2,2],"datatype":"FP32","data":[1,2.5,-3e1,0]},
            {"name":"mask","shape":[2],"datatype":"BOOL","data":[true,0]}]}"#,
    )
    .unwrap();
    assert_eq!(flat.id, "7");
    assert_eq!(flat.inputs[0].1, Tensor::from_f32(&[2, 2], &[1.0, 2.5, -30.0, 0.0]));
    assert_eq!(flat.inputs[1].1, tensor(DType::Bool, &[2], vec![1, 0]));
    assert_eq!(flat.outputs, [wanted("y", false), wanted("z", false)], "all, where none is named");
    assert_eq!((flat.timeout, flat.priority), (None, 0));
    let nested = decode(
        r#"{"outputs":[{"parameters":{"binary_data":false},"name":"z"},{"name":"y"}],
            "parameters":{"binary_data_output":true,"timeout":1500,"priority":2,"mine":{"a":[1]}},
            "unknown":[{}],
            "inputs":[
            {"data":[[true],[false]],"datatype":"BOOL","shape":[2],"name":"mask"},
            {"data":[[1,2.5],[-30,0]],"datatype":"FP32","shape":[2,2],"name":"x"}]}"#,
    )
    .unwrap();
    assert_eq!(nested.inputs[1], flat.inputs[0]);
    assert_eq!(nested.inputs[0], flat.inputs[1]);
    assert_eq!(nested.outputs, [wanted("z", false), wanted("y", true)]);
    assert_eq!(nested.timeout, Some(std::time::Duration::from_micros(1500)));
    assert_eq!(nested.priority, 2);
}

#[test]
fn binary_inputs_are_slices_of_the_body() {
    let json = r#"{"inputs":[
        {"name":"mask","shape":[2],"datatype":"BOOL","parameters":{"binary_data_size":2}},
        {"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}"#;
    let tail = [&[1u8, 0][..], &1f32.to_le_bytes(), &2f32.to_le_bytes()].concat();
    let body: Bytes = [json.as_bytes(), &tail].concat().into();
    let request = InferRequest::decode(&body, Some(json.len()), "digits", &digits()).unwrap();
    assert_eq!(request.inputs[1].1, Tensor::from_f32(&[1, 2], &[1.0, 2.0]));
    let within = body.as_ptr_range();
    assert!(within.contains(&request.inputs[1].1.data.as_ptr()), "not copied");
}

/// A request whose `x` is `x` and whose mask is right.
fn with_x(x: &str) -> String {
    let mask = r#"{"name":"mask","shape":[2],"datatype":"BOOL","data":[true,false]}"#;
    format!(r#"{{"inputs":[{mask},{x}]}}"#)
}

#[test]
fn a_wrong_request_is_told_which_input_and_what_was_expected() {
    let mut lines = String::new();
    let mut told = |json: &str, outcome: Result<InferRequest, RequestError>| {
        let error = outcome.expect_err(json).to_string();
        lines.push_str(&format!("{json}\n  -> {error}\n"));
    };
    for json in [
        "",
        "[]",
        r#"{"inputs":{}}"#,
        r#"{"inputs":[]}"#,
        r#"{"inputs":[{"name":"x"}]}"#,
        r#"{"inputs":[],"parameters":{"timeout":"soon"}}"#,
    ] {
        told(json, decode(json));
    }
    for x in [
        r#"{"name":"q","shape":[1],"datatype":"FP32","data":[1]}"#,
        r#"{"name":"mask","shape":[2],"datatype":"BOOL","data":[true,true]}"#,
        r#"{"name":"x","shape":[1,2],"datatype":"FLOAT","data":[1,2]}"#,
        r#"{"name":"x","shape":[1,2],"datatype":"FP64","data":[1,2]}"#,
        r#"{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,3]}"#,
        r#"{"name":"x","shape":[2],"datatype":"FP32","data":[1,2]}"#,
        r#"{"name":"x","shape":[-1,2],"datatype":"FP32","data":[1,2]}"#,
        r#"{"name":"x","shape":[4611686018427387904,2],"datatype":"FP32","data":[1,2]}"#,
        r#"{"name":"x","shape":[1099511627776,2],"datatype":"FP32","data":[1,2]}"#,
        r#"{"name":"x","shape":[1,2],"datatype":"FP32"}"#,
        r#"{"name":"x","shape":[1,2],"datatype":"FP32","data":[1]}"#,
        r#"{"name":"x","shape":[3,2],"datatype":"FP32","data":[1.125,2.125,3.125]}"#,
        r#"{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2,3]}"#,
        r#"{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,"2"]}"#,
        r#"{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,null]}"#,
        r#"{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,true]}"#,
        r#"{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,1e39]}"#,
        r#"{"name":"x","shape":[1,2],"datatype":"FP32","data":{"0":1}}"#,
        r#"{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"shared_memory_region":"r"}}"#,
        r#"{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}"#,
    ] {
        told(x, decode(&with_x(x)));
    }
    let x = r#"{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}"#;
    for outputs in [
        r#"[{"name":"w"}]"#,
        r#"[{"name":"y"},{"name":"y"}]"#,
        r#"[{"name":"y","parameters":{"classification":3}}]"#,
    ] {
        let json = with_x(x).replacen('{', &format!(r#"{{"outputs":{outputs},"#), 1);
        told(outputs, decode(&json));
    }
    let binary = |size: u64, more: &str| {
        let parameters = format!(r#""parameters":{{"binary_data_size":{size}}}{more}"#);
        with_x(&format!(r#"{{"name":"x","shape":[1,2],"datatype":"FP32",{parameters}}}"#))
    };
    for (what, json, tail) in [
        ("8 bytes claimed, 7 sent", binary(8, ""), &[0u8; 7][..]),
        ("7 bytes claimed and sent", binary(7, ""), &[0; 7]),
        ("8 bytes claimed, 9 sent", binary(8, ""), &[0; 9]),
        ("a size beyond every memory", binary(u64::MAX, ""), &[0; 8]),
        ("data and binary data", binary(8, r#","data":[1,2]"#), &[0; 8]),
    ] {
        told(what, with_binary(&json, tail));
    }
    let header = InferRequest::decode(&Bytes::from_static(b"{}"), Some(3), "digits", &digits());
    told("a header length of 3 before 2 bytes", header);
    golden("errors.txt", &lines);
}

fn one(dtype: DType, shape: &[i64]) -> Signature {
    Signature { inputs: vec![spec("x", dtype, shape)], outputs: Vec::new() }
}

#[test]
fn integers_are_taken_within_their_range_only() {
    let read = |dtype: DType, value: &str| {
        let word = datatype(dtype);
        let json = format!(
            r#"{{"inputs":[{{"name":"x","shape":[1],"datatype":"{word}","data":[{value}]}}]}}"#
        );
        InferRequest::decode(&json.into(), None, "m", &one(dtype, &[1])).is_ok()
    };
    let bounds = [
        (DType::U8, "0", "255", "-1", "256"),
        (DType::I8, "-128", "127", "-129", "128"),
        (DType::U16, "0", "65535", "-1", "65536"),
        (DType::I16, "-32768", "32767", "-32769", "32768"),
        (DType::U32, "0", "4294967295", "-1", "4294967296"),
        (DType::I32, "-2147483648", "2147483647", "-2147483649", "2147483648"),
        (DType::U64, "0", "18446744073709551615", "-1", "18446744073709551616"),
        (DType::I64, "-9223372036854775808", "9223372036854775807", "-9223372036854775809", "1.0"),
        (DType::Bool, "0", "1", "-1", "2"),
        (DType::F16, "-65504", "65504", "65536", "\"1\""),
        (DType::String, "\"\"", "\"a\"", "1", "null"),
    ];
    for (dtype, low, high, below, above) in bounds {
        assert!(read(dtype, low) && read(dtype, high), "{dtype:?}");
        assert!(!read(dtype, below) && !read(dtype, above), "{dtype:?}");
    }
    assert!(!read(DType::BF16, "1"), "BF16 is binary only");
}

#[test]
fn binary_strings_and_booleans_are_checked_element_by_element() {
    let read = |dtype: DType, shape: &str, data: &[u8]| {
        let (word, size) = (datatype(dtype), data.len());
        let json = format!(
            r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{word}",
                "parameters":{{"binary_data_size":{size}}}}}]}}"#
        );
        let body = [json.as_bytes(), data].concat().into();
        let decoded = InferRequest::decode(&body, Some(json.len()), "m", &one(dtype, &[-1]));
        decoded.map(|_| ()).map_err(|error| error.to_string())
    };
    let two = byte_strings(&[b"a", b""]);
    assert_eq!(read(DType::String, "[2]", &two), Ok(()));
    assert!(read(DType::String, "[3]", &two).unwrap_err().contains("2 BYTES elements, expected 3"));
    for lie in [&[255u8, 255, 255, 255, 1][..], &[5, 0, 0, 0, 1], &[1, 0]] {
        assert!(read(DType::String, "[1]", lie).unwrap_err().contains("reaches beyond the data"));
    }
    let bytes = byte_strings(&[b"a", b"\xff\xfe"]);
    assert!(read(DType::String, "[2]", &bytes).unwrap_err().contains("element 1 is not UTF-8"));
    assert!(read(DType::Bool, "[2]", &[1, 2]).unwrap_err().contains("neither 0 nor 1"));
    let empty = read(DType::F32, "[0]", &[]);
    assert_eq!(empty, Ok(()), "no element is a tensor, too");
    assert!(read(DType::F32, "[4611686018427387904]", &[]).is_err());
}

#[test]
fn an_input_without_a_rank_takes_every_shape() {
    let mut signature = one(DType::U8, &[]);
    signature.inputs[0].shape = None;
    for (shape, data) in [("[]", "7"), ("[1]", "[7]"), ("[1,2,1]", "[7,8]")] {
        let json = format!(
            r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"UINT8","data":{data}}}]}}"#
        );
        let request = InferRequest::decode(&json.into(), None, "m", &signature).unwrap();
        assert_eq!(request.inputs[0].1.data[0], 7, "{shape}");
    }
    assert_eq!(signature.inputs[0].dims(), [-1]);
}

#[test]
fn dimensions_of_one_name_have_one_size() {
    let batch = |name: &str| TensorSpec {
        name: name.to_owned(),
        dtype: DType::U8,
        shape: Some(vec![Dim::Free("batch".to_owned()), Dim::Free(String::new())]),
    };
    let signature = Signature { inputs: vec![batch("a"), batch("b")], outputs: Vec::new() };
    let read = |b: &str| {
        let json = format!(
            r#"{{"inputs":[{{"name":"a","shape":[2,1],"datatype":"UINT8","data":[1,2]}},
                {{"name":"b","shape":{b},"datatype":"UINT8","data":[1,2]}}]}}"#
        );
        let request = InferRequest::decode(&json.into(), None, "m", &signature);
        request.map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(read("[2,1]"), Ok(()));
    let words = "input 'b': dimension 'batch' is 1, but 2 in input 'a'";
    assert!(read("[1,2]").unwrap_err().starts_with(words));
}

#[test]
fn a_body_without_json_is_the_data_of_the_only_input() {
    let read = |dtype: DType, shape: &[i64], data: &[u8]| {
        let signature = Signature {
            inputs: vec![spec("x", dtype, shape)],
            outputs: vec![spec("y", DType::F32, &[1])],
        };
        let body = Bytes::copy_from_slice(data);
        InferRequest::decode(&body, Some(0), "m", &signature)
    };
    let request = read(DType::U16, &[-1, 2], &[1, 0, 2, 0, 3, 0, 4, 0]).unwrap();
    assert_eq!(request.inputs[0].1.shape, [2, 2]);
    assert_eq!(request.outputs, [wanted("y", true)]);
    assert!(read(DType::F32, &[2], &[0; 8]).is_ok());
    let text = read(DType::String, &[1], "größe".as_bytes()).unwrap();
    assert_eq!(text.inputs[0].1.data, byte_strings(&["größe".as_bytes()]));
    let told = |dtype: DType, shape: &[i64], data: &[u8]| {
        read(dtype, shape, data).unwrap_err().to_string()
    };
    assert!(told(DType::F32, &[2], &[0; 4]).contains("do not fill input 'x'"));
    assert!(told(DType::F32, &[2], &[0; 16]).contains("do not fill input 'x'"));
    assert!(told(DType::F32, &[0, -1], &[]).contains("do not fill input 'x'"));
    assert!(told(DType::F32, &[-1], &[0; 3]).contains("no multiple"));
    assert!(told(DType::F32, &[-1, -1], &[]).contains("2 free dimensions"));
    assert!(told(DType::Bool, &[1], &[2]).contains("neither 0 nor 1"));
    assert!(told(DType::String, &[1], &[255]).contains("not UTF-8"));
    let two = InferRequest::decode(&Bytes::new(), Some(0), "digits", &digits()).unwrap_err();
    assert!(two.to_string().contains("it has 2 inputs, not one"));
}

#[test]
fn lists_beyond_their_limits_are_refused() {
    let rank = vec!["1"; blochd::limits::TENSOR_RANK + 1].join(",");
    let x = format!(r#"{{"name":"x","shape":[{rank}],"datatype":"FP32","data":[1]}}"#);
    assert!(decode(&with_x(&x)).unwrap_err().to_string().contains("at most 64"));
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let x = format!(r#"{{"name":"x","shape":[1,2],"datatype":"FP32","data":{deep}}}"#);
    assert!(decode(&with_x(&x)).unwrap_err().to_string().contains("recursion limit"));
}

/// Random elements of `dtype`: those of JSON are finite and text.
fn data(dtype: DType, count: usize, binary: bool) -> BoxedStrategy<Vec<u8>> {
    let finite = move |bits: u64| match dtype {
        DType::F32 => f32::from_bits(bits as u32).is_finite(),
        DType::F64 => f64::from_bits(bits).is_finite(),
        DType::F16 => half::f16::from_bits(bits as u16).is_finite(),
        _ => true,
    };
    match (dtype, dtype.size()) {
        (DType::Bool, _) => prop::collection::vec(0u8..2, count).boxed(),
        (_, Some(size)) => {
            let element = any::<u64>().prop_map(move |bits| {
                let bits = if binary || finite(bits) { bits } else { 0 };
                bits.to_le_bytes()[..size].to_vec()
            });
            prop::collection::vec(element, count).prop_map(|all| all.concat()).boxed()
        }
        (_, None) => prop::collection::vec(any::<String>(), count)
            .prop_map(|all| {
                byte_strings(&all.iter().map(String::as_bytes).collect::<Vec<_>>()).into()
            })
            .boxed(),
    }
}

fn any_tensor() -> impl Strategy<Value = (bool, Tensor)> {
    let shape = prop::collection::vec(0usize..4, 0..4);
    (prop::sample::select(ALL.to_vec()), shape, any::<bool>()).prop_flat_map(
        |(dtype, shape, binary)| {
            let binary = binary || dtype == DType::BF16;
            let count = shape.iter().product();
            data(dtype, count, binary).prop_map(move |data| {
                (binary, Tensor { dtype, shape: shape.clone(), data: data.into() })
            })
        },
    )
}

proptest! {
    #[test]
    fn every_tensor_comes_back_as_it_was_sent(
        tensors in prop::collection::vec(any_tensor(), 1..5),
    ) {
        let name = |n: usize| format!("t{n}");
        let dims = |t: &Tensor| t.shape.iter().map(|dim| *dim as i64).collect::<Vec<_>>();
        let inputs = tensors.iter().enumerate();
        let inputs = inputs.map(|(n, (_, t))| spec(&name(n), t.dtype, &dims(t))).collect();
        let signature = Signature { inputs, outputs: Vec::new() };
        let outputs: Vec<_> = tensors.iter().enumerate()
            .map(|(n, (binary, tensor))| (wanted(&name(n), *binary), tensor.clone())).collect();
        // An answer's outputs have the form of a request's inputs.
        let (json, tail) = answer("", &outputs).unwrap();
        let json = json.replacen("\"outputs\"", "\"inputs\"", 1);
        let body: Bytes = [json.as_bytes(), &tail].concat().into();
        let decoded = InferRequest::decode(&body, Some(json.len()), "m", &signature).unwrap();
        for ((_, sent), (_, got)) in outputs.iter().zip(&decoded.inputs) {
            prop_assert_eq!(sent, got);
        }
    }

    #[test]
    fn no_body_makes_the_reader_panic(
        cut in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        json_length in prop::option::of(0usize..300),
    ) {
        let size = r#""parameters":{"binary_data_size":8}"#;
        let x = format!(r#"{{"name":"x","shape":[1,2],"datatype":"FP32",{size}}}"#);
        let mut body = with_x(&x).into_bytes();
        let whole = body.len();
        body.extend_from_slice(&[0; 8]);
        let place = at.index(body.len());
        body[place] = byte;
        body.truncate(cut.index(body.len() + 1));
        let length = json_length.or(Some(whole));
        let _ = InferRequest::decode(&body.into(), length, "digits", &digits());
    }
}

#[test]
fn every_element_type_has_its_word() {
    for dtype in ALL {
        assert_eq!(dtype_of(datatype(dtype)), Some(dtype));
    }
    assert_eq!(dtype_of("FLOAT"), None);
}
