//! A disk that is taken away, fills up or fails: stands between a program and its C library (`LD_PRELOAD`),
//! counts the calls by which the program changes what lies below some directories, and at a chosen one ends the
//! program as `kill -9` does, or lets that call and all later ones fail.
//!
//! ```text
//! DISK_BELOW=/a:/b   the directories
//! DISK_AT=17         the call, counted from 1; 0 is none
//! DISK_HOW=kill      or full (what needs room fails with ENOSPC), or broken (all fails with EIO)
//! DISK_LOG=/c        a file outside: a line for each call up to the chosen one, and for each that failed
//! ```
//!
//! A write of several bytes is two calls: at the second one only half of it is there. Only the process that it
//! is loaded into is counted, none that it starts.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn __errno_location() -> *mut c_int;
    fn getpid() -> c_int;
    fn kill(process: c_int, signal: c_int) -> c_int;
    fn _exit(status: c_int) -> !;
    fn readlink(path: *const c_char, buffer: *mut c_char, size: usize) -> isize;
}

/// `RTLD_NEXT`: the definition that this one hides.
const NEXT: *mut c_void = -1isize as *mut c_void;
const SIGKILL: c_int = 9;
const EIO: c_int = 5;
const ENOSPC: c_int = 28;
/// Access modes other than reading, and `O_CREAT`, alike on the architectures that this is built for.
const WRITES: c_int = 0o3;
const CREATES: c_int = 0o100;
const AT_CWD: c_int = -100;

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Kill,
    Full,
    Broken,
}

struct Plan {
    below: Vec<Vec<u8>>,
    at: usize,
    how: How,
    log: c_int,
}

/// What a call needs of a disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Room: it fails where there is none.
    Room,
    /// Nothing that a full disk does not have.
    Nothing,
}

static PLAN: OnceLock<Plan> = OnceLock::new();
static DONE: AtomicUsize = AtomicUsize::new(0);

/// Runs before the program does.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

extern "C" fn begin() {
    let text = |name: &str| std::env::var_os(name).unwrap_or_default();
    let below = text("DISK_BELOW");
    let below = below.as_bytes().split(|byte| *byte == b':').filter(|dir| !dir.is_empty());
    let how = match text("DISK_HOW").as_bytes() {
        b"full" => How::Full,
        b"broken" => How::Broken,
        _ => How::Kill,
    };
    let mut name = text("DISK_LOG").as_bytes().to_vec();
    name.push(0);
    let at = text("DISK_AT").to_string_lossy().parse().unwrap_or(0);
    // O_WRONLY, O_CREAT, O_APPEND and O_CLOEXEC.
    // SAFETY: a text that ends in zero; the numbers are those of Linux.
    let log =
        unsafe { (real_open())(name.as_ptr().cast(), 0o1 | CREATES | 0o2000 | 0o2000000, 0o600) };
    let plan = Plan { below: below.map(<[u8]>::to_vec).collect(), at, how, log };
    let _ = PLAN.set(plan);
    // SAFETY: no other thread runs yet.
    unsafe { std::env::remove_var("LD_PRELOAD") };
}

/// The C library's own function of a name, looked up once.
fn real(name: &CStr, found: &AtomicPtr<c_void>) -> *mut c_void {
    let known = found.load(Ordering::Relaxed);
    if !known.is_null() {
        return known;
    }
    // SAFETY: a text that ends in zero.
    let new = unsafe { dlsym(NEXT, name.as_ptr()) };
    found.store(new, Ordering::Relaxed);
    new
}

macro_rules! real {
    ($name:ident, $type:ty) => {{
        static FOUND: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
        const NAME: &CStr =
            match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => panic!("a name without zeros"),
            };
        // SAFETY: the C library's function of this name has this type.
        #[allow(unused_unsafe)]
        let own = unsafe { std::mem::transmute::<*mut c_void, $type>(real(NAME, &FOUND)) };
        own
    }};
}

type Open = unsafe extern "C" fn(*const c_char, c_int, c_uint) -> c_int;

fn real_open() -> Open {
    real!(open64, Open)
}

/// Where a descriptor leads.
fn of_descriptor(descriptor: c_int) -> Vec<u8> {
    let link = match descriptor {
        AT_CWD => "/proc/self/cwd\0".to_owned(),
        number => format!("/proc/self/fd/{number}\0"),
    };
    let mut buffer = [0u8; 4096];
    // SAFETY: a text that ends in zero, and a buffer of that size.
    let size = unsafe { readlink(link.as_ptr().cast(), buffer.as_mut_ptr().cast(), buffer.len()) };
    buffer[..usize::try_from(size).unwrap_or(0)].to_vec()
}

