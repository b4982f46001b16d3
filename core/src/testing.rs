//! What the core's own tests share.

use std::fs::File;
use std::os::fd::FromRawFd;

use crate::arena::Arena;
use std::os::fd::AsRawFd;

/// An empty shared memory object without a name.
pub fn memory() -> File {
    // SAFETY: the name is a C string; the new descriptor has one owner.
    unsafe {
        let fd = libc::memfd_create(c"shardnet".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
        File::from_raw_fd(fd)
    }
}

/// An arena that lives as long as the test process.
pub fn arena(lane_bytes: u64) -> &'static Arena {
    let file = Box::leak(Box::new(memory()));
    Box::leak(Box::new(Arena::create(file.as_raw_fd(), lane_bytes).expect("memory for an arena")))
}
