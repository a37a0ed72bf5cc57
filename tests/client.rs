//! The public names as used by a program: the code here, in another crate, must continue to
//! compile.

#![allow(
    clippy::incompatible_msrv,
    reason = "tests need a newer Rust than the library"
)]

use std::{
    collections::BTreeSet,
    fmt::Debug,
    io,
    net::{IpAddr, TcpListener},
    ops::{ControlFlow, RangeInclusive},
    path::PathBuf,
    time::Duration,
};

use portlock::{
    BindFreePort, Builder, CleanCounts, EntryState, Error, ErrorKind, FreePort, Heir, LockDir,
    Origin, Owner, PortCounts, PortEntry, PortSet, Ports, Protocol, Result, WaitStatus,
    ephemeral_port_range, wait_until_listening,
};

/// Types that a program may keep in its own types.
type Kept<'a> = (FreePort, BindFreePort, Builder, PortSet, Ports<'a>, LockDir);

fn is_shared_between_threads<T: Debug + Send + Sync>() {}

#[test]
fn everything_can_be_kept_and_shared() {
    is_shared_between_threads::<Kept<'_>>();
    is_shared_between_threads::<(Error, ErrorKind, PortCounts, WaitStatus, Protocol)>();
    is_shared_between_threads::<(Origin, Owner, PortEntry, EntryState, Heir, CleanCounts)>();
    let owned: Ports<'static> = PortSet::from(4000).into_iter();
    assert_eq!(owned.len(), 1);
}

fn set(ports: impl Into<PortSet>) -> String {
    ports.into().to_string()
}

/// Inference works for literals too.
#[test]
fn a_set_is_created_from_anything_that_names_ports() {
    assert_eq!(set(4000), "4000");
    assert_eq!(set([4002, 4000, 4001, 4000]), "4000-4002");
    assert_eq!(set(4000..4002), "4000-4001");
    assert_eq!(set(4000..=4002), "4000-4002");
    assert_eq!(set(65_534..), "65534-65535");
    assert_eq!(set(..3), "1-2");
    assert_eq!(set(..=3), "1-3");
    assert_eq!(set(..), "1-65535");
    let ports: PortSet = "4000-4999,!4045".parse().expect("valid");
    assert_eq!(set(&ports), "4000-4044,4046-4999");
    let number: u16 = 4711;
    assert_eq!(set(number), "4711");
    let range: RangeInclusive<u16> = number..=number + 1;
    assert_eq!(set(range), "4711-4712");
    assert_eq!(set(ports), "4000-4044,4046-4999");
}

#[test]
fn a_set_behaves_like_the_sets_of_std() {
    let (a, b) = (PortSet::from(1..=4), PortSet::from([4, 5]));
    assert_eq!((&a | &b).to_string(), "1-5");
    assert_eq!((&a & &b).to_string(), "4");
    assert_eq!((&a - &b).to_string(), "1-3");
    assert_eq!((a.clone() | b.clone()).to_string(), "1-5");
    assert_eq!((a.clone() & &b).to_string(), "4");
    assert_eq!((a.clone() - &b).to_string(), "1-3");
    assert_eq!(a.union(&b), &a | &b);
    assert_eq!(a.intersection(&b), &a & &b);
    assert_eq!(a.difference(&b), &a - &b);
    assert!(!a.is_disjoint(&b) && a.is_disjoint(&PortSet::default()));

    let mut sum = 0;
    for port in &b {
        sum += port;
    }
    assert_eq!(sum, 9);
    let sorted: BTreeSet<u16> = a.clone().into_iter().collect();
    assert!(sorted.iter().copied().eq(a.iter()));
    assert_eq!((a.iter().len(), a.iter().next_back()), (4, Some(4)));
    let mut more: PortSet = a.iter().filter(|port| port % 2 == 0).collect();
    more.extend([9, 0]);
    more.extend(&b);
    assert_eq!(more.to_string(), "2,4-5,9");
}

fn own_dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

#[test]
fn every_function_that_chooses_ports_accepts_a_set() {
    let dir = own_dir();
    let lease = Builder::default()
        .lock_dir(dir.path())
        .acquire()
        .expect("free");
    let port = lease.port();
    let set = PortSet::from(port);
    let is_busy = |builder: Builder| {
        let error = builder.lock_dir(dir.path()).try_acquire();
        error.expect_err("leased").is_busy()
    };
    assert!(is_busy(Builder::new().ports(port)));
    assert!(is_busy(FreePort::builder().ports([port, port])));
    assert!(is_busy(FreePort::builder().ports(&set)));
    assert!(is_busy(FreePort::builder().ports(set)));
    assert!(is_busy(FreePort::builder().ports(port..=port)));
    lease.release().expect("our own");

    // With the default lock directory, and therefore only compiled.
    let _ = || -> Result<()> {
        let _: FreePort = FreePort::new(4000)?;
        let _: FreePort = FreePort::new([4000, 4001])?;
        let ports = PortSet::from(4000..=6000);
        let _: FreePort = FreePort::try_new(&ports)?;
        let _: FreePort = FreePort::try_new(ports)?;
        let (_, _): (FreePort, TcpListener) = FreePort::listen(4000..)?;
        let _: BindFreePort = BindFreePort::new(4000)?;
        let _: RangeInclusive<u16> = ephemeral_port_range()?;
        wait_until_listening(("localhost", 4000), Duration::ZERO)
    };
}

