//! What was found, as text.

use std::{
    fmt::{self, Write as _},
    fs, io,
    path::Path,
};

use crate::{
    Result,
    measure::{Effort, Keeping, PROCESSES, Sample},
    tools::{Program, Tool},
    version,
};

const BEGIN: &str = "<!-- peers:begin -->";
const END: &str = "<!-- peers:end -->";
const HEADING: &str = "# Benchmarks\n";

/// What was found of one tool.
pub(crate) struct Entry {
    pub(crate) tool: &'static Tool,
    version: String,
    keeping: Option<Keeping>,
    pub(crate) samples: Vec<Sample>,
    warm_up: Vec<Sample>,
}

impl Entry {
    pub(crate) fn new(tool: &'static Tool, version: String, keeping: Option<Keeping>) -> Self {
        Self {
            tool,
            version,
            keeping,
            samples: Vec::new(),
            warm_up: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, sample: Sample, counts: bool) {
        let samples = if counts {
            &mut self.samples
        } else {
            &mut self.warm_up
        };
        samples.push(sample);
    }

    pub(crate) fn spread(&self, value: impl Fn(&Sample) -> f64) -> Spread {
        Spread::of(self.samples.iter().map(value).collect())
    }

    pub(crate) fn spread_if_any(&self, value: impl Fn(&Sample) -> Option<f64>) -> Option<Spread> {
        let values: Option<Vec<f64>> = self.samples.iter().map(value).collect();
        values.map(Spread::of)
    }
}

/// The median of several rounds, and how far they lie apart.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        Self {
            median: (at(last / 2) + at(last.div_ceil(2))) / 2.0,
            min: at(0),
            max: at(last),
        }
    }

    /// The numbers, each written by `write`; once if they are the same.
    fn text(self, write: impl Fn(f64) -> String) -> String {
        let [median, min, max] = [self.median, self.min, self.max].map(write);
        if min == max {
            return median;
        }
        format!("{median} ({min}–{max})")
    }
}

