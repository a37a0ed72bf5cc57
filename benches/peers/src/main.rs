//! Compares portlock with other tools that find free ports, in one run: how fast they
//! are, how often two processes get the same port, and how often a picked port
//! cannot be bound afterwards.
//!
//! `benches/peers/run` installs the tools and starts this program.

mod measure;
mod plot;
mod report;
mod tools;
mod version;
mod worker;

use std::{
    env,
    fs::{self, DirBuilder},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use measure::{Effort, Places};
use report::Entry;
use tools::TOOLS;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const FULL: Effort = Effort {
    warm_up: 1,
    rounds: 7,
    ports: 200,
    alone: 1000,
    cycle: Duration::from_millis(250),
};

/// Enough to check that everything works; the figures are not reliable.
const QUICK: Effort = Effort {
    warm_up: 0,
    rounds: 1,
    ports: 25,
    alone: 100,
    cycle: Duration::from_millis(50),
};

/// Time after which no further round starts, so that a busy or slow machine runs fewer
/// rounds. At least `LEAST` rounds run, which a spread needs.
const LONG: Duration = Duration::from_secs(5 * 60);
const LEAST: usize = 3;

const HELP: &str = "\
Compare portlock with other tools that find free ports.

Usage: portlock-peers --venv DIR --get-port FILE --node-package FILE --docs DIR [--quick] [--own-network]

Options:
  --venv DIR           a Python environment with portpicker, fasteners and portlease
  --get-port FILE      get-port's index.js
  --node-package FILE  the module of the package portlock for Node.js
  --docs DIR           where to write benchmarks.md and benchmarks-peers.svg
  --quick              one short round
  --own-network        report that this runs in its own network namespace
  --help               print this help

Exit status: 0 if portlock returned no port twice and every port could be bound, otherwise 1.
";

struct Args {
    venv: PathBuf,
    get_port: PathBuf,
    node_package: PathBuf,
    docs: PathBuf,
    effort: Effort,
    own_network: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["worker", id, first, last] => work(id, first, last),
        _ => compare(),
    };
    if let Err(error) = outcome {
        eprintln!("portlock-peers: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn work(id: &str, first: &str, last: &str) -> Result<()> {
    worker::run(id, first.parse()?, last.parse()?)
}

impl Args {
    /// Returns `None` if the arguments ask for help.
    fn parse() -> Result<Option<Self>> {
        use lexopt::prelude::*;

        let (mut venv, mut get_port, mut node_package, mut docs) = (None, None, None, None);
        let (mut effort, mut own_network) = (FULL, false);
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("venv") => venv = Some(parser.value()?.into()),
                Long("get-port") => get_port = Some(parser.value()?.into()),
                Long("node-package") => node_package = Some(parser.value()?.into()),
                Long("docs") => docs = Some(parser.value()?.into()),
                Long("quick") => effort = QUICK,
                Long("own-network") => own_network = true,
                Long("help") => return Ok(None),
                _ => return Err(arg.unexpected().into()),
            }
        }
        Ok(Some(Self {
            venv: venv.ok_or("--venv is missing")?,
            get_port: get_port.ok_or("--get-port is missing")?,
            node_package: node_package.ok_or("--node-package is missing")?,
            docs: docs.ok_or("--docs is missing")?,
            effort,
            own_network,
        }))
    }
}

fn compare() -> Result<()> {
    let Some(args) = Args::parse()? else {
        print!("{HELP}");
        return Ok(());
    };
    let locks = tempfile::tempdir()?;
    #[cfg_attr(windows, expect(unused_mut, reason = "only Unix has modes"))]
    let mut private = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut private, 0o700);
    for name in ["portlock", "recipe"] {
        private.create(locks.path().join(name))?;
    }
    let places = Places {
        venv: args.venv,
        get_port: args.get_port,
        node_package: args.node_package,
        locks: locks.path().to_owned(),
    };
    let load = version::load()?;

    let enter = |tool| -> Result<Entry> {
        let version = measure::version(tool, &places)?;
        let keeping = measure::keeping(tool, &places)?;
        Ok(Entry::new(tool, version, keeping))
    };
    let mut entries: Vec<Entry> = TOOLS.iter().map(enter).collect::<Result<_>>()?;

    // The tools take turns, so that a temporary disturbance affects all of them,
    // and each round begins with a different tool. The first round does not count:
    // its lock files are missing and its programs are not cached yet.
    let Effort {
        warm_up, rounds, ..
    } = args.effort;
    let begin = Instant::now();
    for round in 0..warm_up + rounds {
        if begin.elapsed() > LONG && round >= warm_up + LEAST {
            break;
        }
        let start = Instant::now();
        let len = entries.len();
        for turn in 0..len {
            let entry = &mut entries[(round + turn) % len];
            let sample = measure::round(entry.tool, &places, args.effort)?;
            entry.add(sample, round >= warm_up);
        }
        eprintln!(
            "round {} of {}: {:.0?}",
            round + 1,
            warm_up + rounds,
            start.elapsed()
        );
    }

    fs::create_dir_all(&args.docs)?;
    plot::write(
        &args.docs.join("benchmarks-peers.svg"),
        &entries,
        args.effort,
    )?;
    let setting = report::Setting {
        own_network: args.own_network,
        load,
        locks: &locks.path().display().to_string(),
    };
    let section = report::section(&entries, args.effort, &setting)?;
    report::write(&args.docs.join("benchmarks.md"), &section)?;
    println!("{section}");
    report::check_ours(&entries)
}
