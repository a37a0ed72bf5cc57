//! The program's exit statuses, and the section of `--help` about them.

use std::{fmt::Write as _, process::ExitCode};

/// An exit status of portlock itself. Otherwise `run` ends with the status of its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ExitStatus {
    Success = 0,
    /// A checked port is leased.
    Leased = 1,
    /// A checked port is bound or not permitted, or another process's server answered on an awaited
    /// port.
    Bound = 3,
    /// No port was free in time (`EX_TEMPFAIL` in sysexits.h: try again later).
    Exhausted = 75,
    /// A wait timed out, as with timeout(1).
    TimedOut = 124,
    /// portlock itself failed. env(1) uses this status too, because few commands do.
    Failed = 125,
    /// The command was found but could not be executed.
    NotExecutable = 126,
    /// The command was not found.
    NotFound = 127,
}

impl ExitStatus {
    const ALL: [Self; 8] = [
        Self::Success,
        Self::Leased,
        Self::Bound,
        Self::Exhausted,
        Self::TimedOut,
        Self::Failed,
        Self::NotExecutable,
        Self::NotFound,
    ];

    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    /// Returns the meaning of this status, for `--help` and the man page.
    const fn meaning(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Leased => "`check`: a port is leased, or reserved for a name",
            Self::Bound => {
                "`check`: a port is bound without a lease, or binding it is not permitted; `wait`: \
                 another process's server answered"
            }
            Self::Exhausted => "no port was free in time",
            Self::TimedOut => "a wait timed out; `stop`: a process is still running",
            Self::Failed => "portlock itself failed, or its arguments are not valid",
            Self::NotExecutable => "`run`: CMD could not be executed",
            Self::NotFound => "`run`: CMD was not found",
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        status.code().into()
    }
}

/// Returns the part of `--help` about exit statuses.
pub(crate) fn help() -> String {
    let mut text = "Exit status (otherwise `run` exits with the status of CMD):\n".to_owned();
    for status in ExitStatus::ALL {
        let _ = writeln!(text, "  {:>3} {}", status.code(), status.meaning());
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::ExitStatus;
    use crate::args::Args;

    /// Returns the numbers in the text between the phrase and the end of its paragraph.
    fn statuses(text: &str, phrase: &str) -> Vec<u8> {
        let start = text.find(phrase).expect("the text has the phrase");
        let paragraph = text[start..].split("\n\n").next().unwrap_or_default();
        let words = paragraph.split(|c: char| !c.is_alphanumeric());
        words.filter_map(|word| word.parse().ok()).collect()
    }

    fn codes(statuses: &[ExitStatus]) -> Vec<u8> {
        statuses.iter().map(|status| status.code()).collect()
    }

    #[test]
    fn the_help_lists_the_exit_statuses() {
        let command = Args::command();
        let help = |name: &str| {
            let command = command.find_subcommand(name).expect("a command");
            command.get_long_about().expect("a help").to_string()
        };
        let check = codes(&[ExitStatus::Success, ExitStatus::Leased, ExitStatus::Bound]);
        assert_eq!(statuses(&help("check"), "exit status"), check);
        let wait = codes(&[ExitStatus::Bound, ExitStatus::TimedOut]);
        assert_eq!(statuses(&help("wait"), "exit status"), wait);
        let stop = codes(&[ExitStatus::Success, ExitStatus::TimedOut]);
        assert_eq!(statuses(&help("stop"), "exit status"), stop);
        let all = command.get_after_long_help().expect("a help").to_string();
        assert_eq!(statuses(&all, "Exit status"), codes(&ExitStatus::ALL));
    }

    #[test]
    fn the_page_lists_each_status_with_the_same_text_as_the_help() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../docs/reference/exit-status.md"
        );
        let Ok(page) = std::fs::read_to_string(path) else {
            eprintln!("skipped: the pages of the repository are not in the package");
            return;
        };
        let rows = page.lines().filter_map(|line| line.strip_prefix("| "));
        let rows: Vec<&str> = rows
            .filter(|row| row.starts_with(|c: char| c.is_ascii_digit()))
            .collect();
        let expected = ExitStatus::ALL.map(|status| {
            let meaning = status.meaning().replace("CMD", "the command");
            format!("{} | {meaning} |", status.code())
        });
        assert_eq!(rows, expected);
    }
}
