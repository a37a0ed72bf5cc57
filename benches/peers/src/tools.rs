//! The compared tools, and everything that differs between them.

/// The range for every tool that takes one: outside the ephemeral range, from which the
/// kernel assigns ports to any program.
pub(crate) const FIRST: u16 = 20000;
pub(crate) const LAST: u16 = 23999;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// This program; the name of the crate.
    Rust(&'static str),
    Python,
    /// With a running port server.
    PythonServed,
    Node,
}

pub(crate) struct Tool {
    pub(crate) name: &'static str,
    /// The name of the tool in the arguments of its worker.
    pub(crate) id: &'static str,
    pub(crate) program: Program,
    pub(crate) call: &'static str,
    /// The promise of its documentation or, if that says nothing, of its source.
    pub(crate) promise: &'static str,
    pub(crate) ports: &'static str,
    pub(crate) takes_range: bool,
    /// Whether a picked port can be released, for any process.
    pub(crate) releases: bool,
}

const RANGE: &str = "20000-23999";
const EPHEMERAL: &str = "ephemeral, the kernel's choice";

/// The same tool at both ends shows how much of a difference is noise.
pub(crate) const TOOLS: [Tool; 14] = [
    PORTLOCK,
    Tool {
        name: "portlock, Python",
        program: Program::Python,
        call: "`FreePort.try_new(first, last)`",
        ..PORTLOCK
    },
    Tool {
        name: "portlock, Node.js",
        program: Program::Node,
        call: "`leaseSync({ ports, timeout: 0 })`",
        ..PORTLOCK
    },
    Tool {
        name: "portpicker (crate)",
        id: "portpicker",
        program: Program::Rust("portpicker"),
        call: "`pick_unused_port()`",
        promise: "free for TCP and UDP when checked; nothing is kept",
        ports: "15000-24999, fixed",
        takes_range: false,
        releases: false,
    },
    Tool {
        name: "openport",
        id: "openport",
        program: Program::Rust("openport"),
        call: "`PortReservation::new(range).reserve_port()`",
        promise: "the first port that is free for TCP and UDP; kept within the process, in a set",
        ports: RANGE,
        takes_range: true,
        releases: true,
    },
    Tool {
        name: "port-selector",
        id: "port-selector",
        program: Program::Rust("port-selector"),
        call: "`select_free_port(Selector { port_range, .. })`",
        promise: "free for TCP and UDP when checked; nothing is kept",
        ports: RANGE,
        takes_range: true,
        releases: false,
    },
    Tool {
        name: "port_check",
        id: "port_check",
        program: Program::Rust("port_check"),
        call: "`free_local_port()`",
        promise: "free on 127.0.0.1 when checked; says so, and offers a retry helper",
        ports: EPHEMERAL,
        takes_range: false,
        releases: false,
    },
    Tool {
        name: "port_check, range",
        id: "port_check-range",
        program: Program::Rust("port_check"),
        call: "`free_local_port_in_range(range)`",
        promise: "the first port of the range that is free on 127.0.0.1 when checked",
        ports: RANGE,
        takes_range: true,
        releases: false,
    },
    Tool {
        name: "portpicker (PyPI)",
        id: "portpicker",
        program: Program::Python,
        call: "`pick_unused_port()`",
        promise: "free for TCP and UDP when checked; kept within the process, in a set",
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
        // A returned port stays with its process.
        releases: false,
    },
    Tool {
        name: "fasteners recipe",
        id: "recipe",
        program: Program::Python,
        call: "bind, then `InterProcessLock(<port>).acquire(blocking=False)`",
        promise: "kept from all users of the same directory, by a lock file for each port",
        ports: RANGE,
        takes_range: true,
        releases: true,
    },
    Tool {
        name: "get-port",
        id: "get-port",
        program: Program::Node,
        call: "`getPort({reserve: true})`",
        promise: "free on every local address when checked; kept within the process, in a set",
        ports: EPHEMERAL,
        takes_range: false,
        releases: true,
    },
    Tool {
        name: "get-port, range",
        id: "get-port-range",
        program: Program::Node,
        call: "`getPort({port: <the range in random order>, reserve: true})`",
        promise: "the same, for the first free port of the range, or else any port",
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
    promise: "kept from all users of the same directory, by a lock file for each port",
    ports: RANGE,
    takes_range: true,
    releases: true,
};

impl Tool {
    pub(crate) fn is_ours(&self) -> bool {
        self.id == PORTLOCK.id
    }

    /// Whether this is the row that the others are compared to.
    pub(crate) fn is_reference(&self) -> bool {
        self.name == PORTLOCK.name
    }

    /// Whether this is the second turn of a tool.
    pub(crate) fn is_again(&self) -> bool {
        self.name.ends_with(", again")
    }

    /// Whether the tool is the first that needs its lock files, and so creates them.
    pub(crate) fn makes_lock_files(&self) -> bool {
        self.is_reference() || self.id == "recipe"
    }
}
