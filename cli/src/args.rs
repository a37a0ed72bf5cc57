//! The command line.

use std::{
    env,
    ffi::OsString,
    net::{IpAddr, ToSocketAddrs as _},
    path::PathBuf,
    time::Duration,
};

use clap::{
    CommandFactory as _, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};
use portlock::{PortSet, Protocol};

use crate::{exit_status, sys};

/// Returns the last section of `--help`.
fn after_help() -> String {
    let statuses = exit_status::help();
    format!(
        "{statuses}
Environment: PORTLOCK_DIR names the lock directory; PORTLOCK_PORTS, as a set such
as 4000-4999,!4045, or PORTLOCK_PORTS_FILE, as a file with one, names the ports to
choose from; NO_COLOR turns colors off."
    )
}

/// Free ports as leases, shared by all processes that use portlock.
///
/// No other caller with the same lock directory gets a leased port until its holder ends. By
/// default, each user has one lock directory. There is no daemon, and nothing to clean up.
#[derive(Debug, Parser)]
#[command(version, name = "portlock", bin_name = "portlock", after_long_help = after_help(), max_term_width = 100)]
pub(crate) struct Args {
    /// The lock directory; only callers with the same one share leases
    /// [default: the one that `portlock dir` prints].
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) lock_dir: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
// clap builds only the called command: building all of them would take 10 % of the time of `pick`.
// The descriptions of commands are here, and not on their arguments, because the help for all
// commands shows them.
#[command(defer = true)]
pub(crate) enum Command {
    /// Run CMD with leased ports. The lease lasts as long as CMD.
    ///
    /// The environment variable PORT contains the first port. If there are several, PORT_1,
    /// PORT_2 and so on contain all of them. --env sets other variables instead. In the arguments
    /// of CMD, {port} or {port1} is replaced with the first port, {port2} with the second,
    /// and {NAME} with that of the variable NAME. Other text in braces is left unchanged, and
    /// so is ${NAME}, a shell variable. A misspelled {NAME} or a {port2} without a second
    /// port is an error.
    ///
    /// With --name web --name api-v2, the ports are those reserved for these names. WEB_PORT and
    /// API_V2_PORT contain them, and PORT contains the first. In the arguments,
    /// {web} and {api-v2} are replaced. If another process has leased one of the ports, portlock
    /// waits for it.
    Run(Run),
    /// Lease ports for a process that is already running, and print them.
    ///
    /// The lease lasts as long as that process. By default, it is the process that will use
    /// the port, such as a script, an interpreter or make, and not a subshell or timeout(1), which
    /// only pass the output of portlock on.
    Pick(Pick),
    /// Print the ports reserved for names, as variables such as WEB_PORT=23117.
    ///
    /// If no port is reserved for a name, one is reserved first. If a free port is not found for
    /// each of the names in time, none is reserved, and nothing is printed. From then on the name has the same
    /// port, even after a reboot, and no other caller can lease that port, until
    /// `portlock release NAME` or until the root directory is gone, as after `git worktree
    /// remove`. The variable is the name in upper case, with _ instead of -, followed by _PORT.
    ///
    /// `eval "$(portlock env web api)"` sets them in a shell. With --format export, the programs
    /// that the shell starts have them too.
    Env(Env),
    /// Print the port reserved for a name, and nothing else.
    ///
    /// If no port is reserved for the name, one is reserved first, as by `portlock env`.
    Port(Port),
    /// Stop the processes that have leased the ports of names.
    ///
    /// Only these processes and their descendants are stopped, and never portlock itself or one
    /// of its ancestors. The reservations stay: a process that is started again under
    /// the same name has the same port.
    ///
    /// The exit status is 0 if all of these processes have ended, and 124 otherwise.
    #[command(hide = !sys::CAN_STOP)]
    Stop(Stop),
    /// List every lease, and whether the server on its port is the holder's.
    ///
    /// PROGRAM is the program that the holder runs now. A port without a server is "not bound yet".
    /// A port is "bound" if its server belongs to the holder: to that process, a descendant, or a
    /// process that has inherited the lease. Otherwise the list shows which process serves the
    /// port, or that the server is unknown: its process cannot be seen, or it may have
    /// daemonized.
    ///
    /// A port that is reserved for a name and not leased is shown as reserved.
    ///
    /// A lock file that is left from an earlier lease is shown as stale. It is
    /// harmless, and its port is free. Where the system does not list held
    /// locks, a lock file that this user cannot open is shown as unknown.
    List(List),
    /// Print whether ports are free, leased or bound, and who has them.
    ///
    /// That is the holder of the lease and the process that serves the port, each with its
    /// user, as far as they are visible. For other users' servers, Linux shows the user, macOS
    /// nothing, and Windows the process. On Linux, JSON has the command line and directory too.
    ///
    /// A reserved port that is neither leased nor bound counts as free if it is checked by name, and
    /// as reserved if it is checked by number.
    ///
    /// The exit status is 0 if all are free, 1 if one is leased or reserved, and 3 if one is
    /// bound by a program without a lease, or binding it is not permitted.
    Check(Check),
    /// Wait until each port has its server, or until each is free.
    ///
    /// On a leased port it waits for the server of the lease's holder: that process, a
    /// descendant, or a process that has inherited the lease. If the owner of a server cannot be
    /// determined, because it daemonized or is another user's (on Windows, only if its process cannot
    /// be opened), the server is accepted, with a note. On a port that is neither leased nor reserved,
    /// any server is accepted. On a reserved port that is not leased, it waits until the port is leased
    /// and has the holder's server. For a name without a port, it waits until one is reserved.
    ///
    /// Without --host, another process's server at either loopback address counts as an answer,
    /// because a client that connects to localhost may reach it.
    ///
    /// It retries while connections are refused or not answered, or there is no network yet.
    /// The exit status is 3 if another process's server answers, and 124 if a port is not ready
    /// in time.
    Wait(Wait),
    /// Release the lease of a picked port, or the reservation of a name.
    ///
    /// A port number releases the lease of a picked port, and a reservation stays. A
    /// lease that a running process holds itself ends with that process.
    ///
    /// A name releases its reservation: the name no longer has a port, and any caller can lease
    /// the port. That is an error while a process holds the lease itself. A picked lease
    /// does not prevent it, and continues.
    /// A reservation that cannot be read has no name, and is released by its port number.
    ///
    /// If one of several cannot be released, the others are released all the same. The exit status is
    /// that of the first failure.
    Release(Release),
    /// Remove the lock files of ports that are neither leased nor reserved.
    ///
    /// This is optional: they are harmless. A reservation is removed if its root directory is
    /// certainly gone. If the root directory cannot be found, for example on a disk that is not
    /// mounted, the reservation is kept and listed.
    Clean(Clean),
    /// Print a set of ports, by default the ports available for servers on this machine.
    Ports(Ports),
    /// Print the lock directory in use and the reason for it, and check it.
    ///
    /// It also lists other directories in which callers of this user lease ports without
    /// sharing them with this one, and reports if /tmp is private to a service or sandbox,
    /// where that can be determined. It leaves no files, and fails if no lock file can be created.
    Dir(Json),
    /// Run a port server for portpicker and other clients of its protocol.
    ///
    /// Programs that are started with PORTSERVER_ADDRESS set to the same address use
    /// this server. Each port that it grants is leased in the lock directory until the
    /// client ends, so grants never collide with other
    /// users of portlock, and the server can be killed and restarted at any time.
    Serve(Serve),
    /// Print shell completions.
    Completions {
        /// The shell to complete commands in.
        shell: clap_complete::Shell,
    },
    /// Print the man page, or write one for each command into a directory.
    Man {
        /// The directory to write portlock.1, portlock-run.1 and so on to.
        dir: Option<PathBuf>,
    },
}

