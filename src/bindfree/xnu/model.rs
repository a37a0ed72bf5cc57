//! A model of how XNU binds sockets and finds the socket of a connection, and tests that run the
//! probe on it.
//!
//! It models one port. It omits privileged ports, IPv6 scopes and Skywalk's reservations.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use socket2::Type;

use super::{ANY, ANY_V4, Network, Options, bind};
use crate::{
    bindfree::{distinct, probe::UNKNOWN_FAMILY},
    unavailable::{Attempt, Failure, Unavailable},
};

const LOOPBACK_V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOOPBACK: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const OTHER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 5));
const OTHER: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5));
const ADDRESSES: [IpAddr; 4] = [LOOPBACK_V4, LOOPBACK, OTHER_V4, OTHER];

const ROOT: u32 = 0;
const USER: u32 = 501;
const OTHER_USER: u32 = 502;

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Bound,
    Listening,
    Connected,
    TimeWait,
}

/// A protocol control block: `struct inpcb` with the relevant parts of its `struct socket`.
#[derive(Clone, Copy, PartialEq)]
struct Pcb {
    ty: Type,
    /// `PF_INET6`. The address may still be an IPv4 one: `::ffff:127.0.0.1`.
    is_v6_socket: bool,
    address: IpAddr,
    only_v6: bool,
    reuse_address: bool,
    reuse_port: bool,
    state: State,
    uid: u32,
    /// Whether it belongs to the probe rather than an occupant.
    is_probe: bool,
    id: usize,
}

impl Pcb {
    /// `INP_IPV4`, set by `tcp6_usr_bind` and `udp6_bind` for some IPv6 sockets.
    fn has_v4(&self) -> bool {
        self.address.is_ipv4() || self.address.is_unspecified() && !self.only_v6
    }

    /// `INP_IPV6`.
    fn has_v6(&self) -> bool {
        self.address.is_ipv6()
    }

    fn has_family_of(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.has_v4(),
            IpAddr::V6(_) => self.has_v6(),
        }
    }

    /// Returns whether its foreign address is not the wildcard address.
    fn is_connected(&self) -> bool {
        matches!(self.state, State::Connected | State::TimeWait)
    }

    fn is_at(&self, address: IpAddr) -> bool {
        self.address == address || self.address.is_unspecified() && address.is_unspecified()
    }
}

impl fmt::Display for Pcb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = [
            (self.is_v6_socket, " v6"),
            (self.only_v6, " only"),
            (self.reuse_address, " reuseaddr"),
            (self.reuse_port, " reuseport"),
        ];
        write!(f, "{:?} of {} at {}", self.state, self.uid, self.address)?;
        let set = options.into_iter().filter(|(is_set, _)| *is_set);
        set.map(|(_, name)| name)
            .try_for_each(|name| f.write_str(name))
    }
}

/// The sockets, newest first, as in both hash lists of the kernel (`in_pcbinshash`).
#[derive(Default)]
struct Kernel {
    pcbs: RefCell<Vec<Pcb>>,
    has_no_v6: bool,
    binds: RefCell<usize>,
    harm: RefCell<usize>,
}

impl Kernel {
    /// `in_pcblookup_local` and `in6_pcblookup_local`.
    fn lookup_local(&self, ty: Type, address: IpAddr, wild: bool) -> Option<Pcb> {
        let pcbs = self.pcbs.borrow();
        let of_family = |pcb: &&Pcb| pcb.ty == ty && pcb.has_family_of(address);
        let mut candidates = pcbs.iter().filter(of_family);
        if !wild {
            return candidates
                .find(|pcb| !pcb.is_connected() && pcb.is_at(address))
                .copied();
        }
        let fit = |pcb: &Pcb| {
            let is_met =
                pcb.is_at(address) || pcb.address.is_unspecified() || address.is_unspecified();
            let wildcards = usize::from(pcb.is_connected())
                + usize::from(pcb.address.is_unspecified() != address.is_unspecified());
            is_met.then_some(wildcards)
        };
        // The first of several that match equally well.
        candidates
            .filter_map(|pcb| Some((fit(pcb)?, pcb)))
            .min_by_key(|(wildcards, _)| *wildcards)
            .map(|(_, pcb)| *pcb)
    }