/// Where a path leads that may start from a directory.
///
/// # Safety
/// The path ends in zero.
unsafe fn of_path(dir: c_int, path: *const c_char) -> Vec<u8> {
    // SAFETY: as above.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    if path.starts_with(b"/") {
        return path.to_vec();
    }
    [&of_descriptor(dir), b"/".as_slice(), path].concat()
}

fn note(plan: &Plan, number: usize, what: &str, path: &[u8]) {
    let line = [format!("{number} {what} ").as_bytes(), path, b"\n"].concat();
    let write = real!(write, unsafe extern "C" fn(c_int, *const c_void, usize) -> isize);
    // SAFETY: the bytes of the line.
    unsafe { write(plan.log, line.as_ptr().cast(), line.len()) };
}

/// Counts a call that changes `path`. `Some`: it is the chosen one, or one that fails after it.
fn turn(needs: Needs, what: &str, path: &[u8]) -> Option<How> {
    let plan = PLAN.get()?;
    let below = |dir: &Vec<u8>| {
        path.strip_prefix(dir.as_slice())
            .is_some_and(|rest| rest.first().is_none_or(|byte| *byte == b'/'))
    };
    if !plan.below.iter().any(below) {
        return None;
    }
    let number = DONE.fetch_add(1, Ordering::SeqCst) + 1;
    let reached = plan.at > 0 && number >= plan.at;
    let hit = match plan.how {
        How::Kill => reached,
        How::Full => reached && needs == Needs::Room,
        How::Broken => reached,
    };
    if hit || !reached {
        note(plan, number, what, path);
    }
    hit.then_some(plan.how)
}

fn end() -> ! {
    // SAFETY: plain calls; where the first is not allowed, the second ends the process as bluntly.
    unsafe {
        kill(getpid(), SIGKILL);
        _exit(137)
    }
}

/// Ends the process, or leaves the reason why the call failed.
fn hit(how: How) {
    let errno = match how {
        How::Kill => end(),
        How::Full => ENOSPC,
        How::Broken => EIO,
    };
    // SAFETY: this thread's own.
    unsafe { *__errno_location() = errno };
}

/// Whether the call must not be made.
fn fails(needs: Needs, what: &str, path: &[u8]) -> bool {
    turn(needs, what, path).inspect(|how| hit(*how)).is_some()
}

/// Opening for writing makes or empties a file.
///
/// # Safety
/// The path ends in zero.
unsafe fn opens(dir: c_int, path: *const c_char, flags: c_int) -> bool {
    if flags & (WRITES | CREATES) == 0 {
        return false;
    }
    // SAFETY: as above.
    let path = unsafe { of_path(dir, path) };
    let needs = if flags & CREATES == 0 { Needs::Nothing } else { Needs::Room };
    fails(needs, "open", &path)
}

macro_rules! opening {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
            // SAFETY: the caller's path; and the function that it called, with its arguments.
            unsafe {
                if opens(AT_CWD, path, flags) {
                    return -1;
                }
                real!($name, Open)(path, flags, mode)
            }
        }
    )*};
}

opening!(open open64);

macro_rules! opening_at {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            dir: c_int,
            path: *const c_char,
            flags: c_int,
            mode: c_uint,
        ) -> c_int {
            type Own = unsafe extern "C" fn(c_int, *const c_char, c_int, c_uint) -> c_int;
            // SAFETY: as above.
            unsafe {
                if opens(dir, path, flags) {
                    return -1;
                }
                real!($name, Own)(dir, path, flags, mode)
            }
        }
    )*};
}

opening_at!(openat openat64);

/// Functions that take one path and perhaps a number.
macro_rules! by_path {
    ($($name:ident $needs:ident ($($argument:ident: $type:ty),*);)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(path: *const c_char $(, $argument: $type)*) -> c_int {
            type Own = unsafe extern "C" fn(*const c_char $(, $type)*) -> c_int;
            // SAFETY: as above.
            unsafe {
                if fails(Needs::$needs, stringify!($name), &of_path(AT_CWD, path)) {
                    return -1;
                }
                real!($name, Own)(path $(, $argument)*)
            }
        }
    )*};
}

by_path! {
    unlink Nothing ();
    rmdir Nothing ();
    mkdir Room (mode: c_uint);
    chmod Nothing (mode: c_uint);
}

/// The same from a directory on.
macro_rules! by_path_at {
    ($($name:ident $needs:ident ($($argument:ident: $type:ty),*);)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            dir: c_int,
            path: *const c_char
            $(, $argument: $type)*
        ) -> c_int {
            type Own = unsafe extern "C" fn(c_int, *const c_char $(, $type)*) -> c_int;
            // SAFETY: as above.
            unsafe {
                if fails(Needs::$needs, stringify!($name), &of_path(dir, path)) {
                    return -1;
                }
                real!($name, Own)(dir, path $(, $argument)*)
            }
        }
    )*};
}

