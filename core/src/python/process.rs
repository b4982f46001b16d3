//! What a worker does to its own process: it gives up every privilege, and it says its name.

use std::ffi::CString;
use std::io;

use pyo3::prelude::*;

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
    Ok(())
}

/// Name this process in ps and top; the kernel keeps 15 bytes.
#[pyfunction]
pub fn process_title(text: &str) -> PyResult<()> {
    let name = CString::new(&text.as_bytes()[..text.len().min(15)]).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    control(libc::PR_SET_NAME, name.as_ptr() as libc::c_ulong).map_err(PyErr::from)
}
