//! What a plugin needs of ONNX Runtime's C interface, written down by hand from its headers (1.24; every later
//! release appends only). Of the two large tables only slots are named, by their place; `tests/npu.rs` holds
//! those of `OrtApi` against `ort-sys`.

#![allow(non_snake_case)]

use std::ffi::{c_char, c_int, c_void};
use std::mem::{offset_of, size_of, transmute};

/// The version of the interface that is spoken: no slot that came later is ever called.
pub const VERSION: u32 = 24;

/// `ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT`.
pub const FLOAT: c_int = 1;

/// `OrtHardwareDeviceType`.
pub const CPU_DEVICE: c_int = 0;
pub const NPU_DEVICE: c_int = 2;

/// `OrtErrorCode`.
pub const FAIL: c_int = 1;
pub const EP_FAIL: c_int = 11;

/// `OrtOpAttrType`.
pub const INT: c_int = 1;
pub const INTS: c_int = 2;
pub const FLOAT_ATTRIBUTE: c_int = 3;
pub const FLOATS: c_int = 4;
pub const STRING: c_int = 5;

/// An `OrtStatus`, null where all is well.
pub type Status = *mut c_void;
/// Objects of the runtime that are only handed on.
pub type Opaque = *const c_void;

#[repr(C)]
pub struct ApiBase {
    pub GetApi: unsafe extern "C" fn(u32) -> *const c_void,
    pub GetVersionString: unsafe extern "C" fn() -> *const c_char,
}

/// `OrtApi`.
#[derive(Clone, Copy)]
pub struct Api(pub *const *const c_void);

/// `OrtEpApi`.
#[derive(Clone, Copy)]
pub struct EpApi(pub *const *const c_void);

macro_rules! slots {
    ($table:ident: $($at:literal $name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)?;)*) => {
        impl $table {
            /// Every slot that is used, and where it stands.
            pub const SLOTS: &[(&str, usize)] = &[$((stringify!($name), $at)),*];

            $(
                /// # Safety
                /// As the header says of this call.
                pub unsafe fn $name(self $(, $argument: $kind)*) $(-> $result)? {
                    type Call = unsafe extern "C" fn($($kind),*) $(-> $result)?;
                    // SAFETY: the table holds the runtime's function of this signature in this slot.
                    let call: Call = unsafe { transmute(*self.0.add($at)) };
                    // SAFETY: the caller's promise.
                    unsafe { call($($argument),*) }
                }
            )*
        }
    };
}

slots! { Api:
    0 CreateStatus(code: c_int, text: *const c_char) -> Status;
    2 GetErrorMessage(status: Status) -> *const c_char;
    51 GetTensorMutableData(value: *mut c_void, to: *mut *mut c_void) -> Status;
    55 CastTypeInfoToTensorInfo(info: Opaque, to: *mut Opaque) -> Status;
    60 GetTensorElementType(info: Opaque, to: *mut c_int) -> Status;
    61 GetDimensionsCount(info: Opaque, to: *mut usize) -> Status;
    62 GetDimensions(info: Opaque, to: *mut i64, room: usize) -> Status;
    65 GetTensorTypeAndShape(value: Opaque, to: *mut *mut c_void) -> Status;
    90 KernelContext_GetInput(context: Opaque, at: usize, to: *mut Opaque) -> Status;
    91 KernelContext_GetOutput(context: *mut c_void, at: usize, shape: *const i64, rank: usize,
        to: *mut *mut c_void) -> Status;
    93 ReleaseStatus(status: Status);
    99 ReleaseTensorTypeAndShapeInfo(info: *mut c_void);
    272 ReadOpAttr(attribute: Opaque, kind: c_int, to: *mut c_void, room: usize, needed: *mut usize)
        -> Status;
    289 GetValueInfoName(value: Opaque, to: *mut *const c_char) -> Status;
    290 GetValueInfoTypeInfo(value: Opaque, to: *mut Opaque) -> Status;
    295 CreateKeyValuePairs(to: *mut *mut c_void);
    296 AddKeyValuePair(pairs: *mut c_void, key: *const c_char, value: *const c_char);
    300 ReleaseKeyValuePairs(pairs: *mut c_void);
    307 HardwareDevice_Type(device: Opaque) -> c_int;
    317 GetEpApi() -> *const c_void;
    344 Graph_GetNumNodes(graph: Opaque, to: *mut usize) -> Status;
    345 Graph_GetNodes(graph: Opaque, to: *mut Opaque, room: usize) -> Status;
    350 Node_GetOperatorType(node: Opaque, to: *mut *const c_char) -> Status;
    351 Node_GetDomain(node: Opaque, to: *mut *const c_char) -> Status;
    353 Node_GetNumInputs(node: Opaque, to: *mut usize) -> Status;
    354 Node_GetInputs(node: Opaque, to: *mut Opaque, room: usize) -> Status;
    355 Node_GetNumOutputs(node: Opaque, to: *mut usize) -> Status;
    356 Node_GetOutputs(node: Opaque, to: *mut Opaque, room: usize) -> Status;
    359 Node_GetNumAttributes(node: Opaque, to: *mut usize) -> Status;
    360 Node_GetAttributes(node: Opaque, to: *mut Opaque, room: usize) -> Status;
    363 OpAttr_GetType(attribute: Opaque, to: *mut c_int) -> Status;
    364 OpAttr_GetName(attribute: Opaque, to: *mut *const c_char) -> Status;
    378 GetTensorData(value: Opaque, to: *mut Opaque) -> Status;
}