    /// Models `in_pcbbind` and `in6_pcbbind`, after `tcp_usr_bind` and similar functions.
    fn may_bind(&self, new: &Pcb) -> bool {
        let wild = !new.reuse_address && !new.reuse_port;
        let share_port = |t: &Pcb| new.reuse_port && t.reuse_port;
        let new_is_any = new.address.is_unspecified();
        let met = self.lookup_local(new.ty, new.address, wild);
        let met_by_user = match new.uid {
            ROOT => None,
            uid => {
                let met = self.lookup_local(new.ty, new.address, true);
                met.filter(|t| t.uid != uid)
            }
        };
        if new.address.is_ipv4() {
            // For two wildcard addresses the kernel compares no users, so SO_REUSEPORT has no
            // effect here.
            let is_other_users =
                met_by_user.is_some_and(|t| !(new_is_any && t.address.is_unspecified()));
            let is_in_use = met.is_some_and(|t| {
                let is_exempt =
                    new_is_any && t.address.is_unspecified() && new.is_v6_socket && t.is_v6_socket;
                !share_port(&t) && !is_exempt
            });
            return !is_other_users && !is_in_use;
        }
        let is_other_users = met_by_user
            .is_some_and(|t| !(new_is_any && t.address.is_unspecified() && t.reuse_port));
        if is_other_users || met.is_some_and(|t| !share_port(&t)) {
            return false;
        }
        if !new_is_any || new.only_v6 {
            return true;
        }
        let is_met = |t: &Pcb| !t.address.is_unspecified() || t.is_v6_socket;
        let met = self.lookup_local(new.ty, ANY_V4, wild);
        let met_by_user = match new.uid {
            ROOT => None,
            uid => {
                let met = self.lookup_local(new.ty, ANY_V4, true);
                met.filter(|t| t.uid != uid && !t.reuse_port)
            }
        };
        !met_by_user.is_some_and(|t| is_met(&t))
            && !met.is_some_and(|t| !share_port(&t) && is_met(&t))
    }

    /// Returns which socket receives a new connection or a datagram to `address`:
    /// `in_pcblookup_hash_locked` and `in6_pcblookup_hash_locked`.
    fn receiver(&self, ty: Type, address: IpAddr, with_probe: bool) -> Option<Pcb> {
        let (mut wild, mut mapped) = (None, None);
        for pcb in self.pcbs.borrow().iter() {
            let is_there = with_probe || !pcb.is_probe;
            if !is_there || pcb.ty != ty || !pcb.has_family_of(address) || pcb.is_connected() {
                continue;
            }
            if pcb.address == address {
                return Some(*pcb);
            }
            if pcb.address.is_unspecified() {
                match address.is_ipv4() && pcb.is_v6_socket {
                    true => mapped = Some(*pcb),
                    false => wild = Some(*pcb),
                }
            }
        }
        wild.or(mapped)
    }

    fn insert(&self, mut pcb: Pcb) -> usize {
        let mut pcbs = self.pcbs.borrow_mut();
        pcb.id = pcbs.iter().map(|pcb| pcb.id + 1).max().unwrap_or(0);
        pcbs.insert(0, pcb);
        pcb.id
    }
}

/// The sockets that one user's probe creates.
struct Sockets<'a> {
    kernel: &'a Kernel,
    ty: Type,
    uid: u32,
}

struct Socket<'a> {
    kernel: &'a Kernel,
    id: usize,
}

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        let id = self.id;
        self.kernel.pcbs.borrow_mut().retain(|pcb| pcb.id != id);
    }
}

impl<'a> Network for Sockets<'a> {
    type Socket = Socket<'a>;

    fn bind(&self, host: IpAddr, options: Options) -> Attempt<Socket<'a>, Unavailable, io::Error> {
        let kernel = self.kernel;
        if kernel.has_no_v6 && host.is_ipv6() {
            return Err(io::Error::from_raw_os_error(UNKNOWN_FAMILY).into());
        }
        assert!(host.is_unspecified() || ADDRESSES.contains(&host));
        let new = Pcb {
            ty: self.ty,
            is_v6_socket: host.is_ipv6(),
            address: host,
            only_v6: options.only_v6 && host.is_ipv6(),
            reuse_address: options.reuse_address,
            reuse_port: false,
            state: State::Bound,
            uid: self.uid,
            is_probe: true,
            id: 0,
        };
        *kernel.binds.borrow_mut() += 1;
        if !kernel.may_bind(&new) {
            return Err(Unavailable::Bound.into());
        }
        let id = kernel.insert(new);
        let is_harmed = |address: &IpAddr| {
            let before = kernel.receiver(self.ty, *address, false);
            before.is_some() && before != kernel.receiver(self.ty, *address, true)
        };
        *kernel.harm.borrow_mut() += usize::from(ADDRESSES.iter().any(is_harmed));
        Ok(Socket { kernel, id })
    }

    fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        Ok(ADDRESSES.to_vec())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Free,
    Bound,
    Lingering,
}