/// Three significant digits, thousands apart.
fn rate(value: f64) -> String {
    let unit = 10_f64.powf((value.log10().floor() - 2.0).max(0.0));
    let digits = format!("{:.0}", (value / unit).round() * unit);
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn ratio(value: f64) -> String {
    if value < 0.095 {
        format!("{value:.3}")
    } else {
        format!("{value:.2}")
    }
}

/// The median of an even number of rounds can lie between two numbers.
fn count(value: f64) -> String {
    let digits = usize::from(value.fract() != 0.0);
    format!("{value:.digits$}")
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// Under which circumstances it was measured.
pub(crate) struct Setting<'a> {
    pub(crate) own_network: bool,
    pub(crate) load: String,
    pub(crate) locks: &'a str,
}

pub(crate) fn section(entries: &[Entry], effort: Effort, setting: &Setting<'_>) -> Result<String> {
    let mut text = String::new();
    introduction(&mut text, entries, setting)?;
    throughput(&mut text, entries, effort)?;
    correctness(&mut text, entries, effort)?;
    Ok(text)
}

fn introduction(text: &mut String, entries: &[Entry], setting: &Setting<'_>) -> Result<()> {
    let network = if setting.own_network {
        "in a network namespace of its own, where nobody else binds ports"
    } else {
        "in the machine's network, where other programs may bind ports too"
    };
    let (machine, rustc, today) = (version::machine()?, version::rustc()?, version::today()?);
    let file_system = version::file_system(setting.locks)?;
    let first = entries.first().ok_or("no tool was measured")?;
    let (warm_up, rounds) = (first.warm_up.len(), first.samples.len());
    writeln!(
        text,
        "## Beside other tools\n\n\
         Made by `benches/peers/run`; the versions of the tools are in the first table.\n\n\
         - Machine: {machine}; load before the run {}\n\
         - Date: {today}\n\
         - Build: release, rustc {rustc}\n\
         - Network: {network}\n\
         - Lock files: on {file_system}, where earlier rounds have made them\n\
         - Rounds: {rounds}, after {warm_up} to warm up; in each, the tools take turns\n\n\
         Figures are medians, with the least and the greatest of the rounds in parentheses.\n\
         portlock takes two turns a round: what lies between these two rows is noise.\n\n\
         ![The figures of both tables below, with the spread of the rounds](benchmarks-peers.svg)\n\n\
         Each tool is called as its documentation says:\n",
        setting.load,
    )?;
    let columns = ["tool", "version", "called", "what it promises", "ports"];
    header(text, &columns, TEXT)?;
    for entry in entries.iter().filter(|entry| !is_again(entry)) {
        let Tool {
            name,
            call,
            promise,
            ports,
            ..
        } = entry.tool;
        let version = &entry.version;
        writeln!(
            text,
            "| {name} | {version} | {call} | {promise} | {ports} |"
        )?;
    }
    Ok(())
}

fn is_again(entry: &Entry) -> bool {
    entry.tool.is_ours() && entry.tool.name != "portlock"
}

/// The first column is text.
fn header(text: &mut String, columns: &[&str], others: &str) -> fmt::Result {
    let others = others.repeat(columns.len().saturating_sub(1));
    writeln!(text, "| {} |\n|---|{others}", columns.join(" | "))
}

const TEXT: &str = "---|";
const NUMBERS: &str = "---:|";

fn throughput(text: &mut String, entries: &[Entry], effort: Effort) -> Result<()> {
    writeln!(
        text,
        "\n### Throughput\n\n\
         Ports per second. *Keep*: one process picks {} ports, {PROCESSES} at once pick {} each, and \
         all are kept. *Cycle*: pick and release, over and over for {} ms, where the tool can give a \
         port back to anybody. *Of portlock*: the keep figure beside portlock's in the same round.\n",
        effort.alone,
        effort.ports,
        effort.cycle.as_millis(),
    )?;
    let columns = [
        "tool",
        "keep, 1 process",
        "of portlock",
        "cycle, 1 process",
        "keep, 8 processes",
        "of portlock",
        "cycle, 8 processes",
    ];
    header(text, &columns, NUMBERS)?;
    let ours = entries.iter().find(|entry| entry.tool.is_ours());
    let ours = &ours.ok_or("portlock was not measured")?.samples;
    for entry in entries {
        let of_portlock = |value: fn(&Sample) -> f64| {
            let pairs = entry.samples.iter().zip(ours);
            let ratios = pairs.map(|(theirs, ours)| value(theirs) / value(ours));
            Spread::of(ratios.collect()).text(ratio)
        };
        let cycle = |value: fn(&Sample) -> Option<f64>| {
            let spread = entry.spread_if_any(value);
            spread.map_or_else(|| "–".to_owned(), |spread| spread.text(rate))
        };
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            entry.tool.name,
            entry.spread(|sample| sample.keep).text(rate),
            of_portlock(|sample| sample.keep),
            cycle(|sample| sample.cycle),
            entry.spread(|sample| sample.keep_together).text(rate),
            of_portlock(|sample| sample.keep_together),
            cycle(|sample| sample.cycle_together),
        )?;
    }
    Ok(first_use(text, entries)?)
}

/// Of the warm-up, in which the lock files were made.
fn first_use(text: &mut String, entries: &[Entry]) -> fmt::Result {
    let first = |entry: &Entry| {
        let keep = entry.warm_up.first()?.keep;
        Some(format!("{} {}", entry.tool.name, rate(keep)))
    };
    let entries = entries
        .iter()
        .filter(|entry| !is_again(entry) && entry.tool.makes_lock_files());
    let all: Vec<String> = entries.filter_map(first).collect();
    if all.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "\nWhere a port is kept for the first time ever, its lock file has to be made. One process, in \
         an empty directory, once: {} ports per second.",
        all.join(", ")
    )
}

