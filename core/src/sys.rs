//! The system calls of the core, each with the one error type `io::Error`.
//!
//! Every wrapper is thin: it adds a length check or a retry where the kernel asks for one and nothing else.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// What `epoll_wait` says of one descriptor: the token given to `Epoll::add` and EPOLL* bits.
pub type Ready = libc::epoll_event;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn checked_len(result: isize) -> io::Result<usize> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as usize) }
}

/// Seconds of CLOCK_MONOTONIC, coarse (one tick of the kernel, a few ns to read).
pub fn now_s() -> u32 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
    time.tv_sec as u32
}

/// Nanoseconds of `clock` (CLOCK_MONOTONIC, CLOCK_REALTIME).
pub fn now_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// 64 bits of the kernel's randomness.
pub fn random() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is 8 bytes long and writable.
    let got = checked_len(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), 8, 0) })?;
    if got == 8 { Ok(u64::from_ne_bytes(bytes)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

pub fn file_size(fd: RawFd) -> io::Result<u64> {
    // SAFETY: all-zero is a valid `stat`, and the kernel fills it.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: `stat` is a valid place for the answer.
    check(unsafe { libc::fstat(fd, &mut stat) })?;
    Ok(stat.st_size as u64)
}

/// The magic number of the file system that a descriptor's file is on, and the size of its pages (statfs(2)).
pub fn file_system(fd: RawFd) -> io::Result<(i64, usize)> {
    // SAFETY: all-zero is a valid `statfs`, and the kernel fills it.
    let mut found: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: `found` is a valid place for the answer.
    check(unsafe { libc::fstatfs(fd, &mut found) })?;
    Ok((found.f_type as i64, found.f_bsize as usize))
}

/// The number of the file that a descriptor is of.
pub fn inode(fd: RawFd) -> io::Result<u64> {
    let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: room for a status, which the kernel fills where it says so.
    check(unsafe { libc::fstat(fd, status.as_mut_ptr()) })?;
    // SAFETY: as above.
    Ok(unsafe { status.assume_init() }.st_ino)
}

/// Write a few bytes at a place of a file in memory, all or none of them.
pub fn write_at(fd: RawFd, offset: u64, bytes: &[u8]) {
    // SAFETY: a slice is readable.
    unsafe { libc::pwrite(fd, bytes.as_ptr().cast(), bytes.len(), offset as libc::off_t) };
}

pub fn truncate(fd: RawFd, size: u64) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::ftruncate(fd, size as libc::off_t) }).map(drop)
}

/// Give pages to a range of a sparse object; ENOSPC here is what would be SIGBUS later.
pub fn allocate(fd: RawFd, offset: u64, len: u64) -> io::Result<()> {
    loop {
        // SAFETY: no memory is involved.
        match check(unsafe { libc::fallocate(fd, 0, offset as libc::off_t, len as libc::off_t) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(drop),
        }
    }
}

/// A shared mapping of a descriptor, unmapped when dropped.
///
/// ```text
///   | no access | the object | the object again, where it is mapped twice | no access |
/// ```
///
/// The pages around it are never mapped, so a step too far is a fault and not somebody else's memory.
pub struct Mapping {
    start: *mut u8,
    len: usize,
    /// What was reserved, with the guards.
    reserved: *mut u8,
    all: usize,
}

/// Bytes without access on each side of a mapping; a multiple of the page.
const GUARD: usize = 64 << 10;

// SAFETY: a mapping is plain memory; whoever reads or writes through the pointer answers for the races.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub fn new(fd: RawFd, offset: u64, len: usize) -> io::Result<Mapping> {
        Mapping::repeated(fd, offset, len, 1, 1)
    }

    /// As `new`, from the object's start, at an address that is a multiple of `align`: huge pages ask for theirs.
    pub fn aligned(fd: RawFd, len: usize, align: usize) -> io::Result<Mapping> {
        Mapping::repeated(fd, 0, len, 1, align)
    }

    /// Map `len` bytes twice in a row, so that whatever wraps at the end goes on at the start.
    pub fn twice(fd: RawFd, offset: u64, len: usize) -> io::Result<Mapping> {
        Mapping::repeated(fd, offset, len, 2, 1)
    }

    /// `len` is a multiple of the page, `align` a power of two.
    fn repeated(fd: RawFd, offset: u64, len: usize, times: usize, align: usize) -> io::Result<Mapping> {
        let all = GUARD + align + times * len + GUARD;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: reserves a fresh range of addresses without access.
        let reserved = unsafe { libc::mmap(ptr::null_mut(), all, libc::PROT_NONE, flags, -1, 0) };
        if reserved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let reserved = reserved.cast::<u8>();
        let skipped = (reserved as usize + GUARD).next_multiple_of(align) - reserved as usize;
        // SAFETY: the range is longer than a guard and what the alignment can take.
        let mapping = Mapping { start: unsafe { reserved.add(skipped) }, len: times * len, reserved, all };
        for turn in 0..times {
            let (allowed, how) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
            // SAFETY: MAP_FIXED replaces only addresses of the range reserved above, which nobody else knows.
            let at = unsafe { libc::mmap(mapping.start.add(turn * len).cast(), len, allowed, how, fd, offset as libc::off_t) };
            if at == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(mapping)
    }

    /// Take the page faults now (a fault costs as much as ten writes to a TAP). Best effort.
    pub fn populate(&self) {
        const MADV_POPULATE_WRITE: libc::c_int = 23; // Linux 5.14
        // SAFETY: the range is ours; populating changes no byte.
        unsafe { libc::madvise(self.start.cast(), self.len, MADV_POPULATE_WRITE) };
    }

    pub fn start(&self) -> *mut u8 {
        self.start
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range with its guards was mapped by us and is unmapped once.
        unsafe { libc::munmap(self.reserved.cast(), self.all) };
    }
}