const PROTOCOLS: [&[Type]; 3] = [
    &[Type::STREAM],
    &[Type::DGRAM],
    &[Type::STREAM, Type::DGRAM],
];
const REQUESTS: [&[IpAddr]; 9] = [
    &[],
    &[ANY_V4],
    &[ANY],
    &[LOOPBACK_V4],
    &[LOOPBACK],
    &[OTHER_V4],
    &[OTHER],
    &[LOOPBACK_V4, LOOPBACK],
    &[ANY_V4, LOOPBACK],
];

/// Returns what the probe finds, called as `Probe::bind` calls it.
fn probe(
    kernel: &Kernel,
    uid: u32,
    hosts: &[IpAddr],
    types: &[Type],
    closing_is_free: bool,
) -> Verdict {
    let mut hosts = distinct(hosts);
    if hosts.is_empty() {
        hosts.push(if kernel.has_no_v6 { ANY_V4 } else { ANY });
    }
    let mut sockets = Vec::new();
    for host in hosts {
        for &ty in types {
            let network = Sockets { kernel, ty, uid };
            match bind(&network, host, ty, closing_is_free) {
                Ok(socket) => sockets.push(socket),
                Err(Failure::Unavailable(Unavailable::Bound)) => return Verdict::Bound,
                Err(Failure::Unavailable(Unavailable::Lingering)) => return Verdict::Lingering,
                Err(failure) => panic!("{failure:?}"),
            }
        }
    }
    Verdict::Free
}

/// Returns what the probe must find: the first host and protocol that is not free decides.
fn expected(
    occupants: &[Pcb],
    uid: u32,
    hosts: &[IpAddr],
    types: &[Type],
    closing_is_free: bool,
) -> Verdict {
    let of = |hosts: &[IpAddr], ty: Type| {
        let is_met = |pcb: &&Pcb| {
            let meets = |&host: &IpAddr| {
                let is_covered = pcb.address.is_unspecified() || host.is_unspecified();
                pcb.has_family_of(host) && (is_covered || pcb.address == host)
            };
            pcb.ty == ty && hosts.iter().any(meets)
        };
        // Another user's connection blocks even a server with SO_REUSEADDR.
        let is_bound =
            |pcb: &Pcb| !pcb.is_connected() || ty == Type::DGRAM || uid != ROOT && uid != pcb.uid;
        let mut met = occupants.iter().filter(is_met).peekable();
        if met.peek().is_none() {
            Verdict::Free
        } else if met.any(is_bound) {
            Verdict::Bound
        } else if closing_is_free {
            Verdict::Free
        } else {
            Verdict::Lingering
        }
    };
    let hosts = match hosts {
        [] | [ANY] => vec![&[ANY_V4, ANY][..]],
        hosts => hosts.chunks(1).collect(),
    };
    let each = hosts
        .iter()
        .flat_map(|hosts| types.iter().map(|&ty| of(hosts, ty)));
    each.fold(Verdict::Free, |first, next| match first {
        Verdict::Free => next,
        first => first,
    })
}

/// Returns all possible occupants for one protocol.
fn occupants(ty: Type, uids: &[u32]) -> Vec<Pcb> {
    let places = [
        (false, ANY_V4, false),
        (false, LOOPBACK_V4, false),
        (false, OTHER_V4, false),
        (true, ANY, false),
        (true, ANY, true),
        (true, LOOPBACK, false),
        (true, OTHER, true),
        (true, LOOPBACK_V4, false),
    ];
    let states = match ty {
        Type::STREAM => &[
            State::Bound,
            State::Listening,
            State::Connected,
            State::TimeWait,
        ][..],
        _ => &[State::Bound, State::Connected],
    };
    let mut all = Vec::new();
    for (is_v6_socket, address, only_v6) in places {
        for &state in states {
            for (reuse_address, reuse_port) in
                [(false, false), (true, false), (false, true), (true, true)]
            {
                for &uid in uids {
                    let pcb = Pcb {
                        ty,
                        is_v6_socket,
                        address,
                        only_v6,
                        reuse_address,
                        reuse_port,
                        state,
                        uid,
                        is_probe: false,
                        id: 0,
                    };
                    // A connection has a specific local address.
                    if !pcb.is_connected() || !address.is_unspecified() {
                        all.push(pcb);
                    }
                }
            }
        }
    }
    all
}

