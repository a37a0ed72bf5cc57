//! The tools that are compared, and all that differs between them.

/// The ports that every tool that takes a range is given: outside the ephemeral
/// range, from which the kernel gives ports to anybody.
pub(crate) const FIRST: u16 = 20000;
pub(crate) const LAST: u16 = 23999;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// This one; the name of the crate.
    Rust(&'static str),
    Python,
    /// With a port server beside it.
    PythonServed,
    Node,
}

pub(crate) struct Tool {
    pub(crate) name: &'static str,
    /// What its worker is told to use.
    pub(crate) id: &'static str,
    pub(crate) program: Program,
    pub(crate) call: &'static str,
    /// What its documentation or, where that is silent, its source promises.
    pub(crate) promise: &'static str,
    pub(crate) ports: &'static str,
    pub(crate) takes_range: bool,
    /// A port that was picked can be given back, to anybody.
    pub(crate) releases: bool,
}

const RANGE: &str = "20000-23999";
const EPHEMERAL: &str = "ephemeral, the kernel's choice";

/// The same tool at both ends shows how much of a difference is noise.
pub(crate) const TOOLS: [Tool; 12] = [
    Tool {
        name: "portlock",
        ..PORTLOCK
    },
    Tool {
        name: "portpicker (crate)",
        id: "portpicker",
        program: Program::Rust("portpicker"),
        call: "`pick_unused_port()`",
        promise: "free for TCP and UDP when looked at; nothing is kept",
        ports: "15000-24999, its own",
        takes_range: false,
        releases: false,
    },
    Tool {
        name: "openport",
        id: "openport",
        program: Program::Rust("openport"),
        call: "`PortReservation::new(range).reserve_port()`",
        promise: "the first port free for TCP and UDP; kept within the process, in a set",
        ports: RANGE,
        takes_range: true,
        releases: true,
    },
    Tool {
        name: "port-selector",
        id: "port-selector",
        program: Program::Rust("port-selector"),
        call: "`select_free_port(Selector { port_range, .. })`",
        promise: "free for TCP and UDP when looked at; nothing is kept",
        ports: RANGE,
        takes_range: true,
        releases: false,
    },
    Tool {
        name: "port_check",
        id: "port_check",
        program: Program::Rust("port_check"),
        call: "`free_local_port()`",
        promise: "free on 127.0.0.1 when looked at; says so, and offers a retry helper",
        ports: EPHEMERAL,
        takes_range: false,
        releases: false,
    },
    Tool {
        name: "port_check, range",
        id: "port_check-range",
        program: Program::Rust("port_check"),
        call: "`free_local_port_in_range(range)`",
        promise: "the first port of the range that is free on 127.0.0.1 when looked at",
        ports: RANGE,
        takes_range: true,
        releases: false,
    },
    Tool {
        name: "portpicker (PyPI)",
        id: "portpicker",
        program: Program::Python,
        call: "`pick_unused_port()`",
        promise: "free for TCP and UDP when looked at; kept within the process, in a set",
        ports: EPHEMERAL,
        takes_range: false,
        releases: true,
    },
    Tool {
        name: "portpicker + portserver",
        id: "portpicker",
        program: Program::PythonServed,
        call: "`pick_unused_port()`, `portserver.py` running",
        promise: "a daemon remembers which process has which port; recommended on loaded hosts",
        ports: RANGE,
        takes_range: true,
        // What is returned stays the process's own.
        releases: false,
    },
    Tool {
        name: "fasteners recipe",
        id: "recipe",
        program: Program::Python,
        call: "bind, then `InterProcessLock(<port>).acquire(blocking=False)`",
        promise: "kept from all who use the same directory, by a lock file for each port",
        ports: RANGE,
        takes_range: true,
        releases: true,
    },
    Tool {
        name: "get-port",
        id: "get-port",
        program: Program::Node,
        call: "`getPort({reserve: true})`",
        promise: "free on every local address when looked at; kept within the process, in a set",
        ports: EPHEMERAL,
        takes_range: false,
        releases: true,
    },
    Tool {
        name: "get-port, range",
        id: "get-port-range",
        program: Program::Node,
        call: "`getPort({port: <the range in random order>, reserve: true})`",
        promise: "the same, the first of these that is free, or else any port",
        ports: RANGE,
        takes_range: true,
        releases: true,
    },
    Tool {
        name: "portlock, again",
        ..PORTLOCK
    },
];

const PORTLOCK: Tool = Tool {
    name: "portlock",
    id: "portlock",
    program: Program::Rust("portlock"),
    call: "`FreePort::try_new(range)`",
    promise: "kept from all who use the same directory, by a lock file for each port",
    ports: RANGE,
    takes_range: true,
    releases: true,
};

impl Tool {
    pub(crate) fn is_ours(&self) -> bool {
        self.id == PORTLOCK.id
    }

    /// It is slower while these are missing.
    pub(crate) fn makes_lock_files(&self) -> bool {
        self.is_ours() || self.id == "recipe"
    }
}