/// Add 1 to an eventfd. A counter that is full still wakes its reader, so the error is of no interest.
pub fn ring(fd: RawFd) {
    let one = 1u64;
    // SAFETY: eight readable bytes.
    unsafe { libc::write(fd, (&raw const one).cast(), 8) };
}

/// Read at most `len` bytes to `at`.
///
/// # Safety
/// `at` points to `len` bytes that may be written.
pub unsafe fn read(fd: RawFd, at: *mut u8, len: usize) -> io::Result<usize> {
    // SAFETY: as the caller promises.
    checked_len(unsafe { libc::read(fd, at.cast(), len) })
}

/// Fill `bytes` from a place in a file.
pub fn read_at(fd: RawFd, mut offset: u64, mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: a slice may be written.
        match checked_len(unsafe { libc::pread(fd, bytes.as_mut_ptr().cast(), bytes.len(), offset as libc::off_t) }) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => {
                offset += got as u64;
                bytes = &mut bytes[got..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Write `len` bytes from `at`; memory that another process changes meanwhile is sent as it is met.
///
/// # Safety
/// `at` points to `len` bytes that may be read.
pub unsafe fn write(fd: RawFd, at: *const u8, len: usize) -> io::Result<usize> {
    // SAFETY: as the caller promises.
    checked_len(unsafe { libc::write(fd, at.cast(), len) })
}

/// Write the pieces in one call.
///
/// # Safety
/// Each piece points to readable bytes.
pub unsafe fn write_pieces(fd: RawFd, pieces: &[libc::iovec]) -> io::Result<usize> {
    // SAFETY: as the caller promises.
    checked_len(unsafe { libc::writev(fd, pieces.as_ptr(), pieces.len() as libc::c_int) })
}

/// Read into the pieces in one call.
///
/// # Safety
/// Each piece points to bytes that may be written.
pub unsafe fn read_pieces(fd: RawFd, pieces: &[libc::iovec]) -> io::Result<usize> {
    // SAFETY: as the caller promises.
    checked_len(unsafe { libc::readv(fd, pieces.as_ptr(), pieces.len() as libc::c_int) })
}

/// Receive up to `messages.len()` datagrams, without waiting.
///
/// # Safety
/// Each header points to buffers and names that may be written.
pub unsafe fn receive_many(fd: RawFd, messages: &mut [libc::mmsghdr]) -> io::Result<usize> {
    // SAFETY: as the caller promises.
    let got =
        unsafe { libc::recvmmsg(fd, messages.as_mut_ptr(), messages.len() as libc::c_uint, libc::MSG_DONTWAIT as _, ptr::null_mut()) };
    check(got).map(|count| count as usize)
}

/// Send up to `messages.len()` datagrams, without waiting; says how many went.
///
/// # Safety
/// Each header points to readable buffers.
pub unsafe fn send_many(fd: RawFd, messages: &mut [libc::mmsghdr]) -> io::Result<usize> {
    // SAFETY: as the caller promises.
    let sent = unsafe {
        libc::sendmmsg(fd, messages.as_mut_ptr(), messages.len() as libc::c_uint, (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _)
    };
    check(sent).map(|count| count as usize)
}

/// SOCK_DGRAM, SOCK_SEQPACKET, …; None where the descriptor is no socket.
pub fn socket_type(fd: RawFd) -> Option<libc::c_int> {
    socket_option(fd, libc::SOL_SOCKET, libc::SO_TYPE, 0).ok()
}

/// An option of a socket that is a plain value of the kernel's.
fn socket_option<T: Copy>(fd: RawFd, level: libc::c_int, name: libc::c_int, mut value: T) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is a valid place of `len` bytes for the answer.
    check(unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &mut len) }).map(|_| value)
}

/// Frames that a packet socket had no room for since this was asked last (PACKET_STATISTICS; struct tpacket_stats).
pub fn packet_drops(fd: RawFd) -> io::Result<u64> {
    socket_option(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, [0u32; 2]).map(|[_, drops]| drops.into())
}

/// The error that a socket has to tell, which is told once.
pub fn socket_error(fd: RawFd) -> Option<libc::c_int> {
    socket_option(fd, libc::SOL_SOCKET, libc::SO_ERROR, 0).ok().filter(|&error: &libc::c_int| error != 0)
}

/// Is it a UDP socket of IPv4 or IPv6?
pub fn is_udp(fd: RawFd) -> bool {
    let (mut protocol, mut len): (libc::c_int, _) = (0, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: `protocol` is a valid place of `len` bytes for the answer.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL, (&raw mut protocol).cast(), &mut len) };
    result == 0 && protocol == libc::IPPROTO_UDP && socket_type(fd) == Some(libc::SOCK_DGRAM)
}

