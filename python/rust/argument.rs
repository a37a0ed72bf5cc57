//! Arguments of any type and size, as values of the library or a documented error.

use std::{net::IpAddr, time::Duration};

use portlock::{ErrorKind, PortSet, Protocol};
use pyo3::{
    exceptions::{PyOverflowError, PyTypeError, PyValueError},
    intern,
    prelude::*,
    types::{PyInt, PyRange, PyString},
};

use crate::{error, port_set};

/// Longest timeout of a call, in seconds: about thirty years.
const MAX_SECONDS: f64 = 1e9;

/// Number of ports that an iterable may yield, repetitions included, before it counts as endless.
const MAX_ITEMS: usize = 1 << 20;

/// Returns an integer, or the nearest one that fits.
pub(crate) fn number(value: &Bound<'_, PyAny>) -> PyResult<i64> {
    match value.extract::<i64>() {
        Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => {
            // The value itself may have no order, or have raised the error.
            let index = value.call_method0(intern!(value.py(), "__index__"))?;
            let is_negative = index.lt(0)?;
            Ok(if is_negative { i64::MIN } else { i64::MAX })
        }
        outcome => outcome,
    }
}

/// Returns a port's number, or 0, which no set of ports contains.
pub(crate) fn port(value: &Bound<'_, PyAny>) -> PyResult<u16> {
    u16::try_from(number(value)?).map_err(|_| {
        let message = format!("{} is not a port: ports are 1 to 65535", brief(value));
        error::invalid_ports(value.py(), &message)
    })
}

/// Returns the ports from `start` to `stop`, both included.
pub(crate) fn range(start: &Bound<'_, PyAny>, stop: &Bound<'_, PyAny>) -> PyResult<PortSet> {
    let (first, last) = (port(start)?, port(stop)?);
    if first > last {
        let message =
            format!("start {first} is above stop {last}; for one port alone, pass ports={first}");
        return Err(error::invalid_ports(start.py(), &message));
    }
    Ok((first..=last).into())
}

/// Returns the ports of a set, a text, an integer or an iterable of integers.
pub(crate) fn ports(value: &Bound<'_, PyAny>) -> PyResult<PortSet> {
    let py = value.py();
    if let Ok(set) = value.cast::<port_set::PortSet>() {
        return Ok(set.get().ports.clone());
    }
    if let Ok(text) = value.cast::<PyString>() {
        let set = text.to_string_lossy().parse();
        return set.map_err(|error| error::immediate(py, &error));
    }
    // Arrays have `__index__` too, even if they have more than one element.
    let is_number = || {
        PyResult::Ok(
            !value.hasattr(intern!(py, "__iter__"))? && value.hasattr(intern!(py, "__index__"))?,
        )
    };
    if value.is_instance_of::<PyInt>() || is_number()? {
        return Ok(port(value)?.into());
    }
    if value.is_instance_of::<PyRange>() && value.getattr(intern!(py, "step"))?.eq(1)? {
        let first = value.getattr(intern!(py, "start"))?;
        let end = value.getattr(intern!(py, "stop"))?;
        if first.ge(&end)? {
            return Ok(PortSet::default());
        }
        return range(&first, &end.sub(1)?);
    }
    let mut numbers = Vec::new();
    for item in value.try_iter()? {
        if numbers.len() == MAX_ITEMS {
            let message = format!("{} yields more than {MAX_ITEMS} ports", brief(value));
            return Err(error::invalid_ports(py, &message));
        }
        numbers.push(port(&item?)?);
    }
    Ok(numbers.into_iter().collect())
}

