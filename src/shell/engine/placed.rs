//! Which provider runs which operators of a loaded model, asked from ONNX Runtime, which has noted it down
//! while it divided the graph.

use std::ffi::{CStr, c_char};
use std::{ptr, slice};

use ort::AsPointer;
use ort::sys::{OrtEpAssignedNode, OrtEpAssignedSubgraph};

use super::session::failed;
use crate::hardware::Placement;
use crate::onnx::ExecError;

/// The setting by which a session takes these notes.
pub(super) const KEY: &str = "session.record_ep_graph_assignment_info";

/// The notes of a session that was made with [`KEY`].
///
/// # Errors
/// Where it was not.
pub(super) fn placement(session: &ort::session::Session) -> Result<Placement, ExecError> {
    read(session).map_err(|error| failed("asking where operators run", error))
}

fn read(session: &ort::session::Session) -> ort::Result<Placement> {
    let api = ort::api();
    let (mut parts, mut count) = (ptr::null::<*const OrtEpAssignedSubgraph>(), 0);
    // SAFETY: the session is alive, and the two others are places to write to.
    let status =
        unsafe { (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &mut parts, &mut count) };
    // SAFETY: the status came from the call above and is given up here.
    unsafe { ort::Error::result_from_status(status) }?;
    let mut placement = Placement::default();
    if parts.is_null() {
        return Ok(placement);
    }
    // SAFETY: the runtime gave an array of so many, which lives as long as the session.
    for part in unsafe { slice::from_raw_parts(parts, count) } {
        // SAFETY: a part of that array.
        let provider = unsafe { text(api.EpAssignedSubgraph_GetEpName, *part) }?;
        let (mut nodes, mut count) = (ptr::null::<*const OrtEpAssignedNode>(), 0);
        // SAFETY: as above.
        let status = unsafe { (api.EpAssignedSubgraph_GetNodes)(*part, &mut nodes, &mut count) };
        // SAFETY: the status came from the call above and is given up here.
        unsafe { ort::Error::result_from_status(status) }?;
        if nodes.is_null() {
            continue;
        }
        // SAFETY: an array of so many, which lives as long as the session.
        for node in unsafe { slice::from_raw_parts(nodes, count) } {
            // SAFETY: a node of that array.
            let domain = unsafe { text(api.EpAssignedNode_GetDomain, *node) }?;
            // SAFETY: as above.
            let operator = unsafe { text(api.EpAssignedNode_GetOperatorType, *node) }?;
            placement.add(&provider, &domain, &operator);
        }
    }
    Ok(placement)
}

type Get<T> = unsafe extern "system" fn(*const T, *mut *const c_char) -> ort::sys::OrtStatusPtr;

/// One of the texts of `of`.
///
/// # Safety
/// `of` must be alive and of the kind that `get` is for.
unsafe fn text<T>(get: Get<T>, of: *const T) -> ort::Result<String> {
    let mut text = ptr::null();
    // SAFETY: the caller's promise; `text` is a place to write to.
    let status = unsafe { get(of, &mut text) };
    // SAFETY: the status came from the call above and is given up here.
    unsafe { ort::Error::result_from_status(status) }?;
    if text.is_null() {
        return Ok(String::new());
    }
    // SAFETY: not null, and a text that lives as long as `of`.
    Ok(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