// The ports to lease, how many, and how long to wait for them. A doc comment here, or on any other
// flattened arguments, would replace the descriptions of the commands that have them.
#[derive(Debug, clap::Args)]
pub(crate) struct Selection {
    /// The ports to choose from, such as 4000-4999,!4045,7000
    /// [default: those that `portlock ports` prints].
    #[arg(long, value_name = "SET", value_parser = some_ports, allow_hyphen_values = true)]
    pub(crate) ports: Option<PortSet>,

    /// The number of ports to lease, all or none [default: 1].
    #[arg(
        short = 'n',
        long = "number",
        value_name = "N",
        value_parser = number,
        allow_negative_numbers = true
    )]
    number: Option<usize>,

    /// Lease consecutive ports.
    #[arg(long)]
    pub(crate) contiguous: bool,

    /// The port must be free for UDP [default: TCP].
    #[arg(long, conflicts_with = "tcp_and_udp")]
    udp: bool,

    /// The port must be free for TCP and UDP.
    #[arg(long)]
    tcp_and_udp: bool,

    /// The port must be free on this address, or on all addresses of this name such as
    /// localhost; may be repeated [default: on every address].
    #[arg(long = "host", value_name = "HOST", value_parser = host)]
    pub(crate) hosts: Vec<Host>,

    #[command(flatten)]
    pub(crate) reuse: Reuse,

    /// Prefer the same port for the same text, if that port is free.
    #[arg(long, value_name = "TEXT")]
    pub(crate) prefer: Option<String>,

    /// Lease the port reserved for this name in the root directory, and reserve one first if
    /// there is none; may be repeated to lease several ports, all or none.
    #[arg(
        long = "name",
        value_name = "NAME",
        conflicts_with_all = ["number", "contiguous", "prefer"]
    )]
    pub(crate) names: Vec<String>,

    /// The directory that the names belong to [default: the root of the git worktree or,
    /// outside a worktree, the current directory].
    #[arg(long, value_name = "DIR", requires = "names")]
    pub(crate) root: Option<PathBuf>,

    /// If a reserved port is bound by another program, lease any other port instead.
    #[arg(long, requires = "names")]
    pub(crate) or_any: bool,

    /// How long to wait for a free port, in seconds or with a unit: 500ms, 2s, 1m; 0 tries
    /// once.
    #[arg(
        long,
        value_name = "TIME",
        default_value = "30",
        value_parser = time,
        allow_hyphen_values = true
    )]
    pub(crate) timeout: Duration,

    /// A description of the lease, shown by `portlock list`.
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
}

