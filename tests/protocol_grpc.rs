//! The protocol's gRPC messages against the generated ones: every element type raw and typed, what a wrong
//! request is told, and that no bytes make the reader panic or ask for memory.

mod specs;

use blochd::onnx::{DType, Tensor};
use blochd::protocol::grpc::frame::PREFIX;
use blochd::protocol::grpc::proto::inference as proto;
use blochd::protocol::grpc::{Call, GrpcRequest, Message, raw_contents_begin, stream_error};
use blochd::protocol::{
    InferAnswer, InferRequest, RequestError, SharedRange, Signature, WantedOutput, datatype,
};
use blochd::units::Version;
use bytes::Bytes;
use proptest::prelude::*;
use proto::InferTensorContents as Contents;
use proto::infer_parameter::ParameterChoice;
use proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use specs::{ALL, spec};

/// `x` and `y` of one type and any length, as inputs and as outputs.
fn pair(dtype: DType) -> Signature {
    let both = vec![spec("x", dtype, &[-1]), spec("y", dtype, &[-1])];
    Signature { inputs: both.clone(), outputs: both }
}

fn single(dtype: DType) -> Signature {
    let one = vec![spec("x", dtype, &[-1])];
    Signature { inputs: one.clone(), outputs: one }
}

fn input(name: &str, dtype: DType, shape: &[i64]) -> InferInputTensor {
    let (name, datatype) = (name.to_owned(), datatype(dtype).to_owned());
    InferInputTensor { name, datatype, shape: shape.to_vec(), ..Default::default() }
}

fn typed(dtype: DType, shape: &[i64], contents: Contents) -> proto::ModelInferRequest {
    let input = InferInputTensor { contents: contents.into(), ..input("x", dtype, shape) };
    proto::ModelInferRequest { inputs: vec![input], ..Default::default() }
}

fn raw(inputs: &[InferInputTensor], contents: &[&[u8]]) -> proto::ModelInferRequest {
    let contents = contents.iter().map(|bytes| Bytes::copy_from_slice(bytes)).collect();
    let inputs = inputs.to_vec();
    proto::ModelInferRequest { inputs, raw_input_contents: contents, ..Default::default() }
}

fn parameter(choice: ParameterChoice) -> proto::InferParameter {
    proto::InferParameter { parameter_choice: Some(choice) }
}

fn text(text: &str) -> proto::InferParameter {
    parameter(ParameterChoice::StringParam(text.to_owned()))
}

fn number(number: i64) -> proto::InferParameter {
    parameter(ParameterChoice::Int64Param(number))
}

fn decode(
    request: &proto::ModelInferRequest,
    signature: &Signature,
) -> Result<InferRequest, RequestError> {
    GrpcRequest::parse(&request.encode_to_bytes())?.decode("m", signature)
}

/// What a request is told that is wrong.
fn told(request: &proto::ModelInferRequest, signature: &Signature) -> String {
    decode(request, signature).unwrap_err().to_string()
}

/// Two elements of each type, little-endian.
fn two(dtype: DType) -> Vec<u8> {
    match dtype.size() {
        Some(size) if dtype == DType::Bool => vec![1; 2 * size],
        Some(size) => (0..2 * size).map(|n| n as u8 + 0x40).collect(),
        None => [&[2, 0, 0, 0][..], "ö".as_bytes(), &[0; 4]].concat(),
    }
}

#[test]
fn raw_contents_of_every_type_are_slices_of_the_message() {
    for dtype in ALL {
        let data = two(dtype);
        let mut request = raw(&[input("y", dtype, &[2]), input("x", dtype, &[2])], &[&data, &data]);
        request.model_name = "m".to_owned();
        request.model_version = "3".to_owned();
        request.id = "17".to_owned();
        let message = request.encode_to_bytes();
        let read = GrpcRequest::parse(&message).unwrap();
        assert_eq!((read.model(), read.version(), read.id()), ("m", "3", "17"));
        assert_eq!(read.conversion_bytes(), 0);
        let decoded = read.decode("m", &pair(dtype)).unwrap();
        let names: Vec<&str> = decoded.inputs.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((decoded.id.as_str(), names), ("17", vec!["y", "x"]));
        let within = message.as_ptr_range();
        for (_, tensor) in &decoded.inputs {
            assert_eq!(
                (tensor.dtype, &tensor.shape[..], &tensor.data[..]),
                (dtype, &[2][..], &data[..])
            );
            assert!(within.contains(&tensor.data.as_ptr()), "{dtype:?} was copied");
        }
        let begin = raw_contents_begin(&message).unwrap();
        assert_eq!(message[begin..begin + data.len()], data);
        assert_eq!(raw_contents_begin(&message[..begin - 1]), None);
        assert_eq!(decoded.outputs, [WantedOutput::new("x", true), WantedOutput::new("y", true)]);
    }
}

