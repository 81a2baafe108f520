//! What the runtime says of a graph, read into a form of our own.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{null, null_mut};

use super::abi::{self, Api, Opaque, Status};

/// The words of a status that tells of a failure, which is released.
pub fn checked(api: Api, status: Status) -> Result<(), String> {
    if status.is_null() {
        return Ok(());
    }
    // SAFETY: a status that is not null is ours, carries a text, and is released once.
    unsafe {
        let words = text(api.GetErrorMessage(status));
        api.ReleaseStatus(status);
        Err(words)
    }
}

/// # Safety
/// `at` is null or a text that ends in zero.
pub unsafe fn text(at: *const c_char) -> String {
    if at.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned()
}

/// What an attribute holds, as far as operators here have any.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute {
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Text(String),
}

/// One operator of a graph.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// With its domain before it, unless that is ONNX's own.
    pub kind: String,
    pub attributes: BTreeMap<String, Attribute>,
    /// Empty where an optional one is absent.
    pub inputs: Vec<Value>,
    pub outputs: Vec<Value>,
}

/// An input or output.
#[derive(Debug, Clone, Default)]
pub struct Value {
    pub name: String,
    /// Whether it is a tensor of f32.
    pub is_float: bool,
    /// Number of dimensions, where it is known.
    pub rank: usize,
}

/// # Safety
/// `graph` is one that the runtime hands over for this call.
pub unsafe fn nodes(api: Api, graph: Opaque) -> Result<Vec<Opaque>, String> {
    // SAFETY: `graph` is valid, and `list` gives room for as many as there are.
    unsafe {
        list(
            api,
            |to| api.Graph_GetNumNodes(graph, to),
            |to, room| api.Graph_GetNodes(graph, to, room),
        )
    }
}

/// # Safety
/// `node` belongs to a graph that the runtime hands over for this call.
pub unsafe fn node(api: Api, node: Opaque) -> Result<Node, String> {
    let (mut kind, mut domain) = (null(), null());
    // SAFETY: `node` is valid, and the texts live as long as it does.
    unsafe {
        checked(api, api.Node_GetOperatorType(node, &mut kind))?;
        checked(api, api.Node_GetDomain(node, &mut domain))?;
        let (kind, domain) = (text(kind), text(domain));
        let own = domain.is_empty() || domain == "ai.onnx";
        let kind = if own { kind } else { format!("{domain}.{kind}") };
        let (inputs, outputs) = (inputs(api, node)?, outputs(api, node)?);
        let attributes = list(
            api,
            |to| api.Node_GetNumAttributes(node, to),
            |to, room| api.Node_GetAttributes(node, to, room),
        )?;
        let mut read = BTreeMap::new();
        for attribute in attributes {
            read.extend(self::attribute(api, attribute)?);
        }
        Ok(Node { kind, attributes: read, inputs, outputs })
    }
}

/// # Safety
/// As [`node`].
pub unsafe fn inputs(api: Api, node: Opaque) -> Result<Vec<Value>, String> {
    // SAFETY: the caller's promise; `list` gives room for as many as there are.
    unsafe {
        let all = list(
            api,
            |to| api.Node_GetNumInputs(node, to),
            |to, room| api.Node_GetInputs(node, to, room),
        )?;
        all.into_iter().map(|info| value(api, info)).collect()
    }
}

/// # Safety
/// As [`node`].
pub unsafe fn outputs(api: Api, node: Opaque) -> Result<Vec<Value>, String> {
    // SAFETY: the caller's promise; `list` gives room for as many as there are.
    unsafe {
        let all = list(
            api,
            |to| api.Node_GetNumOutputs(node, to),
            |to, room| api.Node_GetOutputs(node, to, room),
        )?;
        all.into_iter().map(|info| value(api, info)).collect()
    }
}

fn list(
    api: Api,
    count: impl Fn(*mut usize) -> Status,
    fill: impl Fn(*mut Opaque, usize) -> Status,
) -> Result<Vec<Opaque>, String> {
    let mut many = 0;
    checked(api, count(&mut many))?;
    let mut all = vec![null(); many];
    checked(api, fill(all.as_mut_ptr(), many))?;
    Ok(all)
}

/// # Safety
/// `info` is null or belongs to a graph that the runtime hands over for this call.
unsafe fn value(api: Api, info: Opaque) -> Result<Value, String> {
    if info.is_null() {
        return Ok(Value::default());
    }
    let (mut name, mut kind, mut tensor) = (null(), null(), null());
    let (mut element, mut rank) = (0, 0);
    // SAFETY: everything asked belongs to `info` and lives as long; a type that is no tensor's has a null there.
    unsafe {
        checked(api, api.GetValueInfoName(info, &mut name))?;
        checked(api, api.GetValueInfoTypeInfo(info, &mut kind))?;
        if !kind.is_null() {
            checked(api, api.CastTypeInfoToTensorInfo(kind, &mut tensor))?;
        }
        if !tensor.is_null() {
            checked(api, api.GetTensorElementType(tensor, &mut element))?;
            checked(api, api.GetDimensionsCount(tensor, &mut rank))?;
        }
        Ok(Value { name: text(name), is_float: element == abi::FLOAT, rank })
    }
}

/// # Safety
/// `attribute` belongs to a node of the runtime.
unsafe fn attribute(api: Api, attribute: Opaque) -> Result<Option<(String, Attribute)>, String> {
    let (mut name, mut kind) = (null(), 0);
    // SAFETY: the caller's promise.
    unsafe {
        checked(api, api.OpAttr_GetName(attribute, &mut name))?;
        checked(api, api.OpAttr_GetType(attribute, &mut kind))?;
        let held = match kind {
            abi::INT | abi::INTS => Attribute::Ints(read(api, attribute, kind, 0i64)?),
            abi::FLOAT_ATTRIBUTE | abi::FLOATS => {
                Attribute::Floats(read(api, attribute, kind, 0f32)?)
            }
            abi::STRING => {
                let bytes = read(api, attribute, kind, 0u8)?;
                let words = String::from_utf8_lossy(&bytes);
                Attribute::Text(words.trim_end_matches('\0').to_owned())
            }
            _ => return Ok(None),
        };
        Ok(Some((text(name), held)))
    }
}

/// # Safety
/// `attribute` is one of the runtime's, whose elements are `T` by its `kind`.
unsafe fn read<T: Copy>(
    api: Api,
    attribute: Opaque,
    kind: c_int,
    filling: T,
) -> Result<Vec<T>, String> {
    let mut needed = 0;
    // SAFETY: without room the call tells in bytes how much is needed, and fails; with it, it writes that much.
    unsafe {
        let without = api.ReadOpAttr(attribute, kind, null_mut::<c_void>(), 0, &mut needed);
        if !without.is_null() {
            api.ReleaseStatus(without);
        }
        let mut held = vec![filling; needed.div_ceil(size_of::<T>())];
        if needed > 0 {
            let to = held.as_mut_ptr().cast();
            checked(api, api.ReadOpAttr(attribute, kind, to, needed, &mut needed))?;
        }
        Ok(held)
    }
}
