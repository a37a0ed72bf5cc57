//! `port`: prints the port reserved for a name.

use std::{path::Path, slice};

use crate::{
    args::Port,
    exit_status::ExitStatus,
    failure::Failure,
    names::reserve,
    output::{print_to_reader, unprintable},
};

pub(crate) fn port(args: &Port, dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    for reservation in reserve(slice::from_ref(&args.name), &args.reserving, dir)? {
        print_to_reader(&format!("{}\n", reservation.port)).map_err(|error| unprintable(&error))?;
    }
    Ok(ExitStatus::Success)
}