#[test]
fn typed_contents_become_the_elements_that_raw_ones_are() {
    let cases = [
        (
            DType::Bool,
            Contents { bool_contents: vec![true, false], ..Default::default() },
            vec![1, 0],
        ),
        (
            DType::I8,
            Contents { int_contents: vec![-128, 127], ..Default::default() },
            vec![128, 127],
        ),
        (
            DType::I16,
            Contents { int_contents: vec![-2, 300], ..Default::default() },
            [(-2i16).to_le_bytes(), 300i16.to_le_bytes()].concat(),
        ),
        (
            DType::I32,
            Contents { int_contents: vec![i32::MIN, i32::MAX], ..Default::default() },
            [i32::MIN.to_le_bytes(), i32::MAX.to_le_bytes()].concat(),
        ),
        (
            DType::I64,
            Contents { int64_contents: vec![i64::MIN, 1], ..Default::default() },
            [i64::MIN.to_le_bytes(), 1i64.to_le_bytes()].concat(),
        ),
        (DType::U8, Contents { uint_contents: vec![0, 255], ..Default::default() }, vec![0, 255]),
        (
            DType::U16,
            Contents { uint_contents: vec![0, 65535], ..Default::default() },
            vec![0, 0, 255, 255],
        ),
        (
            DType::U32,
            Contents { uint_contents: vec![7, u32::MAX], ..Default::default() },
            [7u32.to_le_bytes(), u32::MAX.to_le_bytes()].concat(),
        ),
        (
            DType::U64,
            Contents { uint64_contents: vec![7, u64::MAX], ..Default::default() },
            [7u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat(),
        ),
        (
            DType::F32,
            Contents { fp32_contents: vec![1.5, f32::NAN], ..Default::default() },
            [1.5f32.to_le_bytes(), f32::NAN.to_le_bytes()].concat(),
        ),
        (
            DType::F64,
            Contents { fp64_contents: vec![1.5, -0.0], ..Default::default() },
            [1.5f64.to_le_bytes(), (-0f64).to_le_bytes()].concat(),
        ),
        (
            DType::String,
            Contents { bytes_contents: vec!["ö".into(), "".into()], ..Default::default() },
            two(DType::String),
        ),
    ];
    for (dtype, contents, expected) in cases {
        let decoded = decode(&typed(dtype, &[2], contents), &single(dtype)).unwrap();
        assert_eq!(decoded.inputs[0].1.data, expected, "{dtype:?}");
    }
    // An empty tensor has no contents to send.
    let empty = decode(&typed(DType::F32, &[0], Contents::default()), &single(DType::F32)).unwrap();
    assert_eq!((empty.inputs[0].1.len(), empty.inputs[0].1.data.len()), (0, 0));
}

#[test]
fn packed_floating_point_contents_stay_where_they_are_and_unpacked_ones_are_put_together() {
    let contents = Contents { fp32_contents: vec![0.5; 3000], ..Default::default() };
    let message = typed(DType::F32, &[3000], contents).encode_to_bytes();
    let request = GrpcRequest::parse(&message).unwrap();
    assert_eq!(request.conversion_bytes(), 0);
    let decoded = request.decode("m", &single(DType::F32)).unwrap();
    assert!(message.as_ptr_range().contains(&decoded.inputs[0].1.data.as_ptr()));
    // Field 6, one by one and then two packed; in field 5 of an input `x` of FP32 [3].
    let one = |value: f32| [&[6 << 3 | 5][..], &value.to_le_bytes()].concat();
    let packed = [&[6 << 3 | 2, 8][..], &2f32.to_le_bytes(), &3f32.to_le_bytes()].concat();
    for contents in [[one(1.0), packed.clone()].concat(), [packed, one(1.0)].concat()] {
        let mut input = input("x", DType::F32, &[3]).encode_to_vec();
        input.extend([5 << 3 | 2, contents.len() as u8]);
        input.extend(contents);
        let message = Bytes::from([&[5 << 3 | 2, input.len() as u8][..], &input].concat());
        let decoded = GrpcRequest::parse(&message).unwrap().decode("m", &single(DType::F32));
        let values = decoded.unwrap().inputs[0].1.to_f32().unwrap();
        assert!(values == [1.0, 2.0, 3.0] || values == [2.0, 3.0, 1.0], "{values:?}");
    }
}

#[test]
fn what_is_wrong_with_contents_is_told() {
    let ints = |values: &[i32]| Contents { int_contents: values.to_vec(), ..Default::default() };
    let floats = |count| Contents { fp32_contents: vec![1.0; count], ..Default::default() };
    let mixed = Contents { fp32_contents: vec![1.0; 2], ..ints(&[1]) };
    let no_text =
        Contents { bytes_contents: vec![Bytes::from_static(b"\xff")], ..Default::default() };
    let cases = [
        (typed(DType::I8, &[2], ints(&[1, 128])), DType::I8, "element 1: 128 is beyond INT8"),
        (
            typed(DType::I32, &[2], ints(&[1])),
            DType::I32,
            "has 1 elements, expected 2 for shape [2]",
        ),
        (typed(DType::I32, &[2], ints(&[1, 2, 3])), DType::I32, "has more elements, expected 2"),
        (typed(DType::F32, &[2], floats(1)), DType::F32, "has 1 elements, expected 2"),
        (typed(DType::F32, &[2], floats(3)), DType::F32, "has more elements, expected 2"),
        (typed(DType::F32, &[2], mixed), DType::F32, "its contents are not those of FP32"),
        (typed(DType::F16, &[2], floats(2)), DType::F16, "FP16 has no contents, send it raw"),
        (typed(DType::String, &[1], no_text), DType::String, "BYTES element 0 is not UTF-8"),
        (typed(DType::F32, &[2], Contents::default()), DType::F32, "expected either contents, or"),
        (
            raw(&[input("x", DType::F32, &[2])], &[&[0; 7]]),
            DType::F32,
            "7 bytes of binary data, expected 8",
        ),
        (raw(&[input("x", DType::Bool, &[2])], &[&[0, 2]]), DType::Bool, "neither 0 nor 1"),
        (
            raw(&[input("x", DType::String, &[1])], &[&[9, 0, 0, 0, 1]]),
            DType::String,
            "reaches beyond",
        ),
        (
            raw(&[input("x", DType::F32, &[2])], &[&[0; 8], &[0; 8]]),
            DType::F32,
            "2 raw_input_contents for 1 inputs",
        ),
        (
            raw(&[input("x", DType::F32, &[-2])], &[&[0; 8]]),
            DType::F32,
            "[-2] is not the shape of a tensor",
        ),
        (
            raw(&[input("x", DType::F32, &[i64::MAX])], &[&[0; 8]]),
            DType::F32,
            "is not the shape of a tensor",
        ),
        (raw(&[input("x", DType::F64, &[2])], &[&[0; 16]]), DType::F32, "data-type is 'FP64'"),
        (
            raw(&[input("z", DType::F32, &[2])], &[&[0; 8]]),
            DType::F32,
            "unexpected inference input 'z'",
        ),
        (
            raw(&[input("x", DType::F32, &[1]), input("x", DType::F32, &[1])], &[&[0; 4], &[0; 4]]),
            DType::F32,
            "more than once",
        ),
        (raw(&[], &[]), DType::F32, "missing 'x'"),
    ];
    for (request, dtype, words) in cases {
        let told = told(&request, &single(dtype));
        assert!(told.contains(words), "{words:?} is not in {told:?}");
    }
    let both = typed(DType::F32, &[2], floats(2));
    let both = proto::ModelInferRequest { raw_input_contents: vec![vec![0; 8].into()], ..both };
    assert!(told(&both, &single(DType::F32)).contains("expected either contents"));
    let one_raw = raw(&[input("x", DType::F32, &[1]), input("y", DType::F32, &[1])], &[&[0; 4]]);
    assert!(told(&one_raw, &pair(DType::F32)).contains("1 raw_input_contents for 2 inputs"));
}

#[test]
fn parameters_are_taken_or_refused() {
    let mut request = raw(&[input("x", DType::F32, &[1])], &[&[0; 4]]);
    let signature = single(DType::F32);
    let mut set = |name: &str, value| request.parameters.insert(name.to_owned(), value);
    set("timeout", number(1500));
    set("priority", parameter(ParameterChoice::Uint64Param(2)));
    set("sequence_id", text("s"));
    set("sequence_start", parameter(ParameterChoice::BoolParam(true)));
    set("mine", parameter(ParameterChoice::DoubleParam(0.5)));
    let decoded = decode(&request, &signature).unwrap();
    assert_eq!(decoded.timeout, Some(std::time::Duration::from_micros(1500)));
    assert_eq!(decoded.priority, 2);
    request.parameters.insert("timeout".to_owned(), number(0));
    assert_eq!(decode(&request, &signature).unwrap().timeout, None);
    for (name, value) in [("timeout", number(-1)), ("priority", text("high"))] {
        let mut wrong = request.clone();
        wrong.parameters.insert(name.to_owned(), value);
        assert!(told(&wrong, &signature).contains(&format!("'{name}' is not a whole number")));
    }
    let output = |name: &str, parameters: &[(&str, proto::InferParameter)]| {
        let own =
            |(name, value): &(&str, proto::InferParameter)| ((*name).to_owned(), value.clone());
        let parameters = parameters.iter().map(own).collect();
        InferRequestedOutputTensor { name: name.to_owned(), parameters }
    };
    request.outputs = vec![output("x", &[("classification", number(3))])];
    assert!(told(&request, &signature).contains("classification"));
    request.outputs = vec![output("q", &[])];
    assert!(told(&request, &signature).contains("unexpected inference output 'q'"));
    request.outputs = vec![output("x", &[]), output("x", &[])];
    assert!(told(&request, &signature).contains("requested more than once"));
    request.outputs = vec![output("x", &[("shared_memory_region", text("r"))])];
    assert!(told(&request, &signature).contains("needs the parameter shared_memory_byte_size"));
    let shared = [("shared_memory_region", text("r")), ("shared_memory_byte_size", number(8))];
    request.outputs = vec![output("x", &shared)];
    let wanted = &decode(&request, &signature).unwrap().outputs[0];
    let range = SharedRange { region: "r".to_owned(), offset: 0, size: 8 };
    assert_eq!(wanted.shared, Some(range));
}

#[test]
fn an_input_in_shared_memory_has_no_contents_and_is_checked_when_it_is_read() {
    let share = |name: &str, dtype: DType, size: i64| {
        let mut input = input(name, dtype, &[2]);
        input.parameters.insert("shared_memory_region".to_owned(), text("r"));
        input.parameters.insert("shared_memory_offset".to_owned(), number(16));
        input.parameters.insert("shared_memory_byte_size".to_owned(), number(size));
        input
    };
    let given = [share("x", DType::Bool, 2), input("y", DType::Bool, &[2])];
    let request = decode(&raw(&given, &[&[1, 0]]), &pair(DType::Bool)).unwrap();
    assert_eq!((request.shared_bytes(), request.inputs[1].1.data.len()), (2, 2));
    let read = |data: &'static [u8]| {
        let mut request = request.clone();
        request
            .read_shared(|range| {
                assert_eq!((range.region.as_str(), range.offset, range.size), ("r", 16, 2));
                Ok::<_, RequestError>(Bytes::from_static(data))
            })
            .map(|()| request.inputs[0].1.data.clone())
    };
    assert_eq!(read(&[0, 1]).unwrap(), [0, 1][..]);
    assert!(read(&[0, 2]).unwrap_err().to_string().contains("neither 0 nor 1"));
    assert!(read(&[0]).unwrap_err().to_string().contains("1 bytes of binary data, expected 2"));
    let wrong_size = raw(&[share("x", DType::F32, 7)], &[]);
    assert!(told(&wrong_size, &single(DType::F32)).contains("7 bytes of binary data, expected 8"));
    let mut both = share("x", DType::F32, 8);
    both.contents = Contents { fp32_contents: vec![1.0; 2], ..Default::default() }.into();
    assert!(told(&raw(&[both], &[]), &single(DType::F32)).contains("expected either contents"));
}

