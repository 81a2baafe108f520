//! Stands in for Ascend's `libascendcl.so`, as far as telemetry asks it; with `--cfg provider`, as far as ONNX
//! Runtime's provider for CANN does, the graph engine of other libraries included.

#[path = "scenario.rs"]
mod scenario;

#[cfg(provider)]
#[path = "cann.rs"]
mod cann;

use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicI32, Ordering};

static OPEN: AtomicI32 = AtomicI32::new(-1);

fn fails(call: &str) -> Option<c_int> {
    scenario::enter("acl", call)
}

#[unsafe(no_mangle)]
pub extern "C" fn aclInit(configuration: *const c_char) -> c_int {
    assert!(configuration.is_null());
    fails("aclInit").unwrap_or(0)
}

#[unsafe(no_mangle)]
pub extern "C" fn aclFinalize() -> c_int {
    fails("aclFinalize").unwrap_or(0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtGetVersion(a: *mut i32, b: *mut i32, c: *mut i32) -> c_int {
    for (place, part) in [(a, 1), (b, 13), (c, 0)] {
        unsafe { place.write(part) };
    }
    fails("aclrtGetVersion").unwrap_or(0)
}

#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetSocName() -> *const c_char {
    let soc = scenario::text("acl", "soc").unwrap_or_else(|| "Ascend310P3".to_owned());
    // Kept for good: the caller does.
    std::ffi::CString::new(soc).unwrap().into_raw()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtGetDeviceCount(to: *mut u32) -> c_int {
    scenario::sweep();
    unsafe { to.write(scenario::cards("acl").len() as u32) };
    fails("aclrtGetDeviceCount").unwrap_or(0)
}

#[unsafe(no_mangle)]
pub extern "C" fn aclrtSetDevice(device: i32) -> c_int {
    OPEN.store(device, Ordering::SeqCst);
    fails("aclrtSetDevice").unwrap_or(0)
}

#[unsafe(no_mangle)]
pub extern "C" fn aclrtResetDevice(_: i32) -> c_int {
    OPEN.store(-1, Ordering::SeqCst);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aclrtGetMemInfo(
    kind: c_int,
    free: *mut usize,
    total: *mut usize,
) -> c_int {
    if OPEN.load(Ordering::SeqCst) < 0 {
        return 107_002;
    }
    // This chip has DDR.
    let all = if kind == 0 { 8usize << 30 } else { 0 };
    unsafe {
        free.write(all / 2);
        total.write(all);
    }
    fails("aclrtGetMemInfo").unwrap_or(0)
}