impl Selection {
    pub(crate) fn number(&self) -> usize {
        self.number.unwrap_or(1)
    }

    pub(crate) fn protocol(&self) -> Protocol {
        match (self.udp, self.tcp_and_udp) {
            (true, _) => Protocol::Udp,
            (_, true) => Protocol::TcpAndUdp,
            _ => Protocol::Tcp,
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = sys::RUN_HELP)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) selection: Selection,

    /// The environment variable for the port; may be repeated to lease several ports.
    #[arg(
        long = "env",
        value_name = "NAME",
        conflicts_with_all = ["number", "names"],
        value_parser = variable
    )]
    pub(crate) env: Vec<String>,

    /// Pass listening sockets to CMD as systemd does (LISTEN_FDS, LISTEN_PID and
    /// LISTEN_FDNAMES; sd_listen_fds(3)), so that the port is bound from the start.
    #[arg(
        long,
        conflicts_with_all = ["udp", "tcp_and_udp", "contiguous"],
        hide = !sys::PASSES_LISTENERS
    )]
    pub(crate) listen: bool,

    /// The command and its arguments.
    #[arg(required = true, value_name = "CMD", trailing_var_arg = true)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = sys::PICK_HELP)]
pub(crate) struct Pick {
    #[command(flatten)]
    pub(crate) selection: Selection,

    /// The process that the lease is for [default: the process that will use the port].
    #[arg(long, value_name = "PID", allow_negative_numbers = true)]
    pub(crate) pid: Option<u32>,

    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Env {
    /// The names [default: all that have a port in the root directory].
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,

    /// The output format. `dotenv` is for `docker compose --env-file` and .env files,
    /// `fish` for `portlock env --format fish | source`. `github` prints nothing, and appends
    /// to the file that $GITHUB_ENV names, so that later steps in GitHub Actions have the
    /// variables.
    #[arg(long, value_name = "FORMAT", default_value = "dotenv")]
    pub(crate) format: Format,

    #[command(flatten)]
    pub(crate) reserving: Reserving,
}

/// How variables are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Dotenv,
    Export,
    Json,
    Fish,
    Github,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Port {
    /// The name.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,

    #[command(flatten)]
    pub(crate) reserving: Reserving,
}

// The directory in which names are reserved, the ports to choose from, and how long to wait for them.
#[derive(Debug, clap::Args)]
pub(crate) struct Reserving {
    #[command(flatten)]
    pub(crate) root: Root,