fn message(pieces: &[Bytes]) -> Bytes {
    let whole = pieces.concat();
    let announced = u32::from_be_bytes(whole[1..PREFIX].try_into().unwrap());
    assert_eq!((whole[0], announced as usize), (0, whole.len() - PREFIX));
    Bytes::from(whole).slice(PREFIX..)
}

#[test]
fn an_answer_is_read_back_by_the_generated_messages_and_large_outputs_are_not_copied() {
    let large = Tensor { dtype: DType::U8, shape: vec![2, 50_000], data: vec![7; 100_000].into() };
    let small = Tensor::from_f32(&[1, 2], &[1.5, 2.5]);
    let scalar = Tensor::from_i64(&[], &[9]);
    let range = SharedRange { region: "r".to_owned(), offset: 64, size: 4096 };
    let shared = WantedOutput { shared: Some(range), ..WantedOutput::new("shared", true) };
    let wanted = [
        WantedOutput::new("large", true),
        shared,
        WantedOutput::new("small", true),
        WantedOutput::new("scalar", true),
    ];
    let outputs = [large.clone(), small.clone(), small.clone(), scalar.clone()];
    let answer = InferAnswer {
        id: "7",
        model: "m",
        version: Version(3),
        wanted: &wanted,
        outputs: &outputs,
    };
    let pieces = answer.message(Call::Unary).unwrap();
    assert!(pieces.iter().any(|piece| piece.as_ptr() == large.data.as_ptr()));
    let read = proto::ModelInferResponse::decode_from_slice(&message(&pieces)).unwrap();
    assert_eq!(
        (read.model_name.as_str(), read.model_version.as_str(), read.id.as_str()),
        ("m", "3", "7")
    );
    let names: Vec<&str> = read.outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names, ["large", "shared", "small", "scalar"]);
    assert_eq!(read.outputs[0].shape, [2, 50_000]);
    assert_eq!(read.outputs[0].datatype, "UINT8");
    assert!(read.outputs[3].shape.is_empty());
    let raw: Vec<Bytes> =
        [&large.data, &Bytes::new(), &small.data, &scalar.data].map(Bytes::clone).into();
    assert_eq!(read.raw_output_contents, raw);
    let parameters = &read.outputs[1].parameters;
    assert_eq!(parameters["shared_memory_region"], text("r"));
    assert_eq!(parameters["shared_memory_offset"], number(64));
    assert_eq!(parameters["shared_memory_byte_size"], number(8));
    let streamed = answer.message(Call::Stream).unwrap();
    let streamed = proto::ModelStreamInferResponse::decode_from_slice(&message(&streamed)).unwrap();
    assert_eq!(streamed.error_message, "");
    assert_eq!(streamed.infer_response.into_option(), Some(read));
    let error = stream_error("it is größer", "m", "7");
    let error = proto::ModelStreamInferResponse::decode_from_slice(&message(&[error])).unwrap();
    assert_eq!(error.error_message, "it is größer");
    assert_eq!(error.infer_response.as_option().unwrap().id, "7");
}

