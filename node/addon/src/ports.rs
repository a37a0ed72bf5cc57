//! Sets of ports, as spans for JavaScript.

use napi::bindgen_prelude::Either;
use napi_derive::napi;
use portlock::{PortSet, ephemeral_port_range};

use crate::failure::Failure;

/// First and last ports of the spans of a set, in ascending order.
type Spans = Either<Vec<u32>, Failure>;

/// Returns the set that `text` describes.
#[napi]
pub fn parse_ports(text: String) -> Spans {
    spans(text.parse())
}

/// Returns the ports that this machine leaves to servers.
#[napi]
pub fn server_ports() -> Spans {
    spans(PortSet::server_ports())
}

/// Returns the ports that the kernel assigns to clients.
#[napi]
pub fn ephemeral_ports() -> Spans {
    spans(ephemeral_port_range().map(PortSet::from))
}

fn spans(ports: portlock::Result<PortSet>) -> Spans {
    let ports = match ports {
        Ok(ports) => ports,
        Err(error) => return Either::B(error.into()),
    };
    let mut spans: Vec<u32> = Vec::new();
    for port in ports.iter().map(u32::from) {
        match spans.last_mut() {
            Some(last) if *last + 1 == port => *last = port,
            _ => spans.extend([port, port]),
        }
    }
    Either::A(spans)
}