by_path_at! {
    unlinkat Nothing (flags: c_int);
    mkdirat Room (mode: c_uint);
    fchmodat Nothing (mode: c_uint, flags: c_int);
}

/// Functions that give a file a further name, told by the new one.
macro_rules! by_two_paths {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(from: *const c_char, to: *const c_char) -> c_int {
            type Own = unsafe extern "C" fn(*const c_char, *const c_char) -> c_int;
            // SAFETY: as above.
            unsafe {
                if fails(Needs::Room, stringify!($name), &of_path(AT_CWD, to)) {
                    return -1;
                }
                real!($name, Own)(from, to)
            }
        }
    )*};
}

by_two_paths!(rename link symlink);

macro_rules! by_two_paths_at {
    ($($name:ident ($($argument:ident: $type:ty),*);)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            from_dir: c_int,
            from: *const c_char,
            to_dir: c_int,
            to: *const c_char
            $(, $argument: $type)*
        ) -> c_int {
            type Own = unsafe extern "C" fn(
                c_int, *const c_char, c_int, *const c_char $(, $type)*
            ) -> c_int;
            // SAFETY: as above.
            unsafe {
                if fails(Needs::Room, stringify!($name), &of_path(to_dir, to)) {
                    return -1;
                }
                real!($name, Own)(from_dir, from, to_dir, to $(, $argument)*)
            }
        }
    )*};
}

by_two_paths_at! {
    renameat ();
    renameat2 (flags: c_uint);
    linkat (flags: c_int);
}

/// Functions that take a descriptor first.
macro_rules! by_descriptor {
    ($($name:ident $needs:ident ($($argument:ident: $type:ty),*);)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(descriptor: c_int $(, $argument: $type)*) -> c_int {
            type Own = unsafe extern "C" fn(c_int $(, $type)*) -> c_int;
            if fails(Needs::$needs, stringify!($name), &of_descriptor(descriptor)) {
                return -1;
            }
            // SAFETY: the function that was called, with its arguments.
            unsafe { real!($name, Own)(descriptor $(, $argument)*) }
        }
    )*};
}

by_descriptor! {
    // What was written may find its room only now.
    fsync Room ();
    fdatasync Room ();
    fchmod Nothing (mode: c_uint);
    ftruncate Nothing (size: i64);
    ftruncate64 Nothing (size: i64);
    fallocate Room (mode: c_int, from: i64, size: i64);
    fallocate64 Room (mode: c_int, from: i64, size: i64);
}

/// Functions that write bytes: half of them first.
macro_rules! writing {
    ($($name:ident ($($argument:ident: $type:ty),*);)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            descriptor: c_int,
            bytes: *const c_void,
            size: usize
            $(, $argument: $type)*
        ) -> isize {
            type Own = unsafe extern "C" fn(c_int, *const c_void, usize $(, $type)*) -> isize;
            let path = of_descriptor(descriptor);
            let own = real!($name, Own);
            if fails(Needs::Room, stringify!($name), &path) {
                return -1;
            }
            // SAFETY: the function that was called, with its arguments or fewer bytes.
            unsafe {
                if size > 1 && let Some(how) = turn(Needs::Room, "half", &path) {
                    let written = own(descriptor, bytes, size / 2 $(, $argument)*);
                    if how == How::Kill {
                        end();
                    }
                    return written;
                }
                own(descriptor, bytes, size $(, $argument)*)
            }
        }
    )*};
}

writing! {
    write ();
    pwrite (at: i64);
    pwrite64 (at: i64);
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(descriptor: c_int, all: *const c_void, count: c_int) -> isize {
    type Own = unsafe extern "C" fn(c_int, *const c_void, c_int) -> isize;
    if fails(Needs::Room, "writev", &of_descriptor(descriptor)) {
        return -1;
    }
    // SAFETY: the function that was called, with its arguments.
    unsafe { real!(writev, Own)(descriptor, all, count) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn copy_file_range(
    from: c_int,
    from_at: *mut i64,
    to: c_int,
    to_at: *mut i64,
    size: usize,
    flags: c_uint,
) -> isize {
    type Own = unsafe extern "C" fn(c_int, *mut i64, c_int, *mut i64, usize, c_uint) -> isize;
    if fails(Needs::Room, "copy", &of_descriptor(to)) {
        return -1;
    }
    // SAFETY: the function that was called, with its arguments.
    unsafe { real!(copy_file_range, Own)(from, from_at, to, to_at, size, flags) }
}
