//! `port`: prints the port reserved for a name.

use std::path::Path;

use crate::{
    args::Port,
    exit_status::ExitStatus,
    failure::Failure,
    names::reserve,
    output::{print_to_reader, unprintable},
};

pub(crate) fn port(args: &Port, dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    let reservation = reserve(&args.name, &args.reserving, dir)?;
    print_to_reader(&format!("{}\n", reservation.port)).map_err(|error| unprintable(&error))?;
    Ok(ExitStatus::Success)
}