/// Each claim costs two bytes of a message, and must not cost more than the tensors that are allowed.
#[test]
fn a_message_of_many_empty_tensors_is_refused_before_they_are_kept() {
    for field in [5u8, 6, 7] {
        let message: Bytes = [field << 3 | 2, 0].repeat(100_000).into();
        let refused = GrpcRequest::parse(&message).unwrap_err().to_string();
        assert!(refused.contains("more than 4096"), "{refused}");
    }
    let mut axes = input("x", DType::F32, &[1; 65]).encode_to_vec();
    axes.splice(0..0, [5 << 3 | 2, axes.len() as u8]);
    let refused = GrpcRequest::parse(&axes.into()).unwrap_err().to_string();
    assert!(refused.contains("more than 64 axes"), "{refused}");
    // One byte a number here, eight in memory.
    let count = 5 << 20;
    let contents = Contents { int64_contents: vec![1; count], ..Default::default() };
    let told = told(&typed(DType::I64, &[count as i64], contents), &single(DType::I64));
    assert!(told.contains("send raw_input_contents"), "{told}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        raw_contents_begin(&bytes);
        if let Ok(request) = GrpcRequest::parse(&bytes.into()) {
            for dtype in ALL {
                let _ = request.decode("m", &single(dtype));
            }
        }
    }

    #[test]
    fn no_damage_makes_the_reader_panic(
        at in 0usize..200,
        byte in any::<u8>(),
        cut in 0usize..200,
    ) {
        let contents = Contents { int_contents: vec![-1, 300], ..Default::default() };
        let mut request = typed(DType::I32, &[2], contents);
        request.parameters.insert("timeout".to_owned(), number(7));
        request.raw_input_contents = vec![vec![0; 8].into()];
        let mut bytes = request.encode_to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(cut);
        if let Ok(request) = GrpcRequest::parse(&bytes.into()) {
            let _ = request.decode("m", &single(DType::I32));
        }
    }
}
