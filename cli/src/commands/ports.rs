//! `ports`: prints sets of ports.

use portlock::{PortSet, ephemeral_port_range};
use serde_json::{Value, json};

use crate::{
    args::Ports,
    exit_status::ExitStatus,
    failure::Failure,
    output::{print, print_json},
};

pub(crate) fn ports(args: &Ports) -> Result<ExitStatus, Failure> {
    let ports = match &args.set {
        Some(ports) => ports.clone(),
        None if args.ephemeral => ephemeral_port_range()?.into(),
        None => PortSet::server_ports()?,
    };
    if args.json.json {
        let text = ports.to_string();
        let ranges: Vec<Value> = text.split_terminator(',').map(range).collect();
        print_json(&json!({ "ports": text, "count": ports.len(), "ranges": ranges }))?;
    } else {
        print(&format!("{ports}\n"))?;
    }
    Ok(ExitStatus::Success)
}

/// `[first, last]` out of `first-last`, or `[port, port]`.
fn range(text: &str) -> Value {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<u16>().ok();
    json!([number(first), number(last)])
}
