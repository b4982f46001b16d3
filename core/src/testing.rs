//! What the core's own tests and measurements share.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::arena::Arena;
use crate::ports::{NOBODY, Vlan, Worker};
use crate::repair::Policy;
use crate::sys::{self, Epoll, Ready};
use crate::user::config::{Config, Loopback, Subnet};

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

/// Doorbells of workers 0 to `count` - 1, open as long as the process; `flags` are 0 or EFD_NONBLOCK.
pub fn bells(count: usize, flags: libc::c_int) -> Vec<RawFd> {
    let bell = |_| {
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::eventfd(0, flags | libc::EFD_CLOEXEC) };
        assert!(fd >= 0, "eventfd: {}", std::io::Error::last_os_error());
        fd
    };
    (0..count).map(bell).collect()
}

/// A worker's sleep, as its loop has it: it says so, looks once more, and blocks in epoll until its bell is rung.
pub struct Sleeper {
    arena: &'static Arena,
    me: Worker,
    bells: Vec<RawFd>,
    epoll: Epoll,
}

impl Sleeper {
    pub fn new(arena: &'static Arena, me: Worker, bells: &[RawFd]) -> Sleeper {
        let epoll = Epoll::new().expect("a descriptor for epoll");
        epoll.add(bells[usize::from(me)], (libc::EPOLLIN | libc::EPOLLET) as u32, 0).expect("an eventfd can be waited for");
        Sleeper { arena, me, bells: bells.to_vec(), epoll }
    }

    /// Sleep unless there is something to do; panics after ten seconds, for then a wake-up was lost.
    pub fn sleep_unless(&self, ready: impl FnOnce() -> bool) {
        let sleeping = &self.arena.worker(self.me).sleeping;
        sleeping.announce();
        if !ready() {
            let mut events = [Ready { events: 0, u64: 0 }];
            let woken = !self.epoll.wait(&mut events, 10_000).expect("epoll_wait").is_empty();
            assert!(woken, "worker {} slept for ten seconds", self.me);
        }
        sleeping.awake();
    }

    /// Wake a worker that sleeps.
    pub fn ring(&self, worker: Worker) {
        if self.arena.worker(worker).sleeping.must_ring() {
            sys::ring(self.bells[usize::from(worker)]);
        }
    }
}

/// A process that runs a closure; killed when dropped.
pub struct Child(libc::pid_t);

impl Child {
    /// Fork. The closure runs with one thread and everything else of this process's memory; its panic is the process's failure.
    pub fn run(work: impl FnOnce()) -> Child {
        // SAFETY: the child leaves by _exit, so nothing of the parent's is ended twice.
        match unsafe { libc::fork() } {
            -1 => panic!("fork: {}", std::io::Error::last_os_error()),
            0 => {
                // SAFETY: no memory is involved.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                let status = i32::from(catch_unwind(AssertUnwindSafe(work)).is_err());
                // SAFETY: ends the process.
                unsafe { libc::_exit(status) }
            }
            pid => Child(pid),
        }
    }

    /// Wait for its end: its exit status, or the signal that ended it.
    pub fn end(mut self) -> Result<i32, i32> {
        self.reap()
    }

    pub fn kill(mut self) {
        self.signal(libc::SIGKILL);
        let _ = self.reap();
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: no memory is involved; the process is ours and was not reaped yet.
        unsafe { libc::kill(self.0, signal) };
    }

    fn reap(&mut self) -> Result<i32, i32> {
        let (pid, mut status) = (std::mem::replace(&mut self.0, 0), 0);
        // SAFETY: `status` is a valid place for the answer.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        if libc::WIFEXITED(status) { Ok(libc::WEXITSTATUS(status)) } else { Err(libc::WTERMSIG(status)) }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.0 != 0 {
            self.signal(libc::SIGKILL);
            let _ = self.reap();
        }
    }
}

/// A port that is up, on the first switch, with nothing special about it.
pub fn plain(worker: Worker) -> Policy {
    Policy {
        worker,
        switch: 0,
        up: true,
        vlan: Vlan::Plain,
        trunk: Vec::new(),
        isolated: false,
        max_macs: 0,
        mtu: 0,
        behind: NOBODY,
        shards: 0,
        share: 0,
        capture: false,
        out: Default::default(),
        inward: Default::default(),
    }
}

/// QEMU's addresses, nothing forwarded, nothing forbidden.
pub fn user_config() -> Config {
    let v4 = |d: u8| Ipv4Addr::new(10, 0, 2, d).to_ipv6_mapped();
    let v6 = |last: u16| Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, last);
    Config {
        v4: Some(Subnet { net: v4(0), prefix: 120, host: v4(2), outbound: None }),
        v6: Some(Subnet { net: v6(0), prefix: 64, host: v6(2), outbound: None }),
        mtu: 0,
        restrict: false,
        loopback: Loopback::All,
        interface: String::new(),
        max_flows: 65_536,
        managed: false,
        sockets: usize::MAX,
        ledger: None,
        peek_offset: true,
        resolvers: Vec::new(),
        search: Vec::new(),
        guestfwd: Vec::new(),
        handed: Vec::new(),
        service: None,
        spread: Default::default(),
    }
}