fn correctness(text: &mut String, entries: &[Entry], effort: Effort) -> Result<()> {
    let all = effort.all();
    writeln!(
        text,
        "\n### Who gets whose port\n\n\
         {PROCESSES} processes pick {} ports each, {all} in all.\n\n\
         - *Duplicates*: all are kept, none is bound yet; how many picks gave a port that another \
           pick had already given.\n\
         - *Failed*: what then cannot be bound on 127.0.0.1, because it is in use. The server is \
           another process, the same for all tools, which is told each number over a pipe, and \
           keeps what it has bound. *At once*: as soon as the number is there, while others go on \
           picking; *strict* binds without `SO_REUSEADDR`, *listen* with it, and listens. *Later*: {} \
           times over, all {PROCESSES} processes pick one port, and when all have one, the server \
           binds these, strictly.\n\
         - *Kept*: with a range of a single port, a second process is not given that port while the \
           first lives. *Free after SIGKILL*: it is, as soon as the first was killed. A dash is for \
           tools that take no range, and for what was not kept.\n",
        effort.ports, effort.ports,
    )?;
    let columns = [
        "tool",
        "duplicates",
        "failed at once, strict",
        "failed at once, listen",
        "failed later, strict",
        "kept",
        "free after SIGKILL",
    ];
    header(text, &columns, NUMBERS)?;
    for entry in entries {
        let of =
            |value: fn(&Sample) -> usize| entry.spread(|sample| value(sample) as f64).text(count);
        let keeping = entry.keeping.map_or(["–", "–"], |keeping| {
            let free = if keeping.kept {
                yes(keeping.free_after_kill)
            } else {
                "–"
            };
            [yes(keeping.kept), free]
        });
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            entry.tool.name,
            of(|sample| sample.duplicates),
            of(|sample| sample.strict),
            of(|sample| sample.listen),
            of(|sample| sample.later),
            keeping[0],
            keeping[1],
        )?;
    }
    let ours = entries.iter().filter(|entry| entry.tool.is_ours());
    let turns: usize = ours
        .map(|entry| entry.samples.len() + entry.warm_up.len())
        .sum();
    let (duplicates, failed) = ours_wrong(entries);
    writeln!(
        text,
        "\nportlock in all rounds, both turns and the warm-up: {duplicates} duplicates among {} kept ports, \
         {failed} failed binds of {}.",
        turns * all,
        3 * turns * all,
    )?;
    for entry in entries {
        let none: usize = entry.samples.iter().map(|sample| sample.none).sum();
        if none > 0 {
            writeln!(
                text,
                "\n{} gave no port at all in {none} picks.",
                entry.tool.name
            )?;
        }
    }
    let served = entries
        .iter()
        .find(|entry| entry.tool.program == Program::PythonServed);
    if let Some(served) = served {
        writeln!(
            text,
            "\nA port that is returned to {} stays the process's own, which is why it has no cycle. \
             port_check has `with_free_port` too, which binds in place and tries another port when \
             that fails; a server that is another process cannot be started so. get-port's \
             `portNumbers(first, last)` gives the range in ascending order, and so the same ports to \
             every process; and each pick looks again at each port that is reserved already.",
            served.tool.name,
        )?;
    }
    Ok(())
}

fn ours_wrong(entries: &[Entry]) -> (usize, usize) {
    let ours = entries.iter().filter(|entry| entry.tool.is_ours());
    ours.flat_map(|entry| entry.samples.iter().chain(&entry.warm_up))
        .fold((0, 0), |(duplicates, failed), sample| {
            let binds = sample.strict + sample.listen + sample.later;
            (duplicates + sample.duplicates, failed + binds)
        })
}

/// What must hold for portlock on any machine.
pub(crate) fn check_ours(entries: &[Entry]) -> Result<()> {
    let (duplicates, failed) = ours_wrong(entries);
    let ours = entries.iter().filter(|entry| entry.tool.is_ours());
    let none: usize = ours
        .clone()
        .flat_map(|entry| &entry.samples)
        .map(|sample| sample.none)
        .sum();
    let mut keeping = ours.filter_map(|entry| entry.keeping);
    if duplicates + failed > 0 {
        let message = format!("portlock: {duplicates} duplicates, {failed} failed binds, not 0");
        return Err(message.into());
    }
    if none > 0 {
        return Err(format!("portlock: {none} picks gave no port").into());
    }
    if !keeping.all(|keeping| keeping.kept && keeping.free_after_kill) {
        return Err("portlock: a lease did not last exactly as long as its holder".into());
    }
    Ok(())
}

/// Puts the section between its markers, and leaves the rest of the file alone.
pub(crate) fn write(path: &Path, section: &str) -> Result<()> {
    let fail = |operation: &str, error| format!("cannot {operation} {}: {error}", path.display());
    let old = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => HEADING.to_owned(),
        Err(error) => return Err(fail("read", error).into()),
    };
    let section = format!("{BEGIN}\n{section}{END}");
    let new = match (old.split_once(BEGIN), old.split_once(END)) {
        (Some((before, _)), Some((_, after))) => format!("{before}{section}{after}"),
        (None, None) => format!("{old}\n{section}\n"),
        _ => return Err(format!("{} has only one of {BEGIN} and {END}", path.display()).into()),
    };
    Ok(fs::write(path, new).map_err(|error| fail("write", error))?)
}