    /// The ports to choose from if none is reserved for a name
    /// [default: those that `portlock ports` prints].
    #[arg(long, value_name = "SET", value_parser = some_ports, allow_hyphen_values = true)]
    pub(crate) ports: Option<PortSet>,

    /// How long to wait for a free port if none is reserved for a name, in seconds or with a
    /// unit: 500ms, 2s, 1m; 0 tries once.
    #[arg(
        long,
        value_name = "TIME",
        default_value = "30",
        value_parser = time,
        allow_hyphen_values = true
    )]
    pub(crate) timeout: Duration,
}

/// A port, or the name that it is reserved for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Port(u16),
    Name(String),
}

// The directory that names belong to.
#[derive(Debug, clap::Args)]
pub(crate) struct Root {
    /// The directory that the names belong to [default: the root of the git worktree or,
    /// outside a worktree, the current directory].
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = sys::STOP_HELP)]
pub(crate) struct Stop {
    /// The names.
    #[arg(value_name = "NAME", required_unless_present = "all")]
    pub(crate) names: Vec<String>,

    /// Stop the processes of all names in the root directory.
    #[arg(long, conflicts_with = "names")]
    pub(crate) all: bool,

    #[command(flatten)]
    pub(crate) root: Root,

    /// Print what would be stopped, without stopping it.
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// How long to wait before killing a process that has not ended, in seconds or with a unit:
    /// 500ms, 2s, 1m; 0 kills immediately.
    #[arg(
        long,
        value_name = "TIME",
        default_value = "10",
        value_parser = time,
        allow_hyphen_values = true
    )]
    pub(crate) timeout: Duration,
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Also show the lock files of ports that are not leased.
    #[arg(long, short)]
    pub(crate) all: bool,

    /// Print the ports as a map.
    #[arg(long, conflicts_with = "json")]
    pub(crate) map: bool,

    /// The ports to show [default: those with a lock file; with --map, those that
    /// `portlock ports` prints].
    #[arg(long, value_name = "SET")]
    pub(crate) ports: Option<PortSet>,

    /// Show only leases with this label.
    #[arg(long, value_name = "TEXT", conflicts_with = "map")]
    pub(crate) label: Option<String>,

    /// Show only ports reserved for this name, in any root directory.
    #[arg(long, value_name = "NAME", conflicts_with = "map")]
    pub(crate) name: Option<String>,

    /// Show only ports reserved in this root directory, such as `.` for the current
    /// directory.
    #[arg(long, value_name = "DIR", conflicts_with = "map")]
    pub(crate) root: Option<PathBuf>,

    /// Repeat every second until interrupted. With --json, print one object per line.
    #[arg(long, short)]
    pub(crate) watch: bool,

    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Check {
    /// Ports, as numbers or as the names that they are reserved for.
    #[arg(
        required = true,
        value_name = "PORT|NAME",
        value_parser = target,
        allow_negative_numbers = true
    )]
    pub(crate) targets: Vec<Target>,

    #[command(flatten)]
    pub(crate) root: Root,

    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Wait {
    /// Ports, as numbers or as the names that they are reserved for.
    #[arg(
        required = true,
        value_name = "PORT|NAME",
        value_parser = target,
        allow_negative_numbers = true
    )]
    pub(crate) targets: Vec<Target>,

    #[command(flatten)]
    pub(crate) root: Root,

    /// Wait until each port can be leased.
    #[arg(long)]
    pub(crate) free: bool,

    /// Wait for the server of this process or of a descendant, regardless of the lease.
    #[arg(
        long,
        value_name = "PID",
        conflicts_with_all = ["free", "any"],
        allow_negative_numbers = true
    )]
    pub(crate) pid: Option<u32>,

    /// Accept any server, regardless of the lease.
    #[arg(long, conflicts_with = "free")]
    pub(crate) any: bool,

    /// The address to check, or a name such as localhost for any of its addresses [default:
    /// either loopback address, 127.0.0.1 or ::1; with --free: every address].
    #[arg(long, value_name = "HOST", value_parser = host)]
    pub(crate) host: Option<Host>,

    /// How long to wait for all ports, in seconds or with a unit: 500ms, 2s, 1m; 0 tries once.
    #[arg(
        long,
        value_name = "TIME",
        default_value = "30",
        value_parser = time,
        allow_hyphen_values = true
    )]
    pub(crate) timeout: Duration,

    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Release {
    /// Ports, as numbers or as the names that they are reserved for.
    #[arg(
        required = true,
        value_name = "PORT|NAME",
        value_parser = target,
        allow_negative_numbers = true
    )]
    pub(crate) targets: Vec<Target>,

    #[command(flatten)]
    pub(crate) root: Root,

    /// Release the lease even if its process belongs to another user or cannot be seen.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Clean {
    /// Also remove the copies of reservations in your state directory whose root or lock
    /// directory is certainly gone, for all lock directories.
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Ports {
    /// Print the range from which the system assigns ports to clients.
    #[arg(long, conflicts_with_all = ["server", "set"])]
    pub(crate) ephemeral: bool,

    /// Print the ports for servers, or those named by the environment (the default).
    #[arg(long, conflicts_with = "set")]
    pub(crate) server: bool,

    /// Validate a set such as 4000-4999,!4045,7000, and print it in order.
    #[arg(value_name = "SET")]
    pub(crate) set: Option<PortSet>,

    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = sys::SERVE_HELP)]