slots! { EpApi:
    0 CreateEpDevice(factory: *mut Factory, device: Opaque, metadata: Opaque, options: Opaque,
        to: *mut *mut c_void) -> Status;
    2 EpGraphSupportInfo_AddNodesToFuse(support: *mut c_void, nodes: *const Opaque, count: usize,
        options: *const FusionOptions) -> Status;
    16 CreateHardwareDevice(kind: c_int, vendor: u32, device: u32, vendor_name: *const c_char,
        metadata: Opaque, to: *mut *mut c_void) -> Status;
    17 ReleaseHardwareDevice(device: *mut c_void);
}

#[repr(C)]
pub struct FusionOptions {
    pub ort_version_supported: u32,
    /// False: weights come as inputs of the fused node, with each run.
    pub drop_constant_initializers: bool,
}

type Text<T> = unsafe extern "C" fn(*const T) -> *const c_char;
type Devices = unsafe extern "C" fn(
    *mut Factory,
    *const Opaque,
    usize,
    *mut *mut c_void,
    usize,
    *mut usize,
) -> Status;
type Create = unsafe extern "C" fn(
    *mut Factory,
    *const Opaque,
    *const Opaque,
    usize,
    Opaque,
    Opaque,
    *mut *mut Ep,
) -> Status;
type Compile = unsafe extern "C" fn(
    *mut Ep,
    *const Opaque,
    *const Opaque,
    usize,
    *mut *mut ComputeInfo,
    *mut *mut c_void,
) -> Status;

/// `OrtEpFactory`.
#[repr(C)]
pub struct Factory {
    pub ort_version_supported: u32,
    pub GetName: Text<Self>,
    pub GetVendor: Text<Self>,
    pub GetSupportedDevices: Devices,
    pub CreateEp: Create,
    pub ReleaseEp: unsafe extern "C" fn(*mut Self, *mut Ep),
    pub GetVendorId: unsafe extern "C" fn(*const Self) -> u32,
    pub GetVersion: Text<Self>,
    pub ValidateCompiledModelCompatibilityInfo: Opaque,
    pub CreateAllocator: Opaque,
    pub ReleaseAllocator: Opaque,
    pub CreateDataTransfer: unsafe extern "C" fn(*mut Self, *mut *mut c_void) -> Status,
    pub IsStreamAware: unsafe extern "C" fn(*const Self) -> bool,
    /// Streams, incompatibilities, external resources, own operators, graphics, model candidates: not offered.
    pub later: [Opaque; 8],
}

/// `OrtEp`.
#[repr(C)]
pub struct Ep {
    pub ort_version_supported: u32,
    pub GetName: Text<Self>,
    pub GetCapability: unsafe extern "C" fn(*mut Self, Opaque, *mut c_void) -> Status,
    pub Compile: Compile,
    pub ReleaseNodeComputeInfos: unsafe extern "C" fn(*mut Self, *mut *mut ComputeInfo, usize),
    /// Data layout, dynamic options, begin and end of a run, allocators and streams, kernels, profiling, captured
    /// graphs: not offered. A runtime of today reads all of these slots.
    pub later: [Opaque; 21],
}

/// `OrtNodeComputeInfo`.
#[repr(C)]
pub struct ComputeInfo {
    pub ort_version_supported: u32,
    pub CreateState: unsafe extern "C" fn(*mut Self, Opaque, *mut *mut c_void) -> Status,
    pub Compute: unsafe extern "C" fn(*mut Self, *mut c_void, *mut c_void) -> Status,
    pub ReleaseState: unsafe extern "C" fn(*mut Self, *mut c_void),
}

const _: () = {
    assert!(size_of::<Opaque>() == 8 && size_of::<ApiBase>() == 16);
    assert!(size_of::<FusionOptions>() == 8);
    assert!(offset_of!(FusionOptions, drop_constant_initializers) == 4);
    assert!(offset_of!(Factory, GetName) == 8 && offset_of!(Factory, CreateEp) == 4 * 8);
    assert!(offset_of!(Factory, GetVendorId) == 6 * 8);
    assert!(offset_of!(Factory, CreateDataTransfer) == 11 * 8);
    assert!(offset_of!(Factory, later) == 13 * 8 && size_of::<Factory>() == 21 * 8);
    assert!(offset_of!(Ep, GetCapability) == 2 * 8 && offset_of!(Ep, Compile) == 3 * 8);
    assert!(offset_of!(Ep, later) == 5 * 8 && size_of::<Ep>() == 26 * 8);
    assert!(offset_of!(ComputeInfo, Compute) == 2 * 8 && size_of::<ComputeInfo>() == 4 * 8);
};