/// Have datagrams that follow each other come in together (UDP_GRO of udp(7), Linux 5.0); false where the kernel knows none of it.
pub fn join_datagrams(fd: RawFd) -> bool {
    let on: libc::c_int = 1;
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `on` is readable.
    unsafe { libc::setsockopt(fd, libc::SOL_UDP, libc::UDP_GRO, (&raw const on).cast(), len) == 0 }
}

/// Room for one control message with a number in it, aligned as the kernel wants it.
pub type Control = [u64; 3];
/// Its header: length, level, type.
const CONTROL_HEADER: usize = mem::size_of::<libc::cmsghdr>();

/// Have the kernel cut what `header` sends into datagrams of `size` bytes, the last one shorter (UDP_SEGMENT).
pub fn cut_to(header: &mut libc::msghdr, control: &mut Control, size: u16) {
    // SAFETY: all-zero is a valid header.
    let mut head: libc::cmsghdr = unsafe { mem::zeroed() };
    head.cmsg_len = (CONTROL_HEADER + mem::size_of::<u16>()) as _;
    (head.cmsg_level, head.cmsg_type) = (libc::SOL_UDP, libc::UDP_SEGMENT);
    // SAFETY: three words are longer than a header with a number behind it, and aligned for both.
    unsafe {
        control.as_mut_ptr().cast::<libc::cmsghdr>().write(head);
        control.as_mut_ptr().cast::<u8>().add(CONTROL_HEADER).cast::<u16>().write(size);
    }
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = mem::size_of::<Control>() as _;
}

/// The length of each datagram but the last, where several came in together.
pub fn cut_of(header: &libc::msghdr, control: &Control) -> Option<usize> {
    if header.msg_controllen < CONTROL_HEADER + mem::size_of::<libc::c_int>() {
        return None;
    }
    // SAFETY: three words are longer than a header, and aligned for it.
    let found = unsafe { control.as_ptr().cast::<libc::cmsghdr>().read() };
    // SAFETY: a number fits behind the header.
    let size = unsafe { control.as_ptr().cast::<u8>().add(CONTROL_HEADER).cast::<libc::c_int>().read() };
    (found.cmsg_level == libc::SOL_UDP && found.cmsg_type == libc::UDP_GRO).then(|| usize::try_from(size).unwrap_or(0))
}

pub fn nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: no memory is involved.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: no memory is involved.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

/// An epoll instance, closed when dropped.
pub struct Epoll(RawFd);

impl Epoll {
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: no memory is involved.
        check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(Epoll)
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: `event` lives through the call.
        check(unsafe { libc::epoll_ctl(self.0, operation, fd, &mut event) }).map(drop)
    }

    pub fn add(&self, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, token)
    }

    pub fn change(&self, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events, token)
    }

    /// Stop watching; a descriptor that is closed already is no mistake.
    pub fn remove(&self, fd: RawFd) {
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0, 0);
    }

    /// Wait for `timeout_ms` at most (-1: for ever) and return the part of `ready` that was filled.
    pub fn wait<'a>(&self, ready: &'a mut [Ready], timeout_ms: i32) -> io::Result<&'a [Ready]> {
        // SAFETY: the kernel fills at most `ready.len()` entries.
        let count = check(unsafe { libc::epoll_wait(self.0, ready.as_mut_ptr(), ready.len() as libc::c_int, timeout_ms) })?;
        Ok(&ready[..count as usize])
    }
}

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours and closed once.
        unsafe { libc::close(self.0) };
    }
}

/// A timerfd of CLOCK_MONOTONIC.
pub struct Timer(OwnedFd);

impl Timer {
    pub fn new() -> io::Result<Timer> {
        // SAFETY: no memory is involved; the new descriptor has one owner.
        unsafe {
            let fd = check(libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC))?;
            Ok(Timer(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// It went off: until it is set again it is quiet.
    pub fn hush(&self) {
        let mut times = 0u64;
        // SAFETY: eight writable bytes.
        unsafe { libc::read(self.fd(), (&raw mut times).cast(), 8) };
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Ring once at a time of CLOCK_MONOTONIC.
    pub fn set(&self, at_ns: u64) {
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let at = libc::timespec { tv_sec: (at_ns / 1_000_000_000) as _, tv_nsec: (at_ns % 1_000_000_000).max(1) as _ };
        let spec = libc::itimerspec { it_interval: none, it_value: at };
        // SAFETY: `spec` is readable.
        unsafe { libc::timerfd_settime(self.fd(), libc::TFD_TIMER_ABSTIME, &spec, ptr::null_mut()) };
    }
}
