//! Seccomp: what is not asked of the kernel. The list names what no model needs, not what all do: vendors'
//! libraries are too many to know all that they need. What is denied returns an error; nobody is killed for
//! asking.

use std::collections::BTreeMap;

use nix::libc::{self, c_long};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

/// How a child works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// In this process alone.
    Alone,
    /// With programs of a vendor that it starts and speaks with.
    Programs,
}

/// What no child needs.
const DENIED: &[c_long] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    // The view of the file system, and ways to files that go round paths.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fsconfig,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_quotactl,
    libc::SYS_fanotify_init,
    libc::SYS_acct,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    // Namespaces, in which a user without rights gains some.
    libc::SYS_unshare,
    libc::SYS_setns,
    // The kernel itself, and its parts with a history.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_syslog,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    // The box's name, clock and terminals.
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    // Its own bounds.
    libc::SYS_setrlimit,
];

/// The same, where the architecture has them.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[c_long] = &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[c_long] = &[];

/// What a child that works alone does not need either: other programs, a group of its own that a signal to the
/// child's does not reach, sockets of any kind.
const DENIED_ALONE: &[c_long] =
    &[libc::SYS_execve, libc::SYS_execveat, libc::SYS_setsid, libc::SYS_setpgid, libc::SYS_socket];
#[cfg(target_arch = "x86_64")]
const DENIED_ALONE_HERE: &[c_long] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_ALONE_HERE: &[c_long] = &[];

/// What is answered as if the kernel did not have it, since libraries then do without: rings carry any call
/// past a filter.
const ABSENT: &[c_long] =
    &[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

/// What sends signals, the process first.
const SIGNALS: &[c_long] =
    &[libc::SYS_kill, libc::SYS_tgkill, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo];

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Binds this thread, and what it starts, to what is left.
pub fn restrict(work: Work) -> Result<(), String> {
    let said = |error: seccompiler::Error| error.to_string();
    let arch = TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|_| format!("it is not known for {}", std::env::consts::ARCH))?;
    let denied = denied(work).map_err(|error| said(error.into()))?;
    let denied = filter(denied, libc::EPERM, arch).map_err(said)?;
    let absent = filter(absent(work), libc::ENOSYS, arch).map_err(said)?;
    apply_filter(&absent).map_err(said)?;
    apply_filter(&denied).map_err(said)
}

fn filter(rules: Rules, errno: i32, arch: TargetArch) -> Result<BpfProgram, seccompiler::Error> {
    let denied = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, arch)?;
    let mut program: BpfProgram = filter.try_into()?;
    program.splice(0..0, other_numbers());
    Ok(program)
}

/// Denies the calls of x86-64's second set of numbers (x32), which a list by number would pass: nobody here
/// uses them. Comes before what looks at the architecture: others have fewer numbers.
#[cfg(target_arch = "x86_64")]
fn other_numbers() -> Vec<seccompiler::sock_filter> {
    const X32: u32 = 0x4000_0000;
    let step =
        |code: u32, jf: u8, k: u32| seccompiler::sock_filter { code: code as u16, jt: 0, jf, k };
    vec![
        // The number is the first field of what a filter sees.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, X32),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs()),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn other_numbers() -> Vec<seccompiler::sock_filter> {
    Vec::new()
}

fn absent(work: Work) -> Rules {
    // Its flags lie in memory, where no filter looks: without it, threads are made by the older call.
    let clone3 = (work == Work::Alone).then_some(libc::SYS_clone3);
    ABSENT.iter().copied().chain(clone3).map(|call| (call, Vec::new())).collect()
}

fn denied(work: Work) -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    let mut deny = |calls: &[c_long]| rules.extend(calls.iter().map(|call| (*call, Vec::new())));
    deny(DENIED);
    deny(DENIED_HERE);
    if work == Work::Alone {
        deny(DENIED_ALONE);
        deny(DENIED_ALONE_HERE);
    }
    // It ends with whoever started it, come what may.
    let death = argument(0, SeccompCmpOp::Eq, libc::PR_SET_PDEATHSIG.unsigned_abs().into())?;
    rules.insert(libc::SYS_prctl, vec![SeccompRule::new(vec![death])?]);
    // Bounds are read by the same call, without new ones. A pointer is looked at as a whole.
    let new = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![new])?]);
    // Typing on the terminal of whoever started it.
    let typing = argument(1, SeccompCmpOp::Eq, libc::TIOCSTI)?;
    rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(vec![typing])?]);
    match work {
        Work::Alone => {
            // Threads, no processes; signals to nobody but itself.
            let thread = SeccompCmpOp::MaskedEq(libc::CLONE_THREAD.unsigned_abs().into());
            rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![argument(0, thread, 0)?])?]);
            for call in SIGNALS {
                let other = argument(0, SeccompCmpOp::Ne, std::process::id().into())?;
                rules.insert(*call, vec![SeccompRule::new(vec![other])?]);
            }
        }
        Work::Programs => {
            let other = [libc::AF_UNIX, libc::AF_NETLINK]
                .map(|family| argument(0, SeccompCmpOp::Ne, family.unsigned_abs().into()));
            let other = other.into_iter().collect::<Result<Vec<_>, _>>()?;
            rules.insert(libc::SYS_socket, vec![SeccompRule::new(other)?]);
        }
    }
    Ok(rules)
}

/// Of an argument that the kernel takes the lower half of.
fn argument(at: u8, is: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(at, SeccompCmpArgLen::Dword, is, value)
}