pub(crate) struct Serve {
    #[arg(
        long,
        value_name = "ADDRESS",
        help = sys::ADDRESS_HELP,
        default_value = sys::DEFAULT_ADDRESS,
        aliases = ["portserver_address", "portserver_unix_socket_address"]
    )]
    pub(crate) address: Option<String>,

    /// The ports to grant.
    #[arg(long, value_name = "SET", default_value = "15000-24999")]
    pub(crate) ports: PortSet,

    /// The same, parsed as portpicker's server does: invalid ranges are ignored.
    #[arg(
        long = "portserver_static_pool",
        value_name = "RANGES",
        hide = true,
        conflicts_with = "ports"
    )]
    pub(crate) static_pool: Option<String>,

    #[command(flatten)]
    pub(crate) reuse: Reuse,

    /// Print only errors and warnings, such as that all ports are in use.
    #[arg(long, short)]
    pub(crate) quiet: bool,

    /// Accepted because portpicker's server has it.
    #[arg(long, hide = true)]
    pub(crate) verbose: bool,

    /// Also print each grant.
    #[arg(long)]
    pub(crate) debug: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Reuse {
    /// Whether a port in TIME_WAIT counts as free [default: only if no other port is free].
    #[arg(
        long,
        value_name = "yes|no",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "yes",
        value_parser = yes_or_no
    )]
    pub(crate) reuse_address: Option<bool>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Json {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Parses the command line of this process.
pub(crate) fn parse() -> Result<Args, clap::Error> {
    let words: Vec<OsString> = env::args_os().collect();
    let parsed = Args::try_parse_from(&words);
    // `--reuse-address no`: without an equals sign, `no` is another argument.
    let separate = match &parsed {
        Ok(args) => match &args.command {
            Command::Run(run) => {
                let before = words.len().saturating_sub(run.command.len() + 1);
                separate_value(&words[before..])
                    .filter(|&value| run.command.first().is_some_and(|program| program == value))
            }
            _ => None,
        },
        Err(error) => match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(unexpected)) => words
                .iter()
                .enumerate()
                .find_map(|(i, _)| separate_value(&words[i..]))
                .filter(|value| unexpected == value),
            _ => None,
        },
    };
    match separate {
        Some(value) => {
            let message = format!(
                "the value of --reuse-address must follow an equals sign: --reuse-address={value}"
            );
            Err(Args::command().error(ErrorKind::UnknownArgument, message))
        }
        None => parsed,
    }
}

