//! What the superuser may beyond everybody else, which no child needs: some of it reaches past landlock.

use std::io;

use nix::libc;

/// What stays of it, by the kernel's numbers: files of whatever owner may be opened, where paths allow it, and
/// memory be pinned for devices.
const KEPT: [u32; 3] = [
    1,  // CAP_DAC_OVERRIDE
    2,  // CAP_DAC_READ_SEARCH
    14, // CAP_IPC_LOCK
];

/// The layout of the call's arguments that has 64 capabilities, in two halves.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up the capabilities of this thread, and of those that it starts, but for those that stay.
pub fn give_up() -> io::Result<()> {
    let mut header = Header { version: VERSION, pid: 0 };
    let mut halves = [Half::default(); 2];
    // SAFETY: both calls are given a header and two halves of the layout that the header names; 0 is this
    // thread.
    call(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, halves.as_mut_ptr()) })?;
    let held = halves;
    let kept = KEPT.iter().fold(0, |kept, number| kept | 1 << number);
    for (half, kept) in halves.iter_mut().zip([kept, 0]) {
        half.effective &= kept;
        half.permitted &= kept;
        half.inheritable = 0;
    }
    if halves == held {
        // Nothing to give up, as in a service, whose filter may not even let one ask.
        return Ok(());
    }
    // SAFETY: as above.
    call(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, halves.as_ptr()) })
}

fn call(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