/// Returns a time in seconds.
pub(crate) fn seconds(value: &Bound<'_, PyAny>) -> PyResult<Duration> {
    let seconds = match value.extract::<f64>() {
        Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => f64::INFINITY,
        outcome => outcome?,
    };
    // NaN is in no range.
    if !(0.0..=MAX_SECONDS).contains(&seconds) {
        return Err(PyValueError::new_err(format!(
            "a timeout is a number of seconds from 0 to {MAX_SECONDS:.0}, not {}",
            brief(value)
        )));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Returns the addresses of a text, an address of the module `ipaddress`, or an iterable of them.
pub(crate) fn hosts(value: &Bound<'_, PyAny>) -> PyResult<Vec<IpAddr>> {
    if value.is_instance_of::<PyString>() || !value.hasattr(intern!(value.py(), "__iter__"))? {
        return Ok(vec![host(value)?]);
    }
    let mut hosts = Vec::new();
    for item in value.try_iter()? {
        if hosts.len() == MAX_ITEMS {
            return Err(PyValueError::new_err("there are too many hosts"));
        }
        hosts.push(host(&item?)?);
    }
    Ok(hosts)
}

fn host(value: &Bound<'_, PyAny>) -> PyResult<IpAddr> {
    let text = value.str()?;
    text.to_string_lossy().parse().map_err(|_| {
        PyValueError::new_err(format!(
            "a host is an IP address such as 127.0.0.1 or ::1, not {}",
            brief(value)
        ))
    })
}

pub(crate) fn protocol(text: &str) -> PyResult<Protocol> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "tcp+udp" => Ok(Protocol::TcpAndUdp),
        _ => Err(PyValueError::new_err(format!(
            "a protocol is \"tcp\", \"udp\" or \"tcp+udp\", not {text:?}"
        ))),
    }
}

/// Returns the pid of a process.
pub(crate) fn pid(value: &Bound<'_, PyAny>) -> PyResult<u32> {
    u32::try_from(number(value)?).map_err(|_| {
        let message = format!("there is no process {}", brief(value));
        error::refused(value.py(), ErrorKind::Process, &message)
    })
}

/// Returns a number of ports.
pub(crate) fn count(value: &Bound<'_, PyAny>) -> PyResult<usize> {
    let number = number(value)?;
    if number < 0 {
        let message = format!("a number of ports is not negative, as {} is", brief(value));
        return Err(PyValueError::new_err(message));
    }
    Ok(usize::try_from(number).unwrap_or(usize::MAX))
}

/// Returns the offsets of ports.
pub(crate) fn offsets(value: &Bound<'_, PyAny>) -> PyResult<Vec<u16>> {
    let mut offsets = Vec::new();
    for item in value.try_iter()? {
        let item = item?;
        let offset = u16::try_from(number(&item)?).ok();
        match offset {
            Some(offset) if offsets.len() <= usize::from(u16::MAX) => offsets.push(offset),
            _ => {
                let message = format!("offsets are 0 to 65535, each once, not {}", brief(&item));
                return Err(error::invalid_ports(value.py(), &message));
            }
        }
    }
    Ok(offsets)
}

/// Returns text for people.
pub(crate) fn text(value: &Bound<'_, PyAny>) -> PyResult<String> {
    match value.cast::<PyString>() {
        Ok(text) => Ok(text.to_string_lossy().into_owned()),
        Err(_) => Err(PyTypeError::new_err(format!(
            "expected a str, not {}",
            value.get_type().name()?
        ))),
    }
}

/// Returns `format(port, spec)`.
pub(crate) fn format<'py>(py: Python<'py>, port: u16, spec: &str) -> PyResult<Bound<'py, PyAny>> {
    PyInt::new(py, port).call_method1(intern!(py, "__format__"), (spec,))
}

/// Returns a value for a message, truncated if it is long. Python refuses to print the largest integers.
fn brief(value: &Bound<'_, PyAny>) -> String {
    const MAX: usize = 40;
    let Ok(repr) = value.repr() else {
        return "that".to_owned();
    };
    let repr = repr.to_string_lossy();
    let mut text: String = repr.chars().take(MAX).collect();
    if text.len() < repr.len() {
        text.push('…');
    }
    text
}