/// Returns the value, if the words begin with `--reuse-address` and its value as separate words.
fn separate_value(words: &[OsString]) -> Option<&str> {
    match words {
        [option, value, ..] if option == "--reuse-address" => {
            value.to_str().filter(|value| yes_or_no(value).is_ok())
        }
        _ => None,
    }
}

fn target(text: &str) -> Result<Target, String> {
    if text.starts_with(|c: char| c.is_ascii_lowercase()) {
        // The library validates the name.
        return Ok(Target::Name(text.to_owned()));
    }
    let port = text.parse().ok().filter(|&port| port > 0);
    let port = port.map(Target::Port);
    port.ok_or_else(|| "not a port from 1 to 65535, nor a name such as web".to_owned())
}

fn some_ports(text: &str) -> Result<PortSet, String> {
    let ports: PortSet = text
        .parse()
        .map_err(|error: portlock::Error| error.to_string())?;
    if ports.is_empty() {
        return Err("no ports to choose from: the set has none from 1 to 65535".to_owned());
    }
    Ok(ports)
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("neither yes nor no".to_owned()),
    }
}

fn number(text: &str) -> Result<usize, String> {
    let number = text
        .parse()
        .ok()
        .filter(|number| (1..=65535).contains(number));
    number.ok_or_else(|| "not a number from 1 to 65535".to_owned())
}

/// Parses a number of seconds, or a time with units.
fn time(text: &str) -> Result<Duration, String> {
    let time = match text.parse() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => humantime::parse_duration(text).ok(),
    };
    time.ok_or_else(|| "not a time such as 30, 500ms, 2s or 1m".to_owned())
}

/// The addresses that `--host` names: at least one.
#[derive(Clone, Debug)]
pub(crate) struct Host(pub(crate) Vec<IpAddr>);

fn host(text: &str) -> Result<Host, String> {
    if let Ok(address) = text.parse() {
        return Ok(Host(vec![address]));
    }
    // Resolvers also accept forms that are not plain addresses: 127.1, or fe80::1%lo.
    if text.contains(':') || !text.contains(|c: char| c.is_alphabetic()) {
        return Err("neither an address nor a name".to_owned());
    }
    let addresses = (text, 0)
        .to_socket_addrs()
        .map_err(|error| format!("the name cannot be resolved: {error}"))?;
    let mut hosts: Vec<IpAddr> = Vec::new();
    for address in addresses {
        if !hosts.contains(&address.ip()) {
            hosts.push(address.ip());
        }
    }
    if hosts.is_empty() {
        return Err("the name has no address".to_owned());
    }
    Ok(Host(hosts))
}

/// Parses a variable name that a shell can use: letters, digits and underscores, not starting with a digit.
fn variable(text: &str) -> Result<String, String> {
    let word = |c: char| c == '_' || c.is_ascii_alphanumeric();
    if text.chars().all(word) && !text.starts_with(|c: char| c.is_ascii_digit()) && !text.is_empty()
    {
        Ok(text.to_owned())
    } else {
        Err("not the name of a variable".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, builder::StyledStr};

    #[test]
    fn the_command_line_is_well_defined() {
        super::Args::command().debug_assert();
    }

    #[test]
    fn what_describes_a_command_does_not_depend_on_its_arguments() {
        let descriptions = |command: &clap::Command| -> Vec<[String; 3]> {
            let text = |text: Option<&StyledStr>| text.map(ToString::to_string).unwrap_or_default();
            let described = |command: &clap::Command| {
                let name = command.get_name().to_owned();
                [
                    name,
                    text(command.get_about()),
                    text(command.get_long_about()),
                ]
            };
            let commands = command.get_subcommands();
            commands
                .filter(|command| command.get_name() != "help")
                .map(described)
                .collect()
        };
        let mut command = super::Args::command();
        let before = descriptions(&command);
        assert!(
            before.iter().all(|[_, about, _]| !about.is_empty()),
            "{before:?}"
        );
        command.build();
        assert_eq!(before, descriptions(&command));
    }
}