#[test]
fn errors_have_a_kind() {
    let error = FreePort::new(0).expect_err("no port");
    assert_eq!(error.kind(), ErrorKind::InvalidPorts);
    assert!(!error.is_busy() && error.counts().is_none() && error.raw_os_error().is_none());
    let io: io::Error = error.into();
    assert_eq!(io.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_wait_can_be_watched_and_stopped() {
    let dir = own_dir();
    let builder = Builder::new().lock_dir(dir.path());
    let lease = builder.acquire().expect("free");
    let watched = builder.ports(lease.port()).on_wait(|status: &WaitStatus| {
        let _: (Duration, PortCounts) = (status.elapsed(), status.counts());
        assert!(status.to_string().contains("1 leased"));
        ControlFlow::Break(())
    });
    let error = watched.clone().acquire().expect_err("stopped");
    assert_eq!(error.kind(), ErrorKind::Stopped);
}

#[test]
fn a_lock_directory_has_an_entry_for_each_port() {
    let path = own_dir();
    let dir: LockDir = LockDir::open(path.path()).expect("our own");
    assert_eq!(dir.origin(), Origin::Given);
    let lease = Builder::new().lock_dir(dir.path()).acquire().expect("free");
    let entries: Vec<PortEntry> = dir.entries().expect("our own");
    let [entry] = &entries[..] else {
        panic!("one port was leased: {entries:?}");
    };
    assert!(entry.is_leased() && entry.port == lease.port() && entry.heir.is_none());
    let port = lease.delegate_to(std::process::id()).expect("our own");
    dir.release(port).expect("our own");
    let entry = dir.entry(port).expect("our own").expect("its file");
    assert!(!entry.is_leased() && entry.state == EntryState::Stale && entry.owner.is_none());
    assert_eq!(
        dir.force_release(port).expect_err("not leased").kind(),
        ErrorKind::Lock
    );
    let cleaned: CleanCounts = dir.clean().expect("our own");
    assert_eq!((cleaned.removed, cleaned.kept), (1, 0));

    let _ = || -> Result<PathBuf> { Ok(LockDir::locate()?.path().to_owned()) };
}

/// Every name of the other tools, under its tool. Only compiled: other tests check the behavior.
#[test]
fn other_tools_have_a_module_each() {
    use portlock::compat::{Family, SocketType};

    let _ = || -> Result<()> {
        use portlock::compat::portpicker;
        let port: u16 = portpicker::pick_unused_port()?;
        portpicker::return_port(port)?;
        portpicker::add_reserved_port(port)?;
        let _: bool = portpicker::is_port_free(port)?;
        let _: Option<u16> = portpicker::bind(port, SocketType::Datagram)?;
        let _: u16 = portpicker::get_port_from_port_server("@server", 812)?;
        Ok(())
    };
    let _ = |socket: socket2::Socket| -> Result<()> {
        use portlock::compat::cpython;
        let _: [IpAddr; 3] = [
            cpython::HOST.into(),
            cpython::HOST_V4.into(),
            cpython::HOST_V6.into(),
        ];
        let _: u16 = cpython::bind_port(&socket, cpython::HOST)?;
        let _: u16 = cpython::find_unused_port(Family::V6, SocketType::Stream)?;
        Ok(())
    };
    let _ = || -> Result<()> {
        use portlock::compat::pysys;
        let _: RangeInclusive<u16> = pysys::get_ephemeral_tcp_port_range()?;
        let _: PortSet = &pysys::get_server_tcp_ports()? - &pysys::excluded_tcp_ports();
        pysys::initialize_port_pool()?;
        let owner: pysys::TcpPortOwner = pysys::TcpPortOwner::new()?;
        let _: u16 = owner.port();
        owner.cleanup()?;
        let _ = pysys::TcpPortOwner::with_hosts(&pysys::DEFAULT_HOSTS, Family::V4)?;
        let port: u16 = pysys::allocate_tcp_port(&["localhost"], Family::V4)?;
        let _: bool = pysys::port_is_in_use(port, "", Family::V4, SocketType::Stream)?;
        let stats: pysys::PortAllocationStats = pysys::log_port_allocation_stats()?;
        let _: [usize; 3] = [
            stats.total_server_ports,
            stats.peak_allocated_ports,
            stats.lifetime_total_allocated_ports,
        ];
        Ok(())
    };
}
