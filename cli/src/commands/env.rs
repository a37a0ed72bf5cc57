//! `env`: prints the ports reserved for names as variables.

use std::{env, fs::File, io::Write as _, path::Path};

use portlock::Reservation;
use serde_json::{Map, Value};

use crate::{
    args::{Env, Format},
    exit_status::ExitStatus,
    failure::Failure,
    lock_dir::lock_dir,
    names::{counts, reserve, root},
    output::{note, print_json, print_to_reader, readable, unprintable},
};

/// The variable that holds the path of the file to which a GitHub Actions step writes variables.
const GITHUB_ENV: &str = "GITHUB_ENV";

pub(crate) fn env(args: &Env, dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    let reserving = &args.reserving;
    let named_root = reserving.root.root.as_deref();
    let reservations: Vec<Reservation> = if args.names.is_empty() {
        let root = root(named_root)?;
        let mut all = lock_dir(dir)?.reservations_in(&root)?;
        all.retain(counts);
        all.sort_by(|a, b| a.name.cmp(&b.name));
        if all.is_empty() {
            note(&format!("no port is reserved in {}", readable(&root)));
        }
        all
    } else {
        reserve(&args.names, reserving, dir)?
    };
    // Nothing needs quoting: variable names are letters, digits and underscores, and ports are digits.
    let variables = reservations
        .iter()
        .map(|reservation| (reservation.variable(), reservation.port));
    if args.format == Format::Json {
        let object: Map<String, Value> = variables
            .map(|(variable, port)| (variable, port.into()))
            .collect();
        print_json(&object.into())?;
        return Ok(ExitStatus::Success);
    }
    let line = |(variable, port): (String, u16)| match args.format {
        Format::Export => format!("export {variable}={port}\n"),
        Format::Fish => format!("set -gx {variable} {port}\n"),
        _ => format!("{variable}={port}\n"),
    };
    let text: String = variables.map(line).collect();
    match args.format {
        Format::Github => append(&text)?,
        _ => print_to_reader(&text).map_err(|error| unprintable(&error))?,
    }
    Ok(ExitStatus::Success)
}

fn append(text: &str) -> Result<(), Failure> {
    let Some(path) = env::var_os(GITHUB_ENV).filter(|path| !path.is_empty()) else {
        let message = format!(
            "{GITHUB_ENV} is not set: --format github works only in a GitHub Actions step (use --format \
             dotenv to print the variables)"
        );
        return Err(Failure::new(ExitStatus::Failed, message));
    };
    let appended = File::options()
        .append(true)
        .create(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    appended.map_err(|error| {
        let path = readable(Path::new(&path));
        let message = format!("cannot append to {path}, the value of {GITHUB_ENV}: {error}");
        Failure::new(ExitStatus::Failed, message)
    })
}