/// Counts the results of the probe for some occupants.
#[derive(Default)]
struct Tally {
    cells: usize,
    harmful: usize,
    wrong: usize,
    examples: BTreeSet<String>,
}

impl Tally {
    /// Runs every request against the occupants.
    fn run(&mut self, occupants: &[Pcb], uid: u32, has_no_v6: bool, verdicts_matter: bool) {
        for hosts in REQUESTS {
            if has_no_v6 && (hosts.contains(&LOOPBACK) || hosts.contains(&OTHER)) {
                continue;
            }
            for types in PROTOCOLS {
                // Unset is the same as `false`: no table shows closing connections.
                for reuse_address in [None, Some(false), Some(true)] {
                    let closing_is_free = reuse_address == Some(true);
                    let kernel = Kernel {
                        has_no_v6,
                        ..Kernel::default()
                    };
                    for pcb in occupants {
                        kernel.insert(*pcb);
                    }
                    let found = probe(&kernel, uid, hosts, types, closing_is_free);
                    let expected = expected(occupants, uid, hosts, types, closing_is_free);
                    let is_right = !verdicts_matter || found == expected;
                    let harm = kernel.harm.into_inner();
                    self.cells += 1;
                    self.wrong += usize::from(!is_right);
                    self.harmful += harm;
                    if (!is_right || harm > 0) && self.examples.len() < 40 {
                        let occupants: Vec<String> =
                            occupants.iter().map(|pcb| pcb.to_string()).collect();
                        self.examples.insert(format!(
                            "{occupants:?}, request of {uid} for {hosts:?} {types:?} \
                             {reuse_address:?}: {found:?}, not {expected:?}, harm {harm}"
                        ));
                    }
                }
            }
        }
    }

    fn assert_all_right(&self, what: &str) {
        let Self {
            cells,
            harmful,
            wrong,
            examples,
        } = self;
        println!("{what}: {cells} cells, {wrong} wrong verdicts, {harmful} harmful binds");
        let examples: Vec<&str> = examples.iter().map(String::as_str).collect();
        assert!(
            *wrong == 0 && *harmful == 0 && *cells > 0,
            "{}",
            examples.join("\n")
        );
    }
}

#[test]
fn the_probe_never_binds_in_front_of_a_server() {
    let mut tally = Tally::default();
    for uid in [USER, ROOT] {
        tally.run(&[], uid, false, true);
        tally.run(&[], uid, true, true);
        for ty in [Type::STREAM, Type::DGRAM] {
            for occupant in occupants(ty, &[USER, OTHER_USER]) {
                tally.run(&[occupant], uid, false, true);
                if !occupant.is_v6_socket {
                    tally.run(&[occupant], uid, true, true);
                }
            }
        }
    }
    tally.assert_all_right("one occupant");
}

/// A child that is being spawned may keep a copy of each.
#[test]
fn a_free_port_takes_as_few_sockets_as_can_be() {
    for (host, binds) in [(ANY, 2), (ANY_V4, 1), (LOOPBACK_V4, 1), (LOOPBACK, 1)] {
        let kernel = Kernel::default();
        let found = probe(&kernel, USER, &[host], &[Type::STREAM], false);
        assert_eq!(
            (found, *kernel.binds.borrow()),
            (Verdict::Free, binds),
            "{host}"
        );
    }
}

/// Such as a server and its connections in TIME_WAIT, or an IPv4 and an IPv6 socket.
#[test]
fn two_occupants_do_not_hide_each_other() {
    let mut tally = Tally::default();
    let all = occupants(Type::STREAM, &[USER, OTHER_USER]);
    for first in &all {
        for second in &all {
            // The options of a connection are not compared, and both options behave like
            // SO_REUSEPORT alone.
            let is_repeated = |pcb: &Pcb| {
                pcb.reuse_address && (pcb.reuse_port || pcb.is_connected())
                    || pcb.reuse_port && pcb.is_connected()
            };
            if is_repeated(first) || is_repeated(second) {
                continue;
            }
            let kernel = Kernel::default();
            kernel.insert(*first);
            if second.is_connected() || kernel.may_bind(second) {
                // Of several sockets of a family, the kernel compares the user of only the best
                // match with the user of the new socket, so a bind does not show whether the
                // others belong to another user.
                let have_both = |has: fn(&Pcb) -> bool| has(first) && has(second);
                let verdicts_matter =
                    first.uid == second.uid || !have_both(Pcb::has_v4) && !have_both(Pcb::has_v6);
                tally.run(&[*first, *second], USER, false, verdicts_matter);
            }
        }
    }
    tally.assert_all_right("two occupants");
}
