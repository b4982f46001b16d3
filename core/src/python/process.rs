//! What a worker does to its own process: it gives up every privilege, and it says its name.

use std::ffi::CString;
use std::io;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule};

/// System calls that no worker needs once it carries frames, and with which one that was taken over could go further:
/// into other processes, into namespaces where it would be root, into less trodden parts of the kernel. `ftruncate` is
/// among them for the arena's sake, whose pages nobody may take from under the others.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_open_by_handle_at,
    libc::SYS_ftruncate,
];

fn control(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: these options take numbers only.
    let result = unsafe { libc::prctl(option, value, 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// Give up all capabilities, now and after any exec, and the right to gain others; leave no core; die with the parent.
///
/// capabilities(7), prctl(2): no_new_privs, the bounding and ambient sets, the three sets of the process, dumpable.
/// seccomp(2): system calls that no worker needs are refused, in this process and in those it starts.
#[pyfunction]
pub fn drop_privileges() -> PyResult<()> {
    control(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)?;
    control(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    for capability in 0..64 {
        match control(libc::PR_CAPBSET_DROP, capability) {
            Ok(()) => {}
            // EPERM: we never had the right to change the set. EINVAL: the kernel knows no more capabilities.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EINVAL)) => break,
            Err(error) => return Err(error.into()),
        }
    }
    // SAFETY: numbers only.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    let mut header = CapabilityHeader { version: 0x2008_0522, pid: 0 }; // _LINUX_CAPABILITY_VERSION_3
    let none = [0u32; 6];
    // SAFETY: a header and two times three words, as version 3 wants them.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, none.as_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error().into());
    }
    control(libc::PR_SET_DUMPABLE, 0)?;
    let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is readable.
    if unsafe { libc::setrlimit(libc::RLIMIT_CORE, &limit) } < 0 {
        return Err(io::Error::last_os_error().into());
    }
    refuse_system_calls().map_err(|why| PyOSError::new_err(format!("seccomp: {why}")))
}

/// Have the kernel answer EPERM to `REFUSED`, and to an fallocate that does more than allocate (it could punch holes).
fn refuse_system_calls() -> Result<(), String> {
    let text = |error: seccompiler::BackendError| error.to_string();
    let punch = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, 0).map_err(text)?;
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|&call| (call, Vec::new())).collect();
    rules.insert(libc::SYS_fallocate, vec![SeccompRule::new(vec![punch]).map_err(text)?]);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let arch = std::env::consts::ARCH.try_into().map_err(text)?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).map_err(text)?;
    let program: BpfProgram = filter.try_into().map_err(text)?;
    seccompiler::apply_filter(&program).map_err(|error| error.to_string())
}

/// Name this process in ps and top; the kernel keeps 15 bytes.
#[pyfunction]
pub fn process_title(text: &str) -> PyResult<()> {
    let name = CString::new(&text.as_bytes()[..text.len().min(15)]).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    control(libc::PR_SET_NAME, name.as_ptr() as libc::c_ulong).map_err(PyErr::from)
}
